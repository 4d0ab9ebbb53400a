"""What goes into the steps of the stores, and what comes out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec
from msgspec import Struct

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import Task

Timers: TypeAlias = Mapping[str, int | None]
"""When the timers of a task are due, by kind (Unix ms); None clears one."""

NO_TIMERS: Final[Mapping[str, int]] = MappingProxyType({})

PARKED_MS: Final = 1 << 52
"""When a timer is due that waits to be hastened: not before the year 140000."""


Durability: TypeAlias = Literal["durable", "volatile", "unknown"]


class StoreRefused(Exception):
    """The store can't be opened; ``str(error)`` is one line for the one who starts the server."""


class Former(Struct, frozen=True):
    """An epoch that a log had before: its indexes below ``next_index`` are part of the log."""

    epoch: str
    next_index: int


class TaskRecord(Struct, frozen=True):
    """A task with what the store knows of it. ``revision`` grows with every change of the task
    itself.

    A log that went on from its archive has a new epoch from there on; ``former`` are those before,
    the oldest first. ``trimmed`` is the highest index that was ever trimmed, ``trims`` how many
    events were: it grows with every trim that removes something.
    """

    task: Task
    revision: int
    epoch: str
    next_index: int
    imported: bool = False
    former: tuple[Former, ...] = ()
    trimmed: int = -1
    trims: int = 0

    def holds(self, epoch: str, index: int) -> bool:
        """Whether what ``index`` was in ``epoch`` is part of this log."""
        if epoch == self.epoch:
            return index < self.next_index
        return any(epoch == former.epoch and index < former.next_index for former in self.former)

    def epoch_at(self, index: int) -> str:
        """The epoch in which the index was given."""
        for former in self.former:
            if index < former.next_index:
                return former.epoch
        return self.epoch


class Timer(Struct, frozen=True):
    """Something to be done for a task at ``due_ms``."""

    task_id: str
    kind: str
    due_ms: int


class LogLimits(Struct, frozen=True):
    """How many events one log may hold, and how many bytes of their data, as JSON text.

    A ``latest`` event that replaced another counts in its place.
    """

    events: int
    bytes: int


class CountLimits(Struct, frozen=True):
    """How many publishers of one log may count their events, and of how many events of each it is
    known where they are: those that are older can't be answered again.
    """

    publishers: int = 1000
    kept: int = 1000


class Publishers(Struct, frozen=True):
    """The seq that is expected next of each publisher that counts its events; read in one step."""

    record: TaskRecord
    expected: Mapping[str, int]


NO_PUBLISHERS: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A caller's key, and a fingerprint of the request it came with. Kept ``ttl_ms`` or the task's
    life. ``aside`` is what was answered that the record does not say; a repeat brings it back.
    """

    key: str
    fingerprint: bytes
    ttl_ms: int = 24 * 60 * 60 * 1000
    aside: str = ""

    @classmethod
    def of(cls, step: str, key: str | None, request: Any) -> Self | None:
        """The key of a request for this kind of step; None where it came without."""
        if key is None:
            return None
        fingerprint = blake2b(msgspec.json.encode(request), digest_size=16).digest()
        return cls(f"{step}:{key}", fingerprint)


class Page(Struct, frozen=True):
    """A part of a log, and the state of the log at the moment of the read.

    ``entries`` are in the order that was asked for; ``more`` says that the page's limit cut them.
    """

    record: TaskRecord
    entries: Sequence[Entry]
    more: bool


class Snapshot(Struct, frozen=True):
    """A log's high-water mark and the running value of every series, read in one step.

    ``record.next_index - 1`` is the index up to which the values are.
    """

    record: TaskRecord
    values: dict[str, Entry]


class Commit(Struct, frozen=True):
    """What one step did to one log; the answer of the step, and what is announced.

    ``first_index`` is that of the first of ``entries``. ``created`` marks the birth of a task (an
    import is none), ``deleted`` its end; ``replaced`` an import over an older log. ``repeated``
    marks an answer that an idempotency key brought back, with the ``aside`` of the first one:
    nothing was stored or announced. Nor was it where there is ``known``: by their number among the
    drafts, events that were stored before.
    """

    record: TaskRecord
    entries: Sequence[Entry] = ()
    created: bool = False
    deleted: bool = False
    replaced: bool = False
    repeated: bool = False
    aside: str = ""
    known: Mapping[int, Entry] | None = None
    shared: dict[tuple[bool, int], bytes] = {}
    """Encodings that subscribers at the same place share, by whether they are wrapped and by their
    first filtered index."""

    @property
    def first_index(self) -> int:
        return self.record.next_index - len(self.entries)


class StoreLink(Struct, frozen=True):
    """The connections to a store, as they are now; nothing in it is a secret."""

    commands: Literal["up", "down"]
    pubsub: Literal["up", "down"]
    server_version: str
    kind: str
