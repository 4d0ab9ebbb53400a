"""All webhooks of a process: takes what is due, and has workers do it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from secrets import token_hex
from typing import Final

import trio
from msgspec import UNSET, Struct

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.errors import (
    BadRequest,
    StoreUnavailable,
    TaskArchived,
    TaskNotFound,
    WebhookNotFound,
)
from taskcast_trio.core.webhook import Unusable, Webhook
from taskcast_trio.storage.protocols import Audience, ShortTermStore
from taskcast_trio.storage.records import PARKED_MS, Commit, TaskRecord, Timer

from ..metrics import Metrics
from ..timer_loop import BATCH, Outage, TimerLoop
from .cursor import Sends, Tools
from .lanes import Lanes
from .state import (
    RETRY,
    WEBHOOK,
    Kept,
    Redelivery,
    definitions,
    encode,
    kept,
    redelivery_name,
)
from .worker import LEASE_MS, Worker

MAX_WORKERS: Final = 1024
"""At once; what is due beyond that stays so."""
RETRY_LEASE_MS: Final = 5_000
LOOK_AGAIN_S: Final = 5.0
ALONE_LOOK_S: Final = 60.0
"""How often a store is asked in which other processes may have left something."""
TELL_AGAIN_S: Final = 0.1
"""Tasks that are let go of come many at once."""


class Look(Struct, frozen=True):
    """One webhook of a task as it is now; ``kept`` is None where only the archive has the task."""

    webhook: Webhook | Unusable
    kept: Kept | None
    record: TaskRecord


async def _nobody() -> None:
    """No other process is told."""


class Webhooks:
    """Makes the deliveries; made by ``open_runtime``.

    ``alone`` says that no other process uses the store: then the leases that are there at the start
    are those of a process that is no more.
    """

    def __init__(
        self,
        store: ShortTermStore,
        sender: Sends,
        lanes: Lanes,
        metrics: Metrics,
        *,
        audience: Audience,
        default_retry: Backoff,
        clock: Callable[[], int],
        jitter: Callable[[], float] = random.random,
        alone: bool = True,
        max_workers: int = MAX_WORKERS,
    ) -> None:
        self._store = store
        self._tools = Tools(sender, lanes, metrics, clock, jitter)
        self._metrics = metrics
        self._audience = audience
        self._default_retry = default_retry
        self._clock = clock
        self._alone = alone
        self._slots = trio.Semaphore(max_workers)
        self._workers: dict[str, Worker] = {}
        self._nursery: trio.Nursery
        self._closing = trio.Event()
        self._let_go = trio.Event()
        self._finished = trio.Event()
        self._due = TimerLoop(
            store,
            WEBHOOK,
            self._handle,
            clock=clock,
            lease_ms=LEASE_MS,
            look_again_s=ALONE_LOOK_S if alone else LOOK_AGAIN_S,
        )
        self._retries = TimerLoop(
            store,
            RETRY,
            self._retry,
            clock=clock,
            lease_ms=RETRY_LEASE_MS,
            look_again_s=ALONE_LOOK_S if alone else LOOK_AGAIN_S,
        )

    @property
    def workers(self) -> int:
        """How many tasks are at work."""
        return len(self._workers)

    # What happens to tasks ------------------------------------------------------------------------

    def notify(self, due_ms: int) -> None:
        """There is something to deliver at ``due_ms``. Never waits."""
        self._due.notify(due_ms)

    def committed(self, commit: Commit) -> None:
        """See :class:`CommitSink`."""
        task = commit.record.task
        if task.webhooks is UNSET or not task.webhooks:
            return
        worker = self._workers.get(task.id)
        if worker is not None:
            if not (commit.deleted or commit.replaced):
                worker.wake()
                return
            worker.stop()
        if not (commit.created or commit.deleted):
            self._due.notify(self._clock())

    def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
        """See :class:`CommitSink`."""
        self._due.notify(self._clock())
        for task_id in list(self._workers) if task_ids is None else task_ids:
            if worker := self._workers.get(task_id):
                worker.wake()

    # Work -----------------------------------------------------------------------------------------

    async def run(
        self,
        tell_others: Callable[[], Awaitable[None]] = _nobody,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Deliver until cancelled, or until :meth:`close` was called and all tries have ended.
        Other processes are told when there may be something left for them.
        """
        try:
            async with trio.open_nursery() as telling:
                # The workers' nursery is open until all of them have ended.
                async with trio.open_nursery() as self._nursery, trio.open_nursery() as loops:
                    loops.start_soon(self._take, name="due webhooks")
                    loops.start_soon(self._retries.run, name="webhook retries")
                    task_status.started()
                    await self._closing.wait()
                    telling.start_soon(self._tell, tell_others, name="webhooks left to others")
                    if self._alone:  # who comes next takes what is held now, too
                        loops.cancel_scope.cancel()
                    self._due.close()
                    self._retries.close()
                telling.cancel_scope.cancel()
            with suppress(StoreUnavailable):  # they look by themselves in a while
                await tell_others()
        finally:
            self._finished.set()

    async def _tell(self, tell_others: Callable[[], Awaitable[None]]) -> None:
        """Tell of what was let go of while tries of other tasks still run."""
        while True:
            await self._let_go.wait()
            self._let_go = trio.Event()
            with suppress(StoreUnavailable):
                await tell_others()
            await trio.sleep(TELL_AGAIN_S)

    def close(self) -> None:
        """Begin no more tries. What is left is due at once for whoever comes next."""
        self._closing.set()
        for worker in self._workers.values():
            worker.close()

    async def finish(self) -> None:
        """Close, and wait until the tries that run have ended; the caller bounds how long."""
        self.close()
        await self._finished.wait()

    async def _take(self) -> None:
        if self._alone:
            await self._take_over()
        await self._due.run()

    async def _take_over(self) -> None:
        outage = Outage("webhooks of before")
        timers: list[Timer] | None = None
        while timers != []:
            try:
                timers = await self._store.take_due(
                    WEBHOOK, now_ms=self._clock() + LEASE_MS, lease_ms=LEASE_MS, limit=BATCH
                )
            except StoreUnavailable as error:
                await outage.wait(error)
                continue
            outage.over()
            for timer in timers:
                await self._handle(timer)

    async def _handle(self, timer: Timer) -> None:
        """Have the task's worker do it; a new one where it has none. Waits while there are too
        many.
        """
        task_id = timer.task_id
        while worker := self._workers.get(task_id):
            if worker.adopt(timer.due_ms):
                return
            await worker.ended.wait()
        await self._slots.acquire()
        if self._clock() >= timer.due_ms:
            self._slots.release()  # it waited too long: the timer is due again
            return
        worker = self._workers[task_id] = Worker(
            task_id,
            timer.due_ms,
            self._store,
            self._tools,
            audience=self._audience,
            default_retry=self._default_retry,
            retry_at=self._retries.notify,
        )
        if self._closing.is_set():
            worker.close()
        self._metrics.webhook_workers.inc()
        self._nursery.start_soon(self._work, worker, name=f"webhooks of {task_id}")

    async def _work(self, worker: Worker) -> None:
        try:
            await worker.run()
        finally:
            del self._workers[worker.task_id]
            self._metrics.webhook_workers.dec()
            self._slots.release()
            if self._closing.is_set():
                self._let_go.set()
            elif worker.woken:
                self._due.notify(self._clock())

    async def _retry(self, timer: Timer) -> None:
        """Hasten the deliveries of the task, unless they are at work: then it comes again."""
        now_ms = self._clock()
        if await self._store.set_timer(timer.task_id, WEBHOOK, now_ms, if_due=PARKED_MS):
            await self._store.set_timer(timer.task_id, RETRY, None, if_due=timer.due_ms)
            self._due.notify(now_ms)

    # For people -----------------------------------------------------------------------------------

    async def look(self, record: TaskRecord) -> list[Look]:
        """The webhooks of a task, in their places."""
        task_id = record.task.id
        here = await self._store.get(task_id)
        record = record if here is None else here
        notes = {} if here is None else await self._store.task_notes(task_id)
        return [
            Look(webhook, kept(notes, number, record) if here else None, record)
            for number, webhook in enumerate(definitions(record.task, self._default_retry))
        ]

    async def owes(self, record: TaskRecord) -> bool:
        """Whether a webhook of the task is still to have some of its log."""
        if record.task.webhooks is UNSET:
            return False
        return any(
            look.kept is not None
            and not isinstance(look.webhook, Unusable)
            and look.kept.state.disabled is None
            and look.kept.state.cursor < look.record.next_index - 1
            for look in await self.look(record)
        )

    async def redeliver(self, task_id: str, number: int, from_index: int | None = None) -> None:
        """Deliver the dead letters of a webhook again, or everything from an index on; one that was
        disabled is so no more.

        Raises:
            TaskArchived: only the archive may have the task.
            WebhookNotFound: it has no such webhook.
            BadRequest: the webhook can't be used, or the log does not reach so far.
            TaskNotFound: it was deleted or replaced meanwhile.
        """
        record = await self._store.get(task_id)
        if record is None:
            raise TaskArchived(task_id)
        webhooks = definitions(record.task, self._default_retry)
        if number >= len(webhooks):
            raise WebhookNotFound(task_id, number)
        webhook = webhooks[number]
        if isinstance(webhook, Unusable):
            raise BadRequest(f"Webhook {number} can't be used: {webhook.reason}")
        if from_index is not None and from_index > record.next_index:
            end = f"ends at index {record.next_index - 1}" if record.next_index else "is empty"
            raise BadRequest(f"The log {end} - at `$.fromIndex`")
        # In place of a lease, too: who has it must not let go before it has seen this.
        due_ms = self._clock() + 1
        if not await self._store.put_task_note(
            task_id,
            redelivery_name(number),
            encode(Redelivery(id=token_hex(8), from_index=from_index)),
            epoch=record.epoch,
            timers={WEBHOOK: due_ms},
        ):
            raise TaskNotFound(task_id)
        self._due.notify(due_ms)
