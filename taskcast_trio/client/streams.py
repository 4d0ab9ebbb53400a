"""What can be followed; as `calls`, each function here is a method of both clients."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, overload

from taskcast_trio.core.model import Envelope, Level

from .composing import event_params, events_path, since_params
from .following import GLOBAL_STALL_S, PATIENCE_S, Follow, Gaps, Received
from .sse import DEFAULT_MAX_EVENT_SIZE


@overload
def subscribe(
    task_id: str,
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    include_status: bool = True,
    series_format: Literal["delta", "accumulated"] = "delta",
    since: str | datetime | None = None,
    last_event_id: str | None = None,
    gaps: Literal["raise"] = "raise",
    stall_s: float | None = None,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow[Envelope]: ...
@overload
def subscribe(
    task_id: str,
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    include_status: bool = True,
    series_format: Literal["delta", "accumulated"] = "delta",
    since: str | datetime | None = None,
    last_event_id: str | None = None,
    gaps: Literal["deliver"],
    stall_s: float | None = None,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow[Received]: ...
def subscribe(
    task_id: str,
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    include_status: bool = True,
    series_format: Literal["delta", "accumulated"] = "delta",
    since: str | datetime | None = None,
    last_event_id: str | None = None,
    gaps: Gaps = "raise",
    stall_s: float | None = None,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow[Any]:
    """Follow a task's events; enter the result and iterate it, see :class:`Subscription`.

    Without ``since`` and ``last_event_id`` it starts with the log so far, where each accumulate
    series is one event that holds its whole text (``series_snapshot``).

    Args:
        types: only these event types: exact, ``prefix.*``, or ``*``.
        levels: only these levels.
        include_status: whether ``taskcast:status`` events come.
        series_format: ``delta`` for the pieces of a series as published, ``accumulated`` for its
            running value with each.
        since: only what comes after this time, or after the event of this id; with every piece of a
            series as it was published.
        last_event_id: go on after this event, as a subscription does that was cut there.
        gaps: what becomes of a place where it can't go on where it stood: ``raise`` ``EventsLost``,
            or ``deliver`` a ``Gap`` among the events. After either come those that are there.
        stall_s: a connection that brings no byte for so long (s) counts as lost. Without, two of
            the periods after which the server says that it sends a comment (at least 1 s); of a
            server that does not say, 30 s.
        patience_s: how long (s) to try to reconnect before ``ServerUnavailable`` is raised.
        max_event_size: bytes that one event may have.
    """
    return Follow(
        events_path(task_id),
        event_params(types, levels, include_status, series_format),
        task_id,
        since_params(since),
        last_event_id,
        accumulated=series_format == "accumulated",
        gaps=gaps,
        stall_s=stall_s,
        patience_s=patience_s,
        max_event_size=max_event_size,
    )


@overload
def subscribe_all(
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    existing: bool = True,
    gaps: Literal["raise"] = "raise",
    stall_s: float | None = None,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow[Envelope]: ...
@overload
def subscribe_all(
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    existing: bool = True,
    gaps: Literal["deliver"],
    stall_s: float | None = None,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow[Received]: ...
def subscribe_all(
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    existing: bool = True,
    gaps: Gaps = "raise",
    stall_s: float | None = None,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow[Any]:
    """Follow the events of all tasks from now on, without an end.

    There is no cursor over all tasks: what is published while a connection is lost is missing, and
    each new connection a gap, with the reason ``reconnected``.

    Args:
        types, levels, gaps, patience_s, max_event_size: as of :meth:`subscribe`.
        existing: also the tasks that are there already.
        stall_s: as of :meth:`subscribe`; of a server that does not say, 60 s.
    """
    params = event_params(types, levels, True, "delta")
    if existing:
        params["existing"] = "true"
    return Follow(
        "/events",
        params,
        gaps=gaps,
        stall_s=stall_s,
        unsaid_stall_s=GLOBAL_STALL_S,
        patience_s=patience_s,
        max_event_size=max_event_size,
    )
