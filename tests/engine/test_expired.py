"""Subscribers of a log that was trimmed: those that had a cursor are told, those that come late
see what is left.
"""

from __future__ import annotations

import pytest
from msgspec import UNSET

from taskcast_trio.client import draft
from taskcast_trio.engine import Delivery, Done, Follow, Gap
from taskcast_trio.server.sse import encode

from .support import brief, create, drain, entries, follow, move, value

EXPIRED = Gap("events_expired", 0)


def piece(text, series="s"):
    return draft("llm.delta", {"delta": text}, series=series, mode="accumulate")


async def log_of(engine, *drafts):
    """An ended task: 0 is the status event of its start, then these, then that of its end."""
    await create(engine)
    await move(engine, "running")
    await engine.publish("t", drafts)
    await move(engine, "completed")
    page = await engine.store.read("t", after=-1, limit=10_000)
    return [entry.id for entry in page.entries]


async def trim(engine, *indexes):
    record = await engine.record("t")
    assert await engine.store.trim("t", indexes, epoch=record.epoch) == len(indexes)


def ends_with(items, reason="completed"):
    assert isinstance(items[-1], Done)
    assert items[-1].reason == reason
    return brief(items[:-1])


async def test_a_cursor_below_what_was_trimmed_is_told_and_follows_what_is_left(
    autojump_clock, engine
):
    ids = await log_of(engine, *(draft("x", n) for n in range(4)))
    await trim(engine, 2, 3)
    for index in (0, 1, 2):
        got = ends_with(await follow(engine, Follow(last_event_id=ids[index])))
        assert got == [EXPIRED, 0, 1, 4, 5]
    for index in (3, 4):
        got = ends_with(await follow(engine, Follow(last_event_id=ids[index])))
        assert got == list(range(index + 1, 6)), "nothing after it is gone"


async def test_a_first_replay_is_told_nothing(autojump_clock, engine):
    await log_of(engine, *(draft("x", n) for n in range(4)))
    await trim(engine, 0, 2)
    assert ends_with(await follow(engine)) == [1, 3, 4, 5]
    assert ends_with(await follow(engine, Follow(accumulated=True))) == [1, 3, 4, 5]
    assert ends_with(await follow(engine, Follow(limit=1))) == [1]


@pytest.mark.parametrize(
    ("cursor", "told"),
    [
        (lambda ids: Follow(since_id=ids[1], resumed=True), True),
        (lambda ids: Follow(since_id=ids[2], resumed=True), True),
        (lambda ids: Follow(since_id=ids[4], resumed=True), False),
        (lambda ids: Follow(since_id="who knows", resumed=True), False),
        (lambda ids: Follow(since_index=1, resumed=True), True),
        (lambda ids: Follow(since_timestamp=0, resumed=True), True),
        (lambda ids: Follow(since_timestamp=2e12, resumed=True), False),
    ],
)
async def test_the_cursors_of_the_contract_are_told_too(autojump_clock, engine, cursor, told):
    ids = await log_of(engine, *(draft("x", n) for n in range(4)))
    await trim(engine, 2)
    items = await follow(engine, cursor(ids))
    assert (EXPIRED in items) is told
    if told:
        assert ends_with(items) == [EXPIRED, 0, 1, 3, 4, 5]


async def test_a_replay_under_way_is_told_once_and_begins_anew(autojump_clock, engine):
    await log_of(engine, *(draft("x", n) for n in range(1000)))
    async with engine.subscribe("t") as subscription:
        first = await subscription.receive()
        await trim(engine, *range(100))
        second = await subscription.receive()
        await trim(engine, *range(100, 900))
        rest = await drain(subscription)
    assert brief(first) == list(range(len(first)))
    assert second == [EXPIRED]
    assert ends_with(rest) == list(range(900, 1002))


async def test_a_second_trim_below_the_first_is_told_too(autojump_clock, engine):
    await log_of(engine, *(draft("x", n) for n in range(1000)))
    await trim(engine, 999)
    async with engine.subscribe("t") as subscription:
        await subscription.receive()
        await trim(engine, 500)
        rest = await drain(subscription)
    assert rest[0] == EXPIRED
    assert 500 not in brief(rest)


