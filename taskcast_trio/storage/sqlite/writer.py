"""The one writer of the database, with group commit.

Steps that come while a commit runs wait, and share the next transaction. Each learns what came of
it after the commit (and its fsync, where that is asked for), when the commits have been announced
in the order of the steps.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import trio
from trio.lowlevel import Abort, RaiseCancelT

from taskcast_trio.core.errors import StoreUnavailable, TaskcastError

from ..recent import Recent
from .batch import Batch
from .failures import unavailable
from .queries import Head, Tasks
from .sweep import sweep

T = TypeVar("T")

BATCH_STEPS: Final = 512
QUEUED_STEPS: Final = 4 * BATCH_STEPS
_HEADS_BYTES: Final = 32 * 1024 * 1024
_PUBLISHER_BYTES: Final = 256


class _Job:
    """A step, and the caller that waits for what comes of it."""

    __slots__ = ("begun", "error", "left", "result", "step", "task")

    def __init__(self, step: Callable[[Batch], Any], task: trio.lowlevel.Task) -> None:
        self.step = step
        self.task = task
        self.begun = False
        self.left = False
        self.result: Any = None
        self.error: Exception | None = None

    def abort(self, _: RaiseCancelT) -> Abort:
        if self.begun:
            return Abort.FAILED
        self.left = True
        return Abort.SUCCEEDED


@dataclass(slots=True)
class _Written:
    """What came of some jobs: the batches that were committed, and whether the database failed."""

    batches: list[Batch] = field(default_factory=list)
    failed: bool = False


class Writer:
    """Runs steps on its connection, in worker threads, one batch at a time.

    ``committed`` is called on the Trio side with each batch that was committed, before the callers
    of its steps go on; ``lost`` after a failure of the database, when what was remembered of it
    should be read again.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        tasks: Tasks,
        *,
        committed: Callable[[Batch], None],
        lost: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._committed = committed
        self._lost = lost
        self._heads: Recent[str, Head] = Recent(_HEADS_BYTES)
        self._queue: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._room = trio.lowlevel.ParkingLot()
        self._settled = trio.lowlevel.ParkingLot()
        self._wake = trio.Event()
        self._sweeping = True
        self._unswept = False
        self._closed = False
        self._scope = trio.CancelScope(shield=True)
        self._limiter = trio.CapacityLimiter(1)

    def head(self, task_id: str) -> Head | None:
        """What is remembered of the log as of the last batch; None also while another one runs: the
        database, and who has read it, may be ahead.
        """
        return None if self._running else self._heads.get(task_id)

    async def settled(self) -> None:
        """Wait until the batch that runs has been announced; a checkpoint in any case."""
        if self._running:
            await self._settled.park()
        else:
            await trio.lowlevel.checkpoint()

    async def do(self, step: Callable[[Batch], T]) -> T:
        """Run the step in a transaction, and return what it returns once that is committed.

        Cancelled before its transaction began, the step is not done; after that, it is waited for.

        Raises:
            StoreUnavailable: the database could not take it; nothing of it was stored.
        """
        while len(self._queue) >= QUEUED_STEPS and not self._closed:
            await self._room.park()
        if self._closed:
            raise StoreUnavailable("The database is closed")
        job = _Job(step, trio.lowlevel.current_task())
        self._queue.append(job)
        self._wake.set()
        await trio.lowlevel.wait_task_rescheduled(job.abort)
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until :meth:`close`; a cancellation from outside does not end it, since callers
        that are shielded may still wait for their steps.
        """
        with self._scope:
            task_status.started()
            try:
                while True:
                    await self._serve_once()
            finally:
                self._end()

    def close(self) -> None:
        """Let no more steps in and end :meth:`run`, after the batch that runs."""
        self._closed = True
        self._scope.cancel()

    async def _serve_once(self) -> None:
        if not self._queue and not self._sweeping:
            self._wake = trio.Event()
            await self._wake.wait()
        self._take()
        if self._running:
            await self._commit()
        if self._sweeping:
            self._sweeping = await self._in_thread(self._sweep)

    def _take(self) -> None:
        while self._queue and len(self._running) < BATCH_STEPS:
            job = self._queue.popleft()
            if not job.left:
                job.begun = True
                self._running.append(job)
        self._room.unpark(count=QUEUED_STEPS - len(self._queue))

    async def _commit(self) -> None:
        written = await self._in_thread(self._write, self._running)
        for batch in written.batches:
            for task_id, head in batch.heads.items():
                if head is None:
                    self._heads.drop(task_id)
                else:
                    weight = head.weight + _PUBLISHER_BYTES * len(head.publishers or ())
                    self._heads.put(task_id, head, weight)
            self._sweeping = self._sweeping or batch.dropped or self._unswept
            self._committed(batch)
        if written.failed:
            self._heads.clear()
            self._lost()
        self._settle()

    def _settle(self) -> None:
        jobs, self._running = self._running, []
        for job in jobs:
            trio.lowlevel.reschedule(job.task)
        self._settled.unpark_all()

    def _end(self) -> None:
        self._closed = True
        self._running += [job for job in self._queue if not job.left]
        self._queue.clear()
        for job in self._running:
            job.begun = True
            job.error = StoreUnavailable("The database is closed")
        self._settle()
        self._room.unpark_all()

    async def _in_thread(self, fn: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(fn, *args, limiter=self._limiter)

    # What follows runs in the thread.

    def _write(self, jobs: list[_Job]) -> _Written:
        """Commit the jobs together, or one by one where one of them breaks the transaction."""
        written = _Written()
        if not self._try(jobs, written):
            for job in jobs:
                job.error = None
                self._try([job], written)
        return written

    def _try(self, jobs: list[_Job], written: _Written) -> bool:
        """One transaction; False where one of several jobs broke it by a fault of its own."""
        try:
            written.batches.append(self._transaction(jobs, written.batches))
        except Exception as error:
            if isinstance(error, sqlite3.Error) and unavailable(error):
                written.failed = True
                for job in jobs:
                    job.error = unavailable(error)
            elif len(jobs) == 1:
                jobs[0].error = error
            else:
                return False
        return True

    def _transaction(self, jobs: list[_Job], before: list[Batch]) -> Batch:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            batch = Batch(connection, self._tasks, self._heads.get)
            for earlier in before:
                batch.heads.update(earlier.heads)
            for job in jobs:
                try:
                    job.result = job.step(batch)
                except TaskcastError as refusal:
                    job.error = refusal
            batch.flush()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return batch

    def _sweep(self) -> bool:
        """Whether there is more to do now; what the database can't take waits for the next batch
        that it takes.
        """
        try:
            more, self._unswept = sweep(self._connection), False
        except sqlite3.Error as error:
            if not unavailable(error):
                raise
            more, self._unswept = False, True
        return more
