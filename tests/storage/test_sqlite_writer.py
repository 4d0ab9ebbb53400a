"""What the SQLite writer promises: shared commits, answers only after them, nothing by halves."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskcast_trio.core.errors import StoreUnavailable, TaskNotFound
from taskcast_trio.core.model import Draft
from taskcast_trio.storage.sqlite import SqliteBackend, open_sqlite
from taskcast_trio.storage.sqlite.batch import Batch
from taskcast_trio.storage.sqlite.writer import QUEUED_STEPS, Writer

from .sqlite_support import Gate, listening, rows_of, statements, writer_connection
from .support import (
    NOW,
    PATIENCE_S,
    append,
    assert_dense,
    draft,
    key,
    latest,
    piece,
    read_all,
    task,
    text,
    value,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    async with open_sqlite(path) as opened:
        await opened.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        yield opened


async def test_steps_that_come_while_a_commit_runs_share_the_next_one(backend):
    """300 publishers at once need a handful of commits, and keep their events whole."""

    async def publish(number: int) -> None:
        await append(backend.store, draft([number, 0]), draft([number, 1]))

    with statements(backend) as told:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(publish, number)
    assert 1 <= told.count("COMMIT") <= 5
    entries = await read_all(backend.store)
    assert_dense(entries)
    pairs = [value(entry) for entry in entries]
    assert sorted(pairs[::2]) == [[number, 0] for number in range(300)]
    assert pairs[1::2] == [[number, 1] for number, _ in pairs[::2]]


async def test_nobody_is_answered_or_told_before_the_commit(backend, announced):
    answers = []

    async def publish() -> None:
        answers.append(await append(backend.store, draft()))

    gate = Gate(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await gate.reached()
        assert (answers, announced.commits) == ([], [])
        record = await backend.store.get("t")
        assert record is not None
        assert record.next_index == 0
        gate.open()
    assert announced.commits == answers


async def test_steps_are_announced_in_their_order_before_any_of_them_is_answered(
    backend, announced
):
    seen = []

    async def publish() -> None:
        await append(backend.store, draft())
        seen.append(len(announced.commits))

    gate = Gate(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await gate.reached()
        for _ in range(3):
            nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        gate.open()
    assert seen == [1, 4, 4, 4]
    assert [commit.first_index for commit in announced.commits] == [0, 1, 2, 3]


async def test_a_step_that_is_cancelled_before_its_turn_leaves_nothing(backend, announced):
    gate = Gate(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, backend.store, draft("first"))
        await gate.reached()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(append, backend.store, draft("second"))
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        gate.open()
    await append(backend.store, draft("third"))
    assert [value(entry) for entry in await read_all(backend.store)] == ["first", "third"]
    assert len(announced.commits) == 2


async def test_a_step_that_is_cancelled_during_its_commit_is_done_and_announced(backend, announced):
    gate = Gate(backend)
    answers = []

    async def publish(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await append(backend.store, draft("done")))

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(publish, scope)
        await gate.reached()
        scope.cancel()
        await wait_all_tasks_blocked()
        gate.open()
    assert announced.commits == answers
    assert [value(entry) for entry in await read_all(backend.store)] == ["done"]


async def test_the_queue_is_bounded_and_everyone_gets_a_turn(backend):
    gate = Gate(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, backend.store, draft())
        await gate.reached()
        for _ in range(QUEUED_STEPS + 100):
            nursery.start_soon(append, backend.store, draft())
        await wait_all_tasks_blocked()
        assert len(backend.store.writer._queue) == QUEUED_STEPS
        gate.open()
    record = await backend.store.get("t")
    assert record is not None
    assert record.next_index == QUEUED_STEPS + 101


async def test_who_waits_for_room_can_be_cancelled(backend):
    gate = Gate(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, backend.store, draft())
        await gate.reached()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                for _ in range(QUEUED_STEPS + 10):
                    waiting.start_soon(append, backend.store, draft())
                await wait_all_tasks_blocked()
                scope.cancel()
        gate.open()
    await append(backend.store, draft())
    assert len(await read_all(backend.store)) == 2


async def test_a_step_that_breaks_the_transaction_breaks_only_itself(backend, announced):
    """Text that no database can hold is an error of its own caller, not of who shares the commit;
    what the others did builds on one another as before.
    """
    outcomes: dict[int, object] = {}

    async def publish(number: int, one: Draft) -> None:
        try:
            outcomes[number] = (await append(backend.store, one)).first_index
        except UnicodeEncodeError:
            outcomes[number] = "refused"
        except TaskNotFound:
            outcomes[number] = "not found"

    bad = Draft(type="\ud800", level="info")
    gate = Gate(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, backend.store, piece("a"))
        await gate.reached()
        for number, one in enumerate([piece("b"), bad, latest("c"), latest("d")]):
            nursery.start_soon(publish, number, one)
            await wait_all_tasks_blocked()
        gate.open()
    assert outcomes == {0: 1, 1: "refused", 2: 2, 3: 3}
    assert [text(entry) for entry in await read_all(backend.store)] == ["a", "d"]
    assert [commit.first_index for commit in announced.commits] == [0, 1, 2, 3]
    assert (await append(backend.store, draft())).first_index == 4


async def test_a_full_disk_is_a_503_and_the_store_goes_on_when_there_is_room(path):
    async with open_sqlite(path, max_pages=100) as backend, listening(backend) as announced:
        store = backend.store
        for name in ("t", "other"):
            await store.create(task(name), epoch="EPOCH001", now_ms=NOW)
        stored = 0
        with pytest.raises(StoreUnavailable, match="disk is full") as refused:
            for _ in range(200):
                await append(store, piece("x" * 2_000), id_="other")
                stored += 1
        assert refused.value.status == 503
        assert 10 < stored < 200
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.append("t", [draft("y" * 90_000)], now_ms=NOW, idempotency=key())
        assert len(await read_all(store, "other")) == stored, "what is there can be read"
        assert len(text((await store.snapshot("other")).values["s"])) == stored * 2_000
        assert await store.delete("other")
        commit = await store.append("t", [draft("y" * 90_000)], now_ms=NOW, idempotency=key())
        assert not commit.repeated, "what was refused left no key"
        assert commit.first_index == 0
        assert [len(one.entries) for one in announced.commits[2:]] == [1] * stored + [0, 1]
        assert announced.commits[-2].deleted


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_BUSY, "another process holds its lock"),
        (sqlite3.SQLITE_IOERR_FSYNC, "its disk fails"),
        (sqlite3.SQLITE_CORRUPT, "its file is damaged"),
    ],
)
async def test_a_failing_disk_undoes_the_whole_batch_and_nothing_is_remembered_of_it(
    backend, monkeypatch, announced, code, words
):
    store = backend.store
    await append(store, piece("a"))
    await store.snapshot("t")
    flush = Batch.flush

    def failing(batch: Batch) -> None:
        flush(batch)
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(Batch, "flush", failing)
    with pytest.raises(StoreUnavailable, match=words):
        await append(store, piece("lost"))
    with pytest.raises(StoreUnavailable, match=words):
        await store.delete("t")
    monkeypatch.undo()
    assert text((await store.snapshot("t")).values["s"]) == "a"
    await append(store, piece("b"))
    assert text((await store.snapshot("t")).values["s"]) == "ab"
    assert_dense(await read_all(store))
    assert len(announced.commits) == 2


async def test_a_database_that_another_process_holds_locked_is_a_503(backend, path):
    writer_connection(backend).execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="lock"):
        await append(backend.store, draft())
    assert await read_all(backend.store) == [], "reading goes on"
    other.close()
    assert (await append(backend.store, draft())).first_index == 0


async def test_a_crash_of_the_writer_surfaces_and_strands_nobody(path, monkeypatch):
    def crash(writer: Writer, jobs: object) -> None:
        raise RuntimeError("a fault of the writer")

    stranded = []
    fault = pytest.RaisesExc(RuntimeError, match="a fault of the writer")
    with trio.fail_after(PATIENCE_S), pytest.RaisesGroup(fault, flatten_subgroups=True):
        async with open_sqlite(path) as backend:
            monkeypatch.setattr(Writer, "_write", crash)
            with trio.CancelScope(shield=True), pytest.raises(StoreUnavailable) as refused:
                await append(backend.store, draft())
            stranded.append(refused.value.status)
            await trio.sleep_forever()
    assert stranded == [503]


async def test_cancelling_the_owner_lets_shielded_steps_finish(path):
    with trio.fail_after(PATIENCE_S), trio.CancelScope() as owner:
        async with open_sqlite(path) as backend:
            owner.cancel()
            with trio.CancelScope(shield=True):
                await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
            await trio.sleep_forever()
    assert owner.cancelled_caught
    assert rows_of(path, "tasks") == 1


async def test_the_exception_of_the_body_comes_out_as_it_is(path):
    with pytest.raises(ZeroDivisionError):
        async with open_sqlite(path):
            raise ZeroDivisionError


async def test_after_the_end_every_step_is_refused(path):
    async with open_sqlite(path) as backend:
        pass
    with pytest.raises(StoreUnavailable, match="closed"):
        await append(backend.store, draft())
