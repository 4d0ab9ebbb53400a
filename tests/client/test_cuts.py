"""10,000 events arrive once and in order, though 200 connections break on the way: of those who
follow, and of those who publish.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from taskcast_trio.client import (
    AsyncTaskcastClient,
    RetryPolicy,
    TaskcastClient,
    draft,
    value,
)
from taskcast_trio.core.model import Envelope

from .fault_proxy import Fault, fault_proxy, until
from .flavours import NAMES, Flavour
from .real_server import running_server

EVENTS = 10_000
CUTS = 200


@pytest.fixture(params=NAMES)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return Flavour(request.param)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server("--sse-retry-ms", "1") as url:
        yield url


def number(data: Any) -> int:
    found: int = value(data)["n"]
    return found


@contextmanager
def publishing(url: str, task_id: str) -> Iterator[None]:
    """Half of the events are there; the others are published meanwhile, and then the task ends."""

    def publish(client: TaskcastClient, first: int, last: int) -> None:
        for start in range(first, last, 100):
            numbers = range(start, start + 100)
            client.publish_many(task_id, [draft("n", {"n": number}) for number in numbers])

    def live() -> None:
        publish(client, EVENTS // 2, EVENTS)
        client.transition(task_id, "completed")

    with TaskcastClient(url) as client:
        publish(client, 0, EVENTS // 2)
        thread = threading.Thread(target=live)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def broken_stream(rng: random.Random) -> Fault:
    """Somewhere in the answer: in its head, between frames, or inside of one."""
    return Fault(cut_down=rng.randrange(100, 9000), delay_s=rng.choice([0, 0, 0.001]))


def broken_publish(rng: random.Random) -> Fault:
    """Inside of a request; before its answer comes; or each request arrives twice."""
    kind = rng.randrange(3)
    if kind == 0:
        return Fault(cut_up=rng.randrange(1, 8000), delay_s=rng.choice([0, 0.001]))
    if kind == 1:
        return Fault(swallow=rng.randrange(2))
    return Fault(doubled=True, swallow=rng.randrange(2))


def test_who_follows_gets_each_event_once(flavour: Flavour, url: str) -> None:
    with TaskcastClient(url) as direct:
        task = direct.create()
        direct.transition(task.id, "running")

    async def scenario(client: AsyncTaskcastClient) -> None:
        async with client.subscribe(task.id, types=["n"]) as stream:
            seen = []
            async for item in stream:
                assert isinstance(item, Envelope)
                seen.append(number(item.data))
            assert seen == list(range(EVENTS))
            assert stream.done == "completed"
            assert not stream.gaps

    with (
        publishing(url, task.id),
        fault_proxy(url, until(CUTS, broken_stream, seed=7)) as proxy,
    ):
        flavour.play(proxy.url, scenario)
        assert proxy.cuts == CUTS


def test_what_is_published_is_stored_once(flavour: Flavour, url: str) -> None:
    patient = RetryPolicy(tries=1000, first_pause_s=0.001, max_pause_s=0.001)
    ids: list[str] = []

    async def scenario(client: AsyncTaskcastClient) -> None:
        async with client.run(type="cut", retries=patient) as run:
            ids.append(run.id)
            for each in range(EVENTS):
                await run.emit("n", {"n": each})
                if each % 20 == 0:
                    await run.flush()

    with fault_proxy(url, until(CUTS, broken_publish, seed=7)) as proxy:
        flavour.play(proxy.url, scenario, retries=patient)
        assert proxy.cuts == CUTS
        assert proxy.doubles > CUTS / 5
    with TaskcastClient(url) as direct:
        log = direct.history(ids[0], types=["n"])
        assert [number(event.data) for event in log] == list(range(EVENTS))
        assert [event.client_seq for event in log] == list(range(EVENTS))
        assert direct.get(ids[0]).status == "completed"
