"""Server-sent events: what a stream sends, and when (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol, Self

import msgspec
import trio
from msgspec import UNSET

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import Draining, Forbidden, StoreUnavailable, Unauthorized
from taskcast_trio.engine import Delivery, Done, FollowAll, Gap, Subscription
from taskcast_trio.engine.items import Item, Pumped, Run
from taskcast_trio.server.auth.admission import Admission
from taskcast_trio.server.publishing import leave_with_peer
from taskcast_trio.server.target import Receive, Scope, Send

CHUNK_BYTES: Final = 64 * 1024
MAX_SHARED_BYTES: Final = 64 * 1024
OUTAGE_PAUSE_S: Final = 1.0
"""At most, between two tries to read on while the store is away."""
KEEPALIVE: Final = b": keepalive\n\n"
HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class Link(Protocol):
    """A connection that can be written to from another task than its own."""

    def take(self) -> None:
        """Say that the link is used: the connection then leaves watching the peer to its taker."""

    def push(self, body: bytes) -> bool:
        """Send without waiting; False: no more before an ordinary send, which brings the rest."""

    async def closed(self) -> None:
        """Wait for the peer to leave."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a stream keeps its connection: silence before a keepalive (s), wait before a reconnect
    (ms).
    """

    keepalive_s: float
    retry_ms: int

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The head of a stream: it says which silence is none, so that clients know a dead one."""
        return [*HEADERS, (b"taskcast-keepalive", f"{self.keepalive_s:.15g}".encode())]


def _retry(milliseconds: int) -> bytes:
    return b"retry: %d\n\n" % milliseconds


def _farewell(refusal: Unauthorized | Forbidden) -> bytes:
    """Tells why the stream ends, so that the client comes back with other credentials."""
    return b"event: taskcast.error\ndata: %b\n\n" % msgspec.json.encode({"code": refusal.code})


