"""A few connections that read while the writer writes, each used by one worker thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from .failures import unavailable

T = TypeVar("T")


class Readers:
    """Looks at the database, each time within one transaction: its parts belong together."""

    def __init__(self, connections: list[sqlite3.Connection]) -> None:
        self._idle = list(connections)
        self._limiter = trio.CapacityLimiter(len(connections))

    async def look(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """What ``query`` returns. Cancelled before it began, it is not run; then it is waited for.

        Raises:
            StoreUnavailable: the database can't be read.
        """
        return await trio.to_thread.run_sync(self._look, query, limiter=self._limiter)

    def _look(self, query: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._idle.pop()
        try:
            with _transaction(connection):
                return query(connection)
        except sqlite3.Error as error:
            refusal = unavailable(error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self._idle.append(connection)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
