"""Leases: a task stays with its worker for as long as that shows signs of life, and a while longer.

The lease is a timer of the task, so that it outlasts every process; what renews it is the worker's
heartbeat, one for all of its tasks. A worker of which nothing is heard goes offline first, and its
tasks wait ``grace_ms`` for it to come back: also where it was the server that was away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from msgspec import UNSET
from msgspec.structs import replace

from taskcast_trio.core import assignment
from taskcast_trio.core.assignment import LEASE, is_held
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import TaskRecord, Timer

from ..metrics import Metrics
from .assignments import Assignments, is_of
from .registry import Registry, Worker

TIMER_LEASE_MS: Final = 5000
KEPT_MS: Final = 60_000
"""How much longer than its tasks the row of a worker is kept that is gone."""
ROOM: Final = 100
"""How many are forgotten at once for one that comes: it waits for that."""

log = structlog.get_logger(__name__)


class Leases:
    """Sees to the tasks whose lease timer is due, and to the workers that fall silent."""

    def __init__(
        self,
        store: ShortTermStore,
        registry: Registry,
        assignments: Assignments,
        metrics: Metrics,
        *,
        clock: Callable[[], int],
        timeout_ms: int,
        grace_ms: int,
        policy: str,
        notify: Callable[[int], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._assignments = assignments
        self._metrics = metrics
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._grace_ms = grace_ms
        self._policy = policy
        self._notify = notify

    def is_over(self, worker: Worker) -> bool:
        """Whether nobody waits any more for a worker that went offline."""
        return worker.offline_ms is not None and (
            worker.offline_ms + self._grace_ms <= self._clock()
        )

    def is_listed(self, worker: Worker | None) -> bool:
        return worker is not None and not worker.gone and not self.is_over(worker)

    async def handle(self, timer: Timer) -> None:
        """Put the lease off for as long as the worker is there; else the task is lost."""
        while True:
            record = await self._store.get(timer.task_id)
            if record is None:
                return
            if not is_held(record.task):
                await self._set(timer, None)
                return
            until_ms = await self._until(record)
            if until_ms is not None:
                await self._set(timer, until_ms)
                return
            if await self._lose(record):
                return

    async def _set(self, timer: Timer, due_ms: int | None) -> None:
        await self._store.set_timer(timer.task_id, LEASE, due_ms, if_due=timer.due_ms)
        if due_ms is not None:
            self._notify(due_ms)

    async def _until(self, record: TaskRecord) -> int | None:
        """Until when there is nothing to be done; None: the worker is lost."""
        task = record.task
        worker_id, now_ms = str(task.assigned_worker), self._clock()
        worker = await self._registry.fetch(worker_id)
        if worker is None or self.is_over(worker):
            return None
        if worker.offline_ms is not None:
            return worker.offline_ms + self._grace_ms
        orphan_ms = worker.orphans.get(task.id)
        if orphan_ms is not None:
            return orphan_ms if orphan_ms > now_ms else None
        if task.id not in worker.held:
            await self._registry.adopt(worker_id, task.id, assignment.cost_of(task))
        if worker.heartbeat_ms + self._timeout_ms > now_ms:
            return worker.heartbeat_ms + self._timeout_ms
        await self.silence(worker_id, worker.session)
        return now_ms + self._grace_ms

    async def _lose(self, record: TaskRecord) -> bool:
        task = record.task
        worker_id = str(task.assigned_worker)
        policy = self._policy if task.disconnect_policy is UNSET else task.disconnect_policy
        after, drafts = assignment.lost(task, policy, self._clock())
        if not await self._assignments.change(record, after, drafts):
            return False
        self._metrics.leases_lost.labels(policy).inc()
        log.warning("worker_lost_task", worker_id=worker_id, task_id=task.id, policy=policy)
        if policy == "mark":
            await self._store.set_timer(task.id, LEASE, None)
        await self._registry.release(worker_id, task.id, reason="lease_lost")
        return True

    async def disown(self, worker_id: str, task_id: str, *, since_ms: int) -> None:
        """The worker does not have this task: it is lost, unless it got or moved it after
        ``since_ms``, when what it says may be older than that.
        """
        while True:
            record = await self._store.get(task_id)
            if record is None or not is_of(record.task, worker_id):
                return
            if record.task.updated_at > since_ms:
                return
            if await self._lose(record):
                return

    async def wait_for(self, worker: Worker) -> None:
        """See to the tasks that it may not have any more, in time."""
        for task_id, due_ms in worker.orphans.items():
            await self._store.set_timer(task_id, LEASE, due_ms)
            self._notify(due_ms)

    async def silence(self, worker_id: str, session: str, *, gone: bool = False) -> None:
        """Nothing is heard of the worker from now on, unless it has another session by now; its
        tasks wait for it.
        """
        now_ms = self._clock()

        def decide(row: Worker | None) -> Worker | None:
            if row is None or row.session != session:
                return row
            if row.offline_ms is not None:
                return replace(row, gone=True) if gone and not row.gone else row
            return replace(row, offline_ms=now_ms, gone=gone)

        row = await self._registry.change(worker_id, decide, durable=True)
        if row is None or row.offline_ms != now_ms:
            return
        for task_id in row.held:
            await self._store.set_timer(task_id, LEASE, now_ms + self._grace_ms)
            self._notify(now_ms + self._grace_ms)

    async def look_around(self) -> None:
        """Notice the workers that fell silent, and forget those that were away for long."""
        now_ms = self._clock()
        for worker in self._registry.all():
            if worker.offline_ms is None:
                if worker.heartbeat_ms + self._timeout_ms <= now_ms:
                    log.info("worker_offline", worker_id=worker.id)
                    await self.silence(worker.id, worker.session)
            elif self.is_over(worker):
                age_ms = now_ms - worker.offline_ms - self._grace_ms
                if not worker.held or age_ms > KEPT_MS:
                    await self._forget(worker.id)

    async def make_room(self) -> bool:
        """Forget now some who have left and have no task to wait for them; False where there is
        nobody.
        """
        left = [worker.id for worker in self._registry.all() if _is_done(worker)][:ROOM]
        for worker_id in left:
            await self._registry.change(
                worker_id,
                lambda row: None if row is not None and _is_done(row) else row,
                durable=True,
            )
        return bool(left)

    async def _forget(self, worker_id: str) -> None:
        def decide(row: Worker | None) -> Worker | None:
            return None if row is not None and self.is_over(row) else row

        await self._registry.change(worker_id, decide, durable=True)


def _is_done(worker: Worker) -> bool:
    return worker.gone and not worker.held
