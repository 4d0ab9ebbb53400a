"""Where tasks wait that no worker can take.

Tasks that fit the same workers wait in one queue: a kind of timer whose order is theirs, so that
they leave it in the step that assigns, ends or deletes them, in every store. Which queues there are
is a table; which may have something is known by their heads, as lower bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from heapq import heapify, heappop, heappush
from typing import Final

import msgspec

from taskcast_trio.core.assignment import DISPATCH, Queue, place_of, queue_of
from taskcast_trio.core.matching import fits
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import TaskRecord, Timer

from .registry import Worker

TABLE: Final = "queues"
PARKED: Final = "parked"
HOLD_MS: Final = 5000
"""How long one who has taken a task out may take to place it."""
NET_MS: Final = 900_000
"""When a task that waits is looked at anew, whatever was missed."""
USED_MS: Final = 60_000
UNUSED_MS: Final = 3_600_000
"""After which a queue that is empty is forgotten: far longer than its last user remembers it."""
LOOKS: Final = 200
"""How many queues one look goes over."""
FOREVER: Final = -(2**52)

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[int, Queue]).decode


class Queues:
    """The queues, as far as this process knows them. ``filled`` is called with the kind of one that
    got a task here.
    """

    def __init__(
        self,
        store: ShortTermStore,
        *,
        clock: Callable[[], int],
        filled: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._filled = filled
        self._queues: dict[str, Queue] = {}
        self._stored: dict[str, bytes] = {}
        self._heads: dict[str, int] = {}
        self._fills = 0
        self._filled_at: dict[str, int] = {}
        """By queue: which of all times that something came was its last one; what a look found
        that began before says nothing of it.
        """
        self._turn: list[str] = []

    async def load(self) -> None:
        """Read which queues there are; new ones may have something."""
        known = set(self._queues)  # not those that are made meanwhile
        found = await self._store.rows(TABLE)
        for kind, value in found.items():
            self._stored[kind] = value
            if kind not in self._queues:
                self._queues[kind] = _decode(value)[1]
                self._heads[kind] = FOREVER
        for kind in known - found.keys():
            self._forget(kind)

    def _forget(self, kind: str) -> None:
        self._queues.pop(kind, None)
        self._stored.pop(kind, None)
        self._heads.pop(kind, None)
        self._filled_at.pop(kind, None)

    def _came(self, kind: str, place: int) -> None:
        self._fills += 1
        self._filled_at[kind] = self._fills
        self._heads[kind] = min(place, self._heads.get(kind, place))

    def fitting(
        self,
        worker: Worker,
        modes: Collection[str],
        free: int,
        among: Iterable[str] | None = None,
    ) -> list[str]:
        """The queues (of those ``among``) that may have something for the worker, the one to look
        at first in front.
        """
        found = []
        for kind in self._heads if among is None else among:
            head, queue = self._heads.get(kind), self._queues.get(kind)
            if (
                head is not None
                and queue is not None
                and queue.mode in modes
                and queue.cost <= free
                and worker.id not in queue.barred
                and fits(worker.rule, queue.type, queue.tags)
            ):
                found.append((head, kind))
        return [kind for _, kind in sorted(found)]

    def mode_of(self, kind: str) -> str:
        queue = self._queues.get(kind)
        return "" if queue is None else queue.mode

    def heard(self, kind: str) -> None:
        """Another process has put something into the queue."""
        if kind in self._queues:
            self._came(kind, FOREVER)

    @property
    def may_have(self) -> bool:
        return bool(self._heads)

    async def park(self, record: TaskRecord, timer: Timer) -> None:
        """Let a pending task wait whose timer was taken, unless that was set anew meanwhile."""
        task, now_ms = record.task, self._clock()
        queue = queue_of(task)
        kind, place = queue.kind, place_of(task)
        await self._declare(kind, queue, now_ms)
        timers = {kind: place, DISPATCH: now_ms + NET_MS}
        if await self._store.put_task_note(
            task.id,
            PARKED,
            None,
            epoch=record.epoch,
            timers=timers,
            if_due={DISPATCH: timer.due_ms},
        ):
            self._queues[kind] = queue  # it may have been forgotten meanwhile
            self._came(kind, place)
            self._filled(kind)

    async def _declare(self, kind: str, queue: Queue, now_ms: int) -> None:
        """See that the queue is in the table, and stays there."""
        stored = self._stored.get(kind)
        while stored is None or now_ms - _decode(stored)[0] >= USED_MS:
            value = _encode((now_ms, queue))
            stored = await self._store.swap_row(TABLE, kind, value, known=stored)
        self._stored[kind] = stored
        self._queues[kind] = queue

    async def first(self, kinds: list[str]) -> str | None:
        """Of these queues the one whose first task comes before those of the others."""
        # What is known of a head is a lower bound: only those that may be the first are looked at.
        heads = [(self._heads[kind], kind) for kind in kinds if kind in self._heads]
        heapify(heads)
        while heads:
            _, kind = heappop(heads)
            if not heads:
                return kind
            await self._look(kind)
            head = self._heads.get(kind)
            if head is not None and head <= heads[0][0]:
                return kind
            if head is not None:
                heappush(heads, (head, kind))
        return None

    async def _look(self, kind: str) -> None:
        filled_at = self._filled_at.get(kind)
        head = await self._store.next_due(kind)
        if self._filled_at.get(kind) != filled_at:
            return
        if kind in self._queues and head is not None and head <= self._clock():
            self._heads[kind] = head
        else:
            self._heads.pop(kind, None)

    async def take(self, kind: str) -> Timer | None:
        """The first task of the queue; for a while nobody else gets it."""
        filled_at = self._filled_at.get(kind)
        taken = await self._store.take_due(kind, now_ms=self._clock(), lease_ms=HOLD_MS, limit=1)
        if not taken:
            self._empty(kind, filled_at)
        return taken[0] if taken else None

    async def peek(self, kind: str, limit: int) -> list[Timer]:
        """The first tasks of the queue, which stay there."""
        filled_at = self._filled_at.get(kind)
        found = await self._store.list_due(kind, now_ms=self._clock(), limit=limit)
        if not found:
            self._empty(kind, filled_at)
        return found

    def _empty(self, kind: str, filled_at: int | None) -> None:
        """The queue had nothing, as of a look that began after ``filled_at``."""
        if self._filled_at.get(kind) == filled_at:
            self._heads.pop(kind, None)

    async def put_back(self, timer: Timer, record: TaskRecord | None) -> None:
        """Undo a take; None: the task does not wait there any more."""
        place = None if record is None else place_of(record.task)
        await self._store.set_timer(timer.task_id, timer.kind, place, if_due=timer.due_ms)
        if place is not None and timer.kind in self._queues:
            self._came(timer.kind, place)

    async def move(self, timer: Timer, record: TaskRecord, due_ms: int) -> bool:
        """Take a task that was taken out of the queue, to be looked at again at ``due_ms``; False
        where it waits there no more.
        """
        return await self._store.put_task_note(
            timer.task_id,
            PARKED,
            None,
            epoch=record.epoch,
            timers={timer.kind: None, DISPATCH: due_ms},
            if_due={timer.kind: timer.due_ms},
        )

    async def look_around(self) -> None:
        """Look at some of the queues in turn: tasks come back whose taker died, and queues that
        nobody used for long go.
        """
        if not self._turn:
            self._turn = list(self._queues)
        now_ms = self._clock()
        for _ in range(min(LOOKS, len(self._turn))):
            kind = self._turn.pop()
            stored = self._stored.get(kind)
            if stored is None:
                continue
            await self._look(kind)
            if kind in self._heads or now_ms - _decode(stored)[0] < UNUSED_MS:
                continue
            if await self._store.next_due(kind) is None:
                there = await self._store.swap_row(TABLE, kind, None, known=stored)
                if there is None:
                    self._forget(kind)
                else:
                    self._stored[kind] = there
