"""Reading stdin on Trio as it comes, and cutting it into pieces, lines and events."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from typing import Final

import trio
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.cli.failures import USAGE, Failed
from taskcast_trio.core import jsontext
from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.model import Draft, Level, SeriesMode, Wire

CHUNK_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024


async def receive_some(number: int) -> bytes:
    """What there is to be read, at once when there is something; empty at the end.

    Nothing is read ahead: what comes while nobody reads waits in the pipe, and comes together then.
    Cancellation loses nothing.

    Raises:
        OSError: it broke.
    """
    # Not by O_NONBLOCK: that would be so for every process that shares it, the shell included.
    try:
        await trio.lowlevel.wait_readable(number)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        await trio.lowlevel.checkpoint()  # a file: it never keeps one waiting
    return os.read(number, CHUNK_BYTES)


def stdin_number() -> int:
    """The file descriptor of stdin.

    Raises:
        Failed: it is closed.
    """
    if not sys.stdin:
        raise Failed("stdin is closed", USAGE)
    return sys.stdin.fileno()


class Texts:
    """Bytes to text, cut only between characters; what is no UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, chunk: bytes) -> list[str]:
        """The text of the chunk, as one piece; ``b""`` is the end."""
        text = self._decoder.decode(chunk, final=not chunk)
        return [text] if text else []


class TextLines:
    """Bytes to lines of text, without their ends."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, chunk: bytes) -> list[str]:
        return [
            line.decode(errors="replace").removesuffix("\r") for line in self._lines.feed(chunk)
        ]


class Lines:
    """Bytes to lines; the last one counts without an end, too."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that the chunk ends; ``b""`` is the end.

        Raises:
            Failed: a line is longer than a server takes.
        """
        if not chunk:
            rest = bytes(self._partial)
            self._partial.clear()
            return [rest] if rest else []
        *lines, rest = (bytes(self._partial) + chunk).split(b"\n")
        self._partial[:] = rest
        if len(rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise Failed(f"a line is over {MAX_LINE_BYTES} bytes", USAGE)
        return lines


class _Line(Wire, frozen=True, kw_only=True):
    """An event as a line of NDJSON: a body of a publish, with a default level."""

    type: str
    level: Level = "info"
    data: Raw | UnsetType = UNSET
    series_id: str | UnsetType = UNSET
    series_mode: SeriesMode | UnsetType = UNSET
    series_acc_field: str | UnsetType = UNSET


class EventLines:
    """Bytes to events, one a line (NDJSON); empty lines do not count as events."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._number = 0

    def feed(self, chunk: bytes) -> Iterator[Draft]:
        """The events of the lines that the chunk ends, up to a bad one.

        Raises:
            Failed: a line is no event; which and why. Those before it came.
        """
        for line in self._lines.feed(chunk):
            self._number += 1
            if line.strip():
                yield self._event(line)

    def _event(self, line: bytes) -> Draft:
        try:
            found: _Line = jsontext.parse(line, _Line)
        except BadRequest as error:
            said = str(error).replace("The body", "it")
            raise Failed(
                f"line {self._number} of stdin is no event: {said}. One looks like "
                '{"type": "log", "data": {"line": "hello"}}',
                USAGE,
            ) from None
        return Draft(
            type=found.type,
            level=found.level,
            data=found.data,
            series_id=found.series_id,
            series_mode=found.series_mode,
            series_acc_field=found.series_acc_field,
        )
