"""What the tests of the long-term store build their cases from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import Event, Task
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.postgres import PostgresStore
from taskcast_trio.storage.records import TaskRecord

EPOCH = "EPOCH001"


def record_of(
    task_: Task, *, revision: int = 0, epoch: str = EPOCH, next_index: int = 0
) -> TaskRecord:
    return TaskRecord(task_, revision=revision, epoch=epoch, next_index=next_index)


async def archive(
    hot: MemoryStore, store: PostgresStore, id_: str = "t", *, page: int = 1000
) -> None:
    """What the archiver does, with nothing in its way."""
    more = True
    while more:
        record = await hot.get(id_)
        assert record is not None
        after = await store.archived_index(id_, record.epoch)
        read = await hot.read(id_, after=after, limit=page)
        assert await store.save(read.record, read.entries)
        more = read.more


async def all_pages(read: Callable[..., Any], place: str, **more: int) -> list[Entry]:
    entries: list[Entry] = []
    after = -1
    while True:
        page = await read("t", **{place: after}, limit=3, **more)
        entries += page.entries
        if not page.more:
            return entries
        after = getattr(page.entries[-1], "index" if place == "after" else "place")


def events(entries: Sequence[Entry]) -> list[tuple[Event, int]]:
    return [(entry.event, entry.place) for entry in entries]


async def assert_alike(hot: MemoryStore, store: PostgresStore) -> None:
    """Every question has the same answer as of the memory store."""
    record = await hot.get("t")
    assert record is not None
    assert await store.load("t") == record
    in_order = await all_pages(hot.read, "after")
    assert events(await all_pages(store.read, "after")) == events(in_order)
    for after_index in (-1, 0, 2, record.next_index - 2):
        got = await all_pages(store.read_places, "after_place", after_index=after_index)
        owed = await all_pages(hot.read_places, "after_place", after_index=after_index)
        assert events(got) == events(owed)
    mine, theirs = await store.snapshot("t"), await hot.snapshot("t")
    assert mine.record == theirs.record
    assert {k: (v.event, v.place) for k, v in mine.values.items()} == {
        k: (v.event, v.place) for k, v in theirs.values.items()
    }
    for entry in in_order:
        found = await store.find("t", entry.id)
        assert found is not None
        assert events([found]) == events([entry])
