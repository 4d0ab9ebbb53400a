"""Publishing what publishers count: each event once, and in its order.

The store compares (see ``counting`` of its append). Here what comes again is answered with what was
stored, and what comes before its time is held, if it asks for that, until the events before it are
there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import trio
from msgspec import UNSET

from taskcast_trio.core import sequence
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import Draining, RateLimited, SeqGap
from taskcast_trio.core.model import Draft
from taskcast_trio.storage.records import Commit

from .fanout import Fanout

Append: TypeAlias = Callable[[Sequence[Draft], bool], Awaitable[Commit]]
"""Appends drafts; the flag says that they are all of the request."""

DEFAULT_HOLD_S: Final = 5.0
DEFAULT_PER_TASK: Final = 100
DEFAULT_TOTAL: Final = 1000


async def append_once(drafts: Sequence[Draft], append: Append) -> list[Entry]:
    """Append those of the drafts that were not before; what each became, now or then.

    Raises:
        BadRequest: there is a gap among them.
        SeqGap: the first one comes before its time.
    """
    unlike, places = sequence.distinct(drafts)
    entries: dict[int, Entry] = {}
    left = list(range(len(unlike)))
    while left:
        commit = await append([unlike[at] for at in left], not entries)
        if commit.known is None:
            entries.update(zip(left, commit.entries, strict=True))
            break
        entries.update((left[number], entry) for number, entry in commit.known.items())
        left = [at for at in left if at not in entries]
    return [entries[place] for place in places]


class Holds:
    """Whoever waits in this process for events of publishers to come."""

    def __init__(
        self,
        fanout: Fanout,
        *,
        hold_s: float = DEFAULT_HOLD_S,
        per_task: int = DEFAULT_PER_TASK,
        total: int = DEFAULT_TOTAL,
    ) -> None:
        self._fanout = fanout
        self.hold_s = hold_s
        self._per_task = per_task
        self._total = total
        self._count = 0
        self._tasks: dict[str, _Waiting] = {}

    async def store(
        self, task_id: str, gap: SeqGap, attempt: Callable[[], Awaitable[list[Entry]]]
    ) -> list[Entry]:
        """What ``attempt`` returns, once the events before ``gap`` are there.

        Cancellation leaves what an attempt leaves.

        Raises:
            SeqGap: they did not come in time.
            RateLimited: too many wait already.
            Draining: the engine shuts down.
        """
        with self._place(task_id) as waiting:
            deadline = trio.current_time() + self.hold_s
            while True:
                with waiting.turn(gap.client_id, gap.seq) as woken:
                    # Registered first: what comes from here on is not missed.
                    try:
                        return await attempt()
                    except SeqGap as again:
                        if not again.held or trio.current_time() >= deadline:
                            raise
                        if (again.client_id, again.seq) == (gap.client_id, gap.seq):
                            await waiting.wait(woken, deadline)
                        gap = again

    @contextmanager
    def _place(self, task_id: str) -> Iterator[_Waiting]:
        if self._count >= self._total:
            raise RateLimited("Too many publishes wait for others to come before them")
        waiting = self._tasks.get(task_id)
        if waiting is None:
            waiting = self._tasks[task_id] = _Waiting(task_id, self._fanout)
        elif waiting.count >= self._per_task:
            raise RateLimited(
                f"Too many publishes to task {task_id} wait for others to come before them"
            )
        self._count += 1
        waiting.count += 1
        try:
            yield waiting
        finally:
            self._count -= 1
            waiting.count -= 1
            if not waiting.count:
                del self._tasks[task_id]
                waiting.close()


class _Waiting:
    """Those who wait at one task. They are woken by what is committed there."""

    def __init__(self, task_id: str, fanout: Fanout) -> None:
        """Raises Draining where the engine shuts down."""
        self.count = 0
        self._task_id = task_id
        self._fanout = fanout
        self._turns: dict[tuple[str, int], set[trio.Event]] = {}
        self._version: tuple[str, int] | None = None
        self._draining: Draining | None = None
        self._attach()

    def _attach(self) -> None:
        self._inbox = self._fanout.attach(self._task_id, counts=False)
        self._inbox.on_ready = self._look

    @contextmanager
    def turn(self, client_id: str, seq: int) -> Iterator[trio.Event]:
        """An event that is set when the one before ``seq`` is there, or when anything else is to be
        looked at.
        """
        woken = trio.Event()
        at = (client_id, seq)
        self._turns.setdefault(at, set()).add(woken)
        try:
            yield woken
        finally:
            self._turns[at].discard(woken)
            if not self._turns[at]:
                del self._turns[at]

    async def wait(self, woken: trio.Event, deadline: float) -> None:
        if self._draining is None:  # else those who were here have been woken, and nobody will be
            with trio.CancelScope(deadline=deadline):
                await woken.wait()
        if self._draining is not None:
            raise self._draining

    def _look(self) -> None:
        for commit in self._inbox.take_nowait():
            version = (commit.record.epoch, commit.record.revision)
            if commit.deleted or version != self._version:
                self._version = version
                self._wake_all()
            for entry in commit.entries:
                event = entry.event
                if event.client_id is not UNSET and event.client_seq is not UNSET:
                    for woken in self._turns.get((event.client_id, event.client_seq + 1), ()):
                        woken.set()
        if self._inbox.waiting:  # it was cut
            cut = self._inbox
            try:
                self._attach()
            except Draining as draining:
                self._draining = draining
            self._fanout.detach(self._task_id, cut)
            self._wake_all()

    def _wake_all(self) -> None:
        for turns in self._turns.values():
            for woken in turns:
                woken.set()

    def close(self) -> None:
        self._inbox.on_ready = None
        self._fanout.detach(self._task_id, self._inbox)
