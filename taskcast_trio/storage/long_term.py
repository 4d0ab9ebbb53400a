"""What the engine asks of an archive: to be written behind, by a cursor on each log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from taskcast_trio.core.entry import Entry

from .protocols import DueList
from .records import (
    NO_PUBLISHERS,
    Page,
    Publishers,
    Snapshot,
    TaskRecord,
)


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

    async def finish_deletions(self) -> None:
        """Remove the rows that deletions which were cut have left."""
