"""What workers, and those who look after them, ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Literal

import trio
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from taskcast_trio.core.errors import (
    Forbidden,
    NoRoom,
    RateLimited,
    StoreUnavailable,
    WorkerNotFound,
)
from taskcast_trio.core.ids import ulid
from taskcast_trio.core.model import Task

from .asked import Cancel, Change, Holding, Registration, check_tasks, checked
from .crew import Crew
from .parties import Session, Waiter
from .registry import Decide, Worker

ASSIGN_MS: Final = 15_000
"""How long a worker may take to hear of a task that was assigned to it."""
LEAVE_S: Final = 3.0
"""How long it may take to see to what somebody leaves behind."""


class Workers(Crew):
    """Made and run by ``open_runtime`` where workers are enabled."""

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

    async def belongs(self, worker_id: str, owner: str | None) -> bool:
        """Whether there is such a worker, and it is this owner's."""
        worker = await self.registry.fetch(worker_id)
        return worker is not None and self.leases.is_listed(worker) and worker.owner == owner

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
            RateLimited: it is a new one, and there are as many as there may be.
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
        worker = await self._enter(worker_id, decide)
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

    async def _enter(self, worker_id: str, decide: Decide) -> Worker:
        enter = partial(
            self.registry.change, worker_id, decide, durable=True, most=self._most_workers
        )
        full: RateLimited | None = None
        try:
            worker = await enter()
        except RateLimited as error:
            full = error
        if full is not None:
            if not await self.leases.make_room():
                raise full
            worker = await enter()
        assert worker is not None
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
            self.dispatcher.leave(worker_id)
        with (
            trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S),
            suppress(StoreUnavailable),  # its silence will tell
        ):
            await self.leases.silence(worker_id, session.name, gone=clean)
            self.hints.worker(worker_id)
            for task_id in list(session.offers):
                await self.dispatcher.requeue(task_id)

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
        for task_id in [] if row is None else [id_ for id_ in row.held if id_ not in told]:
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
        except BaseException as error:
            if isinstance(error, NoRoom):
                session.forget(task_id)  # it is told again when it has room
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
        if row is not None:
            self.dispatcher.asked(task_id, worker_id)
            self.hints.declined(task_id, worker_id)
            await self.registry.decline(worker_id, task_id)
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
        self.dispatcher.serve(worker_id)  # its pulls end
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
                if not self.leases.is_listed(self.registry.get(worker_id)):
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
