"""The task engine: everything a program can do with tasks, without HTTP.

Every change is one atomic step of the store. Cancelling a call leaves the change done or not done.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice

from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core import validate
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import ReleaseUnsupported, TaskNotFound, no_page_after
from taskcast_trio.core.ids import new_epoch
from taskcast_trio.core.model import (
    AssignMode,
    BlockedRequest,
    CreateTask,
    Draft,
    Imported,
    ImportTask,
    StorageRelease,
    Task,
    TaskView,
    Transition,
)
from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.protocols import Peers, ShortTermStore
from taskcast_trio.storage.records import CountLimits, LogLimits, Snapshot, TaskRecord
from taskcast_trio.storage.tiered import TieredStore

from .changes import Changes
from .fanout import Fanout
from .follow_all import FollowAll, FollowAllOptions
from .followers import Followers
from .history import History, HistoryQuery, read_archive
from .intake import Intake
from .items import Follow
from .lookup import find
from .metrics import Metrics
from .ordered import Holds
from .publishing import Publishing
from .questions import Questions
from .resume import has_seen_all
from .subscription import Subscription
from .timetable import Timetable


def wall_clock_ms() -> int:
    """The time of day: Unix ms."""
    return time.time_ns() // 1_000_000


class TaskEngine:
    """Tasks and their logs. Made by ``open_runtime`` or ``open_engine``, which own what runs beside
    it.
    """

    def __init__(
        self,
        store: ShortTermStore,
        fanout: Fanout,
        metrics: Metrics,
        *,
        clock: Callable[[], int] = wall_clock_ms,
        noise: Callable[[int], int] = secrets.randbits,
        log_limits: LogLimits | None = None,
        archive: LongTermStore | None = None,
        changed: Callable[[], None] = lambda: None,
        peers: Peers | None = None,
        timetable: Timetable | None = None,
        assign_mode: AssignMode | UnsetType = UNSET,
        counting: CountLimits | None = None,
        holds: Holds | None = None,
    ) -> None:
        """With an ``archive``, tasks that ``store`` has no more are looked up there and go on from
        there; ``changed`` is called when there is something to be archived. ``peers`` know who
        follows in other processes. ``timetable`` knows what is due for a task. ``assign_mode`` is
        that of tasks that are created without one. ``counting`` bounds what is kept of publishers
        that count their events; ``holds`` has those that wait for others to come before them.
        """

        def name_epoch() -> str:
            return new_epoch(noise(40))

        timetable = timetable or Timetable()
        self._hot = store
        self.store = store
        if archive is not None:
            self.store = TieredStore(
                store,
                archive,
                clock=clock,
                new_epoch=name_epoch,
                changed=changed,
                timers_of=timetable.at_start,
                timers_set=timetable.set,
            )
        self.fanout = fanout
        self.metrics = metrics
        self.clock = clock
        self.timetable = timetable
        self.changes = Changes(self.store, timetable, metrics, clock)
        self._intake = Intake(
            self.store,
            archive,
            timetable,
            metrics,
            clock=clock,
            noise=noise,
            new_epoch=name_epoch,
            assign_mode=assign_mode,
        )
        self._publishing = Publishing(
            self.store,
            timetable,
            metrics,
            clock=clock,
            log_limits=log_limits,
            counting=counting or CountLimits(),
            holds=holds or Holds(fanout),
        )
        self._questions = Questions(self.store, fanout, self.changes)
        self._followers = Followers(fanout, peers)

    async def create(self, request: CreateTask | None = None, *, key: str | None = None) -> Task:
        """Create a task, ``pending``, with an empty log.

        ``key`` is an idempotency key: with the same key the first answer comes back and nothing is
        stored.

        Raises:
            BadRequest: the request is wrong in itself.
            TaskExists: the id is taken.
            KeyReused: the key came with another request before.
        """
        return await self._intake.create(request or CreateTask(), key)

    async def record(self, task_id: str) -> TaskRecord:
        """The task with its place in the store.

        Raises:
            TaskNotFound: there is no such task.
        """
        return await find(self.store, task_id)

    async def get(self, task_id: str) -> TaskView:
        """The task with its audience.

        Raises:
            TaskNotFound: there is no such task.
        """
        (view,) = await self._followers.views([(await self.record(task_id)).task])
        return view

    async def subscribers(self, task_id: str) -> int:
        """How many follow the task: in this process now, in others as of a moment ago."""
        (count,) = await self._followers.count([task_id])
        return count

    async def audience_told(self) -> None:
        """Wait until other processes count who follows in this one now."""
        await self._followers.audience_told()

    async def list_tasks(
        self,
        *,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        visible: Callable[[Task], bool] | None = None,
    ) -> list[TaskView]:
        """Tasks in order of creation; ``after`` is the id of the last one of the page before.

        Only those that are ``visible`` are listed, and count.

        Raises:
            BadRequest: there is no task ``after``.
        """
        if visible is None:
            records = await self.store.list_tasks(
                statuses=statuses, type_=type_, after=after, limit=limit
            )
            return await self._followers.views([record.task for record in records])
        if after is not None:
            last = await self.store.get(after)
            if last is not None and not visible(last.task):
                raise no_page_after(after)
        records = await self.store.list_tasks(statuses=statuses, type_=type_, after=after)
        seen = (record.task for record in records if visible(record.task))
        return await self._followers.views(list(islice(seen, limit)))

    async def transition(
        self,
        task_id: str,
        change: Transition,
        *,
        key: str | None = None,
        fence: int | None = None,
    ) -> Task:
        """Move the task to another status, and append the events that tell of it.

        A task that fails with attempts left is pending again. ``fence`` is that of the worker that
        asks; what others do takes a task that ends, or is paused or pending, from its worker. The
        answer names the worker that had it.

        Raises:
            BadRequest: the change is wrong in itself, or the schema of its blocked request is; or
                its result answers a request, and breaks the schema of that.
            TaskNotFound: there is no such task.
            InvalidTransition: there is no way from its status to the one asked for.
            StaleFence, TaskCancelled: the task is not assigned so any more.
            KeyReused: the key came with another request before.
        """
        return await self.changes.transition(task_id, change, key=key, fence=fence)

    async def blocked(self, task_id: str) -> Task:
        """The task, which waits to be answered.

        Raises:
            TaskNotFound: there is no such task.
            NotBlocked: there is nothing to answer.
        """
        return await self._questions.blocked(task_id)

    async def resolve(
        self, task_id: str, data: Raw | UnsetType, *, fence: int | None = None
    ) -> Task:
        """Answer a blocked task: it goes on running, with the answer as its result.

        Raises:
            TaskNotFound: there is no such task.
            NotBlocked: there is nothing to answer (any more).
            BadRequest: the answer breaks the schema of the request.
        """
        return await self._questions.resolve(task_id, data, fence)

    async def blocked_request(
        self,
        task_id: str,
        *,
        wait_s: float = 0.0,
        visible: Callable[[Task], bool] | None = None,
    ) -> BlockedRequest:
        """What the task waits to be told; for that ``wait_s`` are waited, or until it has ended.

        Who waits counts as no subscriber.

        Raises:
            TaskNotFound: there is no such task (any more).
            RequestNotFound: it is not blocked, or blocked without a request.
            Forbidden: the task was replaced by one that is not ``visible``.
            Draining: the engine shuts down.
        """
        return await self._questions.request(task_id, wait_s, visible)

    async def publish(
        self,
        task_id: str,
        drafts: Sequence[Draft],
        *,
        key: str | None = None,
        fence: int | None = None,
        hold: bool = True,
        visible: Callable[[Task], bool] | None = None,
    ) -> Sequence[Entry]:
        """Append events to the task's log, all or none, and fan them out. ``fence`` is that of the
        worker that publishes.

        Of events that are counted (``client_seq``) those that were stored before are answered as
        they are stored. One that comes before its time is waited with, unless it asks for no
        ``hold`` or the caller does.

        Raises:
            BadRequest: a draft is wrong in itself; nothing is stored.
            TaskNotFound: there is no such task.
            TaskEnded: the task is terminal.
            StaleFence, TaskCancelled: the task is not assigned so any more.
            TaskFull: the task's log would hold more than it may; nothing is stored.
            KeyReused: the key came with another request before.
            SeqGap: events are missing before one that is counted.
            SeqStale: one that is counted was stored too long ago.
            RateLimited: too many wait for others to come before them.
            Draining: the engine has begun to shut down while this waited.
            Forbidden: while this waited the task was replaced by one that is not ``visible``.
        """
        return await self._publishing.publish(
            task_id, drafts, key=key, fence=fence, hold=hold, visible=visible
        )

    async def expected_seq(self, task_id: str, client_id: str) -> int:
        """Which event of the publisher is to be stored next; 0 where none has been yet.

        Raises:
            BadRequest: no publisher can have this id.
            TaskNotFound: there is no such task.
        """
        validate.client_id(client_id, ".clientId")
        return (await self.store.publishers(task_id)).expected.get(client_id, 0)

    def subscribe(self, task_id: str, follow: Follow | None = None) -> Subscription:
        """Follow a task: ``async with engine.subscribe(task_id) as subscription``.

        The task may be unknown: the subscription then ends at once with ``Done("deleted")``.
        """
        return Subscription(
            task_id,
            follow or Follow(),
            store=self.store,
            fanout=self.fanout,
            metrics=self.metrics,
            clock=self.clock,
        )

    def follow_all(self, options: FollowAllOptions | None = None) -> FollowAll:
        """Follow every task that is created from now on: ``async with engine.follow_all() as
        events``.
        """
        return FollowAll(
            options or FollowAllOptions(),
            store=self.store,
            hot=self._hot,
            fanout=self.fanout,
            metrics=self.metrics,
        )

    async def finished(self, task_id: str, follow: Follow) -> str | None:
        """The terminal status of a task of which ``follow`` has seen everything already; else None.

        Raises:
            TaskNotFound: there is no such task.
        """
        record = await self.record(task_id)
        if not record.task.terminal or not await has_seen_all(self.store, record, follow):
            return None
        return record.task.status

    async def history(self, task_id: str, query: HistoryQuery | None = None) -> History:
        """The stored events, to be iterated page by page; the log is never built whole.

        Raises:
            TaskNotFound: there is no such task.
        """
        return await History.open(self.store, task_id, query or HistoryQuery())

    async def snapshot(self, task_id: str) -> Snapshot:
        """The running value of every series, and the index up to which they are.

        Raises:
            TaskNotFound: there is no such task.
        """
        return await self.store.snapshot(task_id)

    async def archive(
        self, task_id: str, *, shown: Callable[[Task], Task] | None = None
    ) -> AsyncIterator[bytes]:
        """The task, as it is to be ``shown``, and its events as one JSON document, in parts.

        Raises:
            TaskNotFound: there is no such task.
        """
        return await read_archive(self.store, task_id, exported_at_ms=self.clock(), shown=shown)

    async def import_task(self, request: ImportTask) -> Imported:
        """Store a task and its events as an archive has them, times included.

        Raises:
            BadRequest: the archive breaks a rule of the format.
            TaskExists: the id is taken, and ``overwrite`` is not set.
        """
        return await self._intake.import_task(request)

    async def delete(self, task_id: str) -> None:
        """Remove the task and everything that belongs to it; its subscribers are told ``deleted``.

        Raises:
            TaskNotFound: there is no such task.
        """
        if not await self.store.delete(task_id):
            raise TaskNotFound(task_id)

    async def release_storage(self, task_id: str, request: StorageRelease) -> None:
        """Move the task to a colder store tier.

        Raises:
            BadRequest: the request is wrong in itself.
            TaskNotFound: there is no such task.
            ReleaseUnsupported: the store has no colder tier.
        """
        validate.storage_release(request)
        await self.record(task_id)
        raise ReleaseUnsupported("This store has no colder tier to release the task to")
