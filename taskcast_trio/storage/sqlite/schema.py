"""The tables, and how a connection to them is opened.

A task is three things here. ``tasks`` says that it exists, in order of creation. ``logs`` counts
one life of its log: rows of events hang on the log's number, which is never given twice, so what is
left of a log that was dropped can be swept up later without anyone meeting it. ``versions`` holds
the task's own JSON values by revision: the current one, and older ones for as long as an
idempotency key may have to repeat an answer that showed them. ``timers`` and ``task_notes`` hang on
the task's number: they are few, and go in the step that drops the task or its log. ``kept_values``
has the values of series of a log that was trimmed, as they were when it first was: rows of events
can't tell them any more. ``publishers`` has the seq that is expected next of each publisher of a
log that counts its events, ``seqs`` the index and time of its latest ones.

Events are keyed by their place, so a ``latest`` event replaces a row, and stored order is the order
of the table. Nearly all places equal the index; the few that moved have an index of their own.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ..records import StoreRefused
from .failures import reason

Synchronous: TypeAlias = Literal["full", "normal"]

APPLICATION_ID: Final = 0x54434C47  # "TCLG"
KEEPS_VALUE: Final = "series_mode IN ('accumulate', 'latest') AND series_id <> ''"
"""Which events take part in the running value of a series; as the index below spells it."""

_FIRST: Final = f"""
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    log INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    revision INTEGER NOT NULL,
    imported INTEGER NOT NULL,
    status TEXT NOT NULL,
    type TEXT
);
CREATE TABLE logs (
    log INTEGER PRIMARY KEY AUTOINCREMENT,
    next_index INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    keys_until INTEGER NOT NULL
);
CREATE TABLE versions (
    log INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    keep_until INTEGER,
    body BLOB NOT NULL,
    PRIMARY KEY (log, revision)
);
CREATE TABLE events (
    log INTEGER NOT NULL,
    place INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    type TEXT NOT NULL,
    level TEXT NOT NULL,
    series_id TEXT,
    series_mode TEXT,
    acc_field TEXT,
    collapsed INTEGER,
    id TEXT,
    data BLOB,
    PRIMARY KEY (log, place)
) WITHOUT ROWID;
CREATE INDEX events_moved ON events (log, idx) WHERE idx <> place;
CREATE INDEX events_series ON events (log, series_id, idx) WHERE {KEEPS_VALUE};
CREATE INDEX events_foreign ON events (log, id) WHERE id IS NOT NULL;
CREATE TABLE answers (
    log INTEGER NOT NULL,
    key TEXT NOT NULL,
    expires_ms INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    next_index INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    entries BLOB NOT NULL,
    PRIMARY KEY (log, key)
);
CREATE INDEX answers_expiry ON answers (expires_ms);
CREATE TABLE dropped (log INTEGER PRIMARY KEY);
CREATE TABLE notes (
    key TEXT PRIMARY KEY,
    expires_ms INTEGER,
    value BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX notes_expiry ON notes (expires_ms) WHERE expires_ms IS NOT NULL;
"""

_SECOND: Final = """
ALTER TABLE tasks ADD COLUMN former BLOB;
ALTER TABLE logs ADD COLUMN trimmed INTEGER NOT NULL DEFAULT -1;
ALTER TABLE logs ADD COLUMN trims INTEGER NOT NULL DEFAULT 0;
CREATE TABLE kept_values (
    log INTEGER NOT NULL,
    series_id TEXT NOT NULL,
    place INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    type TEXT NOT NULL,
    level TEXT NOT NULL,
    series_mode TEXT,
    acc_field TEXT,
    collapsed INTEGER,
    id TEXT,
    data BLOB,
    PRIMARY KEY (log, series_id)
) WITHOUT ROWID;
CREATE TABLE timers (
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    due_ms INTEGER NOT NULL,
    PRIMARY KEY (number, kind)
) WITHOUT ROWID;
CREATE INDEX timers_due ON timers (kind, due_ms);
CREATE TABLE task_notes (
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (number, name)
) WITHOUT ROWID;
"""

_THIRD: Final = """
ALTER TABLE events ADD COLUMN client_id TEXT;
ALTER TABLE events ADD COLUMN client_seq INTEGER;
ALTER TABLE kept_values ADD COLUMN client_id TEXT;
ALTER TABLE kept_values ADD COLUMN client_seq INTEGER;
CREATE TABLE publishers (
    log INTEGER NOT NULL,
    client_id TEXT NOT NULL,
    expected INTEGER NOT NULL,
    PRIMARY KEY (log, client_id)
) WITHOUT ROWID;
CREATE TABLE seqs (
    log INTEGER NOT NULL,
    client_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    PRIMARY KEY (log, client_id, seq)
) WITHOUT ROWID;
"""

_FOURTH: Final = """
ALTER TABLE answers ADD COLUMN aside TEXT NOT NULL DEFAULT '';
"""

_VERSIONS: Final = (_FIRST, _SECOND, _THIRD, _FOURTH)
"""What each version adds to the one before; a file of any version comes to the same tables."""

SCHEMA_VERSION: Final = len(_VERSIONS)

_EDGES: Final = (
    "SELECT max(number), max(id) FROM tasks",
    "SELECT max(log) FROM logs",
    "SELECT max(log) FROM versions",
    "SELECT max(log) FROM events",
    "SELECT max(log) FROM answers",
    "SELECT max(log) FROM dropped",
    "SELECT max(key) FROM notes",
    "SELECT max(number), max(kind) FROM timers",
    "SELECT max(number) FROM task_notes",
    "SELECT max(log) FROM kept_values",
    "SELECT max(log) FROM publishers",
    "SELECT max(log) FROM seqs",
)
"""Reads one edge of every table: cheap, and a file that was cut short does not get past it."""

_BUSY_MS: Final = 2_000
_WRITER_CACHE_KIB: Final = 16 * 1024
_WAL_BYTES: Final = 64 * 1024 * 1024


def connect_writer(
    path: Path, *, synchronous: Synchronous, max_pages: int | None
) -> sqlite3.Connection:
    """Open the file for writing, with the tables of this version: a new file gets all of them, one
    of an older version those that it lacks.

    Raises:
        StoreRefused: the file is no database, or not one of this program or of a newer version.
    """
    try:
        connection = _connect(path)
    except sqlite3.Error as error:
        raise StoreRefused(f"Can't open the database {path}: {reason(error) or error}") from error
    try:
        version = _version(connection, path)
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        if version < SCHEMA_VERSION:
            _upgrade(connection, version)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        if max_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {max_pages}")
        _look_at_edges(connection)
    except sqlite3.Error as error:
        connection.close()
        raise StoreRefused(f"Can't open the database {path}: {reason(error) or error}") from error
    except StoreRefused:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a file that a writer has open already."""
    connection = _connect(path)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are begun and ended by hand; a connection moves between worker threads, but never
    # two of them use it at a time.
    return sqlite3.connect(
        path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False
    )


def _number(connection: sqlite3.Connection, query: str) -> int:
    (number,) = connection.execute(query).fetchone()
    return int(number)


def _look_at_edges(connection: sqlite3.Connection) -> None:
    for query in _EDGES:
        connection.execute(query).fetchall()


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the tables in the file; 0 where it is new."""
    application = _number(connection, "PRAGMA application_id")
    version = _number(connection, "PRAGMA user_version")
    if application == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise StoreRefused(
                f"The database {path} has schema version {version}: a newer program wrote it "
                f"(this one knows version {SCHEMA_VERSION})"
            )
        return version
    if application or version or _number(connection, "SELECT count(*) FROM sqlite_master"):
        raise StoreRefused(f"{path} is a database of another program")
    return 0


def _upgrade(connection: sqlite3.Connection, version: int) -> None:
    # One transaction: a crash, or a file that turns out to be damaged, leaves what was there.
    connection.executescript(
        f"BEGIN IMMEDIATE; {''.join(_VERSIONS[version:])}"
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
    )
    _look_at_edges(connection)
    connection.execute("COMMIT")
