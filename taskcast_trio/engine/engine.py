"""The task engine: everything a program can do with tasks, without HTTP.

Every change is one atomic step of the store. Cancelling a call leaves the change done or not done.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec
import trio
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import replace

from taskcast_trio.core import assignment, machine, validate
from taskcast_trio.core.archive import expected_seqs, restore
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import (
    BadRequest,
    Forbidden,
    NotBlocked,
    ReleaseUnsupported,
    RequestNotFound,
    RevisionConflict,
    SeqGap,
    StaleFence,
    StoreUnavailable,
    TaskEnded,
    TaskExists,
    TaskNotFound,
    no_page_after,
)
from taskcast_trio.core.ids import new_epoch, ulid
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
from taskcast_trio.storage.records import (
    Commit,
    CountLimits,
    Idempotency,
    LogLimits,
    Snapshot,
    TaskRecord,
)
from taskcast_trio.storage.tiered import TieredStore

from .answer_schema import check_answer, check_request
from .fanout import Fanout
from .follow_all import FollowAll, FollowAllOptions
from .history import PAGE_EVENTS, History, HistoryQuery, read_archive
from .items import Follow
from .metrics import Metrics
from .ordered import Holds, append_once
from .resume import resolve_cursor
from .subscription import Subscription
from .timetable import Timetable
from .watch import Watch
from .webhooks.state import WEBHOOK


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
        self.store = store
        self._hot = store
        self.timetable = timetable or Timetable()
        self._peers = peers
        self._archive = archive
        if archive is not None:
            self.store = TieredStore(
                store,
                archive,
                clock=clock,
                new_epoch=self._new_epoch,
                changed=changed,
                timers_of=self.timetable.at_start,
                timers_set=self.timetable.set,
            )
        self.fanout = fanout
        self.metrics = metrics
        self.clock = clock
        self._noise = noise
        self._log_limits = log_limits
        self._assign_mode = assign_mode
        self._counting = counting or CountLimits()
        self._holds = holds or Holds(fanout)

    async def create(self, request: CreateTask | None = None, *, key: str | None = None) -> Task:
        """Create a task, ``pending``, with an empty log.

        ``key`` is an idempotency key: with the same key the first answer comes back and nothing is
        stored.

        Raises:
            BadRequest: the request is wrong in itself.
            TaskExists: the id is taken.
            KeyReused: the key came with another request before.
        """
        request = request or CreateTask()
        fields = validate.new_task(request)
        now_ms = self.clock()
        idempotency = _idempotency("create", key, request)
        if fields["id"] is UNSET:
            fields["id"] = self._task_id(now_ms, key)
        elif self._archive is not None and await self._archive.exists(fields["id"]):
            raise TaskExists(fields["id"])
        if fields["assign_mode"] is UNSET:
            fields["assign_mode"] = self._assign_mode
        task = Task(status="pending", created_at=now_ms, updated_at=now_ms, **fields)
        with self.timetable.setting(self.timetable.at_start(task, now_ms)) as timers:
            commit = await self.store.create(
                task,
                epoch=self._new_epoch(),
                now_ms=now_ms,
                idempotency=idempotency,
                timers=timers,
            )
        if not commit.repeated:
            self.metrics.tasks_created.inc()
            self.timetable.plan.judge(task)
        return commit.record.task

    def _new_epoch(self) -> str:
        return new_epoch(self._noise(40))

    def _task_id(self, now_ms: int, key: str | None) -> str:
        if key is None:
            return ulid(now_ms, self._noise(80))
        # The repeat must meet the first one, in whichever part of the store that is: so the key
        # decides the id.
        digest = int.from_bytes(blake2b(key.encode(), digest_size=16).digest())
        return ulid(digest >> 80, digest)

    async def record(self, task_id: str) -> TaskRecord:
        """The task with its place in the store.

        Raises:
            TaskNotFound: there is no such task.
        """
        record = await self.store.get(task_id)
        if record is None:
            raise TaskNotFound(task_id)
        return record

    async def get(self, task_id: str) -> TaskView:
        """The task with its audience.

        Raises:
            TaskNotFound: there is no such task.
        """
        (view,) = await self._views([(await self.record(task_id)).task])
        return view

    async def subscribers(self, task_id: str) -> int:
        """How many follow the task: in this process now, in others as of a moment ago."""
        elsewhere = [0] if self._peers is None else await self._peers.audience([task_id])
        return self.fanout.subscribers(task_id) + elsewhere[0]

    async def _views(self, tasks: Sequence[Task]) -> list[TaskView]:
        elsewhere = [0] * len(tasks)
        if self._peers is not None:
            elsewhere = await self._peers.audience([task.id for task in tasks])
        views = []
        for task, others in zip(tasks, elsewhere, strict=True):
            count = self.fanout.subscribers(task.id) + others
            fields = {name: getattr(task, name) for name in Task.__struct_fields__}
            views.append(TaskView(**fields, hot=count > 0, subscriber_count=count))
        return views

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
            return await self._views([record.task for record in records])
        if after is not None:
            last = await self.store.get(after)
            if last is not None and not visible(last.task):
                raise no_page_after(after)
        records = await self.store.list_tasks(statuses=statuses, type_=type_, after=after)
        seen = (record.task for record in records if visible(record.task))
        return await self._views(list(islice(seen, limit)))

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
        machine.check_transition(change)
        check_request(change.blocked_request, "$.blockedRequest")
        idempotency = _idempotency("transition", key, change)

        def decide(task: Task, now_ms: int) -> tuple[Task, list[Draft]]:
            if _asks(task) and change.status == "running" and change.result is not UNSET:
                check_answer(task.blocked_request, change.result, "$.result")
            return assignment.change(task, change, now_ms)

        return await self._move(
            task_id,
            decide,
            idempotency,
            new_ttl=change.ttl is not UNSET,
            fence=fence,
        )

    async def blocked(self, task_id: str) -> Task:
        """The task, which waits to be answered.

        Raises:
            TaskNotFound: there is no such task.
            NotBlocked: there is nothing to answer.
        """
        task = (await self.record(task_id)).task
        if task.status != "blocked":
            raise NotBlocked(task_id, task.status)
        return task

    async def resolve(
        self, task_id: str, data: Raw | UnsetType, *, fence: int | None = None
    ) -> Task:
        """Answer a blocked task: it goes on running, with the answer as its result.

        Raises:
            TaskNotFound: there is no such task.
            NotBlocked: there is nothing to answer (any more).
            BadRequest: the answer breaks the schema of the request.
        """

        def decide(task: Task, now_ms: int) -> tuple[Task, list[Draft]]:
            change = machine.resolution(task, data)
            check_answer(task.blocked_request, data)
            return machine.transition(task, change, now_ms)

        return await self._move(task_id, decide, None, fence=fence)

    async def _move(
        self,
        task_id: str,
        decide: Callable[[Task, int], tuple[Task, list[Draft]]],
        idempotency: Idempotency | None,
        *,
        new_ttl: bool = False,
        fence: int | None = None,
    ) -> Task:
        """Decide on the task as it is, and store that if it still is so; else decide anew.

        A lost race means that another change won, so this ends: the log moves on with each round.
        """
        while True:
            record = await self.record(task_id)
            now_ms = self.clock()
            if idempotency is not None:
                answer = await self.store.repeated(task_id, idempotency, now_ms=now_ms)
                if answer is not None:
                    return answer.record.task
            before = record.task
            if fence is not None and before.fence != fence:
                raise assignment.refusal(before)
            task, drafts = decide(before, now_ms)
            task = assignment.settled(before, task, by_holder=fence is not None)
            due = self.timetable.at_change(record.task, task, now_ms, new_ttl=new_ttl)
            try:
                with self.timetable.setting(due) as timers, self.timetable.appending(now_ms):
                    commit = await self.store.transition(
                        task,
                        drafts,
                        revision=record.revision,
                        epoch=record.epoch,
                        now_ms=now_ms,
                        idempotency=idempotency,
                        timers=timers,
                        hasten={WEBHOOK: now_ms},
                    )
            except RevisionConflict:
                continue
            self.counted(commit)
            return replace(commit.record.task, assigned_worker=before.assigned_worker)

    def counted(self, commit: Commit) -> None:
        """A change of a task was stored."""
        if not commit.repeated:
            self.metrics.transitions.labels(commit.record.task.status).inc()
            self.metrics.events.inc(len(commit.entries))
            self.timetable.appended(commit.record.task, self.clock())

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
        record = await self.record(task_id)
        if wait_s > 0 and not _asks(record.task):
            with trio.move_on_after(wait_s), Watch(task_id, self.fanout) as watch:
                record = await self._until_asked(task_id, watch, visible)
        if not _asks(record.task) or record.task.blocked_request is UNSET:
            raise RequestNotFound(task_id)
        return record.task.blocked_request

    async def _until_asked(
        self, task_id: str, watch: Watch, visible: Callable[[Task], bool] | None
    ) -> TaskRecord:
        while True:
            record = await self.record(task_id)
            if visible is not None and not visible(record.task):
                raise Forbidden("The task was replaced by one that this caller may not answer")
            if _asks(record.task) or record.task.terminal:
                return record
            await watch.changed(record)

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
        counted = 0
        for number, draft in enumerate(drafts):
            counted += validate.draft(draft, number)
        idempotency = _idempotency("publish", key, drafts)
        if not counted:
            return (await self._append(task_id, drafts, idempotency, fence, None)).entries
        if key is not None and counted < len(drafts):
            raise BadRequest(
                "With an Idempotency-Key all events of a batch have a clientSeq, or none has"
            )

        async def append(some: Sequence[Draft], is_all: bool) -> Commit:
            key = idempotency if is_all else None
            return await self._append(task_id, some, key, fence, self._counting)

        async def attempt() -> list[Entry]:
            if visible is not None and not visible((await self.record(task_id)).task):
                raise Forbidden("The task was replaced by one that this caller may not publish to")
            return await append_once(drafts, append)

        try:
            return await append_once(drafts, append)
        except SeqGap as early:
            gap = early
        if not hold or not gap.held or not self._holds.hold_s:
            raise gap
        return await self._holds.store(task_id, gap, attempt)

    async def _append(
        self,
        task_id: str,
        drafts: Sequence[Draft],
        idempotency: Idempotency | None,
        fence: int | None,
        counting: CountLimits | None,
    ) -> Commit:
        now_ms = self.clock()
        try:
            commit = await self.store.append(
                task_id,
                drafts,
                now_ms=now_ms,
                idempotency=idempotency,
                limits=self._log_limits,
                hasten={WEBHOOK: now_ms},
                fence=fence,
                counting=counting,
            )
        except (StoreUnavailable, trio.Cancelled):
            self.timetable.may_have_appended(now_ms)
            raise
        except (StaleFence, TaskEnded) as refused:
            error = refused
        else:
            return self._published(commit, now_ms)
        if fence is not None:  # the archive does not look at fences: what only it has has ended
            task = (await self.record(task_id)).task
            if task.fence != fence:
                raise assignment.refusal(task)
        raise error

    def _published(self, commit: Commit, now_ms: int) -> Commit:
        if not commit.repeated and commit.known is None:
            self.metrics.events.inc(len(commit.entries))
            self.timetable.appended(commit.record.task, now_ms)
        return commit

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
        if follow.last_event_id is None or not record.task.terminal:
            return None
        after = await resolve_cursor(self.store, record, follow.last_event_id)
        if after is None or after < record.trimmed:
            return None
        more = True
        while more:
            page = await self.store.read(task_id, after=after, limit=PAGE_EVENTS)
            for entry in page.entries:
                if follow.filter.matches(entry.type, entry.level):
                    return None
                after = entry.index
            more = page.more
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
        task, events = restore(request.archive)
        publishers = expected_seqs(request.archive)
        validate.task_id(task.id, "archive.task.id")
        check_request(task.blocked_request, "$.archive.task.blockedRequest")
        due = self.timetable.at_start(task, self.clock(), imported=True)
        with self.timetable.setting(due) as timers:
            commit = await self.store.import_task(
                task,
                events,
                epoch=self._new_epoch(),
                overwrite=request.overwrite,
                timers=timers,
                publishers=publishers,
            )
        self.timetable.plan.judge(task)
        return Imported(
            ok=True, task_id=task.id, event_count=len(events), overwritten=commit.replaced
        )

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


def _asks(task: Task) -> bool:
    return task.status == "blocked" and task.blocked_request is not UNSET


def _idempotency(step: str, key: str | None, request: Any) -> Idempotency | None:
    if key is None:
        return None
    fingerprint = blake2b(msgspec.json.encode(request), digest_size=16).digest()
    return Idempotency(f"{step}:{key}", fingerprint)
