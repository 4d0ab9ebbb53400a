"""A file of an older version is brought up to this one, with all that is in it, or left alone.

``sqlite_version_1.sql`` is the dump of a file that the program of version 1 wrote, with a log that
it had not swept up yet.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import Raw

from taskcast_trio.core.errors import KeyReused
from taskcast_trio.storage.records import Former, TaskRecord, Timer
from taskcast_trio.storage.sqlite import StoreRefused, open_sqlite
from taskcast_trio.storage.sqlite.schema import SCHEMA_VERSION

from .support import (
    DAY,
    NOW,
    append,
    draft,
    key,
    latest,
    piece,
    read_all,
    read_all_places,
    task,
    text,
    value,
)

VERSION_1 = Path(__file__).with_name("sqlite_version_1.sql").read_text()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of version 1."""
    path = tmp_path / "tasks.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
        connection.execute("PRAGMA journal_mode = WAL")
    return path


def look(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def test_what_an_older_version_stored_is_all_there(path):
    async with open_sqlite(path) as backend:
        store = backend.store
        first, second, third = await store.list_tasks()
        assert [first.task.id, third.task.id, third.imported] == ["first", "last", True]
        given = task(status="running", type="kind", params=Raw(b'{"a": 1.0}'))
        assert second == TaskRecord(given, revision=1, epoch="EPOCH001", next_index=6)
        assert [e.index for e in await read_all(store)] == [0, 2, 3, 4, 5]
        assert [e.index for e in await read_all_places(store)] == [0, 3, 2, 4, 5]
        assert [e.id for e in await read_all(store, "last")] == ["foreign-0", "foreign-1"]
        values = (await store.snapshot("t")).values
        assert {series: text(entry) for series, entry in values.items()} == {"s": "ab", "l": "2"}
        assert await store.note("n", now_ms=NOW) == b"\x00note"
        answer = await store.repeated("t", key("publish"), now_ms=NOW)
        assert answer is not None
        assert (answer.record.revision, [e.index for e in answer.entries]) == (0, [3, 4])
        with pytest.raises(KeyReused):
            await store.append("t", [], now_ms=NOW, idempotency=key("move", b"other"))


async def test_an_older_file_takes_every_step_and_is_swept_up(path):
    former = (Former("OTHER001", 1),)
    async with open_sqlite(path) as backend:
        store = backend.store
        commit = await store.append(
            "t", [latest("3", "l"), piece("c")], now_ms=NOW, wake={"a": NOW + 1}
        )
        assert [(e.index, e.place) for e in commit.entries] == [(6, 1), (7, 7)]
        assert commit.entries[0].event.timestamp == NOW + 9
        assert await store.put_task_note("first", "n", b"v", epoch="EPOCH001", timers={"a": NOW})
        await store.create(task("new"), epoch="EPOCH003", now_ms=NOW)
        record = TaskRecord(task("back"), 0, "EPOCH004", 1, former=former)
        await store.restore(record, (await read_all(store, "last"))[:1])
    async with open_sqlite(path) as backend:
        store = backend.store
        records = await store.list_tasks()
        assert [record.task.id for record in records] == ["first", "t", "last", "new", "back"]
        assert [record.former for record in records] == [(), (), (), (), former]
        assert await store.task_notes("first") == {"n": b"v"}
        assert await store.take_due("a", now_ms=NOW + 1, lease_ms=5, limit=9) == [
            Timer("first", "a", NOW + 6),
            Timer("t", "a", NOW + 6),
        ]
        await append(store, draft("more"), id_="last")
        assert [value(entry) for entry in await read_all(store, "last")] == [0, 0, "more"]
    assert look(path, "SELECT count(*) FROM dropped") == [(0,)]
    assert look(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    assert look(path, "PRAGMA integrity_check") == [("ok",)]


async def test_an_older_file_comes_to_the_tables_of_a_new_one(path):
    new = path.with_name("new.db")
    schemas = []
    for file in (path, new):
        async with open_sqlite(file):
            pass
        rows = look(file, "SELECT type, name, sql FROM sqlite_master ORDER BY type, name")
        schemas.append([row for row in rows if row[1] != "sqlite_sequence"])
        schemas.append(look(file, "PRAGMA auto_vacuum"))
    assert schemas[:2] == schemas[2:]


async def test_an_upgrade_that_fails_leaves_the_file_as_it_was(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE task_notes (theirs)")
    schema = look(path, "SELECT name, sql FROM sqlite_master")
    with pytest.raises(StoreRefused, match="task_notes already exists"):
        async with open_sqlite(path):
            pytest.fail("it was opened")
    assert look(path, "SELECT name, sql FROM sqlite_master") == schema
    assert look(path, "PRAGMA user_version") == [(1,)]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE task_notes")
    async with open_sqlite(path) as backend:
        assert await backend.store.count() == 3


async def test_a_damaged_file_is_refused_before_it_is_upgraded(path):
    with closing(sqlite3.connect(path)) as connection:
        rows = [(f"n{number:03}", b"x" * 3_000) for number in range(200)]
        connection.executemany("INSERT INTO notes (key, value) VALUES (?, ?)", rows)
        connection.commit()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="damaged"):
        async with open_sqlite(path):
            pytest.fail("it was opened")
    assert path.read_bytes() == before


async def test_keys_of_before_hold_a_task_back_until_they_expire(path):
    async with open_sqlite(path) as backend:
        store = backend.store
        await store.transition(
            task(status="completed"), [], revision=1, epoch="EPOCH001", now_ms=NOW + 9
        )
        for now_ms, released in ((NOW + DAY + 8, False), (NOW + DAY + 9, True)):
            assert released == await store.release("t", epoch="EPOCH001", revision=2, now_ms=now_ms)
