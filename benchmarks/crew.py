"""The workers: many of the library's in one process, which tells when their handlers start.

    python -m benchmarks.crew PORT MODE WORKERS

On standard output it tells, each in ns of the system-wide monotonic clock: a line ``OPENED LIVE``
(when the first worker set out, and when the last one was known to the server), then a line for each
handler that starts. It ends when standard input does.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Literal

import trio

from taskcast_trio.worker import Run, Worker


async def work(port: int, mode: Literal["websocket", "pull"], count: int) -> None:
    """Run so many workers until standard input ends."""
    workers = [
        Worker(f"http://127.0.0.1:{port}", mode=mode, capacity=5, handle_signals=False)
        for _ in range(count)
    ]
    started = time.monotonic_ns()
    async with trio.open_nursery() as nursery:
        for worker in workers:
            worker.task()(_handle)
            await nursery.start(worker.run)
        tell(f"{started} {time.monotonic_ns()}")
        await trio.lowlevel.wait_readable(sys.stdin)
        for worker in workers:
            worker.stop()


async def _handle(run: Run) -> None:
    tell(f"{time.monotonic_ns()}")


def tell(line: str) -> None:
    """Write a line past any buffer."""
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


if __name__ == "__main__":
    mode: Literal["websocket", "pull"] = "pull" if sys.argv[2] == "pull" else "websocket"
    trio.run(work, int(sys.argv[1]), mode, int(sys.argv[3]))
