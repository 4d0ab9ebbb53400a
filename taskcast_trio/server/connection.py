"""What every connection shares: its context, limits, counters, and how a crash is contained."""

from __future__ import annotations

import math
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from taskcast_trio.server.http1_parser import MAX_HEAD_BYTES
from taskcast_trio.server.target import ASGIApp

SocketStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@dataclass(slots=True)
class GuardStats:
    """Counters of a server, for export. All but `connections_open` only grow."""

    connections_open: int = 0
    accepted_total: int = 0
    refused_total: int = 0
    """Connections closed at once because the cap was reached."""
    guarded_errors_total: int = 0
    """Exceptions that ended their own connection and nothing else."""
    app_errors_total: int = 0
    """Exceptions that the ASGI application let out."""
    write_timeouts_total: int = 0
    """Connections cut because the peer did not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one connection, those of time in seconds."""

    write_timeout_s: float = 30.0
    """For each chunk of at most 64 KiB to be taken by the kernel."""
    header_timeout_s: float = 10.0
    """From the first byte of a request head (or from accept) to its end."""
    keep_alive_timeout_s: float = 75.0
    """Between a response and the first byte of the next request."""
    body_pause_s: float = 30.0
    """Within a body, for its next part. Its whole time is for the application to limit."""
    handshake_timeout_s: float = 10.0
    """For the TLS handshake."""
    close_grace_s: float = 2.0
    """From the end of a connection, for its handlers and unread input."""
    max_head_bytes: int = MAX_HEAD_BYTES


class ThrottledLog:
    """Logs each kind of event at most once per `interval_s` and says how many it left out."""

    def __init__(self, logger: Any, interval_s: float = 1.0) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._quiet: dict[str, tuple[float, int]] = {}  # event -> quiet until, left out

    def error(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        """Log `event`; of `error` only types and places, as its text may quote a payload."""
        now = trio.current_time()
        until, left_out = self._quiet.get(event, (-math.inf, 0))
        if now < until:
            self._quiet[event] = (until, left_out + 1)
            return
        self._quiet[event] = (now + self._interval_s, 0)
        if error is not None:
            leaves = list(_leaves(error))[:3]
            fields["error"] = [type(leaf).__name__ for leaf in leaves]
            fields["where"] = [_places(leaf) for leaf in leaves]
        self._logger.error(event, left_out=left_out, **fields)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _places(error: BaseException, depth: int = 4) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-depth:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


class contained:  # noqa: N801  (used as a function, like contextlib.suppress)
    """Hand every `Exception` of the block, grouped or not, to `on_error`; the rest goes on.

    `Cancelled`, `KeyboardInterrupt` and their like are raised again, without the exceptions that
    may have come with them.
    """

    __slots__ = ("_on_error",)

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(exc, Exception):
            self._on_error(exc)
            return True
        if isinstance(exc, BaseExceptionGroup):
            errors, rest = exc.split(Exception)
            if errors is not None:
                self._on_error(errors)
            if rest is not None:
                raise rest from None
        return False


def _no_nursery(*_: object) -> None:
    raise RuntimeError("the server is not running")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionContext:
    """What the connections of one server share."""

    app: ASGIApp
    limits: Limits
    stats: GuardStats
    log: ThrottledLog
    config: Config
    worker: WorkerContext = field(default_factory=lambda: WorkerContext(None))
    spawn: Callable[..., None] = _no_nursery
    """Starts a task that lives as long as the server; what it does ends with its connection."""
    state: dict[str, Any] = field(default_factory=dict)
    """The lifespan state of the application (ASGI lifespan 2.0); each request gets a copy."""

    @property
    def draining(self) -> bool:
        return self.worker.terminated.is_set()


class Connection(Protocol):
    """One accepted connection, as the server sees it."""

    async def run(self) -> None:
        """Serve the connection until it is closed. Closes the stream, however it ends."""

    def begin_drain(self) -> None:
        """End now if idle; else end after the response in progress (`context.draining`)."""

    def end_if_idle(self, now: float) -> float:
        """End it if it has waited too long for a request; when that would be, infinite if never."""

    def abort(self) -> None:
        """Cut the connection at once, shielded writes included. Idempotent, never blocks."""


ConnectionFactory = Callable[[SocketStream, ConnectionContext], Connection]
"""How a server turns an accepted stream into a connection: the place to put another protocol."""


Watch = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Waits for something on behalf of the reading task, with an eye on the peer."""
