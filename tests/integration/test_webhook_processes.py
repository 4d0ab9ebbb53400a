"""Several processes on one Redis, or a cluster, deliver as one: at once wherever an event was
published and whoever has the lease, in order, and one goes on where another has died.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Postgres
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.engine import Runtime
from taskcast_trio.engine.webhooks import service
from taskcast_trio.engine.webhooks.state import WEBHOOK
from taskcast_trio.engine.webhooks.worker import LEASE_MS
from taskcast_trio.storage.records import PARKED_MS
from tests.receiver import receiving

from ..engine.webhook_support import create, publish
from ..storage.redis.cluster import cluster, url_of
from ..storage.redis.server import LocalServer
from .test_webhook_kills import check
from .test_webhooks import (
    PATIENCE_S,
    Clock,
    Gate,
    arrived,
    hook,
    idle,
    looked,
    on_redis,
    opened,
    sent,
)

AT_ONCE_S = 8
"""Less than a lease, after which another process would look by itself."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[LocalServer]]:
    with cluster() as servers:
        yield servers


@pytest.fixture(params=["redis", "redis+postgres", "cluster"])
def config(request: pytest.FixtureRequest) -> Config:
    config = on_redis()
    if request.param == "cluster":
        url = SecretUrl(url_of(request.getfixturevalue("nodes")))
        config = replace(config, redis=replace(config.redis, url=url))
    if "postgres" in request.param:
        url = SecretUrl(request.getfixturevalue("postgres_url"))
        config = replace(config, postgres=Postgres(url=url))
    return config


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def nobody_looks_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no process is told of is never delivered here."""
    monkeypatch.setattr(service, "LOOK_AGAIN_S", inf)


@asynccontextmanager
async def two(config: Config, clock: Clock) -> AsyncIterator[tuple[Runtime, Runtime]]:
    async with opened(config, clock) as one, opened(config, clock) as other:
        yield one, other


def delivered(runtime: Runtime) -> float:
    """How many events this process has delivered."""
    count: float = runtime.metrics.webhook_tries.labels("delivered")._value.get()
    return count


async def begin(runtimes: tuple[Runtime, Runtime], *hooks: Any) -> None:
    """Make the task, and have both look for the last time that nobody tells them to: from then on
    the one that is published to takes the lease.
    """
    await create(runtimes[0], *hooks)
    for runtime in runtimes:
        await looked(runtime)


async def parked(runtime: Runtime) -> None:
    while await runtime.backend.store.next_due(WEBHOOK) != PARKED_MS:
        await trio.lowlevel.checkpoint()


def die(runtime: Runtime) -> None:
    """End its deliveries as a kill does: nothing more of them reaches the store."""

    async def dead(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("dead")

    for step in ("put_task_note", "set_timer"):
        setattr(runtime.backend.store, step, dead)
    runtime.webhooks._nursery.cancel_scope.cancel()


async def test_what_any_process_publishes_is_delivered_at_once(
    config: Config, clock: Clock
) -> None:
    async with receiving(patience_s=PATIENCE_S) as receiver, two(config, clock) as runtimes:
        await begin(runtimes, hook(receiver))
        for number in range(24):
            await publish(runtimes[number % 2], "a")
            if number % 3 == 1:
                await arrived(receiver, number + 1)  # the other one lingers, and has the lease
            elif number % 6 == 2:
                await parked(runtimes[0])  # and nobody has it now
        await arrived(receiver, 24)
        await idle(*runtimes)
        assert sent(receiver) == list(range(24))
        assert all(delivered(runtime) for runtime in runtimes)


async def test_who_is_at_work_goes_on_with_what_others_publish(
    config: Config, clock: Clock
) -> None:
    gate = Gate()
    async with (
        receiving(gate, patience_s=PATIENCE_S) as receiver,
        two(config, clock) as (one, other),
    ):
        await begin((other, one), hook(receiver))
        await publish(one, "a")
        await gate.reached.wait()
        await publish(other, *"bcd")
        await looked(other)
        assert len(receiver.requests) == 1
        gate.go_on.set()
        await idle(one, other)
        assert sent(receiver) == [0, 1, 2, 3]
        assert (delivered(one), delivered(other)) == (4, 0)


@pytest.mark.parametrize("listens", [False, True])
async def test_a_webhook_without_work_is_not_held_up_by_another_of_its_task(
    config: Config, clock: Clock, listens: bool
) -> None:
    """Only the process that tries the slow one may see to the other one too."""
    gate = Gate()
    async with (
        receiving(gate, patience_s=PATIENCE_S) as slow,
        receiving(patience_s=PATIENCE_S) as fast,
        two(config, clock) as (one, other),
    ):
        await begin((one, other), hook(slow), hook(fast, host="localhost"))
        await publish(one, "a")
        await gate.reached.wait()
        await arrived(fast, 1)
        following = one.backend.broadcast._tasks  # type: ignore[attr-defined]
        while listens and not following():
            await trio.lowlevel.checkpoint()
        for number in range(1, 5):
            await publish(other, "b")
            await arrived(fast, number + 1)
        assert len(slow.requests) == 1
        assert (await other.engine.get("t")).subscriber_count == 0
        gate.go_on.set()
        await idle(one, other)
        assert sent(slow) == sent(fast) == [0, 1, 2, 3, 4]
        assert delivered(other) == 0
        assert following() == []


@pytest.mark.parametrize("how", ["no answer", "cancelled"])
async def test_what_is_stored_though_nobody_was_told_so_is_delivered_at_once(
    config: Config, clock: Clock, how: str
) -> None:
    async with receiving(patience_s=PATIENCE_S) as receiver, two(config, clock) as (one, other):
        await begin((one, other), hook(receiver))
        append = other.backend.store.append
        scope = trio.CancelScope()

        async def lost(*args: Any, **options: Any) -> Any:
            await append(*args, **options)
            if how == "no answer":
                raise StoreUnavailable("no answer")
            scope.cancel()
            await trio.sleep_forever()

        other.backend.store.append = lost  # type: ignore[method-assign]
        with scope:
            try:
                await publish(other, "a")
            except StoreUnavailable:
                assert how == "no answer"
        await arrived(receiver, 1)


async def test_another_process_goes_on_when_the_lease_of_a_dead_one_has_ended(
    config: Config, clock: Clock
) -> None:
    gate = Gate(30)
    async with (
        receiving(gate, patience_s=PATIENCE_S) as receiver,
        two(config, clock) as (one, other),
    ):
        await begin((one, other), hook(receiver))
        await publish(one, *["a"] * 60)
        await gate.reached.wait()
        die(one)
        gate.go_on.set()
        await publish(other, "b")
        await looked(other)
        assert len(receiver.requests) == 31
        clock.later_ms += LEASE_MS
        await publish(other, "c")
        await looked(other)
        await idle(other)
        check(sent(receiver), list(range(62)))
        assert delivered(other) >= 62 - 30


async def test_one_that_drains_leaves_the_rest_to_the_other(config: Config, clock: Clock) -> None:
    gate = Gate(10)
    async with (
        receiving(gate, patience_s=PATIENCE_S) as receiver,
        two(config, clock) as (one, other),
    ):
        await begin((one, other), hook(receiver))
        await publish(one, *["a"] * 40)
        await gate.reached.wait()
        one.drain.set()
        await publish(other, *"bcd")
        gate.go_on.set()
        with trio.fail_after(AT_ONCE_S):
            await arrived(receiver, 43)
        await idle(other)
        assert sent(receiver) == list(range(43))
        assert (delivered(one), delivered(other)) == (11, 32)


async def test_a_try_that_hangs_where_it_drains_holds_up_no_other_task(
    config: Config, clock: Clock
) -> None:
    hanging, paced = Gate(), Gate(10)
    async with (
        receiving(hanging, patience_s=PATIENCE_S) as slow,
        receiving(paced, patience_s=PATIENCE_S) as fast,
        two(config, clock) as (one, other),
    ):
        await begin((one, other), hook(slow))
        await create(one, hook(fast, host="localhost"), id_="fast")
        await publish(one, "a")
        await hanging.reached.wait()
        await publish(one, *["a"] * 40, id_="fast")
        await paced.reached.wait()
        one.drain.set()
        paced.go_on.set()
        with trio.fail_after(AT_ONCE_S):
            await arrived(fast, 40)
        assert len(slow.requests) == 1
        hanging.go_on.set()
        await idle(other)
        assert sent(fast) == list(range(40))
        assert (delivered(one), delivered(other)) == (12, 29)


async def test_what_one_has_just_taken_when_it_drains_is_left_to_the_other(
    config: Config, clock: Clock
) -> None:
    async with (
        receiving(patience_s=PATIENCE_S) as receiver,
        two(config, clock) as (one, other),
    ):
        await begin((one, other), hook(receiver))
        store = one.backend.store
        take_due = store.take_due

        async def overtaken(kind: str, **options: Any) -> Any:
            found = await take_due(kind, **options)
            if kind == WEBHOOK and found:
                one.drain.set()
                await trio.sleep(0.1)  # it has begun to, then
            return found

        store.take_due = overtaken  # type: ignore[method-assign]
        await publish(one, *"abc")
        with trio.fail_after(AT_ONCE_S):
            await arrived(receiver, 3)
        await idle(other)
        assert (delivered(one), delivered(other)) == (0, 3)
