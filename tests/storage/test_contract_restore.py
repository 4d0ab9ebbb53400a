"""The contract of moving a task between two stores: restore it here, release it from here."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import TaskExists, TaskNotFound
from taskcast_trio.storage.records import Former, TaskRecord

from .support import (
    DAY,
    NOW,
    append,
    draft,
    event,
    key,
    latest,
    piece,
    read_all,
    read_all_places,
    task,
    text,
)


async def copied(open_backend, *drafts, former=()):
    """The record and the log of a task in another store of this kind."""
    async with open_backend() as other:
        await other.store.create(task(status="running"), epoch="EPOCH001", now_ms=NOW)
        for each in drafts:
            await append(other.store, each)
        record = await other.store.get("t")
        return replace(record, former=former), await read_all(other.store)


def seen(entries):
    return [(e.index, e.place, e.id, bytes(e.event.data)) for e in entries]


async def test_a_restored_log_reads_as_it_was(open_backend, store):
    record, entries = await copied(
        open_backend, piece("a"), latest("1", "p"), piece("b"), latest("2", "p"), draft(7)
    )
    await store.restore(record, entries)
    assert await store.get("t") == record
    assert seen(await read_all(store)) == seen(entries)
    assert [e.index for e in await read_all_places(store)] == [0, 3, 2, 4]
    snapshot = await store.snapshot("t")
    assert {s: text(v) for s, v in snapshot.values.items()} == {"s": "ab", "p": "2"}
    found = await store.find("t", entries[0].id)
    assert found is not None
    assert found.index == 0


async def test_a_restored_log_goes_on_where_it_stopped(open_backend, store):
    record, entries = await copied(open_backend, piece("a"), latest("1", "p"), latest("2", "p"))
    await store.restore(record, entries)
    commit = await append(store, piece("b"), latest("3", "p"), draft())
    assert [(e.index, e.place) for e in commit.entries] == [(3, 3), (4, 1), (5, 5)]
    assert commit.record.revision == record.revision
    snapshot = await store.snapshot("t")
    assert {s: text(v) for s, v in snapshot.values.items()} == {"s": "ab", "p": "3"}
    assert [e.index for e in await read_all(store)] == [0, 3, 4, 5]


async def test_holes_at_the_end_are_given_to_nobody(store):
    record = TaskRecord(task(), revision=4, epoch="EPOCH002", next_index=5)
    await store.restore(record, [Entry(event(1, id_="foreign"), 0)])
    commit = await append(store, draft())
    assert commit.first_index == 5
    assert [(e.index, e.place) for e in await read_all_places(store)] == [(1, 0), (5, 5)]
    found = await store.find("t", "foreign")
    assert found is not None
    assert found.place == 0


async def test_epochs_of_before_are_kept_by_every_step(open_backend, store):
    former = (Former("EPOCH001", 2),)
    record, entries = await copied(open_backend, draft(1), draft(2))
    record = replace(record, epoch="EPOCH002", former=former, imported=True)
    await store.restore(record, entries)
    commit = await append(store, draft(3))
    assert commit.record.former == former
    commit = await store.transition(
        task(status="completed"),
        [draft(4)],
        revision=record.revision,
        epoch="EPOCH002",
        now_ms=NOW,
    )
    assert commit.record.former == former
    assert (await store.get("t")) == commit.record
    assert (await store.read("t", after=-1, limit=1)).record.former == former
    assert commit.record.imported
    assert commit.record.holds("EPOCH001", 1)
    assert not commit.record.holds("EPOCH001", 2)
    assert commit.record.holds("EPOCH002", 3)
    found = await store.find("t", entries[1].id)
    assert found is not None
    assert found.index == 1


async def test_a_task_that_is_here_is_not_restored(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    with pytest.raises(TaskExists):
        await store.restore(TaskRecord(task(), revision=1, epoch="EPOCH002", next_index=0), [])
    record = await store.get("t")
    assert record is not None
    assert record.epoch == "EPOCH001"


async def test_a_restore_is_announced_as_a_log_that_goes_on(open_backend, store, announced):
    record, entries = await copied(open_backend, draft(1))
    await store.restore(record, entries)
    await append(store, draft(2))
    restored, appended = await announced.first(2)
    assert (restored.record, restored.entries) == (record, ())
    assert not restored.created
    assert not restored.replaced
    assert appended.first_index == 1


async def test_timestamps_of_a_restored_log_do_not_go_back(open_backend, store):
    record = TaskRecord(task(), revision=0, epoch="EPOCH002", next_index=1)
    await store.restore(record, [Entry(event(0, at=NOW + 500), 0)])
    commit = await append(store, draft(), at=NOW)
    assert commit.entries[0].event.timestamp == NOW + 500


async def test_timers_are_set_with_the_restore(store):
    record = TaskRecord(task(), revision=0, epoch="EPOCH002", next_index=0)
    await store.restore(record, [], timers={"a": NOW + 1})
    assert await store.next_due("a") == NOW + 1


async def ended(store, *, idempotency=None):
    """A task that has ended; its revision is 1."""
    await store.create(task(), epoch="EPOCH001", now_ms=NOW, timers={"a": NOW})
    await store.append("t", [piece("a")], now_ms=NOW, idempotency=idempotency)
    await store.transition(task(status="completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW)


async def test_a_released_task_is_gone_and_nobody_is_told(store, announced):
    await ended(store)
    assert await store.release("t", epoch="EPOCH001", revision=1, now_ms=NOW)
    assert await store.get("t") is None
    assert await store.count() == 0
    assert await store.list_tasks() == []
    assert await store.next_due("a") is None
    with pytest.raises(TaskNotFound):
        await store.read("t", after=-1, limit=1)
    assert len(await announced.first(3)) == 3


async def test_a_released_task_can_be_restored(open_backend, store):
    await ended(store)
    record, entries = await store.get("t"), await read_all(store)
    await store.release("t", epoch="EPOCH001", revision=1, now_ms=NOW)
    await store.restore(record, entries)
    assert await store.get("t") == record
    assert seen(await read_all(store)) == seen(entries)


async def test_only_what_has_ended_as_it_was_seen_is_released(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW)
    assert not await store.release("t", epoch="EPOCH001", revision=0, now_ms=NOW), "it lives"
    await store.delete("t")
    await ended(store)
    assert not await store.release("t", epoch="EPOCH001", revision=0, now_ms=NOW)
    assert not await store.release("t", epoch="OTHER001", revision=1, now_ms=NOW)
    assert not await store.release("other", epoch="EPOCH001", revision=1, now_ms=NOW)
    assert await store.get("t") is not None


async def test_a_task_whose_keys_may_be_asked_for_is_not_released(store):
    await ended(store, idempotency=key())
    assert not await store.release("t", epoch="EPOCH001", revision=1, now_ms=NOW + DAY - 1)
    answer = await store.repeated("t", key(), now_ms=NOW + DAY - 1)
    assert answer is not None
    assert await store.release("t", epoch="EPOCH001", revision=1, now_ms=NOW + DAY)


async def test_a_task_with_a_timer_that_says_so_is_not_released(store):
    await ended(store)
    end = {"epoch": "EPOCH001", "revision": 1, "now_ms": NOW}
    assert not await store.release("t", **end, unless=("b", "a"))
    assert await store.get("t") is not None
    await store.set_timer("t", "a", None)
    assert await store.release("t", **end, unless=("b", "a"))


async def test_a_repeat_on_a_restored_log_knows_the_epochs_of_before(open_backend, store):
    record, entries = await copied(open_backend, draft(1))
    record = replace(record, epoch="EPOCH002", former=(Former("EPOCH001", 1),))
    await store.restore(record, entries)
    first = await store.append("t", [draft(2)], now_ms=NOW, idempotency=key())
    await append(store, draft(3))
    for answer in (
        await store.append("t", [draft(2)], now_ms=NOW, idempotency=key()),
        await store.repeated("t", key(), now_ms=NOW),
    ):
        assert answer is not None
        assert answer.record == first.record
        assert seen(answer.entries) == seen(first.entries)


async def test_a_log_that_was_trimmed_is_taken_in_as_it_is(store):
    entries = [Entry(event(n, n), n) for n in (1, 3)]
    record = TaskRecord(task(status="completed"), 2, "EPOCH001", 5, trimmed=2, trims=3)
    await store.restore(record, entries)
    found = await store.get("t")
    assert found == record
    assert [entry.index for entry in await read_all(store)] == [1, 3]
    assert await store.trim("t", [3, 4], epoch="EPOCH001") == 1
