"""What is done when timers are due: one task for each kind, asleep until the next one."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.protocols import DueList
from taskcast_trio.storage.records import Timer

RETRY: Final = Backoff(initial_delay_ms=250, max_delay_ms=15_000)
BATCH: Final = 64

log = structlog.get_logger(__name__)


class Outage:
    """How long a store has been away, in tries; says so once, and once more when it is back."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.tries = 0
        self._since = 0.0

    @property
    def lasted_ms(self) -> int:
        """0 where there is none."""
        return int((trio.current_time() - self._since) * 1000) if self.tries else 0

    async def wait(self, error: StoreUnavailable) -> None:
        """After a failed try: wait before the next one."""
        self.tries += 1
        if self.tries == 1:
            self._since = trio.current_time()
            log.warning("store_is_away", needed_for=self._what, reason=str(error))
        await trio.sleep(RETRY.delay_ms(self.tries, jitter=random.random()) / 1000)

    def over(self) -> None:
        """After a try that did not fail."""
        if self.tries:
            log.info("store_is_back", needed_for=self._what, after_tries=self.tries)
            self.tries = 0


async def first(
    what: str, step: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[None]
) -> None:
    """Do what comes before all else, however long the store is away; started once that is done, or
    has to wait.
    """
    outage = Outage(what)
    while True:
        try:
            await step()
        except StoreUnavailable as error:
            if outage.tries == 0:
                task_status.started()
            await outage.wait(error)
        else:
            break
    if outage.tries == 0:
        task_status.started()
    outage.over()


class TimerLoop:
    """Calls ``handle`` with each timer of a kind when it is due.

    ``handle`` sets or clears the timer: one that it leaves comes again after ``lease_ms``.
    StoreUnavailable from it is waited out; the timer comes again too. Up to ``at_once`` timers are
    handled at the same time. Timers that others set are seen within ``look_again_s``, those that
    :meth:`notify` tells of at once.
    """

    def __init__(
        self,
        store: DueList,
        kind: str,
        handle: Callable[[Timer], Awaitable[None]],
        *,
        clock: Callable[[], int],
        lease_ms: int,
        look_again_s: float,
        at_once: int = 1,
    ) -> None:
        self._store = store
        self._kind = kind
        self._handle = handle
        self._clock = clock
        self._lease_ms = lease_ms
        self._look_again_s = look_again_s
        self._at_once = at_once
        self._next_ms: int | None = None
        self._sooner = trio.Event()
        self._outage = Outage(f"{kind} timers")
        self._pause = trio.CancelScope()
        self._closed = False

    def notify(self, due_ms: int) -> None:
        """A timer was set to ``due_ms``, or may have been. Never waits."""
        if self._next_ms is None or due_ms < self._next_ms:
            self._next_ms = due_ms
            self._sooner.set()

    def close(self) -> None:
        """Take no more timers: :meth:`run` returns when those that were taken are handled."""
        self._closed = True
        self._sooner.set()
        self._pause.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle what is due until cancelled or closed."""
        task_status.started()
        while not self._closed:
            self._sooner = trio.Event()
            self._next_ms = None  # what is set while the store is asked, it may not tell of
            try:
                if await self._run_due():
                    continue
                self._next_ms = due_ms = await self._store.next_due(self._kind)
            except StoreUnavailable as error:
                with trio.CancelScope() as self._pause:
                    await self._outage.wait(error)
                continue
            self._outage.over()
            wait_s = self._look_again_s
            if due_ms is not None:
                wait_s = min(wait_s, max((due_ms - self._clock()) / 1000, 0.0))
            if not self._closed:
                with trio.move_on_after(wait_s):
                    await self._sooner.wait()

    async def _run_due(self) -> bool:
        timers = await self._store.take_due(
            self._kind, now_ms=self._clock(), lease_ms=self._lease_ms, limit=BATCH
        )
        left = list(reversed(timers))
        away: list[StoreUnavailable] = []

        async def handle() -> None:
            while left and not away:
                try:
                    await self._handle(left.pop())
                except StoreUnavailable as error:
                    away.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._at_once, len(timers))):
                nursery.start_soon(handle)
        if away:
            raise away[0]
        return bool(timers)
