"""One webhook at work: a cursor on the log of its task that delivers in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil
from typing import Final, Protocol

import structlog
import trio
from msgspec import UNSET

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.webhook import Webhook, body_of, delivery_id, next_try_ms
from taskcast_trio.storage.records import Page

from ..metrics import Metrics
from .attempt import Attempt
from .lanes import HostBusy, Lanes
from .state import (
    GONE,
    MAX_DEAD,
    DeadLetter,
    Kept,
    Redelivery,
    Try,
    dead_name,
    encode,
    state_name,
)

FIRST_PAGE: Final = 4
PAGE_EVENTS: Final = 64
PAGE_BYTES: Final = 128 * 1024
"""Of data, above which pages become smaller: many cursors hold one, for as long as tries take."""
COUNT_EVENTS: Final = 500
SAVE_EVENTS: Final = 16
SAVE_S: Final = 0.25
"""What was delivered is saved after so many events, or so long: as much may be repeated after a
kill."""

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another one does the work now, or the task is gone."""


class Sends(Protocol):
    """Makes one try; see :meth:`Sender.attempt`."""

    def attempt(
        self, webhook: Webhook, *, event_type: str, delivery: str, body: bytes
    ) -> Awaitable[Attempt]: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What all cursors of a process share. ``clock`` gives Unix ms, ``jitter`` is in [0, 1)."""

    sender: Sends
    lanes: Lanes
    metrics: Metrics
    clock: Callable[[], int]
    jitter: Callable[[], float]


class Desk(Protocol):
    """What a cursor asks of the worker that it belongs to."""

    @property
    def task_id(self) -> str: ...

    @property
    def closing(self) -> bool:
        """Whether no further try should begin."""

    async def read(self, after: int, limit: int) -> Page:
        """A page of the task's log.

        Raises:
            LeaseLost: this life of the task is over.
        """

    async def keep(self, name: str, value: bytes | None) -> None:
        """Store a note of the task.

        Raises:
            LeaseLost: somebody else has the work.
        """


class Cursor:
    """Delivers what is behind it in the log, and before that the dead letters that were asked for.

    ``redelivery`` may be set at any time. ``seen`` is the log's next index where nothing was left
    to deliver, ``again_ms`` the time for which it waits; None where that is not so. ``unsaved``
    counts what has changed since the last save.
    """

    def __init__(self, number: int, webhook: Webhook, kept: Kept, tools: Tools, desk: Desk) -> None:
        self.state = kept.state
        self.redelivery = kept.redelivery
        self.seen: int | None = None
        self.again_ms: int | None = kept.state.next_try_ms
        self._number = number
        self._webhook = webhook
        self._dead = kept.dead
        self._is_new = kept.is_new
        self._tools = tools
        self._desk = desk
        self.unsaved = 0
        self._page_events = FIRST_PAGE
        self._since = 0.0

    @property
    def done(self) -> bool:
        """Whether nothing is sent any more, whatever comes."""
        return self.state.disabled is not None and self.redelivery is None

    async def work(self) -> None:
        """Deliver until nothing is left, it has to wait, or the desk closes.

        What was delivered last may not be saved yet: that is for :meth:`save`. All else is.
        Cancelled, a receiver may have what is not even known to be tried.

        Raises:
            LeaseLost: somebody else goes on with it.
        """
        state = self.state
        self.seen = None
        if self.redelivery is not None:
            await self._begin_again(self.redelivery)
        if self._is_new:
            state.filtered = await self._count_below(state.cursor + 1)
            self._is_new = False
        self.again_ms = state.next_try_ms
        if self.done or (self.again_ms is not None and self.again_ms > self._tools.clock()):
            return
        self.again_ms = None
        if await self._deliver_dead():
            await self._deliver_log()

    async def save(self) -> None:
        """Save how far it is."""
        if self.unsaved:
            unsaved, self.unsaved = self.unsaved, 0
            try:
                await self._desk.keep(state_name(self._number), encode(self.state))
            except BaseException:
                self.unsaved += unsaved
                raise

    def _changed(self) -> None:
        if not self.unsaved:
            self._since = trio.current_time()
        self.unsaved += 1

    async def _save_changes(self) -> None:
        self._changed()
        await self.save()

    # The log --------------------------------------------------------------------------------------

    async def _deliver_log(self) -> None:
        state, wants = self.state, self._webhook.filter.matches
        more = True
        while more:
            page = await self._desk.read(state.cursor, self._page_events)
            size = sum(_size(entry) for entry in page.entries)
            self._page_events = (
                max(self._page_events // 4, 1)
                if size > PAGE_BYTES
                else min(self._page_events * 2, PAGE_EVENTS)
            )
            for entry in page.entries:
                if wants(entry.type, entry.level):
                    if self._interrupted or not await self._deliver(entry):
                        return
                    state.filtered += 1
                state.cursor = entry.index
                self._changed()
                if self._must_save:
                    await self.save()
            more = page.more
        # Behind the last entry `latest` events may have been replaced: they are seen as well.
        self.seen = page.record.next_index

    @property
    def _interrupted(self) -> bool:
        return self._desk.closing or self.redelivery is not None

    @property
    def _must_save(self) -> bool:
        since = trio.current_time() - self._since
        return self.unsaved >= SAVE_EVENTS or since >= SAVE_S

    async def _deliver(self, entry: Entry) -> bool:
        """Deliver it or give it up; False where that has to wait."""
        attempt = await self._try(entry, self.state.filtered)
        if attempt is None:
            return False
        if attempt.outcome != "delivered":
            # Before the cursor moves on: from then on nobody would know of it.
            await self._bury(entry, self.state.filtered, attempt)
            self.unsaved = SAVE_EVENTS
        return True

    # Tries ----------------------------------------------------------------------------------------

    async def _try(self, entry: Entry, filtered_index: int) -> Attempt | None:
        """Try to deliver it once; the attempt, where no other one is to follow."""
        webhook, tools, state = self._webhook, self._tools, self.state
        if state.last is not None and state.last.index != entry.index:
            state.tries = 0  # what was tried then has been replaced
        try:
            async with tools.lanes.turn(webhook.host) as turn:
                attempt = await tools.sender.attempt(
                    webhook,
                    event_type=entry.type,
                    delivery=delivery_id(self._desk.task_id, self._number, entry.id),
                    body=body_of(webhook, entry, filtered_index),
                )
                turn.answered = attempt.status is not None
        except HostBusy as busy:
            self.again_ms = tools.clock() + ceil(busy.wait_s * 1000)
            return None
        self._remember(entry, attempt)
        if attempt.outcome == "delivered":
            state.delivered += 1
            state.tries = 0
            state.next_try_ms = None
            return attempt
        if attempt.outcome == "gone":
            state.disabled = GONE
            state.tries = 0
            state.next_try_ms = None
            self._log("webhook_disabled", entry, attempt)
            await self._save_changes()
            return None
        state.tries += 1
        wait_ms = next_try_ms(
            webhook.retry,
            state.tries,
            jitter=tools.jitter(),
            retry_after_ms=attempt.retry_after_ms,
        )
        if wait_ms is None:
            return attempt
        state.next_try_ms = self.again_ms = tools.clock() + wait_ms
        await self._save_changes()
        return None

    def _remember(self, entry: Entry, attempt: Attempt) -> None:
        now_ms, metrics = self._tools.clock(), self._tools.metrics
        self.state.remember(
            Try(
                at_ms=now_ms,
                index=entry.index,
                event_id=entry.id,
                type=entry.type,
                number=self.state.tries + 1,
                outcome=attempt.outcome,
                duration_ms=attempt.duration_ms,
                status=attempt.status,
                error=attempt.error,
            )
        )
        metrics.webhook_tries.labels(attempt.outcome).inc()
        if attempt.error is not None:
            metrics.webhook_failures.labels(attempt.error).inc()
        if attempt.outcome == "delivered":
            metrics.webhook_lag.observe(max(now_ms - entry.event.timestamp, 0) / 1000)

    def _log(self, what: str, entry: Entry, attempt: Attempt) -> None:
        log.warning(
            what,
            task=self._desk.task_id,
            webhook=self._number,
            host=self._webhook.host,
            index=entry.index,
            status=attempt.status,
            error=attempt.error,
        )

    # Dead letters ---------------------------------------------------------------------------------

    async def _bury(self, entry: Entry, filtered_index: int, attempt: Attempt) -> None:
        """Make it a dead letter, in the place of the oldest where there are too many."""
        state = self.state
        letter = DeadLetter(
            at_ms=self._tools.clock(),
            index=entry.index,
            event_id=entry.id,
            type=entry.type,
            filtered_index=filtered_index,
            tries=state.tries,
            status=attempt.status,
            error=attempt.error,
        )
        await self._desk.keep(dead_name(self._number, entry.index), encode(letter))
        self._dead[entry.index] = letter
        if len(self._dead) > MAX_DEAD:
            await self._exhume(next(iter(self._dead)))
            state.dropped += 1
        state.tries = 0
        state.next_try_ms = None
        self._tools.metrics.webhook_dead_letters.inc()
        self._log("webhook_dead_letter", entry, attempt)

    async def _exhume(self, index: int) -> None:
        del self._dead[index]
        await self._desk.keep(dead_name(self._number, index), None)

    async def _deliver_dead(self) -> bool:
        """Deliver the dead letters that were asked for; False where that has to wait."""
        state = self.state
        while state.resend_from is not None:
            asked = range(state.resend_from, state.resend_to + 1)
            letter = next((self._dead[index] for index in self._dead if index in asked), None)
            if letter is None:
                state.resend_from = None
            elif self._interrupted or not await self._deliver_letter(letter):
                return False
            else:
                state.resend_from = letter.index + 1
            self._changed()
            if self._must_save:
                await self.save()
        return True

    async def _deliver_letter(self, letter: DeadLetter) -> bool:
        page = await self._desk.read(letter.index - 1, 1)
        entry = page.entries[0] if page.entries else None
        if entry is None or entry.id != letter.event_id:
            await self._exhume(letter.index)  # a later event of its series has replaced it
            return True
        attempt = await self._try(entry, letter.filtered_index)
        if attempt is None:
            return False
        if attempt.outcome == "delivered":
            await self._exhume(letter.index)
        else:
            await self._bury(entry, letter.filtered_index, attempt)
        return True

    async def _begin_again(self, asked: Redelivery) -> None:
        """Do what was asked for, also where the webhook was disabled."""
        state, from_index = self.state, asked.from_index
        filtered = 0 if from_index is None else await self._count_below(from_index)
        if self.redelivery is asked:
            self.redelivery = None
        state.redelivery = asked.id
        state.disabled = None
        state.tries = 0
        state.next_try_ms = None
        again: list[int] = []
        if from_index is None:
            state.resend_from = 0
            state.resend_to = max(self._dead, default=-1)
        else:
            state.resend_from = None
            state.filtered = filtered
            state.cursor = from_index - 1
            again = [index for index in self._dead if index >= from_index]
        await self._save_changes()
        for index in again:
            await self._exhume(index)

    async def _count_below(self, index: int) -> int:
        """How many events below ``index`` are wanted; only envelopes tell of it."""
        wants, count = self._webhook.filter.matches, 0
        after, more = -1, self._webhook.wrap and index > 0
        while more:
            page = await self._desk.read(after, COUNT_EVENTS)
            below = [entry for entry in page.entries if entry.index < index]
            count += sum(wants(entry.type, entry.level) for entry in below)
            more = page.more and len(below) == len(page.entries)
            after = page.entries[-1].index if page.entries else after
        return count


def _size(entry: Entry) -> int:
    data = entry.event.data
    return 0 if data is UNSET else len(data)
