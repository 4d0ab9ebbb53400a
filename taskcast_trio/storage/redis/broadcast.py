"""The listener of this process: what every process commits, for the tasks that are followed here.

It subscribes to the buckets of these tasks, to all while somebody follows every task. Whenever a
subscription is confirmed, something may have been missed before: who follows a task of the bucket
reads its log again. That holds for the first one too: a subscriber that attached may have read its
log before the subscription was there. As a backstop, the positions of the followed logs are
compared every few seconds with what was heard of them, or with where they were when they were read.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import structlog
import trio

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import StoreUnavailable

from ..protocols import CommitSink
from ..records import Commit
from .commands import Commands
from .ear import Ear
from .errors import CONNECTION_ERRORS
from .keys import BUCKETS, bucket_of
from .known import Known, Position
from .nodes import Place
from .peers import RedisPeers
from .rows import entries_of, unpack

TOLD: Final = BUCKETS
"""Stands for the channel that says that processes have told each other something, which is where
bucket 0 is.
"""
CHECK_S: Final = 4.0
GRACE_S: Final = 1.0
"""How long an announcement may be on its way behind the position that it tells of."""
CHECK_TASKS: Final = 500
_AGAIN: Final = Backoff(initial_delay_ms=50, max_delay_ms=2000)

_CREATED, _DELETED, _REPLACED, _FACT = 1, 2, 4, 8

log = structlog.get_logger(__name__)

GONE: Final[Position] = ("", 0)
"""That of a task that is not in Redis."""


class RedisBroadcast:
    """Feeds one sink; see :class:`Broadcast`."""

    def __init__(self, commands: Commands, known: Known, *, sharded: bool, store_id: bytes) -> None:
        self.peers = RedisPeers(
            commands,
            followed=self._tasks,
            count=self._count,
            publish="SPUBLISH" if sharded else "PUBLISH",
        )
        self._commands = commands
        self._known = known
        self._sharded = sharded
        self._store_id = store_id
        self._followed: list[dict[str, int]] = [{} for _ in range(BUCKETS)]
        """By bucket: how often each task is followed."""
        self._uncounted: Counter[str] = Counter()
        """How many of those are no subscribers."""
        self._everything = 0
        self._heard_of: dict[str, Position] = {}
        """Up to where what is followed was announced here."""
        self._ears: dict[Place, Ear] = {}
        self._sink: CommitSink | None = None
        self._changed = trio.Event()
        self._complete = trio.Event()
        self._gaps: set[int] = set()
        self._gap = trio.Event()
        self._begun = False

    @property
    def state(self) -> Literal["up", "down"]:
        """``up`` where every connection is, and all that is followed is listened to."""
        connected = all(ear.connected for ear in self._ears.values())
        return "up" if connected and self._wanted() - {TOLD} <= self._confirmed() else "down"

    def attached(self, task_id: str | None, *, counts: bool = True) -> None:
        if task_id is None:
            self._everything += 1
        else:
            tasks = self._followed[bucket_of(task_id)]
            if task_id not in tasks:
                self._known.follow(task_id)
            tasks[task_id] = tasks.get(task_id, 0) + 1
            if counts:
                self.peers.changed(task_id)
            else:
                self._uncounted[task_id] += 1
        self._changed.set()

    def _tasks(self) -> list[str]:
        return [task_id for tasks in self._followed for task_id in tasks]

    def _count(self, task_id: str) -> int:
        return self._followed[bucket_of(task_id)].get(task_id, 0) - self._uncounted[task_id]

    def detached(self, task_id: str | None, *, counts: bool = True) -> None:
        if task_id is None:
            self._everything -= 1
            return
        tasks = self._followed[bucket_of(task_id)]
        tasks[task_id] -= 1
        if counts:
            self.peers.changed(task_id)
        else:
            self._uncounted[task_id] -= 1
            if not self._uncounted[task_id]:
                del self._uncounted[task_id]
        if not tasks[task_id]:
            del tasks[task_id]
            self._heard_of.pop(task_id, None)
            self._known.unfollow(task_id)
        # What nobody follows any more is left at the next check: somebody may come back.

    def _wanted(self) -> set[int]:
        if self._everything:
            return {TOLD, *range(BUCKETS)}
        return {TOLD, *(bucket for bucket, tasks in enumerate(self._followed) if tasks)}

    def _confirmed(self) -> set[int]:
        return {bucket for ear in self._ears.values() for bucket in ear.confirmed}

    async def run(
        self, sink: CommitSink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """See :meth:`Broadcast.run`. Where Redis is away this starts all the same after a while:
        what is confirmed later is a gap.
        """
        self._sink = sink
        self._begun = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._place, nursery, name="redis: subscriptions")
                nursery.start_soon(self._tell_gaps, name="redis: gaps")
                with trio.move_on_after(self._commands.timeout_s):
                    while not self._wanted() <= self._confirmed():
                        self._complete = trio.Event()
                        await self._complete.wait()
                self._begun = True
                nursery.start_soon(self._check, name="redis: positions")
                task_status.started()
        finally:
            self._sink = None
            self._ears.clear()
            self._heard_of.clear()

    async def _place(self, nursery: trio.Nursery) -> None:
        """Give each bucket that is wanted to the ear at its server."""
        nodes = self._commands.nodes
        kept: set[int] = set()
        while True:
            self._changed = trio.Event()
            wanted = self._wanted() | kept
            by_place: dict[Place, set[int]] = {place: set() for place in self._ears}
            if self._sharded:
                for bucket in wanted:
                    place = nodes.place_of(0 if bucket == TOLD else bucket)
                    by_place.setdefault(place, set()).add(bucket)
            else:
                by_place.setdefault(nodes.place_of(0), set()).update(wanted)
            for place, buckets in by_place.items():
                if place not in self._ears:
                    self._ears[place] = self._ear(place)
                    nursery.start_soon(self._listen, place, name="redis: listener")
                self._ears[place].want(buckets)
            kept = wanted
            with trio.move_on_after(CHECK_S) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                kept = set()

    def _ear(self, place: Place) -> Ear:
        return Ear(
            place,
            self._commands.nodes,
            [*self._commands.keys.channels, self._commands.keys.told],
            sharded=self._sharded,
            heard=self._heard,
            confirmed=self._confirm,
        )

    async def _listen(self, place: Place) -> None:
        """Listen at one server, and come back when that ends."""
        ear, tries = self._ears[place], 0
        while True:
            started = trio.current_time()
            try:
                await ear.listen(self._commands.crossing)
            except (*CONNECTION_ERRORS, StoreUnavailable) as error:
                log.warning("redis_listener_lost", error=type(error).__name__)
            tries = 1 if trio.current_time() - started > CHECK_S else tries + 1
            jitter = random.random()
            await trio.sleep(_AGAIN.delay_ms(tries, jitter=jitter) / 1000)
            if not self._commands.undivided:
                await self._commands.refresh()
                self._changed.set()
                heard = range(BUCKETS) if self._sharded else (0,)
                if place not in set(map(self._commands.nodes.place_of, heard)):
                    del self._ears[place]
                    return

    def _confirm(self, bucket: int) -> None:
        if bucket == TOLD:
            self.peers.nudge()
        elif self._begun:
            self._gaps.add(bucket)
            self._gap.set()
        if not self._begun and self._wanted() <= self._confirmed():
            self._complete.set()

    async def _tell_gaps(self) -> None:
        """Confirmations come many at once: one interruption for all of them."""
        while True:
            await self._gap.wait()
            self._gap = trio.Event()
            gaps, self._gaps = self._gaps, set()
            tasks = [task_id for bucket in gaps for task_id in self._followed[bucket]]
            for task_id in tasks:
                self._heard_of.pop(task_id, None)
                self._known.follow(task_id)
            self._interrupt(tasks)

    def _interrupt(self, task_ids: Iterable[str] | None) -> None:
        if self._sink is not None:
            self._sink.interrupted(task_ids)

    def _heard(self, bucket: int, message: bytes) -> None:
        if bucket == TOLD:
            self.peers.nudge()
            return
        if bucket in self._gaps:
            return  # who follows it is to read first: what is before this may be lost
        length = int.from_bytes(message[:2], "big")
        try:
            task_id = message[2 : 2 + length].decode()
            if not self._everything and task_id not in self._followed[bucket]:
                return
            commit = self._commit(task_id, unpack(message[2 + length :]))
        except Exception as error:
            # Who may publish there could send anything; what was lost by it is read.
            log.warning("redis_announcement_unreadable", error=type(error).__name__)
            self._gaps.add(bucket)
            self._gap.set()
            return
        if commit is None:
            self._interrupt([task_id])
            return
        record = commit.record
        if task_id in self._followed[bucket]:
            there = (record.epoch, record.next_index)
            if _is_cut(self._heard_of.get(task_id), there):
                self._interrupt([task_id])
            self._heard_of[task_id] = there
        if self._sink is not None:
            self._sink.committed(commit)

    def _commit(self, task_id: str, told: Any) -> Commit | None:
        """What was announced; None where only the fact was, or the task's body is not known."""
        if told[0] == _FACT:
            return None
        kind, ts, moved, rows, head = told
        record = self._known.record(task_id, head, self._known.get(task_id))
        if record is None:
            return None
        entries: Sequence[Entry] = ()
        if rows:
            first = record.next_index - len(rows)
            entries = entries_of(
                rows, task_id=task_id, epoch=record.epoch, first=first, ts=ts, moved=moved
            )
        return Commit(
            record,
            entries,
            created=kind == _CREATED,
            deleted=kind == _DELETED,
            replaced=kind == _REPLACED,
        )

    async def _check(self) -> None:
        """The backstop: compare positions, and see that it is still the same store."""
        while True:
            await trio.sleep(CHECK_S)
            try:
                await self._check_store()
                tasks = self._tasks()
                for start in range(0, len(tasks), CHECK_TASKS):
                    await self._check_positions(tasks[start : start + CHECK_TASKS])
            except StoreUnavailable:
                continue

    async def _check_store(self) -> None:
        commands = self._commands
        key = commands.keys.store
        found = await commands.do(commands.plain(0, "GET", key))
        if found == self._store_id:
            return
        if found is None:
            await commands.do(commands.plain(0, "SET", key, commands.request().hex(), "NX"))
            found = await commands.do(commands.plain(0, "GET", key))
        log.error("redis_data_lost")
        self._store_id = found
        self._interrupt(None)

    async def _check_positions(self, tasks: list[str]) -> None:
        keys = self._commands.keys
        known = self._known.first_read
        before = {task_id: self._heard_of.get(task_id) or known(task_id) for task_id in tasks}
        replies = await self._commands.do_all(
            [
                self._commands.plain(bucket_of(id_), "HMGET", keys.head(id_), "epoch", "next")
                for id_ in tasks
            ]
        )
        await trio.sleep(GRACE_S)
        behind: list[str] = []
        for task_id, (epoch, next_index) in zip(tasks, replies, strict=True):
            if task_id not in self._followed[bucket_of(task_id)]:
                continue
            there = GONE if epoch is None else (epoch.decode(), int(next_index))
            heard = self._heard_of.get(task_id) or known(task_id)
            if heard is None and there is not GONE:
                heard = there
            lags = heard is None or heard[0] != there[0] or heard[1] < there[1]
            if lags or _is_cut(before[task_id], there):
                behind.append(task_id)
                self._heard_of[task_id] = there
            else:
                self._heard_of.setdefault(task_id, there)
        if behind:
            self._interrupt(behind)


def _is_cut(known: Position | None, there: Position) -> bool:
    """Whether a log has lost what was known of it, and gives its indexes anew."""
    return known is not None and known[0] == there[0] and there[1] < known[1]
