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

from taskcast_trio.core.errors import Forbidden, TaskNotFound
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Commit, Snapshot, TaskRecord

from .cursor import Cursor
from .fanout import Fanout
from .history import PAGE_EVENTS
from .items import Done, Follow, Gap, Item, Pumped
from .metrics import Metrics
from .replay import Replay
from .resume import has_expired, resolve_cursor

OBSERVE_ONE_IN: Final = 16
"""Latencies are sampled: observing each would cost as much as a delivery."""


class Subscription:
    """Follow one task; made by ``TaskEngine.subscribe`` and to be entered as a context.

    Iterate it, or call :meth:`receive`. Entering registers it (it counts as a subscriber) and finds
    where it begins: what is published after that is live, piece by piece. Leaving forgets it at
    once and without waiting. It belongs to one Trio task at a time.
    """

    __slots__ = (
        "_clock",
        "_cursor",
        "_fanout",
        "_inbox",
        "_metrics",
        "_observed",
        "_queue",
        "_replay",
        "_store",
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
        self._store = store
        self._fanout = fanout
        self._metrics = metrics
        self._clock = clock
        self._cursor = Cursor(follow)
        self._replay: Replay | None = None
        """The first replay, until it is over: later ones go by the cursor alone."""
        self._observed = 0
        self._queue: list[Item] = []
        """What an iteration has received and not handed out yet."""

    @property
    def live(self) -> bool:
        """Whether the replay is behind, and what comes next is live."""
        return self._cursor.live and not self._queue

    async def __aenter__(self) -> Self:
        self._inbox = self._fanout.attach(self.task_id)
        self._metrics.task_subscribers.inc()
        try:
            first = await self._start()
        except BaseException:
            self.close()
            raise
        if first is not None:
            self._queue.append(first)
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
        while not self._cursor.ended or self._queue:
            items = await self._next_page(runs=False) or await self._receive_live()
            if items:
                return cast("list[Item]", items)  # there are no runs among them
        raise trio.EndOfChannel

    async def replay(self) -> list[Pumped]:
        """The next page of what is behind; an empty list where the subscription is live, or over.

        Where all events of a page pass they come as one ``Run``. Cancellation loses nothing.
        """
        return await self._next_page(runs=True)

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
        inbox, cursor = self._inbox, self._cursor
        failed: list[Exception] = []

        def hand_over() -> None:
            try:
                commits = inbox.take_nowait()
                if not commits:
                    self._reattach()
                self._observe(commits)
                items = cursor.take_runs(commits)
                go_on = write(items) if items else True
                if cursor.live and inbox.waiting:  # it was cut behind what was taken
                    self._reattach()
            except Exception as error:  # it belongs to this subscriber, not to the fan-out
                failed.append(error)
                go_on = False
            if not go_on or not cursor.live:
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

    # What is live --------------------------------------------------------------------------------

    async def _receive_live(self) -> list[Item]:
        commits = await self._inbox.take()
        if not commits:
            self._reattach()
        self._observe(commits)
        return self._cursor.take(commits)

    def _reattach(self) -> None:
        """A new inbox for the one that was cut; the store has what was announced meanwhile."""
        inbox = self._fanout.attach(self.task_id)
        self._fanout.detach(self.task_id, self._inbox)
        self._inbox = inbox
        self._cursor.live = False

    def _observe(self, commits: Sequence[Commit]) -> None:
        self._observed += 1
        if self._observed % OBSERVE_ONE_IN == 1 and commits and commits[-1].entries:
            late_ms = self._clock() - commits[-1].entries[-1].event.timestamp
            self._metrics.deliver_seconds.observe(max(late_ms, 0) / 1000)

    # What is behind ------------------------------------------------------------------------------

    async def _next_page(self, *, runs: bool) -> list[Pumped]:
        if self._queue:
            items: list[Pumped] = [*self._queue]
            self._queue.clear()
            return items
        while not self._cursor.live and not self._cursor.ended:
            items = await self._read(runs)
            if items:
                return items
        return []

    async def _start(self) -> Gap | Done | None:
        """Find where to begin; a gap where the cursor is unknown or events behind it are gone."""
        store, follow, cut_place = self._store, self._cursor.follow, -1
        try:
            snapshot = await store.snapshot(self.task_id)
            if await has_expired(store, snapshot, follow):
                return self._expired(snapshot)
            if follow.last_event_id is not None:
                return await self._resume(snapshot, follow.last_event_id)
            if follow.since_id:
                found = await store.find(self.task_id, follow.since_id)
                cut_place = found.place if found is not None else -1
        except TaskNotFound:
            return self._cursor.end("deleted")
        self._cursor.start(snapshot.record)
        self._replay = Replay(
            self._cursor,
            snapshot,
            collapse=not follow.resumed,
            cut_place=cut_place,
            since_ms=follow.since_timestamp,
        )
        return None

    async def _resume(self, snapshot: Snapshot, event_id: str) -> Gap | None:
        """Go on behind this event; if it is unknown, say so and follow the log from its start."""
        index = await resolve_cursor(self._store, snapshot.record, event_id)
        if index is not None:
            self._cursor.start(snapshot.record, index, event_id)
            return None
        self._cursor.start(snapshot.record)
        self._replay = Replay(self._cursor, snapshot)
        return self._gap("unknown_cursor")

    def _expired(self, snapshot: Snapshot) -> Gap:
        """Say so, and follow what is left of the log from its start."""
        self._cursor.start_anew(snapshot.record, told=True)
        self._replay = Replay(self._cursor, snapshot)
        return self._gap("events_expired")

    def _replaced(self, record: TaskRecord) -> Gap:
        """The log is another one (imported over, or deleted and created again): follow it from its
        start, if that is allowed.
        """
        visible = self._cursor.follow.visible
        if visible is not None and not visible(record.task):
            raise Forbidden("The task was replaced by one that this caller may not follow")
        self._cursor.start_anew(record, told=False)
        self._replay = None
        return self._gap("log_replaced")

    def _gap(self, reason: Literal["unknown_cursor", "log_replaced", "events_expired"]) -> Gap:
        self._metrics.gaps.labels(reason).inc()
        return Gap(reason, 0)

    async def _read(self, runs: bool) -> list[Pumped]:
        """A page: of the first replay in stored order, as the contract has it, then in that of
        indexes.
        """
        cursor, replay = self._cursor, self._replay
        known = cursor.known if replay is None else replay.high_water
        try:
            if replay is None:
                after = cursor.read_after
                page = await self._store.read(self.task_id, after=after, limit=PAGE_EVENTS)
            else:
                page = await self._store.read_places(
                    self.task_id, after_place=replay.after_place, after_index=-1, limit=PAGE_EVENTS
                )
            replaced = not cursor.goes_on(page.record, known)
            if replaced or (replay is None and cursor.has_another(page.entries)):
                return [self._replaced(page.record)]
            if cursor.was_trimmed(page.record, -1 if replay is not None else known):
                return [await self._read_anew()]
        except TaskNotFound:
            return [cursor.end("deleted")]
        if replay is None:
            return cursor.read(page, runs=runs)
        items = replay.read(page, runs=runs)
        if replay.over:
            self._replay = None
        return items

    async def _read_anew(self) -> Gap:
        """The log was trimmed behind the cursor: see what is left."""
        snapshot = await self._store.snapshot(self.task_id)
        if not self._cursor.goes_on(snapshot.record, self._cursor.known):
            return self._replaced(snapshot.record)
        return self._expired(snapshot)
