"""A worker that needs nothing but HTTP, and asks somebody before it goes on.

    python examples/worker_pull.py [--url URL]

It pulls tasks of the types `report.*`, and pays nothing without an approval.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import trio

from taskcast_trio.worker import Run, Worker

DEFAULT_URL = "http://127.0.0.1:3721"
APPROVAL = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}},
    "required": ["approved"],
}


def make(url: str) -> Worker:
    # Where nothing is emitted, a cancellation is heard of with a heartbeat.
    worker = Worker(url, mode="pull", capacity=2, heartbeat_s=0.5)

    @worker.task("report.*")
    async def report(run: Run) -> dict[str, Any]:
        await run.emit("progress", {"percent": 50}, series="progress", mode="latest")
        answer = await run.block({"question": "Pay 12 EUR for the data?"}, schema=APPROVAL)
        await run.emit("progress", {"percent": 100}, series="progress", mode="latest")
        return {"rows": 1200 if answer["approved"] else 0}

    return worker


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default=os.environ.get("TASKCAST_URL", DEFAULT_URL))
    trio.run(make(parser.parse_args().url).run)
