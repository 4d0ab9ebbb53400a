"""Publishers that count, in Redis: a lost reply stores nothing twice, and nothing is left."""

from __future__ import annotations

import trio

from taskcast_trio.core.errors import SeqGap, StoreUnavailable
from taskcast_trio.storage.records import CountLimits
from taskcast_trio.storage.redis import open_redis

from ..support import NOW, assert_dense, counted, read_all, task, value
from .server import redis_url
from .test_commands import through

LIMITS = CountLimits()


async def test_a_step_whose_reply_is_lost_is_answered_as_what_it_did(server, prefix):
    async with through(server, prefix) as (proxy, backend):
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        for seq in range(3):
            proxy.drop_next = True
            drafts = [counted(2 * seq), counted(2 * seq + 1)]
            commit = await store.append("t", drafts, now_ms=NOW, counting=LIMITS)
            assert not proxy.drop_next
            assert commit.known is None
            assert commit.first_index == 2 * seq
        proxy.drop_next = True
        again = await store.append("t", [counted(5)], now_ms=NOW, counting=LIMITS)
        assert again.known is not None
        assert [entry.index for entry in again.known.values()] == [5]


async def test_publishers_that_send_again_what_may_be_lost_store_each_event_once(server, prefix):
    async with through(server, prefix) as (proxy, backend):
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        proxy.drop_every = 30

        async def publish(name: str) -> None:
            for number in range(100):
                draft = counted(number, name, data=[name, number])
                while True:
                    try:
                        commit = await store.append("t", [draft], now_ms=NOW, counting=LIMITS)
                    except StoreUnavailable:
                        continue
                    except SeqGap:
                        await trio.lowlevel.checkpoint()
                        continue
                    entry = commit.entries[0] if commit.known is None else commit.known[0]
                    assert value(entry) == [name, number]
                    break

        async with trio.open_nursery() as nursery:
            for name in "abcabc":  # each name twice
                nursery.start_soon(publish, name)
        proxy.drop_every = 0
        assert proxy.dropped > 5
        entries = await read_all(store)
        assert_dense(entries)
        for name in "abc":
            mine = [value(entry) for entry in entries if value(entry)[0] == name]
            assert mine == [[name, number] for number in range(100)]


async def test_no_key_of_a_deleted_or_released_task_is_left(server, prefix):
    async with open_redis(redis_url(), prefix=prefix) as backend:
        store, commands = backend.store, backend.store._commands

        async def left() -> list[bytes]:
            keys = await commands.do(commands.plain(0, "KEYS", f"{prefix}:*"))
            return [key for key in keys if b":publishers:" in key or b":seqs:" in key]

        for id_ in ("t", "u"):
            await store.create(task(id_), epoch="EPOCH001", now_ms=NOW)
            drafts = [counted(0), counted(0, "you"), counted(1)]
            await store.append(id_, drafts, now_ms=NOW, counting=LIMITS)
        assert len(await left()) == 6
        await store.delete("t")
        assert len(await left()) == 3
        await store.transition(task("u", "completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW)
        assert await store.release("u", epoch="EPOCH001", revision=1, now_ms=NOW)
        assert await left() == []
