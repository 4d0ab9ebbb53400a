"""Waiting in tests: for the very event, never for a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Final

import trio

from taskcast_trio.core.model import Task
from taskcast_trio.engine import TaskEngine
from taskcast_trio.engine.watch import Watch

PAUSE_S: Final = 0.01


async def becomes(engine: TaskEngine, task_id: str, status: str, wait_s: float = 20) -> Task:
    """The task, once it has this status."""
    with trio.fail_after(wait_s), Watch(task_id, engine.fanout) as watch:
        while (record := await engine.record(task_id)).task.status != status:
            await watch.changed(record)
    return record.task


async def until(check: Callable[[], Awaitable[object] | object], wait_s: float = 20) -> None:
    """Wait for what nothing tells of: the state of another process, or one that is no task's."""
    with trio.fail_after(wait_s):
        while True:
            found = check()
            if await found if isawaitable(found) else found:
                return
            await trio.sleep(PAUSE_S)
