"""Deadlines on durable stores: they outlive the process, and begin anew where only the archive is
left.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Redis
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.deadline import DEADLINE, WAKE
from taskcast_trio.core.model import BlockedRequest, CreateTask, Transition
from taskcast_trio.engine import Done, Runtime, open_runtime
from taskcast_trio.engine.scheduler import SWEPT

from ..storage.redis.server import new_prefix, redis_url
from .server_process import server_process
from .test_archive import archived, config

PATIENCE_S = 60
START_MS = 1_700_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def opened(path: Path, clock: Clock) -> AsyncIterator[Runtime]:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(Config(storage="sqlite", db_path=str(path)), clock=clock) as found:
            yield found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


async def end_of(runtime: Runtime, id_: str = "t") -> str:
    async with runtime.engine.subscribe(id_) as subscription:
        async for item in subscription:
            if isinstance(item, Done):
                return item.reason
    raise AssertionError


async def until(runtime: Runtime, status: str, id_: str = "t") -> None:
    while (await runtime.engine.get(id_)).status != status:
        await trio.lowlevel.checkpoint()


def later(runtime: Runtime, clock: Clock, seconds: float) -> None:
    """Let time pass without sleeping."""
    clock.now_ms += round(seconds * 1000)
    runtime.scheduler.notify({DEADLINE: 0, WAKE: 0})


async def test_a_deadline_outlives_the_process_that_set_it(path, clock):
    async with opened(path, clock) as runtime:
        await runtime.engine.create(CreateTask(id="t", ttl=60))
        await runtime.engine.create(CreateTask(id="paused", ttl=60))
        await runtime.engine.transition("paused", Transition(status="paused"))
    clock.now_ms += 59_999
    async with opened(path, clock) as runtime:
        assert (await runtime.engine.get("t")).status == "pending"
        assert await runtime.engine.store.next_due(DEADLINE) == START_MS + 60_000
        later(runtime, clock, 0.001)
        assert await end_of(runtime) == "timeout"
        assert (await runtime.engine.record("t")).next_index == 1
        assert (await runtime.engine.get("paused")).status == "paused"


async def test_deadlines_that_passed_while_nobody_ran_are_met_at_the_start(path, clock):
    async with opened(path, clock) as runtime:
        for number in range(200):
            await runtime.engine.create(CreateTask(id=str(number), ttl=60))
    clock.now_ms += 3_600_000
    async with opened(path, clock) as runtime:
        for number in range(200):
            assert await end_of(runtime, str(number)) == "timeout"
            assert (await runtime.engine.record(str(number))).next_index == 1
        assert await runtime.engine.store.next_due(DEADLINE) is None
    async with opened(path, clock) as runtime:
        assert runtime.engine.metrics.transitions.labels("timeout")._value.get() == 0


async def test_waking_up_outlives_the_process_too(path, clock):
    blocked = Transition(
        status="blocked", resume_after_ms=5000, blocked_request=BlockedRequest(type="a")
    )
    async with opened(path, clock) as runtime:
        await runtime.engine.create(CreateTask(id="t"))
        await runtime.engine.transition("t", Transition(status="running"))
        await runtime.engine.transition("t", blocked)
    clock.now_ms += 4999
    async with opened(path, clock) as runtime:
        assert (await runtime.engine.get("t")).status == "blocked"
        later(runtime, clock, 0.001)
        await until(runtime, "running")
        page = await runtime.engine.store.read("t", after=1, limit=9)
        assert [entry.type for entry in page.entries] == [
            "taskcast:blocked",
            "taskcast:status",
            "taskcast:resolved",
        ]


async def test_blocked_and_back_keeps_the_clock_and_paused_restarts_it(path, clock):
    async with opened(path, clock) as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t", ttl=60))
        for status in ("running", "blocked", "running"):
            clock.now_ms += 10_000
            await engine.transition("t", Transition(status=status))
        assert await engine.store.next_due(DEADLINE) == START_MS + 60_000
        await engine.transition("t", Transition(status="paused"))
        assert await engine.store.next_due(DEADLINE) is None
        await engine.transition("t", Transition(status="running"))
        assert await engine.store.next_due(DEADLINE) == clock.now_ms + 60_000
        await engine.transition("t", Transition(status="blocked", ttl=5))
        later(runtime, clock, 5)
        assert await end_of(runtime) == "timeout"


async def test_a_file_from_a_version_without_deadlines_starts_the_clocks_of_its_tasks(path, clock):
    async with opened(path, clock) as runtime:
        for id_ in ("t", "paused", "ended"):
            await runtime.engine.create(CreateTask(id=id_, ttl=60))
        await runtime.engine.transition("paused", Transition(status="paused"))
        await runtime.engine.transition("ended", Transition(status="cancelled"))
    with closing(sqlite3.connect(path)) as file:
        file.execute("DELETE FROM timers")
        file.execute("DELETE FROM notes WHERE key = ?", (SWEPT,))
        file.commit()
    clock.now_ms += 3_600_000
    async with opened(path, clock) as runtime:
        while await runtime.engine.store.next_due(DEADLINE) is None:
            await trio.lowlevel.checkpoint()
        later(runtime, clock, 59.999)
        assert (await runtime.engine.get("t")).status == "pending"
        later(runtime, clock, 0.001)
        assert await end_of(runtime) == "timeout"
        assert (await runtime.engine.get("paused")).status == "paused"
        assert (await runtime.engine.record("ended")).next_index == 1


async def test_a_task_that_is_taken_in_from_the_archive_begins_its_clock_anew(postgres_url, clock):
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(config(postgres_url), clock=clock) as runtime:
            await runtime.engine.create(CreateTask(id="t", ttl=60))
            await runtime.engine.transition("t", Transition(status="running"))
            await archived(runtime)
        clock.now_ms += 3_600_000
        async with open_runtime(config(postgres_url), clock=clock) as runtime:
            engine = runtime.engine
            assert (await engine.get("t")).status == "running", "nobody has taken it in"
            await engine.transition("t", Transition(status="blocked"))
            assert await engine.store.next_due(DEADLINE) == clock.now_ms + 60_000
            later(runtime, clock, 60)
            assert await end_of(runtime) == "timeout"
            await archived(runtime)
            assert runtime.archive is not None
            record = await runtime.archive.load("t")
            assert record is not None
            assert record.task.status == "timeout"


@pytest.fixture
def redis() -> Redis:
    return Redis(url=SecretUrl(redis_url()), prefix=new_prefix())


@asynccontextmanager
async def on_redis(redis: Redis, clock: Clock) -> AsyncIterator[Runtime]:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(Config(storage="redis", redis=redis), clock=clock) as found:
            yield found


async def test_processes_that_share_a_redis_end_each_task_once(redis, clock):
    ids = [str(number) for number in range(40)]
    async with on_redis(redis, clock) as one, on_redis(redis, clock) as two:
        for id_ in ids:
            await one.engine.create(CreateTask(id=id_, ttl=60))
        ends: list[str] = []

        async def end(id_: str) -> None:
            ends.append(await end_of(two, id_))

        async with trio.open_nursery() as nursery:
            for id_ in ids:
                nursery.start_soon(end, id_)
            while len(two.engine.fanout._by_task) < len(ids):
                await trio.lowlevel.checkpoint()
            clock.now_ms += 60_000
            for runtime in (one, two):
                later(runtime, clock, 0)
        assert ends == ["timeout"] * len(ids)
        assert [(await two.engine.record(id_)).next_index for id_ in ids] == [1] * len(ids)
        done = [r.engine.metrics.transitions.labels("timeout")._value.get() for r in (one, two)]
        assert sum(done) == len(ids)


async def test_a_process_on_redis_stands_in_for_the_one_that_set_the_deadline(redis, clock):
    async with on_redis(redis, clock) as one:
        await one.engine.create(CreateTask(id="t", ttl=60))
        await one.engine.create(CreateTask(id="asks"))
        await one.engine.transition("asks", Transition(status="running"))
        blocked = Transition(status="blocked", resume_after_ms=60_000)
        await one.engine.transition("asks", blocked)
    clock.now_ms += 60_000
    async with on_redis(redis, clock) as two:
        assert await end_of(two) == "timeout"
        await until(two, "running", "asks")


async def test_a_server_that_is_killed_leaves_its_deadlines_to_another(redis):
    options = ("--redis-url", redis_url(), "--redis-prefix", redis.prefix)
    with trio.fail_after(PATIENCE_S):
        async with (
            server_process(*options) as (url, _),
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
        ):
            async with (
                server_process(*options) as (doomed_url, doomed),
                httpx.AsyncClient(base_url=doomed_url, timeout=PATIENCE_S) as doomed_client,
            ):
                made = await doomed_client.post("/tasks", json={"id": "t", "ttl": 3})
                assert made.status_code == 201
                doomed.kill()
                await doomed.wait()
            assert (await client.get("/tasks/t")).json()["status"] == "pending"
            stream = (await client.get("/tasks/t/events")).text
            assert stream.count('"type":"taskcast:status"') == 1
            assert '"reason":"timeout"' in stream
            task = (await client.get("/tasks/t")).json()
            assert task["status"] == "timeout"
            assert 3000 <= task["completedAt"] - task["createdAt"] <= 4000


async def test_who_waits_in_another_process_hears_of_the_request_and_counts_nowhere(redis, clock):
    async with on_redis(redis, clock) as one, on_redis(redis, clock) as two:
        await one.engine.create(CreateTask(id="t"))
        await one.engine.transition("t", Transition(status="running"))
        requests: list[BlockedRequest] = []

        async def wait() -> None:
            requests.append(await two.engine.blocked_request("t", wait_s=PATIENCE_S))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while not two.engine.fanout._uncounted:
                await trio.lowlevel.checkpoint()
            async with two.engine.subscribe("t"):
                while (await one.engine.get("t")).subscriber_count == 0:
                    await trio.lowlevel.checkpoint()
                assert (await one.engine.get("t")).subscriber_count == 1
            request = BlockedRequest(type="approval")
            await one.engine.transition("t", Transition(status="blocked", blocked_request=request))
        assert requests == [request]
