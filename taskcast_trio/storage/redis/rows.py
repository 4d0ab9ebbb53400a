"""Rows and values as Redis holds them: MessagePack, which the scripts put together and never read.

A row is what an event brings itself; its index, place and time stand beside it. A body is a task,
as one binary value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.entry import Entry, commit
from taskcast_trio.core.ids import event_id
from taskcast_trio.core.model import Draft, Event, Level, SeriesMode, Task
from taskcast_trio.core.series import SeriesValues, field_of, fold, joined, text_of

from ..packed_task import pack_task, unpack_task
from ..publishers import Publisher
from ..records import CountLimits, Former

pack: Final = msgspec.msgpack.Encoder().encode
unpack: Final = msgspec.msgpack.Decoder().decode

_LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warn", "error")
_MODES: Final[tuple[SeriesMode, ...]] = ("keep-all", "accumulate", "latest")
_LEVEL_NUMBERS: Final = {level: number for number, level in enumerate(_LEVELS)}
_MODE_NUMBERS: Final = {mode: number for number, mode in enumerate(_MODES)}

Placed: TypeAlias = tuple[int, int, int, list[Any]]
"""Index, place, time and row."""


class _Written(Protocol):
    """What an event and a draft have in common."""

    type: str
    level: Level
    data: Raw | UnsetType
    series_id: str | UnsetType
    series_mode: SeriesMode | UnsetType
    series_acc_field: str | UnsetType
    client_id: str | UnsetType
    client_seq: int | UnsetType


def row_of(event: Draft | Event, *, id_: str | None = None) -> bytes:
    """``id_`` is that of an event whose id does not follow from its place."""
    data = None if event.data is UNSET else bytes(event.data)
    row: list[Any] = [event.type, _LEVEL_NUMBERS[event.level], data]
    snapshot = getattr(event, "series_snapshot", UNSET)
    plain = event.series_id is UNSET and event.series_mode is UNSET
    more = snapshot is not UNSET or id_ is not None or event.client_id is not UNSET
    if not plain or event.series_acc_field is not UNSET or more:
        row += [
            None if event.series_id is UNSET else event.series_id,
            None if event.series_mode is UNSET else _MODE_NUMBERS[event.series_mode],
            None if event.series_acc_field is UNSET else event.series_acc_field,
        ]
        if more:
            row += [None if snapshot is UNSET else snapshot, id_]
        if event.client_id is not UNSET:
            row += [event.client_id, event.client_seq]
    return pack(row)


def foreign_id(event: Event, epoch: str) -> str | None:
    """The id of an event whose id does not follow from its place."""
    follows = event.id == event_id(event.timestamp, epoch, event.index)
    return None if follows else event.id


def entry_of(placed: Sequence[Any], task_id: str, epoch: str) -> Entry:
    index, place, timestamp, row = placed
    type_, level, data, *rest = row
    series = mode = acc_field = snapshot = id_ = None
    client_id = client_seq = None
    if rest:
        series, mode, acc_field, *rest = rest
        if rest:
            snapshot, id_, *rest = rest
            if rest:
                client_id, client_seq = rest
    return Entry(
        Event(
            id=event_id(timestamp, epoch, index) if id_ is None else id_,
            task_id=task_id,
            index=index,
            timestamp=timestamp,
            type=type_,
            level=_LEVELS[level],
            data=UNSET if data is None else Raw(data),
            series_id=UNSET if series is None else series,
            series_mode=UNSET if mode is None else _MODES[mode],
            series_acc_field=UNSET if acc_field is None else acc_field,
            series_snapshot=UNSET if snapshot is None else snapshot,
            client_id=UNSET if client_id is None else client_id,
            client_seq=UNSET if client_seq is None else client_seq,
        ),
        place,
    )


def committed(
    drafts: Sequence[Draft], *, task_id: str, epoch: str, first: int, ts: int, moved: Sequence[int]
) -> list[Entry]:
    """What the drafts became; ``moved`` is offset and place in turn of those in another's place."""
    places = dict(zip(moved[::2], moved[1::2], strict=True))
    return [
        commit(
            draft,
            task_id=task_id,
            epoch=epoch,
            index=first + offset,
            place=places.get(offset, first + offset),
            now_ms=ts,
        )
        for offset, draft in enumerate(drafts)
    ]


