"""Publishing in order, and running a task, on Trio or asyncio."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import anyio
import anyio.abc
import anyio.lowlevel
from msgspec import UNSET

from taskcast_trio.core.errors import InvalidTransition, TaskcastError
from taskcast_trio.core.model import Level, SeriesMode, Task

from .composing import draft
from .ending import END_S, LEFT, Plan, completed, ended, note_lost, running, untold
from .outbox import Outbox, delivered

if TYPE_CHECKING:
    from .client import AsyncTaskcastClient


class Publisher:
    """Publishes to one task, in order and each event once; made by ``client.publisher``.

    ::

        async with client.publisher(task_id) as publisher:
            await publisher.emit("llm.delta", {"delta": "Hello"})

    Leaving stores what was emitted, also after an exception, for which it takes at most 10 s then.
    Any task of the event loop may emit; the order of the calls of each is kept.
    """

    def __init__(self, client: AsyncTaskcastClient, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._task_id = plan.task_id or ""
        self._outbox = Outbox(plan.client_id or uuid4().hex)
        self._over = True
        self._changed = anyio.Event()
        self._ended = anyio.Event()
        # What cancels the body must not take the events along that it has emitted: leaving does, in
        # a bounded time.
        self._sending = anyio.CancelScope(shield=True)
        self._tasks: anyio.abc.TaskGroup

    @property
    def id(self) -> str:
        """The id of the task."""
        return self._task_id

    @property
    def client_id(self) -> str:
        """The id under which this publishes."""
        return self._outbox.client_id

    async def __aenter__(self) -> Self:
        """Begin.

        Raises:
            ServerUnavailable: no answer.
            TaskcastError: the server refused.
        """
        await self._begin()
        self._over = False
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._send_all, name=f"publish to {self._task_id}")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        failure = exc
        try:
            if exc is None:
                await self._finish()  # noqa: ASYNC102  # as it is left in order, it may be cancelled
        except BaseException as error:
            failure = error
            raise
        finally:
            with anyio.move_on_after(END_S, shield=True):
                if failure is not None:
                    await self._abandon(failure)
            if failure is not None:
                note_lost(failure, self._task_id, self._outbox)
            self._sending.cancel()
            with anyio.move_on_after(END_S, shield=True):
                await self._ended.wait()
            # It has no task left to wait for. The exception is not given to it: it would come out
            # in a group.
            await self._tasks.__aexit__(None, None, None)  # noqa: ASYNC102

    async def emit(
        self,
        type: str,
        data: Any = UNSET,
        *,
        level: Level = "info",
        series: str | None = None,
        mode: SeriesMode | None = None,
        acc_field: str | None = None,
    ) -> None:
        """Publish an event, described as for :func:`draft`; a checkpoint.

        It does not wait for the answer: the event goes out at once, or, while others are on their
        way, with the next batch. It waits only while more events than a few thousand do.

        Raises:
            TaskcastError: of the events emitted before: ``TaskEnded`` when the task was ended by
                somebody else, ``ServerUnavailable`` when the server stays away.
        """
        event = draft(type, data, level=level, series=series, mode=mode, acc_field=acc_field)
        await anyio.lowlevel.checkpoint()
        self._check()
        while self._outbox.full:
            await self._changed.wait()
            self._check()
        self._outbox.put(event)
        self._tell()

    async def flush(self) -> None:
        """Wait until everything emitted so far is stored. Raises: as :meth:`emit`."""
        await anyio.lowlevel.checkpoint()
        target = self._outbox.next_seq
        while self._outbox.stored < target:
            self._outbox.check()
            await self._changed.wait()
        self._outbox.check()

    def _check(self) -> None:
        if self._over:
            raise RuntimeError(LEFT)
        self._outbox.check()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _send_all(self) -> None:
        """Send batch by batch. What ends this is raised by the next call of the publisher."""
        try:
            with self._sending:
                while True:
                    batch = self._outbox.take()
                    if not batch:
                        await self._changed.wait()
                        continue
                    last_index = await self._client.port.run(
                        delivered(self._task_id, batch, self._plan.retries, self._plan.fence)
                    )
                    self._outbox.sent(batch, last_index)
                    self._tell()
        except Exception as failure:
            self._outbox.broke(failure)
        finally:
            if self._outbox.failure is None:
                self._outbox.broke(RuntimeError(LEFT))
            self._tell()
            self._ended.set()

    async def _begin(self) -> None:
        if self._plan.client_id is not None:
            state = await self._client.expected_seq(self._task_id, self._plan.client_id)
            self._outbox = Outbox(self._plan.client_id, state.expected_seq)

    async def _finish(self) -> None:
        await self.flush()

    async def _abandon(self, failure: BaseException) -> None:
        with suppress(Exception):  # it is the failure, or beside it
            await self.flush()


class Run(Publisher):
    """Work on one task, from ``running`` to its end; made by ``client.run``.

    ::

        async with client.run(type="llm.chat") as run:
            async for piece in model(prompt):
                await run.emit("llm.delta", {"delta": piece}, series="answer", mode="accumulate")
            run.result = {"tokens": 17}

    Attributes:
        task: the task as of its start.
        result: what the task is completed with.
    """

    task: Task

    def __init__(self, client: AsyncTaskcastClient, plan: Plan) -> None:
        super().__init__(client, plan)
        self.result: Any = None

    async def _begin(self) -> None:
        if self._plan.create is not None:
            self._task_id = (await self._client.ask(self._plan.create)).id
        try:
            self.task = await self._client.ask(running(self._task_id, self._plan.fence))
        except anyio.get_cancelled_exc_class() as cancelled:
            with anyio.move_on_after(END_S, shield=True):
                await self._tell_end(cancelled)
            raise

    async def _finish(self) -> None:
        await self.flush()
        call = completed(self._task_id, self.result, self._plan.fence)
        self.task = await self._client.ask(call)

    async def _abandon(self, failure: BaseException) -> None:
        try:
            await super()._abandon(failure)
            await self._tell_end(failure)
        except anyio.get_cancelled_exc_class():
            late = TimeoutError(f"not within {END_S:g} s")
            failure.add_note(untold(self._task_id, late))
            raise

    async def _tell_end(self, failure: BaseException) -> None:
        try:
            await self._client.ask(ended(self._task_id, failure, self._plan.fence))
        except InvalidTransition:
            pass  # somebody else has ended it
        except TaskcastError as error:
            failure.add_note(untold(self._task_id, error))
