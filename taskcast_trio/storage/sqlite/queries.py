"""What is read: each function is one consistent look at the database, within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import KeyReused, TaskNotFound, no_page_after
from taskcast_trio.core.ids import parse_event_id
from taskcast_trio.core.model import Task
from taskcast_trio.core.series import SeriesValues, fold

from ..packed_task import unpack_task
from ..recent import Recent
from ..records import Commit, Idempotency, Page, Publishers, TaskRecord, Timer
from .rows import (
    DATA,
    EVENT_COLUMNS,
    Row,
    entries_of,
    entry_of,
    unpack_entries,
    unpack_former,
)
from .schema import KEEPS_VALUE

_MAX_INTEGER: Final = 2**63 - 1
_TASKS_BYTES: Final = 32 * 1024 * 1024


def weight_of(packed_task: bytes) -> int:
    """About what the task weighs in memory, in bytes."""
    return len(packed_task) + 1024


class Tasks:
    """The decoded tasks that were read lately, by log and revision: such a pair never changes."""

    def __init__(self) -> None:
        self._recent: Recent[tuple[int, int], Task] = Recent(_TASKS_BYTES)

    def get(self, connection: sqlite3.Connection, log: int, revision: int) -> Task | None:
        """The version, or None where it has been dropped."""
        task = self._recent.get((log, revision))
        if task is not None:
            return task
        packed = packed_task(connection, log, revision)
        if packed is None:
            return None
        task = unpack_task(packed)
        self._recent.put((log, revision), task, weight_of(packed))
        return task


class Head(Struct, frozen=True):
    """What one life of a log has come to; ``weight`` is about its bytes in memory.

    ``timers`` are those of its task, by kind, ``publishers`` the seqs that are expected next; None
    where nobody has looked yet.
    """

    number: int
    log: int
    record: TaskRecord
    timestamp: int
    events: int
    bytes: int
    keys_until: int
    weight: int
    timers: Mapping[str, int] | None = None
    publishers: Mapping[str, int] | None = None


_HEAD: Final = (
    "SELECT number, log, timestamp, events, bytes, keys_until, body,"
    " revision, epoch, next_index, imported, former, trimmed, trims"
    " FROM tasks JOIN logs USING (log) JOIN versions USING (log, revision) WHERE id = ?"
)
_RECORD: Final = (
    "SELECT log, revision, epoch, next_index, imported, former, trimmed, trims"
    " FROM tasks JOIN logs USING (log) WHERE id = ?"
)


def head(connection: sqlite3.Connection, task_id: str) -> Head | None:
    row = connection.execute(_HEAD, (task_id,)).fetchone()
    if row is None:
        return None
    number, log, timestamp, events, size, until, body, *values = row
    return Head(
        number=number,
        log=log,
        record=_record(unpack_task(body), *values),
        timestamp=timestamp,
        events=events,
        bytes=size,
        keys_until=until,
        weight=weight_of(body),
    )


def _record(
    task: Task,
    revision: int,
    epoch: str,
    next_index: int,
    imported: int,
    former: bytes | None,
    trimmed: int,
    trims: int,
) -> TaskRecord:
    return TaskRecord(
        task, revision, epoch, next_index, bool(imported), unpack_former(former), trimmed, trims
    )


def packed_task(connection: sqlite3.Connection, log: int, revision: int) -> bytes | None:
    row = connection.execute(
        "SELECT body FROM versions WHERE log = ? AND revision = ?", (log, revision)
    ).fetchone()
    return None if row is None else row[0]


def record(
    connection: sqlite3.Connection, tasks: Tasks, task_id: str
) -> tuple[int, TaskRecord] | None:
    """The number of the task's log and its record."""
    row = connection.execute(_RECORD, (task_id,)).fetchone()
    if row is None:
        return None
    log, revision, *values = row
    task = tasks.get(connection, log, revision)
    if task is None:
        raise sqlite3.DatabaseError(f"log {log} has no version {revision}")
    return log, _record(task, revision, *values)


def get(connection: sqlite3.Connection, tasks: Tasks, task_id: str) -> TaskRecord | None:
    found = record(connection, tasks, task_id)
    return found[1] if found else None


