"""Migrations: each runs once, in order, whole or not at all; databases of the original are taken
over with what is in them.
"""

from __future__ import annotations

from hashlib import sha256

import pytest
import trio
from msgspec import UNSET, Raw
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.core.model import Cleanup, Event, Task, TaskError
from taskcast_trio.storage.postgres import (
    MigrationError,
    migrate,
    open_postgres,
    pending,
    require_migrated,
)
from taskcast_trio.storage.postgres import migrations as module
from taskcast_trio.storage.postgres.migrations import Migration, Recorded, known_migrations
from taskcast_trio.storage.records import TaskRecord

from ..support import NOW, text
from .server import psql

KNOWN = known_migrations()
COUNT = "SELECT count(*) FROM taskcast_migrations"

ORIGINAL = """
INSERT INTO taskcast_tasks VALUES
    ('01HQ', 'llm', 'completed', '{"model": "x"}', '{"ok": true}', NULL, '{"user": 1}', NULL,
     '[{"url": "https://example.com"}]', '{"rules": [{"match": {}}]}', 1700000000000, 1700000000005,
     1700000000005, 3600),
    ('failed', NULL, 'failed', NULL, NULL, '{"message": "no", "code": "E1", "details": {"n": 1}}',
     NULL, '{"rules": []}', NULL, NULL, 1700000000001, 1700000000002, 1700000000002, NULL),
    ('odd', NULL, 'pending', 'null', NULL, '"a text"', NULL, NULL, NULL, NULL, 5, 6, NULL, NULL);
INSERT INTO taskcast_events VALUES
    ('01HQEVENT0', '01HQ', 0, 1700000000001, 'taskcast:status', 'info', '{"status": "running"}',
     NULL, NULL, NULL),
    ('01HQEVENT1', '01HQ', 1, 1700000000002, 'llm.delta', 'info', '{"delta": "Hel"}',
     's', 'accumulate', 'delta'),
    ('01HQEVENT2', '01HQ', 2, 1700000000003, 'llm.delta', 'info', '{"delta": "lo"}',
     's', 'accumulate', 'delta'),
    ('01HQEVENT3', '01HQ', 3, 1700000000004, 'note', 'debug', NULL, NULL, NULL, NULL);
"""


async def test_an_empty_database_gets_the_whole_schema_and_a_record_of_it(empty_url):
    async with open_postgres(empty_url) as store:
        assert await module.recorded(store.pool) == []
        with pytest.raises(MigrationError, match="taskcast-trio migrate"):
            await require_migrated(store.pool)
        assert await migrate(store.pool) == list(KNOWN)
        assert await migrate(store.pool) == [], "a repeat has nothing to do"
        await require_migrated(store.pool)
        records = await module.recorded(store.pool)
    assert [(r.number, r.name, r.checksum) for r in records] == [
        (m.number, m.name, m.checksum) for m in KNOWN
    ]
    assert all(record.at.startswith("20") and record.at.endswith("Z") for record in records)


def test_the_files_are_numbered_without_a_gap_and_summed_as_they_are():
    assert [migration.number for migration in KNOWN] == list(range(1, len(KNOWN) + 1))
    for migration in KNOWN:
        assert migration.checksum == sha256(migration.sql.encode()).hexdigest()


@pytest.mark.parametrize("has_had_first", [False, True], ids=["its own tables", "ours, first"])
async def test_a_database_of_the_original_is_taken_over_with_what_is_in_it(
    empty_url, has_had_first
):
    async with open_postgres(empty_url) as store:
        if has_had_first:
            await migrate(store.pool, KNOWN[:1])
        else:
            psql(empty_url, KNOWN[0].sql)
        psql(empty_url, ORIGINAL)
        await migrate(store.pool)

        record = await store.load("01HQ")
        assert record is not None
        assert len(record.epoch) == 8
        assert record == TaskRecord(
            Task(
                id="01HQ",
                type="llm",
                status="completed",
                params=Raw(b'{"model": "x"}'),
                result=Raw(b'{"ok": true}'),
                metadata=Raw(b'{"user": 1}'),
                webhooks=[Raw(b'{"url": "https://example.com"}')],
                cleanup=Cleanup(rules=[Raw(b'{"match": {}}')]),
                created_at=NOW,
                updated_at=NOW + 5,
                completed_at=NOW + 5,
                ttl=3600,
            ),
            revision=0,
            epoch=record.epoch,
            next_index=4,
            imported=True,
        )
        failed = await store.load("failed")
        assert failed is not None
        assert failed.task.error == TaskError(message="no", code="E1", details=Raw(b'{"n": 1}'))
        assert failed.task.auth_config == Raw(b'{"rules": []}')
        odd = await store.load("odd")
        assert odd is not None
        assert (odd.task.params, odd.task.error, odd.next_index) == (UNSET, UNSET, 0)

        page = await store.read("01HQ", after=0, limit=9)
        assert page.entries[0].event == Event(
            id="01HQEVENT1",
            task_id="01HQ",
            index=1,
            timestamp=NOW + 2,
            type="llm.delta",
            level="info",
            data=Raw(b'{"delta": "Hel"}'),
            series_id="s",
            series_mode="accumulate",
            series_acc_field="delta",
        )
        assert page.entries[-1].event.data == Raw(b"null")
        places = await store.read_places("01HQ", after_place=1, after_index=-1, limit=9)
        assert [entry.id for entry in places.entries] == ["01HQEVENT2", "01HQEVENT3"]
        found = await store.find("01HQ", "01HQEVENT2")
        assert found is not None
        assert found.index == 2
        assert text((await store.snapshot("01HQ")).values["s"]) == "Hello"
        listed = await store.list_tasks(limit=9)
        assert [r.task.id for r in listed] == ["odd", "01HQ", "failed"]

        assert await store.archived_index("01HQ", record.epoch) == 3
        event = replace(page.entries[-1].event, id="next", index=4, data=Raw(b'"\\u0000"'))
        assert await store.save(replace(record, revision=1), [Entry(event, 4)])
        assert (await store.read("01HQ", after=3, limit=9)).entries[0].event == event
        assert await store.delete("01HQ")


