"""A subscription to every task: a set of cursors, one for each task that is followed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import BadRequest, TaskNotFound
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import Task
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Commit, TaskRecord

from .fanout import Fanout
from .history import PAGE_EVENTS, PASS_ALL
from .metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowAllOptions:
    """``existing`` also follows, from now on, the tasks that are there and have not ended."""

    filter: EventFilter = PASS_ALL
    existing: bool = False
    visible: Callable[[Task], bool] | None = None
    """Tasks that are not are as if they were not there."""


_RECENT_TASKS: Final = 64
"""How many of the newest tasks are known, to find what came after them though some are gone."""


@dataclass(slots=True)
class _Cursor:
    epoch: str
    last: int


class FollowAll:
    """Follow all tasks; made by ``TaskEngine.follow_all`` and to be entered as a context.

    Entering registers it, leaving forgets it at once. It never ends by itself. A task is forgotten
    when it ends, so that memory is bounded by the tasks that live.
    """

    def __init__(
        self,
        options: FollowAllOptions,
        *,
        store: ShortTermStore,
        hot: ShortTermStore,
        fanout: Fanout,
        metrics: Metrics,
    ) -> None:
        """``hot`` has the tasks that can be followed, ``store`` also what they were."""
        self._options = options
        self._store = store
        self._hot = hot
        self._fanout = fanout
        self._metrics = metrics
        self._cursors: dict[str, _Cursor] = {}
        self._recent: deque[TaskRecord] = deque(maxlen=_RECENT_TASKS)
        """The newest tasks seen, in order of creation."""
        self._pending: deque[Commit] = deque()
        self._ready: deque[Entry] = deque()
        self._to_read: deque[str] = deque()
        """The tasks whose logs have more than was announced here."""
        self._to_list = False
        """Whether tasks may have been created without being announced here."""
        self._ended_unseen: set[str] = set()
        """Epochs of logs read to their end while behind: the inbox may tell of them yet."""

    async def __aenter__(self) -> Self:
        self._inbox = self._fanout.attach(None)
        self._metrics.global_subscribers.inc()
        try:
            for record in await self._hot.list_tasks():
                self._recent.append(record)
                if self._options.existing and not record.task.terminal:
                    self._follow(record, record.next_index - 1)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """What leaving the context does: forget the subscription, without waiting."""
        self._fanout.detach(None, self._inbox)
        self._metrics.global_subscribers.dec()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        if not self._ready:
            self._ready.extend(await self.receive())
        return self._ready.popleft()

    async def receive(self) -> list[Entry]:
        """The next events that pass the filter, at least one. Cancellation loses nothing.

        Raises:
            Draining: the engine shuts down.
        """
        while True:
            if self._to_read or self._to_list:
                await self._catch_up()
            while self._pending and not self._to_read:
                self._take(self._pending.popleft())
            if self._ready:
                entries = list(self._ready)
                self._ready.clear()
                return entries
            if self._to_read:
                continue
            self._pending.extend(await self._inbox.take())
            if not self._pending:
                self._reattach()

    def _reattach(self) -> None:
        """A new inbox for the one that was cut; the store has what was announced meanwhile."""
        inbox = self._fanout.attach(None)
        self._fanout.detach(None, self._inbox)
        self._inbox = inbox
        self._to_read = deque(self._cursors)
        self._to_list = True
        self._ended_unseen.clear()

    def _follow(self, record: TaskRecord, last: int) -> None:
        visible = self._options.visible
        if visible is not None and not visible(record.task):
            self._cursors.pop(record.task.id, None)
            return
        self._cursors[record.task.id] = _Cursor(record.epoch, last)

    def _keep(self, entries: Iterable[Entry]) -> None:
        matches = self._options.filter.matches
        self._ready += [entry for entry in entries if matches(entry.type, entry.level)]

    def _take(self, commit: Commit) -> None:
        record = commit.record
        task_id = record.task.id
        cursor = self._cursors.get(task_id)
        if commit.created and cursor is None:
            if record.epoch not in self._ended_unseen:
                self._recent.append(record)
                self._follow(record, -1)
        elif cursor is None:
            # Without entries it was taken in: an import, or a task that only the archive had.
            lives = not (commit.entries or commit.deleted or record.task.terminal)
            if self._options.existing and lives:
                self._follow(record, record.next_index - 1)
        elif commit.deleted:
            if cursor.epoch == record.epoch:
                del self._cursors[task_id]
        elif commit.replaced:
            self._follow(record, record.next_index - 1)
        elif cursor.epoch != record.epoch or commit.first_index > cursor.last + 1:
            self._to_read.append(task_id)
        else:
            self._keep(entry for entry in commit.entries if entry.index > cursor.last)
            cursor.last = max(cursor.last, record.next_index - 1)
            if record.task.terminal:
                del self._cursors[task_id]

    async def _catch_up(self) -> None:
        """Read what was not announced, up to a page or so at once: call again for the rest."""
        while len(self._ready) < PAGE_EVENTS:
            if self._to_read:
                if await self._read_page(self._to_read[0]):
                    self._to_read.popleft()
            elif self._to_list:
                self._to_list = await self._list_page()
            else:
                return

    async def _read_page(self, task_id: str) -> bool:
        """Take a page of this log from behind the cursor; True where that was the last one."""
        cursor = self._cursors.get(task_id)
        if cursor is None:
            return True
        try:
            page = await self._store.read(task_id, after=cursor.last, limit=PAGE_EVENTS)
        except TaskNotFound:
            del self._cursors[task_id]
            return True
        record = page.record
        if record.holds(cursor.epoch, cursor.last):
            cursor.epoch = record.epoch  # it may have gone on from its archive
        else:
            # Imported over: what comes from now on. Created again: all of it.
            self._follow(record, record.next_index - 1 if record.imported else -1)
            self._to_list = True
            return False
        self._keep(page.entries)
        if page.more:
            cursor.last = page.entries[-1].index
            return False
        cursor.last = max(cursor.last, record.next_index - 1)
        if record.task.terminal:
            del self._cursors[task_id]
            self._ended_unseen.add(record.epoch)
        return True

    async def _list_page(self) -> bool:
        """Follow a page of the tasks created since the newest one seen; False where none was."""
        records = await self._created_since()
        for record in records:
            self._recent.append(record)
            known = record.task.id in self._cursors or record.epoch in self._ended_unseen
            if not known and not record.imported:
                self._follow(record, -1)
                self._to_read.append(record.task.id)
        return bool(records)

    async def _created_since(self) -> list[TaskRecord]:
        seen = {record.epoch for record in self._recent}
        for known in reversed(self._recent):
            task_id = known.task.id
            try:
                records = await self._hot.list_tasks(after=task_id, limit=PAGE_EVENTS)
            except BadRequest:
                continue  # it was deleted: go by the one before
            # A task of this id that was created again stands elsewhere in the order.
            there = await self._hot.get(task_id)
            if there is not None and there.epoch == known.epoch:
                return [record for record in records if record.epoch not in seen]
        newest_ms = self._recent[-1].task.created_at if self._recent else 0
        return [
            record
            for record in await self._hot.list_tasks()
            if record.task.created_at >= newest_ms and record.epoch not in seen
        ]
