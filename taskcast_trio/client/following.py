"""Following events over SSE, across lost connections: everything of it but the I/O.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeAlias, TypeVar, cast

from taskcast_trio.core.errors import TaskcastError, Unauthorized
from taskcast_trio.core.model import Envelope, Wire

from .errors import EventsLost, ResponseError, decode, refusal
from .sse import DEFAULT_MAX_EVENT_SIZE, ServerSentEvent, SSEParser
from .steps import Bound, Close, Flow, Open, Read, Renew, Reply, Request, Sleep

KEEPALIVE: Final = "Taskcast-Keepalive"
"""With it the head of a stream says after which silence (s) the server sends a comment."""
KEEPALIVES_MISSED: Final = 2
STALL_S: Final = 30.0
GLOBAL_STALL_S: Final = 60.0
"""The silence that is a lost connection where the server does not say how often it sends one."""
MIN_STALL_S: Final = 1.0
PATIENCE_S: Final = 300.0
DEFAULT_RETRY_MS: Final = 2000
MIN_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 30.0
JITTER: Final = 0.5
GAPS_KEPT: Final = 100
NOT_ENTERED: Final = (
    "A subscription is iterated inside of its context: `async with client.subscribe(...) as stream`"
    " (`with`, for the synchronous client)"
)

_OK: Final = 200
_NO_CONTENT: Final = 204
_MAX_DOUBLINGS: Final = 16


Gaps: TypeAlias = Literal["raise", "deliver"]


class Gap(Wire, frozen=True, kw_only=True):
    """What was before can't be continued: the events from raw index ``replayed_from`` on come
    again, or anew.

    Forget what you have built from the events before it. Following all tasks, there is one after
    each lost connection (``reconnected``): what came meanwhile is missing, nothing comes again.
    """

    reason: str
    replayed_from: int


class Done(Wire, frozen=True, kw_only=True):
    """The end: the task's terminal status, or ``deleted``."""

    reason: str


class _Farewell(Wire, frozen=True, kw_only=True):
    """Why the server ends the stream of a caller."""

    code: str


Received: TypeAlias = Envelope | Gap
Item = TypeVar("Item", bound=Received, covariant=True)
"""What iterating a subscription gives."""


class Cursor:
    """Which events of one task were handed out already."""

    def __init__(self, last_event_id: str | None) -> None:
        self.last_event_id = last_event_id
        self.index = -1
        """The raw index that the cursor stands for; -1 while unknown."""
        self.latest: dict[str, str] = {}
        """Event ids of ``latest`` series by series id, as long as they may come again."""
        self._latest_top = -1
        self._unsettled: set[str] = set()
        """Ids of the events handed out that the cursor may not pass yet."""
        self._unsettled_top = -1

    def reset(self) -> None:
        """Forget: everything may come again."""
        self.last_event_id, self.index = None, -1
        self.latest.clear()
        self._unsettled.clear()

    def advance(self, event: Envelope, *, resumable: bool) -> bool:
        """Move to ``event``; False where it has been handed out before.

        An event without an ``id`` of its own comes before a snapshot that has pieces from before
        it, and comes again if the connection is lost until then.
        """
        if event.raw_index <= self.index:
            return False
        repeated = event.event_id in self._unsettled
        if not resumable:
            self._unsettled.add(event.event_id)
            self._unsettled_top = max(self._unsettled_top, event.raw_index)
            return not repeated
        if event.series_mode == "latest" and event.series_id:
            known = self.latest.get(event.series_id)
            self.latest[event.series_id] = event.event_id
            self._latest_top = max(self._latest_top, event.raw_index)
            return known != event.event_id
        self.last_event_id, self.index = event.event_id, event.raw_index
        if self._unsettled and self.index >= self._unsettled_top:
            self._unsettled.clear()
        if self.latest and self.index > self._latest_top:
            self.latest.clear()
        return not repeated


