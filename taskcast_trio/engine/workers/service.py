"""Workers as a whole: what they ask for, and the tasks that run for them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Literal

import structlog
import trio
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from taskcast_trio.config.schema import WorkerDefaults
from taskcast_trio.core import assignment
from taskcast_trio.core.assignment import DISPATCH, LEASE, is_held
from taskcast_trio.core.errors import BadRequest, Forbidden, StoreUnavailable, WorkerNotFound
from taskcast_trio.core.ids import ulid
from taskcast_trio.core.matching import MatchRule
from taskcast_trio.core.model import Task, Wire
from taskcast_trio.core.validate import task_id as check_id
from taskcast_trio.storage.protocols import Backend, Commit

from ..bulletin import Bulletin
from ..engine import TaskEngine
from ..metrics import Metrics
from ..timer_loop import Outage, TimerLoop
from .assignments import Assignments, Ended
from .dispatcher import TIMER_LEASE_MS, Dispatcher
from .hints import Hints
from .leases import Leases
from .parties import Session, Waiter
from .queues import Queues
from .registry import Registry, Worker

DEFAULT_CAPACITY: Final = 10
DEFAULT_WEIGHT: Final = 50.0
MAX_CAPACITY: Final = 1_000_000
MAX_WEIGHT: Final = 1e9
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_TASKS_TOLD: Final = 1000
SERVE_AFTER_S: Final = 1.0
"""How long a worker that came, or was set idle, is left alone by what waits."""
LOOK_AROUND_S: Final = 1.0
RECONCILE_S: Final = 15.0
ASSIGN_MS: Final = 15_000
"""How long a worker may take to hear of a task that was assigned to it."""
AT_ONCE: Final = 16
LEAVE_S: Final = 3.0
LOOK_AGAIN_S: Final = 60.0
LOOK_AGAIN_SHARED_S: Final = 1.0
EVERYTHING: Final = 2**52

log = structlog.get_logger(__name__)


class Holding(Wire, frozen=True, kw_only=True):
    """A task that a worker believes to have."""

    task_id: str
    fence: int


class Registration(Wire, frozen=True, kw_only=True):
    """What a worker says of itself when it comes. Without an id it gets one; ``capacity`` is how
    many slots it has (10), ``weight`` (50) puts it before others. ``tasks`` are those that it has
    still from before: others that it had are given to other workers at once; where it does not say,
    after a while.
    """

    worker_id: str | UnsetType = UNSET
    match_rule: MatchRule = MatchRule()
    capacity: float = float(DEFAULT_CAPACITY)
    weight: float = DEFAULT_WEIGHT
    metadata: Raw | UnsetType = UNSET
    tasks: tuple[Holding, ...] | UnsetType = UNSET


class Cancel(Wire, frozen=True, kw_only=True):
    """A task that a worker is to stop."""

    task_id: str
    reason: str


class Change(Struct, frozen=True, kw_only=True):
    """What an update says; what it does not is UNSET."""

    weight: float | UnsetType = UNSET
    capacity: int | UnsetType = UNSET
    rule: MatchRule | UnsetType = UNSET


def checked(asked: Registration) -> Registration:
    """The registration, if it can be one; else BadRequest."""
    if asked.worker_id is not UNSET:
        check_id(asked.worker_id, "workerId")
    if not is_capacity(asked.capacity):
        raise BadRequest(f"Expected a whole number from 1 to {MAX_CAPACITY} - at `$.capacity`")
    if not is_weight(asked.weight):
        raise BadRequest(f"Expected a number from 0 to {MAX_WEIGHT:g} - at `$.weight`")
    if asked.tasks is not UNSET:
        check_tasks(asked.tasks)
    if asked.metadata is not UNSET:
        if bytes(asked.metadata)[:1] != b"{":
            raise BadRequest("Expected `object` - at `$.metadata`")
        if len(bytes(asked.metadata)) > MAX_METADATA_BYTES:
            raise BadRequest(f"Expected at most {MAX_METADATA_BYTES} bytes - at `$.metadata`")
    return asked


def check_tasks(tasks: Sequence[Holding]) -> None:
    """Refuse (BadRequest) more than anybody has."""
    if len(tasks) > MAX_TASKS_TOLD:
        raise BadRequest(f"Expected at most {MAX_TASKS_TOLD} tasks - at `$.tasks`")


def is_capacity(value: float) -> bool:
    return 1 <= value <= MAX_CAPACITY and value == value // 1


def is_weight(value: float) -> bool:
    return 0 <= value <= MAX_WEIGHT


class Workers:
    """Made and run by ``open_runtime`` where workers are enabled."""

    def __init__(
        self,
        defaults: WorkerDefaults,
        engine: TaskEngine,
        backend: Backend,
        bulletin: Bulletin,
        metrics: Metrics,
        *,
        noise: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._engine = engine
        self._store = engine.store
        self._hot = backend.store
        self._clock = engine.clock
        self._noise = noise
        self._metrics = metrics
        self._peers = backend.peers
        self._closed = False
        self._news = trio.Event()
        self._heard_kinds: set[str] = set()
        self._heard_workers: set[str] = set()
        self._heard_tasks: dict[str, str] = {}
        self._nursery: trio.Nursery | None = None
        self._suspects: set[tuple[str, str]] = set()
        clock, timetable = engine.clock, engine.timetable
        shared = backend.peers is not None
        self._shared = shared
        self.heartbeat_s: Final = defaults.heartbeat_interval_ms / 1000
        timeout_ms = defaults.heartbeat_timeout_ms or max(
            3 * defaults.heartbeat_interval_ms, 90_000
        )
        self.timeout_s: Final = timeout_ms / 1000
        self._grace_ms = defaults.disconnect_grace_ms
        name = f"{noise(64):016x}"
        self.hints = Hints(bulletin, name=name, others=self._has_others, heard=self._hear)
        self.registry = Registry(self._hot, clock=clock, shared=shared, opened=self._serve_later)
        self.queues = Queues(self._hot, clock=clock, filled=self._filled)
        self.assignments = Assignments(
            self._store,
            self.registry,
            timetable,
            backend.broadcast,
            clock=clock,
            lease_ms=timeout_ms,
            counted=engine.counted,
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

    def _hear(self, kinds: set[str], workers: set[str], tasks: dict[str, str]) -> None:
        self._heard_kinds |= kinds
        self._heard_workers |= workers
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
        outage = Outage("workers")
        while True:
            try:
                await self.registry.load()
                await self.queues.load()
                if not self._shared:
                    await self._take_over()
            except StoreUnavailable as error:
                if outage.tries == 0:
                    task_status.started()
                await outage.wait(error)
            else:
                break
        if outage.tries == 0:
            task_status.started()
        outage.over()

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
                if self._shared:
                    await self.queues.load()
                    self._close_replaced()
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

    # What workers ask for ------------------------------------------------------------------------

    async def all(self) -> list[Worker]:
        """The workers, in the order in which they came."""
        await self.registry.refresh()
        found = [worker for worker in self.registry.all() if self.leases.is_listed(worker)]
        return sorted(found, key=lambda worker: (worker.connected_ms, worker.id))

    async def get(self, worker_id: str) -> Worker:
        """The worker.

        Raises:
            WorkerNotFound: there is no such worker.
        """
        worker = await self.registry.fetch(worker_id)
        if worker is None or not self.leases.is_listed(worker):
            raise WorkerNotFound(worker_id)
        return worker

    async def _own(self, worker_id: str, owner: str | None) -> Worker:
        """The worker, which belongs to who asks.

        Raises:
            WorkerNotFound: there is no such worker.
            Forbidden: it belongs to another one.
        """
        worker = await self.get(worker_id)
        _check_owner(worker, owner)
        return worker

    async def register(
        self,
        asked: Registration,
        *,
        mode: Literal["pull", "websocket"],
        owner: str | None,
        session: str = "",
    ) -> Worker:
        """Enter a worker, in the place of the one that had its id; its tasks stay its own.

        Raises:
            Forbidden: the id belongs to another caller's worker.
        """
        asked = checked(asked)
        now_ms = self._clock()
        worker_id = asked.worker_id or ulid(now_ms, self._noise(80))
        metadata = None if asked.metadata is UNSET else bytes(asked.metadata)

        def decide(row: Worker | None) -> Worker:
            if row is not None and self.leases.is_listed(row):
                _check_owner(row, owner)
            return Worker(
                id=worker_id,
                rule=asked.match_rule,
                capacity=int(asked.capacity),
                weight=asked.weight,
                mode=mode,
                connected_ms=now_ms,
                heartbeat_ms=now_ms,
                metadata=metadata,
                owner=owner,
                session=session,
                held={} if row is None else row.held,
                orphans={} if row is None else dict.fromkeys(row.held, now_ms + self._grace_ms),
            )

        await self.registry.fetch(worker_id)
        worker = await self.registry.change(worker_id, decide, durable=True)
        assert worker is not None
        await self.assignments.adopt(worker_id)
        if asked.tasks is not UNSET:
            await self.holds(worker_id, asked.tasks, since_ms=now_ms)
        else:
            await self.leases.wait_for(worker)
        old = self.dispatcher.sessions.get(worker_id)
        if old is not None and old.name != session:
            old.close("replaced")
        self.hints.worker(worker_id)
        return worker

    async def connect(self, asked: Registration, session: Session, *, owner: str | None) -> Worker:
        """Enter a worker with its connection, which gets an id where it has none; see `register`.

        Whoever connects it disconnects it.
        """
        worker = await self.register(asked, mode="websocket", owner=owner, session=session.name)
        session.worker_id = worker.id
        self.dispatcher.sessions[worker.id] = session
        self._serve_later(worker.id)
        return worker

    async def disconnect(self, session: Session, *, clean: bool) -> None:
        """The connection has ended; ``clean``: the worker said so. Shielded, bounded in time."""
        worker_id = session.worker_id
        if self.dispatcher.sessions.get(worker_id) is session:
            del self.dispatcher.sessions[worker_id]
        with (
            trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S),
            suppress(StoreUnavailable),  # its silence will tell
        ):
            for task_id in list(session.offers):
                await self.dispatcher.requeue(task_id)
            await self.leases.silence(worker_id, session.name, gone=clean)
            self.hints.worker(worker_id)

    async def holds(
        self, worker_id: str, tasks: Sequence[Holding], *, since_ms: int | None = None
    ) -> list[Cancel]:
        """The worker says which tasks it has: others are lost, and what it is wrong about is the
        answer. It may not know yet of those that were assigned after ``since_ms``, which is some
        seconds ago.
        """
        check_tasks(tasks)
        since_ms = self._clock() - ASSIGN_MS if since_ms is None else since_ms
        cancels = []
        for each in tasks:
            reason = await self._why_not(each)
            if reason is not None:
                cancels.append(Cancel(task_id=each.task_id, reason=reason))
        told = {each.task_id for each in tasks}
        await self.registry.reclaim(worker_id, told)
        row = self.registry.get(worker_id)
        for task_id in row.held.keys() - told if row is not None else ():
            await self.leases.disown(worker_id, task_id, since_ms=since_ms)
        return cancels

    def pong(self, session: Session) -> None:
        self.registry.beat(session.worker_id)

    async def accept(self, session: Session, task_id: str) -> Task:
        """Assign a pending task to the worker; errors are those of `Assignments.assign`.

        Between this and ``session.taken`` nothing else is said of the task.
        """
        offer = session.offers.pop(task_id, None)
        record = await self._store.get(task_id)
        if record is not None and not session.may(record.task):
            raise Forbidden(f"Task {task_id} is not for this caller")
        try:
            task = await self.assignments.assign(session.worker_id, task_id)
        except BaseException:
            if offer is not None:
                self.dispatcher.serve(session.worker_id)
            raise
        self.dispatcher.settled(task_id)
        return task

    async def decline(
        self, worker_id: str, task_id: str, *, blacklist: bool, owner: str | None = None
    ) -> None:
        """Give a task back, or refuse an offer; whatever is not there is declined already.

        Raises:
            Forbidden: the worker belongs to another caller.
        """
        row = await self.registry.fetch(worker_id)
        if row is not None:
            _check_owner(row, owner)
        session = self.dispatcher.sessions.get(worker_id)
        offered = session is not None and session.offers.pop(task_id, None) is not None
        self.dispatcher.asked(task_id, worker_id)
        had_it = await self.assignments.decline(worker_id, task_id, blacklist=blacklist)
        if had_it:
            await self.registry.release(worker_id, task_id)
        if offered and not had_it:
            await self.dispatcher.requeue(task_id)
        if offered or had_it:
            self._freed(worker_id)

    async def update(self, worker_id: str, change: Change) -> None:
        """Change what was registered."""

        def decide(row: Worker | None) -> Worker | None:
            if row is None:
                return None
            return replace(
                row,
                weight=row.weight if change.weight is UNSET else change.weight,
                capacity=row.capacity if change.capacity is UNSET else change.capacity,
                rule=row.rule if change.rule is UNSET else change.rule,
            )

        await self.registry.change(worker_id, decide, durable=True)
        self._freed(worker_id)

    async def set_draining(self, worker_id: str, draining: bool) -> Worker:
        """Give the worker no more tasks, or some again.

        Raises:
            WorkerNotFound: there is no such worker.
        """
        await self.get(worker_id)

        def decide(row: Worker | None) -> Worker:
            if row is None:
                raise WorkerNotFound(worker_id)
            return row if row.draining is draining else replace(row, draining=draining)

        worker = await self.registry.change(worker_id, decide, durable=True)
        assert worker is not None
        self.hints.worker(worker_id)
        if not draining:
            self._serve_later(worker_id)
        return worker

    async def delete(self, worker_id: str) -> None:
        """Forget the worker, and close its connection; its tasks wait as if it had left.

        Raises:
            WorkerNotFound: there is no such worker.
        """
        worker = await self.get(worker_id)
        await self.leases.silence(worker_id, worker.session, gone=True)
        session = self.dispatcher.sessions.get(worker_id)
        if session is not None:
            session.close("deleted")
        self.hints.worker(worker_id)

    async def heartbeat(
        self, worker_id: str, tasks: Sequence[Holding] | UnsetType, *, owner: str | None
    ) -> list[Cancel]:
        """A sign of life; the answer is what the worker is to stop, of ``tasks`` and of others that
        it was not told of yet. See `holds`.

        Raises:
            WorkerNotFound: there is no such worker.
            Forbidden: it belongs to another caller.
        """
        row = await self._own(worker_id, owner)
        await self._alive(row)
        await self.assignments.adopt(worker_id)
        cancels = dict(row.cancels)
        if cancels:
            await self.registry.change(worker_id, _told(cancels))
        if tasks is not UNSET:
            for each in tasks:  # one that it got anew is none to be stopped
                cancels.pop(each.task_id, None)
            found = await self.holds(worker_id, tasks)
            cancels |= {each.task_id: each.reason for each in found}
        return [Cancel(task_id=id_, reason=reason) for id_, reason in cancels.items()]

    async def _why_not(self, holding: Holding) -> str | None:
        record = await self._store.get(holding.task_id)
        if record is None:
            return "deleted"
        task = record.task
        if task.fence == holding.fence:
            return None
        return task.status if task.terminal or task.status == "paused" else "reassigned"

    async def _alive(self, row: Worker) -> None:
        self.registry.beat(row.id)
        if row.offline_ms is not None:
            now_ms = self._clock()
            await self.registry.change(row.id, _back(now_ms), durable=True)
            self._serve_later(row.id)

    async def pull(
        self,
        worker_id: str,
        *,
        owner: str | None,
        may: Callable[[Task], bool],
        weight: float | None = None,
        wait_s: float,
    ) -> Task | None:
        """Assign a task to the worker, for which it waits; None where none came, or nobody knows
        the worker.

        Cancelling gives back what was assigned.

        Raises:
            Forbidden: the worker belongs to another caller.
        """
        deadline = trio.current_time() + wait_s
        try:
            row = await self._own(worker_id, owner)
        except WorkerNotFound:
            return None
        await self._alive(row)
        if weight is not None and weight != row.weight:
            await self.update(worker_id, Change(weight=weight))
        waiter = Waiter(worker_id, may)
        self.dispatcher.waiters[waiter] = None
        try:
            while True:
                waiter.woken = trio.Event()
                task = await self._take(waiter)
                if task is not None:
                    return task
                if self._closed or trio.current_time() >= deadline:
                    return None
                with trio.move_on_at(deadline):
                    await waiter.woken.wait()
        finally:
            del self.dispatcher.waiters[waiter]
            if waiter.given is not None:
                with (
                    trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S),
                    suppress(StoreUnavailable),  # its timer comes again
                ):
                    await self.dispatcher.requeue(waiter.given)

    async def _take(self, waiter: Waiter) -> Task | None:
        with trio.CancelScope(shield=True):
            task = await self.dispatcher.take_for(waiter)
        if task is not None and trio.current_effective_deadline() == -math.inf:
            # Who asked has left: nobody would hear of it.
            with (
                trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S),
                suppress(StoreUnavailable),  # the lease ends
            ):
                await self._return(task)
            await trio.lowlevel.checkpoint()
        return task

    async def _return(self, task: Task) -> None:
        while True:
            record = await self._store.get(task.id)
            if record is None or record.task.fence != task.fence:
                return
            if await self.assignments.take_back(record):
                return


def _check_owner(worker: Worker, owner: str | None) -> None:
    if worker.owner != owner:
        raise Forbidden(f"Worker {worker.id} belongs to another caller")


def _holding(held: dict[str, int]) -> Callable[[Worker | None], Worker | None]:
    return lambda row: None if row is None else replace(row, held=held)


def _back(now_ms: int) -> Callable[[Worker | None], Worker | None]:
    return lambda row: (
        row if row is None else replace(row, offline_ms=None, gone=False, heartbeat_ms=now_ms)
    )


def _told(cancels: dict[str, str]) -> Callable[[Worker | None], Worker | None]:
    def decide(row: Worker | None) -> Worker | None:
        if row is None:
            return None
        left = {id_: reason for id_, reason in row.cancels.items() if id_ not in cancels}
        return replace(row, cancels=left)

    return decide
