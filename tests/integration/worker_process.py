"""A worker as a process of its own, written with nothing but HTTP: pulls, and holds what it gets.

    python -m tests.integration.worker_process URL ID

Prints the id of each task it gets, and completes it when its standard input has ended. It outlives
a server that is away.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import httpx
import trio


class Worker:
    def __init__(self, client: httpx.AsyncClient, name: str) -> None:
        self.client = client
        self.name = name
        self.may_finish = trio.Event()
        self.fences: dict[str, str] = {}

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        while True:
            try:
                answer = await self.client.request(method, path, **options)
                if answer.status_code != 503:
                    return answer
            except httpx.TransportError:
                pass
            await trio.sleep(0.1)

    async def run(self) -> None:
        body = {"workerId": self.name, "capacity": 5}
        (await self.ask("POST", "/workers/register", json=body)).raise_for_status()
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self.beat)
            tasks.start_soon(self.listen)
            while True:
                parameters: dict[str, str | int] = {"workerId": self.name, "timeout": 1000}
                answer = await self.ask("GET", "/workers/pull", params=parameters)
                if answer.status_code == 200:
                    task = answer.json()["id"]
                    self.fences[task] = answer.headers["Taskcast-Fence"]
                    tasks.start_soon(self.work, task)

    async def listen(self) -> None:
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as orders:
            while await orders.receive_some():
                pass
        self.may_finish.set()

    async def beat(self) -> None:
        while True:
            await trio.sleep(0.3)
            held = [{"taskId": task, "fence": int(fence)} for task, fence in self.fences.items()]
            path = f"/workers/{self.name}/heartbeat"
            await self.ask("POST", path, json={"tasks": held})

    async def work(self, task: str) -> None:
        path, fence = f"/tasks/{task}/status", {"Taskcast-Fence": self.fences[task]}
        running = await self.ask("PATCH", path, json={"status": "running"}, headers=fence)
        running.raise_for_status()
        print(task, flush=True)
        await self.may_finish.wait()
        await self.ask("PATCH", path, json={"status": "completed"}, headers=fence)
        del self.fences[task]


async def main(url: str, worker: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await Worker(client, worker).run()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
