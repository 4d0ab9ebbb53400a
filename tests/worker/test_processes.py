"""Workers that are processes: killed, drained, and with a server that is restarted under them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from taskcast_trio.client import AsyncTaskcastClient

from ..integration.server_process import server_process
from ..storage.redis.server import free_port, new_prefix, redis_url
from .support import MODES

PATIENCE_S = 60
WORKERS = ("--workers-api", "--workers-defaults-heartbeat-timeout-ms", "2000")


@asynccontextmanager
async def worker_process(
    url: str, mode: str, name: str, *orders: str, drain_s: float = 30
) -> AsyncIterator[Any]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.worker.process", url, mode, name, str(drain_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        await order(process, *orders)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


async def order(process: Any, *orders: str) -> None:
    await process.stdin.send_all("".join(f"{line}\n" for line in orders).encode())


async def said(process: Any, count: int) -> list[str]:
    """What the worker says next, in so many lines: the second word of each."""
    text = b""
    while text.count(b"\n") < count:
        part = await process.stdout.receive_some(1)  # what comes after is left for the next one
        assert part, "the worker has ended"
        text += part
    return [line.split()[1] for line in text.decode().splitlines()]


async def create(client: httpx.AsyncClient, mode: str, count: int, **fields: Any) -> list[str]:
    tasks = []
    for _ in range(count):
        body = {"type": "job", "assignMode": MODES[mode], **fields}
        answer = await client.post("/tasks", json=body)
        tasks.append(answer.json()["id"])
    return tasks


async def finished(client: httpx.AsyncClient, task: str) -> dict[str, Any]:
    await client.get(f"/tasks/{task}/events", timeout=PATIENCE_S)  # ends with the task
    found: dict[str, Any] = (await client.get(f"/tasks/{task}")).json()
    assert found["status"] == "completed", found
    return found


async def has_begun(url: str, task: str) -> None:
    """Wait until the first step is in the task's log."""
    async with (
        AsyncTaskcastClient(url) as client,
        client.subscribe(task, types=["step"]) as stream,
    ):
        await anext(stream)


async def log_of(client: httpx.AsyncClient, task: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = (await client.get(f"/tasks/{task}/events/history")).json()
    assert [event["index"] for event in events] == list(range(len(events)))
    return events


def actions(events: list[dict[str, Any]]) -> list[str]:
    return [each["data"]["action"] for each in events if each["type"] == "taskcast:audit"]


async def test_a_killed_worker_that_held_five_tasks_has_them_finished_elsewhere(mode: str) -> None:
    options = (*WORKERS, "--workers-defaults-disconnect-grace-ms", "500")
    with trio.fail_after(PATIENCE_S):
        async with (
            server_process(*options) as (url, _),
            httpx.AsyncClient(base_url=url) as client,
            worker_process(url, mode, "doomed") as doomed,
        ):
            tasks = await create(client, mode, 5)
            assert sorted(await said(doomed, 5)) == sorted(tasks)
            async with worker_process(url, mode, "spare", "finish") as spare:
                doomed.send_signal(signal.SIGKILL)
                assert sorted(await said(spare, 5)) == sorted(tasks)
                for task in tasks:
                    assert (await finished(client, task))["result"] == {"by": "spare"}
                    events = await log_of(client, task)
                    assert actions(events) == ["assigned", "lost", "assigned"]


@pytest.mark.parametrize("storage", ["sqlite", "redis"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_is_restarted_finds_its_workers_at_work(
    mode: str, storage: str, how: signal.Signals, tmp_path: Path
) -> None:
    """What they emit meanwhile comes after, in order and once; nothing is assigned anew."""
    options = [*WORKERS, "-p", str(free_port())]
    if storage == "redis":
        options += ["--redis-url", redis_url(), "--redis-prefix", new_prefix()]
    else:
        options += ["-s", "sqlite", "--db-path", str(tmp_path / "tasks.db")]
    with trio.fail_after(PATIENCE_S):
        async with (
            server_process(*options) as (url, process),
            worker_process(url, mode, "w") as worker,
        ):
            async with httpx.AsyncClient(base_url=url) as client:
                tasks = await create(client, mode, 3)
                assert sorted(await said(worker, 3)) == sorted(tasks)
                await order(worker, *["step"] * 20)
                for task in tasks:
                    await has_begun(url, task)
            process.send_signal(how)
            await process.wait()
            await order(worker, *["step"] * 30)
            async with (
                server_process(*options) as (url, _),
                httpx.AsyncClient(base_url=url) as client,
            ):
                await order(worker, *["step"] * 30, "finish")
                for task in tasks:
                    await finished(client, task)
                    events = await log_of(client, task)
                    steps = [each["data"]["n"] for each in events if each["type"] == "step"]
                    assert steps == list(range(80))
                    assert actions(events) == ["assigned"]
                (later,) = await create(client, mode, 1)
                assert await said(worker, 1) == [later]


@pytest.mark.parametrize("in_time", [True, False])
async def test_sigterm_drains_a_worker(mode: str, in_time: bool) -> None:
    """What it can finish in time it finishes, the rest is given back; nothing waits for a lease."""
    with trio.fail_after(PATIENCE_S):
        async with (
            server_process(*WORKERS) as (url, _),
            httpx.AsyncClient(base_url=url) as client,
            worker_process(url, mode, "w", drain_s=30 if in_time else 0.3) as worker,
        ):
            tasks = await create(client, mode, 3)
            await said(worker, 3)
            worker.send_signal(signal.SIGTERM)
            assert await said(worker, 1) == ["stops"]
            (later,) = await create(client, mode, 1)
            started = trio.current_time()
            if in_time:
                await order(worker, "finish")
            assert await said(worker, 1) == ["end"]
            assert await worker.wait() == 0
            assert trio.current_time() - started < 20
            async with worker_process(url, mode, "other", "finish") as other:
                left = [later] if in_time else [*tasks, later]
                assert sorted(await said(other, len(left))) == sorted(left)
                for task in left:
                    await finished(client, task)
                for task in tasks:
                    expected = ["assigned"] if in_time else ["assigned", "declined", "assigned"]
                    assert actions(await log_of(client, task)) == expected


async def test_a_second_signal_ends_a_worker_at_once(mode: str) -> None:
    with trio.fail_after(PATIENCE_S):
        async with (
            server_process(*WORKERS) as (url, _),
            httpx.AsyncClient(base_url=url) as client,
            worker_process(url, mode, "w") as worker,
        ):
            await create(client, mode, 1)
            await said(worker, 1)
            worker.send_signal(signal.SIGTERM)
            assert await said(worker, 1) == ["stops"]
            worker.send_signal(signal.SIGTERM)
            assert await worker.wait() == -signal.SIGTERM
