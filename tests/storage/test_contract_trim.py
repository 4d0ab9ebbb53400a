"""Trimming: events of an ended task go, what stays is where it was, and the log says how far."""

from __future__ import annotations

from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import Draft
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import TaskRecord

from .support import (
    NOW,
    Announced,
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
    value,
)

EPOCH = "EPOCH001"


async def ended(store: ShortTermStore, *drafts: Draft, id_: str = "t") -> TaskRecord:
    """A task with these events and a last one that tells of its end."""
    await store.create(task(id_), epoch=EPOCH, now_ms=NOW)
    commit = await append(store, *drafts, id_=id_)
    end = replace(commit.record.task, status="completed", completed_at=NOW)
    commit = await store.transition(
        end, [draft("end")], revision=0, epoch=commit.record.epoch, now_ms=NOW
    )
    return commit.record


async def trim(store: ShortTermStore, *indexes: int, epoch: str = EPOCH) -> int:
    return await store.trim("t", indexes, epoch=epoch)


def indexes(entries: list[Entry]) -> list[int]:
    return [entry.index for entry in entries]


async def record(store: ShortTermStore) -> TaskRecord:
    found = await store.get("t")
    assert found is not None
    return found


async def test_what_is_trimmed_is_gone_and_the_rest_stays_where_it_is(
    store: ShortTermStore,
) -> None:
    before = await ended(store, *(draft(n) for n in range(6)))
    ids = [entry.id for entry in await read_all(store)]
    assert await trim(store, 0, 3, 4) == 3
    kept = await read_all(store)
    assert indexes(kept) == [1, 2, 5, 6]
    assert [entry.id for entry in kept] == [ids[n] for n in (1, 2, 5, 6)]
    assert [value(entry) for entry in kept] == [1, 2, 5, "end"]
    assert indexes(await read_all_places(store, limit=2)) == [1, 2, 5, 6]
    assert await store.find("t", ids[3]) is None
    found = await store.find("t", ids[5])
    assert found is not None
    assert found.index == 5
    assert await record(store) == replace(before, trimmed=4, trims=3)
    assert (await store.snapshot("t")).record == replace(before, trimmed=4, trims=3)


async def test_a_repeat_finds_nothing_and_the_highest_index_stays_known(
    store: ShortTermStore,
) -> None:
    await ended(store, *(draft(n) for n in range(6)))
    assert await trim(store, 5, 2, 2) == 2
    assert await trim(store, 5, 2) == 0
    assert await trim(store, 99, -1, 7, 2**62) == 0
    assert await trim(store) == 0
    assert await trim(store, 1, 2) == 1
    found = await record(store)
    assert (found.trimmed, found.trims) == (5, 3)


async def test_all_of_a_log_can_go_and_its_pages_end(store: ShortTermStore) -> None:
    await ended(store, *(draft(n) for n in range(40)))
    assert await trim(store, *range(20)) == 20
    assert await trim(store, *range(20, 41)) == 21
    for limit in (1, 7, 100):
        assert await read_all(store, limit=limit) == []
        assert await read_all_places(store, limit=limit) == []
    assert (await record(store)).next_index == 41


async def test_a_living_task_another_life_and_a_stranger_are_left_alone(
    store: ShortTermStore,
) -> None:
    await store.create(task(), epoch=EPOCH, now_ms=NOW)
    await append(store, draft(1))
    assert await trim(store, 0) == 0
    assert await store.trim("other", [0], epoch=EPOCH) == 0
    await store.import_task(task(status="failed"), [event(0)], epoch="EPOCH002", overwrite=True)
    assert await trim(store, 0) == 0
    assert indexes(await read_all(store)) == [0]
    assert await trim(store, 0, epoch="EPOCH002") == 1


async def test_nobody_is_told(store: ShortTermStore, announced: Announced) -> None:
    await ended(store, draft(1))
    await announced.first(3)
    assert await trim(store, 0) == 1
    await store.delete("t")
    assert (await announced.first(4))[-1].deleted


async def test_a_value_stays_as_it_was_until_its_last_event_goes(store: ShortTermStore) -> None:
    await ended(store, piece("a"), piece("b"), piece("c"), piece("x", "other"), piece("y", "other"))
    was = (await store.snapshot("t")).values
    assert {series: text(entry) for series, entry in was.items()} == {"s": "abc", "other": "xy"}
    for gone in ([1], [2], [4]):
        await trim(store, *gone)
        now = (await store.snapshot("t")).values
        assert {s: (e.event, e.place) for s, e in now.items()} == {
            s: (e.event, e.place) for s, e in was.items()
        }
    await trim(store, 0)
    values = (await store.snapshot("t")).values
    assert {series: text(entry) for series, entry in values.items()} == {"other": "xy"}
    await trim(store, 3)
    assert (await store.snapshot("t")).values == {}


