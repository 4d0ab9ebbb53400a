"""Two real servers on one real Redis, with an archive in PostgreSQL, and on a cluster, of which one
is killed in the middle of its deliveries, again and again: the other one goes on with them.
"""

from __future__ import annotations

import random
from itertools import pairwise

import httpx
import pytest
import trio

from taskcast_trio.engine.webhooks.state import WEBHOOK
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import PARKED_MS
from taskcast_trio.storage.redis import open_redis
from tests.receiver import Receiver, receiving

from ..storage.redis.cluster import cluster, url_of
from ..storage.redis.server import new_prefix, redis_url
from .server_process import server_process
from .test_webhook_kills import EVENTS_EACH, HOOKS, LAST_FEW, SEED, indexes, moody, publish, until

CYCLES = 6
FEW_CYCLES = 3
PATIENCE_S = 240
PAUSE_S = 0.02


async def parked(store: ShortTermStore) -> None:
    """Nobody has the lease, and nothing is owed."""
    while await store.next_due(WEBHOOK) != PARKED_MS:  # noqa: ASYNC110
        await trio.sleep(PAUSE_S)


async def delivered(client: httpx.AsyncClient) -> None:
    while True:
        found = (await client.get("/tasks/t/webhooks")).json()["webhooks"]
        if all(hook["pending"] == 0 for hook in found):
            assert [hook["deadLetters"] for hook in found] == [0] * HOOKS
            return
        await trio.sleep(PAUSE_S)


async def end_lease(store: ShortTermStore) -> None:
    """As if its time had passed."""
    lease_ms = await store.next_due(WEBHOOK)
    if lease_ms is not None and lease_ms != PARKED_MS:
        await store.set_timer("t", WEBHOOK, 1, if_due=lease_ms)


# httpx leaves the generator of a body that could not be sent to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def test_every_event_arrives_in_order_whoever_is_killed() -> None:
    """The last lease is waited for; the others are cut short."""
    await kill_again_and_again(redis_url(), cycles=CYCLES, waits=True)


async def test_the_same_with_an_archive(postgres_url: str) -> None:
    await kill_again_and_again(redis_url(), "--postgres-url", postgres_url, cycles=FEW_CYCLES)


async def test_the_same_on_a_cluster() -> None:
    with cluster() as nodes:
        await kill_again_and_again(url_of(nodes), cycles=FEW_CYCLES)


async def kill_again_and_again(redis: str, *more: str, cycles: int, waits: bool = False) -> None:
    random.seed(SEED)
    dice = random.Random(SEED)
    prefix = new_prefix()
    options = ("--redis-url", redis, "--redis-prefix", prefix, *more)
    retry = {"retries": 50, "backoff": "fixed", "initialDelayMs": 20}
    async with (
        receiving(moody, patience_s=PATIENCE_S) as receiver,
        open_redis(redis, prefix=prefix) as backend,
        server_process(*options) as (url, _),
        httpx.AsyncClient(base_url=url, timeout=20) as survivor,
    ):
        hooks = [{"url": receiver.url(f"/{n}"), "retry": retry} for n in range(HOOKS)]
        made = await survivor.post("/tasks", json={"id": "t", "webhooks": hooks})
        assert made.status_code == 201
        for cycle in range(cycles):
            async with (
                server_process(*options) as (doomed_url, doomed),
                httpx.AsyncClient(base_url=doomed_url, timeout=20) as client,
            ):
                await parked(backend.store)
                goal = len(receiver.requests) + dice.randrange(1, EVENTS_EACH)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publish, client, EVENTS_EACH)
                    await until(receiver, goal)
                    doomed.kill()
                await doomed.wait()
            if cycle < cycles - 1 or not waits:
                await end_lease(backend.store)
                await publish(survivor, EVENTS_EACH)
            await delivered(survivor)
        for status in ("running", "completed"):
            moved = await survivor.patch("/tasks/t/status", json={"status": status})
            assert moved.status_code == 200
        await delivered(survivor)
        log = (await survivor.get("/tasks/t/events/history")).json()
    owed = [event["index"] for event in log]
    assert len(owed) > cycles * EVENTS_EACH
    for hook in range(HOOKS):
        check(receiver, hook, owed)


def check(receiver: Receiver, hook: int, owed: list[int]) -> None:
    """Every event, each for the first time in order, and no jump but back by a few."""
    got = indexes(receiver, hook)
    assert list(dict.fromkeys(got)) == owed
    steps = [later - earlier for earlier, later in pairwise(got)]
    assert max(steps) == 1
    assert min(steps) >= -LAST_FEW - 1
