"""The cleaner: removes what cleanup rules select of tasks that have ended, when they are due.

What is due is a timer of its task, set in the step that ends it. The archive has a due list of its
own, for tasks that nothing else has any more; whichever is due first leads to the same work, which
is done once and may be done again: it is in pages of the log, and cut between two of them it goes
on where the log stands.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import msgspec
import structlog
import trio
from msgspec import UNSET, Struct

from taskcast_trio.core.cleanup import settled_at_ms, takes_event
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import BadRequest, StoreUnavailable, TaskNotFound
from taskcast_trio.core.model import TERMINAL
from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.protocols import DueList, ShortTermStore
from taskcast_trio.storage.records import TaskRecord, Timer
from taskcast_trio.storage.tiered import ARCHIVE

from .archiver import is_whole
from .cleanup_plan import CLEANUP, CleanupPlan, PlannedRule
from .cleanup_tally import Tally
from .metrics import Metrics
from .timer_loop import Outage, TimerLoop

PAGE_EVENTS: Final = 1000
LEASE_MS: Final = 60_000
LOOK_AGAIN_S: Final = 60.0
WAIT_MS: Final = 5_000
"""How long a log is left alone that is not archived, or not delivered to its webhooks, yet."""

PATIENCE_MS: Final = 3_600_000
"""For how long at most: a log that can't be is cleaned up all the same."""

SWEEP_TASKS: Final = 500
PREVIEW_TASKS: Final = 10_000
RUN_TASKS: Final = 64
RUN_S: Final = 20.0
"""After which what was asked for ends, and says that there is more."""

DONE_NOTE: Final = "cleanup"
"""The note of a task that names the rules which leave nothing for a later run."""

RULES_MARK: Final = "cleanup:rules"
"""By which rules the due times of all tasks were set."""

log = structlog.get_logger(__name__)


class _Work(Struct, frozen=True):
    """What is due for a task: to delete it, by the first rule that says so, or to trim it."""

    deletion: PlannedRule | None
    trims: list[PlannedRule]
    done: list[str]
    next_ms: int | None
    """When the next rule is due that is not yet."""

    @property
    def due(self) -> list[PlannedRule]:
        return self.trims if self.deletion is None else [self.deletion]