def _log(connection: sqlite3.Connection, tasks: Tasks, task_id: str) -> tuple[int, TaskRecord]:
    found = record(connection, tasks, task_id)
    if found is None:
        raise TaskNotFound(task_id)
    return found


def list_tasks(
    connection: sqlite3.Connection,
    *,
    statuses: frozenset[str] | None,
    type_: str | None,
    after: str | None,
    limit: int | None,
) -> list[TaskRecord]:
    number = -1
    if after is not None:
        row = connection.execute("SELECT number FROM tasks WHERE id = ?", (after,)).fetchone()
        if row is None:
            raise no_page_after(after)
        number = row[0]
    conditions = ["number > ?"]
    values: list[object] = [number]
    if statuses is not None:
        conditions.append(f"status IN ({', '.join('?' * len(statuses))})")
        values += statuses
    if type_ is not None:
        conditions.append("type = ?")
        values.append(type_)
    rows = connection.execute(
        "SELECT body, revision, epoch, next_index, imported, former, trimmed, trims"
        " FROM tasks JOIN logs USING (log) JOIN versions USING (log, revision)"
        f" WHERE {' AND '.join(conditions)} ORDER BY number LIMIT ?",
        [*values, _MAX_INTEGER if limit is None else limit],
    )
    return [_record(unpack_task(body), *values) for body, *values in rows]


