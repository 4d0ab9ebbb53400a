"""What every way to publish has in common."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from taskcast_trio.config.schema import Limits
from taskcast_trio.core import assignment
from taskcast_trio.core.access import Caller
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import (
    Draining,
    PayloadTooLarge,
    RequestTimeout,
    SeqGap,
    TaskcastError,
    TaskEnded,
)
from taskcast_trio.core.model import Draft
from taskcast_trio.engine import TaskEngine
from taskcast_trio.server.auth.admission import Admission
from taskcast_trio.server.auth.permit import visible
from taskcast_trio.server.bodies import PeerGone, parse_body
from taskcast_trio.server.queries import Published
from taskcast_trio.server.target import Message, Receive

T = TypeVar("T")

AHEAD_MESSAGES: Final = 16
"""That are received while a publish is held, to see whether the peer leaves."""


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


def span(entries: Sequence[Entry]) -> tuple[int, int]:
    """The lowest and the highest index of some events: a batch, which may repeat what was stored
    before, has them in any order.
    """
    indexes = [entry.index for entry in entries]
    return min(indexes), max(indexes)


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


async def publish_held(
    engine: TaskEngine,
    task_id: str,
    drafts: Sequence[Draft],
    gap: SeqGap,
    meanwhile: Callable[[Callable[[], Awaitable[Sequence[Entry]]]], Awaitable[Sequence[Entry]]],
    caller: Caller,
    *,
    fence: int | None,
    key: str | None = None,
) -> Sequence[Entry]:
    """Publish what met ``gap`` at the first try; while that waits, it does so under ``meanwhile``.

    Raises:
        SeqGap: it asks not to wait.
    """
    if not gap.held:
        raise gap
    may = None if caller.open else partial(visible, caller, "publishEvents")
    return await meanwhile(
        partial(engine.publish, task_id, drafts, key=key, fence=fence, visible=may)
    )


async def unless_gone(receive: Receive, async_fn: Callable[[], Awaitable[T]]) -> T:
    """What ``async_fn`` returns or refuses; it is cancelled where the peer leaves before.

    Raises:
        PeerGone: so it did.
    """
    found: list[T] = []
    refused: TaskcastError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_with_peer, receive, nursery.cancel_scope)
        try:
            found.append(await async_fn())
        except TaskcastError as refusal:
            refused = refusal
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused
    if not found:
        raise PeerGone
    return found[0]


async def leave_with_peer(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel the scope when the peer leaves; what comes before is dropped."""
    while not (await receive())["type"].endswith(".disconnect"):
        pass
    scope.cancel()


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
        self._ahead: deque[Message] = deque()
        admission.wake = lambda: self._waiting.cancel()

    async def watch(self) -> None:
        """End the wait in progress when the drain begins."""
        await self._drain.wait()
        self._waiting.cancel()

    async def meanwhile(self, async_fn: Callable[[], Awaitable[T]]) -> T:
        """What ``async_fn`` returns; it is cancelled where the peer leaves before, the drain
        begins, or the admission ends. A few messages that come meanwhile are kept.

        Raises:
            PeerGone: the peer has left.
            Draining: the server shuts down.
            Unauthorized: the token of the publisher has expired, or was revoked.
        """
        with trio.CancelScope(deadline=self._admission.deadline) as self._waiting:
            return await unless_gone(self._receive_ahead, async_fn)
        if self._admission.over:
            raise self._admission.reason
        raise Draining("The server is shutting down: go on with what was not accepted")

    async def _receive_ahead(self) -> Message:
        if len(self._ahead) >= AHEAD_MESSAGES:
            await trio.sleep_forever()
        message: Message = await self._receive()
        self._ahead.append(message)
        return message

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
                if self._ahead:
                    await trio.lowlevel.checkpoint()
                    return self._ahead.popleft()
                message: Message = await self._receive()
                return message
        if self._drain.is_set():
            raise Draining("The server is shutting down: go on with what was not accepted")
        if self._admission.over:
            raise self._admission.reason
        raise RequestTimeout("The body did not come in time")
