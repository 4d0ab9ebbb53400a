"""The scheduler: ends tasks at their deadline, and wakes blocked ones at their time.

Each is a timer of its task, set in the step that made it so, and handled by one loop a kind, which
sleeps until the next one is due. Any number of processes may take the same timer: the change is
decided on the task as it is, and one of them is the first to store it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import structlog
import trio

from taskcast_trio.core import assignment, machine
from taskcast_trio.core.deadline import (
    DEADLINE,
    WAKE,
    expiry,
    timers_at_start,
    waking,
)
from taskcast_trio.core.errors import RevisionConflict, StoreUnavailable, TaskEnded, TaskNotFound
from taskcast_trio.core.model import TERMINAL, Transition
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import TaskRecord, Timer

from .changes import Changes
from .timer_loop import TimerLoop, first
from .timetable import Timetable

LEASE_MS: Final = 900
"""Less than the shortest ttl, so that a timer that was put off is never taken for one that was set
anew; and soon enough for another process to stand in for one that has died."""

AT_ONCE: Final = 32
LOOK_AGAIN_S: Final = 60.0
"""Against a clock that was set forward."""
LOOK_AGAIN_SHARED_S: Final = 1.0
"""Where other processes set timers too."""

SWEPT: Final = "deadlines:swept"
"""The note of a store whose tasks have all got their timers."""
LIVE: Final = frozenset(machine.MOVES) - TERMINAL

log = structlog.get_logger(__name__)


class Scheduler:
    """Made and run by ``open_runtime``.

    ``hot`` is the short-term store below ``store``, in which ``changes`` stores; ``shared`` says
    that other processes use the store too.
    """

    def __init__(
        self,
        store: ShortTermStore,
        hot: ShortTermStore,
        *,
        clock: Callable[[], int],
        timetable: Timetable,
        changes: Changes,
        shared: bool,
    ) -> None:
        self._store = store
        self._hot = hot
        self._clock = clock
        self._changes = changes
        look_again_s = LOOK_AGAIN_SHARED_S if shared else LOOK_AGAIN_S
        self._loops = {
            kind: TimerLoop(
                store,
                kind,
                handle,
                clock=clock,
                lease_ms=LEASE_MS,
                look_again_s=look_again_s,
                at_once=AT_ONCE,
            )
            for kind, handle in ((DEADLINE, self._expire), (WAKE, self._wake))
        }
        for kind, loop in self._loops.items():
            timetable.tell(kind, loop.notify)

    def notify(self, timers: Mapping[str, int | None]) -> None:
        """These were set, or may have been. Never waits."""
        for kind, due_ms in timers.items():
            if due_ms is not None and kind in self._loops:
                self._loops[kind].notify(due_ms)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is due until cancelled."""
        async with trio.open_nursery() as nursery:
            for kind, loop in self._loops.items():
                nursery.start_soon(loop.run, name=kind)
            await nursery.start(self._sweep, name="deadline sweep")
            task_status.started()

    async def _expire(self, timer: Timer) -> None:
        while True:
            record = await self._store.get(timer.task_id)
            # Is it still the timer that was taken? What sets it anew after this look changes the
            # revision too.
            if record is None or not await self._set(timer, timer.due_ms):
                return
            change = expiry(record.task)
            if change is None:
                await self._set(timer, None)
                return
            if await self._store_change(record, change):
                return

    async def _wake(self, timer: Timer) -> None:
        while True:
            record = await self._store.get(timer.task_id)
            if record is None:
                return
            now_ms = self._clock()
            change = waking(record.task, now_ms)
            if change is None:
                await self._set(timer, timers_at_start(record.task, now_ms).get(WAKE))
                return
            if await self._store_change(record, change):
                return

    async def _set(self, timer: Timer, due_ms: int | None) -> bool:
        """Set the timer that was taken; False where it is not that one any more."""
        return await self._store.set_timer(timer.task_id, timer.kind, due_ms, if_due=timer.due_ms)

    async def _store_change(self, record: TaskRecord, change: Transition) -> bool:
        """Move the task if it still is as it was read; False where it is to be read again."""
        now_ms = self._clock()
        task, drafts = machine.transition(record.task, change, now_ms)
        task = assignment.settled(record.task, task, by_holder=False)
        try:
            await self._changes.store(record, task, drafts, now_ms)
        except RevisionConflict:
            return False
        except (TaskNotFound, TaskEnded):
            pass
        return True

    # ---------------------------------------------------------------------------------------------

    async def _sweep(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Once in the life of a store, give their timers to the tasks of a version that set none.

        Their clocks begin then. Started once that is done, or has to wait for the store.
        """

        async def sweep() -> None:
            if await self._hot.note(SWEPT, now_ms=self._clock()) is None:
                await self._give_timers()
                await self._hot.put_note(SWEPT, b"", expires_ms=None, now_ms=self._clock())

        await first("the sweep for deadlines", sweep, task_status)

    async def _give_timers(self) -> None:
        before_ms = self._clock()
        left = [
            record
            for record in await self._hot.list_tasks(statuses=LIVE)
            if record.task.created_at < before_ms and timers_at_start(record.task, before_ms)
        ]
        away: list[StoreUnavailable] = []

        async def give() -> None:
            while left and not away:
                try:
                    await self._give(left.pop())
                except StoreUnavailable as error:
                    away.append(error)

        if left:
            log.info("deadlines_of_before", tasks=len(left))
        async with trio.open_nursery() as nursery:
            for _ in range(min(AT_ONCE, len(left))):
                nursery.start_soon(give)
        if away:
            raise away[0]

    async def _give(self, record: TaskRecord | None) -> None:
        """A change of nothing but the timers."""
        while record is not None:
            now_ms = self._clock()
            timers = timers_at_start(record.task, now_ms)
            try:
                await self._store.transition(
                    record.task,
                    (),
                    revision=record.revision,
                    epoch=record.epoch,
                    now_ms=now_ms,
                    timers=timers,
                )
            except RevisionConflict:
                record = await self._hot.get(record.task.id)
            except (TaskNotFound, TaskEnded):
                return
            else:
                self.notify(timers)
                return
