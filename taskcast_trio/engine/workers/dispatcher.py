"""The dispatcher: finds workers for tasks, and tasks for workers.

Each process serves the workers that are connected to it, and the pulls that wait in it. A task that
none of them can take is put into its queue, where every process finds it; those that have room for
it are told. So a task goes where there is room, whatever process it was made in, and of several
that reach for it the task's own transition decides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Set
from itertools import chain
from typing import Final

import structlog
import trio

from taskcast_trio.core.assignment import (
    DISPATCH,
    barred_from,
    cost_of,
    due_of,
    is_orphan,
    waits,
)
from taskcast_trio.core.errors import (
    NoRoom,
    NotPending,
    StoreUnavailable,
    TaskNotFound,
    WorkerNotFound,
)
from taskcast_trio.core.matching import Candidate, rank
from taskcast_trio.core.model import Task
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import TaskRecord, Timer

from ..timer_loop import Outage
from .assignments import Assignments
from .parties import Session, Waiter
from .queues import Queues
from .registry import AGAIN_MS, Registry

TIMER_LEASE_MS: Final = 5000
HAND_OVER_MS: Final = 2500
"""How long another process may take to ask: what it is told arrives within a second."""
MAX_ASKED: Final = 10_000
MAX_ANNOUNCED: Final = 100
SKIPPED: Final = 16
"""How many tasks of a queue are looked at that a worker's token does not let it have."""

SESSION_MODES: Final = frozenset({"ws-offer", "ws-race"})
PULL_MODES: Final = frozenset({"pull"})

log = structlog.get_logger(__name__)