def count(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("SELECT count(*) FROM tasks").fetchone()
    return int(number)


_BY_INDEX: Final = (
    f"SELECT {EVENT_COLUMNS} FROM events WHERE log = ? AND place > ? AND idx = place"
    " ORDER BY place LIMIT ?"
)
_MOVED_BY_INDEX: Final = (
    f"SELECT {EVENT_COLUMNS} FROM events INDEXED BY events_moved"
    " WHERE log = ? AND idx > ? AND idx <> place ORDER BY idx LIMIT ?"
)
_BY_PLACE: Final = (
    f"SELECT {EVENT_COLUMNS} FROM events WHERE log = ? AND place > ? ORDER BY place LIMIT ?"
)
_MOVED_BY_PLACE: Final = (
    f"SELECT {EVENT_COLUMNS} FROM events INDEXED BY events_moved"
    " WHERE log = ? AND idx > ? AND idx <> place AND place > ? AND place <= ?"
    " ORDER BY place LIMIT ?"
)


def read(
    connection: sqlite3.Connection, tasks: Tasks, task_id: str, *, after: int, limit: int
) -> Page:
    log, found = _log(connection, tasks, task_id)
    if after >= found.next_index - 1:
        return Page(found, [], more=False)
    rows = connection.execute(_BY_INDEX, (log, after, limit + 1)).fetchall()
    moved = connection.execute(_MOVED_BY_INDEX, (log, after, limit + 1)).fetchall()
    if moved:
        rows = sorted(rows + moved, key=itemgetter(1))
    return _page(found, rows, limit)


def read_places(
    connection: sqlite3.Connection,
    tasks: Tasks,
    task_id: str,
    *,
    after_place: int,
    after_index: int,
    limit: int,
) -> Page:
    log, found = _log(connection, tasks, task_id)
    after_place = min(after_place, found.next_index)
    after_index = min(after_index, found.next_index)
    rows: list[Row] = []
    if after_place < after_index:
        # Up to there, only what moved can have a higher index.
        values = (log, after_index, after_place, after_index, limit + 1)
        rows = connection.execute(_MOVED_BY_PLACE, values).fetchall()
        after_place = after_index
    if len(rows) <= limit:
        rows += connection.execute(_BY_PLACE, (log, after_place, limit + 1 - len(rows)))
    return _page(found, rows, limit)


def _page(found: TaskRecord, rows: Sequence[Row], limit: int) -> Page:
    return Page(found, entries_of(rows[:limit], found), more=len(rows) > limit)


def find(connection: sqlite3.Connection, tasks: Tasks, task_id: str, event_id: str) -> Entry | None:
    log, found = _log(connection, tasks, task_id)
    for row in _candidates(connection, log, found, event_id):
        entry = entry_of(row, found)
        if entry.id == event_id:
            return entry
    return None


def _candidates(
    connection: sqlite3.Connection, log: int, found: TaskRecord, event_id: str
) -> Iterator[Row]:
    select = f"SELECT {EVENT_COLUMNS} FROM events WHERE log = ?"
    yield from connection.execute(f"{select} AND id = ?", (log, event_id))
    position = parse_event_id(event_id)
    if position is not None and found.holds(position.epoch, position.index):
        row = row_at(connection, log, position.index)
        if row is not None:
            yield row


def row_at(connection: sqlite3.Connection, log: int, index: int) -> Row | None:
    """The event at an index, where it is still in the log."""
    row: Row | None = None
    for where in ("place = ? AND idx = place", "idx = ? AND idx <> place"):
        query = f"SELECT {EVENT_COLUMNS} FROM events WHERE log = ? AND {where}"
        row = row or connection.execute(query, (log, index)).fetchone()
    return row


def publishers(connection: sqlite3.Connection, tasks: Tasks, task_id: str) -> Publishers:
    log, found = _log(connection, tasks, task_id)
    return Publishers(found, expected_seqs(connection, log))


def expected_seqs(connection: sqlite3.Connection, log: int) -> dict[str, int]:
    query = "SELECT client_id, expected FROM publishers WHERE log = ?"
    return dict(connection.execute(query, (log,)).fetchall())


def seq_place(
    connection: sqlite3.Connection, log: int, client_id: str, seq: int
) -> tuple[int, int] | None:
    """The index and the time of an event of a publisher, where these are known."""
    query = "SELECT idx, timestamp FROM seqs WHERE log = ? AND client_id = ? AND seq = ?"
    row: tuple[int, int] | None = connection.execute(query, (log, client_id, seq)).fetchone()
    return row


def series_values(
    connection: sqlite3.Connection, tasks: Tasks, task_id: str
) -> tuple[TaskRecord, SeriesValues, int]:
    """The running values, and how many bytes of data they were made from."""
    log, found = _log(connection, tasks, task_id)
    values: SeriesValues = {}
    size = 0
    kept: dict[str, int] = {}
    if found.trims:
        for row in kept_values(connection, log):
            entry = entry_of(row, found)
            fold(values, entry)
            kept[entry.event.series_id or ""] = entry.index
            size += len(row[DATA] or b"")
    rows = connection.execute(
        f"SELECT {EVENT_COLUMNS} FROM events INDEXED BY events_series"
        f" WHERE log = ? AND {KEEPS_VALUE} ORDER BY series_id, idx",
        (log,),
    )
    for row in rows:
        if kept and row[1] <= kept.get(row[5], -1):
            continue
        entry = entry_of(row, found)
        fold(values, entry)
        size += len(row[DATA] or b"")
    return found, values, size


def kept_values(connection: sqlite3.Connection, log: int) -> list[Row]:
    return connection.execute(
        f"SELECT {EVENT_COLUMNS} FROM kept_values WHERE log = ?", (log,)
    ).fetchall()


def newest_of_series(
    connection: sqlite3.Connection, log: int, series: str
) -> tuple[int, int] | None:
    """The place of the newest event of the series' value, and the bytes of its data."""
    row: tuple[Any, ...] | None = connection.execute(
        "SELECT place, coalesce(length(data), 0) FROM events INDEXED BY events_series"
        f" WHERE log = ? AND series_id = ? AND {KEEPS_VALUE} ORDER BY idx DESC LIMIT 1",
        (log, series),
    ).fetchone()
    return None if row is None else (row[0], row[1])


def answer(
    connection: sqlite3.Connection,
    tasks: Tasks,
    log: int,
    now: TaskRecord,
    idempotency: Idempotency,
    now_ms: int,
) -> Commit | None:
    """What the key brought before, or None; ``now`` is the record of today.

    Raises:
        KeyReused: the key came with another request before.
    """
    row = connection.execute(
        "SELECT fingerprint, revision, next_index, entries, aside FROM answers"
        " WHERE log = ? AND key = ? AND expires_ms > ?",
        (log, idempotency.key, now_ms),
    ).fetchone()
    if row is None:
        return None
    fingerprint, revision, next_index, packed, aside = row
    if fingerprint != idempotency.fingerprint:
        raise KeyReused(now.task.id)
    task = now.task if revision == now.revision else tasks.get(connection, log, revision)
    if task is None:
        return None
    then = replace(now, task=task, revision=revision, next_index=next_index)
    return Commit(then, unpack_entries(packed, then), repeated=True, aside=aside)


def repeated(
    connection: sqlite3.Connection,
    tasks: Tasks,
    task_id: str,
    idempotency: Idempotency,
    now_ms: int,
) -> Commit | None:
    found = record(connection, tasks, task_id)
    if found is None:
        return None
    log, now = found
    return answer(connection, tasks, log, now, idempotency, now_ms)


def note(connection: sqlite3.Connection, key: str, now_ms: int) -> bytes | None:
    row = connection.execute(
        "SELECT value FROM notes WHERE key = ? AND (expires_ms IS NULL OR expires_ms > ?)",
        (key, now_ms),
    ).fetchone()
    return None if row is None else bytes(row[0])


def rows(connection: sqlite3.Connection, table: str) -> dict[str, bytes]:
    start = row_key(table, "")
    found = connection.execute(
        "SELECT key, value FROM notes WHERE key >= ? AND key < ?", (start, start[:-1] + ";")
    )
    return {key[len(start) :]: bytes(value) for key, value in found}


def row(connection: sqlite3.Connection, table: str, key: str) -> bytes | None:
    found = connection.execute(
        "SELECT value FROM notes WHERE key = ?", (row_key(table, key),)
    ).fetchone()
    return None if found is None else bytes(found[0])


def has_rows(connection: sqlite3.Connection, table: str, count: int) -> bool:
    """Whether the table has so many rows, or more."""
    start = row_key(table, "")
    (found,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM notes WHERE key >= ? AND key < ? LIMIT ?)",
        (start, start[:-1] + ";", count),
    ).fetchone()
    return bool(found >= count)


