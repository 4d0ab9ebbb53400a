"""The bridge to asyncio: one loop, and units of work on it that Trio bounds and cancels.

Drivers of databases run on a trio-asyncio loop, and only this file knows it. Cancelling a Trio task
that waits for an asyncio one waits until that one has ended, which a server that is frozen could
hold up for ever. So a unit of work comes with a way to cut its connection: when it is cancelled the
connection is cut first, and nothing is left to wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

import structlog
import trio_asyncio  # type: ignore[import-untyped]

from taskcast_trio.core.errors import StoreUnavailable

T = TypeVar("T")

AsyncioCancelled: Final = asyncio.CancelledError
"""Not Trio's: what holds of handling that one does not of this."""

log = structlog.get_logger(__name__)


class Bridge:
    """An asyncio loop beside Trio's; see :func:`open_bridge`."""

    def __init__(self, loop: trio_asyncio.TrioEventLoop) -> None:
        self.loop = loop
        self.faults = 0
        """Errors in asyncio callbacks, which belong to no call."""
        loop.set_exception_handler(self._fault)

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # The default handler of trio-asyncio would end every task of the program.
        self.faults += 1
        log.warning("asyncio_fault", error=type(context.get("exception")).__name__)

    def crossing(self, closed: str) -> Crossing:
        """A way over for one owner; ``closed`` is what its callers are told once it has ended."""
        return Crossing(self, closed)


class Crossing:
    """The units of work of one owner."""

    def __init__(self, bridge: Bridge, closed: str) -> None:
        self.bridge = bridge
        self._message = closed
        self._running: dict[asyncio.Task[Any], Callable[[], object]] = {}
        self._closed = False

    async def run(self, work: Callable[[], Awaitable[T]], cut: Callable[[], object]) -> T:
        """Run ``work``, an asyncio function, and return what it does.

        ``cut`` closes the connection that it has at the moment, at once and without a word from the
        server; it is a plain function. Cancelling calls it, and waits for nobody.

        Raises:
            StoreUnavailable: this is closed, or the loop has ended.
        """
        if self._closed:
            raise self.closed()
        with self._end_of_loop():
            result: T = await self.bridge.loop.run_aio_coroutine(self._unit(work, cut))
        return result

    def closed(self) -> StoreUnavailable:
        return StoreUnavailable(self._message)

    @contextmanager
    def _end_of_loop(self) -> Iterator[None]:
        """Say what it means when an asyncio task was cancelled, but not by a scope of ours."""
        try:
            yield
        except AsyncioCancelled:
            raise self.closed() from None

    async def _unit(self, work: Callable[[], Awaitable[T]], cut: Callable[[], object]) -> T:
        task: asyncio.Task[T] = self.bridge.loop.create_task(work())
        self._running[task] = cut
        cancelled: BaseException | None = None
        try:
            await asyncio.wait({task})
        except AsyncioCancelled as error:
            cancelled = error
        finally:
            del self._running[task]
        if cancelled is not None:
            cut()
            task.cancel()
            await asyncio.wait({task})  # at once: it has no connection left
            if not task.cancelled():
                task.exception()  # looked at: asyncio has nothing to complain of
            raise cancelled
        return task.result()

    def close(self) -> None:
        """Take no more work, and end what still runs with StoreUnavailable. Waits for nobody."""
        self._closed = True
        for task, cut in list(self._running.items()):
            cut()
            task.cancel()


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """An asyncio loop, running as long as the context; the body's own exception is raised as it is.

    Leaving ends what still runs on it.
    """
    raised: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        try:
            yield Bridge(loop)
        except Exception as error:
            raised = error
    if raised is not None:
        raise raised


@asynccontextmanager
async def bridge_or_own(bridge: Bridge | None) -> AsyncIterator[Bridge]:
    """The bridge that is given, which its owner closes; else one of our own."""
    if bridge is not None:
        yield bridge
        return
    async with open_bridge() as own:
        yield own