class Dispatcher:
    """``notify`` is told of the timers that are set for it."""

    def __init__(
        self,
        store: ShortTermStore,
        registry: Registry,
        assignments: Assignments,
        queues: Queues,
        *,
        clock: Callable[[], int],
        offer_timeout_ms: int,
        notify: Callable[[int], None],
        hand_over: Callable[[str, str], bool],
    ) -> None:
        self._store = store
        self._registry = registry
        self._assignments = assignments
        self._queues = queues
        self._clock = clock
        self._offer_timeout_ms = offer_timeout_ms
        self._notify = notify
        self._hand_over = hand_over
        self.sessions: dict[str, Session] = {}
        self.waiters: dict[Waiter, None] = {}
        self._asked: OrderedDict[str, dict[str, int]] = OrderedDict()
        """By task: when each worker was asked last, or declined."""
        self._resting: dict[str, float] = {}
        """Until when a worker that came gets nothing that waited before."""
        self._to_serve: dict[str, None] = {}
        self._some_to_serve = trio.Event()

    # For a task ----------------------------------------------------------------------------------

    async def handle(self, timer: Timer) -> None:
        """Find a worker for the task whose timer is due, or let it wait."""
        record = await self._store.get(timer.task_id)
        while record is not None and is_orphan(record.task):
            if await self._assignments.take_back(record):
                return
            record = await self._store.get(timer.task_id)
        if record is None:
            return
        task, now_ms = record.task, self._clock()
        if not waits(task):
            await self._set(timer, None)
        elif due_of(task, now_ms) > now_ms:
            await self._set(timer, due_of(task, now_ms))
        elif task.assign_mode == "pull":
            await self._give(record, timer)
        elif task.assign_mode == "ws-offer":
            await self._offer(record, timer)
        else:
            for session in self._able_sessions(task):
                session.announce(task, now_ms + self._offer_timeout_ms)
            await self._queues.park(record, timer)

    async def _set(self, timer: Timer, due_ms: int | None) -> bool:
        done = await self._store.set_timer(timer.task_id, DISPATCH, due_ms, if_due=timer.due_ms)
        if due_ms is not None:
            self._notify(due_ms)
        return done

    async def _give(self, record: TaskRecord, timer: Timer) -> None:
        task = record.task
        waiters: dict[str, Waiter] = {}
        for waiter in self.waiters:
            if waiter.given is None and waiter.may(task):
                waiters.setdefault(waiter.worker_id, waiter)
        ranked = self._rank(task, {id_: (w.since, 0) for id_, w in waiters.items()})
        ready, again_ms = self._not_just_asked(task, ranked)
        if ready:
            waiters[ready[0]].give(task.id)
        elif again_ms is not None:
            await self._set(timer, again_ms)
        else:
            await self._queues.park(record, timer)

    async def _offer(self, record: TaskRecord, timer: Timer) -> None:
        task, now_ms = record.task, self._clock()
        for session in self.sessions.values():
            session.offers.pop(task.id, None)
        await self._registry.refresh()
        ready, again_ms = self._not_just_asked(
            task, self._rank(task, self._able_here(task) | self._able_elsewhere())
        )
        if ready and ready[0] not in self.sessions:
            # The process that has it asks; where it does not, others are next.
            if await self._set(timer, now_ms + HAND_OVER_MS):
                self.asked(task.id, ready[0])
                if not self._hand_over(task.id, ready[0]):
                    await self.requeue(task.id)
        elif ready:
            until_ms = now_ms + self._offer_timeout_ms
            if await self._set(timer, until_ms):
                await self._ask(ready[0], record, until_ms)
        elif again_ms is not None:
            await self._set(timer, again_ms)
        else:
            await self._queues.park(record, timer)

    async def ask_here(self, task_id: str, worker_id: str) -> None:
        """Another process has chosen this worker for the task."""
        session, record = self.sessions.get(worker_id), await self._store.get(task_id)
        if session is None or record is None or not waits(record.task):
            return
        able = self._able_here(record.task)
        fits = worker_id in able and self._rank(record.task, {worker_id: able[worker_id]})
        if not fits or self._again_ms(task_id, worker_id) > self._clock():
            await self.requeue(task_id)
            return
        until_ms = self._clock() + self._offer_timeout_ms
        if await self._store.set_timer(task_id, DISPATCH, until_ms):
            await self._ask(worker_id, record, until_ms)

    async def _ask(self, worker_id: str, record: TaskRecord, until_ms: int) -> None:
        session, task = self.sessions.get(worker_id), record.task
        if session is None:  # it has left in this moment
            await self.requeue(task.id)
            return
        self.asked(task.id, worker_id)
        session.offer(task, cost_of(task), until_ms)

    def asked(self, task_id: str, worker_id: str) -> None:
        """Others come first now."""
        self._asked.setdefault(task_id, {})[worker_id] = self._clock()
        self._asked.move_to_end(task_id)
        if len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)

    def settled(self, task_id: str) -> None:
        """The task has found its worker, or needs none."""
        self._asked.pop(task_id, None)

    def _not_just_asked(self, task: Task, ranked: list[str]) -> tuple[list[str], int | None]:
        """Those who may be asked now; and where there is none, when the first one may."""
        now_ms = self._clock()
        again_ms = {id_: self._again_ms(task.id, id_) for id_ in ranked}
        ready = [id_ for id_ in ranked if again_ms[id_] <= now_ms]
        return ready, None if ready else min(again_ms.values(), default=None)

    def _again_ms(self, task_id: str, worker_id: str) -> int:
        """From when on the worker may be asked for the task."""
        row = self._registry.row(worker_id)
        declined_ms = 0 if row is None else row.declined.get(task_id, 0)
        return max(self._asked.get(task_id, {}).get(worker_id, 0), declined_ms) + AGAIN_MS

    def _able_sessions(self, task: Task) -> list[Session]:
        return [self.sessions[id_] for id_ in self._rank(task, self._able_here(task))]

    def _able_here(self, task: Task) -> dict[str, tuple[float, int]]:
        now_ms = self._clock()
        return {
            id_: (0.0, session.offered(now_ms))
            for id_, session in self.sessions.items()
            if session.may(task)
        }

    def _able_elsewhere(self) -> dict[str, tuple[float, int]]:
        """The workers that are connected to other processes."""
        return {
            row.id: (0.0, 0)
            for row in self._registry.all()
            if row.session and row.id not in self.sessions
        }

    def _rank(self, task: Task, able: dict[str, tuple[float, int]]) -> list[str]:
        """``able`` says of each since when it waits, and how many slots it may be about to use."""
        candidates = []
        for worker_id, (since, offered) in able.items():
            row = self._registry.row(worker_id)
            if row is not None and row.is_open:
                candidates.append(
                    Candidate(
                        worker_id=worker_id,
                        rule=row.rule,
                        capacity=row.capacity,
                        used_slots=row.used_slots + offered,
                        weight=row.weight,
                        since_ms=since or row.connected_ms,
                    )
                )
        ranked = rank(
            candidates,
            task_type=task.type or None,
            tags=task.tags or (),
            cost=cost_of(task),
            blacklist=barred_from(task),
            declined=self._asked.get(task.id, {}),
        )
        return [candidate.worker_id for candidate in ranked]

    async def requeue(self, task_id: str) -> None:
        """Find another worker for the task, at once."""
        now_ms = self._clock()
        if await self._store.set_timer(task_id, DISPATCH, now_ms):
            self._notify(now_ms)

    # For a worker --------------------------------------------------------------------------------

    def rest(self, worker_id: str, seconds: float) -> None:
        """What waits is not for the worker yet."""
        self._resting[worker_id] = trio.current_time() + seconds

    def leave(self, worker_id: str) -> None:
        """The worker is not connected here any more."""
        self.sessions.pop(worker_id, None)
        self._resting.pop(worker_id, None)

    def here(self) -> Set[str]:
        """The workers that can be given something in this process."""
        waiting = (waiter.worker_id for waiter in self.waiters)
        return dict.fromkeys(chain(self.sessions, waiting)).keys()

    def serve(self, worker_id: str) -> None:
        """The worker may have room: see what waits for it. Never waits."""
        self._serve_some({worker_id: None})

    def _serve_some(self, worker_ids: dict[str, None]) -> None:
        for waiter in self.waiters:
            if waiter.worker_id in worker_ids:
                waiter.wake()
        for worker_id in worker_ids:
            if worker_id in self.sessions:
                self._to_serve[worker_id] = None
                self._some_to_serve.set()

    def serve_all(self, kinds: Iterable[str] | None = None) -> None:
        """These queues (None: any) may have something."""
        kinds = None if kinds is None else list(kinds)
        able: dict[str, None] = {}
        for worker_id in self.here():
            row = self._registry.get(worker_id)
            if row is None or row.status != "idle":
                continue
            free = row.capacity - row.used_slots
            if self._queues.fitting(row, SESSION_MODES | PULL_MODES, free, kinds):
                able[worker_id] = None
        self._serve_some(able)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the workers that are connected here, until cancelled."""
        task_status.started()
        outage = Outage("tasks for workers")
        while True:
            await self._some_to_serve.wait()
            self._some_to_serve = trio.Event()
            while self._to_serve:
                worker_id = next(iter(self._to_serve))
                del self._to_serve[worker_id]
                try:
                    await self._serve(worker_id)
                except StoreUnavailable as error:
                    self._to_serve[worker_id] = None
                    await outage.wait(error)
                else:
                    outage.over()

    async def _serve(self, worker_id: str) -> None:
        if self._resting.get(worker_id, 0.0) > trio.current_time():
            return
        self._resting.pop(worker_id, None)
        skipped: set[str] = set()
        while (session := self.sessions.get(worker_id)) is not None:
            row = self._registry.get(worker_id)
            if row is None or row.status != "idle":
                return
            free = row.capacity - row.used_slots - session.offered(self._clock())
            kinds = [
                kind
                for kind in self._queues.fitting(row, SESSION_MODES, free)
                if kind not in skipped
            ]
            kind = await self._queues.first(kinds)
            if kind is None:
                return
            if self._queues.mode_of(kind) == "ws-race":
                skipped.add(kind)
                await self._announce(kind, session)
            elif not await self._offer_first(kind, worker_id, session):
                skipped.add(kind)

    async def _announce(self, kind: str, session: Session) -> None:
        now_ms = self._clock()
        for timer in await self._queues.peek(kind, MAX_ANNOUNCED):
            if session.knows(timer.task_id, now_ms):
                continue
            record = await self._store.get(timer.task_id)
            if record is None or not waits(record.task):
                await self._queues.put_back(timer, None)
            elif session.may(record.task):
                session.announce(record.task, now_ms + self._offer_timeout_ms)

    async def _offer_first(self, kind: str, worker_id: str, session: Session) -> bool:
        """Offer the first task of the queue; False where there is nothing more to offer now."""
        found = await self._take(kind, worker_id, session.may)
        if found is None:
            return False
        timer, record = found
        until_ms = self._clock() + self._offer_timeout_ms
        if await self._queues.move(timer, record, until_ms):
            self._notify(until_ms)
            await self._ask(worker_id, record, until_ms)
        return True

    async def _take(
        self, kind: str, worker_id: str, may: Callable[[Task], bool]
    ) -> tuple[Timer, TaskRecord] | None:
        """The first task of the queue that the worker may have; for a while nobody else gets it."""
        refused: list[tuple[Timer, TaskRecord]] = []
        found: tuple[Timer, TaskRecord] | None = None
        while found is None and len(refused) < SKIPPED:
            timer = await self._queues.take(kind)
            if timer is None:
                break
            record = await self._store.get(timer.task_id)
            if record is None or not waits(record.task):
                await self._queues.put_back(timer, None)
                continue
            again_ms = self._again_ms(timer.task_id, worker_id)
            if again_ms > self._clock():
                if await self._queues.move(timer, record, again_ms):
                    self._notify(again_ms)
            elif may(record.task):
                found = timer, record
            else:
                refused.append((timer, record))
        for timer, record in refused:
            await self._queues.put_back(timer, record)
        return found

    async def take_for(self, waiter: Waiter) -> Task | None:
        """Assign the task that the waiter was given, or one that waits; None where there is none.

        Cancellation leaves a task assigned or not; who is cancelled asks.
        """
        given, waiter.given = waiter.given, None
        if given is not None:
            row = await self._registry.fetch(waiter.worker_id)
            is_open = row is not None and row.is_open
            if is_open and self._again_ms(given, waiter.worker_id) <= self._clock():
                task = await self._assign(waiter.worker_id, given)
                if task is not None:
                    return task
            await self.requeue(given)
        skipped: set[str] = set()
        while True:
            row = await self._registry.fetch(waiter.worker_id)
            if row is None or row.status != "idle":
                return None
            kinds = [
                kind
                for kind in self._queues.fitting(row, PULL_MODES, row.capacity - row.used_slots)
                if kind not in skipped
            ]
            kind = await self._queues.first(kinds)
            if kind is None:
                return None
            found = await self._take(kind, waiter.worker_id, waiter.may)
            if found is None:
                skipped.add(kind)
                continue
            timer, record = found
            task = await self._assign(waiter.worker_id, timer.task_id)
            if task is not None:
                return task
            await self._queues.put_back(timer, record)

    async def _assign(self, worker_id: str, task_id: str) -> Task | None:
        try:
            task = await self._assignments.assign(worker_id, task_id)
        except (NoRoom, NotPending, TaskNotFound, WorkerNotFound):
            return None
        self.settled(task_id)
        return task
