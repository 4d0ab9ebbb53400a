"""The examples: two workers, and a client that answers one task and cancels the other."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from ..waiting import until

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def example(name: str, server: Any) -> AsyncIterator[trio.Process]:
    """An example that runs, and is drained in the end."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(ROOT / "examples" / name), "--url", server.url],
        stdout=subprocess.PIPE,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        with trio.fail_after(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


async def lines(process: trio.Process) -> AsyncIterator[tuple[float, str]]:
    """What it says, and when."""
    assert process.stdout is not None
    text = b""
    while part := await process.stdout.receive_some():
        *whole, text = (text + part).split(b"\n")
        for line in whole:
            yield trio.current_time(), line.decode()


async def test_a_cancelled_handler_runs_its_finally_within_a_second(server: Any) -> None:
    cancelled: list[float] = []
    stopped: list[float] = []
    over = trio.Event()

    async def listen(process: trio.Process, word: str, times: list[float]) -> None:
        async for at, line in lines(process):
            if word in line:
                times.append(at)
                if times is stopped:
                    over.set()

    async with example("worker_websocket.py", server) as writer, example("worker_pull.py", server):
        await until(lambda: len(server.runtime.workers.registry.all()) == 2)
        client = await trio.lowlevel.open_process(
            [sys.executable, str(ROOT / "examples" / "worker_client.py"), "--url", server.url],
            stdout=subprocess.PIPE,
        )
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, writer, "words: cancelled", stopped)
                await listen(client, "is cancelled after", cancelled)
                await over.wait()
                nursery.cancel_scope.cancel()
            assert await client.wait() == 0
    assert stopped[0] - cancelled[0] < 1
