"""Workers on Trio's clock: what is kept of them, what they are told, and how they come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import UNSET

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Limits, WorkerDefaults
from taskcast_trio.config.schema import Workers as WorkersSection
from taskcast_trio.core.errors import StaleFence, TaskCancelled, WorkerNotFound
from taskcast_trio.core.model import CreateTask, Retry, Task, Transition
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.engine.workers import Workers
from taskcast_trio.engine.workers.asked import Holding, Registration
from taskcast_trio.engine.workers.leases import ROOM
from taskcast_trio.engine.workers.parties import Session
from taskcast_trio.engine.workers.registry import Registry, _encode
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.testing import trio_clock_ms
from taskcast_trio.testing.cancellation import cancelled_after


class Clock:
    """Trio's, and what it is set forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        self._now = trio_clock_ms()

    def __call__(self) -> int:
        return self._now() + self.ahead_ms


@asynccontextmanager
async def opened(
    clock: Callable[[], int] | None = None, **defaults: Any
) -> AsyncIterator[tuple[Runtime, Workers]]:
    config = Config(workers=WorkersSection(enabled=True, defaults=WorkerDefaults(**defaults)))
    async with open_runtime(config, clock=clock or trio_clock_ms()) as runtime:
        assert runtime.workers is not None
        yield runtime, runtime.workers


class Peer:
    """A worker's end of a connection, which answers pings unless it is mute."""

    def __init__(self, workers: Workers, *, mute: bool = False) -> None:
        self.told: list[dict[str, Any]] = []
        self.closed: list[str] = []
        self._workers = workers
        self._mute = mute
        self.session = Session(
            "", "s", send=self.hear, close=self.closed.append, may=lambda task: True
        )

    def hear(self, message: dict[str, Any]) -> None:
        if message["type"] != "ping":
            self.told.append(message)
        elif not self._mute:
            self._workers.pong(self.session)

    def offers(self) -> list[str]:
        return [told["taskId"] for told in self.told if told["type"] == "offer"]


async def connected(workers: Workers, *, mute: bool = False, **fields: Any) -> Peer:
    peer = Peer(workers, mute=mute)
    await workers.connect(Registration(worker_id="w", **fields), peer.session, owner=None)
    return peer


async def registered(workers: Workers, **fields: Any) -> None:
    await workers.register(Registration(worker_id="w", **fields), mode="pull", owner=None)


async def pulled(workers: Workers, wait_s: float = 5) -> Task:
    task = await workers.pull("w", owner=None, may=lambda task: True, wait_s=wait_s)
    assert task is not None
    return task


def fence_of(task: Task) -> int:
    assert task.fence is not UNSET
    return task.fence


async def move(runtime: Runtime, task_id: str, status: Any, fence: Any = None) -> Task:
    return await runtime.engine.transition(task_id, Transition(status=status), fence=fence)


async def test_who_registers_waits_for_few_that_left_to_be_forgotten(autojump_clock):
    """Each is a write; there may be ten thousand."""
    number = 2 * ROOM
    config = Config(workers=WorkersSection(enabled=True), limits=Limits(workers=number))
    async with open_runtime(config, clock=trio_clock_ms()) as runtime:
        workers = runtime.workers
        assert workers is not None
        for n in range(number):
            await workers.register(Registration(worker_id=str(n)), mode="pull", owner=None)
            await workers.delete(str(n))
        await registered(workers)
        assert len(await runtime.backend.store.rows("workers")) == number - ROOM + 1
        assert [worker.id for worker in await workers.all()] == ["w"]


async def test_a_connected_worker_comes_back_after_a_clock_was_set_forward(autojump_clock):
    clock = Clock()
    async with opened(clock) as (runtime, workers):
        peer = await connected(workers)
        await runtime.engine.create(CreateTask(id="held", assign_mode="ws-offer"))
        await trio.sleep(2)
        await workers.accept(peer.session, "held")
        clock.ahead_ms = 600_000
        await trio.sleep(5)
        assert (await workers.get("w")).status == "idle"
        await runtime.engine.create(CreateTask(id="t", assign_mode="ws-offer"))
        await trio.sleep(15)
        assert peer.offers()[:2] == ["held", "t"]
        await trio.sleep(40)
        assert (await runtime.engine.get("held")).status == "assigned"
        assert peer.closed == []