class Cleaner:
    """Runs the rules of ``plan``; made by ``open_runtime``.

    ``store`` is what the engine has, ``hot`` its short-term part, with ``archive`` behind.
    ``changed`` is called when there is something to be archived; ``owes`` tells whether some of a
    log is still to be delivered.
    """

    def __init__(
        self,
        store: ShortTermStore,
        hot: ShortTermStore,
        plan: CleanupPlan,
        metrics: Metrics,
        *,
        clock: Callable[[], int],
        archive: LongTermStore | None,
        changed: Callable[[], None],
        owes: Callable[[TaskRecord], Awaitable[bool]],
    ) -> None:
        self._store = store
        self._hot = hot
        self._archive = archive
        self._plan = plan
        self._metrics = metrics
        self._clock = clock
        self._changed = changed
        self._owes = owes
        self._turn = trio.Lock()
        """One task is cleaned up at a time."""
        self._lists: list[DueList] = [hot] if archive is None else [hot, archive]
        self._loops = [
            TimerLoop(
                due_list,
                CLEANUP,
                partial(self._handle, due_list),
                clock=clock,
                lease_ms=LEASE_MS,
                look_again_s=LOOK_AGAIN_S,
            )
            for due_list in self._lists
        ]

    def notify(self, due_ms: int) -> None:
        """A rule is due then for a task that has ended. Never waits."""
        for loop in self._loops:
            loop.notify(due_ms)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Clean up until cancelled."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            for loop in self._loops:
                nursery.start_soon(loop.run, name="cleanup")
            await self._sweep()

    async def _handle(self, due_list: DueList, timer: Timer) -> None:
        await self._clean(due_list, timer.task_id, Tally())

    # What was asked for --------------------------------------------------------------------------

    async def run_due(self, tally: Tally) -> None:
        """Do what is due now, for a while, and tell ``tally`` what went.

        Raises:
            StoreUnavailable: a store is away.
        """
        until = trio.current_time() + RUN_S
        for due_list in self._lists:
            while timers := await due_list.take_due(
                CLEANUP, now_ms=self._clock(), lease_ms=LEASE_MS, limit=RUN_TASKS
            ):
                for timer in timers:
                    await self._clean(due_list, timer.task_id, tally)
                if trio.current_time() >= until:
                    tally.more = True
                    return

    async def preview(self, tally: Tally, *, within_ms: int = 0) -> None:
        """Tell ``tally`` what would go now, or in ``within_ms`` if nothing else changes.

        Raises:
            StoreUnavailable: a store is away.
        """
        now_ms = self._clock() + within_ms
        until = trio.current_time() + RUN_S
        seen: set[str] = set()
        for due_list in self._lists:
            timers = await due_list.list_due(CLEANUP, now_ms=now_ms, limit=PREVIEW_TASKS)
            tally.more = tally.more or len(timers) == PREVIEW_TASKS
            for timer in timers:
                if trio.current_time() >= until:
                    tally.more = True
                    return
                if timer.task_id not in seen:
                    seen.add(timer.task_id)
                    await self._preview(timer.task_id, now_ms, tally)

    async def _preview(self, task_id: str, now_ms: int, tally: Tally) -> None:
        record = await self._store.get(task_id)
        if record is None:
            return
        work = await self._work(record, now_ms)
        if work.deletion is not None:
            tally.deleted(work.deletion, record)
        elif work.trims:
            await self._walk(record, work.trims, now_ms, tally, trims=False)

    # One task ------------------------------------------------------------------------------------

    async def _clean(self, due_list: DueList, task_id: str, tally: Tally) -> None:
        async with self._turn:
            if due_list is self._archive and await self._hot.get(task_id) is not None:
                return  # it is in the other list too, and whoever takes it from there is the one
            record = await self._store.get(task_id)
            if record is None:
                return
            now_ms = self._clock()
            work = await self._work(record, now_ms)
            if not work.due:
                await self._settle(record, work.done, work.next_ms)
            elif now_ms - work.due[0].due_ms <= PATIENCE_MS and await self._is_needed(record, work):
                await self._hot.set_timer(task_id, CLEANUP, now_ms + WAIT_MS)
                self.notify(now_ms + WAIT_MS)
            elif work.deletion is not None:
                await self._delete(record, work.deletion, tally)
            else:
                await self._trim(record, work, now_ms, tally)

    async def _work(self, record: TaskRecord, now_ms: int) -> _Work:
        planned = self._plan.of(record.task)
        due = [each for each in planned if each.due_ms <= now_ms]
        note = await self._hot.task_note(record.task.id, DONE_NOTE) if due else None
        done = [] if note is None else msgspec.json.decode(note, type=list[str])
        return _Work(
            next((each for each in due if each.deletes), None),
            [each for each in due if not each.deletes and each.digest not in done],
            done,
            min((each.due_ms for each in planned if each.due_ms > now_ms), default=None),
        )

    async def _delete(self, record: TaskRecord, rule: PlannedRule, tally: Tally) -> None:
        if await self._store.delete(record.task.id, epoch=record.epoch):
            tally.deleted(rule, record)
            self._metrics.cleaned_tasks.inc()

    async def _is_needed(self, record: TaskRecord, work: _Work) -> bool:
        """Whether a webhook is still to have some of the log, or the archiver is not through with
        it: what that has just read would come back.
        """
        task_id = record.task.id
        if await self._hot.get(task_id) is None:
            return False
        if await self._owes(record):
            return True
        if self._archive is None or work.deletion is not None:
            return False
        if is_whole(record, (await self._archive.extents([task_id])).get(task_id)):
            return False
        await self._hot.set_timer(task_id, ARCHIVE, self._clock())
        self._changed()
        return True

    async def _trim(self, record: TaskRecord, work: _Work, now_ms: int, tally: Tally) -> None:
        newest_ms = await self._walk(record, work.trims, now_ms, tally, trims=True)
        if newest_ms is None:
            return
        done, again_ms = list(work.done), []
        if work.next_ms is not None:
            again_ms.append(work.next_ms)
        for each in work.trims:
            settled_ms = settled_at_ms(each.rule, each.due_ms, newest_ms)
            if settled_ms > now_ms:
                again_ms.append(settled_ms)
            else:
                done.append(each.digest)
        await self._settle(record, done, min(again_ms, default=None))

    async def _walk(
        self,
        record: TaskRecord,
        rules: Sequence[PlannedRule],
        now_ms: int,
        tally: Tally,
        *,
        trims: bool,
    ) -> int | None:
        """Count what the rules take of the log, and remove it if it ``trims``; the time of the
        newest event that stays, or None where the task is not there any more.
        """
        task_id, after, more, newest_ms = record.task.id, -1, True, 0
        counts = dict.fromkeys(rules, 0)
        while more:
            try:
                page = await self._store.read(task_id, after=after, limit=PAGE_EVENTS)
            except TaskNotFound:
                break
            if page.record.epoch != record.epoch:
                break
            more = page.more
            taken: list[int] = []
            for entry in page.entries:
                after = entry.index
                rule = _taker(rules, entry, now_ms)
                if rule is None:
                    newest_ms = max(newest_ms, entry.event.timestamp)
                else:
                    taken.append(entry.index)
                    counts[rule] += 1
            if trims and taken:
                count = await self._store.trim(task_id, taken, epoch=record.epoch)
                self._metrics.cleaned_events.inc(count)
        tally.trimmed(record, counts)
        return None if more else newest_ms

    async def _settle(self, record: TaskRecord, done: Sequence[str], next_ms: int | None) -> None:
        """Set the task's timers to the next time, and note what is done till then."""
        task_id, epoch = record.task.id, record.epoch
        note = msgspec.json.encode(done) if done and next_ms is not None else None
        await self._hot.put_task_note(
            task_id, DONE_NOTE, note, epoch=epoch, timers={CLEANUP: next_ms}
        )
        if self._archive is not None:
            await self._archive.set_due(task_id, next_ms, epoch=epoch)
        if next_ms is not None:
            self.notify(next_ms)

    # At the start --------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Once: what a deletion that was cut has left; and where the rules are not those of before,
        set the timers of all that ended.
        """
        outage = Outage("the cleanup of what was there before")
        while True:
            try:
                tasks = await self._sweep_hot()
                if self._archive is not None:
                    await self._archive.finish_deletions()
                    tasks += await self._sweep_archive(self._archive)
            except StoreUnavailable as error:
                await outage.wait(error)
            else:
                if tasks:
                    log.info("cleanup_rules_changed", tasks=tasks)
                    self.notify(self._clock())
                return

    async def _sweep_hot(self) -> int:
        store, digest = self._hot, self._plan.digest
        mark = await store.note(RULES_MARK, now_ms=self._clock())
        if mark == digest.encode():
            return 0
        found = 0
        async with aclosing(self._ended()) as ended:
            async for record in ended:
                due_ms = self._plan.due_of(record.task)
                if due_ms is not None:
                    found += await store.set_timer(record.task.id, CLEANUP, due_ms)
        await store.put_note(RULES_MARK, digest.encode(), expires_ms=None, now_ms=self._clock())
        return found

    async def _ended(self) -> AsyncGenerator[TaskRecord, None]:
        """What has ended in the short-term store, page by page."""
        store, seen = self._hot, list[str]()
        while True:
            after = seen[-1] if seen else None
            try:
                page = await store.list_tasks(statuses=TERMINAL, after=after, limit=SWEEP_TASKS)
            except BadRequest:  # it is gone: go on from the one before, some come again
                seen.pop()
                continue
            if not page:
                return
            for record in page:
                yield record
            seen = [record.task.id for record in page]

    async def _sweep_archive(self, archive: LongTermStore) -> int:
        digest = self._plan.digest
        if await archive.mark(RULES_MARK) == digest:
            return 0
        found, after = 0, None
        while page := await archive.list_ended(after=after, limit=SWEEP_TASKS):
            after = page[-1].task.id
            for record in page:
                due_ms = self._plan.due_of(record.task)
                if due_ms is not None:
                    found += await archive.set_due(record.task.id, due_ms, epoch=record.epoch)
        await archive.put_mark(RULES_MARK, digest)
        return found


def _taker(rules: Sequence[PlannedRule], entry: Entry, now_ms: int) -> PlannedRule | None:
    """The first rule that takes the event."""
    event = entry.event
    mode = None if event.series_mode is UNSET else event.series_mode
    for each in rules:
        if takes_event(
            each.rule,
            type_=event.type,
            level=event.level,
            timestamp_ms=event.timestamp,
            series_mode=mode,
            now_ms=now_ms,
        ):
            return each
    return None
