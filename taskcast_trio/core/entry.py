"""A committed event as the log holds it and as subscribers share it."""

from __future__ import annotations

from typing import Final

import msgspec

from .ids import event_id
from .jsontext import one_line
from .model import Draft, Envelope, Event

_FIRST_FIELD: Final = len(b'{"filteredIndex":0,')
_FRAME_HEAD: Final = b'event: taskcast.event\ndata: {"filteredIndex":'
MAX_SHARED_FRAME: Final = 64 * 1024
"""Larger encodings are made anew for each subscriber: kept, they would double the memory."""

_BARE_HEAD: Final = b"event: taskcast.event\ndata: "


_encode: Final = msgspec.json.Encoder().encode


class Entry:
    """An event at its place in a log.

    ``place`` is the index whose slot the event holds in stored order: its own, or, for a ``latest``
    event that replaced another, that of the first one replaced. The SSE encoding is made once and
    shared by every subscriber; only ``filteredIndex`` is each subscriber's own.
    """

    __slots__ = ("_bare", "_event", "_frame_tail", "index", "level", "place", "type")

    def __init__(self, event: Event, place: int) -> None:
        self._event = event
        self.place = place
        self.index = event.index
        self.type = event.type
        self.level = event.level
        self._frame_tail: bytes | None = None
        self._bare: bytes | None = None

    def __repr__(self) -> str:
        return f"<Entry {self._event.task_id}[{self.index}] {self.type}>"

    @property
    def event(self) -> Event:
        return self._event

    @property
    def id(self) -> str:
        return self._event.id

    def frame(self, filtered_index: int) -> bytes:
        """The SSE block of the envelope (WHATWG HTML, server-sent events), blank line included."""
        if self._frame_tail is None:
            event = self.event  # a running value joins it here
            envelope = Envelope(
                filtered_index=0,
                raw_index=event.index,
                event_id=event.id,
                task_id=event.task_id,
                type=event.type,
                timestamp=event.timestamp,
                level=event.level,
                data=event.data,
                series_id=event.series_id,
                series_mode=event.series_mode,
                series_acc_field=event.series_acc_field,
                series_snapshot=event.series_snapshot,
                client_id=event.client_id,
                client_seq=event.client_seq,
            )
            encoded = one_line(_encode(envelope))
            tail = b"%b\nid: %b\n\n" % (encoded[_FIRST_FIELD - 1 :], sse_id(event.id))
            if len(tail) > MAX_SHARED_FRAME:
                return b"%b%d%b" % (_FRAME_HEAD, filtered_index, tail)
            self._frame_tail = tail
        return b"%b%d%b" % (_FRAME_HEAD, filtered_index, self._frame_tail)

    @property
    def id_line(self) -> bytes:
        """How a frame ends: the field that a browser sends back as ``Last-Event-ID``."""
        return b"\nid: %b\n\n" % sse_id(self.id)

    def bare_frame(self) -> bytes:
        """The SSE block of the stored event (``wrap=false``)."""
        if self._bare is not None:
            return self._bare
        bare = _BARE_HEAD + one_line(msgspec.json.encode(self.event)) + self.id_line
        if len(bare) <= MAX_SHARED_FRAME:
            self._bare = bare
        return bare

    def envelope(self, filtered_index: int) -> bytes:
        """The JSON of the envelope."""
        return self.frame(filtered_index)[len(_BARE_HEAD) : -len(self.id_line)]

    def bare(self) -> bytes:
        """The JSON of the stored event."""
        return self.bare_frame()[len(_BARE_HEAD) : -len(self.id_line)]


def sse_id(text: str) -> bytes:
    """An id as a field value: line breaks and NUL (imported ids may hold them) would end or void
    the field.
    """
    if text.isprintable():
        return text.encode()
    return text.translate({0x0A: " ", 0x0D: " ", 0x00: " "}).encode()


def commit(draft: Draft, *, task_id: str, epoch: str, index: int, place: int, now_ms: int) -> Entry:
    """What ``draft`` becomes at ``index`` of the log ``epoch``."""
    return Entry(
        Event(
            id=event_id(now_ms, epoch, index),
            task_id=task_id,
            index=index,
            timestamp=now_ms,
            type=draft.type,
            level=draft.level,
            data=draft.data,
            series_id=draft.series_id,
            series_mode=draft.series_mode,
            series_acc_field=draft.series_acc_field,
            client_id=draft.client_id,
            client_seq=draft.client_seq,
        ),
        place,
    )
