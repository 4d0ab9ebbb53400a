"""What is published, piece by piece, and the life of the task that it is published to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar
from uuid import uuid4

import trio
from msgspec import UNSET

from taskcast_trio.cli.connect import SETTLE_S
from taskcast_trio.cli.failures import CLOSED_PIPE, FAILED, USAGE, Failed
from taskcast_trio.cli.interruption import Interruption
from taskcast_trio.cli.output import write
from taskcast_trio.cli.stdin import EventLines, TextLines, Texts, receive_some, stdin_number
from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.client.outbox import Outbox, delivered
from taskcast_trio.core.errors import (
    BadRequest,
    PayloadTooLarge,
    TaskcastError,
    TaskEnded,
    TaskFull,
)
from taskcast_trio.core.model import CreateTask, Draft, Status, TaskError

T = TypeVar("T")

PATIENCE_S: Final = 60.0
"""How long a server that is away is tried again; meanwhile the input waits."""
FIRST_PAUSE_S: Final = 0.2
MAX_PAUSE_S: Final = 5.0
BATCH_EVENTS: Final = 500
BATCH_BYTES: Final = 256 * 1024


class Feed(ABC):
    """Where events come from."""

    @abstractmethod
    async def receive(self) -> list[Draft]:
        """The next events, at once when there are some; empty where there were none in what came.

        Raises:
            EOFError: there are no more.
            OSError: the input, or what it is passed on to, broke.
            Failed: what comes is not what it should be; the events before that came.
        """


class OneEvent(Feed):
    def __init__(self, event: Draft) -> None:
        self._events = [event]

    async def receive(self) -> list[Draft]:
        await trio.lowlevel.checkpoint()
        if not self._events:
            raise EOFError
        return [self._events.pop()]


class _Stdin(Feed):
    """What comes on stdin; with ``tee`` it is written to stdout, too."""

    def __init__(self, *, tee: bool) -> None:
        self._tee = tee
        self._number = stdin_number()
        self._ended = False
        self._failure: Failed | None = None

    async def receive(self) -> list[Draft]:
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise EOFError
        chunk = await receive_some(self._number)
        self._ended = not chunk
        if self._tee and chunk:
            try:
                write(chunk)
            except BrokenPipeError:
                raise Failed("stdout was closed", CLOSED_PIPE) from None
        events: list[Draft] = []
        try:
            events.extend(self._events(chunk))
        except Failed as failure:
            self._failure = failure
        return events

    @abstractmethod
    def _events(self, chunk: bytes) -> Iterable[Draft]:
        """The events of what was read; ``b""`` is the end."""


class TextFeed(_Stdin):
    """Text: what is read at once is one piece, or each line is."""

    def __init__(self, event_of: Callable[[str], Draft], *, lines: bool, tee: bool) -> None:
        super().__init__(tee=tee)
        self._event_of = event_of
        self._cut = TextLines() if lines else Texts()

    def _events(self, chunk: bytes) -> Iterable[Draft]:
        return map(self._event_of, self._cut.feed(chunk))


class NdjsonFeed(_Stdin):
    """Events as they are, one a line."""

    def __init__(self, *, tee: bool) -> None:
        super().__init__(tee=tee)
        self._cut = EventLines()

    def _events(self, chunk: bytes) -> Iterable[Draft]:
        return self._cut.feed(chunk)


class Publishing:
    """Publishes to one task, in order and each event once, also past a server that is away.

    What goes on for long is counted, under a name that no other has: the server then keeps one
    number, where it would keep the key of each batch for a day.
    """

    def __init__(
        self,
        client: AsyncTaskcastClient,
        task_id: str | None,
        *,
        made: bool,
        ends: bool,
        counted: bool = True,
    ) -> None:
        """``made``: the task is ours; ``ends``: it completes with the input; ``counted``: its
        events are numbered, else sent with keys.
        """
        self._client = client
        self._made = made
        self._ends = ends
        self._outbox = Outbox(uuid4().hex) if counted else None
        self.task_id = task_id or ""
        self.events = 0
        self.last_index: int | None = None
        self.status: Status | None = None
        self.away = False
        """Whether the server is, as far as is known, and what comes waits."""
        self._progress: Callable[[], None] | None = None
        self._patience_s = 0.0
        """0 before the server has answered once: who has the wrong one is told so at once."""

    async def create(self, request: CreateTask, interruption: Interruption) -> None:
        """Make the task, and let it run; ``task_id`` stays empty where a signal ends the waiting
        for an answer.
        """
        with interruption.hurried():
            task = await self._client.create(request)
            self.task_id = task.id
            self._patience_s = PATIENCE_S
            await self._move("running")

    async def run(
        self, feed: Feed, interruption: Interruption, progress: Callable[[], None]
    ) -> int | None:
        """Publish until the input ends or a signal comes; the number of the signal.

        ``progress`` is called when there are more ``events``, and when ``away`` changes.

        Raises:
            Failed: the input broke or is bad.
            TaskcastError: the server refuses, or is away for too long.
        """
        failure: TaskcastError | Failed
        self._progress = progress
        try:
            with interruption.scope:
                await self._publish_all(feed, progress)
            # Where a signal came, the end of the input is its doing: see `interruptible`.
            if interruption.number is None:
                if self._ends:
                    with interruption.hurried():
                        await self._move("completed")
                return interruption.number if self._ends and self.status != "completed" else None
        except TaskEnded:
            raise
        except (TaskcastError, Failed) as error:
            failure = error
        except OSError as error:
            failure = Failed(f"reading stdin: {error.strerror}", FAILED)
        else:
            await self._settle("cancelled", "the publisher was interrupted", "interrupted")
            return interruption.number
        await self._settle("failed", str(failure), _code_of(failure))
        raise failure

    async def _publish_all(self, feed: Feed, progress: Callable[[], None]) -> None:
        while True:
            try:
                events = await feed.receive()
            except EOFError:
                return
            await self._publish(events)
            progress()

    async def _publish(self, events: list[Draft]) -> None:
        """Publish them; those before one that no server would take, too.

        Raises:
            Failed: there is such a one.
        """
        refused: Failed | None = None
        if self._outbox is not None:
            for number, event in enumerate(events):
                try:
                    self._outbox.put(event)
                except BadRequest as error:
                    said = str(error).replace("$[0].", "")
                    refused = Failed(f"event {self._outbox.next_seq + 1}: {said}", USAGE)
                    events = events[:number]
                    break
            full: TaskFull | None = None
            try:
                await self._publish_counted(self._outbox)
            except TaskFull as error:
                full = error
            if full is not None:
                if await self._has_begun(self._outbox):
                    raise full
                # It may have as many publishers as it may: keys are for any number of them.
                self._outbox = None
        if self._outbox is None:
            for batch in batches(events):
                await self._publish_keyed(batch)
        if refused is not None:
            raise refused

    async def _has_begun(self, outbox: Outbox) -> bool:
        """Whether something of it is stored: also where a batch is, in part."""
        if outbox.stored:
            return True
        ask = partial(self._client.expected_seq, self.task_id, outbox.client_id)
        return (await self._patiently(ask)).expected_seq > 0

    async def _publish_counted(self, outbox: Outbox) -> None:
        while batch := outbox.take():

            async def deliver(batch: list[Draft] = batch) -> int | None:
                flow = delivered(self.task_id, batch, self._client.retries)
                return await self._client.port.run(flow)

            outbox.sent(batch, await self._patiently(deliver))
            self.events, self.last_index = outbox.stored, outbox.last_index

    async def _publish_keyed(self, batch: list[Draft]) -> None:
        try:
            stored = await self._patiently(
                partial(self._client.publish_many, self.task_id, batch, idempotency_key=uuid4().hex)
            )
        except TaskFull:
            raise
        except PayloadTooLarge:
            if len(batch) == 1:
                raise
            middle = len(batch) // 2
            await self._publish_keyed(batch[:middle])
            await self._publish_keyed(batch[middle:])
            return
        self.events += len(stored)
        self.last_index = stored[-1].index

    async def _move(self, status: Status, error: TaskError | None = None) -> None:
        await self._patiently(
            partial(
                self._client.transition,
                self.task_id,
                status,
                error=error,
                idempotency_key=uuid4().hex,
            )
        )
        self.status = status

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call, which may be repeated, comes to when the server is there again.

        Its idempotency key is one for all tries, or its events have their numbers: what was stored
        though its answer was lost is stored once all the same.
        """
        deadline = trio.current_time() + self._patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                answer = await call()
            except TaskcastError as error:
                asked_s = error.retry_after_s or 0
                if not error.retryable or trio.current_time() + asked_s > deadline:
                    raise
                self._is_away(True)
                await trio.sleep(max(pause_s, asked_s))
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
            else:
                self._patience_s = PATIENCE_S
                self._is_away(False)
                return answer

    def _is_away(self, away: bool) -> None:
        if away is not self.away:
            self.away = away
            if self._progress is not None:
                self._progress()

    async def _settle(self, status: Status, message: str, code: str) -> None:
        """Tell the server how the task ended, if it is ours to end, within a few seconds."""
        if not (self._made and self._ends):
            return
        with trio.move_on_after(SETTLE_S, shield=True):
            # It is away, or the task has ended: what is raised already says more.
            with suppress(TaskcastError):
                await self._move(status, TaskError(message=message, code=code))


def batches(events: list[Draft]) -> Iterator[list[Draft]]:
    """The events in batches that a server takes at once."""
    batch: list[Draft] = []
    size = 0
    for event in events:
        weight = len(event.type) + (0 if event.data is UNSET else len(bytes(event.data)))
        if batch and (len(batch) == BATCH_EVENTS or size + weight > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += weight
    if batch:
        yield batch


def _code_of(error: TaskcastError | Failed) -> str:
    return error.code if isinstance(error, TaskcastError) else "input_broken"