async def test_a_value_of_which_the_text_changed_its_field_stays_as_it_was(
    store: ShortTermStore,
) -> None:
    other = replace(draft({"delta": "b", "note": "c"}, "s"), series_acc_field="note")
    await ended(store, draft({"delta": "a", "note": "n"}, "s"), other, piece("d"))
    was = (await store.snapshot("t")).values["s"]
    assert value(was) == {"delta": "bd"}
    for gone in (0, 2):
        assert await trim(store, gone) == 1
        now = (await store.snapshot("t")).values["s"]
        assert (now.event, now.place) == (was.event, was.place)
    assert await trim(store, 1) == 1
    assert (await store.snapshot("t")).values == {}


async def test_a_repeat_is_answered_with_what_was_trimmed_since(store: ShortTermStore) -> None:
    await store.create(task(), epoch=EPOCH, now_ms=NOW)
    drafts = [draft(1), latest("a"), draft(2), piece("b")]
    first = await store.append("t", drafts, now_ms=NOW, idempotency=key())
    await append(store, draft(3), latest("c"))
    end = replace(first.record.task, status="completed", completed_at=NOW)
    await store.transition(end, [], revision=0, epoch=EPOCH, now_ms=NOW)
    assert await trim(store, 0, 2, 4) == 3
    assert await trim(store, 5) == 1
    again = await store.append("t", drafts, now_ms=NOW, idempotency=key())
    assert again.repeated
    assert [entry.event for entry in again.entries] == [entry.event for entry in first.entries]
    assert again.record == replace(first.record, trimmed=5, trims=4)


async def test_events_that_moved_are_trimmed_by_their_index(store: ShortTermStore) -> None:
    await ended(store, latest("1"), draft("x"), latest("2"), draft("y"), latest("3"))
    assert indexes(await read_all_places(store)) == [4, 1, 3, 5]
    assert await trim(store, 0, 2) == 0, "they were replaced"
    assert await trim(store, 4, 1) == 2
    assert indexes(await read_all_places(store)) == [3, 5]
    assert indexes(await read_all(store)) == [3, 5]
    assert (await store.snapshot("t")).values == {}


async def test_trimmed_ids_from_elsewhere_are_not_found(store: ShortTermStore) -> None:
    events = [event(n, n) for n in range(4)]
    await store.import_task(task(status="failed"), events, epoch=EPOCH, overwrite=False)
    assert await trim(store, 1) == 1
    assert await store.find("t", "foreign-1") is None
    found = await store.find("t", "foreign-2")
    assert found is not None
    assert found.index == 2
    assert (await record(store)).trimmed == 1


async def test_later_steps_keep_how_far_the_log_was_trimmed(store: ShortTermStore) -> None:
    await ended(store, draft(1), draft(2))
    await trim(store, 1)
    found = await record(store)
    await store.put_task_note("t", "n", b"1", epoch=EPOCH, timers={"x": NOW})
    await store.set_timer("t", "y", NOW)
    assert await record(store) == found
    assert (await store.list_tasks())[0] == found
    await store.import_task(task(status="failed"), [event(0)], epoch="EPOCH002", overwrite=True)
    again = await record(store)
    assert (again.trimmed, again.trims) == (-1, 0)


async def test_due_timers_are_listed_without_being_taken(store: ShortTermStore) -> None:
    for n, id_ in enumerate("cab"):
        await store.create(task(id_), epoch=f"EPOCH00{n}", now_ms=NOW, timers={"k": NOW + n})
    await store.create(task("d"), epoch="EPOCH009", now_ms=NOW, timers={"other": NOW})
    for _ in range(2):
        due = await store.list_due("k", now_ms=NOW + 1, limit=10)
        assert [(timer.task_id, timer.due_ms) for timer in due] == [("c", NOW), ("a", NOW + 1)]
    assert [t.task_id for t in await store.list_due("k", now_ms=NOW + 9, limit=1)] == ["c"]
    await store.delete("c")
    assert [t.task_id for t in await store.list_due("k", now_ms=NOW + 9, limit=9)] == ["a", "b"]
