"""What timers, values and moves cost on SQLite, and what is left of them in the file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskcast_trio.core.errors import StoreUnavailable, TaskNotFound
from taskcast_trio.core.model import Draft
from taskcast_trio.storage.records import Former, TaskRecord, Timer
from taskcast_trio.storage.sqlite import SqliteBackend, open_sqlite

from .sqlite_support import (
    Gate,
    reader_connections,
    rows_of,
    statements,
    work_of,
    writer_connection,
)
from .support import NOW, append, draft, latest, piece, read_all, task, text

PAST = NOW - 1_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    async with open_sqlite(path, synchronous="normal") as opened:
        await opened.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        yield opened


async def wake(store, due, *, drafts=(), kind="a"):
    await store.append("t", drafts, now_ms=NOW, wake={kind: due})


def of_timers(told: list[str]) -> list[str]:
    return [statement for statement in told if "timers" in statement]


async def together(backend: SqliteBackend, *steps) -> None:
    """Run the steps in one transaction, in this order."""
    gate = Gate(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, backend.store, draft("holds the writer"))
        await gate.reached()
        for step in steps:
            nursery.start_soon(step)
            await wait_all_tasks_blocked()
        gate.open()


# What an append costs


async def test_an_append_that_wakes_nothing_knows_nothing_of_timers(backend):
    await wake(backend.store, NOW)
    with statements(backend) as told:
        await append(backend.store, piece("a"), latest("b"), draft())
    assert told
    assert of_timers(told) == []


async def test_many_appends_of_one_batch_write_a_timer_once(backend):
    with statements(backend) as told:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(wake, backend.store, NOW + 300 - number)
    assert len(of_timers(told)) <= told.count("COMMIT") <= 5
    assert await backend.store.next_due("a") == NOW + 1


async def test_a_timer_that_is_early_enough_is_neither_read_nor_written(backend, path):
    await wake(backend.store, NOW)
    with statements(backend) as told:
        await wake(backend.store, NOW, drafts=[draft()])
        await wake(backend.store, NOW + 1, drafts=[draft()])
    assert of_timers(told) == []


async def test_what_is_not_remembered_of_timers_is_read_once(backend, path):
    await wake(backend.store, NOW)
    backend.store.writer._heads.clear()
    with statements(backend) as told:
        for due in (NOW + 1, NOW + 2, NOW):
            await wake(backend.store, due, drafts=[draft()])
    assert len(of_timers(told)) == 1
    assert await backend.store.next_due("a") == NOW


async def test_looking_for_what_is_due_costs_as_much_among_many_timers_as_among_few(backend):
    store, works = backend.store, []

    async def create(number: int) -> None:
        await store.create(
            task(f"t{number}"), epoch="EPOCH001", now_ms=NOW, timers={"a": NOW + 9, "b": NOW + 9}
        )

    for numbers in (range(2), range(2, 1_000)):
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(create, number)
        taking = store.take_due("a", now_ms=NOW, lease_ms=9, limit=9)
        works.append(await work_of([writer_connection(backend)], taking))
        works.append(await work_of(reader_connections(backend), store.next_due("a")))
    assert works[2] <= works[0] + 5
    assert works[3] <= works[1] + 5


# What is remembered is what is stored


async def test_what_was_taken_is_woken_again(backend):
    store = backend.store
    await wake(store, NOW)
    assert await store.take_due("a", now_ms=NOW, lease_ms=9, limit=9) == [Timer("t", "a", NOW + 9)]
    await wake(store, NOW + 1)
    assert await store.next_due("a") == NOW + 1


async def test_the_steps_of_one_batch_see_each_others_timers(backend):
    store, taken = backend.store, {}

    async def take(number: int) -> None:
        taken[number] = await store.take_due("a", now_ms=NOW, lease_ms=9, limit=9)

    await together(
        backend,
        lambda: wake(store, NOW),
        lambda: take(1),
        lambda: take(2),
        lambda: wake(store, NOW - 1),
        lambda: take(3),
        lambda: store.set_timer("t", "a", None, if_due=NOW + 9),
        lambda: wake(store, NOW + 5),
        lambda: store.set_timer("t", "b", NOW),
        lambda: store.set_timer("t", "b", None),
    )
    one = [Timer("t", "a", NOW + 9)]
    assert taken == {1: one, 2: [], 3: one}
    assert (await store.next_due("a"), await store.next_due("b")) == (NOW + 5, None)


async def test_a_task_that_dies_in_the_batch_that_woke_it_leaves_no_timers(backend, path):
    store = backend.store
    await together(
        backend,
        lambda: wake(store, NOW),
        lambda: store.put_task_note("t", "n", b"v", epoch="EPOCH001", timers={"b": NOW}),
        lambda: store.import_task(task(), [], epoch="EPOCH002", overwrite=True),
        lambda: wake(store, NOW + 5, kind="c"),
    )
    assert (await store.next_due("a"), await store.next_due("b")) == (None, None)
    assert await store.next_due("c") == NOW + 5
    assert (rows_of(path, "timers"), rows_of(path, "task_notes")) == (1, 0)


async def test_a_batch_that_was_undone_has_woken_nothing(path):
    async with open_sqlite(path, max_pages=60) as backend:
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW, timers={"a": NOW + 9})
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await wake(store, NOW, drafts=[draft("y" * 900_000)])
        assert await store.next_due("a") == NOW + 9
        await wake(store, NOW + 1)
        assert await store.next_due("a") == NOW + 1


async def test_a_step_that_breaks_the_batch_takes_no_timers_with_it(backend):
    store = backend.store

    async def broken() -> None:
        with pytest.raises(UnicodeEncodeError):
            await wake(store, PAST, drafts=[Draft(type="\ud800", level="info")])

    await together(backend, lambda: wake(store, NOW), broken, lambda: wake(store, NOW + 1))
    assert await store.next_due("a") == NOW
    with statements(backend) as told:
        await wake(store, NOW)
    assert of_timers(told) == []


# What is in the file


async def test_timers_and_values_are_there_when_the_file_is_opened_again(path):
    async with open_sqlite(path) as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW, timers={"a": NOW})
        await backend.store.put_task_note("t", "n", b"\x00v", epoch="EPOCH001")
    async with open_sqlite(path) as backend:
        store = backend.store
        assert await store.task_notes("t") == {"n": b"\x00v"}
        assert await store.take_due("a", now_ms=NOW, lease_ms=9, limit=9)
        assert await store.set_timer("t", "a", None, if_due=NOW + 9)
    assert rows_of(path, "timers") == 0


@pytest.mark.parametrize("end", ["delete", "release"])
async def test_what_hangs_on_a_task_is_gone_with_the_step_that_ends_it(backend, path, end):
    store = backend.store
    await append(store, *[draft("x")] * 3_000)
    await store.put_task_note("t", "n", b"v", epoch="EPOCH001", timers={"a": NOW, "b": NOW})
    await store.transition(task(status="completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW)
    if end == "delete":
        assert await store.delete("t")
    else:
        assert await store.release("t", epoch="EPOCH001", revision=1, now_ms=NOW)
    assert [rows_of(path, table) for table in ("tasks", "timers", "task_notes")] == [0, 0, 0]
    with trio.fail_after(10):
        while rows_of(path, "events") or rows_of(path, "logs"):
            await store.put_note("n", b"", expires_ms=None, now_ms=NOW)


async def test_ids_of_former_epochs_take_no_room_and_are_read_as_they_were(backend, path):
    store = backend.store
    await append(store, *map(piece, "abc"))
    entries = await read_all(store)
    ids = [entry.id for entry in entries]
    former = (Former("EPOCH001", 3),)
    await store.delete("t")
    await store.restore(TaskRecord(task(), 0, "EPOCH002", 3, former=former), entries)
    commit = await append(store, piece("d"))
    assert rows_of(path, "events WHERE id IS NOT NULL") == 0
    assert [entry.id for entry in await read_all(store)] == [*ids, commit.entries[0].id]
    for index, id_ in enumerate(ids):
        found = await store.find("t", id_)
        assert found is not None
        assert found.index == index


# Values that are kept do not outlive a task that left quietly


async def ended(store, *drafts):
    """The revision and the log of a task that has ended."""
    await append(store, *drafts)
    await store.transition(task(status="completed"), [], revision=0, epoch="EPOCH001", now_ms=NOW)
    return {"epoch": "EPOCH001", "revision": 1, "now_ms": NOW}, await read_all(store)


async def test_values_that_are_kept_go_with_a_release(backend):
    store = backend.store
    released, entries = await ended(store, piece("a"), piece("b"))
    await store.snapshot("t")
    assert await store.release("t", **released)
    with pytest.raises(TaskNotFound):
        await store.snapshot("t")
    await store.restore(TaskRecord(task(), 2, "EPOCH001", 2), entries[1:])
    snapshot = await store.snapshot("t")
    assert (snapshot.record.revision, text(snapshot.values["s"])) == (2, "b")


async def test_values_that_were_read_before_a_release_are_not_kept(backend):
    store = backend.store
    released, _ = await ended(store, piece("a"))
    gate = Gate(backend, look=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.snapshot, "t")
        await gate.reached()
        assert await store.release("t", **released)
        gate.open()
    with pytest.raises(TaskNotFound):
        await store.snapshot("t")


async def test_hastening_costs_a_task_without_that_timer_nothing(path: Path) -> None:
    async with open_sqlite(path, synchronous="normal") as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
    async with open_sqlite(path, synchronous="normal") as backend:
        await backend.store.append("t", [draft()], now_ms=NOW, hasten={"a": NOW})  # looks once
        with statements(backend) as told:
            for _ in range(3):
                await backend.store.append("t", [draft()], now_ms=NOW, hasten={"a": NOW})
        assert told
        assert of_timers(told) == []
