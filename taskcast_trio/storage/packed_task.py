"""A task as bytes, for stores that keep it as one value.

They are MessagePack, with each of the caller's own values (raw JSON text) as an extension value.
JSON text around them would have to be parsed as a whole when it is read, and what was accepted
value by value (lone surrogates among look-alikes of their escapes) might not be readable together.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct

from taskcast_trio.core.model import Task

_RAW: Final = 1


def pack_task(task: Task) -> bytes:
    return msgspec.msgpack.encode(_plain(task))


def unpack_task(packed: bytes) -> Task:
    return msgspec.convert(_TASK.decode(packed), Task)


def _plain(value: Any) -> Any:
    if isinstance(value, Raw):
        return msgspec.msgpack.Ext(_RAW, bytes(value))
    if isinstance(value, Struct):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        fields = ((spelled, getattr(value, name)) for name, spelled in names)
        return {spelled: _plain(field) for spelled, field in fields if field is not UNSET}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _raw(code: int, data: memoryview) -> Raw:
    return Raw(bytes(data))


_TASK: Final = msgspec.msgpack.Decoder(ext_hook=_raw)
