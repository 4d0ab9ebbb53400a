"""What can be followed; as `calls`, each function here is a method of both clients."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from taskcast_trio.core.model import Level

from .composing import event_params, events_path, since_params
from .following import GLOBAL_STALL_S, PATIENCE_S, STALL_S, Follow
from .sse import DEFAULT_MAX_EVENT_SIZE


def subscribe(
    task_id: str,
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    include_status: bool = True,
    series_format: Literal["delta", "accumulated"] = "delta",
    since: str | datetime | None = None,
    last_event_id: str | None = None,
    stall_s: float = STALL_S,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow:
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
        stall_s: a connection that brings no byte for so long (s) counts as lost. The server sends a
            comment after 15 s of silence unless configured otherwise.
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
        stall_s=stall_s,
        patience_s=patience_s,
        max_event_size=max_event_size,
    )


def subscribe_all(
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    existing: bool = True,
    stall_s: float = GLOBAL_STALL_S,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow:
    """Follow the events of all tasks from now on, without an end.

    There is no cursor over all tasks: after a lost connection comes a ``Gap`` with the reason
    ``reconnected``, and what was published meanwhile is missing.

    Args:
        types, levels, patience_s, max_event_size: as of :meth:`subscribe`.
        existing: also the tasks that are there already.
        stall_s: as of :meth:`subscribe`; this stream is sent a comment after 30 s.
    """
    params = event_params(types, levels, True, "delta")
    if existing:
        params["existing"] = "true"
    return Follow(
        "/events",
        params,
        stall_s=stall_s,
        patience_s=patience_s,
        max_event_size=max_event_size,
    )
