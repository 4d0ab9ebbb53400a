"""Notes: each a key of its own, which Redis removes some time after its expiry; and tables, each a
hash.
"""

from __future__ import annotations

import struct
from typing import Final

from .keys import bucket_of
from .scripts import script
from .steps import Steps

_EXPIRY: Final = struct.Struct(">q")
_NEVER: Final = -(1 << 63)
_SLACK_MS: Final = 60_000
"""How much longer Redis keeps a note: what counts is the expiry that stands with it."""


class Notes(Steps):
    """See :class:`NoteStore` for every step."""

    async def put_note(
        self, key: str, value: bytes, *, expires_ms: int | None, now_ms: int
    ) -> None:
        name = self._keys.note(key)
        if expires_ms is not None and expires_ms <= now_ms:
            command = self._commands.plain(bucket_of(key), "DEL", name)
        else:
            stored = _EXPIRY.pack(_NEVER if expires_ms is None else expires_ms) + value
            life = () if expires_ms is None else ("PX", expires_ms - now_ms + _SLACK_MS)
            command = self._commands.plain(bucket_of(key), "SET", name, stored, *life)
        await self._commands.do(command)

    async def note(self, key: str, *, now_ms: int) -> bytes | None:
        stored = await self._commands.do(
            self._commands.plain(bucket_of(key), "GET", self._keys.note(key))
        )
        return _living(stored, now_ms)

    async def take_note(self, key: str, *, now_ms: int) -> bytes | None:
        return _living(await self._take(key), now_ms)

    async def drop_note(self, key: str) -> bool:
        return await self._take(key) is not None

    async def rows(self, table: str) -> dict[str, bytes]:
        flat: list[bytes] = await self._commands.do(
            self._commands.plain(0, "HGETALL", self._keys.table(table))
        )
        return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}

    async def row(self, table: str, key: str) -> bytes | None:
        value: bytes | None = await self._commands.do(
            self._commands.plain(0, "HGET", self._keys.table(table), key)
        )
        return value

    async def swap_row(
        self,
        table: str,
        key: str,
        value: bytes | None,
        *,
        known: bytes | None,
        most: int | None = None,
    ) -> bytes | None:
        # Asked for once more after a lost reply, it finds its own value there: that is an answer.
        given = (b"" if each is None else b"=" + each for each in (known, value))
        limit = "" if most is None else most
        name = self._keys.table(table)
        there: bytes | None = await self._commands.do(
            self._commands.on_keys(script("swap_row"), 0, (name,), key, *given, limit)
        )
        return there

    async def _take(self, key: str) -> bytes | None:
        bucket, commands = bucket_of(key), self._commands
        names = (self._keys.note(key), self._keys.step(bucket, commands.request()))
        stored: bytes | None = await commands.do(
            commands.on_keys(script("take_note"), bucket, names, commands.remember_ms)
        )
        return stored


def _living(stored: bytes | None, now_ms: int) -> bytes | None:
    if stored is None:
        return None
    (expires_ms,) = _EXPIRY.unpack_from(stored)
    alive = expires_ms == _NEVER or now_ms < expires_ms
    return stored[_EXPIRY.size :] if alive else None
