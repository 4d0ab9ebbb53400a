"""How tasks come: created, or imported with their logs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from typing import Final

import trio
from msgspec import UNSET, UnsetType

from taskcast_trio.core import validate
from taskcast_trio.core.archive import expected_seqs, restore
from taskcast_trio.core.errors import KeyReused, StoreUnavailable, TaskExists
from taskcast_trio.core.ids import ulid
from taskcast_trio.core.model import AssignMode, CreateTask, Imported, ImportTask, Task
from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Idempotency

from .answer_checks import request_checked
from .metrics import Metrics
from .timetable import Timetable
from .webhooks.state import judge as judge_webhooks

KEY_LOOK_S: Final = 1.0
"""How long a new task waits for an archive that is away to say whether its key has made it before.
"""


class Intake:
    """``archive`` may have tasks that ``store`` has no more. ``noise(n)`` gives n random bits,
    ``new_epoch`` names a log; ``assign_mode`` is that of tasks that are created without one.
    """

    def __init__(
        self,
        store: ShortTermStore,
        archive: LongTermStore | None,
        timetable: Timetable,
        metrics: Metrics,
        *,
        clock: Callable[[], int],
        noise: Callable[[int], int],
        new_epoch: Callable[[], str],
        assign_mode: AssignMode | UnsetType,
    ) -> None:
        self._store = store
        self._archive = archive
        self._timetable = timetable
        self._metrics = metrics
        self._clock = clock
        self._noise = noise
        self._new_epoch = new_epoch
        self._assign_mode = assign_mode

    async def create(self, request: CreateTask, key: str | None) -> Task:
        """See :meth:`TaskEngine.create`."""
        fields = validate.new_task(request)
        now_ms = self._clock()
        idempotency = Idempotency.of("create", key, request)
        if fields["id"] is UNSET:
            fields["id"] = self._task_id(now_ms, key)
        if self._archive is not None and (request.id is not UNSET or key is not None):
            made = await self._made_before(self._archive, request, fields["id"], idempotency)
            if made is not None:
                return made
        if fields["assign_mode"] is UNSET:
            fields["assign_mode"] = self._assign_mode
        task = Task(status="pending", created_at=now_ms, updated_at=now_ms, **fields)
        with self._timetable.setting(self._timetable.at_start(task, now_ms)) as timers:
            commit = await self._store.create(
                task,
                epoch=self._new_epoch(),
                now_ms=now_ms,
                idempotency=idempotency,
                timers=timers,
            )
        if not commit.repeated:
            self._metrics.tasks_created.inc()
            self._timetable.plan.judge(task)
            judge_webhooks(task)
        return commit.record.task

    async def _made_before(
        self,
        archive: LongTermStore,
        request: CreateTask,
        task_id: str,
        idempotency: Idempotency | None,
    ) -> Task | None:
        """The task that this key has made before, if it has: an archived task is not to be
        replaced by a new one.

        Raises:
            TaskExists: the archive has another one.
            KeyReused: the key came with another request before.
        """
        if idempotency is not None:
            answer = await self._store.repeated(task_id, idempotency, now_ms=self._clock())
            if answer is not None:
                return answer.record.task
        if request.id is not UNSET:
            if await archive.exists(task_id):
                raise TaskExists(task_id)
            return None
        # The short-term store may have lost its keys, but this id is what the key decides.
        with trio.move_on_after(KEY_LOOK_S), suppress(StoreUnavailable):
            record = await archive.load(task_id)
            if record is not None:
                task = record.task
                if (task.type, task.params) != (request.type, request.params):
                    raise KeyReused(task_id)
                return task
        return None

    def _task_id(self, now_ms: int, key: str | None) -> str:
        if key is None:
            return ulid(now_ms, self._noise(80))
        # The repeat must meet the first one, in whichever part of the store that is: so the key
        # decides the id.
        digest = int.from_bytes(blake2b(key.encode(), digest_size=16).digest())
        return ulid(digest >> 80, digest)

    async def import_task(self, request: ImportTask) -> Imported:
        """See :meth:`TaskEngine.import_task`."""
        task, events = restore(request.archive)
        publishers = expected_seqs(request.archive)
        validate.task_id(task.id, "archive.task.id")
        await request_checked(task.blocked_request, "$.archive.task.blockedRequest")
        due = self._timetable.at_start(task, self._clock(), imported=True)
        with self._timetable.setting(due) as timers:
            commit = await self._store.import_task(
                task,
                events,
                epoch=self._new_epoch(),
                overwrite=request.overwrite,
                timers=timers,
                publishers=publishers,
            )
        self._timetable.plan.judge(task)
        judge_webhooks(task)
        return Imported(
            ok=True, task_id=task.id, event_count=len(events), overwritten=commit.replaced
        )
