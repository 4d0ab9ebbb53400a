"""What SQLite's errors mean to those who wait for an answer, and to those who start a server."""

from __future__ import annotations

import sqlite3
from typing import Final

from taskcast_trio.core.errors import StoreUnavailable

_REASONS: Final = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_BUSY: "another process holds its lock",
    sqlite3.SQLITE_LOCKED: "another process holds its lock",
    sqlite3.SQLITE_IOERR: "its disk fails",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_CANTOPEN: "its file can't be opened",
    sqlite3.SQLITE_CORRUPT: "its file is damaged",
    sqlite3.SQLITE_NOTADB: "its file is no SQLite database",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
}


def reason(error: sqlite3.Error) -> str | None:
    """In words, what keeps the database from working; None where the fault is the caller's."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    return _REASONS.get(code & 0xFF)  # extended codes carry the primary one in the low byte


def unavailable(error: sqlite3.Error) -> StoreUnavailable | None:
    """The answer to a step that met ``error``; None where the fault is the step's own."""
    why = reason(error)
    return None if why is None else StoreUnavailable(f"The database is unavailable: {why}")
