"""Frees the rows of dropped logs a little at a time, so that no publish waits long for it."""

from __future__ import annotations

import sqlite3
from typing import Final

_MAX_ROWS: Final = 1_000
_MAX_BYTES: Final = 4 * 1024 * 1024
_MAX_PAGES: Final = 256
_MIN_FREE_PAGES: Final = 1_024


def sweep(connection: sqlite3.Connection) -> bool:
    """Do one small piece of the work, in a transaction of its own; True where there may be more.

    Pages that come free are used again. Where they are more than a third of a file, it shrinks.
    """
    row = connection.execute("SELECT log FROM dropped LIMIT 1").fetchone()
    if row is None:
        return _shrink(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        _sweep_log(connection, row[0])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return True


def _sweep_log(connection: sqlite3.Connection, log: int) -> None:
    execute = connection.execute
    last = _last_place(connection, log)
    if last is not None:
        execute("DELETE FROM events WHERE log = ? AND place <= ?", (log, last))
        return
    publisher = execute("SELECT client_id FROM publishers WHERE log = ? LIMIT 1", (log,)).fetchone()
    if publisher is not None:
        for table in ("seqs", "publishers"):
            execute(f"DELETE FROM {table} WHERE log = ? AND client_id = ?", (log, *publisher))
        return
    some_answers = "SELECT rowid FROM answers WHERE log = ? LIMIT ?"
    if execute(f"DELETE FROM answers WHERE rowid IN ({some_answers})", (log, _MAX_ROWS)).rowcount:
        return
    for table in ("kept_values", "versions", "logs", "dropped"):
        execute(f"DELETE FROM {table} WHERE log = ?", (log,))


def _last_place(connection: sqlite3.Connection, log: int) -> int | None:
    """Up to where the log's rows are one piece of work; None where it has none."""
    last, size = None, 0
    rows = connection.execute(
        "SELECT place, coalesce(length(data), 0) FROM events WHERE log = ? ORDER BY place LIMIT ?",
        (log, _MAX_ROWS),
    )
    for place, bytes_ in rows:
        size += bytes_
        if last is not None and size > _MAX_BYTES:
            break
        last = place
    return last


def _shrink(connection: sqlite3.Connection) -> bool:
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    if free < _MIN_FREE_PAGES or free < pages // 3:
        return False
    connection.execute(f"PRAGMA incremental_vacuum({_MAX_PAGES})").fetchall()
    return True
