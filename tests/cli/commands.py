"""Real `taskcast-trio` processes: in a pipe, or at a terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

COMMAND: Final = [sys.executable, "-m", "taskcast_trio"]
ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 60.0
COLUMNS: Final = 60


def environment(home: Path, **more: str) -> dict[str, str]:
    """One without settings of ours, with a home of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TASKCAST_", "XDG_"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        kept.pop(name, None)
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
        "TERM": "xterm",
        "TZ": "UTC",
        **more,
    }


async def command(
    *arguments: str, env: dict[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end, in pipes."""
    with trio.fail_after(PATIENCE_S):
        return await trio.run_process(
            [*COMMAND, *arguments],
            stdin=stdin,
            env=env,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


class Piped:
    """A running command whose stdin, stdout and stderr are pipes."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr
        self.said = b""
        self.told = b""

    async def out(self, mark: bytes) -> bytes:
        """What came on stdout, as soon as `mark` did."""
        while mark not in self.said:
            part = await self.stdout.receive_some()
            assert part, (self.said, self.told)
            self.said += part
        return self.said

    async def err(self, mark: bytes) -> bytes:
        """As :meth:`out`, of stderr."""
        while mark not in self.told:
            part = await self.stderr.receive_some()
            assert part, (self.said, self.told)
            self.told += part
        return self.told

    async def end(self) -> int:
        """Read all there is to the end of the process; its exit status."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain)
            async for part in self.stdout:
                self.said += part
        return await self.process.wait()

    async def _drain(self) -> None:
        async for part in self.stderr:
            self.told += part


@asynccontextmanager
async def piped(*arguments: str, env: dict[str, str]) -> AsyncIterator[Piped]:
    """A command that runs; what is left of it is killed."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    running = Piped(process)
    try:
        with trio.fail_after(PATIENCE_S):
            await trio.lowlevel.checkpoint()
            yield running
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            process.send_signal(signal.SIGKILL)
            await process.wait()
            for stream in (running.stdin, running.stdout, running.stderr):
                await stream.aclose()


class Terminal:
    """A command at a terminal of a known width."""

    def __init__(self, process: trio.Process, number: int) -> None:
        self.process = process
        self._number = number
        self._bytes = b""

    @property
    def raw(self) -> str:
        return self._bytes.decode(errors="replace").replace("\r\n", "\n")

    @property
    def text(self) -> str:
        """What is on it, without its colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw)

    async def until(self, mark: str) -> str:
        while mark not in self.text:
            assert await self._read(), self.text
        return self.text

    async def end(self) -> int:
        while await self._read():
            pass
        return await self.process.wait()

    async def _read(self) -> bool:
        await trio.lowlevel.wait_readable(self._number)
        try:
            part = os.read(self._number, 65_536)
        except OSError as error:
            if error.errno != errno.EIO:  # nobody has it open any more
                raise
            return False
        self._bytes += part
        return bool(part)

    def type(self, text: str) -> None:
        os.write(self._number, text.encode())

    async def feed(self, data: bytes) -> None:
        """Write to its stdin, where that is a pipe."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(data)

    async def feed_no_more(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


@asynccontextmanager
async def terminal(
    *arguments: str, env: dict[str, str], columns: int = COLUMNS, fed: bool = False
) -> AsyncIterator[Terminal]:
    """A command whose stdin (unless it is ``fed``), stdout and stderr are a terminal; what is left
    of it is killed.
    """
    mine, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        try:
            process = await trio.lowlevel.open_process(
                [*COMMAND, *arguments],
                stdin=subprocess.PIPE if fed else its,
                stdout=its,
                stderr=its,
                env=env,
            )
        finally:
            os.close(its)
        try:
            with trio.fail_after(PATIENCE_S):
                await trio.lowlevel.checkpoint()
                yield Terminal(process, mine)
        finally:
            process.send_signal(signal.SIGKILL)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await process.wait()
                if process.stdin is not None:
                    await process.stdin.aclose()
    finally:
        os.close(mine)
