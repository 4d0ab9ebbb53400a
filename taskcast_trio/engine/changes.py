"""Changes: what a task becomes is decided on the task as it is, and stored if it still is so."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from msgspec import UNSET
from msgspec.structs import replace

from taskcast_trio.core import assignment, machine
from taskcast_trio.core.errors import RevisionConflict
from taskcast_trio.core.model import Draft, Task, Transition
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import NO_TIMERS, Commit, Idempotency, TaskRecord, Timers

from .answer_checks import answer_checked, request_checked
from .lookup import find
from .metrics import Metrics
from .timetable import Timetable
from .webhooks.state import WEBHOOK

Decide: TypeAlias = Callable[[Task, int], tuple[Task, list[Draft]]]
"""What the task becomes at a time (Unix ms), and the events that tell of it."""


class Changes:
    """Makes them, each with its timers; those who wait for what it sets are told."""

    def __init__(
        self,
        store: ShortTermStore,
        timetable: Timetable,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._timetable = timetable
        self._metrics = metrics
        self._clock = clock

    async def transition(
        self, task_id: str, change: Transition, *, key: str | None, fence: int | None
    ) -> Task:
        """See :meth:`TaskEngine.transition`."""
        machine.check_transition(change)
        await request_checked(change.blocked_request, "$.blockedRequest")

        async def check(task: Task) -> None:
            answers = task.status == "blocked" and change.status == "running"
            if answers and change.result is not UNSET:
                await answer_checked(task.blocked_request, change.result, "$.result")

        def decide(task: Task, now_ms: int) -> tuple[Task, list[Draft]]:
            return assignment.change(task, change, now_ms)

        return await self.make(
            task_id,
            decide,
            check=check,
            idempotency=Idempotency.of("transition", key, change),
            new_ttl=change.ttl is not UNSET,
            fence=fence,
        )

    async def make(
        self,
        task_id: str,
        decide: Decide,
        *,
        check: Callable[[Task], Awaitable[None]],
        idempotency: Idempotency | None = None,
        new_ttl: bool = False,
        fence: int | None = None,
    ) -> Task:
        """Check and decide on the task as it is, and store that if it still is so; else anew.

        A lost race means that another change won, so this ends: the log moves on with each round.
        The answer names the worker that had the task.
        """
        while True:
            record = await find(self._store, task_id)
            now_ms = self._clock()
            if idempotency is not None:
                answer = await self._store.repeated(task_id, idempotency, now_ms=now_ms)
                if answer is not None:
                    return _told(answer.record.task, answer.aside)
            before = record.task
            if fence is not None and before.fence != fence:
                raise assignment.refusal(before)
            await check(before)
            now_ms = self._clock()
            task, drafts = decide(before, now_ms)
            task = assignment.settled(before, task, by_holder=fence is not None)
            aside = _left(before, task)
            if idempotency is not None:
                idempotency = dataclasses.replace(idempotency, aside=aside)
            try:
                commit = await self.store(
                    record, task, drafts, now_ms, idempotency=idempotency, new_ttl=new_ttl
                )
            except RevisionConflict:
                continue
            return _told(commit.record.task, commit.aside if commit.repeated else aside)

    async def store(
        self,
        record: TaskRecord,
        task: Task,
        drafts: Sequence[Draft],
        now_ms: int,
        *,
        idempotency: Idempotency | None = None,
        new_ttl: bool = False,
        timers: Timers = NO_TIMERS,
    ) -> Commit:
        """Store what the task becomes, and set its timers: those of such a change, and ``timers``.

        Raises:
            TaskNotFound, TaskEnded: it can't be changed any more.
            RevisionConflict: it has changed since it was read.
            KeyReused: the key came with another request before.
        """
        due = self._timetable.at_change(record.task, task, now_ms, new_ttl=new_ttl)
        timers = {**due, **timers}
        with self._timetable.setting(timers), self._timetable.appending(now_ms):
            commit = await self._store.transition(
                task,
                drafts,
                revision=record.revision,
                epoch=record.epoch,
                now_ms=now_ms,
                idempotency=idempotency,
                timers=timers,
                hasten={WEBHOOK: now_ms},
            )
        if not commit.repeated:
            self._metrics.transitions.labels(commit.record.task.status).inc()
            self._metrics.events.inc(len(commit.entries))
            self._timetable.appended(commit.record.task, self._clock())
        return commit


def _left(before: Task, after: Task) -> str:
    """The worker whose assignment the change ends: the answer names it still."""
    if before.assigned_worker is UNSET or after.assigned_worker is not UNSET:
        return ""
    return before.assigned_worker


def _told(task: Task, worker_id: str) -> Task:
    return replace(task, assigned_worker=worker_id) if worker_id else task