def row_key(table: str, key: str) -> str:
    """Rows stand among the notes; what ends the name of a table comes right before a ``;``."""
    return f"row:{table}:{key}"


def timers(connection: sqlite3.Connection, number: int) -> dict[str, int]:
    """When the timers of the task are due, by kind."""
    return dict(
        connection.execute("SELECT kind, due_ms FROM timers WHERE number = ?", (number,)).fetchall()
    )


def due(
    connection: sqlite3.Connection, kind: str, now_ms: int, limit: int
) -> list[tuple[int, str]]:
    """The numbers and ids of the tasks whose timer is due, the earliest first."""
    return connection.execute(
        "SELECT number, id FROM timers INDEXED BY timers_due JOIN tasks USING (number)"
        " WHERE kind = ? AND due_ms <= ? ORDER BY due_ms LIMIT ?",
        (kind, now_ms, limit),
    ).fetchall()


def list_due(connection: sqlite3.Connection, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
    rows = connection.execute(
        "SELECT id, due_ms FROM timers INDEXED BY timers_due JOIN tasks USING (number)"
        " WHERE kind = ? AND due_ms <= ? ORDER BY due_ms LIMIT ?",
        (kind, now_ms, limit),
    )
    return [Timer(task_id, kind, due_ms) for task_id, due_ms in rows]


def next_due(connection: sqlite3.Connection, kind: str) -> int | None:
    (due_ms,) = connection.execute(
        "SELECT min(due_ms) FROM timers WHERE kind = ?", (kind,)
    ).fetchone()
    return None if due_ms is None else int(due_ms)


def task_note(connection: sqlite3.Connection, task_id: str, name: str) -> bytes | None:
    row = connection.execute(
        "SELECT value FROM tasks JOIN task_notes USING (number) WHERE id = ? AND name = ?",
        (task_id, name),
    ).fetchone()
    return None if row is None else bytes(row[0])


def task_notes(connection: sqlite3.Connection, task_id: str) -> dict[str, bytes]:
    return dict(
        connection.execute(
            "SELECT name, value FROM tasks JOIN task_notes USING (number) WHERE id = ?", (task_id,)
        ).fetchall()
    )
