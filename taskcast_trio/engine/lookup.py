"""Looking up a task that has to be there."""

from __future__ import annotations

from taskcast_trio.core.errors import TaskNotFound
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import TaskRecord


async def find(store: ShortTermStore, task_id: str) -> TaskRecord:
    """The task with its place in the store.

    Raises:
        TaskNotFound: there is no such task.
    """
    record = await store.get(task_id)
    if record is None:
        raise TaskNotFound(task_id)
    return record
