"""The steps of the store, as they run within a batch on the writer's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec import UNSET
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry, commit
from taskcast_trio.core.errors import (
    RevisionConflict,
    StaleFence,
    TaskEnded,
    TaskExists,
    TaskFull,
    TaskNotFound,
)
from taskcast_trio.core.model import Draft, Event, Task

from ..packed_task import pack_task
from ..publishers import again, counted_on, publishers_of, stored_before
from ..records import (
    NO_PUBLISHERS,
    NO_TIMERS,
    PARKED_MS,
    Commit,
    CountLimits,
    Idempotency,
    LogLimits,
    TaskRecord,
    Timers,
)
from . import queries
from .batch import Batch
from .queries import Head, weight_of
from .rows import pack_former


def create(
    batch: Batch,
    task: Task,
    epoch: str,
    now_ms: int,
    idempotency: Idempotency | None,
    timers: Timers,
) -> Commit:
    known = batch.head(task.id)
    if known is not None:
        answer = batch.repeated(known, idempotency, now_ms) if idempotency else None
        if answer is None:
            raise TaskExists(task.id)
        return answer
    record = TaskRecord(task, revision=0, epoch=epoch, next_index=0)
    head = _new_log(batch, record, [], timers)
    return batch.finish(head, Commit(record, created=True), idempotency, now_ms)


def append(
    batch: Batch,
    task_id: str,
    drafts: Sequence[Draft],
    now_ms: int,
    idempotency: Idempotency | None,
    limits: LogLimits | None,
    wake: Mapping[str, int],
    hasten: Mapping[str, int],
    fence: int | None,
    counting: CountLimits | None,
) -> Commit:
    head = _head(batch, task_id)
    if idempotency:
        answer = batch.repeated(head, idempotency, now_ms)
        if answer is not None:
            return answer
    record = head.record
    if counting is not None and (known := _known(batch, head, drafts)):
        return Commit(record, known=known)
    if fence is not None and record.task.fence != fence:
        raise StaleFence(task_id)
    if record.task.terminal:
        raise TaskEnded(task_id, record.task.status)
    if counting is None:
        head, entries = _appended(batch, head, drafts, now_ms, limits)
    else:
        publishers = batch.publishers(head)
        after = counted_on(task_id, drafts, _due(publishers), counting, len(publishers))
        head, entries = _appended(batch, head, drafts, now_ms, limits)
        head = batch.count(head, entries, after, counting)
    if wake:
        head = _woken(batch, head, wake)
    if hasten:
        head = _hastened(batch, head, hasten)
    return batch.finish(head, Commit(head.record, entries), idempotency, now_ms)


def _known(batch: Batch, head: Head, drafts: Sequence[Draft]) -> dict[int, Entry]:
    """Those of the drafts that were stored before, by their number."""
    found = stored_before(
        head.record.task.id,
        drafts,
        _due(batch.publishers(head)),
        partial(batch.seq_place, head),
    )
    return {
        number: again(drafts[number], head.record, at, batch.entry_at(head, at[0]))
        for number, at in found.items()
    }


def _due(publishers: Mapping[str, int]) -> Callable[[str], int]:
    return lambda client_id: publishers.get(client_id, 0)


def transition(
    batch: Batch,
    task: Task,
    drafts: Sequence[Draft],
    revision: int,
    epoch: str,
    now_ms: int,
    idempotency: Idempotency | None,
    timers: Timers,
    hasten: Mapping[str, int],
) -> Commit:
    head = _head(batch, task.id)
    if idempotency:
        answer = batch.repeated(head, idempotency, now_ms)
        if answer is not None:
            return answer
    if (head.record.revision, head.record.epoch) != (revision, epoch):
        raise RevisionConflict(task.id)
    body = pack_task(task)
    head, entries = _appended(batch, head, drafts, max(now_ms, task.updated_at), None)
    _add_version(batch, head, task, body, now_ms)
    record = replace(head.record, task=task, revision=revision + 1)
    head = replace(head, record=record, weight=weight_of(body))
    if timers:
        head = batch.set_timers(head, timers)
    if hasten:
        head = _hastened(batch, head, hasten)
    return batch.finish(head, Commit(record, entries), idempotency, now_ms)


def delete(batch: Batch, task_id: str, epoch: str | None) -> bool:
    head = batch.head(task_id)
    if head is None or epoch not in (None, head.record.epoch):
        return False
    batch.commits.append(_remove(batch, head))
    return True


def release(
    batch: Batch, task_id: str, epoch: str, revision: int, now_ms: int, unless: Sequence[str]
) -> bool:
    head = batch.head(task_id)
    if head is None or not head.record.task.terminal:
        return False
    if (head.record.revision, head.record.epoch) != (revision, epoch):
        return False
    if head.keys_until > now_ms:
        return False
    if unless and not batch.timers(head).keys().isdisjoint(unless):
        return False
    batch.unsaid.append(_remove(batch, head))
    return True


def _remove(batch: Batch, head: Head) -> Commit:
    batch.connection.execute("DELETE FROM tasks WHERE number = ?", (head.number,))
    batch.drop(head)
    batch.heads[head.record.task.id] = None
    return Commit(head.record, deleted=True)


def import_task(
    batch: Batch,
    task: Task,
    events: Sequence[Event],
    epoch: str,
    overwrite: bool,
    timers: Timers,
    publishers: Mapping[str, int],
) -> Commit:
    old = batch.head(task.id)
    if old is not None and not overwrite:
        raise TaskExists(task.id)
    record = TaskRecord(task, revision=0, epoch=epoch, next_index=len(events), imported=True)
    if old is not None:
        batch.drop(old)
    entries = [Entry(event, event.index) for event in events]
    number = old.number if old else None
    head = _new_log(batch, record, entries, timers, publishers, number=number)
    return batch.finish(head, Commit(record, replaced=old is not None))


def restore(
    batch: Batch,
    record: TaskRecord,
    entries: Sequence[Entry],
    timers: Timers,
    publishers: Mapping[str, int],
) -> Commit:
    if batch.head(record.task.id) is not None:
        raise TaskExists(record.task.id)
    return batch.finish(_new_log(batch, record, entries, timers, publishers), Commit(record))


def put_note(batch: Batch, key: str, value: bytes, expires_ms: int | None, now_ms: int) -> None:
    execute = batch.connection.execute
    execute(
        "DELETE FROM notes WHERE key IN"
        " (SELECT key FROM notes WHERE expires_ms <= ? ORDER BY expires_ms LIMIT 16)",
        (now_ms,),
    )
    execute(
        "INSERT OR REPLACE INTO notes (key, expires_ms, value) VALUES (?, ?, ?)",
        (key, expires_ms, value),
    )


def take_note(batch: Batch, key: str, now_ms: int) -> bytes | None:
    value = queries.note(batch.connection, key, now_ms)
    drop_note(batch, key)
    return value


def drop_note(batch: Batch, key: str) -> bool:
    return batch.connection.execute("DELETE FROM notes WHERE key = ?", (key,)).rowcount > 0


def swap_row(
    batch: Batch, table: str, key: str, value: bytes | None, known: bytes | None, most: int | None
) -> bytes | None:
    now = queries.row(batch.connection, table, key)
    if now != known:
        return now
    if now is None and most is not None and queries.has_rows(batch.connection, table, most):
        return None
    name, execute = queries.row_key(table, key), batch.connection.execute
    if value is None:
        execute("DELETE FROM notes WHERE key = ?", (name,))
    else:
        execute("INSERT OR REPLACE INTO notes (key, value) VALUES (?, ?)", (name, value))
    return value


def _head(batch: Batch, task_id: str) -> Head:
    head = batch.head(task_id)
    if head is None:
        raise TaskNotFound(task_id)
    return head


def _new_log(
    batch: Batch,
    record: TaskRecord,
    entries: Sequence[Entry],
    timers: Timers,
    expected: Mapping[str, int] = NO_PUBLISHERS,
    *,
    number: int | None = None,
) -> Head:
    """Write a task and a new log with these entries; ``number`` is its place in the order of
    creation where it had one before.
    """
    execute, task = batch.connection.execute, record.task
    timestamp = max([task.created_at, *(entry.event.timestamp for entry in entries)])
    size = sum(_size(entry.event) for entry in entries)
    body = pack_task(task)
    log = execute(
        "INSERT INTO logs (next_index, timestamp, events, bytes, keys_until, trimmed, trims)"
        " VALUES (?, ?, ?, ?, 0, ?, ?)",
        (record.next_index, timestamp, len(entries), size, record.trimmed, record.trims),
    ).lastrowid
    revision = record.revision
    execute("INSERT INTO versions (log, revision, body) VALUES (?, ?, ?)", (log, revision, body))
    type_ = None if task.type is UNSET else task.type
    former = pack_former(record.former)
    number = execute(
        "INSERT OR REPLACE INTO tasks"
        " (number, id, log, epoch, revision, imported, status, type, former)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            number, task.id, log, record.epoch, revision, record.imported, task.status, type_,
            former,
        ),
    ).lastrowid  # fmt: skip
    assert log is not None
    assert number is not None
    publishers = publishers_of(entries, expected)
    head = Head(
        number=number,
        log=log,
        record=record,
        timestamp=timestamp,
        events=len(entries),
        bytes=size,
        keys_until=0,
        weight=weight_of(body),
        timers=NO_TIMERS,
        publishers={client_id: each.expected for client_id, each in publishers.items()},
    )
    if entries:
        batch.write_log(head, entries)
    if publishers:
        batch.write_publishers(log, publishers)
    return batch.set_timers(head, timers) if timers else head


def _woken(batch: Batch, head: Head, wake: Mapping[str, int]) -> Head:
    """The head with timers that are due no later than ``wake`` says."""
    known = batch.timers(head)
    sooner = {kind: due for kind, due in wake.items() if kind not in known or due < known[kind]}
    if not sooner and head.timers is not None:
        return head
    return batch.set_timers(replace(head, timers=known), sooner)


def _hastened(batch: Batch, head: Head, hasten: Mapping[str, int]) -> Head:
    """The head with those of these timers that were parked due now."""
    known = batch.timers(head)
    parked = {kind: due for kind, due in hasten.items() if known.get(kind) == PARKED_MS}
    if not parked and head.timers is not None:
        return head
    return batch.set_timers(replace(head, timers=known), parked)


def _add_version(batch: Batch, head: Head, task: Task, body: bytes, now_ms: int) -> None:
    """Write the next version; older ones stay for as long as a key may have to repeat them."""
    execute, log, revision = batch.connection.execute, head.log, head.record.revision
    execute(
        "UPDATE versions SET keep_until = ? WHERE log = ? AND revision = ?",
        (head.keys_until, log, revision),
    )
    execute("DELETE FROM versions WHERE log = ? AND keep_until <= ?", (log, now_ms))
    execute(
        "INSERT INTO versions (log, revision, body) VALUES (?, ?, ?)", (log, revision + 1, body)
    )
    type_ = None if task.type is UNSET else task.type
    execute(
        "UPDATE tasks SET revision = ?, status = ?, type = ? WHERE number = ?",
        (revision + 1, task.status, type_, head.number),
    )


def _appended(
    batch: Batch, head: Head, drafts: Sequence[Draft], now_ms: int, limits: LogLimits | None
) -> tuple[Head, list[Entry]]:
    """What the log is with the drafts, which are kept to be written.

    Raises:
        TaskFull: that would be over ``limits``; nothing is kept.
    """
    record = head.record
    now_ms = max(now_ms, head.timestamp)
    events, size = head.events, head.bytes
    entries: list[Entry] = []
    newest: dict[str, tuple[int, int]] = {}
    for index, draft in enumerate(drafts, record.next_index):
        place, series, bytes_ = index, draft.series_id, _size(draft)
        events += 1
        size += bytes_
        if series and draft.series_mode is not UNSET and draft.series_mode != "keep-all":
            if draft.series_mode == "latest":
                old = newest.get(series) or batch.newest_of_series(head.log, series)
                if old is not None:
                    place = old[0]
                    events -= 1
                    size -= old[1]
            newest[series] = (place, bytes_)
        entries.append(
            commit(
                draft,
                task_id=record.task.id,
                epoch=record.epoch,
                index=index,
                place=place,
                now_ms=now_ms,
            )
        )
    if limits is not None:
        if events > limits.events:
            raise TaskFull(record.task.id, "events", limit=limits.events, stored=head.events)
        if size > limits.bytes:
            raise TaskFull(record.task.id, "bytes of data", limit=limits.bytes, stored=head.bytes)
    batch.add_entries(head.log, entries, newest)
    record = replace(record, next_index=record.next_index + len(entries))
    return replace(head, record=record, timestamp=now_ms, events=events, bytes=size), entries


def _size(event: Event | Draft) -> int:
    return 0 if event.data is UNSET else len(event.data)
