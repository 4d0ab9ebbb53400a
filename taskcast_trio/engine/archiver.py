"""The archiver: a cursor on every log that writes it to the long-term store, behind the publishers.

What is to be archived is a timer of its task, set in the step that made it so. Whoever takes the
timer reads the log from where the archive ends, writes it in batches, and clears the timer, unless
somebody set it anew meanwhile. So nothing is forgotten when a process ends in the middle, and
nothing is written by one process alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
import trio

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import StoreUnavailable, TaskNotFound
from taskcast_trio.core.model import Task
from taskcast_trio.storage.long_term import Extent, LongTermStore, UnwritableRows
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import TaskRecord, Timer
from taskcast_trio.storage.tiered import ARCHIVE

from .history import expect
from .metrics import Metrics
from .timer_loop import Outage, TimerLoop
from .webhooks.state import WEBHOOK

RELEASE: Final = "release"
"""The kind of timer that is due where a task that has ended may leave the short-term store."""

BATCH_EVENTS: Final = 2000
BATCH_TASKS: Final = 64
WRITERS: Final = 4
"""Tasks that are written at the same time."""

LINGER_S: Final = 0.02
"""How long a first change waits for more of them, to be written together."""

LEASE_MS: Final = 60_000
RELEASE_LEASE_MS: Final = 10 * 60_000
"""Also how often a task is tried again whose idempotency keys or webhooks keep it."""

RELEASE_LOOK_S: Final = 60.0
LOOK_AGAIN_S: Final = 5.0
"""How often a store is asked that other processes write to as well."""

SWEEP_TASKS: Final = 500
KNOWN_TASKS: Final = 50_000

log = structlog.get_logger(__name__)


class Archiver:
    """Writes what the short-term store has to the long-term one; made by ``open_runtime``.

    ``retention_ms`` is how long a task that has ended stays in the short-term store; None keeps it.
    ``due_of`` says when a task that has ended is to be cleaned up.
    """

    def __init__(
        self,
        hot: ShortTermStore,
        archive: LongTermStore,
        metrics: Metrics,
        *,
        clock: Callable[[], int],
        retention_ms: int | None,
        due_of: Callable[[Task], int | None] = lambda task: None,
    ) -> None:
        self._hot = hot
        self._archive = archive
        self._metrics = metrics
        self._clock = clock
        self._retention_ms = retention_ms
        self._due_of = due_of
        self._change = trio.Event()
        self._known: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """Where the archive of a task ends, by epoch; forgotten first is what was used longest
        ago."""
        self._outage = Outage("the archive")
        self._closing = False
        self._finished = trio.Event()
        self._releases = TimerLoop(
            hot,
            RELEASE,
            self._release,
            clock=clock,
            lease_ms=RELEASE_LEASE_MS,
            look_again_s=RELEASE_LOOK_S,
        )

    @property
    def away(self) -> bool:
        """Whether the last try to write found the long-term store away."""
        return self._outage.tries > 0

    async def lag_ms(self) -> int:
        """How long the oldest change has waited to be archived, to about a second."""
        due_ms = await self._hot.next_due(ARCHIVE)
        waited_ms = 0 if due_ms is None else self._clock() - due_ms
        return max(waited_ms, self._outage.lasted_ms)

    def changed(self) -> None:
        """There is something to be archived. Never waits."""
        self._change.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Archive until cancelled, or until :meth:`finish` has been called and nothing is left.

        Cancellation forgets nothing that the short-term store keeps.
        """
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep, name="archive sweep")
                if self._retention_ms is not None:
                    nursery.start_soon(self._releases.run, name="release")
                await self._follow()
                nursery.cancel_scope.cancel()
        finally:
            self._finished.set()

    async def _follow(self) -> None:
        while True:
            self._change = trio.Event()
            while await self._archive_due() or self.away:
                pass
            if self._closing:
                return
            with trio.move_on_after(LOOK_AGAIN_S) as idle:
                await self._change.wait()
                await trio.sleep(LINGER_S)
            if idle.cancelled_caught:
                await self._try(self._archive.ping)

    async def finish(self) -> None:
        """Wait until all that there is has been archived; the caller bounds how long."""
        self._closing = True
        self._change.set()
        await self._finished.wait()

    async def _archive_due(self) -> bool:
        """Archive some of what is due; False where nothing was."""
        timers: list[Timer] = []

        async def write() -> None:
            timers[:] = await self._hot.take_due(
                ARCHIVE, now_ms=self._clock(), lease_ms=LEASE_MS, limit=BATCH_TASKS
            )
            if timers:
                await self._write_all(timers)
            elif self.away:
                await self._archive.ping()

        await self._try(write)
        return bool(timers)

    async def _try(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do it; where a store is away, know that, and wait a while."""
        try:
            await step()
        except StoreUnavailable as error:
            self._metrics.archive_failures.inc()
            await self._outage.wait(error)
        else:
            self._outage.over()

    async def _write_all(self, timers: Sequence[Timer]) -> None:
        """Write the logs of these tasks; those that could not be are due again at once.

        Raises:
            StoreUnavailable: one of the stores is away.
        """
        left = list(reversed(timers))
        away: list[StoreUnavailable] = []

        async def write() -> None:
            while left and not away:
                timer = left.pop()
                try:
                    await self._write(timer)
                except StoreUnavailable as error:
                    left.append(timer)
                    away.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(WRITERS, len(timers))):
                nursery.start_soon(write)
        if away:
            for timer in left:
                await self._hot.set_timer(
                    timer.task_id, ARCHIVE, self._clock(), if_due=timer.due_ms
                )
            raise away[0]

    async def _write(self, timer: Timer) -> None:
        record = await self._write_log(timer.task_id)
        if record is not None:
            await self._release_later(record)
        await self._hot.set_timer(timer.task_id, ARCHIVE, None, if_due=timer.due_ms)

    async def _release_later(self, record: TaskRecord) -> None:
        """Set the timer of a task that has ended and is archived."""
        task = record.task
        if task.terminal and self._retention_ms is not None:
            due_ms = task.ended_at + self._retention_ms
            await self._hot.set_timer(task.id, RELEASE, due_ms)
            self._releases.notify(due_ms)

    async def _write_log(self, task_id: str) -> TaskRecord | None:
        """Write what the archive lacks of a task; the record that is archived then, or None where
        none is.
        """
        more = True
        record = None
        while more:
            try:
                # First: what the events say that came since is added.
                known = await self._hot.publishers(task_id)
                after = await self._archived(known.record)
                page = await self._hot.read(task_id, after=after, limit=BATCH_EVENTS)
            except TaskNotFound:
                return None
            record = page.record
            if record.epoch != known.record.epoch:
                continue
            more = page.more
            through = page.entries[-1].index if more else record.next_index - 1
            publishers = {} if more else dict(known.expected)
            expect(publishers, page.entries)
            try:
                values: Sequence[Entry] = ()
                if record.trims and not more:
                    snapshot = await self._hot.snapshot(task_id)
                    if snapshot.record.epoch == record.epoch:
                        values = [*snapshot.values.values()]
                if not await self._save(record, page.entries, through, values, publishers):
                    await self._refused(record)
                    return None
            except (UnwritableRows, TaskNotFound):
                return None
            self._remember(record, through)
        return record

    async def _refused(self, record: TaskRecord) -> None:
        """This life of the task has ended in the archive, so it was deleted while it was written
        to; or another life of it is there, which nothing here knows of.
        """
        task_id = record.task.id
        if task_id in await self._archive.extents([task_id]):
            self._metrics.archive_unwritable.inc()
            log.error("not_archivable", task=task_id, reason="another task of this id is archived")
        else:
            await self._hot.delete(task_id, epoch=record.epoch)

    async def _archived(self, record: TaskRecord) -> int:
        known = self._known.get(record.task.id)
        if known is not None and known[0] == record.epoch:
            return known[1]
        return await self._archive.archived_index(record.task.id, record.epoch)

    def _remember(self, record: TaskRecord, through: int) -> None:
        task_id = record.task.id
        self._known[task_id] = (record.epoch, through)
        self._known.move_to_end(task_id)
        if record.task.terminal or len(self._known) > KNOWN_TASKS:
            del self._known[task_id if record.task.terminal else next(iter(self._known))]

    async def _save(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        through: int,
        values: Sequence[Entry],
        publishers: Mapping[str, int],
    ) -> bool:
        """Write; events that can't be are set aside and counted.

        Raises:
            UnwritableRows: the task itself can't be.
        """
        bad: set[int] = set()
        while True:
            kept = [entry for entry in entries if entry.index not in bad]
            try:
                saved = await self._archive.save(
                    record,
                    kept,
                    through=through,
                    values=values,
                    due_ms=self._due_of(record.task),
                    publishers=publishers,
                )
            except UnwritableRows as error:
                bad.update(error.indexes)
                self._metrics.archive_unwritable.inc(len(error.indexes) + error.task)
                log.error(
                    "not_archivable",
                    task=record.task.id,
                    indexes=error.indexes[:10],
                    count=len(error.indexes),
                    task_itself=error.task,
                )
                if error.task:
                    raise
            else:
                self._metrics.archived_events.inc(len(kept))
                return saved

    # ---------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Once, find what nobody has told of: tasks from before there was an archive, or of one
        that lost what it had.
        """
        outage = Outage("the archive's sweep")
        while True:
            try:
                summary = await self._archive.summary()
                behind = await self._wake_those_behind()
            except StoreUnavailable as error:
                await outage.wait(error)
            else:
                log.info(
                    "archive",
                    tasks=summary.tasks,
                    events=summary.events,
                    last_change_ms=summary.updated_at_ms,
                    tasks_behind=behind,
                )
                return

    async def _wake_those_behind(self) -> int:
        behind = 0
        records = await self._hot.list_tasks()
        for start in range(0, len(records), SWEEP_TASKS):
            page = records[start : start + SWEEP_TASKS]
            extents = await self._archive.extents([record.task.id for record in page])
            for record in page:
                if is_whole(record, extents.get(record.task.id)):
                    await self._release_later(record)
                else:
                    self._known.pop(record.task.id, None)
                    await self._hot.set_timer(record.task.id, ARCHIVE, self._clock())
                    behind += 1
        if behind:
            self.changed()
        return behind

    async def _release(self, timer: Timer) -> None:
        """Let a task that ended long enough ago leave the short-term store."""
        task_id = timer.task_id
        record = await self._hot.get(task_id)
        if record is None:
            return
        if not is_whole(record, (await self._archive.extents([task_id])).get(task_id)):
            self._known.pop(task_id, None)
            await self._hot.set_timer(task_id, ARCHIVE, self._clock())
            self.changed()
        elif await self._hot.release(
            task_id,
            epoch=record.epoch,
            revision=record.revision,
            now_ms=self._clock(),
            unless=(WEBHOOK,),
        ):
            self._metrics.released.inc()


def is_whole(record: TaskRecord, extent: Extent | None) -> bool:
    """Whether all that there is of the task is archived."""
    return extent == Extent(record.epoch, record.revision, record.next_index)
