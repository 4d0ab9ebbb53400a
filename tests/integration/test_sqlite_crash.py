"""What was answered 201 is there after the process was killed, however often."""

from __future__ import annotations

import random
import signal
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from .server_process import server_process

CYCLES = 50
PUBLISHERS = 8
SEED = 7


@dataclass
class Acknowledged:
    """What one publisher was answered, in the order of its answers."""

    task: str
    texts: dict[int, str] = field(default_factory=dict)
    """By index. What got no answer may be there too, at most once: its text names no other."""
    sent: int = 0


def killed_at_the_end(
    database: Path, *options: str
) -> AbstractAsyncContextManager[tuple[str, trio.Process]]:
    """A server process on this file, and its URL."""
    return server_process("-s", "sqlite", "--db-path", str(database), *options)


async def publish(client: httpx.AsyncClient, to: Acknowledged, dice: random.Random) -> None:
    """Publish pieces, single and in batches, until the server is gone."""
    while True:
        pieces = [f"<{to.task}:{to.sent + n}>" for n in range(dice.choice((1, 1, 5)))]
        to.sent += len(pieces)
        events = [
            {
                "type": "piece",
                "level": "info",
                "data": {"delta": text},
                "seriesId": "text",
                "seriesMode": "accumulate",
            }
            for text in pieces
        ]
        try:
            answer = await client.post(f"/tasks/{to.task}/events", json=events)
        except httpx.TransportError:
            return
        assert answer.status_code == 201, answer.text
        for event in answer.json():
            to.texts[event["index"]] = event["data"]["delta"]


async def check(client: httpx.AsyncClient, expected: Acknowledged) -> None:
    """Every acknowledged event is at its index, indexes are contiguous, the series is the join."""
    history = (await client.get(f"/tasks/{expected.task}/events/history")).json()
    assert [event["index"] for event in history] == list(range(len(history)))
    texts = [event["data"]["delta"] for event in history]
    assert len(set(texts)) == len(texts), "an event is there twice"
    stored = dict(enumerate(texts))
    assert expected.texts.items() <= stored.items()
    joined = (
        await client.get(f"/tasks/{expected.task}/events/history?seriesFormat=accumulated")
    ).json()
    if texts:
        assert [event["data"]["delta"] for event in joined] == ["".join(texts)]


# httpx leaves the generator of a body that could not be sent to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_nothing_acknowledged_is_lost_over_many_kills(
    tmp_path: Path, synchronous: str
) -> None:
    dice = random.Random(SEED)
    tasks = [Acknowledged(f"t{number}") for number in range(PUBLISHERS)]
    option = ("--sqlite-synchronous", synchronous)
    for cycle in range(CYCLES // 2):
        with trio.fail_after(30):
            async with (
                killed_at_the_end(tmp_path / "crash.db", *option) as (url, process),
                httpx.AsyncClient(base_url=url, timeout=20) as client,
            ):
                for task in tasks:
                    if cycle == 0:
                        answer = await client.post("/tasks", json={"id": task.task})
                        assert answer.status_code == 201
                    await check(client, task)
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(publish, client, task, dice)
                    await until_some_more(tasks, dice.randrange(1, 40))
                    process.send_signal(signal.SIGKILL)
    async with (
        killed_at_the_end(tmp_path / "crash.db", *option) as (url, process),
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        for task in tasks:
            await check(client, task)
    assert sum(len(task.texts) for task in tasks) > CYCLES


async def until_some_more(tasks: list[Acknowledged], count: int) -> None:
    """Wait until so many more answers have come: the kill then falls among the next ones."""
    goal = sum(len(task.texts) for task in tasks) + count
    while sum(len(task.texts) for task in tasks) < goal:
        await trio.lowlevel.checkpoint()


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Tasks, logs, keys and series, after an orderly end."""

    async def first() -> Any:
        async with (
            killed_at_the_end(tmp_path / "a.db") as (url, _),
            httpx.AsyncClient(base_url=url) as client,
        ):
            await client.post("/tasks", json={"id": "t", "params": {"a": 1}})
            await client.patch("/tasks/t/status", json={"status": "running"})
            event = {"type": "a", "level": "info", "data": {"x": 1}}
            headers = {"Idempotency-Key": "k"}
            return (await client.post("/tasks/t/events", json=event, headers=headers)).json()

    async def second(before: Any) -> None:
        async with (
            killed_at_the_end(tmp_path / "a.db") as (url, _),
            httpx.AsyncClient(base_url=url) as client,
        ):
            event = {"type": "a", "level": "info", "data": {"x": 1}}
            headers = {"Idempotency-Key": "k"}
            again = await client.post("/tasks/t/events", json=event, headers=headers)
            assert again.json() == before
            new = (await client.post("/tasks/t/events", json=event)).json()
            assert new["index"] == before["index"] + 1
            # A cursor from before the restart is still one.
            await client.patch("/tasks/t/status", json={"status": "completed"})
            resumed = await client.get("/tasks/t/events", headers={"Last-Event-ID": before["id"]})
            assert "taskcast.gap" not in resumed.text
            assert f'"rawIndex":{new["index"]}' in resumed.text
            assert f'"rawIndex":{before["index"]},' not in resumed.text

    trio.run(second, trio.run(first))
