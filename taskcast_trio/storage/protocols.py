"""What the engine asks of its stores: atomic steps, not CRUD.

Each step either happens whole or not at all, also when its caller is cancelled in the middle, and
nothing can come between its parts. There is no step that a caller has to combine with another one
to be correct.

Laws for every implementation (``tests/storage/test_contract_*.py`` hold them to it):

1. Indexes of a log are contiguous from 0 within its epoch; an index is never given twice. 2. A log
is announced in the order of its indexes, by the same step that stored it. 3. Timestamps of a log do
not go back, whatever the clock does. 4. A repeated idempotency key returns the first answer and
stores nothing; with another request it is refused. 5. Nothing of a deleted task is left that a
later task of the same id could meet; its log has a new epoch. 6. Where an append has `LogLimits`,
it either leaves the log within them or stores nothing; what counts is what is stored then, also of
status events and imports, which are never refused themselves. 7. What a publisher counts is stored
once and in the order of its seqs, however long the task lives, and whatever is trimmed.

Times are Unix ms and passed in: a store reads no clock. A store that is away raises
``StoreUnavailable``. Cancelling a step leaves it done or not done, never half done, and leaks
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias

import trio
from msgspec import Struct

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import Draft, Event, Task

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
    life.
    """

    key: str
    fingerprint: bytes
    ttl_ms: int = 24 * 60 * 60 * 1000


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
    marks an answer that an idempotency key brought back: nothing was stored or announced. Nor was
    it where there is ``known``: by their number among the drafts, events that were stored before.
    """

    record: TaskRecord
    entries: Sequence[Entry] = ()
    created: bool = False
    deleted: bool = False
    replaced: bool = False
    repeated: bool = False
    known: Mapping[int, Entry] | None = None
    shared: dict[tuple[bool, int], bytes] = {}
    """Encodings that subscribers at the same place share, by whether they are wrapped and by their
    first filtered index."""

    @property
    def first_index(self) -> int:
        return self.record.next_index - len(self.entries)


class CommitSink(Protocol):
    """Takes announcements. Neither call waits or raises."""

    def committed(self, commit: Commit) -> None:
        """One step's work, in the order of each log's indexes."""

    def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
        """Announcements may have been lost, of these tasks or (None) of any: every cursor on them,
        and each that follows all tasks, must read again.
        """


class Audience(Protocol):
    """Is told what is followed in this process. Neither call waits or raises."""

    def attached(self, task_id: str | None, *, counts: bool = True) -> None:
        """One more follows this task, or (None) all tasks; unless it ``counts``, as no subscriber.

        What is announced from some moment on reaches the sink; it is interrupted at that moment,
        unless it has been reached so far.
        """

    def detached(self, task_id: str | None, *, counts: bool = True) -> None:
        """One that was attached is no more."""


class Broadcast(Audience, Protocol):
    """Carries every process's commits to every process, as far as they are followed there."""

    async def run(
        self, sink: CommitSink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Feed ``sink`` until cancelled; calls ``started()`` once nothing announced later, of what
        is followed, can be missed unless the sink is interrupted.
        """


class NoteStore(Protocol):
    """Small records with an expiry, each under a key of its own, that every process of the store
    sees.

    A note is there while ``now_ms`` is below its ``expires_ms``; None keeps it until it is dropped.
    Expired notes take no room for ever.
    """

    async def put_note(
        self, key: str, value: bytes, *, expires_ms: int | None, now_ms: int
    ) -> None:
        """Store the note in the place of the one that was there, its expiry included."""

    async def note(self, key: str, *, now_ms: int) -> bytes | None:
        """The value, or None."""

    async def take_note(self, key: str, *, now_ms: int) -> bytes | None:
        """Read and remove in one step: of any number of takers exactly one gets the value.

        A taker that is cancelled may have removed the note.
        """

    async def drop_note(self, key: str) -> bool:
        """Remove the note; False where there was none. An expired one may still count."""


class TableStore(Protocol):
    """Small tables that every process of the store sees: values by their keys."""

    async def rows(self, table: str) -> dict[str, bytes]:
        """All that is in the table."""

    async def row(self, table: str, key: str) -> bytes | None:
        """The value, or None."""

    async def swap_row(
        self, table: str, key: str, value: bytes | None, *, known: bytes | None
    ) -> bytes | None:
        """Store the value (None removes it) where it is ``known`` still (None: where there is
        none), and return what is there then: ``value`` where it was done.
        """


class DueList(Protocol):
    """Knows what is to be done when: one time for each kind and task, in the order of time.

    Timers belong to a task and go with it.
    """

    async def take_due(self, kind: str, *, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
        """Timers of the kind that are due at ``now_ms``, the earliest first.

        In the same step each is put off to ``now_ms + lease_ms``, the ``due_ms`` that is returned:
        of several takers one gets it, and if that one does nothing, another one after that time.
        """

    async def next_due(self, kind: str) -> int | None:
        """When the earliest of the kind is due, or None."""

    async def list_due(self, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
        """What :meth:`take_due` would give; nothing is put off."""


class TimerStore(DueList, Protocol):
    """A due list whose timers are set one by one."""

    async def set_timer(
        self,
        task_id: str,
        kind: str,
        due_ms: int | None,
        *,
        if_due: int | None = None,
        if_next: int | None = None,
    ) -> bool:
        """Set the timer, or clear it (None); with ``if_due`` only where it is due then still, with
        ``if_next`` only where that is the log's next index still.

        So who has taken a timer clears it by the ``due_ms`` that it was given, and parks it where
        it has seen the whole log. False, and nothing done, where there is no such task, or where
        one of the two is not so.
        """


class TaskNoteStore(Protocol):
    """Small values that live as long as their task."""

    async def put_task_note(
        self,
        task_id: str,
        name: str,
        value: bytes | None,
        *,
        epoch: str,
        timers: Timers = NO_TIMERS,
        if_due: Mapping[str, int] = NO_TIMERS,
    ) -> bool:
        """Store the value (None removes it) and set the timers, in one step.

        False, and nothing done, where the task is gone, its log has another epoch, or a timer is
        not due when ``if_due`` says: so nobody writes whose lease was lost.
        """

    async def task_note(self, task_id: str, name: str) -> bytes | None:
        """The value, or None."""

    async def task_notes(self, task_id: str) -> dict[str, bytes]:
        """All of them; none where there is no such task."""


class ShortTermStore(NoteStore, TableStore, TimerStore, TaskNoteStore, Protocol):
    """Holds the tasks that live, their logs, and notes.

    Where a step takes ``timers``, they are set in the same step; a repeat by an idempotency key
    sets none.
    """

    async def create(
        self,
        task: Task,
        *,
        epoch: str,
        now_ms: int,
        idempotency: Idempotency | None = None,
        timers: Timers = NO_TIMERS,
    ) -> Commit:
        """Store a new task with an empty log.

        Raises:
            TaskExists: its id is taken.
            KeyReused: the key came with another request before.
        """

    async def get(self, task_id: str) -> TaskRecord | None:
        """The task, or None."""

    async def list_tasks(
        self,
        *,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[TaskRecord]:
        """Tasks in order of creation, those that come after the task ``after`` only.

        Raises:
            BadRequest: there is no task ``after``.
        """

    async def append(
        self,
        task_id: str,
        drafts: Sequence[Draft],
        *,
        now_ms: int,
        idempotency: Idempotency | None = None,
        limits: LogLimits | None = None,
        wake: Mapping[str, int] = NO_TIMERS,
        hasten: Mapping[str, int] = NO_TIMERS,
        fence: int | None = None,
        counting: CountLimits | None = None,
    ) -> Commit:
        """Give the drafts the next indexes, apply the series modes, store and announce them.

        A key is looked at before the limits: a repeat is answered also where the log is full.
        Afterwards each of the timers ``wake`` is due no later than it says. Of the timers
        ``hasten`` each one that the task has, and that is parked, is due then: others are left as
        they are, so that nobody's lease is cut short by it. With a ``fence`` the drafts are stored
        only where that is the task's.

        With ``counting`` the drafts of each ``client_id`` have to be those that are expected next
        of it. Where some were stored before, nothing is stored and they are ``known``: the caller
        asks again without them. That is looked at right after the key, so they are answered also
        where the task has ended. A draft comes once among the drafts.

        Raises:
            TaskNotFound: there is no such task.
            StaleFence: it has another fence.
            TaskEnded: it is terminal.
            TaskFull: with the drafts the log would be over ``limits``, or have too many publishers;
                none of them is stored.
            KeyReused: the key came with another request before.
            SeqGap: a draft came before its time.
            SeqStale: a draft was stored before, and nobody knows where any more.
        """

    async def publishers(self, task_id: str) -> Publishers:
        """Those that count their events.

        Raises:
            TaskNotFound: there is no such task.
        """

    async def transition(
        self,
        task: Task,
        drafts: Sequence[Draft],
        *,
        revision: int,
        epoch: str,
        now_ms: int,
        idempotency: Idempotency | None = None,
        timers: Timers = NO_TIMERS,
        hasten: Mapping[str, int] = NO_TIMERS,
    ) -> Commit:
        """Replace the task if it still has ``revision`` in ``epoch``, and append the drafts.

        The answer's ``record.task`` is the task as stored. A key is looked at before the revision.
        ``hasten`` is as in :meth:`append`.

        Raises:
            TaskNotFound: there is no such task.
            RevisionConflict: it changed since it was read.
            KeyReused: the key came with another request before.
        """

    async def repeated(
        self, task_id: str, idempotency: Idempotency, *, now_ms: int
    ) -> Commit | None:
        """The answer that this key brought before, or None.

        Raises:
            KeyReused: the key came with another request before.
        """

    async def read(self, task_id: str, *, after: int, limit: int) -> Page:
        """Events with an index above ``after``, in the order of their indexes.

        Raises:
            TaskNotFound: there is no such task.
        """

    async def read_places(
        self, task_id: str, *, after_place: int, after_index: int, limit: int
    ) -> Page:
        """Events with an index above ``after_index``, in stored order, from behind ``after_place``.

        Stored order is that of the places: a ``latest`` event stands where the one that it replaced
        stood.

        Raises:
            TaskNotFound: there is no such task.
        """

    async def find(self, task_id: str, event_id: str) -> Entry | None:
        """The stored event of this id, or None (replaced events are gone).

        Raises:
            TaskNotFound: there is no such task.
        """

    async def snapshot(self, task_id: str) -> Snapshot:
        """High-water mark and series values.

        Raises:
            TaskNotFound: there is no such task.
        """

    async def delete(self, task_id: str, *, epoch: str | None = None) -> bool:
        """Remove the task, its log and its keys, and announce it; False where there was none.

        With ``epoch`` only where its log has that one.
        """

    async def trim(self, task_id: str, indexes: Sequence[int], *, epoch: str) -> int:
        """Remove these events of a task that has ended; how many of them were there.

        Their rows and bytes are freed and count no more against `LogLimits`. Indexes and places
        stay given, and the record keeps how far the log was ever trimmed. Nobody is told: a cursor
        learns it from the record when it reads.

        The running value of a series stays as it was for as long as one of its events is left, so
        that who comes late sees the whole text of an accumulate series some pieces of which are
        gone; with the last of them it goes too, as nothing of a log may outlive its events.

        0, and nothing done, where there is no such task, its log has another epoch, or it lives.
        The same once more finds nothing.
        """

    async def import_task(
        self,
        task: Task,
        events: Sequence[Event],
        *,
        epoch: str,
        overwrite: bool,
        timers: Timers = NO_TIMERS,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> Commit:
        """Store a task and its log as given; ``events`` are dense from index 0, in order. Of each
        publisher the seq is expected next that ``publishers`` or the events say, the higher one.

        Raises:
            TaskExists: the id is taken and ``overwrite`` is false.
        """

    async def restore(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        *,
        timers: Timers = NO_TIMERS,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> Commit:
        """Take in a task with its log as another store has it, as a whole; ``publishers`` as in
        :meth:`import_task`.

        ``entries`` are in the order of their indexes and keep their places; where one is missing, a
        ``latest`` event was replaced, or the log was trimmed. Announced without entries, neither
        created nor replaced.

        Raises:
            TaskExists: it is here already.
        """

    async def release(
        self,
        task_id: str,
        *,
        epoch: str,
        revision: int,
        now_ms: int,
        unless: Sequence[str] = (),
    ) -> bool:
        """Forget a task that another store has whole; nobody is told.

        Only where it has this revision in this epoch still, has ended, has none of the timers
        ``unless``, and no idempotency key is to be answered any more; else False.
        """

    async def count(self) -> int:
        """How many tasks there are."""


class UnwritableRows(Exception):
    """Some events, or the task itself, can't be held by the long-term store; nothing was written.

    Writing without the events at ``indexes`` works; ``task`` says that the task is at fault.
    """

    def __init__(self, indexes: Sequence[int], *, task: bool = False) -> None:
        super().__init__("the task" if task else f"{len(indexes)} events")
        self.indexes = tuple(indexes)
        self.task = task


class Extent(Struct, frozen=True):
    """How far a task is archived."""

    epoch: str
    revision: int
    next_index: int


class Summary(Struct, frozen=True):
    """How much is archived: tasks, the events that they have had, and when a task changed last."""

    tasks: int
    events: int
    updated_at_ms: int | None


class LongTermStore(DueList, Protocol):
    """Holds what has been archived; written by cursor, read when the short-term store has the task
    no more.

    ``next_index`` of the records that it gives is that of what is archived. Every step may be
    repeated without harm. A step that raises StoreUnavailable may have been done. It knows one kind
    of timer, ``cleanup``.
    """

    async def save(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        *,
        through: int | None = None,
        values: Sequence[Entry] = (),
        due_ms: int | None = None,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> bool:
        """Write the task as of its revision and these events; writing the same again changes
        nothing.

        ``entries`` go on where the log's archive ends, in the order of the indexes. ``through`` is
        the index up to which it reaches then, for who leaves events out at the end; without it,
        that of the last entry. A ``latest`` event removes the one that it replaced. An event that
        was archived and trimmed does not come back. ``values`` are those of the series of a log
        that was trimmed before: its events can't tell them. ``due_ms`` sets the task's timer.
        ``publishers`` are the seqs that are expected next; they never go back. A
        task with a higher revision is never overwritten by an older one. A log of another epoch is
        another life of the task, which replaces the one that is there; but False, and nothing
        written, where the epoch is that of a life that has ended here, or where the task was
        created before the one that is there and is no import.

        Raises:
            UnwritableRows: what can't be written; nothing was.
        """

    async def archived_index(self, task_id: str, epoch: str) -> int:
        """The highest index up to which the log is archived; -1 where nothing is."""

    async def extents(self, task_ids: Sequence[str]) -> dict[str, Extent]:
        """How far those of the tasks are archived that are archived at all."""

    async def summary(self) -> Summary:
        """How much there is; it may look at every task."""

    async def ping(self) -> None:
        """Return where the store answers."""

    async def load(self, task_id: str) -> TaskRecord | None:
        """The task as archived, or None."""

    async def exists(self, task_id: str) -> bool:
        """Whether there is such a task."""

    async def list_tasks(
        self,
        *,
        limit: int,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: tuple[int, str] | None = None,
    ) -> list[TaskRecord]:
        """Tasks in the order of ``created_at`` and, where that is equal, of the id.

        Only those that come after the place ``after``, where a task may be or not.
        """

    async def read(self, task_id: str, *, after: int, limit: int) -> Page:
        """As :meth:`ShortTermStore.read`."""

    async def read_places(
        self, task_id: str, *, after_place: int, after_index: int, limit: int
    ) -> Page:
        """As :meth:`ShortTermStore.read_places`."""

    async def publishers(self, task_id: str) -> Publishers:
        """As :meth:`ShortTermStore.publishers`, of what is archived."""

    async def find(self, task_id: str, event_id: str) -> Entry | None:
        """As :meth:`ShortTermStore.find`."""

    async def snapshot(self, task_id: str) -> Snapshot:
        """As :meth:`ShortTermStore.snapshot`."""

    async def trim(self, task_id: str, indexes: Sequence[int], *, epoch: str) -> int:
        """As :meth:`ShortTermStore.trim`, of what is archived."""

    async def set_due(self, task_id: str, due_ms: int | None, *, epoch: str) -> bool:
        """Set or clear the timer; False, and nothing done, where there is no such log."""

    async def list_ended(self, *, after: str | None, limit: int) -> list[TaskRecord]:
        """The tasks that have ended, in the order of their ids, from behind the id ``after``."""

    async def mark(self, name: str) -> str | None:
        """What was last put under the name by :meth:`put_mark`, or None."""

    async def put_mark(self, name: str, value: str) -> None:
        """Keep a short text, in the place of the one that was there."""

    async def renew(self, task_id: str, *, epoch: str, new_epoch: str) -> TaskRecord:
        """End the epoch of a log where its archive ends: what follows is of ``new_epoch``.

        For who goes on with a log of which only the archive is left. The events stay; writes of the
        old epoch that come late are refused. Once renewed, the same again changes nothing.

        Raises:
            TaskNotFound: there is no such task.
            RevisionConflict: the log has neither epoch: another one has renewed it.
        """

    async def delete(self, task_id: str, *, epoch: str | None = None) -> bool:
        """Remove the task and its events; False where there was none.

        It is gone at once; that its rows are is true when this returns. A later write of the epoch
        that was archived, or of ``epoch``, is refused. The same with an ``epoch`` once more changes
        nothing, and leaves a task alone that was made since.
        """


class Peers(Protocol):
    """The processes that share a store."""

    async def run(
        self,
        hear: Callable[[bytes], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take part until cancelled. ``hear`` is called with each message, this process's own
        included, within about a second; it must not wait or raise.
        """

    @property
    def count(self) -> int:
        """How many processes there are, this one included, as of the last second."""

    async def audience(self, task_ids: Sequence[str]) -> list[int]:
        """How many follow each of the tasks in all other processes, as of a moment ago."""

    async def tell(self, message: bytes) -> None:
        """Leave a message for every process."""

    async def take_tokens(self, key: str, *, want: int, per_second: int) -> int:
        """Take some of what all processes together may take within a second; how many they are."""


class StoreLink(Struct, frozen=True):
    """The connections to a store, as they are now; nothing in it is a secret."""

    commands: Literal["up", "down"]
    pubsub: Literal["up", "down"]
    server_version: str
    kind: str


class Backend(Protocol):
    """A short-term store with its broadcast, open for as long as its owner's context."""

    @property
    def provider(self) -> str:
        """The name of the technology, as health pages show it."""

    @property
    def durability(self) -> Durability:
        """What becomes of what was acknowledged when the store's machine starts anew."""

    @property
    def store(self) -> ShortTermStore: ...

    @property
    def broadcast(self) -> Broadcast: ...

    def link(self) -> StoreLink | None:
        """How it is reached; None where it is in this process."""

    @property
    def peers(self) -> Peers | None:
        """The processes that share the store; None where only this one has it."""