async def test_two_at_once_both_end_well_and_each_migration_runs_once(empty_url):
    done: list[list[Migration]] = []

    async def one() -> None:
        async with open_postgres(empty_url) as store:
            done.append(await migrate(store.pool))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert sorted(map(len, done)) == [0, 0, 0, len(KNOWN)]
    assert psql(empty_url, COUNT) == str(len(KNOWN))


async def test_a_migration_that_fails_leaves_nothing_of_itself(empty_url):
    number = len(KNOWN) + 1
    bad = Migration(number, "its_name", "0" * 64, "CREATE TABLE half (); SELECT 1 / 0;")
    async with open_postgres(empty_url) as store:
        with pytest.raises(MigrationError, match="its_name failed: division by zero") as caught:
            await migrate(store.pool, [*KNOWN, bad])
        assert "\n" not in str(caught.value)
        assert psql(empty_url, COUNT) == str(len(KNOWN)), "those before it stay"
        assert psql(empty_url, "SELECT to_regclass('half') IS NULL") == "t"
        await require_migrated(store.pool)


async def test_a_cancelled_migration_lets_the_next_one_in(empty_url):
    slow = Migration(len(KNOWN) + 1, "slow", "0" * 64, "SELECT pg_sleep(0.3)")
    async with open_postgres(empty_url) as store:
        with trio.move_on_after(0.15):
            await migrate(store.pool, [*KNOWN, slow])
        with trio.fail_after(20):
            await migrate(store.pool)
    assert psql(empty_url, COUNT) == str(len(KNOWN))


async def test_a_database_that_others_migrate_is_not_waited_for_beyond_the_deadline(empty_url):
    async with open_postgres(empty_url) as store:

        async def hold(connection: object) -> None:
            await connection.execute(f"SELECT pg_advisory_lock({module._LOCK})")  # type: ignore[attr-defined]

        await store.pool.run(hold)
        with pytest.raises(StoreUnavailable, match="no answer"):
            await migrate(store.pool, timeout_s=0.1)


def recorded_of(*migrations: Migration) -> list[Recorded]:
    return [Recorded(m.number, m.name, m.checksum, "2024-01-01T00:00:00Z") for m in migrations]


def migration(number: int) -> Migration:
    return Migration(number, f"{number:04}_m", str(number) * 64, "")


ONE, TWO, THREE = migration(1), migration(2), migration(3)


@pytest.mark.parametrize(
    ("known", "had", "message"),
    [
        ([ONE], [ONE, TWO], "0002_m, which this version does not know"),
        ([ONE, TWO], [ONE, Migration(2, "0002_m", "f" * 64, "")], "0002_m has changed"),
        ([ONE, TWO, THREE], [ONE, THREE], "lacks migration 0002_m, but has later ones"),
    ],
)
def test_a_database_with_another_past_is_refused_in_one_line(known, had, message):
    with pytest.raises(MigrationError, match=message) as caught:
        pending(known, recorded_of(*had))
    assert "\n" not in str(caught.value)


def test_what_is_pending_is_what_comes_after_the_last():
    assert pending([ONE, TWO, THREE], recorded_of(ONE)) == [TWO, THREE]
    assert pending([ONE], recorded_of(ONE)) == []


async def test_a_changed_record_stops_a_start_and_a_migration(url):
    psql(url, "UPDATE taskcast_migrations SET checksum = 'other' WHERE number = 1")
    async with open_postgres(url) as store:
        for step in (require_migrated, migrate):
            with pytest.raises(MigrationError, match="0001_initial has changed"):
                await step(store.pool)


async def test_an_encoding_that_cannot_hold_every_text_is_refused(server):
    psql(server.url(), "CREATE DATABASE latin1 TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    async with open_postgres(server.url("latin1")) as store:
        with pytest.raises(MigrationError, match="UTF8, not LATIN1"):
            await migrate(store.pool)


def test_a_damaged_installation_is_said_so(tmp_path):
    with pytest.raises(MigrationError, match="damaged"):
        known_migrations(tmp_path)
    for name in ("0001_a.sql", "0001_b.sql"):
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match="damaged"):
        known_migrations(tmp_path)
