"""An incremental parser of ``text/event-stream``.

It follows the section "Interpreting an event stream" of the WHATWG HTML standard
(https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation). It is
pure: bytes in, events out, no I/O. Lines are cut as bytes and decoded one by one, which is exact
because no character of UTF-8 holds a CR or LF byte; so a character that is split between two chunks
needs no care.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from taskcast_trio.core.errors import TaskcastError

DEFAULT_MAX_EVENT_SIZE: Final = 16 * 1024 * 1024

_BOM: Final = b"\xef\xbb\xbf"
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
# No time has as many digits; longer numbers, which int() may refuse, count as this many nines.
_RETRY_DIGITS: Final = 15


class EventTooLarge(TaskcastError):
    """An event, or a single line, is longer than the parser may hold in memory."""

    code = "event_too_large"


class ServerSentEvent(NamedTuple):
    """A dispatched event; ``id`` is the last event id of the stream as of this event."""

    event: str
    data: str
    id: str


class SSEParser:
    """Turn the bytes of one response into events.

    ``last_event_id`` and ``retry_ms`` (ms, None until the server sends one) are what the standard
    lets the stream set. An event that the end of the bytes cuts off is never dispatched, as the
    standard asks.

    Args:
        max_event_size: bytes that the lines of one event may have together. The parser holds no
            more than a small multiple of it.
    """

    def __init__(self, *, max_event_size: int = DEFAULT_MAX_EVENT_SIZE) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._max_event_size = max_event_size
        self._partial = bytearray()
        self._at_start = True
        self._after_cr = False
        self._size = 0
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Parse the next bytes, lazily: exhaust the iterator before the next call.

        Raises:
            EventTooLarge: while iterating, after the events before it. The parser is of no use
                then.
        """
        if self._at_start:
            chunk = self._without_bom(chunk)
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        start = 0
        for line_end in _LINE_END.finditer(chunk):
            self._hold(chunk[start : line_end.start()])
            start = line_end.end()
            line = bytes(self._partial)
            self._partial.clear()
            if line:
                self._take(line)
            elif (event := self._dispatch()) is not None:
                yield event
        self._hold(chunk[start:])

    def _without_bom(self, chunk: bytes) -> bytes:
        """``chunk`` without a leading byte order mark; empty while it may still become one."""
        head = bytes(self._partial) + chunk
        self._partial.clear()
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._partial += head
            return b""
        self._at_start = False
        return head.removeprefix(_BOM)

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_event_size:
            raise EventTooLarge(f"An event of the stream is over {self._max_event_size} bytes")
        self._partial += piece

    def _take(self, line: bytes) -> None:
        self._size += 1
        name, _, rest = line.partition(b":")
        value = rest.removeprefix(b" ")
        if name == b"data":
            self._data.append(value.decode(errors="replace"))
        elif name == b"event":
            self._event = value.decode(errors="replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode(errors="replace")
        elif name == b"retry":
            if value.isdigit():
                digits = value.lstrip(b"0") or b"0"
                self.retry_ms = int(digits if len(digits) < _RETRY_DIGITS else b"9" * _RETRY_DIGITS)
        elif not name:
            # A comment belongs to no event: one that lives on comments alone must not add up.
            self._size -= len(line) + 1

    def _dispatch(self) -> ServerSentEvent | None:
        event, data = self._event, self._data
        self._event, self._data, self._size = "", [], 0
        self.last_event_id = self._id
        if not data:
            return None
        return ServerSentEvent(event or "message", "\n".join(data), self._id)
