"""The contract of tasks: one create wins, one transition wins, lists page in order, imports come as
they are.
"""

from __future__ import annotations

from functools import partial

import pytest
import trio

from taskcast_trio.core.errors import (
    BadRequest,
    RevisionConflict,
    TaskEnded,
    TaskExists,
    TaskNotFound,
)

from .support import (
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
    value,
)


async def create(store, id_="t", epoch="EPOCH001", **fields):
    return await store.create(task(id_, **fields), epoch=epoch, now_ms=NOW)


async def move(store, status, record, drafts=(), **changes):
    expected = {"revision": record.revision, "epoch": record.epoch} | changes
    return await store.transition(task(status=status), drafts, now_ms=NOW, **expected)


async def test_a_created_task_is_read_as_it_was_given(store):
    assert await store.get("t") is None
    commit = await create(store, type="demo", tags=["a", "a"])
    assert commit.created
    assert not commit.repeated
    assert list(commit.entries) == []
    record = await store.get("t")
    assert record == commit.record
    assert record.task == task(type="demo", tags=["a", "a"])
    assert (record.epoch, record.next_index, record.imported) == ("EPOCH001", 0, False)


async def test_of_parallel_creates_with_one_id_exactly_one_wins(store):
    won, lost = [], []

    async def attempt(number: int) -> None:
        try:
            won.append((await create(store, epoch=f"EPOCH{number:03}", type=str(number))).record)
        except TaskExists:
            lost.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(attempt, number)
    assert len(won) == 1
    assert len(lost) == 19
    assert await store.get("t") == won[0]
    assert await store.count() == 1


async def test_a_transition_replaces_the_task_and_appends_in_one_step(store):
    record = (await create(store)).record
    await append(store, draft("before"))
    commit = await move(store, "running", record, [draft("moved")])
    assert commit.record.task == task(status="running")
    assert [value(entry) for entry in commit.entries] == ["moved"]
    assert (commit.first_index, commit.record.next_index) == (1, 2)
    assert await store.get("t") == commit.record
    assert commit.record.revision > record.revision


async def test_appending_does_not_change_the_revision(store):
    record = (await create(store)).record
    await append(store, draft())
    assert (await move(store, "running", record)).record.task.status == "running"


@pytest.mark.parametrize("changed", [{"revision": 7}, {"epoch": "EPOCH002"}])
async def test_a_transition_of_what_the_task_no_longer_is_stores_nothing(store, changed):
    record = (await create(store)).record
    with pytest.raises(RevisionConflict):
        await move(store, "running", record, [draft()], **changed)
    assert await store.get("t") == record
    assert await read_all(store) == []


async def test_of_parallel_transitions_from_one_revision_exactly_one_wins(store):
    record = (await create(store)).record
    won, lost = [], []

    async def attempt(status) -> None:
        try:
            await move(store, status, record, [draft(status)])
        except RevisionConflict:
            lost.append(status)
        else:
            won.append(status)

    statuses = ["completed", "failed", "timeout", "cancelled"] * 5
    async with trio.open_nursery() as nursery:
        for status in statuses:
            nursery.start_soon(attempt, status)
    assert len(won) == 1
    assert len(lost) == 19
    after = await store.get("t")
    assert after is not None
    assert after.task.status == won[0]
    assert [value(entry) for entry in await read_all(store)] == won


async def test_a_transition_of_an_unknown_task_says_so(store):
    with pytest.raises(TaskNotFound):
        await store.transition(task(), [], revision=0, epoch="EPOCH001", now_ms=NOW)


@pytest.mark.parametrize("status", ["completed", "failed", "timeout", "cancelled"])
async def test_a_task_that_ended_takes_no_events(store, status):
    record = (await create(store)).record
    await move(store, status, record, [draft()])
    with pytest.raises(TaskEnded):
        await append(store, draft())
    assert len(await read_all(store)) == 1


async def test_lists_are_in_order_of_creation_and_page(backend):
    store = backend.store
    names = [f"t{number}" for number in (3, 1, 4, 15, 9, 2, 6)]
    for number, name in enumerate(names):
        # A clock that goes back; where two stores are listed as one, the time is the order.
        await create(store, name, at=NOW if backend.provider == "tiered" else NOW - number)
    assert [record.task.id for record in await store.list_tasks()] == names
    assert [record.task.id for record in await store.list_tasks(limit=3)] == names[:3]
    paged = []
    page = await store.list_tasks(limit=2)
    while page:
        paged += [record.task.id for record in page]
        page = await store.list_tasks(after=paged[-1], limit=2)
    assert paged == names
    with pytest.raises(BadRequest):
        await store.list_tasks(after="nope")
    assert await store.count() == len(names)


async def test_lists_filter_by_status_and_type_before_the_limit(store):
    for number in range(6):
        kind = "even" if number % 2 == 0 else "odd"
        record = (await create(store, f"t{number}", type=kind)).record
        if number >= 3:
            running = task(record.task.id, "running", type=record.task.type)
            await store.transition(running, [], revision=0, epoch=record.epoch, now_ms=NOW)

    async def ids(**query):
        return [record.task.id for record in await store.list_tasks(**query)]

    assert await ids(statuses=frozenset({"pending"})) == ["t0", "t1", "t2"]
    assert await ids(statuses=frozenset({"running", "failed"}), type_="odd") == ["t3", "t5"]
    assert await ids(statuses=frozenset({"running"}), type_="odd", limit=1) == ["t3"]
    assert await ids(type_="odd", after="t1", limit=1) == ["t3"]
    assert await ids(statuses=frozenset()) == []
    assert await ids(type_="ev") == []


