"""What the SQLite store promises beyond the contract: it outlives its server, and frees what is
deleted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing
from msgspec import Raw

from taskcast_trio.core.errors import KeyReused, TaskFull
from taskcast_trio.core.model import BlockedRequest, Cleanup, Task, TaskError
from taskcast_trio.storage.recent import Recent
from taskcast_trio.storage.records import LogLimits
from taskcast_trio.storage.sqlite import StoreRefused, open_sqlite, writer
from taskcast_trio.storage.sqlite.schema import SCHEMA_VERSION

from .sqlite_support import reader_connections, rows_of, work_of, writer_connection
from .support import (
    DAY,
    NOW,
    append,
    assert_dense,
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

TABLES = ("tasks", "logs", "versions", "events", "answers", "dropped")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


# What is there after a restart


async def test_everything_is_there_when_the_file_is_opened_again(path):
    async with open_sqlite(path) as backend:
        store = backend.store
        for name in ("first", "t", "last"):
            await store.create(task(name), epoch="EPOCH001", now_ms=NOW, idempotency=key())
        await append(store, piece("a"), latest("1", "l"), draft(7))
        published = await store.append(
            "t", [latest("2", "l"), piece("b")], now_ms=NOW + 9, idempotency=key("publish")
        )
        moved = await store.transition(
            task(status="running", params=Raw(b"{}")),
            [draft("moved")],
            revision=0,
            epoch="EPOCH001",
            now_ms=NOW,
            idempotency=key("move"),
        )
        await append(store, latest("3", "l"))
        await store.put_note("n", b"\x00note", expires_ms=NOW + DAY, now_ms=NOW)
        by_index = [entry.event for entry in await read_all(store)]
        by_place = [(entry.place, entry.event) for entry in await read_all_places(store)]
        records = await store.list_tasks()
    async with open_sqlite(path) as backend:
        store = backend.store
        assert await store.list_tasks() == records
        assert await store.count() == 3
        assert [entry.event for entry in await read_all(store)] == by_index
        assert [(entry.place, entry.event) for entry in await read_all_places(store)] == by_place
        values = (await store.snapshot("t")).values
        assert {series: text(entry) for series, entry in values.items()} == {"s": "ab", "l": "3"}
        assert await store.note("n", now_ms=NOW) == b"\x00note"

        for first, name in ((published, "publish"), (moved, "move")):
            answer = await store.repeated("t", key(name), now_ms=NOW + 10)
            assert answer is not None
            assert answer.record == first.record, "the record is that of then"
            assert [(one.place, one.event) for one in answer.entries] == [
                (one.place, one.event) for one in first.entries
            ], "with the events that were replaced since"
        with pytest.raises(KeyReused):
            await store.append("t", [], now_ms=NOW, idempotency=key("publish", b"other"))

        stored = len(by_index)
        with pytest.raises(TaskFull, match=f"{stored} already"):
            await store.append("t", [draft()], now_ms=NOW, limits=LogLimits(stored, 10**6))
        commit = await append(store, latest("4", "l"), piece("c"), at=NOW)
        assert commit.first_index == records[1].next_index
        assert [entry.place for entry in commit.entries] == [1, commit.first_index + 1]
        assert commit.entries[0].event.timestamp == NOW + 9, "times do not go back"
        values = (await store.snapshot("t")).values
        assert {series: text(entry) for series, entry in values.items()} == {"s": "abc", "l": "4"}


async def test_a_task_is_stored_byte_for_byte(path):
    """Each value by itself is what was accepted; together they could not be parsed again."""
    values = [b'"\\ud83d"', b'{"a": 1.0,  "a":18446744073709551616}', b'"#ud83d $ud83d"']
    values += [b'"%cud83d"' % byte for byte in range(0x25, 0x5B)]
    given = Task(
        id="t\x00 \U0001f600",
        status="blocked",
        created_at=NOW,
        updated_at=NOW,
        params=Raw(values[0]),
        metadata=Raw(b"null"),
        ttl=5,
        webhooks=[Raw(one) for one in values],
        cleanup=Cleanup(rules=[Raw(values[1])]),
        tags=[],
        error=TaskError(message="m", details=Raw(values[2])),
        blocked_request=BlockedRequest(type="q", data=Raw(values[1])),
        cost=0,
    )
    async with open_sqlite(path) as backend:
        await backend.store.create(given, epoch="EPOCH001", now_ms=NOW)
    async with open_sqlite(path) as backend:
        record = await backend.store.get(given.id)
        assert record is not None
        assert record.task == given
        assert [one.task for one in await backend.store.list_tasks()] == [given]


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
async def test_the_file_is_written_as_safely_as_was_asked_for(path, synchronous, level):
    async with open_sqlite(path, synchronous=synchronous) as backend:
        connection = writer_connection(backend)
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_the_write_ahead_log_is_moved_into_the_file_at_the_end(path):
    async with open_sqlite(path) as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        assert path.with_name("tasks.db-wal").exists()
    assert not path.with_name("tasks.db-wal").exists()
    assert rows_of(path, "tasks") == 1


# What is refused


async def test_a_second_server_is_refused_while_the_first_has_the_file(path, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    async with open_sqlite(path):
        for name in (path, link):
            with pytest.raises(StoreRefused, match="in use by another server"):
                async with open_sqlite(name):
                    pytest.fail("two servers have one file")
    async with open_sqlite(link) as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)


def make_garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1_000)


def make_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def make_newer(path: Path) -> None:
    trio.run(fill, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def make_truncated(path: Path) -> None:
    trio.run(fill, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def make_nested(path: Path) -> None:
    """Nothing: its directory is a file."""
    path.parent.rmdir()
    path.parent.write_text("")


async def fill(path: Path) -> None:
    async with open_sqlite(path) as backend:
        await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        await append(backend.store, *[draft("x" * 1_000)] * 100)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_garbage, "no SQLite database"),
        (make_foreign, "another program"),
        (make_newer, "newer program"),
        (make_truncated, "damaged"),
        (make_nested, "Not a directory"),
        (Path.mkdir, "can't be opened"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_file_of_ours_is_refused_in_one_clear_line(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "directory" / "tasks.db"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None

    async def main() -> None:
        async with open_sqlite(path):
            pytest.fail("it was opened")

    for _ in range(2):  # a refusal leaves no lock behind
        with pytest.raises(StoreRefused, match=words) as refused:
            trio.run(main)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert (path.read_bytes() if path.is_file() else None) == before, "nor touches the file"


# What is freed


async def swept(backend) -> None:
    """Wait until the writer has nothing left to sweep up: it goes to sleep after that."""
    await backend.store.put_note("n", b"", expires_ms=None, now_ms=NOW)
    await trio.testing.wait_all_tasks_blocked()
    while backend.store.writer._sweeping:
        await backend.store.put_note("n", b"", expires_ms=None, now_ms=NOW)


async def test_the_rows_of_deleted_and_replaced_logs_are_freed_a_few_at_a_time(path):
    async with open_sqlite(path) as backend:
        store = backend.store
        for name in ("t", "deleted"):
            await store.create(task(name), epoch="EPOCH001", now_ms=NOW, idempotency=key())
            for number in range(30):
                drafts = [draft("x" * 100)] * 100
                await store.append(name, drafts, now_ms=NOW, idempotency=key(f"k{number}"))
        await store.import_task(task(), [event(0)], epoch="EPOCH002", overwrite=True)
        await store.delete("deleted")
        await swept(backend)
        assert [rows_of(path, table) for table in TABLES] == [1, 1, 1, 1, 0, 0]
        assert [value(entry) for entry in await read_all(store)] == [0]


async def test_what_is_not_yet_swept_up_meets_nobody_and_is_swept_up_after_a_restart(
    path, monkeypatch
):
    monkeypatch.setattr(writer, "sweep", lambda connection: False)
    async with open_sqlite(path) as backend:
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        await store.append("t", [piece("old"), latest("x", "l")], now_ms=NOW, idempotency=key())
        await store.delete("t")
        await store.create(task(), epoch="EPOCH002", now_ms=NOW)
        assert await read_all(store) == []
        assert (await store.snapshot("t")).values == {}
        assert await store.repeated("t", key(), now_ms=NOW) is None
        commit = await append(store, latest("new", "l"))
        assert (commit.first_index, commit.entries[0].place) == (0, 0)
        assert rows_of(path, "events") == 3
    monkeypatch.undo()
    async with open_sqlite(path) as backend:
        await swept(backend)
        assert [rows_of(path, table) for table in TABLES] == [1, 1, 1, 1, 0, 0]
        assert [text(entry) for entry in await read_all(backend.store)] == ["new"]


async def test_a_file_does_not_grow_with_tasks_that_come_and_go_and_shrinks_after_many(path):
    async with open_sqlite(path, synchronous="normal") as backend:
        store, pages = backend.store, "PRAGMA page_count"
        connection = writer_connection(backend)

        async def live_and_die(names: range) -> int:
            for name in names:
                await store.create(task(f"t{name}"), epoch="EPOCH001", now_ms=NOW)
                await append(store, *[draft("x" * 10_000)] * 50, id_=f"t{name}")
            (most,) = connection.execute(pages).fetchone()
            for name in names:
                await store.delete(f"t{name}")
            await swept(backend)
            return int(most)

        first = await live_and_die(range(5))
        assert [await live_and_die(range(5)) <= first + 8 for _ in range(5)] == [True] * 5
        many = await live_and_die(range(20))
        (left,) = connection.execute(pages).fetchone()
        assert left < many / 2


async def test_versions_and_answers_are_kept_no_longer_than_a_key_may_ask_for_them(path):
    async with open_sqlite(path) as backend:
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        for revision in range(10):
            at = NOW + revision * DAY
            moved = task(status="running" if revision % 2 else "paused")
            idempotency = key(f"k{revision}")
            await store.transition(
                moved, [], revision=revision, epoch="EPOCH001", now_ms=at, idempotency=idempotency
            )
            assert rows_of(path, "versions") <= 2
            assert rows_of(path, "answers") <= 2


# What a step costs


async def test_a_step_costs_as_much_at_the_end_of_a_long_log_as_of_a_short_one(path):
    async with open_sqlite(path, synchronous="normal") as backend:
        store, works = backend.store, []
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        step = [piece("p"), latest("l", "l"), draft()] * 10
        for _ in range(2):
            await append(store, *step)
            works.append(await work_of([writer_connection(backend)], append(store, *step)))
            for _ in range(100):
                await append(store, *[piece("p")] * 100)
        assert works[1] <= 1.5 * works[0]


async def test_a_page_costs_as_much_at_the_end_of_a_long_log_as_at_its_beginning(path):
    async with open_sqlite(path, synchronous="normal") as backend:
        store, readers = backend.store, reader_connections(backend)
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        await append(store, latest("moved"))
        for number in range(100):
            await append(store, *[draft(number)] * 100)
        newest = await append(store, latest("moved"))
        last = newest.record.next_index
        await store.read("t", after=-1, limit=20)

        async def cost(after: int) -> list[int]:
            cursor = {"after_place": -1, "after_index": after, "limit": 20}
            return [
                await work_of(readers, store.read("t", after=after, limit=20)),
                await work_of(readers, store.read_places("t", **cursor)),
                await work_of(readers, store.find("t", newest.entries[0].id)),
            ]

        for early, late in zip(await cost(0), await cost(last - 30), strict=True):
            assert late <= 1.5 * early + 5


async def test_snapshots_agree_with_the_log_while_it_grows(path):
    """Values are read from rows, kept up, forgotten and read again, and never miss a piece or take
    one twice.
    """
    pieces = [f"<{number}>" for number in range(400)]
    async with open_sqlite(path, synchronous="normal") as backend:
        store = backend.store
        await store.create(task(), epoch="EPOCH001", now_ms=NOW)
        await append(store, piece(pieces[0]))
        seen, published = [], trio.Event()

        async def look(forget: bool) -> None:
            while not published.is_set():
                if forget:
                    store._values.clear()
                acknowledged = await store.get("t")
                snapshot = await store.snapshot("t")
                assert acknowledged is not None
                assert snapshot.record.next_index >= acknowledged.next_index
                expected = "".join(pieces[: snapshot.record.next_index])
                assert text(snapshot.values["s"]) == expected
                seen.append(snapshot.record.next_index)

        async with trio.open_nursery() as nursery:
            for forget in (True, True, False):
                nursery.start_soon(look, forget)
            for start in range(1, len(pieces), 3):
                await append(store, *map(piece, pieces[start : start + 3]))
            published.set()
        assert len(set(seen)) > 10
        assert_dense(await read_all(store))
        assert store._values._loading == {}


def test_what_is_remembered_is_bounded_and_forgets_what_was_used_longest_ago():
    recent: Recent[str, int] = Recent(10)
    for number, name in enumerate("abc"):
        recent.put(name, number, 3)
    assert recent.get("a") == 0
    recent.put("d", 3, 4)
    assert [recent.get(name) for name in "abcd"] == [0, None, 2, 3]
    recent.put("a", 9, 1)
    recent.put("e", 4, 2)
    assert [recent.get(name) for name in "acde"] == [9, 2, 3, 4], "a value weighs what it last did"
    recent.put("huge", 5, 100)
    assert [recent.get(name) for name in "acde"] == [None] * 4
    assert recent.get("huge") == 5
    recent.drop("huge")
    recent.put("f", 6, 10)
    assert recent.get("f") == 6
