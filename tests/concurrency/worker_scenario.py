"""Workers that accept, decline, crash and fall silent, tasks that are cancelled: what must hold."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
from msgspec import UNSET, Raw

from taskcast_trio.config import Config
from taskcast_trio.config.schema import WorkerDefaults, Workers
from taskcast_trio.core.errors import (
    Conflict,
    NotFound,
    TaskcastError,
    TaskEnded,
)
from taskcast_trio.core.matching import MatchRule
from taskcast_trio.core.model import CreateTask, Draft, Retry, Task, Transition
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.engine.workers.asked import Holding, Registration
from taskcast_trio.engine.workers.parties import Session
from taskcast_trio.testing import trio_clock_ms

TYPES = ("a.x", "a.y", "b.z")
MODES: Any = ("pull", "ws-offer", "ws-race")
PRIORITIES: Any = (UNSET, 5, -5)
ATTEMPTS: Any = (UNSET, UNSET, 2, 5)
FAULTS_S = 400
END_S = 420
"""Less than it takes until tasks that wait are looked at whatever was missed."""


@dataclass
class Outcome:
    """What a run came to."""

    logs: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    held: dict[str, dict[str, int]] = field(default_factory=dict)
    timers: dict[str, int] = field(default_factory=dict)
    overbooked: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)


class Sim:
    def __init__(self, runtime: Runtime, rng: random.Random, *, workers: int, tasks: int) -> None:
        assert runtime.workers is not None
        self.runtime = runtime
        self.workers = runtime.workers
        self.engine = runtime.engine
        self.rng = rng
        self.ids = [f"t{n}" for n in range(tasks)]
        self.workers_wanted = workers
        self.calm = False
        self.outcome = Outcome()

    # Work ----------------------------------------------------------------------------------------

    async def work(
        self, worker_id: str, task_id: str, fence: int, stops: dict[str, trio.Event]
    ) -> None:
        """Do a task; some do so as a worker that nobody has told that it is lost."""
        if self.rng.random() < 0.3 and not self.calm:
            self.zombies.start_soon(self.do, worker_id, task_id, fence, stops)
        else:
            await self.do(worker_id, task_id, fence, stops)

    async def do(
        self, worker_id: str, task_id: str, fence: int, stops: dict[str, trio.Event]
    ) -> None:
        rng, happened = self.rng, self.outcome.happened
        key = f"{task_id}/{fence}"
        stop = stops.setdefault(key, trio.Event())
        try:
            await self.act(task_id, "running", fence)
            for _ in range(rng.randrange(4)):
                with trio.move_on_after(rng.expovariate(1 / 12)):
                    await stop.wait()
                    happened["stopped"] += 1
                    return
                data = Raw(msgspec.json.encode({"fence": fence, "worker": worker_id}))
                draft = Draft(type="work", level="info", data=data)
                await self.engine.publish(task_id, [draft], fence=fence)
            status = "failed" if rng.random() < 0.15 else "completed"
            await self.act(task_id, status, fence)
            happened[status] += 1
        except (Conflict, TaskEnded, NotFound) as error:
            happened[error.code] += 1
        finally:
            stops.pop(key, None)

    async def act(self, task_id: str, status: Any, fence: int) -> None:
        await self.engine.transition(task_id, Transition(status=status), fence=fence)

    # Workers -------------------------------------------------------------------------------------

    def registration(self, worker_id: str) -> Registration:
        types: Any = self.rng.choice([UNSET, ("a.*",), ("b.z", "a.x"), ("*",), ("a.y", "b.*")])
        return Registration(
            worker_id=worker_id,
            match_rule=MatchRule(task_types=types),
            capacity=self.rng.randrange(1, 5),
            weight=self.rng.randrange(1, 100),
        )

    async def live(self, worker_id: str, *, socket: bool) -> None:
        """One life after the other, each with its own fate."""
        while True:
            length_s = END_S if self.calm else self.rng.uniform(5, 150)
            with trio.move_on_after(length_s):
                if socket:
                    await self.socket_life(worker_id)
                else:
                    await self.pull_life(worker_id)
            self.outcome.happened["lives"] += 1
            if not self.calm:
                await trio.sleep(self.rng.choice([0.0, 1.0, 20.0, 60.0]))

    async def socket_life(self, worker_id: str) -> None:
        inbox_in, inbox = trio.open_memory_channel[dict[str, Any]](10_000)
        clean = self.rng.random() < 0.5
        session = Session(
            "",
            f"{worker_id}-{self.rng.random()}",
            send=inbox_in.send_nowait,
            close=lambda reason: inbox_in.close(),
            may=lambda task: True,
        )
        await self.workers.connect(
            msgspec.structs.replace(self.registration(worker_id), worker_id=worker_id),
            session,
            owner=None,
        )
        stops: dict[str, trio.Event] = {}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.beat, session)
                async for message in inbox:
                    await self.answer(session, message, stops, nursery)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await self.workers.disconnect(session, clean=clean)

    async def beat(self, session: Session) -> None:
        while True:
            self.workers.pong(session)
            await trio.sleep(20)

    async def answer(
        self,
        session: Session,
        message: dict[str, Any],
        stops: dict[str, trio.Event],
        nursery: trio.Nursery,
    ) -> None:
        task_id, rng = message["taskId"], self.rng
        if message["type"] == "cancel":
            stops.pop(f"{task_id}/{message['fence']}", trio.Event()).set()
            self.outcome.happened["cancel"] += 1
            return
        if not self.calm and rng.random() < 0.3:
            self.outcome.happened["ignored"] += 1
            if rng.random() < 0.5:
                await self.workers.decline(session.worker_id, task_id, blacklist=rng.random() < 0.1)
            return
        await trio.sleep(rng.random())
        after: list[Any] = []
        session.taking[task_id] = after
        try:
            task = await self.workers.accept(session, task_id)
        except TaskcastError as error:
            self.outcome.happened[f"accept: {error.code}"] += 1
            return
        finally:
            del session.taking[task_id]
        assert task.fence is not UNSET
        self.note_booking(session.worker_id)
        if not self.calm and rng.random() < 0.1:
            await self.workers.decline(session.worker_id, task_id, blacklist=False)
            return
        stops[f"{task_id}/{task.fence}"] = trio.Event()
        for late in after:
            await self.answer(session, late, stops, nursery)
        nursery.start_soon(self.work, session.worker_id, task_id, task.fence, stops)

    async def pull_life(self, worker_id: str) -> None:
        await self.workers.register(self.registration(worker_id), mode="pull", owner=None)
        stops: dict[str, trio.Event] = {}
        silent = not self.calm and self.rng.random() < 0.3
        async with trio.open_nursery() as nursery:
            if not silent:
                nursery.start_soon(self.heartbeat, worker_id, stops)
            for _ in range(2):
                nursery.start_soon(self.pull, worker_id, stops, nursery)

    async def heartbeat(self, worker_id: str, stops: dict[str, trio.Event]) -> None:
        while True:
            tasks = [
                Holding(task_id=key.split("/")[0], fence=int(key.split("/")[1])) for key in stops
            ]
            try:
                for cancel in await self.workers.heartbeat(worker_id, tasks, owner=None):
                    for key in [key for key in stops if key.startswith(f"{cancel.task_id}/")]:
                        stops.pop(key).set()
            except NotFound:
                await self.workers.register(self.registration(worker_id), mode="pull", owner=None)
            await trio.sleep(15)

    async def pull(
        self, worker_id: str, stops: dict[str, trio.Event], nursery: trio.Nursery
    ) -> None:
        while True:
            task = await self.workers.pull(
                worker_id, owner=None, may=lambda task: True, wait_s=self.rng.uniform(1, 30)
            )
            if task is None:
                await trio.sleep(1)
                continue
            assert task.fence is not UNSET
            self.note_booking(worker_id)
            if not self.calm and self.rng.random() < 0.15:
                await self.workers.decline(worker_id, task.id, blacklist=self.rng.random() < 0.1)
                continue
            nursery.start_soon(self.work, worker_id, task.id, task.fence, stops)

    def note_booking(self, worker_id: str) -> None:
        row = self.workers.registry.get(worker_id)
        if row is not None and row.used_slots > row.capacity:
            # A worker that comes back with less room keeps what it has.
            self.outcome.happened["over capacity after a return"] += 1

    # Clients -------------------------------------------------------------------------------------

    async def create(self) -> None:
        for task_id in self.ids:
            rng = self.rng
            await self.engine.create(
                CreateTask(
                    id=task_id,
                    type=rng.choice(TYPES),
                    assign_mode=rng.choice(MODES),
                    cost=rng.choice([1, 1, 1, 2]),
                    priority=rng.choice(PRIORITIES),
                    disconnect_policy=rng.choice([UNSET, "reassign", "fail"]),
                    max_attempts=rng.choice(ATTEMPTS),
                    retry=Retry(initial_delay_ms=rng.choice([0, 2000])),
                )
            )
            await trio.sleep(rng.expovariate(2))

    async def cancel_some(self) -> None:
        for _ in range(len(self.ids) // 2):
            await trio.sleep(self.rng.expovariate(1))
            held = [id_ for worker in self.workers.registry.all() for id_ in worker.held]
            task_id = self.rng.choice(held) if held else self.rng.choice(self.ids)
            try:
                await self.engine.transition(task_id, Transition(status="cancelled"))
                self.outcome.happened["cancelled by the server"] += 1
            except (Conflict, NotFound):
                pass

    async def run(self) -> Outcome:
        async with trio.open_nursery() as nursery:
            self.zombies = nursery
            for number in range(self.workers_wanted):
                nursery.start_soon(self.live_kind, number)
            async with trio.open_nursery() as clients:
                clients.start_soon(self.create)
                clients.start_soon(self.cancel_some)
                await trio.sleep(FAULTS_S)
            self.calm = True
            with trio.move_on_after(END_S):
                while not await self.all_ended():  # noqa: ASYNC110
                    await trio.sleep(5)
            await trio.sleep(60)
            await self.look()
            nursery.cancel_scope.cancel()
        return self.outcome

    async def live_kind(self, number: int) -> None:
        await self.live(f"w{number}", socket=number % 2 == 0)

    async def all_ended(self) -> bool:
        records = [await self.engine.record(task_id) for task_id in self.ids]
        return all(record.task.terminal for record in records)

    async def look(self) -> None:
        for task_id in self.ids:
            self.outcome.tasks[task_id] = (await self.engine.record(task_id)).task
            page = await self.engine.store.read(task_id, after=-1, limit=10_000)
            self.outcome.logs[task_id] = [
                (
                    entry.type,
                    None
                    if entry.event.data is UNSET
                    else msgspec.json.decode(bytes(entry.event.data)),
                )
                for entry in page.entries
            ]
        for row in self.workers.registry.all():
            if row.held:
                self.outcome.held[row.id] = row.held
        timers = self.runtime.backend.store._timers  # type: ignore[attr-defined]
        self.outcome.timers = {kind: len(due.due) for kind, due in timers._kinds.items()}


async def run_workers(seed: int, *, workers: int = 20, tasks: int = 200) -> Outcome:
    rng = random.Random(seed)
    config = Config(
        workers=Workers(
            enabled=True,
            defaults=WorkerDefaults(
                heartbeat_interval_ms=20_000, heartbeat_timeout_ms=60_000, offer_timeout_ms=5_000
            ),
        )
    )
    async with open_runtime(
        config, clock=trio_clock_ms(), noise=rng.getrandbits, jitter=rng.random
    ) as runtime:
        return await Sim(runtime, rng, workers=workers, tasks=tasks).run()


def check_workers(outcome: Outcome) -> None:
    stuck = {id_: t.status for id_, t in outcome.tasks.items() if not t.terminal}
    assert stuck == {}, "a task is stuck"
    assert outcome.held == {}, "slots leak"
    kinds = {kind for kind in outcome.timers if kind in ("dispatch", "lease") or ":" in kind}
    assert kinds == set(), "a timer is left that leads nowhere"
    for task_id, log in outcome.logs.items():
        check_log(task_id, log)


def check_log(task_id: str, log: list[tuple[str, Any]]) -> None:
    """Work is of the worker that has the task at that moment, and the end is the end."""
    ends = [
        at
        for at, (type_, data) in enumerate(log)
        if type_ == "taskcast:status"
        and data["status"] in ("completed", "failed", "cancelled", "timeout")
    ]
    assert len(ends) == 1, (task_id, log)
    assert all(type_ == "taskcast:audit" for type_, _ in log[ends[0] + 1 :]), (task_id, log)
    holder: str | None = None
    for type_, data in log:
        if type_ == "taskcast:audit" and data["action"] == "assigned":
            assert holder is None, (task_id, "assigned to two", log)
            holder = data["workerId"]
        elif type_ == "taskcast:status" and data["status"] == "pending":
            holder = None
        elif type_ == "work":
            assert data["worker"] == holder, (task_id, "work of a fenced worker", log)
