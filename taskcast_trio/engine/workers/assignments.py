"""Assignments: a task's own transition, the slots that it takes, and its end, whoever brings it.

The slots are taken before the step that assigns, and given back after the one that ends: between
two of them a worker may seem to have less room, and never has more. Whoever assigned a task watches
it: what it becomes is announced, as to everybody who follows it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog
import trio
from msgspec import UNSET, Struct

from taskcast_trio.core import assignment
from taskcast_trio.core.assignment import LEASE, cost_of, is_held
from taskcast_trio.core.errors import (
    NotPending,
    RevisionConflict,
    StoreUnavailable,
    TaskEnded,
    TaskNotFound,
)
from taskcast_trio.core.model import Draft, Task
from taskcast_trio.storage.protocols import Audience, ShortTermStore
from taskcast_trio.storage.records import Commit, TaskRecord

from ..changes import Changes
from ..lookup import find
from ..metrics import Metrics
from ..timer_loop import Outage
from .registry import Registry

SETTLE_S: Final = 5.0
"""How long who is cancelled may take to find out what became of an assignment."""

log = structlog.get_logger(__name__)


class Held(Struct, frozen=True):
    """A task that is watched here; older commits than ``revision`` say nothing of it."""

    worker_id: str
    fence: int
    epoch: str
    revision: int


class Ended(Struct, frozen=True):
    """An assignment that is over; ``reason`` says why, where its worker did not do that itself."""

    task_id: str
    worker_id: str
    fence: int
    reason: str | None


class Assignments:
    """Assigns, takes back, and watches what was assigned here.

    ``ended`` is called with each assignment that is over, before its slots are free; ``freed`` with
    the worker once they are. Neither may wait or raise.
    """

    def __init__(
        self,
        store: ShortTermStore,
        registry: Registry,
        changes: Changes,
        audience: Audience,
        *,
        clock: Callable[[], int],
        lease_ms: int,
        metrics: Metrics,
        ended: Callable[[Ended], None],
        freed: Callable[[str], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._changes = changes
        self._audience = audience
        self._clock = clock
        self._lease_ms = lease_ms
        self._metrics = metrics
        self._on_ended = ended
        self._on_freed = freed
        self._held: dict[str, Held] = {}
        self._over: deque[Ended] = deque()
        self._unsure: dict[str, None] = {}
        self._work = trio.Event()

    # Steps ---------------------------------------------------------------------------------------

    async def assign(self, worker_id: str, task_id: str) -> Task:
        """Give a pending task to a worker that has room for it.

        Raises:
            TaskNotFound: there is no such task.
            NotPending: it is not there to be taken.
            NoRoom: the worker has too few free slots.
            WorkerNotFound: there is no such worker.
        """
        while True:
            record = await self._pending(task_id)
            await self._registry.reserve(worker_id, task_id, cost_of(record.task))
            done = False
            try:
                task = await self._give(worker_id, record)
                done = True
            except RevisionConflict:
                continue
            except TaskEnded as error:
                raise NotPending(task_id, "ended") from error
            finally:
                if not done:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + SETTLE_S):
                        await self._undo(worker_id, task_id)
            return task

    async def _pending(self, task_id: str) -> TaskRecord:
        record = await find(self._store, task_id)
        if record.task.status != "pending":
            raise NotPending(task_id, record.task.status)
        return record

    async def _give(self, worker_id: str, record: TaskRecord) -> Task:
        now_ms, task_id = self._clock(), record.task.id
        task, drafts = assignment.assign(record.task, worker_id, now_ms)
        assert task.fence is not UNSET
        held = Held(worker_id, task.fence, record.epoch, record.revision + 1)
        before = self._held.get(task_id)
        self._watch(task_id, held)
        lease = {LEASE: now_ms + self._lease_ms}
        try:
            await self._changes.store(record, task, drafts, now_ms, timers=lease)
        except (RevisionConflict, TaskNotFound, TaskEnded):
            if self._held.get(task_id) is held:
                if before is None:
                    self._unwatch(task_id)
                else:
                    self._held[task_id] = before
            raise
        self._metrics.assigned.inc()
        return task

    async def _undo(self, worker_id: str, task_id: str) -> None:
        """After an assignment of which it is not known whether it was done: see, and give the slots
        back where it was not.
        """
        try:
            record = await self._store.get(task_id)
            if record is None or not is_of(record.task, worker_id):
                self._forget(task_id, worker_id)
                await self._registry.release(worker_id, task_id)
        except StoreUnavailable:
            self._unsure[task_id] = None
            self._work.set()

    def _forget(self, task_id: str, worker_id: str) -> None:
        held = self._held.get(task_id)
        if held is not None and held.worker_id == worker_id:
            self._unwatch(task_id)

    async def decline(self, worker_id: str, task_id: str, *, blacklist: bool) -> bool:
        """Take a task back from its worker, or only never ask it again; False where it had it not.

        Whatever is not there is declined already.
        """
        while True:
            record = await self._store.get(task_id)
            if record is None or record.task.terminal:
                return False
            task, now_ms = record.task, self._clock()
            had_it = is_of(task, worker_id)
            drafts: Sequence[Draft] = ()
            if had_it:
                after, drafts = assignment.declined(
                    task, worker_id, blacklist=blacklist, now_ms=now_ms
                )
            elif blacklist and assignment.waits(task) and self._registry.get(worker_id):
                after = assignment.bar(task, worker_id)
            else:
                return False
            if after is task or await self.change(record, after, drafts):
                held = self._held.get(task_id)
                if had_it and held is not None and held.fence == task.fence:
                    self._end(task_id, held, None)
                return had_it

    async def take_back(self, record: TaskRecord) -> bool:
        """Make a task pending anew; False where it is to be read again."""
        after, drafts = assignment.unassigned(record.task, self._clock())
        return await self.change(record, after, drafts)

    async def change(self, record: TaskRecord, after: Task, drafts: Sequence[Draft]) -> bool:
        """Store what the task becomes; False where it has changed meanwhile."""
        try:
            await self._changes.store(record, after, drafts, self._clock())
        except (RevisionConflict, TaskNotFound, TaskEnded):
            return False
        return True

    # What becomes of them ------------------------------------------------------------------------

    def holds(self, task_id: str, worker_id: str) -> bool:
        """Whether the worker has the task, as far as was heard here."""
        held = self._held.get(task_id)
        return held is not None and held.worker_id == worker_id

    def of(self, worker_id: str) -> list[str]:
        """The tasks of the worker that are watched here."""
        return [task_id for task_id, held in self._held.items() if held.worker_id == worker_id]

    def _watch(self, task_id: str, held: Held) -> None:
        if task_id not in self._held:
            self._audience.attached(task_id, counts=False)
        self._held[task_id] = held

    def _unwatch(self, task_id: str) -> None:
        del self._held[task_id]
        self._audience.detached(task_id, counts=False)

    def committed(self, commit: Commit) -> None:
        """See :class:`CommitSink`."""
        record = commit.record
        held = self._held.get(record.task.id)
        if held is None:
            return
        if commit.deleted or record.epoch != held.epoch:
            if commit.deleted and record.epoch != held.epoch:
                return
            if record.former and not commit.replaced and not commit.deleted:
                self._look_again([record.task.id])
                return
            self._end(record.task.id, held, "deleted" if commit.deleted else "replaced")
        elif record.revision >= held.revision:
            self._judge(record, held)

    def _judge(self, record: TaskRecord, held: Held) -> None:
        task = record.task
        if is_held(task) and task.assigned_worker == held.worker_id and task.fence == held.fence:
            return
        reason = "reassigned" if is_held(task) or task.status == "pending" else task.status
        itself = assignment.is_ended_by_holder(task, held.fence)
        self._end(task.id, held, None if itself else reason)

    def _end(self, task_id: str, held: Held, reason: str | None) -> None:
        self._unwatch(task_id)
        ended = Ended(task_id, held.worker_id, held.fence, reason)
        self._on_ended(ended)
        self._over.append(ended)
        self._work.set()

    def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
        """See :class:`CommitSink`."""
        known = self._held.keys() if task_ids is None else self._held.keys() & set(task_ids)
        self._look_again(known)

    def _look_again(self, task_ids: Iterable[str]) -> None:
        self._unsure.update(dict.fromkeys(task_ids))
        if self._unsure:
            self._work.set()

    async def adopt(self, worker_id: str) -> None:
        """Watch the tasks that the worker's row counts, and give back what it has not any more."""
        row = self._registry.get(worker_id)
        for task_id in list(row.held) if row is not None else ():
            if not self.holds(task_id, worker_id):
                await self._adopt(worker_id, task_id)

    async def _adopt(self, worker_id: str, task_id: str) -> None:
        record = await self._store.get(task_id)
        if record is None or not is_of(record.task, worker_id):
            # Slots are taken before the task is assigned: that may be under way.
            return
        self.watch(record)

    def watch(self, record: TaskRecord) -> None:
        """Watch a task that a worker has."""
        task = record.task
        fence = 0 if task.fence is UNSET else task.fence
        self._watch(task.id, Held(task.assigned_worker or "", fence, record.epoch, record.revision))
        self._look_again([task.id])

    async def reconcile(self, worker_id: str, task_ids: Iterable[str]) -> None:
        """Give back the slots of those of the tasks that the worker has not."""
        for task_id in task_ids:
            record = await self._store.get(task_id)
            if record is None or not is_of(record.task, worker_id):
                await self._registry.release(worker_id, task_id)
                self._on_freed(worker_id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give slots back, and look at what may have been missed, until cancelled."""
        task_status.started()
        outage = Outage("slots of workers")
        while True:
            await self._work.wait()
            self._work = trio.Event()
            try:
                while self._unsure or self._over:
                    await self._do_next()
            except StoreUnavailable as error:
                await outage.wait(error)
                self._work.set()
            else:
                outage.over()

    async def _do_next(self) -> None:
        if self._over:
            ended = self._over[0]
            if not self.holds(ended.task_id, ended.worker_id):
                await self._registry.release(ended.worker_id, ended.task_id, reason=ended.reason)
            self._over.popleft()
            self._on_freed(ended.worker_id)
            return
        task_id = next(iter(self._unsure))
        held = self._held.get(task_id)
        record = await self._store.get(task_id)
        self._unsure.pop(task_id, None)
        if held is None or self._held.get(task_id) is not held:
            return
        if record is None:
            self._end(task_id, held, "deleted")
        elif record.epoch != held.epoch:
            if is_held(record.task) and record.task.fence == held.fence:
                self.watch(record)
            else:
                self._end(task_id, held, "replaced")
        elif record.revision >= held.revision:
            self._judge(record, held)


def is_of(task: Task, worker_id: str) -> bool:
    return is_held(task) and task.assigned_worker == worker_id
