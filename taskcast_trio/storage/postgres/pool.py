"""The bridge to asyncpg: connections, and units of work on them, bounded in number and time.

asyncpg runs on a trio-asyncio loop. Cancelling a Trio task that waits for an asyncio one waits
until that one has ended, and asyncpg, told to cancel a query, asks the server to: a server that is
frozen would hold both. So a unit of work is one asyncio function that acquires, queries and
releases; when it is cancelled its connection is cut first, and nothing is left to wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg  # type: ignore[import-untyped]
import structlog
import trio
import trio_asyncio  # type: ignore[import-untyped]

from taskcast_trio.core.errors import StoreUnavailable

from .connection import Connection
from .errors import CONNECTION_ERRORS, translated

T = TypeVar("T")

ROUNDING_S: Final = 0.5
"""How much later than ours the server's own deadline is: it is for what we have given up."""

AsyncioCancelled: Final = asyncio.CancelledError
"""Not Trio's: what holds of handling that one does not of this."""

_CLOSED: Final = "The PostgreSQL store is closed"

log = structlog.get_logger(__name__)


@contextmanager
def _end_of_loop() -> Iterator[None]:
    """Say what it means when an asyncio task was cancelled, but not by a scope of ours."""
    try:
        yield
    except AsyncioCancelled:
        raise StoreUnavailable(_CLOSED) from None


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
        loop: trio_asyncio.TrioEventLoop,
        url: str,
        *,
        max_connections: int,
        timeout_s: float,
    ) -> None:
        self.timeout_s = timeout_s
        self.faults = 0
        """Errors in asyncio callbacks, which belong to no call."""
        self._loop = loop
        self._url = url
        self._room = trio.Semaphore(max_connections)
        self._idle: list[Connection] = []
        self._closed = False
        loop.set_exception_handler(self._fault)

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # The default handler of trio-asyncio would end every task of the program.
        self.faults += 1
        log.warning("postgres_fault", error=type(context.get("exception")).__name__)

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
                if self._closed:
                    raise StoreUnavailable(_CLOSED)
                with _end_of_loop():
                    result: T = await self._loop.run_aio_coroutine(self._unit(work, apart))
                return result
        raise StoreUnavailable(f"PostgreSQL gave no answer in {limit_s:g} s")

    async def _unit(self, work: Callable[[Connection], Awaitable[T]], apart: bool) -> T:
        held = _Held()
        task = self._loop.create_task(self._attempts(work, apart, held))
        cancelled: BaseException | None = None
        try:
            await asyncio.wait({task})
        except AsyncioCancelled as error:
            cancelled = error
        if cancelled is not None:
            held.cut()
            task.cancel()
            await asyncio.wait({task})  # at once: it has no connection left
            if not task.cancelled():
                task.exception()  # looked at: asyncio has nothing to complain of
            raise cancelled
        result: T = task.result()
        return result

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
            connection: Connection = await asyncpg.connect(self._url, loop=self._loop)
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
        """Close what is idle at once; what is used, when its unit of work ends."""
        self._closed = True
        self._drop_idle()


@asynccontextmanager
async def open_pool(url: str, *, max_connections: int, timeout_s: float) -> AsyncIterator[Pool]:
    """A pool, open as long as the context, which also runs the asyncio loop.

    Nothing is connected before it is needed. Leaving closes every connection and waits for no
    server; calls that still run end with StoreUnavailable. The body's own exception is raised as
    it is.

    Raises:
        ValueError: the URL is none of PostgreSQL.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("a PostgreSQL URL begins with postgresql://")
    raised: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        pool = Pool(loop, url, max_connections=max_connections, timeout_s=timeout_s)
        try:
            yield pool
        except Exception as error:
            raised = error
        finally:
            pool.close()
    if raised is not None:
        raise raised
