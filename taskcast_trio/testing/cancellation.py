"""Cancellation at a chosen step: to hold an operation to "done or not done, never half done"."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio.abc import Instrument


class _CancelAfter(Instrument):
    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, steps: int) -> None:
        self._task, self._scope, self._left = task, scope, steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_after(steps: int, async_fn: Callable[[], Awaitable[object]]) -> bool:
    """Run ``async_fn()`` and cancel it when it has yielded to the scheduler ``steps`` times; 0 is
    at once.

    Returns True where the cancellation ended it, False where it returned: so ``count()`` the steps
    up until False, and every checkpoint has been tried. What it raises by itself is raised.
    """
    with trio.CancelScope() as scope:
        instrument = _CancelAfter(trio.lowlevel.current_task(), scope, steps)
        if steps == 0:
            scope.cancel()
        trio.lowlevel.add_instrument(instrument)
        try:
            await async_fn()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught
