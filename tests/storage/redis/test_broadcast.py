"""What is committed anywhere reaches who follows it everywhere, whatever becomes of connections."""

from __future__ import annotations

import signal
from typing import Any, cast

import pytest
import trio
from msgspec import UNSET, Raw

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import InvalidTransition, StoreUnavailable
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import CreateTask, Draft, Transition
from taskcast_trio.engine import Delivery, Follow, Gap
from taskcast_trio.storage.redis import broadcast, ear
from taskcast_trio.storage.redis.keys import bucket_of

from .proxy import proxied
from .server import running
from .support import PATIENCE_S, Process, Results, number, process


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that need not be waited for."""
    monkeypatch.setattr(ear, "PING_S", 0.05)
    monkeypatch.setattr(ear, "SILENCE_S", 0.4)
    monkeypatch.setattr(broadcast, "CHECK_S", 0.1)
    monkeypatch.setattr(broadcast, "GRACE_S", 0.05)


async def channels(server) -> set[bytes]:
    with server.client() as client:
        return set(client.pubsub_channels())


async def until(condition) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_what_one_process_publishes_all_processes_get_in_order(url, prefix):
    results = Results()
    with trio.fail_after(PATIENCE_S):
        async with process(url, prefix) as a, process(url, prefix) as b, process(url, prefix) as c:
            await a.create()
            async with trio.open_nursery() as nursery:
                for n in range(30):
                    await nursery.start(results.follow, (a, b, c)[n % 3])

                async def publish(one, start: int) -> None:
                    for n in range(start, start + 100):
                        await one.engine.publish("t", [number(n)] * (1 + n % 3))

                async with trio.open_nursery() as publishers:
                    for start, one in enumerate((a, b, c)):
                        publishers.start_soon(publish, one, 100 * start)
                await b.complete()
            record = await c.engine.record("t")
    results.assert_all_saw(record.next_index, 30)
    assert record.next_index > 500


async def test_of_racing_transitions_in_two_processes_one_terminal_one_wins(url, prefix):
    won, lost = [], []
    async with process(url, prefix) as a, process(url, prefix) as b:
        for n in range(20):
            await a.create(f"t{n}")

        async def end(one, id_: str, status) -> None:
            try:
                won.append((id_, (await one.engine.transition(id_, status)).status))
            except InvalidTransition:
                lost.append(id_)

        async with trio.open_nursery() as nursery:
            for n in range(20):
                for one in (a, b):
                    for status in ("completed", "failed", "cancelled"):
                        change = Transition(status=status)
                        nursery.start_soon(end, one, f"t{n}", change)
        assert sorted(id_ for id_, _ in won) == sorted(f"t{n}" for n in range(20))
        assert len(lost) == 100
        for id_, status in won:
            assert (await b.engine.record(id_)).task.status == status


async def test_only_the_buckets_of_followed_tasks_are_subscribed_to(server, prefix, quick):
    async with process(server.url, prefix) as one:
        # One channel more says that the processes have told each other something.
        told = one.backend._commands.keys.told.encode()
        assert await channels(server) == {told}
        await one.create("followed")
        await one.create("other")
        async with one.engine.subscribe("followed"):
            channel = one.backend._commands.keys.channels[bucket_of("followed")].encode()
            await until(lambda: len(one.backend.broadcast._confirmed()) == 2)
            assert await channels(server) == {channel, told}
            async with one.engine.follow_all():
                await until(lambda: len(one.backend.broadcast._confirmed()) == 257)
                assert len(await channels(server)) == 257
        await until(lambda: len(one.backend.broadcast._confirmed()) == 1)
        assert await channels(server) == {told}


def test_a_bucket_that_is_left_and_wanted_again_at_once_costs_no_connection():
    """The answer to having left it comes when it was asked for once more."""
    confirmed: list[int] = []
    one = ear.Ear(
        "", cast(Any, None), ["c"], sharded=False, heard=lambda *_: None, confirmed=confirmed.append
    )
    one.confirmed.add(0)
    one._asked.add(0)
    one._take([b"unsubscribe", b"c", 0])
    assert one.confirmed == set()
    one._take([b"subscribe", b"c", 1])
    assert confirmed == [0]


async def test_every_task_of_another_process_is_followed_from_its_creation(url, prefix):
    async with process(url, prefix) as a, process(url, prefix) as b:
        got: list[Entry] = []
        async with a.engine.follow_all() as events:
            async with trio.open_nursery() as nursery:

                async def create(n: int) -> None:
                    await b.create(f"t{n}")
                    await b.engine.publish(f"t{n}", [number(n)] * 5)

                for n in range(20):
                    nursery.start_soon(create, n)
            with trio.fail_after(PATIENCE_S):
                while len(got) < 20 * 6:
                    got += await events.receive()
        for n in range(20):
            mine = [entry.index for entry in got if entry.event.task_id == f"t{n}"]
            assert mine == list(range(6))


@pytest.mark.parametrize("size", [100_000, 3_000], ids=["an event", "the task"])
async def test_what_is_too_large_to_be_announced_is_read(url, prefix, size):
    """An event beyond 64 KiB, or a task beyond 2 KiB with each of its events."""
    results = Results()
    padding = Raw(b'{"x":"%b"}' % (b"x" * size))
    with trio.fail_after(PATIENCE_S):
        async with process(url, prefix) as a, process(url, prefix) as b:
            large_task = size < 65_536
            params = padding if large_task else UNSET
            await a.engine.create(CreateTask(id="t", params=params))
            await a.engine.transition("t", Transition(status="running"))
            data = Raw(b"1") if large_task else padding
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    await nursery.start(results.follow, b)
                for _ in range(10):
                    await a.engine.publish("t", [Draft(type="x", level="info", data=data)])
                await a.complete()
    results.assert_all_saw(12, 3)


async def test_killed_listeners_lose_nothing(server, prefix, quick):
    """The connections that listen are killed again and again while events are published."""
    results, done, kills = Results(), trio.Event(), 0
    with trio.fail_after(PATIENCE_S):
        async with process(server.url, prefix) as a, process(server.url, prefix) as b:
            await a.create()

            async def kill() -> None:
                nonlocal kills
                with server.client() as client:
                    while not done.is_set():
                        kills += client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                        await trio.sleep(0.02)

            async with trio.open_nursery() as nursery:
                for n in range(20):
                    await nursery.start(results.follow, (a, b)[n % 2])
                nursery.start_soon(kill)
                for n in range(2_000):
                    await (a, b)[n % 2].engine.publish("t", [number(n)])
                done.set()
                await b.complete()
    results.assert_all_saw(2_002, 20)
    assert kills > 4


async def test_a_listener_that_hears_nothing_more_is_noticed(server, prefix, quick):
    """A black hole: the connection is up, and nothing comes through it any more."""
    results = Results()
    with trio.fail_after(PATIENCE_S):
        async with (
            proxied(server.port) as proxy,
            process(server.url, prefix) as a,
            process(proxy.url, prefix) as b,
        ):
            await a.create()
            async with trio.open_nursery() as nursery:
                await nursery.start(results.follow, b)
                await until(lambda: b.backend.link().pubsub == "up")
                holes = [link for link in proxy._links if link.listens]
                assert holes
                proxy.swallows = lambda link: link in holes
                for n in range(100):
                    await a.engine.publish("t", [number(n)])
                await a.complete()
    results.assert_all_saw(102, 1)


async def test_health_tells_of_a_listener_that_can_not_connect(server, prefix, quick):
    async with (
        proxied(server.port) as proxy,
        process(proxy.url, prefix) as one,
        one.engine.subscribe("t"),
    ):
        await until(lambda: one.backend.link().pubsub == "up")
        proxy.refuses = True
        proxy.cut(lambda link: link.listens)
        await until(lambda: one.backend.link().pubsub == "down")
        proxy.cut()
        await until(lambda: one.backend.link().pubsub == "down")
        proxy.refuses = False
        await until(lambda: one.backend.link().pubsub == "up")


async def test_a_message_that_was_lost_alone_is_noticed(server, prefix, quick, monkeypatch):
    """Nothing is wrong with the connection, but an announcement did not come: positions tell."""
    results = Results()
    with trio.fail_after(PATIENCE_S):
        async with process(server.url, prefix) as a, process(server.url, prefix) as b:
            await a.create()
            async with trio.open_nursery() as nursery:
                await nursery.start(results.follow, b)
                await until(lambda: b.backend.broadcast._heard_of)
                for listener in b.backend.broadcast._ears.values():
                    monkeypatch.setattr(listener, "_heard", lambda bucket, message: None)
                await a.engine.publish("t", [number(1)])
                await a.complete()
    results.assert_all_saw(3, 1)


async def test_a_first_message_that_was_lost_is_noticed_by_the_first_check(
    server, prefix, quick, monkeypatch
):
    """What was heard does not tell of it, as nothing was: where the log stood when it was read
    does, however late the check comes.
    """
    results = Results()
    with trio.fail_after(PATIENCE_S):
        async with process(server.url, prefix) as a, process(server.url, prefix) as b:
            await a.create()
            listener, published = b.backend.broadcast, trio.Event()
            check = listener._check_positions

            async def late(tasks: list[str]) -> None:
                await published.wait()
                await check(tasks)

            monkeypatch.setattr(listener, "_check_positions", late)
            async with trio.open_nursery() as nursery:
                await nursery.start(results.follow, b)
                await results.seen(1)
                await until(lambda: b.backend.link().pubsub == "up" and not listener._gaps)
                for each in listener._ears.values():
                    monkeypatch.setattr(each, "_heard", lambda bucket, message: None)
                await until(lambda: listener._known.first_read("t") is not None)
                await a.engine.publish("t", [number(1)])
                published.set()
                await results.seen(2)
                await a.complete()
    results.assert_all_saw(3, 1)


@pytest.mark.parametrize("noticed_by", ["listener", "announcement", "positions"])
async def test_who_follows_a_log_that_has_lost_its_end_is_told_so(
    server, prefix, quick, noticed_by
):
    """As after a failover, or a machine's end between two fsyncs: indexes are given anew."""
    items: list[object] = []

    async def follow(one: Process, *, task_status: trio.TaskStatus[None]) -> None:
        async with one.engine.subscribe("t") as subscription:
            task_status.started()
            async for item in subscription:
                items.append(item)

    with trio.fail_after(PATIENCE_S), server.client() as client:
        async with process(server.url, prefix) as a, process(server.url, prefix) as b:
            await a.create()
            async with trio.open_nursery() as nursery:
                await nursery.start(follow, b)
                keys = client.keys(f"{prefix}:*:t")
                before = {key: client.dump(key) for key in keys}
                await a.engine.publish("t", [number(n) for n in range(9)])
                await until(lambda: len(items) == 10 and b.backend.broadcast._heard_of)
                for key, value in before.items():
                    client.restore(key, 0, value, replace=True)
                if noticed_by == "listener":
                    client.client_kill_filter(_type="pubsub")
                elif noticed_by == "announcement":
                    await a.engine.publish("t", [number(42)])
                await until(lambda: any(isinstance(item, Gap) for item in items))
                await a.complete()
    last = [item.entry for item in items if isinstance(item, Delivery)][-1]
    assert last.type == "taskcast:status"
    assert items[10] == Gap("log_replaced", replayed_from=0)


