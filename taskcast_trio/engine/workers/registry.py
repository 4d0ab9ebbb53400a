"""The workers that every process of the store knows, and the slots that their tasks take.

A worker is a row of a table. Where other processes share the store, each change of it is a swap of
the row as it was known, so that of two that take the last slot one is refused. Where this process
has the store for itself its memory is the truth: what has to outlast it is written at once, the
rest within a second, and slots are counted anew from the tasks at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import msgspec
import trio
from msgspec import Struct
from msgspec.structs import replace

from taskcast_trio.core.errors import NoRoom, RateLimited, WorkerNotFound
from taskcast_trio.core.matching import MatchRule, has_room
from taskcast_trio.storage.protocols import TableStore

TABLE: Final = "workers"
BEAT_MS: Final = 5000
MAX_CANCELS: Final = 256
MAX_DECLINED: Final = 256
AGAIN_MS: Final = 1000
"""How often at most the same worker is asked for the same task."""

Decide: TypeAlias = Callable[["Worker | None"], "Worker | None"]


class Worker(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker as its row has it. Times are Unix ms.

    ``session`` names its connection, and is empty where it has none. ``offline_ms`` is since when
    nothing is heard of it; ``gone`` says that it has left, and only its tasks are kept for a while.
    ``held`` is what its tasks cost, by their ids; ``orphans`` those of them that it had before it
    registered anew, and until when it may say that it has them still; ``cancels`` the tasks that it
    is to be told to stop, and why, where it has to ask; ``declined`` when it gave back the tasks
    for which it is not to be asked again so soon.
    """

    id: str
    rule: MatchRule
    capacity: int
    weight: float
    mode: Literal["pull", "websocket"]
    connected_ms: int
    heartbeat_ms: int
    metadata: bytes | None = None
    owner: str | None = None
    session: str = ""
    draining: bool = False
    offline_ms: int | None = None
    gone: bool = False
    held: dict[str, int] = {}
    orphans: dict[str, int] = {}
    cancels: dict[str, str] = {}
    declined: dict[str, int] = {}

    @property
    def used_slots(self) -> int:
        return sum(self.held.values())

    @property
    def is_open(self) -> bool:
        """Whether it may get more tasks, where it has room for them."""
        return self.offline_ms is None and not self.gone and not self.draining

    @property
    def status(self) -> Literal["idle", "busy", "draining", "offline"]:
        if self.offline_ms is not None or self.gone:
            return "offline"
        if self.draining:
            return "draining"
        return "idle" if self.used_slots < self.capacity else "busy"


_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder(Worker).decode


