"""How tasks come: created, or imported with their logs."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from msgspec import UNSET, UnsetType

from taskcast_trio.core import validate
from taskcast_trio.core.archive import expected_seqs, restore
from taskcast_trio.core.errors import TaskExists
from taskcast_trio.core.ids import ulid
from taskcast_trio.core.model import AssignMode, CreateTask, Imported, ImportTask, Task
from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Idempotency

from .answer_schema import check_request
from .metrics import Metrics
from .timetable import Timetable


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
        elif self._archive is not None and await self._archive.exists(fields["id"]):
            raise TaskExists(fields["id"])
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
        return commit.record.task

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
        check_request(task.blocked_request, "$.archive.task.blockedRequest")
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
        return Imported(
            ok=True, task_id=task.id, event_count=len(events), overwritten=commit.replaced
        )
