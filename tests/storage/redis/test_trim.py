"""Trimming in Redis: what is gone takes no room, and nobody else waits long for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import redis
import trio
from msgspec.structs import replace

from taskcast_trio.core.model import Draft
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Idempotency, Timer
from taskcast_trio.storage.redis import open_redis
from taskcast_trio.storage.redis.keys import bucket_of
from taskcast_trio.storage.redis.rows import size_of

from ..support import NOW, append, draft, event, key, latest, piece, read_all, task

EPOCH = "EPOCH001"
DAY_S = 24 * 60 * 60


async def end(store: ShortTermStore, *drafts: Draft) -> None:
    await store.create(task(), epoch=EPOCH, now_ms=NOW)
    await append(store, *drafts)
    await store.transition(task(status="completed"), [], revision=0, epoch=EPOCH, now_ms=NOW)


def keys_of(client: redis.Redis, prefix: str) -> dict[str, bytes]:
    """The keys of the task by what they are, but for remembered replies."""
    found: Any = client.keys(f"{prefix}:*")
    named = {full.decode("latin-1").split("}:", 1)[1]: full for full in found}
    return {name: full for name, full in named.items() if name.endswith((":t", ":s", ":r"))}


async def test_of_a_log_that_was_trimmed_whole_only_the_task_is_left(server, prefix):
    other = replace(piece("d", "r"), series_acc_field="type")
    async with open_redis(server.url, prefix=prefix) as backend:
        store = backend.store
        drafts = (draft(1), piece("a"), piece("b"), latest("c", "r"), latest("d", "r"), other)
        await end(store, *drafts)
        with server.client() as client:
            (head,) = client.keys(f"{prefix}:*head:t")
            stored = [int(one) for one in client.hmget(head, "ev", "by")]
            assert stored == [5, sum(map(size_of, drafts)) - size_of(drafts[3])]
            assert {"series:t", "moved:t", "text:1:t:s"} <= keys_of(client, prefix).keys()
            for gone, count in ([4, 0], 2), ([1, 5], 2), ([2], 1):
                assert await store.trim("t", gone, epoch=EPOCH) == count
            assert await read_all(store) == []
            kept = keys_of(client, prefix)
            assert kept.keys() == {"head:t", "bodies:t", "log:t"}
            assert client.xlen(kept["log:t"]) == 0
            assert client.hmget(head, "ev", "by") == [b"0", b"0"]


async def test_ids_from_elsewhere_go_with_their_events(server, prefix):
    async with open_redis(server.url, prefix=prefix) as backend:
        events = [event(n, "x" * size) for n, size in enumerate((0, 300, 70_000))]
        await backend.store.import_task(task(status="failed"), events, epoch=EPOCH, overwrite=False)
        with server.client() as client:
            (head,) = client.keys(f"{prefix}:*head:t")
            assert await backend.store.trim("t", [2], epoch=EPOCH) == 1
            assert client.hget(head, "by") == b"%d" % (2 + 302)
            assert await backend.store.trim("t", [0, 1], epoch=EPOCH) == 2
            assert client.hget(head, "by") == b"0"
            assert "foreign:t" not in keys_of(client, prefix)


async def test_answers_to_keys_do_not_stay_with_a_task_that_has_ended(server, prefix):
    """What they show goes with them, though it was trimmed before, and no step prunes them."""
    async with open_redis(server.url, prefix=prefix) as backend:
        store = backend.store
        await store.create(task(), epoch=EPOCH, now_ms=NOW, idempotency=key("first"))
        short = Idempotency("second", b"", ttl_ms=1_000)
        await store.append("t", [draft()], now_ms=NOW, idempotency=short)
        with server.client() as client:
            kept = keys_of(client, prefix)
            for name in ("answers:t", "expiries:t"):
                assert DAY_S < client.ttl(kept[name]) <= DAY_S + 60, "that of the longest"


async def test_the_earliest_of_all_buckets_are_listed(server, prefix):
    """Most of them are in one bucket: its first few are not all that are wanted of it."""
    together = [f"t{n}" for n in range(20_000) if bucket_of(f"t{n}") == 7][:60]
    others = [f"o{n}" for n in range(30)]
    async with open_redis(server.url, prefix=prefix, timeout_s=30) as backend:
        store, due = backend.store, {}
        async with trio.open_nursery() as nursery:
            for number, id_ in enumerate((*together, *others)):
                due[id_] = NOW + number * 7919 % 100  # 7919 is a prime: no two are the same
                create = partial(store.create, task(id_), epoch=EPOCH, now_ms=NOW)
                nursery.start_soon(partial(create, timers={"a": due[id_]}))
        expected = sorted(due, key=due.__getitem__)
        for limit in (0, 1, 4, 5, 40, 89, 500):
            listed = await store.list_due("a", now_ms=NOW + 98, limit=limit)
            wanted = [id_ for id_ in expected if due[id_] <= NOW + 98][:limit]
            assert listed == [Timer(id_, "a", due[id_]) for id_ in wanted]
        assert await store.list_due("a", now_ms=NOW - 1, limit=9) == []
