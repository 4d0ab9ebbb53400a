"""Workers over processes that are killed, servers that restart, and stores that several share."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from msgspec import UNSET

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Limits, Redis, WorkerDefaults, Workers
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.errors import RateLimited, StaleFence
from taskcast_trio.core.matching import MatchRule
from taskcast_trio.core.model import CreateTask, Task, Transition
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.engine.workers.asked import Holding, Registration
from taskcast_trio.engine.workers.hints import Hints
from taskcast_trio.engine.workers.parties import Session
from taskcast_trio.storage.sqlite import open_sqlite

from ..storage.redis.server import new_prefix, redis_url
from .server_process import server_process

PATIENCE_S = 60
START_MS = 1_700_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def workers_config(**fields: Any) -> Config:
    return Config(workers=Workers(enabled=True, defaults=WorkerDefaults()), **fields)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def on_sqlite(path: Path, clock: Clock) -> AsyncIterator[Runtime]:
    with trio.fail_after(PATIENCE_S):
        config = workers_config(storage="sqlite", db_path=str(path))
        async with open_runtime(config, clock=clock) as runtime:
            yield runtime


async def register(runtime: Runtime, worker: str = "w", **fields: Any) -> None:
    assert runtime.workers is not None
    await runtime.workers.register(
        Registration(worker_id=worker, **fields), mode="pull", owner=None
    )


async def pull(runtime: Runtime, worker: str = "w", wait_s: float = 10) -> Task | None:
    assert runtime.workers is not None
    return await runtime.workers.pull(worker, owner=None, may=lambda task: True, wait_s=wait_s)


async def pulled(runtime: Runtime, worker: str = "w") -> Task:
    task = await pull(runtime, worker)
    assert task is not None
    return task


def fence_of(task: Task) -> int:
    assert task.fence is not UNSET
    return task.fence


async def status_of(runtime: Runtime, task_id: str) -> str:
    return (await runtime.engine.get(task_id)).status


async def becomes(runtime: Runtime, task_id: str, status: str) -> None:
    with trio.fail_after(20):
        while await status_of(runtime, task_id) != status:  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_workers_and_their_tasks_outlive_the_server_on_sqlite(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "tasks.db"
    async with on_sqlite(path, clock) as runtime:
        await register(runtime, capacity=2, weight=7)
        for name in ("a", "b", "waiting"):
            await runtime.engine.create(CreateTask(id=name, assign_mode="pull"))
        tasks = {task.id: task for task in (await pulled(runtime), await pulled(runtime))}
    clock.now_ms += 3_600_000  # an hour passes before it is started again
    async with on_sqlite(path, clock) as runtime:
        assert runtime.workers is not None
        worker = await runtime.workers.get("w")
        assert (worker.used_slots, worker.capacity, worker.weight) == (2, 2, 7)
        assert [await status_of(runtime, name) for name in ("a", "b")] == ["assigned"] * 2
        holding = [Holding(task_id=t.id, fence=fence_of(t)) for t in tasks.values()]
        assert await runtime.workers.heartbeat("w", holding, owner=None) == []
        first = tasks["a"]
        for status in ("running", "completed"):
            await runtime.engine.transition("a", Transition(status=status), fence=fence_of(first))
        assert (await pulled(runtime)).id == "waiting"


async def test_a_worker_that_does_not_come_back_loses_its_tasks_after_the_grace(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "tasks.db"
    async with on_sqlite(path, clock) as runtime:
        await register(runtime)
        await runtime.engine.create(CreateTask(id="a", assign_mode="pull"))
        fence = fence_of(await pulled(runtime))
    clock.now_ms += 3_600_000
    async with on_sqlite(path, clock) as runtime:
        assert runtime.workers is not None
        loop = runtime.workers._loops["lease"]
        with trio.fail_after(10):
            while (await runtime.workers.get("w")).status != "offline":  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert await status_of(runtime, "a") == "assigned"
        clock.now_ms += 31_000
        loop.notify(0)
        await becomes(runtime, "a", "pending")
        with pytest.raises(StaleFence):
            await runtime.engine.publish("a", [], fence=fence)


async def test_slots_are_counted_anew_where_the_last_second_was_lost(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "tasks.db"
    async with on_sqlite(path, clock) as runtime:
        await register(runtime, capacity=1)
        await runtime.engine.create(CreateTask(id="a", assign_mode="pull"))
        await runtime.engine.create(CreateTask(id="b", assign_mode="pull"))
        await pulled(runtime)
    async with open_sqlite(path) as backend:
        stored = await backend.store.row("workers", "w")
        assert stored is not None
    async with on_sqlite(path, clock) as runtime:
        assert runtime.workers is not None
        assert (await runtime.workers.get("w")).used_slots == 1
        assert await pull(runtime, wait_s=0.1) is None


# Redis -------------------------------------------------------------------------------------------


@pytest.fixture
def redis_config() -> Config:
    return workers_config(
        storage="redis", redis=Redis(url=SecretUrl(redis_url()), prefix=new_prefix())
    )


@asynccontextmanager
async def two(config: Config) -> AsyncIterator[tuple[Runtime, Runtime]]:
    with trio.fail_after(PATIENCE_S):
        async with AsyncExitStack() as stack:
            one, other = [await stack.enter_async_context(open_runtime(config)) for _ in range(2)]
            peers = one.backend.peers
            assert peers is not None
            while peers.count < 2:  # noqa: ASYNC110
                await trio.sleep(0.05)
            yield one, other


async def test_a_pull_is_woken_at_once_by_a_task_that_another_process_creates(
    redis_config: Config,
) -> None:
    async with two(redis_config) as (one, other):
        await register(one)
        for n in range(3):
            got: list[float] = []
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    await pulled(one)
                    got.append(trio.current_time())  # noqa: B023

                nursery.start_soon(wait)
                await trio.sleep(0.5)
                created = trio.current_time()
                await other.engine.create(CreateTask(id=f"t{n}", assign_mode="pull"))
            assert got[0] - created < 0.9, "it was not the look of each second that woke it"


async def test_racing_processes_never_give_a_worker_more_than_its_capacity(
    redis_config: Config,
) -> None:
    async with two(redis_config) as runtimes:
        await register(runtimes[0], capacity=5)
        for n in range(20):
            await runtimes[n % 2].engine.create(CreateTask(id=f"t{n}", assign_mode="pull"))
        got: list[Task | None] = []

        async def wait(runtime: Runtime) -> None:
            got.append(await pull(runtime, wait_s=1.5))

        async with trio.open_nursery() as nursery:
            for n in range(16):
                nursery.start_soon(wait, runtimes[n % 2])
        tasks = [task for task in got if task is not None]
        assert len(tasks) == len({task.id for task in tasks}) == 5
        workers = runtimes[1].workers
        assert workers is not None
        assert (await workers.get("w")).used_slots == 5
        # A slot that is freed in one process serves who waits in the other.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, runtimes[1])
            await trio.sleep(0.3)
            await runtimes[0].engine.transition(tasks[0].id, Transition(status="cancelled"))
        assert got[-1] is not None


async def test_a_worker_hears_of_a_cancel_in_another_process_and_is_asked_from_there(
    redis_config: Config,
) -> None:
    async with two(redis_config) as (one, other):
        said, heard = trio.open_memory_channel[dict[str, Any]](100)
        session = Session(
            "", "s", send=said.send_nowait, close=lambda reason: None, may=lambda task: True
        )
        assert one.workers is not None
        await one.workers.connect(
            Registration(worker_id="w", match_rule=MatchRule(task_types=("x",))),
            session,
            owner=None,
        )
        started = trio.current_time()
        await other.engine.create(CreateTask(id="t", type="x", assign_mode="ws-offer"))
        assert (await heard.receive())["type"] == "offer"
        await one.workers.accept(session, "t")
        await trio.sleep(0.3)
        cancelled = trio.current_time()
        await other.engine.transition("t", Transition(status="cancelled"))
        assert (await heard.receive())["reason"] == "cancelled"
        assert trio.current_time() - cancelled < 0.9
        assert cancelled - started < 2
        await one.workers.disconnect(session, clean=True)


async def test_a_worker_is_not_asked_again_within_a_second_in_another_process(
    redis_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the hint about it is lost."""
    monkeypatch.setattr(Hints, "declined", lambda *_: None)
    async with two(redis_config) as (one, other):
        await register(one)
        await one.engine.create(CreateTask(id="t", assign_mode="pull"))
        await pulled(one)
        for holder, asker in ((one, other), (other, one)) * 2:
            assert holder.workers is not None
            await holder.workers.decline("w", "t", blacklist=False)
            declined = trio.current_time()
            await pulled(asker)
            assert trio.current_time() - declined > 0.9


