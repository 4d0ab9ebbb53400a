"""Working on a task: from the assignment to the last word about it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec
import trio
from msgspec import UNSET

from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.core.model import Draft, Task, TaskError, Transition

from .api import Api
from .emitter import Emitter
from .errors import Decline, TaskLost
from .hold import Hold
from .roster import Roster
from .run import Run

MAX_MESSAGE: Final = 10_000
LATE_S: Final = 0.2
"""How long after its deadline the server has surely ended a task."""

Handler = Callable[[Run], Awaitable[Any]]

log = logging.getLogger(__name__)


class Work:
    """Runs handlers. ``ask`` is called when the server may have ended a task by itself."""

    def __init__(
        self,
        api: Api,
        client: AsyncTaskcastClient,
        roster: Roster,
        *,
        grace_s: float,
        ask: Callable[[], None],
    ) -> None:
        self._api = api
        self._client = client
        self._roster = roster
        self._grace_s = grace_s
        self._ask = ask

    async def do(self, hold: Hold, handler: Handler | None) -> None:
        """See an assignment through. The caller shields it for as long as it may take; what is not
        said by then the server finds out.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._warn, hold)
                try:
                    await self._do(hold, handler, nursery)
                except TaskLost as error:
                    log.info(
                        "Task %r is not this worker's any more: %s", hold.task_id, error.reason
                    )
                except TaskcastError as error:
                    # It is not held any more: the server is told so, and gives it to others.
                    log.error(
                        "Task %r is dropped, the server refuses: %s", hold.task_id, error.code
                    )
                nursery.cancel_scope.cancel()
        finally:
            hold.busy = False
            self._roster.remove(hold)

    async def _do(self, hold: Hold, handler: Handler | None, nursery: trio.Nursery) -> None:
        if hold.stopped or handler is None:
            await self._give_back(hold, blacklist=handler is None)
            return
        emitter = Emitter(partial(self._publish, hold))
        task = await self._move(hold, Transition(status="running"))
        if task.ttl is not UNSET:
            left_s = (task.created_at - task.updated_at) / 1000 + task.ttl
            nursery.start_soon(self._ask_after, max(left_s, 0) + LATE_S)
        nursery.start_soon(emitter.run)
        run = Run(
            task, hold, emitter, partial(self._move, hold), self._client, grace_s=self._grace_s
        )
        end = await _end(hold, run, handler)
        hold.busy = False
        if hold.lost is not None:
            raise TaskLost(hold.task_id, hold.lost)
        await self._say(hold, emitter, end)

    async def _say(self, hold: Hold, emitter: Emitter, end: Transition | Decline) -> None:
        """The last of what was emitted, and then how the task ended."""
        try:
            await emitter.flush()
            if isinstance(end, Transition):
                await self._move(hold, end)
        except TaskLost:
            raise
        except TaskcastError as error:
            if isinstance(end, Transition):
                log.warning("Task %r fails, its end was refused: %s", hold.task_id, error.code)
                await self._move(hold, _failed(error))
        if isinstance(end, Decline):
            await self._give_back(hold, blacklist=end.blacklist)

    async def _give_back(self, hold: Hold, *, blacklist: bool) -> None:
        worker_id = self._roster.worker_id
        assert worker_id is not None
        if self._roster.is_latest(hold):
            await hold.patiently(
                partial(self._api.decline, worker_id, hold.task_id, blacklist=blacklist)
            )

    async def _move(self, hold: Hold, change: Transition) -> Task:
        key = hold.key()
        return await hold.patiently(
            partial(self._api.move, hold.task_id, change, key=key, fence=hold.fence)
        )

    async def _publish(self, hold: Hold, drafts: list[Draft]) -> None:
        key = hold.key()
        await hold.patiently(
            partial(self._api.publish, hold.task_id, drafts, key=key, fence=hold.fence)
        )

    async def _ask_after(self, wait_s: float) -> None:
        await trio.sleep(wait_s)
        self._ask()

    async def _warn(self, hold: Hold) -> None:
        await hold.cancelled.wait()
        await trio.sleep(self._grace_s)
        if hold.busy:
            log.error(
                "The handler of task %r was cancelled and does not end: its slots (%d) stay taken",
                hold.task_id,
                hold.cost,
            )


async def _end(hold: Hold, run: Run, handler: Handler) -> Transition | Decline:
    """Run the handler: what is to be said of its end."""
    if hold.cancelled.is_set():
        return Decline()
    try:
        with hold.scope:
            return _completed(await handler(run))
    except Decline as end:
        return end
    except Exception as error:
        if not hold.stopped:
            if hold.lost is None:
                log.warning("The handler of task %r failed", hold.task_id, exc_info=error)
            return _failed(error)
        log.warning("The cleanup of task %r failed", hold.task_id, exc_info=error)
    return Decline()


def _completed(result: Any) -> Transition:
    if result is None:
        return Transition(status="completed")
    text = msgspec.Raw(msgspec.json.encode(result))
    if bytes(text)[:1] != b"{":
        raise TypeError(f"A handler returns an object or None, not {type(result).__name__}")
    return Transition(status="completed", result=text)


def _failed(error: Exception) -> Transition:
    """What is told of an exception: that of a nursery is its only one, where it has one alone."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    name = type(error).__name__
    message = str(error)[:MAX_MESSAGE].encode(errors="replace").decode() or name
    return Transition(status="failed", error=TaskError(message=message, code=name))