def later(one: Process) -> None:
    """A failover takes a while; in one millisecond an event would get the id of the lost one."""
    one.ahead_ms += 1000


@pytest.mark.parametrize("filtered", [False, True])
async def test_who_follows_a_log_that_lost_its_end_and_grew_past_it_is_told_so(
    server, prefix, filtered
):
    """While its listener was away: no index tells, the newest event that it has had does."""
    items: list[object] = []
    follow_ = Follow(filter=EventFilter(types=("x",))) if filtered else Follow()

    async def follow(one: Process, *, task_status: trio.TaskStatus[None]) -> None:
        async with one.engine.subscribe("t", follow_) as subscription:
            task_status.started()
            async for item in subscription:
                items.append(item)

    with trio.fail_after(PATIENCE_S), server.client() as client:
        async with process(server.url, prefix) as a, process(server.url, prefix) as b:
            await a.create()
            async with trio.open_nursery() as nursery:
                await nursery.start(follow, b)
                before = {key: client.dump(key) for key in client.keys(f"{prefix}:*:t")}
                await a.engine.publish("t", [number(n) for n in range(9)])
                seen = 9 if filtered else 10
                await until(lambda: len(items) == seen and b.backend.broadcast._heard_of)
                (listener,) = b.backend.broadcast._ears.values()
                unheard: list[bytes] = []
                hear = listener._heard
                listener._heard = lambda bucket, message: unheard.append(message)
                for key, value in before.items():
                    client.restore(key, 0, value, replace=True)
                later(a)
                await a.engine.publish("t", [number(n) for n in range(100, 112)])
                await until(lambda: unheard != [])
                listener._heard = hear
                client.client_kill_filter(_type="pubsub")
                await until(lambda: any(isinstance(item, Gap) for item in items))
                await a.complete()
    assert items[seen] == Gap("log_replaced", replayed_from=0)
    after = [item.entry for item in items[seen:] if isinstance(item, Delivery)]
    numbers = [bytes(entry.event.data) for entry in after if entry.type == "x"]  # type: ignore[arg-type]
    assert numbers == [b"%d" % n for n in range(100, 112)]


