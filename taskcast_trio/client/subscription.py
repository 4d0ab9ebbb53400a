"""Following one task over SSE, across lost connections.

The cursor of a subscription is the id of the newest event that it has handed out. It goes with
every connection as ``Last-Event-ID``, so the server goes on after it, or says with a gap that it
can't.

Events of ``latest`` series do not move the cursor: in a replay they stand at the place of the value
that they replaced, ahead of events with lower indexes, and a connection that is lost between would
take those along. They may come again after a reconnect and are then known by their ids.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Final, Self, TypeAlias

import httpx
import trio

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.core.model import Envelope, Wire

from .errors import decode
from .sse import ServerSentEvent, SSEParser

DEFAULT_RETRY_MS: Final = 2000
MIN_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 30.0
JITTER: Final = 0.5
CLOSE_TIMEOUT_S: Final = 2.0
GAPS_KEPT: Final = 100


class Gap(Wire, frozen=True, kw_only=True):
    """What was before can't be continued: the events from raw index ``replayed_from`` on come
    again, or anew.

    Forget what you have built from the events before it.
    """

    reason: str
    replayed_from: int


class Done(Wire, frozen=True, kw_only=True):
    """The end: the task's terminal status, or ``deleted``."""

    reason: str


Received: TypeAlias = Envelope | Gap
Connect: TypeAlias = Callable[[str | None], Awaitable[httpx.Response]]


