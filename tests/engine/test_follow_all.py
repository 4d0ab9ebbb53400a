"""Following every task: those created from now on, whatever happens to the inbox meanwhile."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from taskcast_trio.core.errors import Draining
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.engine import FollowAllOptions
from taskcast_trio.engine.history import PAGE_EVENTS

from ..follower import draft
from .support import create, drain_all, move, value
from .test_subscription import archive_of


def places(entries):
    return [(entry.event.task_id, entry.index) for entry in entries]


async def test_tasks_created_from_now_on_are_followed_and_those_before_are_not(
    engine, autojump_clock
):
    await create(engine, "old")
    async with engine.follow_all() as events:
        await create(engine, "new")
        await engine.publish("old", [draft()])
        await engine.publish("new", [draft()])
        await create(engine, "newer")
        await engine.publish("newer", [draft(), draft()])
        assert places(await drain_all(events)) == [("new", 0), ("newer", 0), ("newer", 1)]


async def test_existing_also_follows_from_now_on_the_tasks_that_live(engine, autojump_clock):
    await create(engine, "old")
    await create(engine, "ended")
    await engine.publish("old", [draft("before")])
    await move(engine, "cancelled", id_="ended")
    async with engine.follow_all(FollowAllOptions(existing=True)) as events:
        await engine.publish("old", [draft("after")])
        entries = await drain_all(events)
    assert [value(entry) for entry in entries] == ["after"]


async def test_a_filter_counts_here_too(engine, autojump_clock):
    options = FollowAllOptions(filter=EventFilter(types=("taskcast:status",)))
    async with engine.follow_all(options) as events:
        await create(engine)
        await engine.publish("t", [draft()])
        await move(engine, "running", "completed")
        assert places(await drain_all(events)) == [("t", 1), ("t", 2)]


async def test_an_import_is_no_creation(engine, autojump_clock):
    await create(engine, "source")
    await engine.publish("source", [draft()])
    archive = await archive_of(engine, "source")
    await engine.delete("source")
    async with engine.follow_all() as events:
        await engine.import_task(archive)
        await engine.publish("source", [draft()])
        assert await drain_all(events) == []


async def test_an_import_over_a_followed_task_goes_on_with_what_comes_after(engine, autojump_clock):
    async with engine.follow_all() as events:
        await create(engine)
        await engine.publish("t", [draft(1)])
        archive = await archive_of(engine)
        await drain_all(events)
        await engine.import_task(archive)
        await engine.publish("t", [draft("after")])
        assert [value(entry) for entry in await drain_all(events)] == ["after"]


async def test_a_lagging_follower_misses_nothing_of_old_and_new_tasks(engine, autojump_clock):
    async with engine.follow_all() as events:
        await create(engine, "first")
        await drain_all(events)
        for number in range(10):
            await engine.publish("first", [draft(number)])
            await create(engine, f"t{number}")
            await engine.publish(f"t{number}", [draft(), draft()])
        await move(engine, "running", "completed", id_="t9")
        entries = await drain_all(events)
        wanted = {("first", index) for index in range(10)}
        wanted |= {(f"t{number}", index) for number in range(10) for index in range(2)}
        wanted |= {("t9", 2), ("t9", 3)}
        assert len(entries) == len(wanted)
        assert set(places(entries)) == wanted
        for name in ("first", "t9"):
            mine = [entry.index for entry in entries if entry.event.task_id == name]
            assert mine == sorted(mine)
        await engine.publish("t3", [draft("live")])
        assert places(await drain_all(events)) == [("t3", 2)]


async def test_a_lag_as_long_as_a_log_is_read_in_pages(engine, autojump_clock):
    """What waits to be taken is bounded by a page or so, however much was missed."""
    async with engine.follow_all() as events:
        await create(engine)
        for _ in range(8):
            await engine.publish("t", [draft()] * PAGE_EVENTS)
        lists = []
        with trio.move_on_after(1):
            while True:
                lists.append(await events.receive())
        entries = [entry for batch in lists for entry in batch]
        assert places(entries) == [("t", index) for index in range(8 * PAGE_EVENTS)]
        # The four commits that the inbox held come first, and as one list.
        assert max(len(batch) for batch in lists[1:]) <= 2 * PAGE_EVENTS


async def test_a_task_that_lived_and_ended_during_the_catch_up_comes_once(engine, autojump_clock):
    """Its commits are in the new inbox, and the catch-up reads it too."""
    async with engine.follow_all() as events:
        await create(engine, "first")
        await drain_all(events)
        for number in range(10):
            await engine.publish("first", [draft(number)])
        store, read = engine.store, engine.store.read

        async def read_after_a_life_between(task_id, **query):
            if task_id == "first":
                await create(engine, "brief")
                await move(engine, "running", "completed", id_="brief")
                store.read = read
            return await read(task_id, **query)

        assert len(await events.receive()) == 4, "what the inbox held"
        store.read = read_after_a_life_between
        entries = await drain_all(events)
    assert places(entries) == [("first", index) for index in range(4, 10)] + [
        ("brief", 0),
        ("brief", 1),
    ]


async def test_a_task_deleted_and_created_again_during_a_lag_is_a_new_one(engine, autojump_clock):
    async with engine.follow_all() as events:
        await create(engine)
        for _ in range(6):
            await engine.publish("t", [draft("old")])
        await drain_all(events)
        for _ in range(6):
            await engine.publish("t", [draft("old")])
        await engine.delete("t")
        await create(engine)
        await engine.publish("t", [draft("new")])
        entries = await drain_all(events)
    assert value(entries[-1]) == "new"
    assert entries[-1].index == 0


async def test_a_task_created_again_and_ended_during_a_lag_comes_once(engine, autojump_clock):
    async with engine.follow_all() as events:
        await create(engine)
        await drain_all(events)
        for _ in range(6):
            await engine.publish("t", [draft("old")])
        await engine.delete("t")
        await create(engine)
        await move(engine, "running", "completed")
        entries = await drain_all(events)
        assert places(entries)[-2:] == [("t", 0), ("t", 1)]
        assert len({entry.id for entry in entries}) == len(entries)
        await create(engine, "next")
        await engine.publish("next", [draft()])
        assert places(await drain_all(events)) == [("next", 0)]


async def test_an_iteration_that_is_broken_off_goes_on_where_it_stopped(engine, autojump_clock):
    async with engine.follow_all() as events:
        await create(engine)
        await engine.publish("t", [draft(number) for number in range(4)])
        async for entry in events:
            if entry.index == 1:
                break
        assert (await anext(events)).index == 2
        assert places(await drain_all(events)) == [("t", 3)]


async def test_deleted_tasks_are_forgotten_and_one_of_the_same_id_is_followed(
    engine, autojump_clock
):
    async with engine.follow_all() as events:
        await create(engine)
        await engine.publish("t", [draft(1)])
        await engine.delete("t")
        await create(engine)
        await engine.publish("t", [draft(2)])
        assert [value(entry) for entry in await drain_all(events)] == [1, 2]


async def test_tasks_created_during_a_lag_are_found_when_the_newest_one_known_was_deleted(
    engine, autojump_clock
):
    """Even those of the same millisecond."""
    async with engine.follow_all() as events:
        await create(engine, "first")
        await drain_all(events)
        await create(engine, "newest")
        await engine.publish("newest", [draft()])
        await drain_all(events)
        for number in range(10):
            await create(engine, f"t{number}")
            await engine.publish(f"t{number}", [draft()])
            if number == 5:
                await engine.delete("newest")
                await engine.delete("t1")
        entries = await drain_all(events)
    wanted = {(f"t{number}", 0) for number in range(10)}
    assert set(places(entries)) | {("t1", 0)} == wanted
    assert len(set(places(entries))) == len(entries)


async def test_the_newest_task_known_is_no_landmark_once_it_was_created_again(
    engine, autojump_clock
):
    """The inbox of four commits knows of t0 and t1; then t1 comes again, behind those missed."""
    async with engine.follow_all() as events:
        for number in range(5):
            await create(engine, f"t{number}")
            await engine.publish(f"t{number}", [draft()])
        await engine.delete("t1")
        await create(engine, "t1")
        await engine.publish("t1", [draft("again")])
        entries = await drain_all(events)
    assert sorted(places(entries)) == [(f"t{number}", 0) for number in (0, 1, 1, 2, 3, 4)]


async def test_cancelling_a_receive_loses_nothing(engine, autojump_clock):
    async with engine.follow_all() as events:
        await create(engine)
        entries = []
        for number in range(30):
            await engine.publish("t", [draft(number)])
            with trio.CancelScope() as scope:
                scope.cancel()
                entries += await events.receive()
        entries += await drain_all(events)
    assert places(entries) == [("t", index) for index in range(30)]


async def test_it_is_counted_until_it_leaves_and_is_no_subscriber_of_a_task(
    runtime, engine, autojump_clock
):
    gauge = runtime.metrics.registry.get_sample_value
    async with engine.follow_all():
        await create(engine)
        assert (await engine.get("t")).subscriber_count == 0
        assert gauge("taskcast_subscribers", {"kind": "global"}) == 1
    assert gauge("taskcast_subscribers", {"kind": "global"}) == 0


async def test_draining_ends_it(runtime, engine, autojump_clock):
    async with engine.follow_all() as events:
        await create(engine)
        await engine.publish("t", [draft()])
        runtime.drain.set()
        await trio.testing.wait_all_tasks_blocked()
        assert places(await events.receive()) == [("t", 0)]
        for _ in range(2):
            with pytest.raises(Draining):
                await events.receive()
