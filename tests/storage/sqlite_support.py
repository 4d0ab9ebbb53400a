"""Looking into a database file from beside the store, and holding its writer at a chosen moment."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import trio

from taskcast_trio.storage.sqlite import SqliteBackend

from .support import PATIENCE_S, Announced


def writer_connection(backend: SqliteBackend) -> sqlite3.Connection:
    return backend.store.writer._connection


def reader_connections(backend: SqliteBackend) -> list[sqlite3.Connection]:
    return backend.store._readers._idle


def rows_of(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


@contextmanager
def statements(backend: SqliteBackend) -> Iterator[list[str]]:
    """Every statement that the writer runs."""
    told: list[str] = []
    connection = writer_connection(backend)
    connection.set_trace_callback(told.append)
    try:
        yield told
    finally:
        connection.set_trace_callback(None)


@asynccontextmanager
async def listening(backend: SqliteBackend) -> AsyncIterator[Announced]:
    """Everything that is announced meanwhile."""
    sink = Announced()
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.broadcast.run, sink)
        yield sink
        nursery.cancel_scope.cancel()


async def work_of(connections: list[sqlite3.Connection], step: Awaitable[object]) -> int:
    """How many tens of instructions SQLite runs on the connections for the step: a measure of work
    that no clock disturbs.
    """
    ticks = 0

    def tick() -> int:
        nonlocal ticks
        ticks += 1
        return 0

    for connection in connections:
        connection.set_progress_handler(tick, 10)
    await step
    for connection in connections:
        connection.set_progress_handler(None, 10)
    return ticks


class Gate:
    """Holds the writer just before its next COMMIT, or the next look just before its end, until it
    is opened.
    """

    def __init__(self, backend: SqliteBackend, *, look: bool = False) -> None:
        self._reached = trio.Event()
        self._open = threading.Event()
        self._statement = "ROLLBACK" if look else "COMMIT"
        connection = reader_connections(backend)[-1] if look else writer_connection(backend)
        connection.set_trace_callback(self._trace)

    def _trace(self, statement: str) -> None:
        if statement == self._statement and not self._open.is_set():
            trio.from_thread.run_sync(self._reached.set)
            assert self._open.wait(PATIENCE_S)

    async def reached(self) -> None:
        with trio.fail_after(PATIENCE_S):
            await self._reached.wait()

    def open(self) -> None:
        self._open.set()
