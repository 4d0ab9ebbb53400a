"""What a handler is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
import trio
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.client import AsyncTaskcastClient, Gap, draft, value
from taskcast_trio.client.composing import raw
from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.core.model import (
    RESOLVED_EVENT,
    BlockedRequest,
    Level,
    SeriesMode,
    Task,
    Transition,
)

from .emitter import Emitter
from .hold import Hold

UNBLOCK_S: Final = 5.0

Move = Callable[[Transition], Awaitable[Task]]


class Run:
    """One run of a handler: the task, and what can be said of it.

    The handler runs in a cancel scope of its own. It is cancelled when somebody else ends or pauses
    the task, when its ttl has passed, when the lease is lost, and when the worker stops: so what it
    is to do in any case goes into a ``finally``. Whatever awaits there goes into :meth:`cleanup`.
    """

    def __init__(
        self,
        task: Task,
        hold: Hold,
        emitter: Emitter,
        move: Move,
        client: AsyncTaskcastClient,
        *,
        grace_s: float,
    ) -> None:
        self.task = task
        self.params: Any = {} if task.params is UNSET else value(task.params)
        self._hold = hold
        self._emitter = emitter
        self._move = move
        self._client = client
        self._grace_s = grace_s
        self._answered: str | None = None
        self._gave_up = False

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1. Only a failure makes it another one."""
        return 1 if self.task.attempts is UNSET else self.task.attempts + 1

    @property
    def cancelled(self) -> str | None:
        """Why the handler is cancelled: ``cancelled``, ``timeout``, ``paused`` or whatever else the
        task was made by others, ``reassigned``, ``deleted``, ``replaced``, ``ended`` where it can't
        be said how, ``lease_ended``, ``stopping``; None while it is not.
        """
        if self._hold.lost is not None:
            return self._hold.lost
        return "stopping" if self._hold.stopped else None

    async def emit(
        self,
        type: str,
        data: Any = UNSET,
        *,
        series: str | None = None,
        mode: SeriesMode | None = None,
        level: Level = "info",
        acc_field: str | None = None,
    ) -> None:
        """Append an event to the task's log, described as for ``client.draft``.

        It is sent at once, or with others as soon as those before it are stored; while the server
        is away it waits for it. This waits only while too many wait. What is emitted is stored in
        order, each event once, and before the task ends. Cancelled, it emits nothing.

        Raises:
            TaskLost: the task is not this worker's any more.
            TaskcastError: the server has refused an event that was emitted before.
        """
        event = draft(type, data, level=level, series=series, mode=mode, acc_field=acc_field)
        # What can't be JSON is raised here, to whoever emits it, and not where it is sent.
        await self._emitter.put(msgspec.json.encode(event))

    async def flush(self) -> None:
        """Wait until everything that was emitted is stored; raises as :meth:`emit`."""
        await self._emitter.flush()

    async def block(
        self,
        request: Any = UNSET,
        *,
        schema: Any = None,
        type: str = "input",
        reason: str | None = None,
        resume_after_s: float | None = None,
    ) -> Any:
        """Wait for somebody's answer: the task is ``blocked`` until it is resolved.

        Answers that are no objects or arrays come as they were sent; an object that has
        ``resolution`` for its only member can't be told from them. Where the task goes on without
        an answer, as after ``resume_after_s``, it is None. The worker goes on holding the task, and
        drains no sooner than its ``drain_s``. Cancelling this call alone takes the request back.

        Args:
            request: what is asked, any JSON.
            schema: a JSON Schema that answers are to keep to; the server refuses others.
            type: of the request.
            reason: of the status.
            resume_after_s: when (s) to go on by itself.

        Raises: as :meth:`emit`; ``BadRequest`` for a schema that is none.
        """
        asked = BlockedRequest(
            type=type,
            data=raw(request),
            schema=UNSET if schema is None else raw(schema),
        )
        change = Transition(
            status="blocked",
            blocked_request=asked,
            reason=UNSET if reason is None else reason,
            resume_after_ms=UNSET if resume_after_s is None else round(resume_after_s * 1000),
        )
        await self._emitter.flush()
        await self.settle()
        try:
            blocked = await self._move(change)
            return await self._hold.patiently(lambda: self._answer(blocked.updated_at))
        except trio.Cancelled:
            if not self._hold.cancelled.is_set():
                self._gave_up = True
                with trio.CancelScope(shield=True, deadline=trio.current_time() + UNBLOCK_S):
                    await self.settle()
            raise

    async def settle(self) -> None:
        """Take back the request of a :meth:`block` that was cancelled, where that is still to do:
        the server may have been away. The worker does it before it says how the handler ended.
        """
        if self._gave_up:
            with suppress(TaskcastError):  # it was answered meanwhile, or never blocked, or is lost
                await self._move(Transition(status="running"))
            self._gave_up = False

    async def _answer(self, since_ms: int) -> Any:
        """The first answer that is no older than the request, and was not given before."""
        async with self._client.subscribe(
            self._hold.task_id,
            types=[RESOLVED_EVENT],
            include_status=False,
            last_event_id=self._answered,
            gaps="deliver",
        ) as stream:
            async for item in stream:
                if isinstance(item, Gap) or item.timestamp < since_ms:
                    continue
                self._answered = item.event_id
                return _resolution(item.data)
        # The task has ended, and whoever ended it has told so.
        await self._hold.cancelled.wait()
        await trio.lowlevel.checkpoint()
        return None

    @contextmanager
    def cleanup(self) -> Iterator[trio.CancelScope]:
        """A scope for what awaits in a ``finally``: shielded from the handler's cancellation until
        the worker's ``grace_s`` after it are over::

            finally:
                with run.cleanup():
                    await model.release()

        Work that shields itself for longer keeps its slots, and the process.
        """
        start = min(self._hold.cancelled_at, trio.current_time())
        with trio.CancelScope(shield=True, deadline=start + self._grace_s) as scope:
            yield scope


def _resolution(data: Raw | UnsetType) -> Any:
    if data is UNSET:
        return None
    answer = value(data).get("resolution")
    if isinstance(answer, dict) and answer.keys() == {"resolution"}:
        return answer["resolution"]
    return answer
