"""Workers of the SDK against a server, with things lost on the way between: what must hold."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import trio
from msgspec import UNSET

from taskcast_trio.config import Config
from taskcast_trio.config.schema import WorkerDefaults, Workers
from taskcast_trio.core.errors import Conflict, NotFound
from taskcast_trio.core.model import CreateTask, Retry, Transition
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.server.app import create_app
from taskcast_trio.testing import trio_clock_ms
from taskcast_trio.worker import Decline, Run, Worker, websocket
from taskcast_trio.worker import worker as worker_module

from .in_memory import Net
from .worker_scenario import Outcome, check_log

MODES: Any = ("pull", "ws-offer", "ws-race")
ATTEMPTS: Any = (UNSET, UNSET, 3)
FAULTS_S = 120
END_S = 400


class Sim:
    def __init__(self, runtime: Runtime, net: Net, rng: random.Random, tasks: int) -> None:
        self.runtime = runtime
        self.engine = runtime.engine
        self.net = net
        self.rng = rng
        self.ids = [f"t{n}" for n in range(tasks)]
        self.outcome = Outcome()
        self.running: dict[str, int] = {}

    def worker(self, number: int) -> Worker:
        name = f"w{number}"
        worker = Worker(
            "http://server",
            mode="pull" if number % 2 else "websocket",
            worker_id=name,
            capacity=self.rng.randrange(1, 4),
            grace_s=1.0,
            drain_s=1.0,
            handle_signals=False,
        )

        @worker.task()
        async def handle(run: Run) -> dict[str, int] | None:
            self.running[name] = self.running.get(name, 0) + 1
            try:
                return await self.handle(run, name)
            except BaseException:
                self.outcome.happened[f"ended: {run.cancelled}"] += 1
                raise
            finally:
                self.running[name] -= 1

        return worker

    async def handle(self, run: Run, name: str) -> dict[str, int] | None:
        rng, happened, count = self.rng, self.outcome.happened, 0
        for _ in range(rng.randrange(6)):
            for _ in range(rng.randrange(4)):
                await run.emit("work", {"worker": name, "fence": run.task.fence, "n": count})
                count += 1
            await trio.sleep(rng.expovariate(1))
        fate = "complete" if self.net.calm else rng.choice(FATES)
        happened[fate] += 1
        match fate:
            case "raise":
                raise RuntimeError("no luck")
            case "decline":
                raise Decline
            case "hang":
                await trio.sleep_forever()
            case "block":
                await run.block(resume_after_s=rng.uniform(0.1, 5))
            case "give up":
                with trio.move_on_after(rng.random()):
                    await run.block()
        await run.emit("work", {"worker": name, "fence": run.task.fence, "n": count})
        return {"emitted": count + 1}

    async def live(self, number: int) -> None:
        """One worker after the other, each of which is stopped, cancelled, or cut off for long."""
        while True:
            worker = self.worker(number)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run)
                await trio.sleep(10_000 if self.net.calm else self.rng.uniform(10, 100))
                if self.rng.random() < 0.5:
                    worker.stop()
                else:
                    nursery.cancel_scope.cancel()
            self.outcome.happened["lives"] += 1

    async def cut_some(self) -> None:
        while not self.net.calm:
            await trio.sleep(self.rng.expovariate(1 / 4))
            self.net.cut_one()

    async def create(self) -> None:
        for task_id in self.ids:
            await self.engine.create(
                CreateTask(
                    id=task_id,
                    assign_mode=self.rng.choice(MODES),
                    cost=self.rng.choice([1, 1, 2]) if self.rng.random() < 0.1 else 1,
                    max_attempts=self.rng.choice(ATTEMPTS),
                    retry=Retry(initial_delay_ms=500),
                )
            )
            await trio.sleep(self.rng.expovariate(1))

    async def cancel_some(self) -> None:
        """All that hang are cancelled in the end: nothing else ends them."""
        while True:
            await trio.sleep(self.rng.expovariate(1 / 3))
            task_id = self.rng.choice(self.ids)
            if self.net.calm and (await self.engine.record(task_id)).task.status != "running":
                continue
            try:
                await self.engine.transition(task_id, Transition(status="cancelled"))
                self.outcome.happened["cancelled by the server"] += 1
            except (Conflict, NotFound):
                pass

    async def run(self) -> Outcome:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(self.live, number)
            nursery.start_soon(self.cut_some)
            async with trio.open_nursery() as clients:
                await self.create()
                clients.start_soon(self.cancel_some)
                await trio.sleep(FAULTS_S)
                self.net.calm = True
                with trio.move_on_after(END_S):
                    while not await self.all_ended():  # noqa: ASYNC110
                        await trio.sleep(5)
                clients.cancel_scope.cancel()
            await trio.sleep(60)
            await self.look()
            nursery.cancel_scope.cancel()
        self.outcome.happened["lost"] = self.net.lost
        return self.outcome

    async def all_ended(self) -> bool:
        records = [await self.engine.record(task_id) for task_id in self.ids]
        return all(record.task.terminal for record in records)

    async def look(self) -> None:
        for task_id in self.ids:
            self.outcome.tasks[task_id] = (await self.engine.record(task_id)).task
            page = await self.engine.store.read(task_id, after=-1, limit=10_000)
            self.outcome.logs[task_id] = [
                (entry.type, msgspec.json.decode(bytes(entry.event.data)))
                for entry in page.entries
                if entry.event.data is not UNSET
            ]
        assert self.runtime.workers is not None
        self.outcome.held = {
            row.id: row.held for row in self.runtime.workers.registry.all() if row.held
        }
        self.outcome.held |= {name: {"handlers": n} for name, n in self.running.items() if n}


FATES = ("complete", "complete", "complete", "raise", "decline", "hang", "block", "give up")


async def run_sdk(seed: int, *, tasks: int = 40) -> Outcome:
    rng = random.Random(seed)
    random.seed(seed)  # the pauses of the workers
    defaults = WorkerDefaults(heartbeat_interval_ms=20_000, offer_timeout_ms=5_000)
    config = Config(workers=Workers(enabled=True, defaults=defaults))
    async with (
        open_runtime(
            config, clock=trio_clock_ms(), noise=rng.getrandbits, jitter=rng.random
        ) as runtime,
        trio.open_nursery() as nursery,
    ):
        net = Net(create_app(runtime), rng, nursery)
        with (
            mock.patch.object(worker_module, "httpx", SimpleNamespace(AsyncClient=net.client)),
            mock.patch.object(websocket, "wrap_client_stream", net.wrap),
            mock.patch.object(websocket.SocketLink, "_dial", net.dial),
        ):
            outcome = await Sim(runtime, net, rng, tasks).run()
        nursery.cancel_scope.cancel()
    return outcome


def check_sdk(outcome: Outcome) -> None:
    stuck = {id_: t.status for id_, t in outcome.tasks.items() if not t.terminal}
    assert stuck == {}, "a task is stuck"
    assert outcome.held == {}, "slots leak, or a handler does not end"
    for task_id, log in outcome.logs.items():
        check_log(task_id, log)
        check_work(task_id, log)
    for task in outcome.tasks.values():
        if task.status == "completed":
            assert task.result is not UNSET
            emitted = msgspec.json.decode(bytes(task.result))["emitted"]
            last = [data for type_, data in outcome.logs[task.id] if type_ == "work"][-1]
            assert last["n"] == emitted - 1, (task.id, "it ended before its last word")


def check_work(task_id: str, log: list[tuple[str, Any]]) -> None:
    """What each run has emitted is there once, in order, from the first on."""
    seen: dict[int, int] = {}
    for type_, data in log:
        if type_ == "work":
            assert data["n"] == seen.get(data["fence"], 0), (
                task_id,
                "lost, twice, or out of order",
            )
            seen[data["fence"]] = data["n"] + 1
