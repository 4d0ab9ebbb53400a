"""Who follows tasks: in this process now, in others as of a moment ago."""

from __future__ import annotations

from collections.abc import Sequence

from taskcast_trio.core.model import Task, TaskView
from taskcast_trio.storage.protocols import Peers

from .fanout import Fanout


class Followers:
    """``peers`` know who follows in other processes."""

    def __init__(self, fanout: Fanout, peers: Peers | None) -> None:
        self._fanout = fanout
        self._peers = peers

    async def count(self, task_ids: Sequence[str]) -> list[int]:
        elsewhere = [0] * len(task_ids)
        if self._peers is not None:
            elsewhere = await self._peers.audience(task_ids)
        return [
            self._fanout.subscribers(task_id) + others
            for task_id, others in zip(task_ids, elsewhere, strict=True)
        ]

    async def audience_told(self) -> None:
        """See :meth:`TaskEngine.audience_told`."""
        if self._peers is not None:
            await self._peers.audience_told()

    async def views(self, tasks: Sequence[Task]) -> list[TaskView]:
        """The tasks with their audience."""
        counts = await self.count([task.id for task in tasks])
        views = []
        for task, count in zip(tasks, counts, strict=True):
            fields = {name: getattr(task, name) for name in Task.__struct_fields__}
            views.append(TaskView(**fields, hot=count > 0, subscriber_count=count))
        return views
