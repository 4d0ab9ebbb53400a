"""The way to Redis and back: nothing is done twice, nobody waits for ever, nothing leaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from taskcast_trio.core.errors import RevisionConflict, StoreUnavailable, TaskExists
from taskcast_trio.storage.bridge import open_bridge
from taskcast_trio.storage.records import PARKED_MS, Timer
from taskcast_trio.storage.redis import RedisBackend, commands, open_redis
from taskcast_trio.storage.redis.keys import bucket_of

from ..support import (
    NOW,
    append,
    assert_dense,
    draft,
    event,
    key,
    latest,
    piece,
    read_all,
    task,
    value,
)
from .proxy import Proxy, proxied
from .server import running as serving

PATIENCE_S = 30.0
DEADLINE_S = 1.5
LATE_S = 5.0
"""How much later than its deadline a call may end on a busy machine."""


@asynccontextmanager
async def through(server, prefix: str, **options: Any) -> AsyncIterator[tuple[Proxy, RedisBackend]]:
    with trio.fail_after(PATIENCE_S):
        async with (
            proxied(server.port) as proxy,
            open_redis(proxy.url, prefix=prefix, **options) as backend,
        ):
            yield proxy, backend


async def test_of_two_thousand_publishes_each_tenth_loses_its_reply_and_all_are_stored_once(
    server, prefix
):
    async with through(server, prefix) as (proxy, backend):
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        proxy.drop_every = 10
        for number in range(2_000):
            commit = await append(store, draft(number), latest(str(number)))
            assert commit.first_index == 2 * number
            assert value(commit.entries[0]) == number
        proxy.drop_every = 0
        assert proxy.dropped > 190
        entries = await read_all(store)
        plain = [value(entry) for entry in entries if entry.event.series_id != "s"]
        assert plain == list(range(2_000))
        assert len(entries) == 2_001


async def test_publishers_at_once_lose_replies_and_nothing_is_stored_twice(server, prefix):
    """Who is told that Redis is away publishes again under the same key."""
    async with through(server, prefix) as (proxy, backend):
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        proxy.drop_every = 30

        async def publish(name: int) -> None:
            for number in range(100):
                step = partial(store.append, "t", [draft([name, number])], now_ms=NOW)
                while True:
                    try:
                        await step(idempotency=key(f"{name}-{number}"))
                    except StoreUnavailable:
                        continue
                    break

        async with trio.open_nursery() as nursery:
            for name in range(8):
                nursery.start_soon(publish, name)
        proxy.drop_every = 0
        assert proxy.dropped > 5
        entries = await read_all(store)
        assert_dense(entries)
        assert sorted(value(entry) for entry in entries) == [
            [name, number] for name in range(8) for number in range(100)
        ]


async def test_no_step_is_done_twice_where_its_reply_is_lost(server, prefix):
    """Each answers as if nothing had happened, though it had been done when it was asked again."""
    async with through(server, prefix) as (proxy, backend):
        store = backend.store
        lost = 0

        async def losing(step: Any) -> Any:
            nonlocal lost
            lost += 1
            proxy.drop_next = True
            answer = await step
            assert not proxy.drop_next
            return answer

        epoch: Any = {"epoch": "EPOCH001", "now_ms": NOW}
        commit = await losing(store.create(task(), **epoch, timers={"a": NOW}))
        assert commit.created
        with pytest.raises(TaskExists):
            await losing(store.create(task(), **epoch))
        moved = await losing(
            store.transition(task(status="running"), [draft()], revision=0, **epoch)
        )
        assert (moved.record.revision, moved.first_index) == (1, 0)
        with pytest.raises(RevisionConflict):
            await losing(store.transition(task(), [], revision=0, **epoch))
        taken = await losing(store.take_due("a", now_ms=NOW, lease_ms=10, limit=5))
        assert taken == [Timer("t", "a", NOW + 10)]
        assert await losing(store.set_timer("t", "a", None, if_due=NOW + 10))
        parked: Any = {"a": PARKED_MS}
        assert await losing(store.set_timer("t", "a", PARKED_MS, if_next=1))
        appended = await losing(store.append("t", [draft()], now_ms=NOW, hasten={"a": NOW + 5}))
        assert appended.first_index == 1
        assert await store.next_due("a") == NOW + 5
        assert await losing(
            store.put_task_note(
                "t", "n", b"v", epoch="EPOCH001", timers=parked, if_due={"a": NOW + 5}
            )
        )
        moved = await losing(
            store.transition(
                task(status="completed"), [draft()], revision=1, hasten={"a": NOW + 6}, **epoch
            )
        )
        assert moved.first_index == 2
        assert await store.next_due("a") == NOW + 6
        assert await losing(store.trim("t", [0, 1, 1], epoch="EPOCH001")) == 2
        found = (await store.snapshot("t")).record
        assert (found.trimmed, found.trims) == (1, 2)
        await store.put_note("k", b"value", expires_ms=None, now_ms=NOW)
        assert await losing(store.take_note("k", now_ms=NOW)) == b"value"
        await store.put_note("k", b"value", expires_ms=None, now_ms=NOW)
        assert await losing(store.drop_note("k"))
        imported = await losing(
            store.import_task(task("i"), [event(0)], epoch="EPOCH002", overwrite=True)
        )
        assert not imported.replaced
        assert await losing(store.delete("t"))
        await store.create(task("e", "completed"), **epoch)
        release = store.release("e", epoch="EPOCH001", revision=0, now_ms=NOW, unless=["a"])
        assert await losing(release)
        assert proxy.dropped == lost


async def test_a_trim_that_has_to_tell_a_value_is_done_once_though_replies_are_lost(server, prefix):
    other = replace(piece("b"), series_acc_field="type")
    async with through(server, prefix) as (proxy, backend):
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        await append(store, piece("a"), other, piece("c"))
        await store.transition(
            task(status="completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW
        )
        was = (await store.snapshot("t")).values["s"]
        proxy.drop_every = 2
        assert await store.trim("t", [0, 2], epoch="EPOCH001") == 2
        proxy.drop_every = 0
        assert proxy.dropped > 1
        found = await store.snapshot("t")
        assert (found.record.trimmed, found.record.trims) == (2, 2)
        assert found.values["s"].event == was.event


async def test_a_frozen_server_holds_nobody_beyond_the_timeout(server, prefix):
    with trio.fail_after(PATIENCE_S):
        async with open_redis(server.url, prefix=prefix, timeout_s=DEADLINE_S) as backend:
            store = backend.store
            await store.create(task(), epoch="EPOCH001", now_ms=NOW)
            waited = []

            async def ask(number: int) -> None:
                started = trio.current_time()
                with pytest.raises(StoreUnavailable):
                    await (store.get("t") if number % 2 else append(store, draft(number)))
                waited.append(trio.current_time() - started)

            with server.frozen():
                for _ in range(2):
                    async with trio.open_nursery() as nursery:
                        for number in range(20):
                            nursery.start_soon(ask, number)
                assert backend.link().commands == "down"
            assert len(waited) == 40
            assert max(waited) < DEADLINE_S + LATE_S
            await backend.ping()
            assert (await append(store, draft("last"))).entries
            assert backend.link().commands == "up"


async def test_a_server_that_is_away_is_said_so_at_once_and_used_again(server, prefix):
    async with through(server, prefix, timeout_s=PATIENCE_S) as (proxy, backend):
        await backend.ping()
        proxy.refuses = True
        proxy.cut()
        started = trio.current_time()
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="Redis is away: ConnectionError"):
                await backend.store.get("t")
        assert trio.current_time() - started < LATE_S
        proxy.refuses = False
        assert await backend.store.get("t") is None


async def test_connections_that_died_while_nobody_used_them_are_nobodys_error(server, prefix):
    async with through(server, prefix) as (proxy, backend):
        for _ in range(5):
            await backend.ping()
            assert proxy.cut()
            assert await backend.store.get("t") is None


async def test_two_hundred_cancelled_calls_leave_nothing(server, prefix):
    """Each is cut at another moment: in the queue, on its way, or when its answer is there."""
    async with open_bridge() as bridge:
        async with open_redis(server.url, prefix=prefix, bridge=bridge) as backend:
            store = backend.store
            await store.create(task(), epoch="EPOCH001", now_ms=NOW)
            calls = (
                partial(append, store, draft(), draft()),
                partial(store.read, "t", after=-1, limit=3),
                partial(store.count),
                partial(store.put_note, "k", b"", expires_ms=None, now_ms=NOW),
            )
            cut = 0

            async def cancelled(number: int) -> None:
                nonlocal cut
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(calls[number % len(calls)])
                    for _ in range(number % 20):
                        await trio.lowlevel.checkpoint()
                    cut += len(nursery.child_tasks)
                    nursery.cancel_scope.cancel()

            for start in range(0, 200, 20):
                async with trio.open_nursery() as nursery:
                    for number in range(start, start + 20):
                        nursery.start_soon(cancelled, number)
            assert cut > 30, "many were still running"
            await backend.ping()
            entries = await read_all(store)
            assert_dense(entries)
            assert len(entries) % 2 == 0, "a batch is stored whole or not at all"
            (lane,) = backend._commands._lanes.values()
            assert not lane.queue
            assert len(lane.idle) <= 2
            with server.client() as client, trio.fail_after(PATIENCE_S):
                # Redis takes its time to see that a connection was cut.
                while len(client.client_list()) - 1 > len(lane.idle):  # noqa: ASYNC110
                    await trio.sleep(0.01)
        assert not asyncio.all_tasks(bridge.loop)
        assert bridge.faults == 0


async def test_a_call_to_a_frozen_server_can_be_cancelled_and_the_store_closed_at_once(
    server, prefix
):
    async with open_redis(server.url, prefix=prefix, timeout_s=PATIENCE_S) as backend:
        await backend.ping()
        with server.frozen():
            started = trio.current_time()
            with trio.move_on_after(0.05) as scope:
                await backend.store.get("t")
            assert scope.cancelled_caught
            backend._commands.close()
            with pytest.raises(StoreUnavailable, match="closed"):
                await backend.store.get("t")
            assert trio.current_time() - started < LATE_S


async def test_who_waits_to_ask_again_is_told_that_the_store_is_closed(server, prefix, monkeypatch):
    monkeypatch.setattr(commands, "RETRY_S", PATIENCE_S)
    said: list[str] = []

    async def ask(backend: RedisBackend) -> None:
        try:
            await backend.store.get("t")
        except StoreUnavailable as error:
            said.append(str(error))

    async with trio.open_nursery() as nursery:
        async with through(server, prefix, timeout_s=PATIENCE_S) as (proxy, backend):
            await backend.ping()
            proxy.refuses = True
            proxy.cut()
            nursery.start_soon(ask, backend)
            await trio.testing.wait_all_tasks_blocked(0.3)
        with trio.fail_after(LATE_S):
            while not said:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert "closed" in said[0]


async def test_scripts_that_the_server_has_forgotten_are_sent_again(server, prefix):
    async with open_redis(server.url, prefix=prefix) as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        for number in range(5):
            with server.client() as client:
                client.script_flush()
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(append, backend.store, draft(number))
        assert len(await read_all(backend.store)) == 20


async def test_calls_of_the_same_moment_cross_together(server, prefix):
    """Two batches are on their way at once; all that comes meanwhile waits and goes as one."""
    async with open_redis(server.url, prefix=prefix) as backend:
        commands = backend._commands
        flushed = []
        flush = commands._flush

        async def counted(place: Any, lane: Any, batch: Any) -> None:
            flushed.append(len(batch))
            await flush(place, lane, batch)

        commands._flush = counted  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(backend.store.get, f"t{number}")
        assert sum(flushed) == 100
        assert len(flushed) <= 3


async def test_new_tasks_come_behind_the_others_though_the_count_of_them_was_lost(server, prefix):
    """The node of a cluster that counted came back empty, the others did not."""
    async with open_redis(server.url, prefix=prefix) as backend:
        store = backend.store
        for number in range(6):
            if number % 2:
                with server.client() as client:
                    assert client.delete(backend._commands.keys.number)
            await store.create(task(f"t{number}"), epoch="EPOCH001", now_ms=NOW)
        assert [r.task.id for r in await store.list_tasks()] == [f"t{n}" for n in range(6)]
        after = await store.list_tasks(after="t3")
        assert [record.task.id for record in after] == ["t4", "t5"]


async def test_a_store_that_has_no_memory_left_says_so_and_reads_go_on(prefix):
    with serving("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        async with open_redis(server.url, prefix=prefix) as backend:
            store = backend.store
            await store.create(task(), epoch="EPOCH001", now_ms=NOW)
            stored = 0
            with pytest.raises(StoreUnavailable, match="Redis refused a step: O") as refused:
                for _ in range(100):
                    await append(store, draft("x" * 100_000))
                    stored += 1
            assert "xxx" not in str(refused.value)
            assert len(await read_all(store)) == stored


async def test_of_the_timers_in_all_buckets_the_earliest_are_taken_first(url, prefix):
    """Half of them are in one bucket, so that a few of each are not the earliest."""
    together = [f"t{n}" for n in range(40_000) if bucket_of(f"t{n}") == 7][:150]
    others = [f"o{n}" for n in range(150)]
    async with open_redis(url, prefix=prefix, timeout_s=30) as backend:
        store, due = backend.store, {}
        async with trio.open_nursery() as nursery:
            for number, id_ in enumerate((*together, *others)):
                due[id_] = NOW + number * 7919 % 600  # 7919 is a prime: no two are the same
                create = partial(store.create, timers={"a": due[id_]})
                nursery.start_soon(partial(create, task(id_), epoch="EPOCH001", now_ms=NOW))
        expected = sorted(due, key=due.__getitem__)
        assert await store.next_due("a") == due[expected[0]]
        assert await store.next_due("b") is None
        assert await store.count() == 300
        for limit in (1, 2, 5, 63, 64, 200):
            taken = await store.take_due("a", now_ms=NOW + 600, lease_ms=10_000, limit=limit)
            wanted, expected = expected[:limit], expected[limit:]
            assert taken == [Timer(id_, "a", NOW + 10_600) for id_ in wanted]
        assert await store.take_due("a", now_ms=NOW + 600, lease_ms=10_000, limit=9) == []
        assert await store.next_due("a") == NOW + 10_600
