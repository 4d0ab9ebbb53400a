"""A worker as a process of its own, written with nothing but HTTP: pulls, and holds what it gets.

    python -m tests.integration.worker_process URL ID HOLD_S

Prints the id of each task it gets; works on each for HOLD_S seconds, and completes it.
"""

from __future__ import annotations

import sys

import httpx
import trio


async def main(url: str, worker: str, hold_s: float) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client, trio.open_nursery() as tasks:
        body = {"workerId": worker, "capacity": 5}
        (await client.post("/workers/register", json=body)).raise_for_status()
        tasks.start_soon(beat, client, worker)
        while True:
            parameters: dict[str, str | int] = {"workerId": worker, "timeout": 1000}
            answer = await client.get("/workers/pull", params=parameters)
            if answer.status_code == 200:
                fence = {"Taskcast-Fence": answer.headers["Taskcast-Fence"]}
                tasks.start_soon(work, client, answer.json()["id"], fence, hold_s)


async def beat(client: httpx.AsyncClient, worker: str) -> None:
    while True:
        await trio.sleep(0.3)
        await client.post(f"/workers/{worker}/heartbeat", json={})


async def work(client: httpx.AsyncClient, task: str, fence: dict[str, str], hold_s: float) -> None:
    path = f"/tasks/{task}/status"
    (await client.patch(path, json={"status": "running"}, headers=fence)).raise_for_status()
    print(task, flush=True)
    await trio.sleep(hold_s)
    await client.patch(path, json={"status": "completed"}, headers=fence)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], float(sys.argv[3]))
