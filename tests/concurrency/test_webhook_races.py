"""Deliveries under many schedules, with two processes that take what is due."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.model import CreateTask, Draft
from taskcast_trio.core.webhook import Webhook
from taskcast_trio.engine import TaskEngine
from taskcast_trio.engine.fanout import Fanout
from taskcast_trio.engine.metrics import Metrics
from taskcast_trio.engine.webhooks import Attempt, Lanes, Webhooks
from taskcast_trio.engine.webhooks.state import WEBHOOK
from taskcast_trio.engine.webhooks.worker import LEASE_MS, LINGER_S
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.records import PARKED_MS, Commit, Timer

from ..engine.support import raw

START_MS = 1_700_000_000_000


def clock() -> int:
    return START_MS + round(trio.current_time() * 1000)


@dataclass
class Receivers:
    """Keeps which events of which URL were sent, and fails, or is slow, by chance."""

    dice: random.Random
    failing: float = 0.0
    got: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    at_once: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    most_at_once: int = 0

    async def attempt(
        self, webhook: Webhook, *, event_type: str, delivery: str, body: bytes
    ) -> Attempt:
        url = webhook.url
        self.at_once[url] += 1
        self.most_at_once = max(self.most_at_once, self.at_once[url])
        try:
            await trio.sleep(self.dice.choice((0, 0, 0.01, LINGER_S)))
        finally:
            self.at_once[url] -= 1
        if self.dice.random() < self.failing:
            return Attempt(outcome="failed", duration_ms=0, status=500, error="status")
        self.got[url].append(int(event_type))
        return Attempt(outcome="delivered", duration_ms=0, status=204)


class LateStore(MemoryStore):
    """Who asked learns of a step only after others may have done the next ones."""

    def __init__(self, announce: Callable[[Commit], None], dice: random.Random) -> None:
        super().__init__(announce)
        self._dice = dice

    async def _late(self) -> None:
        for _ in range(self._dice.choice((0, 0, 1, 3, 9))):
            await trio.lowlevel.checkpoint()

    async def take_due(self, *args: Any, **options: Any) -> list[Timer]:
        taken = await super().take_due(*args, **options)
        await self._late()
        return taken

    async def next_due(self, kind: str) -> int | None:
        due_ms = await super().next_due(kind)
        await self._late()
        return due_ms

    async def set_timer(self, *args: Any, **options: Any) -> bool:
        done = await super().set_timer(*args, **options)
        await self._late()
        return done

    async def put_task_note(self, *args: Any, **options: Any) -> bool:
        done = await super().put_task_note(*args, **options)
        await self._late()
        return done

    async def task_notes(self, task_id: str) -> dict[str, bytes]:
        notes = await super().task_notes(task_id)
        await self._late()
        return notes


@dataclass
class Cluster:
    """Processes on one store; an append is announced to all of them, but for some."""

    dice: random.Random
    receivers: Receivers
    count: int = 2
    processes: list[Webhooks] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = LateStore(self._announce, self.dice)
        metrics = Metrics()
        self.engine = TaskEngine(self.store, Fanout(metrics), metrics, clock=clock)
        for _ in range(self.count):
            self.start()

    def _announce(self, commit: Commit) -> None:
        for process in self.processes:
            if self.dice.random() < 0.7:  # else it is lost, or comes too late to matter
                process.committed(commit)

    def start(self) -> Webhooks:
        process = Webhooks(
            self.store,
            self.receivers,
            Lanes(64, 8),
            Metrics(),
            audience=self,
            default_retry=Backoff(kind="fixed", retries=99, initial_delay_ms=150),
            clock=clock,
            jitter=self.dice.random,
            alone=False,
        )
        self.processes.append(process)
        return process

    def attached(self, task_id: str | None, *, counts: bool = True) -> None:
        """All that is announced is announced to all."""

    def detached(self, task_id: str | None, *, counts: bool = True) -> None:
        pass

    async def publish(self, id_: str, count: int) -> None:
        for number in range(count):
            await self.engine.publish(id_, [Draft(type=str(number), level="info")])
            # Mostly just when the one that is at work lets go.
            await trio.sleep(self.dice.choice((0, 0.001, LINGER_S, LINGER_S + 0.01, 1)))


async def run(cluster: Cluster, tasks: int, events: int) -> None:
    ids = [f"t{number}" for number in range(tasks)]
    for id_ in ids:
        hooks = [raw({"url": f"http://{id_}/{number}"}) for number in range(2)]
        await cluster.engine.create(CreateTask(id=id_, webhooks=hooks))
    async with trio.open_nursery() as nursery:
        for process in cluster.processes:
            await nursery.start(process.run)
        async with trio.open_nursery() as publishers:
            for id_ in ids:
                publishers.start_soon(cluster.publish, id_, events)
        await trio.sleep(60)
        assert await cluster.store.next_due(WEBHOOK) == PARKED_MS
        assert [process.workers for process in cluster.processes] == [0, 0]
        nursery.cancel_scope.cancel()


async def test_an_append_is_never_missed_whoever_lets_go_just_then(schedule_seed, autojump_clock):
    """Nothing comes twice either: no process dies here, and no lease ends early."""
    dice = random.Random(schedule_seed)
    cluster = Cluster(dice, Receivers(dice))
    await run(cluster, tasks=3, events=12)
    assert cluster.receivers.got == {
        f"http://t{task}/{number}": list(range(12)) for task in range(3) for number in range(2)
    }
    assert cluster.receivers.most_at_once == 1


async def test_retries_are_never_forgotten(schedule_seed, autojump_clock):
    dice = random.Random(schedule_seed)
    cluster = Cluster(dice, Receivers(dice, failing=0.3))
    await run(cluster, tasks=3, events=8)
    assert set(map(tuple, cluster.receivers.got.values())) == {tuple(range(8))}
    assert len(cluster.receivers.got) == 6
    assert cluster.receivers.most_at_once == 1


@pytest.mark.parametrize("processes", [1, 2])
async def test_redeliveries_are_never_forgotten(schedule_seed, autojump_clock, processes):
    """Where another process takes over in the middle, a try of the first one may still end late."""
    dice = random.Random(schedule_seed)
    receivers = Receivers(dice)
    cluster = Cluster(dice, receivers, count=processes)
    got = receivers.got["http://h/"]
    await cluster.engine.create(CreateTask(id="t", webhooks=[raw({"url": "http://h/"})]))
    async with trio.open_nursery() as nursery:
        for process in cluster.processes:
            await nursery.start(process.run)
        await cluster.engine.publish("t", [Draft(type=str(n), level="info") for n in range(6)])
        for _ in range(6):
            await trio.sleep(dice.choice((0, 0, 0.005, 0.1, LINGER_S, 1)))
            before, index = len(got), dice.randrange(6)
            await dice.choice(cluster.processes).redeliver("t", 0, index)
        await trio.sleep(60)
        starts = [place for place in range(before, len(got)) if got[place] == index]
        orders = [list(dict.fromkeys(got[start:])) for start in starts]
        wanted = list(range(index, 6))
        if processes == 1:
            assert wanted in orders
        assert any(set(wanted) <= set(order) for order in orders)
        assert await cluster.store.next_due(WEBHOOK) == PARKED_MS
        nursery.cancel_scope.cancel()


async def test_a_process_whose_lease_was_taken_stops_and_the_other_goes_on(
    schedule_seed, autojump_clock
):
    """A process stands still for longer than its lease: here its clock does."""
    dice = random.Random(schedule_seed)
    receivers = Receivers(dice)
    cluster = Cluster(dice, receivers)
    store = cluster.store
    await cluster.engine.create(CreateTask(id="t", webhooks=[raw({"url": "http://h/"})]))
    async with trio.open_nursery() as nursery:
        for process in cluster.processes:
            await nursery.start(process.run)
        nursery.start_soon(cluster.publish, "t", 30)
        for _ in range(10):
            await trio.sleep(dice.random() * 2)
            # What the store does when the lease has ended: the next taker has it.
            if await store.next_due(WEBHOOK) != PARKED_MS:
                await store.set_timer("t", WEBHOOK, clock())
        await trio.sleep(3 * LEASE_MS / 1000)
        assert await store.next_due(WEBHOOK) == PARKED_MS
        nursery.cancel_scope.cancel()
    got = receivers.got["http://h/"]
    first = [index for place, index in enumerate(got) if index not in got[:place]]
    assert first == list(range(30)), "in order but for repeats"
    assert len(got) < 30 + 10 * 17
