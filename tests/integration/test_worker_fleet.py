"""Workers of the SDK on a service of two processes on one Redis, which are killed under them."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import pytest
import trio

from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.worker import Run

from ..cli.test_processes import Service, serving
from ..waiting import until
from ..worker.support import MODES, worker_of, working

PATIENCE_S = 90
TASKS = 4
ROUNDS = 4
STEPS = 5


class Rounds:
    """Handlers emit in rounds: one begins when it is opened, and is over when all have emitted."""

    def __init__(self) -> None:
        self._opened = [trio.Event() for _ in range(ROUNDS)]
        self._over = [trio.Event() for _ in range(ROUNDS)]
        self._emitted = [0] * ROUNDS

    def open(self, number: int) -> None:
        self._opened[number].set()

    async def over(self, number: int) -> None:
        await self._over[number].wait()

    async def emit(self, run: Run) -> None:
        for number in range(ROUNDS):
            await self._opened[number].wait()
            for n in range(STEPS):
                await run.emit("step", {"n": number * STEPS + n})
            await run.flush()
            self._emitted[number] += 1
            if self._emitted[number] == TASKS:
                self._over[number].set()


async def kill_one(service: Service) -> None:
    """Kill a server process, and wait until the service has two again."""
    before = service.children
    os.kill(min(before), signal.SIGKILL)
    await until(lambda: len(service.children - {min(before)}) == 2, PATIENCE_S)


async def log_of(client: AsyncTaskcastClient, task: str) -> list[Any]:
    events = await client.history(task)
    assert [event.index for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize("mode", ["websocket", "pull"])
async def test_server_processes_that_are_killed_under_a_worker_cost_no_task_and_no_event(
    mode: str,
) -> None:
    rounds = Rounds()
    with trio.fail_after(PATIENCE_S):
        async with serving("--workers-api") as service, AsyncTaskcastClient(service.url) as client:
            worker = worker_of(service.url, mode, capacity=TASKS, lease_s=30.0)

            @worker.task()
            async def handler(run: Run) -> None:
                await rounds.emit(run)

            async with working(worker):
                tasks = [
                    (await client.create(assign_mode=MODES[mode])).id  # type: ignore[arg-type]
                    for _ in range(TASKS)
                ]
                rounds.open(0)
                await rounds.over(0)
                for number in range(1, ROUNDS):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(kill_one, service)
                        rounds.open(number)
                        await rounds.over(number)
                for task in tasks:
                    async with client.subscribe(task) as stream:
                        async for _ in stream:
                            pass
            for task in tasks:
                assert (await client.get(task)).status == "completed"
                log = await log_of(client, task)
                steps = [msgspec.json.decode(each.data) for each in log if each.type == "step"]
                assert [step["n"] for step in steps] == list(range(ROUNDS * STEPS))
                audit = [
                    msgspec.json.decode(each.data)["action"]
                    for each in log
                    if each.type == "taskcast:audit"
                ]
                assert audit == ["assigned"]
