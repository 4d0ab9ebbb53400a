"""Connections to PostgreSQL, and units of work on them, bounded in number and time.

asyncpg, told to cancel a query, asks the server to, and one that is frozen would hold it. So a unit
of work is one asyncio function that acquires, queries and releases; when it is cancelled its
connection is cut first (see :mod:`taskcast_trio.storage.bridge`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import asyncpg  # type: ignore[import-untyped]
import trio

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.bridge import Bridge, bridge_or_own

from .connection import Connection
from .errors import CONNECTION_ERRORS, translated

T = TypeVar("T")

ROUNDING_S: Final = 0.5
"""How much later than ours the server's own deadline is: it is for what we have given up."""

_CLOSED: Final = "The PostgreSQL store is closed"


class _Held:
    """The connection that a unit of work has at the moment."""

    __slots__ = ("connection",)

    def __init__(self) -> None:
        self.connection: Connection | None = None

    def cut(self) -> None:
        if self.connection is not None:
            self.connection.terminate()


class Pool:
    """Connections to one database, made when they are needed; see :func:`open_pool`."""

    def __init__(
        self,
        bridge: Bridge,
        url: str,
        *,
        max_connections: int,
        timeout_s: float,
    ) -> None:
        self.timeout_s = timeout_s
        self.bridge = bridge
        self._crossing = bridge.crossing(_CLOSED)
        self._url = url
        self._room = trio.Semaphore(max_connections)
        self._idle: list[Connection] = []
        self._closed = False

    async def run(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        timeout_s: float | None = None,
        apart: bool = False,
    ) -> T:
        """Run ``work``, an asyncio function, with a connection.

        It must be idempotent: on a connection that turns out to be dead it is run once more. It
        ends the transactions that it begins, except by an exception, which rolls back. ``apart``
        gives it a connection of its own, without a limit on statements, closed afterwards.

        Raises:
            StoreUnavailable: the database is away, or gave no answer in ``timeout_s`` (by default
                that of the pool), the wait for a free connection included. What was to be written
                may have been.
            Refused: it can't hold a value that it was given.

        Cancelling closes the connection at once and waits for nobody.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        with trio.move_on_after(limit_s):
            async with self._room:
                held = _Held()
                return await self._crossing.run(lambda: self._attempts(work, apart, held), held.cut)
        raise StoreUnavailable(f"PostgreSQL gave no answer in {limit_s:g} s")

    async def _attempts(
        self, work: Callable[[Connection], Awaitable[T]], apart: bool, held: _Held
    ) -> T:
        try:
            while True:
                connection = None if apart else self._take()
                kept = connection is not None
                if connection is None:
                    connection = await self._connect(apart)
                try:
                    return await self._use(connection, work, apart, held)
                except CONNECTION_ERRORS:
                    if not kept or not connection.is_closed():
                        raise
                    # It died while nobody used it, and the others probably with it.
                    self._drop_idle()
        except CONNECTION_ERRORS as error:
            raise translated(error) from None

    async def _use(
        self,
        connection: Connection,
        work: Callable[[Connection], Awaitable[T]],
        apart: bool,
        held: _Held,
    ) -> T:
        usable = False
        failure: Exception | None = None
        held.connection = connection
        try:
            try:
                result = await work(connection)
            except Exception as error:
                failure = error
            if failure is not None:
                if connection.is_in_transaction() and not connection.is_closed():
                    await connection.execute("ROLLBACK")
                usable = True
                raise failure
            usable = True
            return result
        finally:
            held.connection = None
            if not usable or apart or self._closed:
                connection.terminate()
            elif not connection.is_closed():
                self._idle.append(connection)

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def _connect(self, apart: bool) -> Connection:
        try:
            connection: Connection = await asyncpg.connect(self._url, loop=self.bridge.loop)
        except OSError:
            raise
        except ValueError:
            raise StoreUnavailable("PostgreSQL can't be reached: its URL is not valid") from None
        try:
            limit_ms = 0 if apart else int((self.timeout_s + ROUNDING_S) * 1000)
            # Pages of a log are read in the order of an index: of a table that it has no statistics
            # of yet, the planner would rather collect and sort all that follows, for every page.
            await connection.execute(
                f"SET statement_timeout = {limit_ms};"
                f"SET idle_in_transaction_session_timeout = {limit_ms};"
                "SET enable_bitmapscan = off"
            )
            with suppress(asyncpg.PostgresError):  # PostgreSQL 14, and not on every system
                await connection.execute("SET client_connection_check_interval = 1000")
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    def close(self) -> None:
        """Close every connection at once; calls that still run end with StoreUnavailable."""
        self._closed = True
        self._crossing.close()
        self._drop_idle()


@asynccontextmanager
async def open_pool(
    url: str, *, max_connections: int, timeout_s: float, bridge: Bridge | None = None
) -> AsyncIterator[Pool]:
    """A pool, open as long as the context; without a ``bridge`` it has one of its own.

    Nothing is connected before it is needed. Leaving closes every connection and waits for no
    server; calls that still run end with StoreUnavailable. The body's own exception is raised as
    it is.

    Raises:
        ValueError: the URL is none of PostgreSQL.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("a PostgreSQL URL begins with postgresql://")
    async with bridge_or_own(bridge) as loop:
        pool = Pool(loop, url, max_connections=max_connections, timeout_s=timeout_s)
        try:
            yield pool
        finally:
            pool.close()
