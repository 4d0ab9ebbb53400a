"""Questions: what blocked tasks ask of people, and the answers to them."""

from __future__ import annotations

from collections.abc import Callable

import trio
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core import machine
from taskcast_trio.core.errors import Forbidden, NotBlocked, RequestNotFound
from taskcast_trio.core.model import BlockedRequest, Draft, Task
from taskcast_trio.storage.protocols import ShortTermStore

from .answer_checks import answer_checked
from .changes import Changes
from .fanout import Fanout
from .lookup import find
from .watch import Watch


class Questions:
    """See ``TaskEngine`` for what each call does and raises."""

    def __init__(self, store: ShortTermStore, fanout: Fanout, changes: Changes) -> None:
        self._store = store
        self._fanout = fanout
        self._changes = changes

    async def blocked(self, task_id: str) -> Task:
        task = (await find(self._store, task_id)).task
        if task.status != "blocked":
            raise NotBlocked(task_id, task.status)
        return task

    async def request(
        self, task_id: str, wait_s: float, visible: Callable[[Task], bool] | None
    ) -> BlockedRequest:
        task = (await find(self._store, task_id)).task
        if wait_s > 0 and _asked(task) is None:
            with trio.move_on_after(wait_s), Watch(task_id, self._fanout) as watch:
                task = await self._until_asked(task_id, watch, visible)
        request = _asked(task)
        if request is None:
            raise RequestNotFound(task_id)
        return request

    async def _until_asked(
        self, task_id: str, watch: Watch, visible: Callable[[Task], bool] | None
    ) -> Task:
        while True:
            record = await find(self._store, task_id)
            task = record.task
            if visible is not None and not visible(task):
                raise Forbidden("The task was replaced by one that this caller may not answer")
            if _asked(task) is not None or task.terminal:
                return task
            await watch.changed(record)

    async def resolve(self, task_id: str, data: Raw | UnsetType, fence: int | None) -> Task:
        async def check(task: Task) -> None:
            machine.resolution(task, data)
            await answer_checked(task.blocked_request, data)

        def decide(task: Task, now_ms: int) -> tuple[Task, list[Draft]]:
            return machine.transition(task, machine.resolution(task, data), now_ms)

        return await self._changes.make(task_id, decide, check=check, fence=fence)


def _asked(task: Task) -> BlockedRequest | None:
    request = task.blocked_request
    return request if task.status == "blocked" and request is not UNSET else None