@pytest.mark.parametrize("policy", ["reassign", "fail", "mark", UNSET])
@pytest.mark.parametrize("clean", [True, False])
async def test_what_becomes_of_the_tasks_of_a_worker_that_leaves(policy, clean, autojump_clock):
    async with opened(disconnect_grace_ms=30_000) as (runtime, workers):
        peer = await connected(workers)
        await runtime.engine.create(
            CreateTask(id="t", assign_mode="ws-offer", disconnect_policy=policy)
        )
        await trio.sleep(2)
        fence = fence_of(await workers.accept(peer.session, "t"))
        await workers.disconnect(peer.session, clean=clean)
        if clean:
            with pytest.raises(WorkerNotFound):
                await workers.get("w")
        await trio.sleep(29)
        assert (await runtime.engine.get("t")).status == "assigned", "the grace is not over"
        if not clean:
            assert (await workers.get("w")).status == "offline"
        await trio.sleep(2)
        with pytest.raises(WorkerNotFound):
            await workers.get("w")
        expected = {"fail": "failed", "mark": "assigned"}.get(policy, "pending")
        assert (await runtime.engine.get("t")).status == expected
        if policy == "mark":
            await runtime.engine.publish("t", [], fence=fence)
        else:
            with pytest.raises((StaleFence, TaskCancelled)):
                await runtime.engine.publish("t", [], fence=fence)


async def test_a_worker_that_comes_back_keeps_what_it_names_over_the_grace(autojump_clock):
    async with opened(disconnect_grace_ms=30_000) as (runtime, workers):
        peer = await connected(workers)
        for name in ("kept", "lost"):
            await runtime.engine.create(CreateTask(id=name, assign_mode="ws-offer"))
        await trio.sleep(2)
        fences = {
            name: fence_of(await workers.accept(peer.session, name)) for name in peer.offers()
        }
        assert set(fences) == {"kept", "lost"}
        await workers.disconnect(peer.session, clean=False)
        await trio.sleep(20)
        again = Peer(workers)
        again.session.name = "again"
        holding = (Holding(task_id="kept", fence=fences["kept"]),)
        await workers.connect(
            Registration(worker_id="w", tasks=holding, capacity=1), again.session, owner=None
        )
        assert (await runtime.engine.get("lost")).status == "pending"
        await trio.sleep(60)
        assert (await move(runtime, "kept", "running", fences["kept"])).status == "running"


async def test_the_connection_of_a_worker_that_was_forgotten_is_closed(autojump_clock):
    clock = Clock()
    async with opened(clock) as (_, workers):
        peer = await connected(workers, mute=True)
        clock.ahead_ms = 600_000
        await trio.sleep(120)
        assert peer.closed[:1] == ["deleted"]


async def test_strangers_who_decline_leave_nothing_behind(autojump_clock):
    async with opened() as (runtime, workers):
        await runtime.engine.create(CreateTask(id="t", assign_mode="pull"))
        for number in range(100):
            await workers.decline(f"nobody{number}", "t", blacklist=True)
        assert (await runtime.engine.get("t")).metadata is UNSET
        assert not workers.dispatcher._asked


async def test_workers_that_come_and_go_leave_nothing_behind(autojump_clock):
    async with opened() as (_, workers):
        for _ in range(10):
            peer = Peer(workers)
            await workers.connect(Registration(), peer.session, owner=None)
            await workers.disconnect(peer.session, clean=True)
        await trio.sleep(300)
        assert workers.registry.all() == []
        assert workers.dispatcher._resting == {}


async def test_a_heartbeat_that_was_overtaken_takes_no_task_away(autojump_clock):
    """It was sent before the worker had heard of the task, and comes when that runs already."""
    async with opened(heartbeat_timeout_ms=90_000) as (runtime, workers):
        await registered(workers)
        task = await runtime.engine.create(CreateTask(assign_mode="pull"))
        got = await pulled(workers)
        await move(runtime, task.id, "running", got.fence)
        await workers.heartbeat("w", [], owner=None)
        assert (await runtime.engine.get(task.id)).status == "running"
        await trio.sleep(16)
        await workers.heartbeat("w", [], owner=None)
        assert (await runtime.engine.get(task.id)).status == "pending", "it has it not, by now"


async def test_a_worker_that_gets_a_task_again_is_not_told_to_stop_it(autojump_clock):
    async with opened() as (runtime, workers):
        await registered(workers)
        await runtime.engine.create(CreateTask(id="t", assign_mode="pull"))
        first = await pulled(workers)
        await move(runtime, "t", "running", first.fence)
        await move(runtime, "t", "paused")
        await trio.sleep(1)
        await move(runtime, "t", "running")
        assert (await pulled(workers)).id == "t"
        assert await workers.heartbeat("w", UNSET, owner=None) == []


@pytest.mark.parametrize("status", ["failed", "pending"])
async def test_what_a_worker_gives_back_itself_it_is_not_told_to_stop(status, autojump_clock):
    async with opened() as (runtime, workers):
        peer = await connected(workers)
        retry = Retry(backoff="fixed", initial_delay_ms=600_000)
        for mode in ("ws-offer", "pull"):
            await runtime.engine.create(
                CreateTask(id=mode, assign_mode=mode, max_attempts=2, retry=retry)
            )
        await trio.sleep(2)
        task = await workers.accept(peer.session, "ws-offer")
        if status == "failed":
            await move(runtime, task.id, "running", task.fence)
        back = await move(runtime, task.id, status, task.fence)
        assert back.status == "pending"
        await trio.sleep(0.5)
        assert "cancel" not in [told["type"] for told in peer.told]
        await workers.disconnect(peer.session, clean=True)
        await registered(workers)
        task = await pulled(workers)
        if status == "failed":
            await move(runtime, task.id, "running", task.fence)
        await move(runtime, task.id, status, task.fence)
        await trio.sleep(0.5)
        assert await workers.heartbeat("w", UNSET, owner=None) == []