def _goodbye(retry_ms: int) -> bytes:
    """Tells the client when to come back, spread out so that they do not all come at once."""
    return _retry(random.randint(retry_ms // 2, retry_ms * 3 // 2))


async def _outage() -> None:
    """The store is away: a stream waits for it, and goes on where it stood."""
    await trio.sleep(random.uniform(OUTAGE_PAUSE_S / 2, OUTAGE_PAUSE_S))


def encode_all(items: Iterable[Pumped], *, wrap: bool) -> Iterator[bytes]:
    """The items as SSE blocks; runs as one block that their subscribers share."""
    for item in items:
        if isinstance(item, Run):
            yield from _encode_run(item, wrap)
        else:
            yield encode(item, wrap=wrap)


def _encode_run(run: Run, wrap: bool) -> Iterator[bytes]:
    first, shared = run.filtered_index, run.shared
    if shared is not None and (made := shared.get((wrap, first))) is not None:
        yield made
        return
    frames = (
        entry.frame(first + number) if wrap else entry.bare_frame()
        for number, entry in enumerate(run.entries)
    )
    if shared is None or sum(map(_size, run.entries)) > MAX_SHARED_BYTES:
        yield from frames
        return
    shared[wrap, first] = made = b"".join(frames)
    yield made


def _size(entry: Entry) -> int:
    return len(bytes(entry.event.data)) if entry.event.data is not UNSET else 0


def encode(item: Item, *, wrap: bool = True) -> bytes:
    """One item as an SSE block."""
    if isinstance(item, Delivery):
        entry = item.entry
        frame = entry.frame(item.filtered_index) if wrap else entry.bare_frame()
        return frame if item.resumable else frame.removesuffix(entry.id_line) + b"\n\n"
    if isinstance(item, Gap):
        data = {"reason": item.reason, "replayedFrom": item.replayed_from}
        return b"event: taskcast.gap\ndata: %b\n\n" % msgspec.json.encode(data)
    id_line = b"id: %b\n" % item.cursor.encode() if item.cursor is not None else b""
    reason = msgspec.json.encode({"reason": item.reason})
    return b"event: taskcast.done\n%bdata: %b\n\n" % (id_line, reason)


def chunks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Joins blocks to chunks of about 64 KiB: few writes, and none so large that it can't be
    bounded.
    """
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        parts.append(block)
        size += len(block)
        if size >= CHUNK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


class Stream(ABC):
    """The body of a stream; it ends early where its admission does. Who opens it closes it; before
    its last words it does so itself, so that who reads them may come again at once.
    """

    __slots__ = ("_chunks", "_closed", "_ended", "_last", "_source", "_told", "admission", "pace")

    def __init__(
        self,
        source: Subscription | FollowAll,
        pace: Pace,
        admission: Admission | None,
        *start: bytes,
        told: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``told`` waits until everybody knows who follows here."""
        self._source = source
        self._told = told
        self.pace = pace
        self.admission = admission
        """None for a HEAD, which gets no stream."""
        self._chunks: Iterator[bytes] = iter(start)
        self._last = b""
        self._ended = False
        """What is left are the chunks, and then the last words."""
        self._closed = False

    async def open(self) -> None:
        """Subscribe, and see that everybody knows; where that fails, or is cancelled, it is closed.

        Raises:
            Draining: the server shuts down.
            StoreUnavailable: where it begins can't be read.
        """
        try:
            await self._source.__aenter__()
        except BaseException:
            self._leave()
            raise
        try:
            if self._told is not None:
                await self._told()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the subscription at once, and give the place free. Idempotent."""
        if not self._closed:
            self._closed = True
            self._source.close()
            self._leave()

    def _leave(self) -> None:
        if self.admission is not None:
            self.admission.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        # Encoded as it is sent, so that a peer that does not read costs one chunk, not a page.
        while (chunk := next(self._chunks, None)) is None:
            if self._ended:
                if not (last := await self._take_leave()):
                    raise StopAsyncIteration
                return last
            blocks: Iterable[bytes] = [KEEPALIVE]
            try:
                with self._silence():
                    blocks = await self._blocks()
            except Draining:
                blocks = self._end(_goodbye(self.pace.retry_ms))
            except Forbidden as refusal:
                blocks = self._end(_farewell(refusal))
            except StoreUnavailable:
                await _outage()
            self._chunks = chunks(self._end(self._farewell()) if self._is_over() else blocks)
        return chunk

    def _end(self, last: bytes) -> Iterable[bytes]:
        """Nothing comes any more but this."""
        self._ended, self._last = True, last
        return ()

    async def _take_leave(self) -> bytes:
        """The last words, once; nobody counts the stream any more."""
        last, self._last = self._last, b""
        if last:
            self.close()
            if self._told is not None:
                await self._told()
        return last

    def _silence(self) -> trio.CancelScope:
        """A scope that ends when something has to be said: a keepalive, or why this ends."""
        scope = trio.CancelScope(deadline=self._silent_until())
        if self.admission is not None:
            self.admission.wake = scope.cancel
        return scope

    def _silent_until(self) -> float:
        keepalive = trio.current_time() + self.pace.keepalive_s
        return keepalive if self.admission is None else min(keepalive, self.admission.deadline)

    def _is_over(self) -> bool:
        """Whether the admission is; what the stream had to send is still in the log."""
        return self.admission is not None and not self._ended and self.admission.over

    def _farewell(self) -> bytes:
        assert self.admission is not None, "it is over"
        return _farewell(self.admission.reason)

    @abstractmethod
    async def _blocks(self) -> Iterable[bytes]:
        """Wait for the next blocks."""


class TaskStream(Stream):
    """A task's stream; it ends after ``taskcast.done``, or when the server drains."""

    __slots__ = ("_subscription", "_wrap")

    def __init__(
        self,
        subscription: Subscription,
        pace: Pace,
        admission: Admission | None = None,
        *,
        wrap: bool,
        told: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(subscription, pace, admission, _retry(pace.retry_ms), told=told)
        self._subscription = subscription
        self._wrap = wrap

    async def _blocks(self) -> Iterable[bytes]:
        return self._encode(await self._subscription.receive())

    def _encode(self, items: Sequence[Pumped]) -> Iterable[bytes]:
        if isinstance(done := items[-1], Done):
            self._end(encode(done, wrap=self._wrap))
            items = items[:-1]
        return encode_all(items, wrap=self._wrap)

    async def follow(self, send: Send, link: Link) -> bool:
        """Send the stream over a link: what is live goes out from the fan-out's own task.

        One task is all that a subscriber costs, also while it waits for the peer to leave. False
        where the peer has left.
        """
        try:
            while True:
                for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if self._is_over():
                    self._end(self._farewell())
                if self._ended:
                    break
                try:
                    items = await self._subscription.replay()
                except StoreUnavailable:
                    await _outage()
                    self._chunks = iter([KEEPALIVE])
                    continue
                if items:
                    self._chunks = chunks(self._encode(items))
                elif not await self._push_live(link):
                    return False
        except Draining:
            self._end(_goodbye(self.pace.retry_ms))
        except Forbidden as refusal:
            self._end(_farewell(refusal))
        last = await self._take_leave()
        await send({"type": "http.response.body", "body": last, "more_body": True})
        return True

    async def _push_live(self, link: Link) -> bool:
        """Push until something must be sent in the ordinary way; False where the peer left."""
        silence = self._silence()

        def write(items: list[Pumped]) -> bool:
            silence.deadline = self._silent_until()
            self._chunks = chunks(self._encode(items))
            return all(map(link.push, self._chunks))

        await self._subscription.pump(write, link.closed, silence)
        if not silence.cancelled_caught:
            return False
        if self._ended or self._is_over():
            # An empty chunk lets the link send what it could not send at once.
            self._chunks = chain([b""], self._chunks)
            return True
        silent = trio.current_time() >= silence.deadline
        self._chunks = iter([KEEPALIVE]) if silent else chain([b""], self._chunks)
        return True


class GlobalStream(Stream):
    """The stream of all tasks; it ends only when the server drains."""

    __slots__ = ("_events",)

    def __init__(self, events: FollowAll, pace: Pace, admission: Admission | None = None) -> None:
        super().__init__(events, pace, admission, KEEPALIVE, _retry(pace.retry_ms))
        self._events = events

    async def _blocks(self) -> Iterable[bytes]:
        return [entry.frame(0) for entry in await self._events.receive()]


async def send_stream(stream: Stream, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the stream, until it ends or the peer leaves.

    It is open, and closed after.
    """
    await send_head(stream, send)
    link: Link | None = scope.get("extensions", {}).get("taskcast.link")
    if link is not None and isinstance(stream, TaskStream):
        link.take()
        if await stream.follow(send, link):
            await send({"type": "http.response.body"})
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_with_peer, receive, nursery.cancel_scope)
        async for chunk in stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})
        nursery.cancel_scope.cancel()


async def send_head(stream: Stream, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": stream.pace.headers})
