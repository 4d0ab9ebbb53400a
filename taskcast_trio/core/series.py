"""Series: events of one id that belong together.

``keep-all`` is nothing special. ``latest`` takes the stored place of the series' previous value.
``accumulate`` keeps every piece in the log and has a running value beside it: the newest event,
with the text in one of its fields (``seriesAccField``, else ``delta``) joined to the texts before.
Where the field is no text on both sides, the new event alone is the value.

Texts are joined as JSON text, not as strings: no piece is decoded and encoded again, and an emoji
cut in half between two pieces becomes whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw

from .entry import Entry
from .jsontext import fields_of
from .model import Draft, Event

DEFAULT_FIELD: Final = "delta"


def series_of(event: Event) -> str | None:
    """The series that the event belongs to: a non-empty id **and** a mode; else the fields are just
    stored.
    """
    if event.series_mode is UNSET or not event.series_id:
        return None
    return event.series_id


def accumulates(event: Event) -> bool:
    return event.series_mode == "accumulate" and bool(event.series_id)


def keeps_value(event: Event) -> bool:
    """Whether the event takes part in the running value of its series."""
    return series_of(event) is not None and event.series_mode != "keep-all"


_Members: TypeAlias = dict[bytes, bytes]


def _members_of(event: Event | Draft) -> _Members | None:
    return None if event.data is UNSET else fields_of(bytes(event.data))


def _text_at(key: bytes, members: _Members | None) -> bytes | None:
    """The JSON text at ``key``, without its quotes; None where there is no text."""
    value = members.get(key) if members else None
    return value[1:-1] if value is not None and value[:1] == b'"' else None


def field_of(event: Event | Draft) -> bytes:
    """The key of the text that is joined, as it is spelled in JSON."""
    return msgspec.json.encode(event.series_acc_field or DEFAULT_FIELD)


def text_of(event: Event | Draft, key: bytes) -> bytes | None:
    """The JSON text at ``key`` of the data, without its quotes; None where there is none."""
    return _text_at(key, _members_of(event))


def joined(newest: Entry, key: bytes, text: bytes) -> Entry:
    """The value whose newest event is ``newest``, with the whole text in the place of its own."""
    members = {**(_members_of(newest.event) or {}), key: b'"%b"' % text}
    return Entry(msgspec.structs.replace(newest.event, data=_object(members)), newest.place)


def _object(members: _Members) -> Raw:
    return Raw(b"{%b}" % b",".join(b"%b:%b" % member for member in members.items()))


class _Running(Entry):
    """A value as of one piece, joined whenever it is looked at and not kept.

    Many may wait for a reader that is slow: each would hold the whole text.
    """

    __slots__ = ("_base", "_count", "_key", "_members", "_pieces", "_value")

    def __init__(
        self, value: SeriesValue, newest: Entry, members: _Members, key: bytes, base: bytes
    ) -> None:
        super().__init__(newest.event, newest.place)
        self._value = value
        self._members = members
        self._key = key
        self._base = base
        self._pieces = value.pieces
        self._count = len(value.pieces)

    @property
    def event(self) -> Event:
        text = self._base + b"".join(self._pieces[: self._count])
        self._value.joined(self._pieces, self._count, text)
        members = {**self._members, self._key: b'"%b"' % text}
        return msgspec.structs.replace(self._event, data=_object(members))


class SeriesValue:
    """The running value of one series. Adding a piece is O(piece); what has been joined once stays
    joined.
    """

    __slots__ = ("_base", "_key", "_members", "_newest", "pieces")

    def __init__(self, first: Entry) -> None:
        self._restart(first)

    def _restart(self, entry: Entry) -> None:
        self._newest = entry
        self._base = b""
        self.pieces: list[bytes] = []
        self._members: _Members = {}
        self._key: bytes | None = None

    @property
    def index(self) -> int:
        """The index of the newest event in it."""
        return self._newest.index

    def add(self, entry: Entry) -> None:
        """Take the next event of the series, ``accumulate`` or ``latest``."""
        event = entry.event
        members = _members_of(event) if accumulates(event) else None
        key = field_of(event)
        piece = _text_at(key, members)
        if members is None or piece is None:
            self._restart(entry)
            return
        if key != self._key:
            # Of a field that was not joined so far, the value has what its newest event has.
            old = _text_at(key, _members_of(self._newest.event))
            if old is None:
                self._restart(entry)
                return
            self._base, self.pieces, self._key = old, [], key
        self.pieces.append(piece)
        self._members = members
        self._newest = entry

    @property
    def entry(self) -> Entry:
        """The value as an event: that of the newest event, with the whole text."""
        if self._key is None:
            return self._newest
        return _Running(self, self._newest, self._members, self._key, self._base)

    def joined(self, pieces: list[bytes], count: int, text: bytes) -> None:
        """Take the join of the base and the first ``count`` pieces, if they are still these."""
        if pieces is self.pieces:
            self._base, self.pieces = text, pieces[count:]


SeriesValues: TypeAlias = dict[str, SeriesValue]


def fold(values: SeriesValues, entry: Entry) -> SeriesValue | None:
    """Bring ``values`` up to ``entry``; the value of the entry's series, None where it has none to
    keep.
    """
    event = entry.event
    series = series_of(event)
    if series is None or event.series_mode == "keep-all":
        return None
    value = values.get(series)
    if value is None:
        value = values[series] = SeriesValue(entry)
    else:
        value.add(entry)
    return value


def as_snapshot(value: Entry) -> Entry:
    """The value with the mark of a collapsed series."""
    return Entry(msgspec.structs.replace(value.event, series_snapshot=True), value.place)


def collapse(entries: Iterable[Entry], values: dict[str, Entry], seen: set[str]) -> Iterator[Entry]:
    """Each accumulate series as one snapshot at the place of its first remaining piece.

    ``seen`` remembers the series between the pages of one log.
    """
    for entry in entries:
        event = entry.event
        series = series_of(event)
        if series is None or not accumulates(event) or series not in values:
            yield entry
        elif series not in seen:
            seen.add(series)
            yield as_snapshot(values[series])