async def test_catching_up_is_told_of_what_goes_ahead_of_it_only(autojump_clock, engine):
    ids = await log_of(engine, *(draft("x", n) for n in range(1000)))
    for gone, told in ((10, False), (900, True)):
        async with engine.subscribe("t", Follow(last_event_id=ids[200])) as subscription:
            first = await subscription.receive()
            await trim(engine, gone)
            rest = await drain(subscription)
        if told:
            assert rest[0] == EXPIRED
        else:
            assert ends_with([*first, *rest]) == list(range(201, 1002))


async def test_whoever_comes_late_sees_the_whole_text_of_a_series(autojump_clock, engine):
    await log_of(engine, *map(piece, "abc"), draft("x", 0))
    for gone, index in ((1, 3), (2, 3)):
        await trim(engine, gone)
        items = await follow(engine)
        (text,) = [entry for entry in entries(items) if entry.type == "llm.delta"]
        assert (text.index, value(text)) == (index, {"delta": "abc"})
        assert text.event.series_snapshot is True


async def test_where_the_newest_piece_is_gone_the_text_comes_at_the_end(autojump_clock, engine):
    await log_of(engine, *map(piece, "abc"), draft("x", 0), *map(piece, "xy", "oo"))
    await trim(engine, 3, 6)
    items = await follow(engine)
    assert [(e.index, value(e)) for e in entries(items) if e.type == "llm.delta"] == [
        (3, {"delta": "abc"}),
        (6, {"delta": "xy"}),
    ]
    assert ends_with(items) == [0, 4, 7, 3, 6]
    assert isinstance(items[-2], Delivery)
    assert not items[-2].resumable, "its index is behind that of the events before it"


async def test_a_series_without_an_event_left_is_not_replayed(autojump_clock, engine):
    await log_of(engine, *map(piece, "abc"))
    await trim(engine, 1, 2, 3)
    assert ends_with(await follow(engine)) == [0, 4]
    assert (await engine.snapshot("t")).values == {}


async def test_running_values_are_never_joined_from_what_is_left(autojump_clock, engine):
    ids = await log_of(engine, *map(piece, "abcde"))
    await trim(engine, 1)
    for cursor in (
        Follow(last_event_id=ids[3], accumulated=True),
        Follow(since_id=ids[3], resumed=True, accumulated=True),
    ):
        items = await follow(engine, cursor)
        texts = [value(entry) for entry in entries(items) if entry.type == "llm.delta"]
        assert texts in ([{"delta": "abcde"}], [])
        assert items[0] == EXPIRED


async def test_the_end_of_a_trimmed_log_is_a_cursor_so_that_resuming_ends(autojump_clock, engine):
    ids = await log_of(engine, draft("x", 0))
    assert (await follow(engine))[-1] == Done("completed"), "of a whole log it is the last event"
    await trim(engine, 1, 2)
    told = await follow(engine, Follow(last_event_id=ids[0]))
    assert brief(told[:-1]) == [EXPIRED, 0]
    end = told[-1]
    assert isinstance(end, Done)
    assert end.cursor is not None
    assert b"\nid: " + end.cursor.encode() + b"\n" in encode(end)
    assert await engine.finished("t", Follow(last_event_id=ids[0])) is None
    assert await engine.finished("t", Follow(last_event_id=end.cursor)) == "completed"
    assert await engine.finished("t", Follow()) is None
    assert brief(await follow(engine, Follow(last_event_id=end.cursor)))[:-1] == []


async def test_the_history_and_the_archive_have_what_is_left(autojump_clock, engine):
    await log_of(engine, *map(piece, "abc"), draft("x", UNSET))
    await trim(engine, 2, 3, 4)
    history = await engine.history("t")
    assert [e.index async for page in history.pages() for e in page] == [0, 1, 5]
    text = b"".join([part async for part in await engine.archive("t")])
    assert b'"delta":"abc"' in text
    assert b'"index":2' in text
    assert b'"index":3' not in text
