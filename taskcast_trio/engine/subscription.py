"""A subscription: a cursor that follows one task's log.

It attaches to the fan-out first, then replays from the store, then takes what is live; whenever it
sees a gap or falls behind, it replays again from where it stands. So each matching event comes
exactly once and in order, whatever happens between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Literal, Self, cast

import trio

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import Forbidden, TaskNotFound
from taskcast_trio.core.series import (
    SeriesValue,
    SeriesValues,
    accumulates,
    as_snapshot,
    fold,
    series_of,
)
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Commit, Page, Snapshot, TaskRecord

from .fanout import Fanout
from .history import PAGE_EVENTS
from .items import Delivery, Done, Follow, Gap, Item, Pumped, Run
from .metrics import Metrics
from .replay import Replay, end_cursor, has_expired, resolve_cursor

OBSERVE_ONE_IN: Final = 16
"""Latencies are sampled: observing each would cost as much as a delivery."""


class Subscription:
    """Follow one task; made by ``TaskEngine.subscribe`` and to be entered as a context.

    Iterate it, or call :meth:`receive`. Entering registers it (it counts as a subscriber) and finds
    where it begins: what is published after that is live, piece by piece. Leaving forgets it at
    once and without waiting. It belongs to one Trio task at a time.
    """

    __slots__ = (
        "_anchor",
        "_clock",
        "_ended",
        "_epoch",
        "_fanout",
        "_filtered",
        "_follow",
        "_inbox",
        "_last",
        "_live",
        "_metrics",
        "_observed",
        "_plain",
        "_queue",
        "_replay",
        "_runs",
        "_silent_until",
        "_since_index",
        "_store",
        "_told",
        "_trims",
        "_values",
        "task_id",
    )

    def __init__(
        self,
        task_id: str,
        follow: Follow,
        *,
        store: ShortTermStore,
        fanout: Fanout,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self.task_id = task_id
        self._follow = follow
        self._store = store
        self._fanout = fanout
        self._metrics = metrics
        self._clock = clock
        self._epoch = ""
        self._last = -1
        """The highest index that is behind this cursor, delivered or filtered out."""
        self._anchor: tuple[int, str] | None = None
        """The newest event that it has had: read again, it shows whether the log still has it."""
        self._silent_until = -1
        """Events up to this index only bring the running values up to the cursor."""
        self._filtered = 0
        self._since_index = follow.since_index if follow.last_event_id is None else None
        self._values: SeriesValues = {}
        self._replay: Replay | None = None
        self._trims = 0
        """How often the log had been trimmed when this cursor last looked."""
        self._told = False
        """Whether it was said that events may be gone: once is enough, it holds of later ones too.
        """
        self._live = False
        self._ended = False
        self._observed = 0
        self._plain = follow.filter.passes_all and not follow.accumulated
        """Whether every event passes as it is."""
        self._runs = False
        self._queue: list[Item] = []
        """What an iteration has received and not handed out yet."""

    @property
    def live(self) -> bool:
        """Whether the replay is behind, and what comes next is live."""
        return self._live and not self._ended and not self._queue

    async def __aenter__(self) -> Self:
        self._inbox = self._fanout.attach(self.task_id)
        self._metrics.task_subscribers.inc()
        try:
            self._queue += await self._start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """What leaving the context does: forget the subscription, without waiting."""
        self._fanout.detach(self.task_id, self._inbox)
        self._metrics.task_subscribers.dec()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if not self._queue:
            try:
                self._queue.extend(await self.receive())
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
        return self._queue.pop(0)

    async def receive(self) -> list[Item]:
        """The next items, at least one: all that is queued, or a page of the replay.

        The last list ends with ``Done``. Cancellation loses nothing: call again to go on.

        Raises:
            trio.EndOfChannel: ``Done`` was delivered before.
            Forbidden: the log was replaced, and the new one is not ``visible``.
            Draining: the engine shuts down; the cursor is good for another server.
        """
        while not self._ended or self._queue:
            items = await self._next_page() or await self._receive_live()
            if items:
                return cast("list[Item]", items)  # runs are for replay() and pump() alone
        raise trio.EndOfChannel

    async def replay(self) -> list[Pumped]:
        """The next page of what is behind; an empty list where the subscription is live, or over.

        Where all events of a page pass they come as one ``Run``. Cancellation loses nothing.
        """
        self._runs = self._plain
        try:
            return await self._next_page()
        finally:
            self._runs = False

    async def _next_page(self) -> list[Pumped]:
        if self._queue:
            items: list[Pumped] = [*self._queue]
            self._queue.clear()
            return items
        while not self._live and not self._ended:
            if self._replay is not None:
                items = await self._replay_places(self._replay)
            else:
                items = await self._catch_up()
            if items:
                return items
        return []

    async def pump(
        self,
        write: Callable[[list[Pumped]], bool],
        wait: Callable[[], Awaitable[object]],
        scope: trio.CancelScope,
    ) -> None:
        """While live, hand items to ``write`` as they are committed, without a task switch each.

        Where all events of a commit pass they come as one ``Run``. ``write`` is called from the
        fan-out's own task and must not wait; False means that it took the items and wants no more
        for now. Meanwhile this waits in ``wait``, inside ``scope``, which the caller has not
        entered: it is cancelled when ``write`` wants no more, when ``Done`` was handed over, or
        when something has to be waited for (go on with :meth:`receive`). Cancellation loses
        nothing.
        """
        inbox = self._inbox
        failed: list[Exception] = []

        def hand_over() -> None:
            try:
                commits = inbox.take_nowait()
                if not commits:
                    self._reattach()
                items = self._take_runs(commits)
                go_on = write(items) if items else True
                if self.live and inbox.waiting:  # it was cut behind what was taken
                    self._reattach()
            except Exception as error:  # it belongs to this subscriber, not to the fan-out
                failed.append(error)
                go_on = False
            if not go_on or not self._live or self._ended:
                inbox.on_ready = None
                scope.cancel()

        with scope:
            if self.live:
                inbox.on_ready = hand_over
                try:
                    if inbox.waiting:
                        hand_over()
                    await wait()
                finally:
                    inbox.on_ready = None
        if failed:
            raise failed[0]

    async def _start(self) -> list[Item]:
        """Find where to begin; a gap where the cursor is unknown or events behind it are gone."""
        follow = self._follow
        try:
            snapshot = await self._store.snapshot(self.task_id)
            record = snapshot.record
            self._trims = record.trims
            if await has_expired(self._store, snapshot, follow):
                return self._expired(snapshot)
            if follow.last_event_id is not None:
                index = await resolve_cursor(self._store, record, follow.last_event_id)
                if index is not None:
                    if follow.accumulated:
                        self._silent_until = index
                    else:
                        self._last = index
                    if not record.trims:  # else it may be the made-up one of the log's end
                        self._anchor = (index, follow.last_event_id)
                    self._epoch = record.epoch
                    return []
            cut_place = -1
            if follow.last_event_id is None and follow.since_id:
                found = await self._store.find(self.task_id, follow.since_id)
                cut_place = found.place if found is not None else -1
        except TaskNotFound:
            return self._end("deleted")
        self._epoch = record.epoch
        self._replay = Replay(
            record.next_index - 1,
            snapshot.values,
            collapse=follow.last_event_id is not None or not follow.resumed,
            # Running values are made of all pieces, those before the cut too.
            after_place=-1 if follow.accumulated else cut_place,
            cut_place=cut_place,
            since_ms=follow.since_timestamp if follow.last_event_id is None else None,
            left=follow.limit,
        )
        if follow.last_event_id is None:
            return []
        return [self._gap("unknown_cursor")]

    def _expired(self, snapshot: Snapshot) -> list[Item]:
        """Say so, and follow what is left of the log from its start."""
        record = snapshot.record
        self._begin_anew()
        self._told = True
        self._trims = record.trims
        self._epoch = record.epoch
        self._replay = Replay(
            record.next_index - 1, snapshot.values, collapse=True, left=self._follow.limit
        )
        return [self._gap("events_expired")]

    def _was_trimmed(self, record: TaskRecord, last: int) -> bool:
        """Whether the log was trimmed behind ``last`` since this cursor looked, and nobody said so:
        then begin anew.
        """
        if record.trims == self._trims:
            return False
        self._trims = record.trims
        # Running values are made of the events before the cursor too.
        return not self._told and (record.trimmed > last or self._follow.accumulated)

    async def _begin_again(self) -> list[Item]:
        try:
            snapshot = await self._store.snapshot(self.task_id)
        except TaskNotFound:
            return self._end("deleted")
        if not self._goes_on(snapshot.record, max(self._last, self._silent_until)):
            return self._replaced(snapshot.record)
        return self._expired(snapshot)

    async def _replay_places(self, replay: Replay) -> list[Pumped]:
        """A page in stored order: the first replay, as the contract has it."""
        try:
            page = await self._store.read_places(
                self.task_id, after_place=replay.after_place, after_index=-1, limit=PAGE_EVENTS
            )
        except TaskNotFound:
            return [*self._end("deleted")]
        if not self._goes_on(page.record, replay.high_water):
            return [*self._replaced(page.record)]
        if self._was_trimmed(page.record, -1):
            return [*await self._begin_again()]
        if self._runs and replay.whole and self._since_index is None:
            newest = max((entry.index for entry in page.entries), default=-1)
            if newest <= replay.high_water:
                return self._replay_run(replay, page)
        items: list[Item] = []
        for entry in page.entries:
            replay.after_place = entry.place
            if entry.index > replay.high_water:
                value = replay.replaced_value(entry)
                if value is None:
                    continue
                entry = value
            if replay.left is not None and replay.passed_cut(entry):
                if replay.left == 0:
                    break
                replay.left -= 1
            self._replay_one(replay, entry, items)
        self._had(page.entries, replay.high_water)
        if not page.more or replay.left == 0:
            for value in replay.left_over():
                self._deliver(as_snapshot(value), items, resumable=False)
            self._last = replay.high_water
            self._replay = None
            if self._follow.accumulated:
                self._values = {s: SeriesValue(entry) for s, entry in replay.values.items()}
        return [*items]

    def _replay_run(self, replay: Replay, page: Page) -> list[Pumped]:
        """The page as it is."""
        items = self._run(page.entries)
        self._had(page.entries, replay.high_water)
        if page.entries:
            replay.after_place = page.entries[-1].place
        if not page.more:
            self._last = replay.high_water
            self._replay = None
        return items

    def _run(self, entries: Sequence[Entry]) -> list[Pumped]:
        if not entries:
            return []
        run = Run(entries, self._filtered)
        self._filtered += len(entries)
        return [run]

    def _replay_one(self, replay: Replay, entry: Entry, items: list[Item]) -> None:
        series = series_of(entry.event)
        value = replay.value_of(entry)
        if series is None or value is None:
            if self._follow.accumulated and not replay.collapse:
                entry = self._running(entry)
            if replay.passed_cut(entry):
                self._deliver(entry, items, resumable=not replay.owed)
        elif self._follow.limit is not None:
            if series not in replay.collapsed:
                replay.collapsed.add(series)
                self._deliver(as_snapshot(value), items)
        elif entry.index == value.index:
            replay.owed.pop(series, None)
            self._deliver(as_snapshot(value), items, resumable=not replay.owed)
        elif self._follow.filter.matches(value.type, value.level):
            replay.owed[series] = None

    async def _catch_up(self) -> list[Pumped]:
        """A page in the order of indexes, from behind the cursor; at the end of the log, go live or
        end.
        """
        anchor = self._anchor
        after = self._last if anchor is None else min(self._last, anchor[0] - 1)
        try:
            page = await self._store.read(self.task_id, after=after, limit=PAGE_EVENTS)
        except TaskNotFound:
            return [*self._end("deleted")]
        behind = max(self._last, self._silent_until)
        if not self._goes_on(page.record, behind) or self._has_another(page.entries):
            return [*self._replaced(page.record)]
        if self._was_trimmed(page.record, behind):
            return [*await self._begin_again()]
        items: list[Pumped]
        entries = [entry for entry in page.entries if entry.index > self._last]
        if self._runs and self._since_index is None and entries:
            items = self._run(entries)
            self._last = entries[-1].index
        else:
            delivered: list[Item] = []
            self._advance(entries, delivered)
            items = [*delivered]
        self._had(page.entries, self._last)
        if not page.more:
            self._last = max(self._last, page.record.next_index - 1)
            if page.record.task.terminal:
                items += self._end(page.record.task.status, end_cursor(page.record))
            self._live = True
        return items

    async def _receive_live(self) -> list[Item]:
        commits = await self._inbox.take()
        if not commits:
            self._reattach()
        self._observe(commits)
        return self._take(commits)

    def _take_runs(self, commits: Sequence[Commit]) -> list[Pumped]:
        """As :meth:`_take`, with whole commits as runs where everything passes."""
        items: list[Pumped] = []
        for commit in commits:
            record = commit.record
            whole = record.epoch == self._epoch and commit.first_index == self._last + 1
            if self._since_index is not None and self._filtered <= self._since_index:
                whole = False
            if self._plain and whole and commit.entries and not commit.deleted:
                items.append(Run(commit.entries, self._filtered, commit.shared))
                self._filtered += len(commit.entries)
                self._last = record.next_index - 1
                self._anchor = (self._last, commit.entries[-1].id)
                if record.task.terminal:
                    items += self._end(record.task.status)
            else:
                items += self._take([commit])
            if self._ended or not self._live:
                break
        self._observe(commits)
        return items

    def _take(self, commits: Sequence[Commit]) -> list[Item]:
        """What the commits bring; where one leaves a gap, the store is to be read."""
        items: list[Item] = []
        for commit in commits:
            if commit.record.epoch != self._epoch or commit.first_index > self._last + 1:
                self._live = False
                break
            if commit.deleted:
                return items + self._end("deleted")
            self._advance(commit.entries, items)
            self._had(commit.entries, self._last)
            self._last = max(self._last, commit.record.next_index - 1)
            if commit.record.task.terminal:
                items += self._end(commit.record.task.status)
                break
        return items

    def _reattach(self) -> None:
        """A new inbox for the one that was cut; the store has what was announced meanwhile."""
        inbox = self._fanout.attach(self.task_id)
        self._fanout.detach(self.task_id, self._inbox)
        self._inbox = inbox
        self._live = False

    def _observe(self, commits: Sequence[Commit]) -> None:
        self._observed += 1
        if self._observed % OBSERVE_ONE_IN == 1 and commits and commits[-1].entries:
            late_ms = self._clock() - commits[-1].entries[-1].event.timestamp
            self._metrics.deliver_seconds.observe(max(late_ms, 0) / 1000)

    def _advance(self, entries: Sequence[Entry], items: list[Item]) -> None:
        for entry in entries:
            if entry.index <= self._last:
                continue
            self._last = entry.index
            if self._follow.accumulated:
                entry = self._running(entry)
            if entry.index > self._silent_until:
                self._deliver(entry, items)

    def _running(self, entry: Entry) -> Entry:
        """The entry with its series' running value in place of the piece."""
        value = fold(self._values, entry)
        return value.entry if value is not None and accumulates(entry.event) else entry

    def _deliver(self, entry: Entry, items: list[Item], *, resumable: bool = True) -> None:
        if not self._follow.filter.matches(entry.type, entry.level):
            return
        number = self._filtered
        self._filtered += 1
        if self._since_index is None or number > self._since_index:
            items.append(Delivery(entry, number, resumable))

    def _goes_on(self, record: TaskRecord, index: int) -> bool:
        """Whether the log is still the one that is followed, which was known up to ``index``; it
        may have gone on from its archive in another epoch. One that has lost its end (the store's
        machine ended between two fsyncs, or a replica took over) gives its indexes anew.
        """
        if not record.holds(self._epoch, index):
            return False
        self._epoch = record.epoch
        return True

    def _had(self, entries: Sequence[Entry], up_to: int) -> None:
        """What was read or taken is behind now."""
        known = -1 if self._anchor is None else self._anchor[0]
        if entries and known < entries[-1].index <= up_to:
            self._anchor = (entries[-1].index, entries[-1].id)

    def _has_another(self, entries: Sequence[Entry]) -> bool:
        """Whether the log has another event in the place of the newest that was had: it has lost
        its end, and has grown past it since.
        """
        if self._anchor is None:
            return False
        index, id_ = self._anchor
        there = next((entry for entry in entries if entry.index >= index), None)
        return there is not None and there.index == index and there.id != id_

    def _replaced(self, record: TaskRecord) -> list[Item]:
        """The log is another one (imported over, or deleted and created again): follow it from its
        start, if that is allowed.
        """
        visible = self._follow.visible
        if visible is not None and not visible(record.task):
            raise Forbidden("The task was replaced by one that this caller may not follow")
        self._begin_anew()
        self._epoch = record.epoch
        self._trims = record.trims
        self._told = False
        return [self._gap("log_replaced")]

    def _begin_anew(self) -> None:
        """Forget what is behind."""
        self._last = self._silent_until = -1
        self._anchor = None
        self._filtered = 0
        self._since_index = None
        self._values = {}
        self._replay = None
        self._live = False

    def _gap(self, reason: Literal["unknown_cursor", "log_replaced", "events_expired"]) -> Gap:
        self._metrics.gaps.labels(reason).inc()
        return Gap(reason, 0)

    def _end(self, reason: str, cursor: str | None = None) -> list[Item]:
        self._ended = True
        return [Done(reason, cursor)]
