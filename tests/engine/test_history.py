"""Reading a log from outside: history and archive are what it was when they were opened."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import UNSET

from taskcast_trio.core.errors import BadRequest, TaskExists, TaskNotFound
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import CreateTask, Draft
from taskcast_trio.engine import HistoryQuery
from taskcast_trio.engine.history import PAGE_EVENTS

from ..follower import draft, latest, piece
from .support import create, move
from .test_subscription import archive_of


async def history(engine, **query):
    opened = await engine.history("t", HistoryQuery(**query))
    return [event async for page in opened.pages() for event in page]


async def indexes(engine, **query):
    return [event.index for event in await history(engine, **query)]


def text(event):
    return msgspec.json.decode(bytes(event.data))["delta"]


async def test_history_is_the_log_in_stored_order_and_cursors_cut_it(engine, autojump_clock):
    await create(engine)
    log = await engine.publish("t", [draft(), latest("1"), draft(), draft(), latest("2")])
    assert await indexes(engine) == [0, 4, 2, 3]
    assert await indexes(engine, limit=2) == [0, 4]
    assert await indexes(engine, since_index=1) == [4, 2, 3]
    assert await indexes(engine, since_index=1e300) == []
    assert await indexes(engine, since_index=-7.5, limit=1) == [0]
    assert await indexes(engine, since_id=log[2].id) == [3]
    assert await indexes(engine, since_id="nope") == [0, 4, 2, 3]
    assert await indexes(engine, since_id=log[2].id, since_index=99) == [3], "the id wins"
    assert await indexes(engine, since_timestamp=log[0].event.timestamp) == []
    assert await indexes(engine, since_timestamp=log[0].event.timestamp - 1) == [0, 4, 2, 3]
    assert await indexes(engine, filter=EventFilter(types=("nope",))) == []
    with pytest.raises(TaskNotFound):
        await engine.history("nope")


async def test_accumulated_history_has_each_series_once_with_its_whole_text(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [piece("a"), draft(), piece("b"), piece("c")])
    events = await history(engine, accumulated=True)
    assert [event.index for event in events] == [3, 1]
    assert (text(events[0]), events[0].series_snapshot) == ("abc", True)
    cut = await history(engine, accumulated=True, since_index=0, limit=2)
    assert [text(event) for event in cut if event.series_id] == ["abc"], "cut pieces count"


async def test_a_long_history_comes_in_pages_and_without_what_came_later(engine, autojump_clock):
    await create(engine)
    for _ in range(3):
        await engine.publish("t", [draft()] * PAGE_EVENTS)
    opened = await engine.history("t")
    seen = []
    async for page in opened.pages():
        assert 0 < len(page) <= PAGE_EVENTS
        seen += [event.index for event in page]
        await engine.publish("t", [draft("later")])
    assert seen == list(range(3 * PAGE_EVENTS))


async def test_a_log_that_is_deleted_ends_its_history(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft()] * (2 * PAGE_EVENTS))
    opened = await engine.history("t")
    pages = opened.pages()
    assert len(await anext(pages)) == PAGE_EVENTS
    await engine.delete("t")
    await create(engine)
    await engine.publish("t", [draft("new")] * (2 * PAGE_EVENTS))
    assert [page async for page in pages] == []


async def test_an_archive_round_trip_keeps_the_task_and_the_values(engine, autojump_clock):
    await engine.create(CreateTask(id="t", type="demo", tags=["a"]))
    await engine.publish("t", [piece("a"), draft(None), piece("b"), latest("1", "l")])
    await engine.publish("t", [latest("2", "l"), Draft(type="bare", level="warn")])
    await move(engine, "running")
    task, values = await engine.get("t"), (await engine.snapshot("t")).values
    archive = await archive_of(engine)
    events = archive.archive.events
    assert [event.index for event in events] == list(range(len(events)))
    imported = await engine.import_task(archive)
    assert (imported.task_id, imported.event_count) == ("t", len(events))
    assert imported.overwritten is True
    assert await engine.get("t") == task
    stored = await history(engine)
    assert [event.type for event in stored] == ["x", "x", "x", "bare", "taskcast:status"]
    assert [bytes(event.data) for event in stored[:2]] == [b'{"delta":"ab"}', b"null"]
    assert stored[3].data is UNSET, "an event without data is one again"
    again = (await engine.snapshot("t")).values
    assert {series: entry.event.data for series, entry in again.items()} == {
        series: entry.event.data for series, entry in values.items()
    }
    assert (await archive_of(engine)).archive.events == events
    (new,) = await engine.publish("t", [piece("c")])
    assert new.index == len(events)
    assert text((await engine.snapshot("t")).values["s"].event) == "abc"


async def test_an_import_needs_leave_to_overwrite_and_a_clean_archive(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft()])
    request = await archive_of(engine)
    with pytest.raises(TaskExists):
        await engine.import_task(msgspec.structs.replace(request, overwrite=False))
    bad_event = msgspec.structs.replace(request.archive.events[0], index=7)
    bad = msgspec.structs.replace(request.archive, events=[bad_event])
    with pytest.raises(BadRequest, match=r"events\[0\]\.index"):
        await engine.import_task(msgspec.structs.replace(request, archive=bad))
    assert await indexes(engine) == [0]


async def test_a_long_archive_is_one_document_of_its_moment(engine, autojump_clock):
    await create(engine)
    for _ in range(3):
        await engine.publish("t", [draft()] * PAGE_EVENTS)
    parts = await engine.archive("t")
    first = await anext(parts)
    await engine.publish("t", [draft("later")])
    text = first + b"".join([part async for part in parts])
    assert len(msgspec.json.decode(text)["events"]) == 3 * PAGE_EVENTS


async def test_an_archive_has_the_value_that_was_replaced_while_it_was_read(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft(), latest("then"), draft()])
    parts = await engine.archive("t")
    first = await anext(parts)
    await engine.publish("t", [latest("later")])
    document = msgspec.json.decode(first + b"".join([part async for part in parts]))
    assert [event["index"] for event in document["events"]] == [0, 1, 2]
    assert document["events"][1]["data"] == {"delta": "then"}


async def test_an_archive_whose_log_goes_away_fails_and_is_not_cut_short(engine, autojump_clock):
    """Half an archive that looks whole would be imported as the task."""
    for replace in (False, True):
        await create(engine)
        await engine.publish("t", [draft()] * (2 * PAGE_EVENTS))
        parts = await engine.archive("t")
        for _ in range(2):
            await anext(parts)
        await engine.delete("t")
        if replace:
            await create(engine)
            await engine.publish("t", [draft("new")] * (2 * PAGE_EVENTS))
        with pytest.raises(TaskNotFound):
            await anext(parts)
