"""Publishing: events are appended to a task's log, all of a request or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from taskcast_trio.core import assignment, validate
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import (
    BadRequest,
    Forbidden,
    SeqGap,
    StaleFence,
    StoreUnavailable,
    TaskEnded,
)
from taskcast_trio.core.model import Draft, Task
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Commit, CountLimits, Idempotency, LogLimits

from .lookup import find
from .metrics import Metrics
from .ordered import Holds, append_once
from .timetable import Timetable
from .webhooks.state import WEBHOOK


class Publishing:
    """``counting`` bounds what is kept of publishers that count their events; ``holds`` has those
    that wait for others to come before them.
    """

    def __init__(
        self,
        store: ShortTermStore,
        timetable: Timetable,
        metrics: Metrics,
        *,
        clock: Callable[[], int],
        log_limits: LogLimits | None,
        counting: CountLimits,
        holds: Holds,
    ) -> None:
        self._store = store
        self._timetable = timetable
        self._metrics = metrics
        self._clock = clock
        self._log_limits = log_limits
        self._counting = counting
        self._holds = holds

    async def publish(
        self,
        task_id: str,
        drafts: Sequence[Draft],
        *,
        key: str | None,
        fence: int | None,
        hold: bool,
        visible: Callable[[Task], bool] | None,
    ) -> Sequence[Entry]:
        """See :meth:`TaskEngine.publish`."""
        counted = 0
        for number, draft in enumerate(drafts):
            counted += validate.draft(draft, number)
        idempotency = Idempotency.of("publish", key, drafts)
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
            if visible is not None and not visible((await find(self._store, task_id)).task):
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
        now_ms = self._clock()
        try:
            commit = await self._store.append(
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
            self._timetable.may_have_appended(now_ms)
            raise
        except (StaleFence, TaskEnded) as refused:
            error = refused
        else:
            if not commit.repeated and commit.known is None:
                self._metrics.events.inc(len(commit.entries))
                self._timetable.appended(commit.record.task, now_ms)
            return commit
        if fence is not None:  # the archive does not look at fences: what only it has has ended
            task = (await find(self._store, task_id)).task
            if task.fence != fence:
                raise assignment.refusal(task)
        raise error
