"""A cluster of Redis: each step at the node that has its task, lists over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
from redis.crc import key_slot

from taskcast_trio.core.errors import NotFound, StoreUnavailable
from taskcast_trio.storage.redis import backend, open_redis
from taskcast_trio.storage.redis.keys import Keys, bucket_of

from ..support import NOW, append, draft, piece, read_all, task, text, value
from .cluster import cluster, move, moving, url_of
from .server import LocalServer
from .support import PATIENCE_S, Process, Results, number, process

TASKS = 60
SLOT_MOVES = 6


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[LocalServer]]:
    with cluster() as servers:
        yield servers


async def test_tasks_are_spread_over_the_nodes_and_read_as_one_store(nodes, prefix):
    async with open_redis(url_of(nodes), prefix=prefix) as backend:
        store = backend.store
        assert backend.link().kind == "cluster"
        ids = [f"t{n}" for n in range(TASKS)]
        for n, id_ in enumerate(ids):
            timers = {"a": NOW + TASKS - n}
            await store.create(task(id_), epoch="EPOCH001", now_ms=NOW, timers=timers)
            await append(store, draft(n), id_=id_)
        for server in nodes:
            with server.client() as client:
                assert client.dbsize() > TASKS / 10
        assert await store.count() == TASKS
        assert [record.task.id for record in await store.list_tasks()] == ids
        assert [len(await read_all(store, id_)) for id_ in ids] == [1] * TASKS
        assert await store.next_due("a") == NOW + 1
        due = await store.list_due("a", now_ms=NOW + TASKS, limit=TASKS // 2)
        assert [timer.task_id for timer in due] == ids[: TASKS // 2 - 1 : -1]
        taken = [
            timer.task_id
            for _ in range(TASKS // 10)
            for timer in await store.take_due("a", now_ms=NOW + TASKS, lease_ms=1000, limit=10)
        ]
        assert taken == ids[::-1]
        assert await store.delete(ids[0])
        assert await store.count() == TASKS - 1
        with pytest.raises(NotFound):
            await read_all(store, ids[0])


async def test_logs_are_trimmed_at_their_nodes(nodes, prefix):
    async with open_redis(url_of(nodes), prefix=prefix) as backend:
        store = backend.store
        for id_ in "abcdef":
            await store.create(task(id_), epoch="EPOCH001", now_ms=NOW)
            await append(store, piece("a"), piece("b"), id_=id_)
            await store.transition(
                task(id_, "completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW
            )
            assert await store.trim(id_, [1], epoch="EPOCH001") == 1
            assert text((await store.snapshot(id_)).values["s"]) == "ab"
            assert await store.trim(id_, [0], epoch="EPOCH001") == 1
            assert (await store.snapshot(id_)).values == {}


async def test_what_is_published_at_one_process_reaches_the_others(nodes, prefix):
    """Also who follows all tasks, on all nodes."""
    url, results, ids = url_of(nodes), Results(), [f"t{n}" for n in range(12)]
    assert len({bucket_of(id_) for id_ in ids}) > 9
    with trio.fail_after(PATIENCE_S):
        async with (
            process(url, prefix) as a,
            process(url, prefix) as b,
            trio.open_nursery() as nursery,
        ):
            for id_ in ids:
                await a.create(id_)
                await nursery.start(results.follow, b, id_)
            for n in range(20):
                for id_ in ids:
                    await (a, b)[n % 2].engine.publish(id_, [number(n)])
            for id_ in ids:
                await a.complete(id_)
    results.assert_all_saw(22, len(ids))


async def test_a_listener_follows_to_another_node_where_announcements_are_not_sharded(
    nodes, prefix, monkeypatch
):
    """As before Redis 7: one node is listened to for all, until it is no more."""
    monkeypatch.setattr(backend, "SHARDED_SINCE", (99, 0))
    with trio.fail_after(PATIENCE_S):
        async with process(url_of(nodes), prefix) as one:
            listener, placed = one.backend.broadcast, one.backend._commands.nodes
            (old,) = listener._ears
            other = next(placed.place_of(n) for n in range(256) if placed.place_of(n) != old)
            connect = placed.connection

            def connection(place: str) -> Any:
                if place == old:
                    raise ConnectionError("it is gone")
                return connect(place)

            monkeypatch.setattr(placed, "connection", connection)
            monkeypatch.setattr(placed, "refresh", nothing)
            monkeypatch.setattr(placed, "place_of", lambda bucket: other)
            listener._ears[old].cut()
            while set(listener._ears) != {other} or one.backend.link().pubsub != "up":  # noqa: ASYNC110
                await trio.sleep(0.05)


async def nothing() -> None:
    """Runs on the asyncio side."""


async def test_peers_count_limits_and_messages_work_in_a_cluster(nodes, prefix):
    async with (
        open_redis(url_of(nodes), prefix=prefix) as one,
        open_redis(url_of(nodes), prefix=prefix) as other,
    ):
        heard: list[bytes] = []
        async with trio.open_nursery() as nursery:
            for backend in (one, other):
                await nursery.start(backend.peers.run, heard.append)
            await one.peers.tell(b"word")
            assert await one.peers.take_tokens("k", want=3, per_second=4) == 3
            assert await other.peers.take_tokens("k", want=3, per_second=4) == 1
            with trio.fail_after(PATIENCE_S):
                while heard != [b"word", b"word"] or one.peers.count != 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_slot_that_moves_under_publishers_loses_and_repeats_nothing(nodes, prefix):
    """Key by key, as a cluster is resized: for a while a task is half here and half there."""
    url, results, sent = url_of(nodes), Results(), 0
    done = trio.Event()

    async def publish(*processes: Process) -> None:
        nonlocal sent
        while not done.is_set():
            try:
                one = processes[sent % 2]
                await one.engine.publish("t", [number(sent)], key=f"{sent}")
            except StoreUnavailable:
                await trio.sleep(0.01)
            else:
                sent += 1

    async def more() -> None:
        before = sent
        while sent < before + 20:  # noqa: ASYNC110
            await trio.sleep(0.01)

    with trio.fail_after(2 * PATIENCE_S):
        async with (
            process(url, prefix) as a,
            process(url, prefix) as b,
            trio.open_nursery() as nursery,
        ):
            await a.create()
            for one in (a, b):
                await nursery.start(results.follow, one)
            async with trio.open_nursery() as publishers:
                publishers.start_soon(publish, a, b)
                slot = key_slot(Keys(prefix).head("t").encode())
                for _ in range(SLOT_MOVES):
                    await more()
                    await trio.to_thread.run_sync(move, nodes, slot)
                await more()
                done.set()
            await a.complete()
    results.assert_all_saw(sent + 2, 2)


async def test_who_asks_for_a_task_that_has_moved_is_not_told_of_it(nodes, prefix):
    """Only while its keys are at a node that has not the slot yet: that node runs no script which
    names a key that there is not.
    """
    async with (
        open_redis(url_of(nodes), prefix=prefix) as one,
        open_redis(url_of(nodes), prefix=prefix) as other,
    ):
        await one.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        slot = key_slot(Keys(prefix).head("t").encode())
        for turn in range(3):
            with moving(nodes, slot), pytest.raises(StoreUnavailable, match="TryAgain"):
                await append(one.store, draft("refused"))
            for backend in (one, other):
                await append(backend.store, draft(turn))
        assert [value(entry) for entry in await read_all(other.store)] == [0, 0, 1, 1, 2, 2]
