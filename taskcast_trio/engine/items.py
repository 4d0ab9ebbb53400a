"""What a subscription delivers, and how it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from msgspec import Struct

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import Task

from .history import PASS_ALL


class Delivery(Struct, frozen=True):
    """An event that passed the filter; ``filtered_index`` counts those, from 0.

    It is ``resumable`` unless it comes before a snapshot that holds pieces from before it: whoever
    resumed right after it would miss those.
    """

    entry: Entry
    filtered_index: int
    resumable: bool = True


class Gap(Struct, frozen=True):
    """What was before can't be continued; the events from raw index ``replayed_from`` on follow
    anew.
    """

    reason: Literal["unknown_cursor", "log_replaced", "events_expired"]
    replayed_from: int


class Done(Struct, frozen=True, repr_omit_defaults=True):
    """Nothing follows: the task reached the terminal status ``reason``, or was ``deleted``.

    ``cursor`` is the end of a log that was trimmed: the last event that is left may stand before
    others that are gone, and whoever resumed there would be told of them again and again.
    """

    reason: str
    cursor: str | None = None


class Run(Struct, frozen=True):
    """Events of which none was filtered out: the same for every subscriber at this place.

    ``shared`` is where subscribers of the same commit share what they make of it; None in a replay.
    """

    entries: Sequence[Entry]
    filtered_index: int
    shared: dict[tuple[bool, int], bytes] | None = None


Item: TypeAlias = Delivery | Gap | Done
Pumped: TypeAlias = Item | Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """How to follow a task.

    ``last_event_id`` is a cursor in the log and resumes exactly after it; an unknown one is told by
    a ``Gap``, and so is one behind which events were trimmed: what is left then follows from the
    start of the log, each accumulate series as its value. The ``since_*`` cursors are those of the
    wire contract: ``since_id`` and ``since_timestamp`` (ms) cut the stored order, ``since_index``
    skips by filtered index, and ``limit`` keeps the oldest of the replay only. ``resumed`` says
    that any of them was given, even an unusable one: then series are not collapsed.
    """

    filter: EventFilter = PASS_ALL
    last_event_id: str | None = None
    since_id: str | None = None
    since_index: float | None = None
    since_timestamp: float | None = None
    resumed: bool = False
    limit: int | None = None
    accumulated: bool = False
    visible: Callable[[Task], bool] | None = None
    """Asked again when the log is replaced: a task that is not visible any more ends the
    subscription by ``Forbidden``."""