class Registry:
    """What this process knows of the table, and how it changes it."""

    def __init__(
        self,
        store: TableStore,
        *,
        clock: Callable[[], int],
        shared: bool,
        beat_ms: int = BEAT_MS,
        opened: Callable[[str], None] = lambda worker_id: None,
    ) -> None:
        """``beat_ms`` is how old the heartbeat in a row may be while there are newer ones.
        ``opened`` is called with a worker that may have tasks, and could not before, where it was
        another process that said so, or its heartbeat.
        """
        self._store = store
        self._clock = clock
        self._shared = shared
        self._beat_ms = beat_ms
        self._opened = opened
        self._rows: dict[str, Worker] = {}
        self._stored: dict[str, bytes] = {}
        self._beats: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._steps = 0
        self._as_of: dict[str, int] = {}
        """By worker: at which of all steps its row was so, at the least: that in which its read
        began or its swap ended. What was so before that is older.
        """
        self._loaded = 0
        self._writing = trio.Lock()

    def row(self, worker_id: str) -> Worker | None:
        """As `get`, and faster; its heartbeat may be an older one."""
        return self._rows.get(worker_id)

    def get(self, worker_id: str) -> Worker | None:
        """The worker as it was known last, those that are gone too."""
        row = self._rows.get(worker_id)
        beat_ms = self._beats.get(worker_id, 0)
        if row is None or beat_ms <= row.heartbeat_ms:
            return row
        return replace(row, heartbeat_ms=beat_ms)

    def all(self) -> list[Worker]:
        return [row for worker_id in list(self._rows) if (row := self.get(worker_id)) is not None]

    async def load(self) -> None:
        """Read the table."""
        as_of = self._step()
        found = await self._store.rows(TABLE)
        for worker_id in self._rows.keys() | found.keys():
            value = found.get(worker_id)
            if self._as_of.get(worker_id, 0) >= as_of:
                continue
            if self._stored.get(worker_id) != value:
                self._put(worker_id, value, as_of)
            self._as_of[worker_id] = as_of
        before, self._loaded = self._loaded, as_of
        for worker_id in self._as_of.keys() - self._rows.keys():
            if self._as_of[worker_id] <= before:
                del self._as_of[worker_id]

    async def refresh(self) -> None:
        """Read the table where others may have changed it."""
        if self._shared:
            await self.load()

    async def fetch(self, worker_id: str) -> Worker | None:
        """The worker as it is now."""
        if self._shared:
            as_of = self._step()
            value = await self._store.row(TABLE, worker_id)
            if self._as_of.get(worker_id, 0) < as_of:
                self._put(worker_id, value, as_of)
        return self.get(worker_id)

    def _step(self) -> int:
        self._steps += 1
        return self._steps

    def _put(self, worker_id: str, value: bytes | None, as_of: int) -> None:
        self._as_of[worker_id] = as_of
        if value is None:
            self._rows.pop(worker_id, None)
            self._stored.pop(worker_id, None)
            self._beats.pop(worker_id, None)
        else:
            old, new = self._rows.get(worker_id), _decode(value)
            self._rows[worker_id] = new
            self._stored[worker_id] = value
            if old is not None and old.draining and not new.draining:
                self._opened(worker_id)

    async def change(
        self, worker_id: str, decide: Decide, *, durable: bool = False, most: int | None = None
    ) -> Worker | None:
        """Replace the row by what ``decide`` makes of it, and return that; None is no row.

        ``decide`` may be called again, on what the row has become meanwhile; a row that it returns
        as it is is not written. ``durable``: the change has to outlast this process.

        Raises:
            RateLimited: it would be a new row, and there are ``most``.
        """
        if self._shared:
            return await self._swap(worker_id, decide, most)
        row = self.get(worker_id)
        new = decide(row)
        if new is row:
            return row
        if row is None and most is not None and len(self._rows) >= most:
            raise too_many(most)
        if new is None:
            self._rows.pop(worker_id, None)
            self._beats.pop(worker_id, None)
        else:
            self._rows[worker_id] = new
        self._dirty.add(worker_id)
        if durable:
            await self._write(worker_id)
        return new

    async def _swap(self, worker_id: str, decide: Decide, most: int | None) -> Worker | None:
        is_fresh = False
        while True:
            known, row = self._stored.get(worker_id), self.get(worker_id)
            try:
                new = decide(row)
            except (NoRoom, WorkerNotFound):
                if is_fresh:
                    raise
                new = row
            if new is row:
                if is_fresh:
                    return row
                await self.fetch(worker_id)
                is_fresh = True
                continue
            value = None if new is None else _encode(new)
            there = await self._store.swap_row(TABLE, worker_id, value, known=known, most=most)
            self._put(worker_id, there, self._step())
            if there == value:
                return new
            if there is None and known is None and most is not None:
                raise too_many(most)
            is_fresh = True

    async def _write(self, worker_id: str) -> None:
        async with self._writing:
            row = self.get(worker_id)
            value = None if row is None else _encode(row)
            known = self._stored.get(worker_id)
            self._dirty.discard(worker_id)  # it may change again while this is written
            try:
                while value != known:
                    there = await self._store.swap_row(TABLE, worker_id, value, known=known)
                    if there is None:
                        self._stored.pop(worker_id, None)
                    else:
                        self._stored[worker_id] = there
                    known = there
            finally:
                if value != known:
                    self._dirty.add(worker_id)

    def beat(self, worker_id: str) -> None:
        """A sign of life, which its row learns of later."""
        if worker_id in self._rows:
            self._beats[worker_id] = self._clock()

    async def flush(self) -> None:
        """Write what has waited for it."""
        for worker_id, beat_ms in list(self._beats.items()):
            row = self._rows.get(worker_id)
            if row is None:
                self._beats.pop(worker_id, None)
            elif row.offline_ms is not None and not row.gone and beat_ms > row.offline_ms:
                await self.change(worker_id, _beaten(beat_ms), durable=True)
                self._opened(worker_id)
            elif beat_ms - row.heartbeat_ms >= self._beat_ms:
                await self.change(worker_id, _beaten(beat_ms))
        for worker_id in list(self._dirty):
            await self._write(worker_id)

    # Slots ---------------------------------------------------------------------------------------

    async def reserve(self, worker_id: str, task_id: str, cost: int) -> None:
        """Take the slots of a task.

        Raises:
            WorkerNotFound: there is no such worker, or it is gone.
            NoRoom: it has not that many.
        """

        def decide(row: Worker | None) -> Worker:
            if row is None or row.gone:
                raise WorkerNotFound(worker_id)
            if task_id in row.held:
                return row
            if not has_room(row.capacity, row.used_slots, cost):
                raise NoRoom(worker_id)
            cancels = {id_: reason for id_, reason in row.cancels.items() if id_ != task_id}
            return replace(row, held={**row.held, task_id: cost}, cancels=cancels)

        await self.change(worker_id, decide)

    async def adopt(self, worker_id: str, task_id: str, cost: int) -> None:
        """Count a task that the worker has, whether or not there is room."""

        def decide(row: Worker | None) -> Worker | None:
            if row is None or task_id in row.held:
                return row
            return replace(row, held={**row.held, task_id: cost})

        await self.change(worker_id, decide)

    async def find_again(self, worker_id: str, task_id: str, cost: int, *, until_ms: int) -> None:
        """The worker had this task before the table was lost: it has until ``until_ms`` to come
        back, or to say that it has it still.
        """

        def decide(row: Worker | None) -> Worker:
            now_ms = self._clock()
            if row is None:
                row = Worker(
                    id=worker_id,
                    rule=MatchRule(),
                    capacity=1,
                    weight=0.0,
                    mode="pull",
                    connected_ms=now_ms,
                    heartbeat_ms=now_ms,
                    offline_ms=now_ms,
                    gone=True,
                )
            if task_id in row.held:
                return row
            held, orphans = {**row.held, task_id: cost}, {**row.orphans, task_id: until_ms}
            return replace(row, held=held, orphans=orphans)

        await self.change(worker_id, decide)

    async def reclaim(self, worker_id: str, task_ids: set[str]) -> None:
        """The worker has these tasks still."""

        def decide(row: Worker | None) -> Worker | None:
            if row is None or task_ids.isdisjoint(row.orphans):
                return row
            left = {id_: ms for id_, ms in row.orphans.items() if id_ not in task_ids}
            return replace(row, orphans=left)

        await self.change(worker_id, decide, durable=True)

    async def decline(self, worker_id: str, task_id: str) -> None:
        """The worker gives a task back, which every process is to know before the task is free."""

        def decide(row: Worker | None) -> Worker | None:
            if row is None:
                return None
            now_ms = self._clock()
            recent = {id_: ms for id_, ms in row.declined.items() if ms + AGAIN_MS > now_ms}
            newest = dict(list(recent.items())[1 - MAX_DECLINED :])
            return replace(row, declined={**newest, task_id: now_ms})

        await self.change(worker_id, decide)

    async def release(self, worker_id: str, task_id: str, *, reason: str | None = None) -> None:
        """Give the slots of a task back; ``reason`` is why the worker is to stop it."""

        def decide(row: Worker | None) -> Worker | None:
            if row is None or task_id not in row.held:
                return row
            held = {id_: cost for id_, cost in row.held.items() if id_ != task_id}
            cancels = row.cancels
            if reason is not None and not row.session and len(cancels) < MAX_CANCELS:
                cancels = {**cancels, task_id: reason}
            orphans = {id_: due_ms for id_, due_ms in row.orphans.items() if id_ != task_id}
            return replace(row, held=held, orphans=orphans, cancels=cancels)

        await self.change(worker_id, decide)


def too_many(most: int) -> RateLimited:
    return RateLimited(f"There are {most} workers, as many as there may be (limits.workers)")


def _beaten(beat_ms: int) -> Decide:
    def decide(row: Worker | None) -> Worker | None:
        if row is None:
            return None
        offline_ms = row.offline_ms
        if offline_ms is not None and not row.gone and beat_ms > offline_ms:
            offline_ms = None  # it was the store, or a clock, that kept silent
        return replace(row, heartbeat_ms=max(beat_ms, row.heartbeat_ms), offline_ms=offline_ms)

    return decide