async def test_a_worker_that_leaves_is_gone_at_once_however_slow_the_store_is(
    autojump_clock, monkeypatch
):
    async with opened() as (runtime, workers):
        peer = await connected(workers)
        for number in range(3):
            await runtime.engine.create(CreateTask(id=f"t{number}", assign_mode="ws-offer"))
        await trio.sleep(2)

        async def never(task_id: str) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(workers.dispatcher, "requeue", never)
        await workers.disconnect(peer.session, clean=True)
        with pytest.raises(WorkerNotFound):
            await workers.get("w")


async def test_a_client_that_takes_a_pending_task_itself_keeps_it(autojump_clock):
    async with opened() as (runtime, workers):
        await registered(workers)
        await runtime.engine.create(CreateTask(id="t", assign_mode="pull"))
        await pulled(workers)
        await workers.set_draining("w", draining=True)
        await workers.decline("w", "t", blacklist=False)
        await trio.sleep(2)
        await move(runtime, "t", "running")
        await workers.set_draining("w", draining=False)
        await trio.sleep(5)
        assert (await runtime.engine.get("t")).status == "running"


async def test_a_pull_of_a_worker_that_is_deleted_meanwhile_ends(autojump_clock):
    async with opened() as (_, workers):
        await registered(workers)
        async with trio.open_nursery() as nursery:
            started = trio.current_time()

            async def wait() -> None:
                got = await workers.pull("w", owner=None, may=lambda task: True, wait_s=30)
                assert got is None

            nursery.start_soon(wait)
            await trio.sleep(1)
            await workers.delete("w")
        assert trio.current_time() - started < 5


async def test_a_pull_cancelled_at_any_step_leaves_no_task_and_no_slot(autojump_clock):
    steps, ended = 0, False
    async with opened() as (runtime, workers):
        await registered(workers, capacity=1)
        while not ended:
            await runtime.engine.create(CreateTask(id=f"t{steps}", assign_mode="pull"))
            await trio.sleep(0.1)
            got: list[Task] = []

            async def pull() -> None:
                got.append(await pulled(workers))  # noqa: B023

            ended = not await cancelled_after(steps, pull)
            await trio.sleep(10)
            task = await runtime.engine.get(f"t{steps}")
            worker = await workers.get("w")
            assert (task.status, worker.used_slots) == (
                ("assigned", 1) if got else ("pending", 0)
            ), steps
            await move(runtime, f"t{steps}", "cancelled")
            await trio.sleep(0.1)
            steps += 1
    assert steps > 5


class LateTables(MemoryStore):
    """Swaps whose answers arrive late."""

    async def swap_row(self, *args: Any, **options: Any) -> bytes | None:
        answer = await super().swap_row(*args, **options)
        await trio.sleep(1)
        return answer


async def test_a_change_while_its_row_is_written_is_written_too(autojump_clock):
    store = LateTables()
    registry = Registry(store, clock=trio_clock_ms(), shared=False)
    async with opened() as (_, workers):
        await registered(workers)
        row = workers.registry.get("w")
    await registry.change("w", lambda old: row, durable=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.flush)
        await trio.sleep(0.5)
        await registry.reserve("w", "t", 1)
    await registry.flush()
    again = Registry(store, clock=trio_clock_ms(), shared=False)
    await again.load()
    found = again.get("w")
    assert found is not None
    assert found.held == {"t": 1}


class LateReads(MemoryStore):
    """Reads of rows whose answers arrive when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[trio.Event] = []

    async def row(self, table: str, key: str) -> bytes | None:
        value = await super().row(table, key)
        self.answers.append(trio.Event())
        await self.answers[-1].wait()
        return value


async def test_a_worker_is_never_older_than_the_look_at_it(autojump_clock):
    """Also where another look that began before comes back in the middle."""
    async with opened() as (_, workers):
        await registered(workers)
        row = workers.registry.get("w")
    store = LateReads()
    other = Registry(store, clock=trio_clock_ms(), shared=True)
    here = Registry(store, clock=trio_clock_ms(), shared=True)
    assert await store.swap_row("workers", "w", _encode(row), known=None) is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.fetch, "w")
        await trio.testing.wait_all_tasks_blocked()
        await other.load()
        await other.change("w", lambda old: None)
        found: list[Any] = []

        async def look() -> None:
            found.append(await here.fetch("w"))

        nursery.start_soon(look)
        for number in range(2):
            await trio.testing.wait_all_tasks_blocked()
            store.answers[number].set()
    assert found == [None]
    assert here.get("w") is None
