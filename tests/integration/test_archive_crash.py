"""A server that archives is killed: over memory the archived prefix is what is left, over SQLite
all of it, and the archive catches up by itself.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from ..storage.postgres.server import psql
from .server_process import server_process

KILLS = 8
TASKS = 4
SEED = 11

# httpx leaves the generator of a body that could not be sent to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def event(text: str) -> dict[str, Any]:
    return {
        "type": "piece",
        "level": "info",
        "data": {"delta": text},
        "seriesId": "text",
        "seriesMode": "accumulate",
    }


async def publish(client: httpx.AsyncClient, task: str, answered: list[dict[str, Any]]) -> None:
    """Publish until the server is gone."""
    number = 0
    while True:
        try:
            answer = await client.post(
                f"/tasks/{task}/events", json=[event(f"<{number}>"), event(f"<{number + 1}>")]
            )
        except httpx.TransportError:
            return
        assert answer.status_code == 201, answer.text
        answered += answer.json()
        number += 2


async def history(client: httpx.AsyncClient, task: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = (await client.get(f"/tasks/{task}/events/history")).json()
    assert [each["index"] for each in events] == list(range(len(events)))
    return events


async def test_over_memory_the_archived_prefix_is_left_and_its_end_is_a_new_epoch(
    postgres_url: str,
) -> None:
    dice = random.Random(SEED)
    tasks = [f"t{number}" for number in range(TASKS)]
    answered: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    before: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    for kill in range(KILLS):
        with trio.fail_after(60):
            async with (
                server_process("--postgres-url", postgres_url) as (url, process),
                httpx.AsyncClient(base_url=url, timeout=20) as client,
            ):
                for task in tasks:
                    if not before[task]:  # it may have been killed before the task was archived
                        created = await client.post("/tasks", json={"id": task})
                        assert created.status_code in ((201,) if kill == 0 else (201, 409))
                    archived = await history(client, task)
                    assert archived == (before[task] + answered[task])[: len(archived)]
                    assert len(archived) >= len(before[task]), "what was archived is gone"
                    lost = (before[task] + answered[task])[len(archived) :]
                    new = (await client.post(f"/tasks/{task}/events", json=event("|"))).json()
                    assert new["index"] == len(archived)
                    assert new["id"] not in {each["id"] for each in lost}
                    before[task], answered[task] = archived, [new]
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(publish, client, task, answered[task])
                    goal = dice.randrange(20, 120)
                    while sum(map(len, answered.values())) < goal:
                        await trio.lowlevel.checkpoint()
                    process.send_signal(signal.SIGKILL)


async def test_over_sqlite_nothing_is_lost_and_the_archive_equals_the_log(
    tmp_path: Path, postgres_url: str
) -> None:
    dice = random.Random(SEED)
    options = ("-s", "sqlite", "--db-path", str(tmp_path / "t.db"), "--postgres-url", postgres_url)
    tasks = [f"t{number}" for number in range(TASKS)]
    answered: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    logs: dict[str, list[dict[str, Any]]] = {}
    for kill in range(KILLS):
        with trio.fail_after(60):
            async with (
                server_process(*options) as (url, process),
                httpx.AsyncClient(base_url=url, timeout=20) as client,
            ):
                for task in tasks:
                    if kill == 0:
                        assert (await client.post("/tasks", json={"id": task})).is_success
                    stored = {each["id"] for each in await history(client, task)}
                    assert {each["id"] for each in answered[task]} <= stored
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(publish, client, task, answered[task])
                    goal = sum(map(len, answered.values())) + dice.randrange(20, 120)
                    while sum(map(len, answered.values())) < goal:
                        await trio.lowlevel.checkpoint()
                    process.send_signal(signal.SIGKILL)
    with trio.fail_after(60):
        async with (
            server_process(*options) as (url, process),
            httpx.AsyncClient(base_url=url, timeout=20) as client,
        ):
            for task in tasks:
                logs[task] = await history(client, task)
            process.send_signal(signal.SIGTERM)
            await process.wait()
    archive = psql(
        postgres_url, "SELECT task_id || ' ' || id FROM taskcast_events ORDER BY task_id, idx"
    )
    assert archive.split("\n") == [f"{task} {each['id']}" for task in tasks for each in logs[task]]
