"""A server that is killed in the middle of its deliveries, again and again, loses none."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from tests.receiver import Received, Receiver, Wire, receiving

from .test_sqlite_crash import killed_at_the_end

CYCLES = 20
HOOKS = 3
SEED = 11
EVENTS_EACH = 20
LAST_FEW = 16
"""So many may be repeated after a kill; the number of a save."""


def indexes(receiver: Receiver, hook: int) -> list[int]:
    """What this webhook was sent, in order."""
    return [
        msgspec.json.decode(request.body)["index"]
        for request in receiver.requests
        if request.line.startswith(f"POST /{hook} ")
    ]


async def moody(request: Received, wire: Wire) -> bool | None:
    """Mostly fine, sometimes slow, sometimes not; and sometimes it says nothing of what it has."""
    mood = random.random()
    if mood < 0.02:
        await wire.answer(500)
    elif mood < 0.03:
        wire.reset()
        return False
    else:
        if mood < 0.1:
            await trio.sleep(0.02)
        await wire.answer(204)
    return None


async def publish(client: httpx.AsyncClient, count: int) -> None:
    events = [{"type": "a", "level": "info"}] * count
    with suppress(httpx.TransportError):  # killed meanwhile: the log says what was stored
        await client.post("/tasks/t/events", json=events)


async def until(receiver: Receiver, requests: int) -> None:
    while len(receiver.requests) < requests:
        await trio.lowlevel.checkpoint()


# httpx leaves the generator of a body that could not be sent to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_every_event_arrives_in_order_over_twenty_kills(tmp_path: Path) -> None:
    random.seed(SEED)
    dice = random.Random(SEED)
    retry = {"retries": 50, "backoff": "fixed", "initialDelayMs": 20}
    with trio.fail_after(180):
        async with receiving(moody, patience_s=180) as receiver:
            hooks = [{"url": receiver.url(f"/{n}"), "retry": retry} for n in range(HOOKS)]
            for cycle in range(CYCLES):
                async with (
                    killed_at_the_end(tmp_path / "t.db") as (url, process),
                    httpx.AsyncClient(base_url=url, timeout=20) as client,
                ):
                    if cycle == 0:
                        made = await client.post("/tasks", json={"id": "t", "webhooks": hooks})
                        assert made.status_code == 201
                    before = len(receiver.requests)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(publish, client, EVENTS_EACH)
                        goal = before + dice.randrange(1, EVENTS_EACH)
                        with trio.move_on_after(2):
                            await until(receiver, goal)
                        process.kill()
            async with (
                killed_at_the_end(tmp_path / "t.db") as (url, process),
                httpx.AsyncClient(base_url=url, timeout=20) as client,
            ):
                await client.patch("/tasks/t/status", json={"status": "running"})
                await client.patch("/tasks/t/status", json={"status": "completed"})
                log = (await client.get("/tasks/t/events/history")).json()
                owed = [event["index"] for event in log]
                assert owed == list(range(len(owed)))
                assert len(owed) > CYCLES * EVENTS_EACH / 2
                while True:
                    found = (await client.get("/tasks/t/webhooks")).json()["webhooks"]
                    if all(hook["pending"] == 0 for hook in found):
                        break
                    await trio.sleep(0.05)
                assert [hook["deadLetters"] for hook in found] == [0] * HOOKS
            for hook in range(HOOKS):
                check(indexes(receiver, hook), owed)


def check(sent: list[int], owed: list[int]) -> None:
    """Every event, each for the first time in order, and no jump but back by a few."""
    assert list(dict.fromkeys(sent)) == owed
    steps = [later - earlier for earlier, later in pairwise(sent)]
    assert max(steps) == 1
    assert min(steps) >= -LAST_FEW - 1
    assert sum(step < 0 for step in steps) <= CYCLES
