"""A worker that writes, word by word, and stops in the middle of one when it is told to.

    python examples/worker_websocket.py [--url URL] [--pace WORDS_PER_SECOND]

It hears of tasks of the types `write.*` over a WebSocket. Ctrl-C drains it: what it has begun it
finishes, for up to half a minute, and a second Ctrl-C ends it at once.
"""

from __future__ import annotations

import argparse
import os
from datetime import datetime
from typing import Any

import trio

from taskcast_trio.worker import Run, Worker

DEFAULT_URL = "http://127.0.0.1:3721"
TEXT = "The sea is wide and the log is long and every word of it is kept in order"


def say(what: str) -> None:
    print(f"{datetime.now():%H:%M:%S.%f}"[:-3], what, flush=True)


def make(url: str, pace: float) -> Worker:
    worker = Worker(url, capacity=5)

    @worker.task("write.*")
    async def write(run: Run) -> dict[str, Any]:
        say(f"{run.task.id} begins")
        words = 0
        try:
            for word in TEXT.split() * run.params.get("times", 1):
                await run.emit("text", {"delta": f"{word} "}, series="text", mode="accumulate")
                words += 1
                await trio.sleep(1 / pace)
        finally:
            # Runs whatever happens, at once: done, cancelled, too late, or drained.
            say(f"{run.task.id} is over after {words} words: {run.cancelled or 'done'}")
        return {"words": words}

    return worker


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default=os.environ.get("TASKCAST_URL", DEFAULT_URL))
    parser.add_argument("--pace", type=float, default=10)
    options = parser.parse_args()
    trio.run(make(options.url, options.pace).run)