def entries_of(
    rows: Sequence[Any], *, task_id: str, epoch: str, first: int, ts: int, moved: Sequence[int]
) -> list[Entry]:
    """The entries of rows that were announced or kept together."""
    places = dict(zip(moved[::2], moved[1::2], strict=True))
    return [
        entry_of((first + offset, places.get(offset, first + offset), ts, row), task_id, epoch)
        for offset, row in enumerate(rows)
    ]


def size_of(event: Draft | Event) -> int:
    return 0 if event.data is UNSET else len(event.data)


def parts_of(events: Iterable[Draft | Event]) -> bytes:
    """What lua/parts/log.lua has to know of the events that are part of a series' value."""
    parts = []
    for offset, event in enumerate(events):
        mode = event.series_mode
        if not event.series_id or mode is UNSET or mode == "keep-all":
            continue
        key = field_of(event)
        piece = text_of(event, key)
        text = False if piece is None else _lua_text(piece)
        size = size_of(event)
        parts.append((offset, event.series_id, mode[0], _lua_text(key), text, size))
    return pack(parts) if parts else b""


def seqs_of(drafts: Sequence[Draft], limits: CountLimits) -> bytes:
    """What lua/parts/publishers.lua has to know of the drafts of publishers that count."""
    seqs: list[int | str] = [limits.kept, limits.publishers]
    for number, draft in enumerate(drafts):
        if draft.client_id is not UNSET and draft.client_seq is not UNSET:
            seqs += (number, draft.client_id, draft.client_seq)
    return pack(seqs)


def pack_publishers(publishers: Mapping[str, Publisher]) -> bytes:
    told = []
    for client_id, publisher in publishers.items():
        places: list[int | str] = []
        for seq, (index, timestamp) in publisher.places.items():
            places += (seq, f"{index}:{timestamp}")
        told.append((client_id, publisher.expected, places))
    return pack(told)


def _lua_text(text: bytes) -> Raw:
    """As a string of MessagePack, whatever its bytes: the scripts can't read binary ones."""
    return Raw(b"\xdb%b%b" % (len(text).to_bytes(4, "big"), text))


def value_of(value: Sequence[Any], task_id: str, epoch: str) -> tuple[str, Entry]:
    """The series and its running value, of what lua/snapshot.lua tells of it."""
    series, newest, key, text, pieces = value
    if pieces is not None:
        values: SeriesValues = {}
        for placed in pieces:
            entry = entry_of(placed, task_id, epoch)
            if entry.event.series_id == series:
                fold(values, entry)
        return series, values[series].entry
    entry = entry_of(newest, task_id, epoch)
    return series, entry if key is None else joined(entry, key, text)


def values_told(values: Mapping[str, Entry], epoch: str) -> bytes:
    """What lua/trim.lua has to know of the values of mixed series."""
    told: list[str | int | Raw] = []
    for series, entry in values.items():
        event = entry.event
        row = row_of(event, id_=foreign_id(event, epoch))
        told += (series, event.index, event.timestamp, _lua_text(row))
    return pack(told)


def pack_body(task: Task) -> bytes:
    return pack(pack_task(task))


def unpack_body(body: bytes) -> Task:
    return unpack_task(body)


def pack_former(former: Sequence[Former]) -> bytes:
    return pack([(one.epoch, one.next_index) for one in former])


def unpack_former(former: Sequence[Any]) -> tuple[Former, ...]:
    return tuple(Former(epoch, next_index) for epoch, next_index in former)
