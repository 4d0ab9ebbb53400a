"""The servers under measurement, each a process of its own on the server's core."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import machine
from .connection import Connection

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30
SETTLE_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Server:
    """A server process on loopback."""

    port: int
    pid: int

    @contextmanager
    def task(self) -> Iterator[str]:
        """The path of a fresh task's events; the task is deleted, and the server quiet, after."""
        with Connection(self.port) as connection:
            task = connection.json("POST", "/tasks", b"{}")
        try:
            yield f"/tasks/{task['id']}/events"
        finally:
            # Ten thousand readers that have just gone still take up the server's connections.
            self.settle()
            with Connection(self.port) as connection:
                connection.request("DELETE", f"/tasks/{task['id']}")
            self.settle()

    def metric(self, name: str) -> float:
        """A value of ``/metrics`` that has no labels."""
        with Connection(self.port) as connection:
            text = connection.request("GET", "/metrics").decode()
        return next(
            float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")
        )

    def settle(self) -> None:
        """Wait, up to 15 s, until the server has done with what the last measurement left it."""
        deadline = time.monotonic() + SETTLE_SECONDS
        step = 0.05
        before = machine.cpu_ns(self.pid)
        while time.monotonic() < deadline:
            time.sleep(step)
            now = machine.cpu_ns(self.pid)
            if before is None or now is None or now - before < 0.05 * step * 1e9:
                return
            before = now


@contextmanager
def bare() -> Iterator[Server]:
    """The yardstick: see ``benchmarks.bare``."""
    with _running("benchmarks.bare", "{port}") as server:
        yield server


@contextmanager
def ours(storage: str = "memory", *options: str) -> Iterator[Server]:
    """The server as it is started without any configuration; its log goes to the null device.

    A database is a new file in the folder for temporary ones.
    """
    with tempfile.TemporaryDirectory() as directory:
        empty, database = Path(directory, "empty.json"), Path(directory, "new.db")
        empty.write_text("{}")
        command = ["taskcast_trio", "start", "-p", "{port}", "-c", str(empty), "-s", storage]
        with _running(*command, "--db-path", str(database), *options) as server:
            yield server


@contextmanager
def _running(*command: str) -> Iterator[Server]:
    port = _free_port()
    arguments = [word.format(port=port) for word in command]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TASKCAST_")}
    with machine.on_core(machine.SERVER):
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        _wait_until_up(process, port)
        yield Server(port, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with exit code {process.returncode}")
        try:
            with Connection(port) as connection:
                connection.request("GET", "/health")
                return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} was not up within {START_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