class Subscription:
    """The events of one task, each once and in order; made by ``AsyncTaskcastClient.subscribe``.

    ::

        async with client.subscribe(task_id) as stream:
            async for item in stream:
                ...

    Entering connects, leaving closes the connection; between, a lost connection is replaced by a
    new one. The iteration ends when the task has (``done`` says how). Cancelling a step closes the
    connection and loses nothing: the next step connects again. It belongs to one Trio task at a
    time and is entered once.

    Attributes:
        last_event_id: the cursor: pass it to another subscription to go on from here. None while
            there is none.
        done: the reason of the end, None before.
        gaps: the newest gaps, each of which was also handed out as an item.
        reconnects: how many connections were made after the first.
    """

    def __init__(
        self, connect: Connect, *, last_event_id: str | None, patience_s: float, max_event_size: int
    ) -> None:
        self.last_event_id = last_event_id
        self.done: str | None = None
        self.gaps: deque[Gap] = deque(maxlen=GAPS_KEPT)
        self.reconnects = 0
        self._connect = connect
        self._patience_s = patience_s
        self._max_event_size = max_event_size
        self._index = -1
        """The raw index that the cursor stands for; -1 while unknown."""
        self._latest: dict[str, str] = {}
        """Event ids of ``latest`` series by series id, as long as they may come again."""
        self._latest_top = -1
        self._unsettled: set[str] = set()
        """Ids of the events handed out that the cursor may not pass yet."""
        self._unsettled_top = -1
        self._retry_ms = DEFAULT_RETRY_MS
        self._failures = 0
        self._connected_at = -math.inf
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes]
        self._parser: SSEParser
        self._events: Iterator[ServerSentEvent] = iter(())

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ServerUnavailable: no answer.
            TaskcastError: the server refused; ``TaskNotFound`` and its like.
        """
        await self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        """The next event or gap; a checkpoint.

        Raises:
            StopAsyncIteration: the task has ended, see ``done``.
            ServerUnavailable: reconnecting failed for longer than the subscription's patience.
            EventTooLarge: an event is over the size that the subscription takes.
            TaskcastError: the server refused to go on, or sent what can't be read.
        """
        await trio.lowlevel.checkpoint()
        while self.done is None:
            event = next(self._events, None)
            if event is None:
                await self._receive()
                continue
            item = self._interpret(event)
            if item is not None:
                self._failures = 0
                return item
        await self._close()
        raise StopAsyncIteration

    def _interpret(self, event: ServerSentEvent) -> Received | None:
        """What an event is for the caller; None for nothing, as for those of unknown names."""
        data = event.data.encode()
        if event.event == "taskcast.event":
            envelope = decode(data, Envelope, status=200)
            resumable = event.id == envelope.event_id
            return envelope if self._advance(envelope, resumable) else None
        if event.event == "taskcast.gap":
            gap = decode(data, Gap, status=200)
            self.gaps.append(gap)
            self.last_event_id, self._index = None, -1
            self._latest.clear()
            self._unsettled.clear()
            return gap
        if event.event == "taskcast.done":
            self.done = decode(data, Done, status=200).reason
        return None

    def _advance(self, event: Envelope, resumable: bool) -> bool:
        """Move the cursor to ``event``; False where it has been handed out before.

        An event without an ``id`` of its own comes before a snapshot that has pieces from before
        it, and comes again if the connection is lost until then.
        """
        if event.raw_index <= self._index:
            return False
        repeated = event.event_id in self._unsettled
        if not resumable:
            self._unsettled.add(event.event_id)
            self._unsettled_top = max(self._unsettled_top, event.raw_index)
            return not repeated
        if event.series_mode == "latest" and event.series_id:
            known = self._latest.get(event.series_id)
            self._latest[event.series_id] = event.event_id
            self._latest_top = max(self._latest_top, event.raw_index)
            return known != event.event_id
        self.last_event_id, self._index = event.event_id, event.raw_index
        if self._unsettled and self._index >= self._unsettled_top:
            self._unsettled.clear()
        if self._latest and self._index > self._latest_top:
            self._latest.clear()
        return not repeated

    async def _receive(self) -> None:
        """Take the next chunk off the connection, or replace the connection."""
        if self._response is None:
            await self._reconnect()
            return
        try:
            chunk = await anext(self._chunks, None)
        except httpx.RequestError:
            chunk = None
        if chunk is None:
            await self._close()
            return
        self._events = self._feed(chunk)

    def _feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        yield from self._parser.feed(chunk)
        if self._parser.retry_ms is not None:
            self._retry_ms = self._parser.retry_ms

    async def _open(self) -> None:
        response = await self._connect(self.last_event_id)
        if response.status_code == httpx.codes.NO_CONTENT:
            # The task has ended and nothing follows the cursor.
            self.done = response.headers.get("Taskcast-Status", "")
            await response.aclose()
            return
        self._response = response
        self._chunks = response.aiter_bytes()
        self._parser = SSEParser(max_event_size=self._max_event_size)
        self._connected_at = trio.current_time()

    async def _reconnect(self) -> None:
        """Connect again, with growing pauses, until it works, is refused, or patience is over."""
        lost_at = trio.current_time()
        if lost_at - self._connected_at > MAX_BACKOFF_S:
            self._failures = 0
        while True:
            await trio.sleep(self._pause_s())
            self._failures += 1
            try:
                await self._open()
            except TaskcastError as error:
                if not error.retryable or trio.current_time() - lost_at > self._patience_s:
                    raise
            else:
                self.reconnects += 1
                return

    def _pause_s(self) -> float:
        """The server's ``retry`` after a connection that brought an event, then doubling."""
        pause_s = self._retry_ms / 1000
        if self._failures:
            pause_s = max(pause_s, MIN_BACKOFF_S) * 2 ** min(self._failures - 1, 16)
        return min(pause_s, MAX_BACKOFF_S) * random.uniform(1, 1 + JITTER)

    async def _close(self) -> None:
        """Close the connection, if there is one. The cursor stays."""
        response, self._response = self._response, None
        self._events = iter(())
        if response is None:
            return
        # httpx reads through nested async generators. Left suspended, they would wait for the
        # garbage collector, which Trio warns of; resumed under a cancelled scope, each unwinds in
        # order.
        with trio.CancelScope(deadline=-math.inf, shield=True):
            try:
                async for _ in self._chunks:
                    pass
            except httpx.RequestError:
                pass
        await response.aclose()
