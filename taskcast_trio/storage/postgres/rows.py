"""Tasks and events as rows, and back, byte for byte.

What PostgreSQL's types can't hold is written so that they can: text with NUL or lone surrogates is
escaped (reversibly, so that equal stays equal and different different), and a caller's own JSON
goes into plain text, with a ``jsonb`` copy beside it only where that is possible.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.ids import Position, parse_event_id
from taskcast_trio.core.jsontext import Mask
from taskcast_trio.core.model import Cleanup, Event, Task, TaskError
from taskcast_trio.storage.records import Former, TaskRecord

from .connection import Row

T = TypeVar("T")

MAX_INT: Final = 2**63 - 1
MAX_TEXT: Final = 1 << 28
"""Bytes: a value of PostgreSQL may have 2**30, which everything of one row shares."""

MAX_JSONB: Final = 1 << 24
"""Bytes: nobody queries into more, and ``jsonb`` has limits of its own inside."""

_ESCAPED: Final = re.compile("[\0\x1a\ud800-\udfff]")
_ESCAPE: Final = re.compile("\x1a([0-9a-f]{4})")
_HARD_NUMBER: Final = re.compile(rb"[eE][+-]?\d{4}")


def stored(text: str) -> str:
    """``text`` as a ``TEXT`` column can hold it; :func:`given` is the way back."""
    if text.isprintable():
        return text
    return _ESCAPED.sub(lambda found: f"\x1a{ord(found[0]):04x}", text)


def given(text: str) -> str:
    """The text that :func:`stored` was given."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text) if "\x1a" in text else text


def jsonb(text: bytes) -> bool:
    r"""Whether ``jsonb`` takes the text; if in doubt, not.

    It refuses ``\u0000``, lone surrogates, and numbers with more digits than ``numeric`` has.
    """
    if len(text) > MAX_JSONB or b"\\u0000" in text or _HARD_NUMBER.search(text):
        return False
    try:
        return Mask.of(text) is None
    except BadRequest:
        return False


def _plain(value: Raw) -> str:
    """A caller's JSON as text.

    Raises:
        ValueError: it is none (not UTF-8, or with a bare NUL), or far too long.
    """
    if len(value) > MAX_TEXT:
        raise ValueError("too long")
    text = bytes(value).decode()
    if "\0" in text:
        raise ValueError("NUL")
    return text


def _whole(number: int) -> int:
    if not -MAX_INT <= number <= MAX_INT:
        raise ValueError("not a bigint")
    return number


def _optional(value: T | UnsetType) -> T | None:
    return None if value is UNSET else value


class EventRow(NamedTuple):
    """The columns of an event that differ within a log, in the order of the insert."""

    id: str
    idx: int
    place: int
    timestamp: int
    type: str
    level: str
    data: str | None
    data_raw: str
    series_id: str | None
    series_mode: str | None
    series_acc_field: str | None
    series_snapshot: bool | None
    client_id: str | None
    client_seq: int | None
    foreign_id: bool


def event_row(entry: Entry, epoch: str) -> EventRow:
    """The row of an event in the log ``epoch``.

    Raises:
        ValueError: no row can hold it.
    """
    event = entry.event
    data = "" if event.data is UNSET else _plain(event.data)
    series_id, acc_field = event.series_id, event.series_acc_field
    return EventRow(
        id=stored(event.id),
        idx=_whole(event.index),
        place=_whole(entry.place),
        timestamp=_whole(event.timestamp),
        type=stored(event.type),
        level=event.level,
        data=data if data and jsonb(bytes(event.data)) else None,  # type: ignore[arg-type]
        data_raw=data,
        series_id=None if series_id is UNSET else stored(series_id),
        series_mode=_optional(event.series_mode),
        series_acc_field=None if acc_field is UNSET else stored(acc_field),
        series_snapshot=_optional(event.series_snapshot),
        client_id=None if event.client_id is UNSET else stored(event.client_id),
        client_seq=_optional(event.client_seq),
        foreign_id=parse_event_id(event.id) != Position(epoch, event.index),
    )


def entry_of(task_id: str, row: Row) -> Entry:
    """The event of a row."""
    raw = row["data_raw"]
    if raw is None:  # a row of the original, which answers null where there was no data
        raw = "null" if row["data"] is None else row["data"]
    series_id, acc_field = row["series_id"], row["series_acc_field"]
    mode, is_snapshot = row["series_mode"], row["series_snapshot"]
    client_id, client_seq = row["client_id"], row["client_seq"]
    event = Event(
        id=given(row["id"]),
        task_id=task_id,
        index=row["idx"],
        timestamp=row["timestamp"],
        type=given(row["type"]),
        level=row["level"],
        data=Raw(raw.encode()) if raw else UNSET,
        series_id=UNSET if series_id is None else given(series_id),
        series_mode=UNSET if mode is None else mode,
        series_acc_field=UNSET if acc_field is None else given(acc_field),
        series_snapshot=UNSET if is_snapshot is None else is_snapshot,
        client_id=UNSET if client_id is None else given(client_id),
        client_seq=UNSET if client_seq is None else client_seq,
    )
    return Entry(event, row["place"])


