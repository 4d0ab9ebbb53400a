"""A task in the hands of this worker, as one assignment gave it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import uuid4

import trio

from taskcast_trio.core.errors import TaskcastError

from .errors import LOST, TaskLost
from .pauses import pause_s
from .wire import Holding

T = TypeVar("T")


class Hold:
    """One assignment.

    Attributes:
        lost: why the task is not the worker's any more; None while it is.
        stopped: the worker itself stops the handler, and gives the task back.
        busy: the handler runs, or is about to.
        scope: what the handler runs in.
        cancelled: set when the handler is told to stop.
    """

    def __init__(self, task_id: str, fence: int, cost: int, type_: str | None) -> None:
        self.task_id = task_id
        self.fence = fence
        self.cost = cost
        self.type = type_
        self.lost: str | None = None
        self.stopped = False
        self.busy = True
        self.scope = trio.CancelScope()
        self.cancelled = trio.Event()
        self.cancelled_at = math.inf
        self._away = trio.Event()
        self._name = uuid4().hex
        self._keys = 0

    @property
    def holding(self) -> Holding:
        return Holding(task_id=self.task_id, fence=self.fence)

    def key(self) -> str:
        """A new idempotency key."""
        self._keys += 1
        return f"{self._name}-{self._keys}"

    def lose(self, reason: str) -> None:
        """The task is not the worker's any more."""
        if self.lost is None:
            self.lost = reason
            self._away.set()
            self._cancel()

    def stop(self) -> None:
        """Stop the handler, to give the task back."""
        self.stopped = True
        self._cancel()

    def _cancel(self) -> None:
        if not self.cancelled.is_set():
            self.cancelled.set()
            self.cancelled_at = trio.current_time()
            self.scope.cancel()

    async def patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do ``step``, again and again while the server is away.

        Cancelling it leaves what was asked for done or not done.

        Raises:
            TaskLost: the task is not the worker's any more.
            TaskcastError: the server says no.
        """
        tries = 0
        while True:
            if self.lost is not None:
                raise TaskLost(self.task_id, self.lost)
            try:
                return await step()
            except LOST as error:
                self.lose(error.code)
                raise TaskLost(self.task_id, error.code) from error
            except TaskcastError as error:
                if not error.retryable:
                    raise
                tries += 1
                wait_s = pause_s(tries, error)
            with trio.move_on_after(wait_s):
                await self._away.wait()
