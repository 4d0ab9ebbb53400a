"""Processes that share a Redis, each as a backend with an engine of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from msgspec import Raw

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.core.model import CreateTask, Draft, Transition
from taskcast_trio.engine import Done
from taskcast_trio.engine.engine import TaskEngine, wall_clock_ms
from taskcast_trio.engine.fanout import Fanout
from taskcast_trio.engine.metrics import Metrics
from taskcast_trio.storage.redis import RedisBackend, open_redis

PATIENCE_S = 30.0


def number(count: int) -> Draft:
    return Draft(type="x", level="info", data=Raw(b"%d" % count))


class Process:
    """What one server process has of a store."""

    def __init__(self, backend: RedisBackend) -> None:
        metrics = Metrics()
        self.backend = backend
        self.store = backend.store
        self.fanout = Fanout(metrics, audience=backend.broadcast)
        self.ahead_ms = 0
        """How far its clock is ahead."""
        self.engine = TaskEngine(backend.store, self.fanout, metrics, clock=self.clock)

    def clock(self) -> int:
        return wall_clock_ms() + self.ahead_ms

    async def create(self, id_: str = "t") -> None:
        await self.engine.create(CreateTask(id=id_))
        await self.engine.transition(id_, Transition(status="running"))

    async def complete(self, id_: str = "t") -> None:
        await self.engine.transition(id_, Transition(status="completed"))


@asynccontextmanager
async def process(url: str, prefix: str, **options: Any) -> AsyncIterator[Process]:
    async with open_redis(url, prefix=prefix, **options) as backend:
        one = Process(backend)
        async with trio.open_nursery() as nursery:
            await nursery.start(one.fanout.run)
            await nursery.start(backend.broadcast.run, one.fanout)
            yield one
            nursery.cancel_scope.cancel()


class Results:
    """What followers that run beside a test get, and why each ended."""

    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.ended: list[str] = []

    async def follow(
        self,
        one: Process,
        id_: str = "t",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Follow a task, as a client that comes back after an outage."""
        got: list[int] = []
        self.got.append(got)
        async with one.engine.subscribe(id_) as subscription:
            task_status.started()
            while True:
                try:
                    items: Sequence[Any] = await subscription.receive()
                except StoreUnavailable:
                    await trio.sleep(0.05)
                    continue
                for item in items:
                    if isinstance(item, Done):
                        self.ended.append(item.reason)
                        return
                    if hasattr(item, "entry"):
                        got.append(item.entry.index)

    async def seen(self, count: int) -> None:
        """Wait until every follower has this many."""
        with trio.fail_after(PATIENCE_S):
            while any(len(got) < count for got in self.got):  # noqa: ASYNC110
                await trio.sleep(0.01)

    def assert_all_saw(self, count: int, followers: int, *, reason: str = "completed") -> None:
        assert self.ended == [reason] * followers
        for indexes in self.got:
            assert indexes == list(range(count)), "each event once, in the order of the log"