async def test_a_worker_that_was_drained_in_one_process_gets_nothing_in_another(
    redis_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the answer on: also its pull that waits there, whatever hint is under way or lost."""
    monkeypatch.setattr(Hints, "worker", lambda *_: None)
    async with two(redis_config) as (one, other):
        assert one.workers is not None
        await register(one)
        got: list[Task | None] = []

        async def wait() -> None:
            got.append(await pull(other, wait_s=0.3))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.1)
            await one.workers.set_draining("w", draining=True)
            await other.engine.create(CreateTask(id="t", assign_mode="pull"))
        assert got == [None]
        assert await status_of(one, "t") == "pending"


async def test_heartbeats_in_one_process_keep_a_worker_online_in_the_other() -> None:
    defaults = WorkerDefaults(heartbeat_interval_ms=500, heartbeat_timeout_ms=2500)
    config = Config(
        workers=Workers(enabled=True, defaults=defaults),
        storage="redis",
        redis=Redis(url=SecretUrl(redis_url()), prefix=new_prefix()),
    )
    async with two(config) as (one, other):
        await register(one)
        assert one.workers is not None
        assert other.workers is not None
        for _ in range(10):
            await one.workers.heartbeat("w", UNSET, owner=None)
            await trio.sleep(0.5)
            assert (await other.workers.get("w")).status == "idle"


async def test_workers_are_counted_over_all_processes(redis_config: Config) -> None:
    config = msgspec.structs.replace(redis_config, limits=Limits(workers=10))
    async with two(config) as runtimes:
        refused: list[str] = []

        async def enter(runtime: Runtime, worker: str) -> None:
            try:
                await register(runtime, worker)
            except RateLimited:
                refused.append(worker)

        async with trio.open_nursery() as nursery:
            for n in range(30):
                nursery.start_soon(enter, runtimes[n % 2], f"w{n}")
        assert len(refused) == 20
        for runtime in runtimes:
            assert runtime.workers is not None
            workers = await runtime.workers.all()
            assert len(workers) == 10
            await register(runtime, workers[0].id)
        await runtimes[0].workers.delete(workers[0].id)  # type: ignore[union-attr]
        await register(runtimes[0], refused[0])


async def test_a_worker_is_known_after_every_process_has_restarted(redis_config: Config) -> None:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(redis_config) as runtime:
            await register(runtime, capacity=3)
            await runtime.engine.create(CreateTask(id="t", assign_mode="pull"))
            fence = fence_of(await pulled(runtime))
            await runtime.engine.create(CreateTask(id="waiting", assign_mode="pull", cost=3))
            assert await pull(runtime, wait_s=0.2) is None
        async with open_runtime(redis_config) as runtime:
            assert runtime.workers is not None
            assert (await runtime.workers.get("w")).used_slots == 1
            await runtime.workers.heartbeat("w", UNSET, owner=None)
            done = Transition(status="running")
            await runtime.engine.transition("t", done, fence=fence)
            await runtime.engine.transition("t", Transition(status="completed"), fence=fence)
            assert (await pulled(runtime)).id == "waiting"


# Processes ---------------------------------------------------------------------------------------


@asynccontextmanager
async def worker_process(url: str, worker: str, hold_s: float) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.integration.worker_process", url, worker, str(hold_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


async def lines(process: trio.Process, count: int) -> list[str]:
    said = b""
    assert process.stdout is not None
    while said.count(b"\n") < count:
        part = await process.stdout.receive_some()
        assert part, "the worker has ended"
        said += part
    return said.decode().split()


@pytest.mark.parametrize("storage", ["memory", "redis"])
async def test_a_killed_worker_that_held_five_tasks_has_them_finished_elsewhere(
    storage: str,
) -> None:
    options = ["--workers-api", "--workers-defaults-heartbeat-timeout-ms", "1500"]
    options += ["--workers-defaults-disconnect-grace-ms", "500"]
    if storage == "redis":
        options += ["--redis-url", redis_url(), "--redis-prefix", new_prefix()]
    with trio.fail_after(PATIENCE_S):
        async with (
            server_process(*options) as (url, _),
            worker_process(url, "doomed", 600) as doomed,
        ):
            tasks = [await created(url) for _ in range(5)]
            assert sorted(await lines(doomed, 5)) == sorted(tasks)
            doomed.send_signal(signal.SIGKILL)
            async with worker_process(url, "spare", 0.1) as spare:
                assert sorted(await lines(spare, 5)) == sorted(tasks)
                for task in tasks:
                    actions = await actions_of(url, task, "completed")
                    assert actions == ["assigned", "lost", "assigned"]


@pytest.mark.parametrize("storage", ["sqlite", "redis"])
async def test_a_server_that_is_killed_under_its_worker_goes_on_with_it(
    storage: str, tmp_path: Path
) -> None:
    options = ["--workers-api", "-s", storage]
    if storage == "redis":
        options += ["--redis-url", redis_url(), "--redis-prefix", new_prefix()]
    else:
        options += ["--db-path", str(tmp_path / "tasks.db")]
    with trio.fail_after(PATIENCE_S):
        async with AsyncExitStack() as stack:
            async with server_process(*options) as (url, server):
                worker = await stack.enter_async_context(worker_process(url, "w", 3))
                tasks = [await created(url) for _ in range(2)]
                assert sorted(await lines(worker, 2)) == sorted(tasks)
                server.send_signal(signal.SIGKILL)
                await server.wait()
            port = url.rsplit(":", 1)[1]
            async with server_process(*options, "-p", port):
                waiting = await created(url)
                assert await lines(worker, 1) == [waiting]
                for task in tasks:
                    assert await actions_of(url, task, "completed") == ["assigned"]


async def created(url: str) -> str:
    async with httpx.AsyncClient(base_url=url) as client:
        task: str = (await client.post("/tasks", json={"assignMode": "pull"})).json()["id"]
    return task


async def actions_of(url: str, task: str, status: str) -> list[str]:
    """What was done with the task, once it has this status."""
    async with httpx.AsyncClient(base_url=url) as client:
        while (await client.get(f"/tasks/{task}")).json()["status"] != status:  # noqa: ASYNC110
            await trio.sleep(0.05)
        log = (await client.get(f"/tasks/{task}/events/history")).json()
    return [event["data"]["action"] for event in log if event["type"] == "taskcast:audit"]