@dataclass(frozen=True)
class Follow(Generic[Item]):
    """What to follow, and how patiently; see `streams` for what the numbers mean."""

    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    task_id: str | None = None
    """None for the stream of all tasks, which knows no cursor."""
    since: Mapping[str, str] = field(default_factory=dict)
    """Where to begin as long as there is no cursor."""
    last_event_id: str | None = None
    accumulated: bool = False
    gaps: Gaps = "raise"
    stall_s: float | None = None
    """None: what the server says, else ``unsaid_stall_s``."""
    unsaid_stall_s: float = STALL_S
    patience_s: float = PATIENCE_S
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE

    def request(self, last_event_id: str | None) -> Request:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        params = {**self.params, **self.since}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
            params = dict(self.params)
        stall_s = self.unsaid_stall_s if self.stall_s is None else self.stall_s
        return Request("GET", self.path, params, headers, read_timeout_s=stall_s)

    def silence_s(self, headers: Mapping[str, str]) -> float | None:
        """How long a stream with this head may bring no byte; None: as long as its request said."""
        if self.stall_s is not None:
            return None
        try:
            keepalive_s = float(headers.get(KEEPALIVE, ""))
        except ValueError:
            return None
        if not 0 < keepalive_s < math.inf:
            return None
        return max(KEEPALIVES_MISSED * keepalive_s, MIN_STALL_S)