async def test_lists_stay_in_order_while_tasks_come_and_go(store):
    alive = []
    for number in range(300):
        await create(store, f"t{number}")
        alive.append(f"t{number}")
        if number % 3:
            assert await store.delete(alive.pop(number % len(alive)))
    assert [record.task.id for record in await store.list_tasks()] == alive
    middle = len(alive) // 2
    after = await store.list_tasks(after=alive[middle])
    assert [record.task.id for record in after] == alive[middle + 1 :]


async def test_delete_leaves_nothing_that_the_next_task_of_this_id_could_meet(store):
    await store.create(task(), epoch="EPOCH001", now_ms=NOW, idempotency=key("create"))
    old = await store.append("t", [piece("old"), latest("x", "l")], now_ms=NOW, idempotency=key())
    assert await store.delete("t")
    assert await store.get("t") is None
    assert await store.count() == 0
    assert await store.repeated("t", key(), now_ms=NOW) is None
    again = await store.create(
        task(), epoch="EPOCH002", now_ms=NOW, idempotency=key("create", b"another request")
    )
    assert not again.repeated
    record = again.record
    assert (record.epoch, record.revision, record.next_index) == ("EPOCH002", 0, 0)
    assert (await store.snapshot("t")).values == {}
    assert await read_all(store) == []
    assert await store.find("t", old.entries[0].id) is None
    new = await store.append("t", [piece("new")], now_ms=NOW, idempotency=key("k", b"other"))
    assert new.entries[0].index == 0
    assert new.entries[0].id != old.entries[0].id, "one ms, one index, another life: another id"
    assert text((await store.snapshot("t")).values["s"]) == "new"
    with pytest.raises(RevisionConflict):
        await store.transition(task(), [], revision=0, epoch="EPOCH001", now_ms=NOW)


async def test_deleting_what_is_not_there_is_told(store):
    assert await store.delete("t") is False


async def test_an_import_is_stored_as_given_and_goes_on(store):
    events = [event(0, {"delta": "a"}, at=NOW - 9), event(1, 1, at=NOW + 9)]
    series = [
        type(one)(
            **{name: getattr(one, name) for name in one.__struct_fields__}
            | {"series_id": "s", "series_mode": "accumulate"}
        )
        for one in events[:1]
    ]
    events[:1] = series
    commit = await store.import_task(task(), events, epoch="EPOCH001", overwrite=False)
    assert not commit.created
    assert not commit.replaced
    assert list(commit.entries) == []
    assert commit.record.imported
    assert commit.record.next_index == 2
    assert [entry.event for entry in await read_all(store)] == events
    assert [entry.event for entry in await read_all_places(store)] == events
    for one in events:
        found = await store.find("t", one.id)
        assert found is not None
        assert found.event == one
    more = await append(store, piece("b"))
    assert more.entries[0].index == 2
    assert more.entries[0].event.timestamp == NOW + 9, "times do not go back, imported ones neither"
    assert text((await store.snapshot("t")).values["s"]) == "ab"
    assert [record.task.id for record in await store.list_tasks()] == ["t"]


async def test_a_latest_event_replaces_an_imported_one(store):
    first = await create(store)
    await append(store, latest("1"), draft())
    events = [entry.event for entry in await read_all(store)]
    commit = await store.import_task(task(), events, epoch="EPOCH002", overwrite=True)
    assert commit.replaced
    assert commit.record.epoch != first.record.epoch
    new = await append(store, latest("2"))
    assert [entry.id for entry in await read_all_places(store)] == [
        new.entries[0].id,
        events[1].id,
    ]
    assert await store.find("t", events[0].id) is None


async def test_an_import_over_a_task_needs_leave_and_makes_a_new_log(store):
    await create(store, "first")
    await create(store)
    await create(store, "last")
    old = await store.append("t", [piece("old")], now_ms=NOW, idempotency=key())
    with pytest.raises(TaskExists):
        await store.import_task(task(), [], epoch="EPOCH002", overwrite=False)
    assert await store.get("t") == old.record
    commit = await store.import_task(task(), [event(0)], epoch="EPOCH002", overwrite=True)
    assert commit.replaced
    assert commit.record.epoch == "EPOCH002"
    assert await store.find("t", old.entries[0].id) is None
    assert (await store.snapshot("t")).values == {}
    assert await store.repeated("t", key(), now_ms=NOW) is None
    assert [record.task.id for record in await store.list_tasks()] == ["first", "t", "last"]
    assert await store.count() == 3


async def test_of_parallel_imports_without_leave_exactly_one_wins(store):
    outcomes = []

    async def attempt(number: int) -> None:
        events = [event(index, number) for index in range(number)]
        attempt = partial(store.import_task, task(), events, epoch=f"EPOCH{number:03}")
        try:
            outcomes.append(await attempt(overwrite=False))
        except TaskExists:
            outcomes.append(None)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(attempt, number)
    won = [commit for commit in outcomes if commit]
    assert len(won) == 1
    entries = await read_all(store)
    assert [value(entry) for entry in entries] == [won[0].record.next_index] * len(entries)