_HOLLOW: Final = Raw(b"0")


def _each_raw(value: Any, change: Callable[[Raw], Raw]) -> Any:
    """``value`` with every raw value in it changed, in the order of the fields."""
    if isinstance(value, Raw):
        return change(value)
    if isinstance(value, list):
        return [_each_raw(item, change) for item in value]
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        return type(value)(**{name: _each_raw(field, change) for name, field in fields.items()})
    return value


def packed(task: Task) -> tuple[str, list[str]]:
    """The task as JSON without the caller's own values, and these.

    Raises:
        ValueError: PostgreSQL could not hold it.
    """
    raws: list[str] = []

    def take(raw: Raw) -> Raw:
        raws.append(_plain(raw))
        return _HOLLOW

    return msgspec.json.encode(_each_raw(task, take)).decode(), raws


def unpacked(text: str, raws: list[str]) -> Task:
    """The task that :func:`packed` was given."""
    left = iter(raws)
    task: Task = _each_raw(msgspec.json.decode(text, type=Task), lambda _: Raw(next(left).encode()))
    return task


_TASK_COLUMNS: Final = [
    "type",
    "status",
    "created_at",
    "updated_at",
    "completed_at",
    "ttl",
    "assign_mode",
    "cost",
    "assigned_worker",
    "disconnect_policy",
    "reason",
    "resume_at",
]
_TASK_JSONB: Final = [
    "params",
    "result",
    "error",
    "metadata",
    "auth_config",
    "webhooks",
    "cleanup",
    "tags",
    "blocked_request",
]
_RECORD_COLUMNS: Final = [
    "revision",
    "epoch",
    "next_index",
    "former",
    "imported",
    "trimmed",
    "trims",
    "raw",
    "raws",
]

TASK_COLUMNS: Final = ("id", *_TASK_COLUMNS, *_TASK_JSONB, *_RECORD_COLUMNS)


def _json_copy(value: object) -> str | None:
    if value is UNSET:
        return None
    text = msgspec.json.encode(value)
    return text.decode() if jsonb(text) else None


def task_row(record: TaskRecord, *, copies: bool) -> dict[str, Any]:
    """The row of a task, with an empty log; ``copies`` fills the ``jsonb`` columns.

    Raises:
        ValueError: no row can hold it.
    """
    task = record.task
    row: dict[str, Any] = {"id": stored(task.id)}
    for name in _TASK_COLUMNS:
        value = _optional(getattr(task, name))
        if isinstance(value, str):
            value = stored(value)
        elif value is not None:
            value = _whole(value)
        row[name] = value
    for name in _TASK_JSONB:
        row[name] = _json_copy(getattr(task, name)) if copies else None
    raw, raws = packed(task)
    row |= {
        "revision": record.revision,
        "epoch": stored(record.epoch),
        "next_index": 0,
        "former": msgspec.json.encode(
            [(stored(former.epoch), former.next_index) for former in record.former]
        ).decode(),
        "imported": record.imported,
        "trimmed": _whole(record.trimmed),
        "trims": _whole(record.trims),
        "raw": raw,
        "raws": raws,
    }
    return row


def record_of(row: Row) -> TaskRecord:
    """The task of a row, ours or the original's. ``next_index`` is that of what is archived."""
    raw = row["raw"]
    return TaskRecord(
        _task_of_columns(row) if raw is None else unpacked(raw, row["raws"]),
        revision=row["revision"],
        epoch=given(row["epoch"]),
        next_index=row["next_index"],
        imported=row["imported"],
        former=tuple(Former(given(epoch), index) for epoch, index in _former(row["former"])),
        trimmed=row["trimmed"],
        trims=row["trims"],
    )


def _former(text: str) -> list[tuple[str, int]]:
    return msgspec.json.decode(text, type=list[tuple[str, int]])


def _task_of_columns(row: Row) -> Task:
    fields: dict[str, Any] = {"id": row["id"]}
    for name in _TASK_COLUMNS:
        if row[name] is not None:
            fields[name] = row[name]
    for name, type_ in _JSONB_TYPES.items():
        text = row[name]
        if text is not None and text != "null":
            value = _decoded(text.encode(), type_)
            if value is not UNSET:
                fields[name] = value
    return Task(**fields)


_JSONB_TYPES: Final[dict[str, Any]] = {
    "params": Raw,
    "result": Raw,
    "error": TaskError,
    "metadata": Raw,
    "auth_config": Raw,
    "webhooks": list[Raw],
    "cleanup": Cleanup,
    "tags": list[str],
}


def _decoded(text: bytes, type_: Any) -> Any:
    """A value of the original; one of another shape than ours counts as absent."""
    if type_ is Raw:
        return Raw(text)
    try:
        return _each_raw(msgspec.json.decode(text, type=type_), lambda raw: Raw(bytes(raw)))
    except msgspec.DecodeError:
        return UNSET