async def test_who_comes_back_with_an_event_that_was_lost_is_told_so(server, prefix):
    with trio.fail_after(PATIENCE_S), server.client() as client:
        async with process(server.url, prefix) as one:
            await one.create()
            before = {key: client.dump(key) for key in client.keys(f"{prefix}:*:t")}
            lost = await one.engine.publish("t", [number(n) for n in range(9)])
            for key, value in before.items():
                client.restore(key, 0, value, replace=True)
            later(one)
            await one.engine.publish("t", [number(n) for n in range(12)])
            await one.complete()
            for accumulated in (False, True):
                follow = Follow(last_event_id=lost[4].id, accumulated=accumulated)
                async with one.engine.subscribe("t", follow) as subscription:
                    items = [item async for item in subscription]
                assert items[0] == Gap("log_replaced", replayed_from=0)
                assert len(items) == 1 + 14 + 1


async def test_nothing_is_handed_on_between_a_confirmation_and_what_it_makes_read(
    server, prefix, monkeypatch
):
    """A commit that fits would hide that something before it was lost."""
    told: list[str] = []

    class Sink:
        def committed(self, commit: object) -> None:
            told.append("committed")

        def interrupted(self, task_ids: object = None) -> None:
            told.append("interrupted")

    with trio.fail_after(PATIENCE_S):
        async with process(server.url, prefix) as one:
            listener, messages = one.backend.broadcast, list[bytes]()
            hear = listener._heard
            await one.create()
            async with one.engine.subscribe("t"):
                await until(lambda: one.backend.link().pubsub == "up" and not listener._gaps)
                (ear_,) = listener._ears.values()
                ear_._heard = lambda bucket, message: messages.append(message)
                await one.engine.publish("t", [number(1)])
                await until(lambda: messages != [])
                monkeypatch.setattr(listener, "_sink", Sink())
                bucket = bucket_of("t")
                hear(bucket, messages[0])
                listener._confirm(bucket)
                hear(bucket, messages[0])
                await until(lambda: told[-1] == "interrupted")
                hear(bucket, messages[0])
                monkeypatch.undo()
    assert told == ["committed", "interrupted", "committed"]


