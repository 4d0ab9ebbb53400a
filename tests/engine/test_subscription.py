"""A subscription gets each matching event once and in order, from wherever it starts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from taskcast_trio.core.errors import Draining
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.ids import event_id, parse_event_id
from taskcast_trio.core.model import ImportTask
from taskcast_trio.engine import Follow
from taskcast_trio.engine.history import PAGE_EVENTS

from ..follower import draft, latest, piece, text_of
from .support import (
    Done,
    Gap,
    brief,
    create,
    drain,
    entries,
    follow,
    move,
    numbers,
    value,
)


async def test_replay_then_live_then_done(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft("a"), draft("b")])
    async with engine.subscribe("t") as subscription:
        assert brief(await drain(subscription)) == [0, 1]
        await engine.publish("t", [draft("c")])
        await move(engine, "running", "completed")
        items = await drain(subscription)
        assert brief(items) == [2, 3, 4, Done("completed")]
        assert numbers(items) == [2, 3, 4]
        with pytest.raises(trio.EndOfChannel):
            await subscription.receive()


async def test_iterating_ends_after_done(engine, autojump_clock):
    await create(engine)
    await move(engine, "cancelled")
    async with engine.subscribe("t") as subscription:
        assert brief([item async for item in subscription]) == [0, Done("cancelled")]


async def test_an_iteration_that_is_broken_off_goes_on_where_it_stopped(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft(number) for number in range(4)])
    await move(engine, "cancelled")
    async with engine.subscribe("t") as subscription:
        async for item in subscription:
            if item.entry.index == 1:
                break
        assert brief([await anext(subscription)]) == [2]
        assert brief(await drain(subscription)) == [3, 4, Done("cancelled")]
        assert [item async for item in subscription] == []


async def test_an_unknown_task_ends_at_once_as_deleted(engine, autojump_clock):
    assert await follow(engine, id_="nope") == [Done("deleted")]


async def test_a_long_log_is_replayed_page_by_page(engine, autojump_clock):
    await create(engine)
    for _ in range(3):
        await engine.publish("t", [draft()] * PAGE_EVENTS)
    async with engine.subscribe("t") as subscription:
        first = await subscription.receive()
        assert len(first) == PAGE_EVENTS
        assert brief(first + await drain(subscription)) == list(range(3 * PAGE_EVENTS))


async def test_a_late_join_gets_each_accumulate_series_as_one_snapshot_at_its_newest_place(
    engine, autojump_clock
):
    await create(engine)
    await engine.publish("t", [piece("a"), draft(), piece("b"), draft(), piece("x", "other")])
    async with engine.subscribe("t") as subscription:
        items = await drain(subscription)
        assert brief(items) == [1, 2, 3, 4]
        snapshot = entries(items)[1]
        assert text_of(snapshot) == "ab"
        assert snapshot.event.series_snapshot is True
        await engine.publish("t", [piece("c")])
        (live,) = entries(await drain(subscription))
        assert (text_of(live), live.event.series_snapshot) == ("c", msgspec.UNSET)
    items = await follow(engine, Follow(last_event_id=snapshot.id))
    assert brief(items) == [3, 4, 5], "resuming after a snapshot repeats nothing of it"


@pytest.mark.parametrize("accumulated", [False, True])
async def test_what_is_published_once_it_is_entered_comes_piece_by_piece(
    engine, autojump_clock, accumulated
):
    """Whoever saw a stream begin gets what is published then as it is, however late it reads."""
    await create(engine)
    async with engine.subscribe("t", Follow(accumulated=accumulated)) as subscription:
        await engine.publish("t", [piece("a"), draft(), piece("b")])
        items = await drain(subscription)
    assert brief(items) == [0, 1, 2]
    assert text_of(entries(items)[2]) == ("ab" if accumulated else "b")


async def test_accumulated_sends_the_running_value_live_and_after_a_resume(engine, autojump_clock):
    await create(engine)
    first = await engine.publish("t", [piece("a"), piece("b")])
    async with engine.subscribe("t", Follow(accumulated=True)) as subscription:
        assert [text_of(entry) for entry in entries(await drain(subscription))] == ["ab"]
        await engine.publish("t", [piece("c"), latest("L"), piece("d")])
        texts = [text_of(entry) for entry in entries(await drain(subscription))]
        assert texts == ["abc", "L", "Ld"]
    resumed = await follow(engine, Follow(accumulated=True, last_event_id=first[0].id))
    assert next(text_of(entry) for entry in entries(resumed)) == "ab"
    assert text_of(entries(resumed)[-1]) == "Ld"


async def test_with_any_since_the_stored_pieces_come_one_by_one(engine, autojump_clock):
    await create(engine)
    log = await engine.publish("t", [piece("a"), piece("b"), piece("c")])
    items = await follow(engine, Follow(since_id=log[0].id, resumed=True))
    assert [text_of(entry) for entry in entries(items)] == ["b", "c"]
    items = await follow(engine, Follow(resumed=True))
    assert [text_of(entry) for entry in entries(items)] == ["a", "b", "c"]


async def test_a_running_value_counts_what_the_limit_of_the_replay_left_out(engine, autojump_clock):
    """The replay is cut, the value is not: it goes on from what the series really is."""
    await create(engine)
    await engine.publish("t", [piece("a"), piece("b"), piece("c")])
    asked = Follow(accumulated=True, resumed=True, limit=1)
    async with engine.subscribe("t", asked) as subscription:
        assert [text_of(entry) for entry in entries(await drain(subscription))] == ["a"]
        await engine.publish("t", [piece("d")])
        assert [text_of(entry) for entry in entries(await drain(subscription))] == ["abcd"]


async def test_a_piece_behind_which_latest_came_is_replayed_as_it_was(engine, autojump_clock):
    """The newest value of the series is no part of the pieces that came before it."""
    await create(engine)
    await engine.publish("t", [piece("a"), piece("b"), latest("L")])
    for asked in (Follow(), Follow(accumulated=True)):
        items = await follow(engine, asked)
        assert [text_of(entry) for entry in entries(items)] == ["a", "L"]


async def test_a_snapshot_whose_newest_piece_is_replaced_while_it_is_replayed_still_comes(
    engine, autojump_clock
):
    """The pieces before that one are owed, and nothing else stands for them."""
    await create(engine)
    await engine.publish("t", [piece("a"), draft(), piece("b"), draft()])
    store, read_places = engine.store, engine.store.read_places

    async def read_behind_a_publisher(task_id, **query):
        store.read_places = read_places
        await engine.publish("t", [latest("L")])
        return await read_places(task_id, **query)

    store.read_places = read_behind_a_publisher
    items = await follow(engine)
    assert brief(items) == [1, 2, 3, 4]
    assert [text_of(entry) for entry in entries(items) if entry.event.series_id] == ["ab", "L"]


async def test_since_id_cuts_the_stored_order_and_numbers_start_anew(engine, autojump_clock):
    await create(engine)
    log = await engine.publish("t", [draft(), latest("1"), draft(), draft()])
    await engine.publish("t", [latest("2")])
    items = await follow(engine, Follow(since_id=log[0].id, resumed=True))
    assert brief(items) == [4, 2, 3], "the new value stands where the first one stood"
    assert numbers(items) == [0, 1, 2]
    unknown = await follow(engine, Follow(since_id="nope", resumed=True))
    assert brief(unknown) == [0, 4, 2, 3], "an unknown since.id is the start, and no gap"


async def test_since_timestamp_cuts_by_time(engine, autojump_clock):
    await create(engine)
    (old,) = await engine.publish("t", [draft()])
    await trio.sleep(1)
    await engine.publish("t", [draft()])
    since = Follow(since_timestamp=old.event.timestamp, resumed=True)
    assert brief(await follow(engine, since)) == [1]


async def test_since_index_skips_by_filtered_index_and_keeps_the_numbers(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft("x"), draft("y"), draft("z")])
    items = await follow(engine, Follow(since_index=1, resumed=True))
    assert (brief(items), numbers(items)) == ([2], [2])


async def test_limit_keeps_the_oldest_of_the_replay_and_never_cuts_what_is_live(
    engine, autojump_clock
):
    await create(engine)
    await engine.publish("t", [draft(number) for number in range(5)])
    async with engine.subscribe("t", Follow(limit=2)) as subscription:
        assert brief(await drain(subscription)) == [0, 1]
        await engine.publish("t", [draft(), draft(), draft()])
        items = await drain(subscription)
        assert (brief(items), numbers(items)) == ([5, 6, 7], [2, 3, 4])


async def test_a_filter_counts_only_what_passes_and_done_always_comes(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft("a")])
    asked = Follow(filter=EventFilter(types=("x",), include_status=False))
    async with engine.subscribe("t", asked) as subscription:
        await move(engine, "running")
        await engine.publish("t", [draft("b")])
        await move(engine, "failed")
        items = await drain(subscription)
    assert brief(items) == [0, 2, Done("failed")]
    assert numbers(items) == [0, 1]


async def test_a_cursor_resumes_exactly_after_it_and_beats_since(engine, autojump_clock):
    await create(engine)
    log = await engine.publish("t", [draft(number) for number in range(5)])
    for index in range(5):
        wanted = list(range(index + 1, 5))
        asked = Follow(last_event_id=log[index].id, since_index=99, since_id=log[4].id)
        assert brief(await follow(engine, asked)) == wanted


async def test_the_id_of_a_replaced_event_is_still_a_place(engine, autojump_clock):
    await create(engine)
    (replaced,) = await engine.publish("t", [latest("1")])
    await engine.publish("t", [draft(), latest("2")])
    assert brief(await follow(engine, Follow(last_event_id=replaced.id))) == [1, 2]


@pytest.mark.parametrize("cursor", ["", "nope", "0" * 26, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "\x00"])
async def test_an_unknown_cursor_is_a_gap_and_then_everything(engine, cursor, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft(), piece("a"), piece("b")])
    items = await follow(engine, Follow(last_event_id=cursor))
    assert brief(items) == [Gap("unknown_cursor", 0), 0, 2]
    assert text_of(entries(items)[-1]) == "ab"


async def test_a_cursor_ahead_of_the_log_is_unknown(engine, autojump_clock):
    await create(engine)
    (first,) = await engine.publish("t", [draft()])
    ahead = first.id[:-1] + "5"
    items = await follow(engine, Follow(last_event_id=ahead))
    assert brief(items) == [Gap("unknown_cursor", 0), 0]


async def test_a_cursor_of_another_life_of_the_task_is_a_gap(engine, autojump_clock):
    await create(engine)
    (old,) = await engine.publish("t", [draft("old")])
    await engine.delete("t")
    await create(engine)
    await engine.publish("t", [draft("new")])
    items = await follow(engine, Follow(last_event_id=old.id))
    assert brief(items) == [Gap("unknown_cursor", 0), 0]
    assert [value(entry) for entry in entries(items)] == ["new"]


async def test_delete_ends_the_stream(engine, autojump_clock):
    await create(engine)
    async with engine.subscribe("t") as subscription:
        await engine.publish("t", [draft()])
        await drain(subscription)
        await engine.delete("t")
        assert await drain(subscription) == [Done("deleted")]


async def test_deleted_and_created_again_behind_a_lagging_cursor_is_a_gap(engine, autojump_clock):
    await create(engine)
    async with engine.subscribe("t") as subscription:
        for number in range(9):
            await engine.publish("t", [draft(number)])
        await drain(subscription)
        for number in range(9):
            await engine.publish("t", [draft(number)])
        await engine.delete("t")
        await create(engine)
        await engine.publish("t", [draft("new")])
        items = await drain(subscription)
    assert brief(items)[-2:] == [Gap("log_replaced", 0), 0]
    assert value(entries(items)[-1]) == "new"


async def archive_of(engine, id_="t"):
    parts = [part async for part in await engine.archive(id_)]
    body = b'{"archive":%b,"overwrite":true}' % b"".join(parts)
    return msgspec.json.decode(body, type=ImportTask)


async def test_an_import_over_a_followed_task_is_a_gap_and_goes_on(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft("kept")])
    archive = await archive_of(engine)
    async with engine.subscribe("t", Follow(since_index=0)) as subscription:
        await engine.publish("t", [draft("lost")])
        assert brief(await drain(subscription)) == [1]
        await engine.import_task(archive)
        await engine.publish("t", [draft("after")])
        items = await drain(subscription)
    assert brief(items) == [Gap("log_replaced", 0), 0, 1], "replayed from 0 means all of it"
    assert [value(entry) for entry in entries(items)] == ["kept", "after"]


async def test_a_full_inbox_falls_back_to_the_store_and_goes_live_again(
    runtime, engine, autojump_clock
):
    await create(engine)
    async with engine.subscribe("t") as subscription:
        await drain(subscription)
        for number in range(50):
            await engine.publish("t", [draft(number)])
        assert brief(await drain(subscription)) == list(range(50))
        lagged = runtime.metrics.registry.get_sample_value("taskcast_subscribers_lagged_total")
        assert lagged == 46, "an inbox of 4 was cut by the fifth commit"
        await engine.publish("t", [draft("live")])
        assert brief(await drain(subscription)) == [50]
        lagged = runtime.metrics.registry.get_sample_value("taskcast_subscribers_lagged_total")
        assert lagged == 46, "and is live again"


async def test_lost_announcements_are_read_from_the_store(
    runtime, engine, monkeypatch, autojump_clock
):
    """A commit that does not start where the cursor stands tells of those that never arrived."""
    await create(engine)
    fanout = engine.fanout
    async with engine.subscribe("t") as subscription:
        await drain(subscription)
        with monkeypatch.context() as patch:
            patch.setattr(runtime.backend.broadcast, "announce", lambda commit: None)
            patch.setattr(engine.store, "_announce", lambda commit: None)
            await engine.publish("t", [draft("lost"), draft("lost")])
        assert await drain(subscription) == []
        await engine.publish("t", [draft("heard")])
        assert brief(await drain(subscription)) == [0, 1, 2]
        with monkeypatch.context() as patch:
            patch.setattr(engine.store, "_announce", lambda commit: None)
            await engine.publish("t", [draft("lost")])
        fanout.interrupted()
        assert brief(await drain(subscription)) == [3], "so does a broadcast that was away"


async def test_cancelling_a_receive_loses_nothing(engine, autojump_clock):
    await create(engine)
    async with engine.subscribe("t") as subscription:
        seen = []
        for number in range(20):
            await engine.publish("t", [draft(number)])
            with trio.CancelScope() as scope:
                scope.cancel()
                seen += await subscription.receive()
        seen += await drain(subscription)
    assert brief(seen) == list(range(20))


async def test_who_follows_is_counted_until_it_leaves(runtime, engine, autojump_clock):
    await create(engine)
    gauge = runtime.metrics.registry.get_sample_value
    async with engine.subscribe("t"), engine.subscribe("t"):
        view = await engine.get("t")
        assert (view.hot, view.subscriber_count) == (True, 2)
        assert gauge("taskcast_subscribers", {"kind": "task"}) == 2
    view = await engine.get("t")
    assert (view.hot, view.subscriber_count) == (False, 0)
    assert gauge("taskcast_subscribers", {"kind": "task"}) == 0


async def test_draining_ends_a_subscription_after_what_was_queued(runtime, engine, autojump_clock):
    await create(engine)
    async with engine.subscribe("t") as subscription:
        await drain(subscription)
        await engine.publish("t", [draft()])
        runtime.drain.set()
        await trio.testing.wait_all_tasks_blocked()
        assert brief(await subscription.receive()) == [0]
        for _ in range(2):
            with pytest.raises(Draining):
                await subscription.receive()
    with pytest.raises(Draining):
        async with engine.subscribe("t"):
            pass
    assert (await engine.get("t")).subscriber_count == 0


async def test_finished_knows_a_cursor_that_has_seen_it_all(engine, autojump_clock):
    await create(engine)
    (first,) = await engine.publish("t", [draft()])
    assert await engine.finished("t", Follow(last_event_id=first.id)) is None, "it still runs"
    await move(engine, "cancelled")
    last = entries(await follow(engine))[-1]
    assert await engine.finished("t", Follow(last_event_id=last.id)) == "cancelled"
    assert await engine.finished("t", Follow(last_event_id=first.id)) is None
    quiet = Follow(last_event_id=first.id, filter=EventFilter(include_status=False))
    assert await engine.finished("t", quiet) == "cancelled", "what is left does not pass the filter"
    assert await engine.finished("t", Follow(last_event_id="nope")) is None
    assert await engine.finished("t", Follow()) is None


async def test_finished_takes_no_other_event_for_one_that_the_log_has_lost(engine, autojump_clock):
    """A failover lost it, and another one has its index."""
    await create(engine)
    await engine.publish("t", [draft()])
    await move(engine, "cancelled")
    last = entries(await follow(engine))[-1]
    position = parse_event_id(last.id)
    assert position is not None
    lost = Follow(last_event_id=event_id(1, position.epoch, position.index))
    async with engine.subscribe("t", lost) as subscription:
        assert (await drain(subscription))[0] == Gap("log_replaced", replayed_from=0)
    assert await engine.finished("t", lost) is None


# Pumping


async def test_a_pump_whose_inbox_overflows_goes_on_from_the_log(engine, autojump_clock):
    """Nothing else happens that could wake it: what was cut must not wait for the next commit."""
    await create(engine)
    pumped: list[Any] = []
    async with engine.subscribe("t") as subscription, trio.open_nursery() as nursery:
        assert await subscription.replay() == []
        nursery.start_soon(pump, subscription, pumped)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(10):  # the inbox holds four
            nursery.start_soon(engine.publish, "t", [draft(number)])
        await trio.testing.wait_all_tasks_blocked()
        assert [entry.index for entry in pumped] == list(range(10))
        nursery.cancel_scope.cancel()


async def test_a_pump_is_told_of_the_drain_though_a_commit_came_just_before(engine, autojump_clock):
    await create(engine)
    async with engine.subscribe("t") as subscription, trio.open_nursery() as nursery:
        assert await subscription.replay() == []
        drained = trio.Event()

        async def until_drained() -> None:
            with pytest.raises(Draining):
                await pump(subscription, [])
            drained.set()

        nursery.start_soon(until_drained)
        await trio.testing.wait_all_tasks_blocked()
        await engine.publish("t", [draft(0)])
        engine.fanout.close()
        with trio.fail_after(1):
            await drained.wait()


async def pump(subscription, pumped):
    """Follow as a stream over a link does, for ever."""

    def write(items):
        for item in items:
            pumped.extend(item.entries)
        return True

    while True:
        write(await subscription.replay())
        await subscription.pump(write, trio.sleep_forever, trio.CancelScope())
