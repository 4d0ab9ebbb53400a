"""From configuration to exit status: each way a server can end, and what it says."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio

from taskcast_trio.cli import run as run_module
from taskcast_trio.cli.run import arm_watchdog, banner, run
from taskcast_trio.config import Auth, Config, Loaded
from taskcast_trio.config.schema import Limits, Redis, Server
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.server.options import serve_options

ROOT = Path(run_module.__file__).parents[2]


def loaded(**values: Any) -> Loaded:
    return Loaded(Config(**values), {}, (), None)


@asynccontextmanager
async def server_process(*args: str) -> AsyncIterator[trio.Process]:
    """A real server process; killed at the end if it is still there."""
    env = {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "taskcast_trio", *args]
    process = await trio.lowlevel.open_process(command, stdout=PIPE, stderr=PIPE, env=env)
    try:
        async with process.stdout, process.stderr:  # type: ignore[union-attr]
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def read_until(stream: Any, mark: bytes) -> str:
    """Read up to the line that starts with `mark`, or to the end."""
    read = b""
    while mark not in read and (more := await stream.receive_some()):
        read += more
    return read.decode()


async def read_all(stream: Any) -> str:
    return b"".join([chunk async for chunk in stream]).decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_listens_serves_and_ends_with_0_on_a_signal(
    clean: Path, number: signal.Signals
) -> None:
    with trio.fail_after(30):
        async with server_process("-p", "0") as process:
            text = await read_until(process.stdout, b"/docs\n")
            url = next(line.split()[1] for line in text.splitlines() if "listening" in line)
            assert "this machine only" in text
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{url}/health")).json()["ok"] is True
                assert (await client.get(f"{url}/docs")).status_code == 200
                process.send_signal(number)
                lines = (await read_all(process.stderr)).splitlines()
            assert await process.wait() == 0
    events = [json.loads(line)["event"] for line in lines]  # every line is JSON off a terminal
    assert events[-1] == "stopped"
    assert "draining" in events  # before or after the line of the last request


async def test_as_json_it_says_so_in_one_line_and_logs_so_too(clean: Path) -> None:
    options = ["--json", "-p", "0", "--admin-api", "--log-level", "debug"]
    with trio.fail_after(30):
        async with server_process("start", *options) as process:
            said = json.loads(await read_until(process.stdout, b"\n"))
            (url,) = said["listening"]
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{url}/health")).json()["ok"] is True
            process.send_signal(signal.SIGTERM)
            lines = (await read_all(process.stderr)).splitlines()
            assert await process.wait() == 0
    assert (said["url"], said["docs"]) == (url, f"{url}/docs")
    assert (said["storage"], said["auth"]) == ("memory", "none")
    assert (said["processes"], said["archive"], said["config"]) == (1, None, None)
    assert len(said["adminToken"]) > 20
    assert said["adminToken"] not in "".join(lines)
    assert "request" in {json.loads(line)["event"] for line in lines}


async def test_text_logs_are_for_people_off_a_terminal_too(clean: Path) -> None:
    with trio.fail_after(30):
        async with server_process("-p", "0", "--log-format", "text") as process:
            await read_until(process.stdout, b"/docs\n")
            process.send_signal(signal.SIGTERM)
            lines = (await read_all(process.stderr)).splitlines()
    assert any("stopped" in line for line in lines)
    assert not any(line.startswith("{") or "\x1b" in line for line in lines)


async def test_a_port_in_use_is_one_line_and_exit_1(clean: Path) -> None:
    with trio.fail_after(30), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with server_process("-p", str(port)) as process:
            said = await read_all(process.stderr)
            assert await process.wait() == 1
    assert said == f"Error: port {port} on 127.0.0.1 is in use; choose another with --port\n"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"host": "no.such.host.invalid"}, "cannot listen on no.such.host.invalid, port 3721"),
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1, port 3721"),
    ],
)
def test_an_address_that_is_not_ours_is_one_line_and_exit_1(
    values: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str], logging_restored: None
) -> None:
    assert run(loaded(log_level="error", **values)) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"Error: {line}")


def test_a_crash_while_running_is_exit_1_and_a_log_line_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logging_restored: None
) -> None:
    async def crash(
        *_: object, drain: trio.Event, task_status: trio.TaskStatus[list[str]], **_options: object
    ) -> None:
        task_status.started(["http://127.0.0.1:1"])
        raise OSError("the disk has gone")

    monkeypatch.setattr(run_module, "serve", crash)
    assert run(loaded()) == 1
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["event"] == "crashed"
    assert "the disk has gone" in line["exception"]


def test_a_second_signal_ends_a_hanging_drain_at_once_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logging_restored: None
) -> None:
    async def hang(
        *_: object, drain: trio.Event, task_status: trio.TaskStatus[list[str]], **_options: object
    ) -> None:
        task_status.started(["http://127.0.0.1:1"])
        os.kill(os.getpid(), signal.SIGTERM)
        await drain.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    armed: list[float] = []
    monkeypatch.setattr(run_module, "serve", hang)
    disarmed = threading.Event()

    def arm(seconds: float) -> Any:
        armed.append(seconds)
        return SimpleNamespace(cancel=disarmed.set)

    monkeypatch.setattr(run_module, "arm_watchdog", arm)
    assert run(loaded()) == 1
    assert armed == [20.0]  # the grace period and ten seconds
    assert disarmed.is_set(), "or it would end the program that called run()"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "second signal: ending at once" in [line["event"] for line in lines]


def test_the_watchdog_ends_a_process_that_hangs_with_70(capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    timer = arm_watchdog(0, ended.append)
    timer.join(10)
    assert ended == [70]
    assert timer.daemon
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_warnings_of_the_configuration_are_log_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logging_restored: None
) -> None:
    async def serve_nothing(
        *_: object, drain: trio.Event, task_status: Any, **_options: object
    ) -> None:
        task_status.started(["http://0.0.0.0:1"])
        drain.set()

    monkeypatch.setattr(run_module, "serve", serve_nothing)
    config = Config(host="0.0.0.0")
    assert run(Loaded(config, {}, ("sentry has no effect",), None)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["detail"] == "sentry has no effect"
    assert lines[1]["event"].startswith("no authentication")


@pytest.mark.parametrize(
    ("values", "urls", "holds"),
    [
        ({}, ["http://127.0.0.1:3721"], ["this machine only", "auth       none"]),
        (
            {"auth": Auth(mode="jwt")},
            ["http://0.0.0.0:3721"],
            ["on all interfaces", "docs       http://127.0.0.1:3721/docs", "auth       jwt"],
        ),
        ({"host": "::"}, ["http://[::]:80"], ["docs       http://[::1]:80/docs"]),
    ],
)
def test_the_banner_says_what_is_used(
    values: dict[str, Any], urls: list[str], holds: list[str]
) -> None:
    text = banner(loaded(redis=Redis(url=SecretUrl("redis://:hush@h")), **values), urls)
    for part in [*holds, *urls, "storage    memory", "config     no file"]:
        assert part in text
    assert "hush" not in text


@pytest.mark.parametrize(("body_timeout_s", "pause_s"), [(10.0, 30.0), (300.0, 300.0)])
def test_the_limits_of_heads_and_bodies_reach_the_connections(
    body_timeout_s: float, pause_s: float
) -> None:
    """A connection is never less patient with a body than the application."""
    options = serve_options(
        Config(limits=Limits(header_bytes=2048), server=Server(body_timeout_seconds=body_timeout_s))
    )
    assert (options.header_bytes, options.body_pause_s) == (2048, pause_s)
