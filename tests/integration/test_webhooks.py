"""Deliveries on real stores, and across restarts: nothing starts anew."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Postgres, Redis, Sqlite
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.engine.webhooks.state import RETRY, WEBHOOK, Kept
from taskcast_trio.storage.records import PARKED_MS
from tests.receiver import Received, Receiver, Wire, answering, hanging, receiving, saying

from ..engine.support import move, raw
from ..engine.webhook_support import create, look, publish
from ..storage.redis.server import new_prefix, redis_url

PATIENCE_S = 60.0
TIMEOUT_S = 3.0
RETRY_OFTEN = {"retries": 3, "backoff": "fixed", "initialDelayMs": 30, "timeoutMs": 30_000}
"""Nothing here may time out because the machine is slow."""


class Clock:
    """The wall clock, and as much later as a test says."""

    def __init__(self) -> None:
        self.later_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.later_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def on_redis() -> Config:
    return Config(
        storage="redis",
        redis=Redis(url=SecretUrl(redis_url()), prefix=new_prefix(), timeout_seconds=30),
    )


@pytest.fixture(params=["sqlite", "redis", "redis+postgres"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    if request.param == "sqlite":
        path = str(tmp_path / "t.db")
        return Config(storage="sqlite", db_path=path, sqlite=Sqlite(synchronous="normal"))
    config = on_redis()
    if "postgres" in request.param:
        url = SecretUrl(request.getfixturevalue("postgres_url"))
        config = replace(config, postgres=Postgres(url=url))
    return config


@asynccontextmanager
async def opened(config: Config, clock: Clock) -> AsyncIterator[Runtime]:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(config, clock=clock, jitter=lambda: 0.0) as runtime:
            yield runtime


def hook(receiver: Receiver, host: str = "127.0.0.1", **retry: Any) -> Any:
    return raw({"url": receiver.url(host=host), "retry": {**RETRY_OFTEN, **retry}})


def sent(receiver: Receiver) -> list[int]:
    return [msgspec.json.decode(request.body)["index"] for request in receiver.requests]


class Gate:
    """A script that holds one request, and answers all the others."""

    def __init__(self, number: int = 0) -> None:
        self.reached = trio.Event()
        self.go_on = trio.Event()
        self._left = number

    async def __call__(self, _: Received, wire: Wire) -> None:
        if self._left == 0:
            self.reached.set()
            await self.go_on.wait()
        self._left -= 1
        await wire.answer(204)


async def arrived(receiver: Receiver, count: int) -> None:
    while len(receiver.requests) < count:
        await trio.lowlevel.checkpoint()


async def idle(*runtimes: Runtime) -> None:
    """Wait until nothing is owed, and no task is at work.

    Timers alone do not tell: between two of them a retry may just be handed on.
    """
    first = runtimes[0]
    for task in await first.engine.list_tasks():
        while await first.webhooks.owes(await first.engine.record(task.id)):
            await trio.lowlevel.checkpoint()
    while await first.backend.store.next_due(WEBHOOK) not in (None, PARKED_MS) or any(
        runtime.webhooks.workers for runtime in runtimes
    ):
        await trio.lowlevel.checkpoint()


async def looked(runtime: Runtime) -> None:
    """Wait until it has looked for what is due, and done that."""
    store, left = runtime.backend.store, {WEBHOOK, RETRY}
    next_due = store.next_due

    async def noted(kind: str) -> int | None:
        found = await next_due(kind)
        left.discard(kind)
        return found

    store.next_due = noted  # type: ignore[method-assign]
    runtime.webhooks.notify(0)
    runtime.webhooks._retries.notify(0)
    while left or runtime.webhooks.workers:
        await trio.lowlevel.checkpoint()
    store.next_due = next_due  # type: ignore[method-assign]


async def kept(runtime: Runtime, met: Callable[[Kept], bool]) -> Kept:
    while not met(found := await look(runtime)):
        await trio.lowlevel.checkpoint()
    return found


async def test_order_and_counts_are_exact_whatever_the_receiver_does(
    config: Config, clock: Clock, mock_clock: MockClock
) -> None:
    mock_clock.rate = 1.0

    async def hangs(request: Received, wire: Wire) -> bool:
        mock_clock.jump(TIMEOUT_S)
        return await hanging(request, wire)

    scripts = (
        answering(500),
        hangs,
        saying(b"HTTP/1.1 2"),
        answering(204),  # event 0
        *[answering(302, Location="http://127.0.0.1:1/")] * 4,  # event 1: a dead letter
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),  # event 2
        answering(429, Retry_After="0"),
        answering(204),  # event 3
        answering(410),  # event 4
        answering(204),
    )
    async with (
        receiving(*scripts, patience_s=PATIENCE_S) as receiver,
        opened(config, clock) as runtime,
    ):
        await create(runtime, hook(receiver, timeoutMs=TIMEOUT_S * 1000))
        await publish(runtime, *"abcdef")
        await idle(runtime)
        assert sent(receiver) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 4]
        found = await look(runtime)
        assert found.state.disabled is not None
        assert [(one.index, one.tries, one.error) for one in found.dead.values()] == [
            (1, 4, "redirect")
        ]
        await runtime.webhooks.redeliver("t", 0)
        await idle(runtime)
        assert sent(receiver)[12:] == [1, 4, 5]
        await move(runtime.engine, "running", "completed")
        await idle(runtime)
        assert sent(receiver)[15:] == [6, 7]
        assert await runtime.backend.store.next_due(WEBHOOK) is None
        found = await look(runtime)
        assert (found.state.cursor, found.state.delivered, found.dead) == (7, 8, {})


async def test_a_restart_goes_on_in_the_middle(config: Config, clock: Clock) -> None:
    gate = Gate(100)
    async with receiving(gate, patience_s=PATIENCE_S) as receiver:
        async with opened(config, clock) as runtime:
            await create(runtime, hook(receiver))
            await publish(runtime, *["a"] * 500)
            await gate.reached.wait()
            runtime.webhooks.close()
            gate.go_on.set()
        assert len(receiver.requests) == 101
        async with opened(config, clock) as runtime:
            await idle(runtime)
        assert sent(receiver) == list(range(500))


async def test_tries_and_their_times_outlive_a_restart(config: Config, clock: Clock) -> None:
    scripts = answering(500), answering(429, Retry_After="3000"), answering(204)
    async with receiving(*scripts, patience_s=PATIENCE_S) as receiver:
        async with opened(config, clock) as runtime:
            await create(runtime, hook(receiver))
            await publish(runtime, "a")
            first = await kept(runtime, lambda found: found.state.tries == 2)
        clock.later_ms += 2_900_000
        async with opened(config, clock) as runtime:
            await looked(runtime)
            assert (await look(runtime)).state == first.state
            assert len(receiver.requests) == 2
        clock.later_ms += 100_000
        async with opened(config, clock) as runtime:
            found = await kept(runtime, lambda found: found.state.delivered == 1)
            assert found.state.recent[-1].number == 3
        assert sent(receiver) == [0, 0, 0]


async def test_many_tasks_are_delivered_side_by_side(config: Config, clock: Clock) -> None:
    async with (
        receiving(patience_s=PATIENCE_S) as receiver,
        opened(config, clock) as runtime,
    ):
        for number in range(60):
            await create(runtime, hook(receiver), id_=f"t{number}")
        async with trio.open_nursery() as nursery:
            for number in range(60):
                for _ in range(5):
                    nursery.start_soon(lambda id_: publish(runtime, "a", id_=id_), f"t{number}")
        await idle(runtime)
        by_task: dict[str, list[int]] = {}
        for request in receiver.requests:
            event = msgspec.json.decode(request.body)
            by_task.setdefault(event["taskId"], []).append(event["index"])
        assert by_task == {f"t{number}": list(range(5)) for number in range(60)}
        assert receiver.most_open <= 8
