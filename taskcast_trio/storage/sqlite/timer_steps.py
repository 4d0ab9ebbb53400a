"""The steps that take and set timers and the values beside a task, as they run within a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ..records import Timer, Timers
from . import queries
from .batch import Batch

_PUT_OFF: Final = "UPDATE timers SET due_ms = ? WHERE number = ? AND kind = ?"


def take_due(batch: Batch, kind: str, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
    batch.flush_timers()
    until_ms = now_ms + lease_ms
    due = queries.due(batch.connection, kind, now_ms, limit)
    batch.connection.executemany(_PUT_OFF, [(until_ms, number, kind) for number, _ in due])
    for _, task_id in due:
        head = batch.remembered_head(task_id)
        if head is not None and head.timers is not None:
            batch.heads[task_id] = replace(head, timers={**head.timers, kind: until_ms})
    return [Timer(task_id, kind, until_ms) for _, task_id in due]


def set_timer(
    batch: Batch,
    task_id: str,
    kind: str,
    due_ms: int | None,
    if_due: int | None,
    if_next: int | None,
) -> bool:
    head = batch.head(task_id)
    if head is None or if_next not in (None, head.record.next_index):
        return False
    if if_due is not None and batch.timers(head).get(kind) != if_due:
        return False
    batch.heads[task_id] = batch.set_timers(head, {kind: due_ms})
    return True


def put_task_note(
    batch: Batch,
    task_id: str,
    name: str,
    value: bytes | None,
    epoch: str,
    timers: Timers,
    if_due: Mapping[str, int],
) -> bool:
    head = batch.head(task_id)
    if head is None or head.record.epoch != epoch:
        return False
    if if_due and not if_due.items() <= batch.timers(head).items():
        return False
    execute, number = batch.connection.execute, head.number
    if value is None:
        execute("DELETE FROM task_notes WHERE number = ? AND name = ?", (number, name))
    else:
        execute(
            "INSERT OR REPLACE INTO task_notes (number, name, value) VALUES (?, ?, ?)",
            (number, name, value),
        )
    if timers:
        batch.heads[task_id] = batch.set_timers(head, timers)
    return True
