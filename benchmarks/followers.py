"""The handle on the processes that read event streams, or work."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .servers import ROOT, Server

PATIENCE_SECONDS = 120


class Followers:
    """Some streams of one task, read by ``benchmarks.readers``.

    Times are ns of ``time.monotonic_ns``, which is one clock for all processes. Every wait is
    bounded by 120 s and ends in RuntimeError, as it does when the readers fail.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._buffer = b""

    def live(self) -> tuple[int, int]:
        """Wait until every stream has begun; return the times of the first connect and of that."""
        opened, live = self._line().split()
        return int(opened), int(live)

    def mark(self) -> int:
        """Wait until another step of events has arrived; return when it had."""
        return int(self._line())

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise RuntimeError(f"what was published did not arrive in {PATIENCE_SECONDS} s")
            data = os.read(descriptor, 4096)
            if not data:
                raise RuntimeError("the readers failed: see standard error")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


@contextmanager
def following(server: Server, path: str, streams: int, step: int) -> Iterator[Followers]:
    """Follow ``path`` over ``streams`` connections, all closed after the body.

    ``step`` is the number of events, over all of them, from one ``mark()`` to the next.
    """
    with _telling("benchmarks.readers", str(server.port), path, str(streams), str(step)) as readers:
        yield readers


@contextmanager
def working(server: Server, mode: str, workers: int) -> Iterator[Followers]:
    """So many workers; each ``mark()`` is a handler that starts. See ``benchmarks.crew``."""
    with _telling("benchmarks.crew", str(server.port), mode, str(workers)) as crew:
        yield crew


@contextmanager
def _telling(module: str, *arguments: str) -> Iterator[Followers]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Followers(process)
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
