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
from typing import Protocol

import trio

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.model import Draft, Event, Task

from .records import (
    NO_PUBLISHERS,
    NO_TIMERS,
    Commit,
    CountLimits,
    Durability,
    Idempotency,
    LogLimits,
    Page,
    Publishers,
    Snapshot,
    StoreLink,
    TaskRecord,
    Timer,
    Timers,
)


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
        self,
        table: str,
        key: str,
        value: bytes | None,
        *,
        known: bytes | None,
        most: int | None = None,
    ) -> bytes | None:
        """Store the value (None removes it) where it is ``known`` still (None: where there is
        none), and return what is there then: ``value`` where it was done. A new row is not stored
        where the table has ``most`` rows: then nothing is there.
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

        The answer's ``record.task`` is the task as stored. A key is looked at before the revision;
        a repeat brings its ``aside`` back.
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

    async def audience_told(self) -> None:
        """Wait until the other processes count all who follow something here now. Where the store
        is away nobody waits: they learn of it later.
        """

    async def tell(self, message: bytes) -> None:
        """Leave a message for every process."""

    async def take_tokens(self, key: str, *, want: int, per_second: int) -> int:
        """Take some of what all processes together may take within a second; how many they are."""


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
