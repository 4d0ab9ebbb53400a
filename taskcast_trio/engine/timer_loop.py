"""What is done when timers are due: one task for each kind, asleep until the next one."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.protocols import Timer, TimerStore

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


class TimerLoop:
    """Calls ``handle`` with each timer of a kind when it is due.

    ``handle`` sets or clears the timer: one that it leaves comes again after ``lease_ms``.
    StoreUnavailable from it is waited out; the timer comes again too. Timers that others set are
    seen within ``look_again_s``, those that :meth:`notify` tells of at once.
    """

    def __init__(
        self,
        store: TimerStore,
        kind: str,
        handle: Callable[[Timer], Awaitable[None]],
        *,
        clock: Callable[[], int],
        lease_ms: int,
        look_again_s: float,
    ) -> None:
        self._store = store
        self._kind = kind
        self._handle = handle
        self._clock = clock
        self._lease_ms = lease_ms
        self._look_again_s = look_again_s
        self._next_ms: int | None = None
        self._sooner = trio.Event()
        self._outage = Outage(f"{kind} timers")

    def notify(self, due_ms: int) -> None:
        """A timer was set to ``due_ms``. Never waits."""
        if self._next_ms is None or due_ms < self._next_ms:
            self._next_ms = due_ms
            self._sooner.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle what is due until cancelled."""
        task_status.started()
        while True:
            self._sooner = trio.Event()
            self._next_ms = None  # not known: whatever is told meanwhile is looked at
            try:
                if await self._run_due():
                    continue
                self._next_ms = due_ms = await self._store.next_due(self._kind)
            except StoreUnavailable as error:
                await self._outage.wait(error)
                continue
            self._outage.over()
            wait_s = self._look_again_s
            if due_ms is not None:
                wait_s = min(wait_s, max((due_ms - self._clock()) / 1000, 0.0))
            with trio.move_on_after(wait_s):
                await self._sooner.wait()

    async def _run_due(self) -> bool:
        timers = await self._store.take_due(
            self._kind, now_ms=self._clock(), lease_ms=self._lease_ms, limit=BATCH
        )
        for timer in timers:
            await self._handle(timer)
        return bool(timers)
