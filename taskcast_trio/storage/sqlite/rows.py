"""Rows: an event as the columns of a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.ids import event_id
from taskcast_trio.core.model import Event

from ..records import Former, TaskRecord

Row: TypeAlias = tuple[Any, ...]

EVENT_COLUMNS: Final = (
    "place, idx, timestamp, type, level, series_id, series_mode, acc_field, collapsed, id, data,"
    " client_id, client_seq"
)
DATA: Final = 10
"""Where the data is among them."""
_FIRST_COLUMNS: Final = DATA + 1
"""Of rows that were packed before there were publishers that count."""


def row_of(entry: Entry, *, foreign: bool) -> Row:
    """The entry in the order of ``EVENT_COLUMNS``; only a ``foreign`` event keeps its id, others
    have one that follows from their place in the log.
    """
    event = entry.event
    return (
        entry.place,
        event.index,
        event.timestamp,
        event.type,
        event.level,
        None if event.series_id is UNSET else event.series_id,
        None if event.series_mode is UNSET else event.series_mode,
        None if event.series_acc_field is UNSET else event.series_acc_field,
        None if event.series_snapshot is UNSET else event.series_snapshot,
        event.id if foreign else None,
        None if event.data is UNSET else bytes(event.data),
        None if event.client_id is UNSET else event.client_id,
        None if event.client_seq is UNSET else event.client_seq,
    )


def is_foreign(entry: Entry, record: TaskRecord) -> bool:
    """Whether the event has another id than its place in the log ``record`` gives it."""
    index = entry.index
    return entry.id != event_id(entry.event.timestamp, record.epoch_at(index), index)


def entries_of(rows: Iterable[Row], record: TaskRecord) -> list[Entry]:
    """The entries that :func:`row_of` took apart, of the log ``record``."""
    task_id, epoch, former = record.task.id, record.epoch, record.former
    return [_entry(row, task_id, record.epoch_at(row[1]) if former else epoch) for row in rows]


def entry_of(row: Row, record: TaskRecord) -> Entry:
    return _entry(row, record.task.id, record.epoch_at(row[1]))


def _entry(row: Row, task_id: str, epoch: str) -> Entry:
    (
        place, index, timestamp, type_, level, series_id, mode, acc_field, collapsed, id_, data,
        client_id, client_seq,
    ) = row  # fmt: skip
    return Entry(
        Event(
            id=event_id(timestamp, epoch, index) if id_ is None else id_,
            task_id=task_id,
            index=index,
            timestamp=timestamp,
            type=type_,
            level=level,
            data=UNSET if data is None else Raw(data),
            series_id=UNSET if series_id is None else series_id,
            series_mode=UNSET if mode is None else mode,
            series_acc_field=UNSET if acc_field is None else acc_field,
            series_snapshot=UNSET if collapsed is None else bool(collapsed),
            client_id=UNSET if client_id is None else client_id,
            client_seq=UNSET if client_seq is None else client_seq,
        ),
        place,
    )


def pack_entries(entries: list[Row]) -> bytes:
    return msgspec.msgpack.encode(entries)


_ROWS: Final = msgspec.msgpack.Decoder(list[tuple[Any, ...]])


def unpack_entries(packed: bytes, record: TaskRecord) -> list[Entry]:
    rows = _ROWS.decode(packed)
    if rows and len(rows[0]) == _FIRST_COLUMNS:
        rows = [(*row, None, None) for row in rows]
    return entries_of(rows, record)


_FORMER: Final = msgspec.msgpack.Decoder(list[tuple[str, int]])


def pack_former(former: tuple[Former, ...]) -> bytes | None:
    """None where there is none, as nearly always."""
    if not former:
        return None
    return msgspec.msgpack.encode([(one.epoch, one.next_index) for one in former])


def unpack_former(packed: bytes | None) -> tuple[Former, ...]:
    if packed is None:
        return ()
    return tuple(Former(epoch, next_index) for epoch, next_index in _FORMER.decode(packed))
