"""The head of an answer, as it is sent (RFC 9112, sections 4 and 5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Final

_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


class Date:
    """The Date field, made once a second (RFC 9110, section 6.6.1)."""

    second = -1
    line = b""

    @classmethod
    def now(cls) -> bytes:
        second = int(time())
        if second != cls.second:
            cls.second = second
            cls.line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return cls.line


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def head(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The head of an answer, but for the blank line."""
    return status_line(status) + Date.now() + b"".join(b"%b: %b\r\n" % field for field in headers)


@dataclass(frozen=True, slots=True)
class Fields:
    text: bytes
    length: int | None
    closes: bool


@lru_cache(maxsize=1024)
def encode_fields(headers: tuple[tuple[bytes, bytes], ...], bodiless: bool) -> Fields:
    """The header fields of an answer as they are sent. Answers repeat themselves: so it is cached.

    Raises:
        ValueError: a name or value could not be sent without changing what follows.
    """
    lines, length, closes = [], None, False
    for name, value in headers:
        name = bytes(name).lower()
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"header field {name!r} can't be sent")
        if name == b"content-length":
            length = int(value)
            if bodiless:
                continue
        elif name == b"transfer-encoding":  # the server's part, as ASGI has it
            continue
        closes = closes or (name == b"connection" and value.lower() == b"close")
        lines.append(b"%b: %b\r\n" % (name, value))
    return Fields(b"".join(lines), length, closes)
