"""Hand tasks to the two workers beside this file, watch them, answer one and cancel the other.

    python examples/worker_client.py [--url URL]

The exit code is 0 when both ended as they should: the report completed, the text cancelled.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime
from typing import Any

import httpx
import trio

from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.core.model import AssignMode

DEFAULT_URL = "http://127.0.0.1:3721"
CANCEL_AFTER = 5


def say(what: str) -> None:
    print(f"{datetime.now():%H:%M:%S.%f}"[:-3], what, flush=True)


async def watch(
    client: AsyncTaskcastClient, http: httpx.AsyncClient, type_: str, mode: AssignMode
) -> str:
    """Create a task and follow it to its end: its last status."""
    task = await client.create(type=type_, assign_mode=mode, params={"times": 100})
    say(f"{task.id} is created: {type_}")
    words = 0
    async with client.subscribe(task.id) as events:
        async for event in events:
            data: Any = json.loads(bytes(event.data)) if event.data else None
            if event.type == "text":
                words += 1
                if words == CANCEL_AFTER:
                    await client.transition(task.id, "cancelled")
                    say(f"{task.id} is cancelled after {words} words")
            elif event.type == "taskcast:blocked":
                say(f"{task.id} asks: {data['request']['data']['question']}")
                answer = {"data": {"approved": True}}
                (await http.post(f"/tasks/{task.id}/resolve", json=answer)).raise_for_status()
            elif event.type == "taskcast:status":
                say(f"{task.id} is {data['status']} {data.get('result', '')}")
    return events.done or ""


async def main(url: str) -> int:
    ends: dict[str, str] = {}
    async with AsyncTaskcastClient(url) as client, httpx.AsyncClient(base_url=url) as http:

        async def follow(type_: str, mode: AssignMode) -> None:
            ends[type_] = await watch(client, http, type_, mode)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, "write.poem", "ws-offer")
            nursery.start_soon(follow, "report.sales", "pull")
    return 0 if ends == {"write.poem": "cancelled", "report.sales": "completed"} else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default=os.environ.get("TASKCAST_URL", DEFAULT_URL))
    sys.exit(trio.run(main, parser.parse_args().url))
