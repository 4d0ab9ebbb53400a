"""The events of a task, or of all, as an asynchronous iterator."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Generic, Self

import anyio
import anyio.lowlevel

from .async_port import AsyncPort
from .following import MAX_BACKOFF_S, Done, Follow, Following, Gap, Item, Received
from .transport import CLOSE_TIMEOUT_S

__all__ = ["MAX_BACKOFF_S", "Done", "Follow", "Gap", "Received", "Subscription"]


class Subscription(Generic[Item]):
    """The events of one task, each once and in order; made by ``AsyncTaskcastClient.subscribe``.

    ::

        async with client.subscribe(task_id) as stream:
            async for event in stream:
                ...

    Entering connects, leaving closes the connection; between, a lost connection is replaced by a
    new one. The iteration ends when the task has (``done`` says how). Where it can't go on where it
    stood, it raises ``EventsLost``, after which a new iteration goes on with what is there.
    Cancelling a step closes the connection and loses nothing: the next step connects again. It
    belongs to one task of the event loop at a time and is entered once.
    """

    def __init__(self, follow: Follow[Item], port: AsyncPort) -> None:
        self._following = Following(follow, anyio.current_time)
        self._port = port

    @property
    def last_event_id(self) -> str | None:
        """The cursor: pass it to another subscription to go on from here. None while there is
        none.
        """
        return self._following.cursor.last_event_id

    @property
    def done(self) -> str | None:
        """The reason of the end, None before."""
        return self._following.done

    @property
    def gaps(self) -> deque[Gap]:
        """The newest gaps, each of which was also raised, or was an item."""
        return self._following.gaps

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known; False while it is being replaced."""
        return self._following.connected

    @property
    def reconnects(self) -> int:
        """How many connections were made after the first."""
        return self._following.reconnects

    @property
    def follow(self) -> Follow[Item]:
        """What is followed."""
        return self._following.follow

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ServerUnavailable: no answer.
            TaskcastError: the server refused; ``TaskNotFound`` and its like.
        """
        await self._port.run(self._following.enter())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._following.leave()
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await self._port.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        """The next event (or gap, where those are items); a checkpoint.

        Raises:
            StopAsyncIteration: the task has ended, see ``done``.
            EventsLost: it does not go on where it stood; the next step is of what is there.
            RuntimeError: it is not entered, or was left.
            ServerUnavailable: reconnecting failed for longer than the subscription's patience.
            EventTooLarge: an event is over the size that the subscription takes.
            TaskcastError: the server refused to go on, or sent what can't be read.
        """
        item = await self.receive()
        if item is None:
            raise StopAsyncIteration
        return self._following.handed_out(item)

    async def receive(self) -> Received | None:
        """As a step of the iteration, but for the end, which is None, and gaps, which are items
        whatever was asked for.
        """
        await anyio.lowlevel.checkpoint()
        item = self._following.ready()
        if item is None:
            item = await self._port.run(self._following.next())
        return item
