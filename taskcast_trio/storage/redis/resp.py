"""Commands as they are sent: arrays of bulk strings (RESP 2)."""

from __future__ import annotations

from typing import TypeAlias

Value: TypeAlias = bytes | str | int


def bulk(value: Value) -> bytes:
    if not isinstance(value, bytes):
        value = str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(value), value)


def command(*values: Value) -> bytes:
    return b"*%d\r\n%b" % (len(values), b"".join(map(bulk, values)))
