"""Two stores as one: a short-term store that has the tasks that live, over a long-term one that has
all that was archived.

Every step goes to the short-term store. What it does not know is looked up in the long-term one,
and taken in from there when it is to be changed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final, TypeVar

import trio
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import (
    RevisionConflict,
    TaskEnded,
    TaskExists,
    TaskNotFound,
    no_page_after,
)
from taskcast_trio.core.model import Draft, Event, Task

from .long_term import LongTermStore
from .protocols import ShortTermStore
from .records import (
    NO_PUBLISHERS,
    NO_TIMERS,
    Commit,
    CountLimits,
    Idempotency,
    LogLimits,
    Page,
    Publishers,
    Snapshot,
    TaskRecord,
    Timer,
    Timers,
)

T = TypeVar("T")

ARCHIVE: Final = "archive"
"""The kind of timer that is due where a task has something that is not archived."""

LIST_PAGE: Final = 500
RESTORE_PAGE: Final = 5000


class TieredStore:
    """See :class:`ShortTermStore` for every step.

    A step that needs the long-term store raises StoreUnavailable while that is away: a look at a
    task that the short-term store has not, an id that a caller chose, and a delete. All others go
    on. ``changed`` is called after a step that left something to be archived; ``new_epoch`` names
    an epoch; ``timers_of`` says what is due for a task that is taken in, and ``timers_set`` is told
    of that.
    """

    def __init__(
        self,
        hot: ShortTermStore,
        archive: LongTermStore,
        *,
        clock: Callable[[], int],
        new_epoch: Callable[[], str],
        changed: Callable[[], None],
        timers_of: Callable[[Task, int], Timers] = lambda task, now_ms: NO_TIMERS,
        timers_set: Callable[[Timers], None] = lambda timers: None,
    ) -> None:
        self.hot = hot
        self.archive = archive
        self._changed = changed
        self._clock = clock
        self._new_epoch = new_epoch
        self._timers_of = timers_of
        self._timers_set = timers_set
        self._restoring: dict[str, trio.Event] = {}

    # Steps ---------------------------------------------------------------------------------------

    def _done(self, commit: Commit) -> Commit:
        if not commit.repeated and commit.known is None:
            self._changed()
        return commit

    async def create(
        self,
        task: Task,
        *,
        epoch: str,
        now_ms: int,
        idempotency: Idempotency | None = None,
        timers: Timers = NO_TIMERS,
    ) -> Commit:
        timers = {**timers, ARCHIVE: now_ms}
        return self._done(
            await self.hot.create(
                task, epoch=epoch, now_ms=now_ms, idempotency=idempotency, timers=timers
            )
        )

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
        wake = {**wake, ARCHIVE: now_ms} if wake else {ARCHIVE: now_ms}
        while True:
            try:
                commit = await self.hot.append(
                    task_id,
                    drafts,
                    now_ms=now_ms,
                    idempotency=idempotency,
                    limits=limits,
                    wake=wake,
                    hasten=hasten,
                    fence=fence,
                    counting=counting,
                )
            except TaskNotFound:
                await self.take_in(task_id)
            else:
                return self._done(commit)

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
        timers = {**timers, ARCHIVE: now_ms}
        try:
            commit = await self.hot.transition(
                task,
                drafts,
                revision=revision,
                epoch=epoch,
                now_ms=now_ms,
                idempotency=idempotency,
                timers=timers,
                hasten=hasten,
            )
        except TaskNotFound:
            pass
        else:
            return self._done(commit)
        await self.take_in(task.id)
        raise RevisionConflict(task.id)  # it has another epoch now

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
        was_archived = await self.archive.exists(task.id)
        if was_archived and not overwrite:
            raise TaskExists(task.id)
        timers = {**timers, ARCHIVE: self._clock()}
        commit = await self.hot.import_task(
            task,
            events,
            epoch=epoch,
            overwrite=overwrite,
            timers=timers,
            publishers=publishers,
        )
        return replace(self._done(commit), replaced=commit.replaced or was_archived)

    async def delete(self, task_id: str, *, epoch: str | None = None) -> bool:
        record = await self.hot.get(task_id)
        if record is None and epoch is not None:
            record = await self.archive.load(task_id)
            if record is None or record.epoch != epoch:
                return False
            # Whoever changes it meanwhile buries this epoch: then nothing is deleted.
            return await self.archive.delete(task_id, epoch=epoch)
        here = None if record is None else record.epoch
        if epoch not in (None, here):
            return False
        # The archive first: what it has buried can't come back, whenever this is cut.
        was_archived = await self.archive.delete(task_id, epoch=here)
        was_here = here is not None and await self.hot.delete(task_id, epoch=here)
        return was_here or was_archived

    async def trim(self, task_id: str, indexes: Sequence[int], *, epoch: str) -> int:
        # The archive first: what is still in the other one is found again, whenever this is cut.
        archived = await self.archive.trim(task_id, indexes, epoch=epoch)
        return max(archived, await self.hot.trim(task_id, indexes, epoch=epoch))

    async def restore(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        *,
        timers: Timers = NO_TIMERS,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> Commit:
        return await self.hot.restore(record, entries, timers=timers, publishers=publishers)

    async def release(
        self,
        task_id: str,
        *,
        epoch: str,
        revision: int,
        now_ms: int,
        unless: Sequence[str] = (),
    ) -> bool:
        return await self.hot.release(
            task_id, epoch=epoch, revision=revision, now_ms=now_ms, unless=unless
        )

    def only_archived(self, statuses: frozenset[str]) -> AsyncGenerator[TaskRecord, None]:
        """The tasks of these statuses that only the archive has: to be closed by who iterates."""
        return self._archived(statuses, None, None, None)

    async def take_in(self, task_id: str) -> None:
        """Take a living task in that only the archive has, with what is due for it.

        Raises:
            TaskNotFound: it has not.
            TaskEnded: it has ended, and stays where it is.
        """
        others = self._restoring.get(task_id)
        if others is not None:
            await others.wait()
            return
        done = self._restoring[task_id] = trio.Event()
        try:
            # Another process may take it in at the same time: then it is here already, or its epoch
            # has changed, and the caller's step meets what there is.
            with suppress(TaskExists, RevisionConflict):
                await self._restore_from_archive(task_id)
        finally:
            del self._restoring[task_id]
            done.set()

    async def _restore_from_archive(self, task_id: str) -> None:
        record = await self.archive.load(task_id)
        if record is None:
            raise TaskNotFound(task_id)
        if record.task.terminal:
            raise TaskEnded(task_id, record.task.status)
        # Indexes behind the archive's end may have been given already, and lost with their store.
        record = await self.archive.renew(task_id, epoch=record.epoch, new_epoch=self._new_epoch())
        entries: list[Entry] = []
        after, more = -1, True
        while more:
            page = await self.archive.read(task_id, after=after, limit=RESTORE_PAGE)
            entries += page.entries
            more = page.more
            after = page.entries[-1].index if page.entries else after
        publishers = (await self.archive.publishers(task_id)).expected
        timers = self._timers_of(record.task, self._clock())
        try:
            await self.hot.restore(record, entries, timers=timers, publishers=publishers)
        finally:
            self._timers_set(timers)

    # Looks ---------------------------------------------------------------------------------------

    async def get(self, task_id: str) -> TaskRecord | None:
        record = await self.hot.get(task_id)
        return await self.archive.load(task_id) if record is None else record

    async def repeated(
        self, task_id: str, idempotency: Idempotency, *, now_ms: int
    ) -> Commit | None:
        return await self.hot.repeated(task_id, idempotency, now_ms=now_ms)

    async def read(self, task_id: str, *, after: int, limit: int) -> Page:
        return await self._look(lambda store: store.read(task_id, after=after, limit=limit))

    async def read_places(
        self, task_id: str, *, after_place: int, after_index: int, limit: int
    ) -> Page:
        return await self._look(
            lambda store: store.read_places(
                task_id, after_place=after_place, after_index=after_index, limit=limit
            )
        )

    async def publishers(self, task_id: str) -> Publishers:
        return await self._look(lambda store: store.publishers(task_id))

    async def find(self, task_id: str, event_id: str) -> Entry | None:
        return await self._look(lambda store: store.find(task_id, event_id))

    async def snapshot(self, task_id: str) -> Snapshot:
        return await self._look(lambda store: store.snapshot(task_id))

    async def _look(self, look: Callable[[ShortTermStore | LongTermStore], Awaitable[T]]) -> T:
        try:
            return await look(self.hot)
        except TaskNotFound:
            return await look(self.archive)

    async def count(self) -> int:
        """How many tasks the short-term store has."""
        return await self.hot.count()

    async def list_tasks(
        self,
        *,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[TaskRecord]:
        """Both stores' tasks by their time of creation; of equal times those of the short-term
        store come first, in its order. Costs a look at all of its tasks.
        """
        hot = await self._hot_in_time(statuses, type_)
        place: tuple[int, str] | None = None
        if after is not None:
            last = await self.get(after)
            if last is None:
                raise no_page_after(after)
            at_ms = last.task.created_at
            if await self.hot.get(after) is None:
                place = (at_ms, after)
                hot = [record for record in hot if record.task.created_at > at_ms]
            else:
                place = (at_ms, "")
                order = [record.task.id for record in await self._hot_in_time()]
                behind = set(order[order.index(after) + 1 :]) if after in order else set(order)
                hot = [record for record in hot if record.task.id in behind]
        found: list[TaskRecord] = []
        next_hot = 0
        async with aclosing(self._archived(statuses, type_, place, limit)) as archived:
            async for record in archived:
                at_ms = record.task.created_at
                while next_hot < len(hot) and hot[next_hot].task.created_at <= at_ms:
                    found.append(hot[next_hot])
                    next_hot += 1
                found.append(record)
                if limit is not None and len(found) >= limit:
                    break
        found += hot[next_hot:]
        return found if limit is None else found[:limit]

    async def _hot_in_time(
        self, statuses: frozenset[str] | None = None, type_: str | None = None
    ) -> list[TaskRecord]:
        # Its own order is that in which they came: tasks of before that were taken in came late.
        records = await self.hot.list_tasks(statuses=statuses, type_=type_)
        return sorted(records, key=lambda record: record.task.created_at)

    async def _archived(
        self,
        statuses: frozenset[str] | None,
        type_: str | None,
        after: tuple[int, str] | None,
        limit: int | None,
    ) -> AsyncGenerator[TaskRecord, None]:
        """The tasks that only the archive has."""
        size = LIST_PAGE if limit is None else min(limit, LIST_PAGE)
        more = True
        while more:
            page = await self.archive.list_tasks(
                limit=size, statuses=statuses, type_=type_, after=after
            )
            more = len(page) == size
            if page:
                after = (page[-1].task.created_at, page[-1].task.id)
            here = await self._here([record.task.id for record in page])
            for record in page:
                if record.task.id not in here:
                    yield record

    async def _here(self, task_ids: Sequence[str]) -> set[str]:
        """Those that the short-term store has; asked for at once, which it may do as one."""
        here: set[str] = set()

        async def ask(task_id: str) -> None:
            if await self.hot.get(task_id) is not None:
                here.add(task_id)

        async with trio.open_nursery() as nursery:
            for task_id in task_ids:
                nursery.start_soon(ask, task_id)
        return here

    # What only the short-term store has ----------------------------------------------------------

    async def take_due(self, kind: str, *, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
        return await self.hot.take_due(kind, now_ms=now_ms, lease_ms=lease_ms, limit=limit)

    async def next_due(self, kind: str) -> int | None:
        return await self.hot.next_due(kind)

    async def list_due(self, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
        return await self.hot.list_due(kind, now_ms=now_ms, limit=limit)

    async def set_timer(
        self,
        task_id: str,
        kind: str,
        due_ms: int | None,
        *,
        if_due: int | None = None,
        if_next: int | None = None,
    ) -> bool:
        return await self.hot.set_timer(task_id, kind, due_ms, if_due=if_due, if_next=if_next)

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
        return await self.hot.put_task_note(
            task_id, name, value, epoch=epoch, timers=timers, if_due=if_due
        )

    async def task_note(self, task_id: str, name: str) -> bytes | None:
        return await self.hot.task_note(task_id, name)

    async def task_notes(self, task_id: str) -> dict[str, bytes]:
        return await self.hot.task_notes(task_id)

    async def rows(self, table: str) -> dict[str, bytes]:
        return await self.hot.rows(table)

    async def row(self, table: str, key: str) -> bytes | None:
        return await self.hot.row(table, key)

    async def swap_row(
        self,
        table: str,
        key: str,
        value: bytes | None,
        *,
        known: bytes | None,
        most: int | None = None,
    ) -> bytes | None:
        return await self.hot.swap_row(table, key, value, known=known, most=most)

    async def put_note(
        self, key: str, value: bytes, *, expires_ms: int | None, now_ms: int
    ) -> None:
        await self.hot.put_note(key, value, expires_ms=expires_ms, now_ms=now_ms)

    async def note(self, key: str, *, now_ms: int) -> bytes | None:
        return await self.hot.note(key, now_ms=now_ms)

    async def take_note(self, key: str, *, now_ms: int) -> bytes | None:
        return await self.hot.take_note(key, now_ms=now_ms)

    async def drop_note(self, key: str) -> bool:
        return await self.hot.drop_note(key)