class Following(Generic[Item]):
    """The state of one subscription."""

    def __init__(self, follow: Follow[Item], clock: Callable[[], float]) -> None:
        self.follow = follow
        self.cursor = Cursor(follow.last_event_id)
        self.done: str | None = None
        self.gaps: deque[Gap] = deque(maxlen=GAPS_KEPT)
        self._given_up: str | None = None
        """The cursor that the newest gap did away with."""
        self.reconnects = 0
        self._entered: bool | None = None
        """None before."""
        self._clock = clock
        self._parser = SSEParser()
        self._retry_ms = DEFAULT_RETRY_MS
        self._failures = 0
        self._at_once = False
        self._connected = False
        self._connected_at = -math.inf
        self._dropped = False
        """Whether it is a cancelled step of ours that has closed the connection."""
        self._lost_at: float | None = None
        self._due_at = -math.inf
        """When to connect again, as long as it is lost."""
        self._events: Iterator[ServerSentEvent] = iter(())

    @property
    def connected(self) -> bool:
        return self._connected

    def ready(self) -> Received | None:
        """The next item of what has been received; None for none.

        Raises:
            EventTooLarge: an event is over the size that the subscription takes.
            ResponseError: an event can't be read.
        """
        while self.done is None:
            event = next(self._events, None)
            if event is None:
                return None
            item = self._interpret(event)
            if item is not None:
                self._failures = 0
                return item
        return None

    def handed_out(self, item: Received) -> Item:
        """The item as an iteration gives it.

        Raises:
            EventsLost: it is a gap, and those are to be raised.
        """
        if isinstance(item, Gap) and self.follow.gaps == "raise":
            raise EventsLost(
                item.reason,
                item.replayed_from,
                task_id=self.follow.task_id,
                last_event_id=self._given_up,
            )
        return cast(Item, item)

    def next(self) -> Flow[Received | None]:
        """Wait for the next item; None at the end.

        Raises:
            RuntimeError: it is not entered, or was left: nobody would close its connections.
            ServerUnavailable: reconnecting failed for longer than the patience.
            TaskcastError: the server refused to go on, or sent what can't be read.
        """
        if not self._entered:
            raise RuntimeError(NOT_ENTERED)
        while (item := self.ready()) is None and self.done is None:
            if not self._connected:
                if (gap := (yield from self._reconnect())) is not None:
                    return gap
                continue
            try:
                chunk: bytes | None = yield Read()
            except GeneratorExit:
                self._dropped = True
                raise
            if chunk is None:
                yield from self.close()
            else:
                self._events = self._feed(chunk)
        if item is None:
            yield from self.close()
        return item

    def enter(self) -> Flow[None]:
        """Connect for the first time. Raises: as :meth:`open`.

        Raises:
            RuntimeError: it was entered before.
        """
        if self._entered is not None:
            raise RuntimeError(
                "A subscription is entered once: make another one, and pass it"
                " `last_event_id` to go on from there"
            )
        yield from self.open()
        self._entered = True

    def leave(self) -> None:
        """Take it that nobody iterates any more."""
        self._entered = False

    def open(self) -> Flow[None]:
        """Connect.

        Raises:
            ServerUnavailable: no answer.
            TaskcastError: the server refused; ``TaskNotFound`` and its like.
        """
        request = self.follow.request(self.cursor.last_event_id)
        reply: Reply = yield Open(request)
        if reply.status == Unauthorized.status and (yield Renew(reply.token)):
            reply = yield Open(request)
        if reply.status == _NO_CONTENT:
            # The task has ended and nothing follows the cursor.
            self.done = reply.headers.get("Taskcast-Status", "")
            return
        if reply.status != _OK:
            raise refusal(reply, self.follow.task_id)
        content_type = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "text/event-stream":
            told = f"Expected an event stream, got {content_type or 'no content type'}"
            raise ResponseError(told, status=reply.status, code="bad_answer", body=b"")
        self._parser = SSEParser(max_event_size=self.follow.max_event_size)
        if (silence_s := self.follow.silence_s(reply.headers)) is not None:
            yield Bound(silence_s)
        self._connected = True
        self._connected_at = self._clock()

    def close(self) -> Flow[None]:
        """Close the connection, if there is one. The cursor stays."""
        self._connected = False
        self._events = iter(())
        yield Close()

    def _interpret(self, event: ServerSentEvent) -> Received | None:
        """What an event is for the caller; None for nothing, as for those of unknown names."""
        data = event.data.encode()
        if event.event == "taskcast.event":
            envelope = decode(data, Envelope, status=_OK)
            if self.follow.task_id is None:
                return envelope
            resumable = event.id == envelope.event_id
            return envelope if self.cursor.advance(envelope, resumable=resumable) else None
        if event.event == "taskcast.gap":
            gap = decode(data, Gap, status=_OK)
            self.gaps.append(gap)
            self._given_up = self.cursor.last_event_id
            self.cursor.reset()
            return gap
        if event.event == "taskcast.done":
            self.done = decode(data, Done, status=_OK).reason
        elif event.event == "taskcast.error":
            # The caller's token is over: who can get another one need not wait. Once: a stream that
            # brings only this is no progress.
            code = decode(data, _Farewell, status=_OK).code
            self._at_once = code.startswith(("token", "unauthorized")) and not self._failures
        return None

    def _feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        yield from self._parser.feed(chunk)
        if self._parser.retry_ms is not None:
            self._retry_ms = self._parser.retry_ms

    def _reconnect(self) -> Flow[Gap | None]:
        """Connect again, with growing pauses, until it works, is refused, or patience is over.

        Where there is no cursor to go on from, the gap that this leaves.
        """
        if self._lost_at is None:
            self._lose()
        while True:
            # A step that is cancelled here leaves the rest of the pause to the next one.
            yield Sleep(max(self._due_at - self._clock(), 0.0))
            self._failures += 1
            self._due_at = self._clock() + self._pause_s()
            try:
                yield from self.open()
            except TaskcastError as error:
                now, lost_at = self._clock(), self._lost_at
                if not error.retryable or lost_at is None or now - lost_at > self.follow.patience_s:
                    self._lost_at = None
                    raise
                asked_s = min(error.retry_after_s or 0, MAX_BACKOFF_S) * self._spread()
                self._due_at = now + max(self._pause_s(), asked_s)
            else:
                self.reconnects += 1
                self._lost_at = None
                if self.follow.task_id is not None:
                    return None
                gap = Gap(reason="reconnected", replayed_from=-1)
                self.gaps.append(gap)
                return gap

    def _lose(self) -> None:
        """Take note that the connection is lost, and of when to have another one."""
        now = self._lost_at = self._clock()
        if now - self._connected_at > MAX_BACKOFF_S:
            self._failures = 0
        pause_s = 0.0 if self._at_once else self._pause_s()
        # The server has done nothing wrong where we have left it ourselves.
        self._due_at = (self._connected_at if self._dropped else now) + pause_s
        self._at_once = self._dropped = False

    def _pause_s(self) -> float:
        """The server's ``retry`` after a connection that brought an event, then doubling."""
        pause_s = self._retry_ms / 1000
        if self._failures:
            doublings = min(self._failures - 1, _MAX_DOUBLINGS)
            pause_s = max(pause_s, MIN_BACKOFF_S) * 2**doublings
        return min(pause_s, MAX_BACKOFF_S) * self._spread()

    def _spread(self) -> float:
        return random.uniform(1, 1 + JITTER)
