"""The notes of the memory store: a dict, and a heap that knows which of them expires next; and its
tables.
"""

from __future__ import annotations

from collections import defaultdict
from heapq import heapify, heappop, heappush

import trio


class MemoryNotes:
    """Notes in this process's memory; see :class:`NoteStore` for every step.

    A put removes what has expired, in O(log n) on average. The heap keeps the places of notes that
    were replaced or removed until most of it is theirs.
    """

    def __init__(self) -> None:
        self._notes: dict[str, tuple[bytes, int | None]] = {}
        self._expiries: list[tuple[int, str]] = []
        self._tables: defaultdict[str, dict[str, bytes]] = defaultdict(dict)

    async def put_note(
        self, key: str, value: bytes, *, expires_ms: int | None, now_ms: int
    ) -> None:
        await trio.lowlevel.checkpoint()
        self._notes[key] = (value, expires_ms)
        if expires_ms is not None:
            heappush(self._expiries, (expires_ms, key))
        self._remove_expired(now_ms)
        if len(self._expiries) > 2 * len(self._notes) + 64:
            self._expiries = [
                (expires_ms, key)
                for key, (_, expires_ms) in self._notes.items()
                if expires_ms is not None
            ]
            heapify(self._expiries)

    async def note(self, key: str, *, now_ms: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return _living(self._notes.get(key), now_ms)

    async def take_note(self, key: str, *, now_ms: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return _living(self._notes.pop(key, None), now_ms)

    async def drop_note(self, key: str) -> bool:
        await trio.lowlevel.checkpoint()
        return self._notes.pop(key, None) is not None

    async def rows(self, table: str) -> dict[str, bytes]:
        await trio.lowlevel.checkpoint()
        return dict(self._tables[table])

    async def row(self, table: str, key: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._tables[table].get(key)

    async def swap_row(
        self,
        table: str,
        key: str,
        value: bytes | None,
        *,
        known: bytes | None,
        most: int | None = None,
    ) -> bytes | None:
        await trio.lowlevel.checkpoint()
        rows = self._tables[table]
        if rows.get(key) != known:
            return rows.get(key)
        if known is None and most is not None and len(rows) >= most:
            return None
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value
        return value

    def _remove_expired(self, now_ms: int) -> None:
        while self._expiries and self._expiries[0][0] <= now_ms:
            expires_ms, key = heappop(self._expiries)
            note = self._notes.get(key)
            if note is not None and note[1] == expires_ms:
                del self._notes[key]


def _living(note: tuple[bytes, int | None] | None, now_ms: int) -> bytes | None:
    if note is None:
        return None
    value, expires_ms = note
    return value if expires_ms is None or now_ms < expires_ms else None
