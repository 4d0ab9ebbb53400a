"""What every way to publish has in common."""

from __future__ import annotations

import math

import trio

from taskcast_trio.config.schema import Limits
from taskcast_trio.core import assignment
from taskcast_trio.core.errors import Draining, PayloadTooLarge, RequestTimeout, TaskEnded
from taskcast_trio.core.model import Draft
from taskcast_trio.engine import TaskEngine
from taskcast_trio.server.auth.admission import Admission
from taskcast_trio.server.bodies import parse_body
from taskcast_trio.server.queries import Published
from taskcast_trio.server.target import Message, Receive


async def read_drafts(body: bytes, limits: Limits) -> Published:
    """One event, or a batch within the limits.

    Raises:
        BadRequest: it is neither.
        PayloadTooLarge: the batch holds too many.
    """
    published: Published = await parse_body(body, Published, limits)
    if isinstance(published, list) and len(published) > limits.batch_events:
        raise PayloadTooLarge(f"A batch holds at most {limits.batch_events} events")
    return published


def batch_of(published: Published) -> list[Draft]:
    return published if isinstance(published, list) else [published]


async def check_open(engine: TaskEngine, task_id: str, fence: int | None) -> None:
    """Refuse before the first event what could not be stored anyway.

    Raises:
        TaskNotFound: there is no such task.
        TaskEnded: the task is terminal.
        StaleFence, TaskCancelled: the task is not assigned so any more.
    """
    task = (await engine.record(task_id)).task
    if fence is not None and task.fence != fence:
        raise assignment.refusal(task)
    if task.terminal:
        raise TaskEnded(task_id, task.status)


class PatientReceive:
    """``receive`` of a publisher that may go on for ever: it ends with its admission, or the drain.

    `watch` is to run beside the calls. Cancelling a call loses no message.
    """

    def __init__(
        self,
        receive: Receive,
        drain: trio.Event,
        admission: Admission,
        *,
        patience_s: float = math.inf,
    ) -> None:
        self._receive = receive
        self._drain = drain
        self._admission = admission
        self._patience_s = patience_s
        self._waiting = trio.CancelScope()
        admission.wake = lambda: self._waiting.cancel()

    async def watch(self) -> None:
        """End the wait in progress when the drain begins."""
        await self._drain.wait()
        self._waiting.cancel()

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            Draining: the server shuts down.
            Unauthorized: the token of the publisher has expired, or was revoked.
            RequestTimeout: nothing came for ``patience_s``.
        """
        deadline = min(trio.current_time() + self._patience_s, self._admission.deadline)
        if not self._drain.is_set():
            with trio.CancelScope(deadline=deadline) as self._waiting:
                message: Message = await self._receive()
                return message
        if self._drain.is_set():
            raise Draining("The server is shutting down: go on with what was not accepted")
        if self._admission.over:
            raise self._admission.reason
        raise RequestTimeout("The body did not come in time")
