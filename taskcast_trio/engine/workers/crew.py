"""The parts that serve workers, wired together, and the tasks that run for them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import Final

import trio
from msgspec.structs import replace

from taskcast_trio.config.schema import WorkerDefaults
from taskcast_trio.core import assignment
from taskcast_trio.core.assignment import DISPATCH, LEASE, is_held
from taskcast_trio.core.errors import StoreUnavailable, TaskEnded, TaskNotFound
from taskcast_trio.core.machine import MOVES
from taskcast_trio.core.model import TERMINAL
from taskcast_trio.storage.protocols import Backend
from taskcast_trio.storage.records import Commit
from taskcast_trio.storage.tiered import TieredStore

from ..bulletin import Bulletin
from ..engine import TaskEngine
from ..metrics import Metrics
from ..timer_loop import Outage, TimerLoop, first
from .assignments import Assignments, Ended
from .dispatcher import TIMER_LEASE_MS, Dispatcher
from .hints import Hints
from .leases import Leases
from .queues import Queues
from .registry import BEAT_MS, Registry, Worker

SERVE_AFTER_S: Final = 1.0
"""How long a worker that came, or was set idle, is left alone by what waits."""
LOOK_AROUND_S: Final = 1.0
RECONCILE_S: Final = 15.0
AT_ONCE: Final = 16
LOOK_AGAIN_S: Final = 60.0
LOOK_AGAIN_SHARED_S: Final = 1.0
EVERYTHING: Final = 2**52
LIVE: Final = frozenset(MOVES) - TERMINAL


class Crew:
    """The parts, and what runs; what is asked for is in `service`."""

    def __init__(
        self,
        defaults: WorkerDefaults,
        engine: TaskEngine,
        backend: Backend,
        bulletin: Bulletin,
        metrics: Metrics,
        *,
        most_workers: int,
        noise: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._engine = engine
        self._store = engine.store
        self._hot = backend.store
        self._clock = engine.clock
        self._noise = noise
        self._metrics = metrics
        self._peers = backend.peers
        self._most_workers = most_workers
        self._closed = False
        self._news = trio.Event()
        self._heard_kinds: set[str] = set()
        self._heard_workers: set[str] = set()
        self._heard_tasks: dict[str, str] = {}
        self._nursery: trio.Nursery | None = None
        self._suspects: set[tuple[str, str]] = set()
        self._to_take_in: dict[str, None] = {}
        clock, timetable = engine.clock, engine.timetable
        shared = backend.peers is not None
        self._shared = shared
        timeout_ms = defaults.heartbeat_timeout_ms or max(
            3 * defaults.heartbeat_interval_ms, 90_000
        )
        # However short the timeout is, a worker has time for three signs of life.
        self.heartbeat_s: Final = min(defaults.heartbeat_interval_ms, timeout_ms / 3) / 1000
        self.timeout_s: Final = timeout_ms / 1000
        self._grace_ms = defaults.disconnect_grace_ms
        name = f"{noise(64):016x}"
        self.hints = Hints(bulletin, name=name, others=self._has_others, heard=self._hear)
        self.registry = Registry(
            self._hot,
            clock=clock,
            shared=shared,
            beat_ms=min(BEAT_MS, timeout_ms // 4),
            opened=self._serve_later,
        )
        self.queues = Queues(self._hot, clock=clock, filled=self._filled)
        self.assignments = Assignments(
            self._store,
            self.registry,
            engine.changes,
            backend.broadcast,
            clock=clock,
            lease_ms=timeout_ms,
            metrics=metrics,
            ended=self._ended,
            freed=self._freed,
        )
        self.dispatcher = Dispatcher(
            self._store,
            self.registry,
            self.assignments,
            self.queues,
            clock=clock,
            offer_timeout_ms=defaults.offer_timeout_ms,
            notify=lambda due_ms: timetable.set({DISPATCH: due_ms}),
            hand_over=self.hints.ask,
        )
        self.leases = Leases(
            self._store,
            self.registry,
            self.assignments,
            metrics,
            clock=clock,
            timeout_ms=timeout_ms,
            grace_ms=defaults.disconnect_grace_ms,
            policy=defaults.disconnect_policy,
            notify=lambda due_ms: timetable.set({LEASE: due_ms}),
        )
        self._loops = {
            kind: TimerLoop(
                self._store,
                kind,
                handle,
                clock=clock,
                lease_ms=TIMER_LEASE_MS,
                look_again_s=LOOK_AGAIN_SHARED_S if shared else LOOK_AGAIN_S,
                at_once=AT_ONCE,
            )
            for kind, handle in (
                (DISPATCH, self.dispatcher.handle),
                (LEASE, self.leases.handle),
            )
        }
        for kind, loop in self._loops.items():
            timetable.tell(kind, loop.notify)

    # What happens --------------------------------------------------------------------------------

    def committed(self, commit: Commit) -> None:
        self.assignments.committed(commit)

    def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
        self.assignments.interrupted(task_ids)

    def close(self) -> None:
        """No pull waits any longer."""
        self._closed = True
        for waiter in self.dispatcher.waiters:
            waiter.wake()

    def _has_others(self) -> bool:
        return self._peers is not None and self._peers.count > 1

    def _filled(self, kind: str) -> None:
        self.dispatcher.serve_all([kind])
        self.hints.queue(kind)

    def _freed(self, worker_id: str) -> None:
        self.dispatcher.serve(worker_id)
        self.hints.worker(worker_id)

    def _ended(self, ended: Ended) -> None:
        session = self.dispatcher.sessions.get(ended.worker_id)
        if session is None or ended.reason is None:
            return
        message = {
            "type": "cancel",
            "taskId": ended.task_id,
            "reason": ended.reason,
            "fence": ended.fence,
        }
        waiting = session.taking.get(ended.task_id)
        if waiting is None:
            session.send(message)
        else:
            waiting.append(message)

    def _hear(
        self,
        kinds: set[str],
        workers: set[str],
        tasks: dict[str, str],
        declined: dict[str, str],
    ) -> None:
        for task_id, worker_id in declined.items():
            self.dispatcher.asked(task_id, worker_id)
        self._heard_kinds |= kinds
        self._heard_workers |= workers & self.dispatcher.here()
        self._heard_tasks |= {
            task_id: worker_id
            for task_id, worker_id in tasks.items()
            if worker_id in self.dispatcher.sessions
        }
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve workers until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._load, name="workers: load")
            if isinstance(self._store, TieredStore):
                await nursery.start(self._find_again, self._store, name="workers: archived")
            nursery.start_soon(self.hints.run, name="workers: hints")
            nursery.start_soon(self.assignments.run, name="workers: slots")
            nursery.start_soon(self.dispatcher.run, name="workers: serve")
            for kind, loop in self._loops.items():
                nursery.start_soon(loop.run, name=f"workers: {kind}")
            nursery.start_soon(self._look_around, name="workers: look around")
            nursery.start_soon(self._listen, name="workers: news")
            task_status.started()

    async def _load(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """What was there before. Started once that is known, or has to wait for the store."""

        async def load() -> None:
            await self.registry.load()
            await self.queues.load()
            if not self._shared:
                await self._take_over()

        await first("workers", load, task_status)

    async def _take_over(self) -> None:
        """The process before this one has ended, and with it every connection: whose was cut has
        its time to come back. Slots are counted anew.
        """
        for timer in await self._hot.list_due(LEASE, now_ms=EVERYTHING, limit=EVERYTHING):
            record = await self._hot.get(timer.task_id)
            if record is not None and is_held(record.task):
                task = record.task
                await self.registry.adopt(
                    str(task.assigned_worker), task.id, assignment.cost_of(task)
                )
                self.assignments.watch(record)
        for worker in self.registry.all():
            held = {
                id_: cost
                for id_, cost in worker.held.items()
                if self.assignments.holds(id_, worker.id)
            }
            if held != worker.held:
                await self.registry.change(worker.id, _holding(held))
            if worker.session:
                await self.leases.silence(worker.id, worker.session)

    async def _find_again(
        self, store: TieredStore, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take in the tasks for workers that only the archive has, as the short-term store was
        lost. Started once they are known, or the archive is waited for.
        """
        what = "tasks that are archived only"
        await first(what, partial(self._look_for_archived, store), task_status)
        outage = Outage(what)
        while self._to_take_in:
            task_id = next(iter(self._to_take_in))
            try:
                with suppress(TaskNotFound, TaskEnded):
                    await store.take_in(task_id)
            except StoreUnavailable as error:
                await outage.wait(error)
            else:
                outage.over()
                del self._to_take_in[task_id]

    async def _look_for_archived(self, store: TieredStore) -> None:
        """The worker that had one has its time to come back, as above."""
        until_ms = self._clock() + self._grace_ms
        async with aclosing(store.only_archived(LIVE)) as records:
            async for record in records:
                task = record.task
                if is_held(task):
                    worker_id, cost = str(task.assigned_worker), assignment.cost_of(task)
                    await self.registry.find_again(worker_id, task.id, cost, until_ms=until_ms)
                if is_held(task) or assignment.waits(task) or assignment.is_orphan(task):
                    self._to_take_in[task.id] = None

    async def _look_around(self) -> None:
        """What nothing else brings about: silence, lost hints, and what others left behind."""
        outage = Outage("workers")
        next_s = 0.0
        while True:
            await trio.sleep(LOOK_AROUND_S)
            try:
                await self.registry.refresh()
                await self.registry.flush()
                await self.leases.look_around()
                self._ask_the_silent()
                self._close_replaced()
                if self._shared:
                    await self.queues.load()
                await self.queues.look_around()
                if self.queues.may_have:
                    self.dispatcher.serve_all()
                if trio.current_time() >= next_s:
                    next_s = trio.current_time() + RECONCILE_S
                    await self._reconcile()
            except StoreUnavailable as error:
                await outage.wait(error)
            else:
                outage.over()
            listed = sum(map(self.leases.is_listed, self.registry.all()))
            self._metrics.workers.set(listed)

    async def _reconcile(self) -> None:
        """Slots whose task was not assigned in the end, as of two looks."""
        suspects = set()
        for worker in self.registry.all():
            for task_id in worker.held:
                if not self.assignments.holds(task_id, worker.id):
                    suspects.add((worker.id, task_id))
        for worker_id, task_id in suspects & self._suspects:
            await self.assignments.reconcile(worker_id, [task_id])
        self._suspects = suspects

    def _ask_the_silent(self) -> None:
        """Who is connected and counts as offline may be there: it was the store, or a clock, that
        was not.
        """
        for worker_id, session in self.dispatcher.sessions.items():
            row = self.registry.get(worker_id)
            if row is not None and row.offline_ms is not None:
                session.send({"type": "ping"})

    def _close_replaced(self) -> None:
        for worker_id, session in list(self.dispatcher.sessions.items()):
            row = self.registry.get(worker_id)
            if row is None or row.session != session.name or row.gone:
                session.close("deleted" if row is None or row.gone else "replaced")

    async def _listen(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            kinds, self._heard_kinds = self._heard_kinds, set()
            workers, self._heard_workers = self._heard_workers, set()
            tasks, self._heard_tasks = self._heard_tasks, {}
            with suppress(StoreUnavailable):  # it is looked at soon, anyway
                for task_id, worker_id in tasks.items():
                    await self.dispatcher.ask_here(task_id, worker_id)
                for worker_id in workers:
                    await self.registry.fetch(worker_id)
                    self.dispatcher.serve(worker_id)
                self._close_replaced()
                if any(not self.queues.mode_of(kind) for kind in kinds):
                    await self.queues.load()
                for kind in kinds:
                    self.queues.heard(kind)
                if kinds:
                    self.dispatcher.serve_all(kinds)

    def _serve_later(self, worker_id: str) -> None:
        if worker_id in self.dispatcher.sessions:
            self.dispatcher.rest(worker_id, SERVE_AFTER_S)
        if self._nursery is not None:
            self._nursery.start_soon(self._serve_after, worker_id, name="workers: serve later")

    async def _serve_after(self, worker_id: str) -> None:
        await trio.sleep(SERVE_AFTER_S)
        self.dispatcher.serve(worker_id)


def _holding(held: dict[str, int]) -> Callable[[Worker | None], Worker | None]:
    return lambda row: None if row is None else replace(row, held=held)