async def test_a_store_that_was_emptied_ends_the_streams_of_its_tasks(server, prefix, quick):
    results = Results()
    with trio.fail_after(PATIENCE_S):
        async with process(server.url, prefix) as a, process(server.url, prefix) as b:
            await a.create()
            await a.engine.publish("t", [number(1)])
            async with trio.open_nursery() as nursery:
                for one in (a, b, b):
                    await nursery.start(results.follow, one)
                await results.seen(2)
                await until(lambda: b.backend.link().pubsub == "up")
                with server.client() as client:
                    client.flushall()
            results.assert_all_saw(2, 3, reason="deleted")
            await a.create()
            await a.engine.publish("t", [number(1)])


async def test_a_restart_that_lost_everything_ends_the_streams_of_its_tasks(prefix, quick):
    results = Results()
    with running() as server, trio.fail_after(PATIENCE_S):
        async with process(server.url, prefix) as a:
            await a.create()
            async with trio.open_nursery() as nursery:
                await nursery.start(results.follow, a)
                await results.seen(1)
                await trio.to_thread.run_sync(server.stop)
                await trio.to_thread.run_sync(server.start)
            results.assert_all_saw(1, 1, reason="deleted")


async def test_restarts_with_an_append_only_file_lose_nothing_acknowledged(prefix, quick):
    """Killed as in a crash, again and again under publishers: what was answered is there, and each
    subscriber gets all of it.
    """
    results, acknowledged = Results(), set[int]()
    done = trio.Event()
    # With everysec a write may wait for two seconds behind an fsync, answered already.
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    with running(*durable) as server, trio.fail_after(2 * PATIENCE_S):
        async with process(server.url, prefix) as a, process(server.url, prefix) as b:
            assert a.backend.durability == "durable"
            await a.create()

            async def publish(one, start: int) -> None:
                n = start
                while not done.is_set():
                    n += 2
                    try:
                        await one.engine.publish("t", [number(n)])
                    except StoreUnavailable:
                        await trio.sleep(0.01)
                    else:
                        acknowledged.add(n)

            async with trio.open_nursery() as nursery:
                for one in (a, b):
                    await nursery.start(results.follow, one)
                async with trio.open_nursery() as publishers:
                    publishers.start_soon(publish, a, 0)
                    publishers.start_soon(publish, b, 1)
                    for _ in range(5):
                        before = len(acknowledged)
                        await until(lambda before=before: len(acknowledged) > before + 50)
                        await trio.to_thread.run_sync(server.stop, signal.SIGKILL)
                        await trio.to_thread.run_sync(server.start)
                    done.set()
                page = await a.store.read("t", after=0, limit=1_000_000)
                stored = [int(bytes(entry.event.data)) for entry in page.entries]  # type: ignore[arg-type]
                await a.complete()
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored)), "nothing is stored twice"
    results.assert_all_saw(len(stored) + 2, 2)
