"""Races as functions: each plays one and returns what was seen; the checks are separate and pure.

What a scenario decides by chance comes from its seed, and Trio's order too (``schedule``), so a
seed is one run.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import trio
from msgspec import UNSET, Raw

from taskcast_trio import TaskEngine
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import InvalidTransition, StoreUnavailable
from taskcast_trio.core.model import CreateTask, Draft, Status, Transition
from taskcast_trio.engine import Delivery, Done, Follow, Gap, Runtime
from taskcast_trio.engine.changes import Changes
from taskcast_trio.engine.metrics import Metrics
from taskcast_trio.engine.scheduler import Scheduler
from taskcast_trio.engine.timetable import Timetable
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Commit
from taskcast_trio.testing import open_test_runtime

from ..follower import Client, check, draft, latest, piece

PATIENCE_S = 3600
"""On a clock that jumps this costs nothing: whoever waits so long waits for ever."""


class FlakyStore:
    """A store that is away now and then: before a step, so that the step was not done."""

    def __init__(self, store: ShortTermStore, chance: random.Random, rate: float) -> None:
        self._store, self._chance, self._rate = store, chance, rate

    def __getattr__(self, name: str) -> Any:
        step = getattr(self._store, name)

        async def flaky(*args: Any, **kwargs: Any) -> Any:
            await trio.lowlevel.checkpoint()
            if self._chance.random() < self._rate:
                raise StoreUnavailable("away")
            return await step(*args, **kwargs)

        return flaky


def carry(runtime: Runtime, log: list[Entry], chance: random.Random, loss: float) -> None:
    """Keep what is announced in ``log``, and lose some of it, as a network may; never the end of a
    task.
    """
    committed = runtime.engine.fanout.committed

    def lossy(commit: Commit) -> None:
        log.extend(commit.entries)
        if commit.record.task.terminal or chance.random() >= loss:
            committed(commit)

    runtime.engine.fanout.committed = lossy  # type: ignore[method-assign]


async def until_it_is_there(step: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await step()
        except StoreUnavailable:
            await trio.lowlevel.checkpoint()


async def rest(chance: random.Random) -> None:
    await trio.sleep(chance.choice([0, 0, 0.01, 0.5]))


async def steps(number: int) -> None:
    for _ in range(number):
        await trio.lowlevel.checkpoint()


@dataclass
class TerminalRace:
    winners: list[str] = field(default_factory=list)
    losers: int = 0
    endings: list[list[Any]] = field(default_factory=list)
    final: str = ""


async def race_to_the_end(seed: int, *, subscribers: int = 100, racers: int = 10) -> TerminalRace:
    """The racers start at one moment; the subscribers are anywhere then, from not there to live."""
    race, chance = TerminalRace(), random.Random(seed)
    statuses: list[Status] = ["completed", "failed", "timeout", "cancelled"]
    async with open_test_runtime() as runtime:
        engine = runtime.engine
        await engine.create(CreateTask(id="t"))
        await engine.transition("t", Transition(status="running"))

        async def finish(status: Status) -> None:
            await steps(6)
            try:
                task = await engine.transition("t", Transition(status=status))
            except InvalidTransition:
                race.losers += 1
            else:
                race.winners.append(task.status)

        async def listen() -> None:
            seen: list[Any] = []
            await steps(chance.randrange(12))
            async with engine.subscribe("t") as subscription:
                async for item in subscription:
                    assert not isinstance(item, Gap)
                    seen.append(item.reason if isinstance(item, Done) else status_of(item.entry))
            race.endings.append(seen)

        with trio.move_on_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(subscribers):
                    nursery.start_soon(listen)
                for number in range(racers):
                    nursery.start_soon(finish, statuses[number % len(statuses)])
        race.final = (await engine.get("t")).status
    return race


@dataclass
class DeadlineRace:
    """What others did in the moment of a deadline, and what became of the task."""

    others: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    """As the log has them, after ``running``."""
    final: str | None = None
    ttl_moved: bool = False
    endings: list[list[Any]] = field(default_factory=list)
    due_ms: int | None = None


DEADLINE_MOVES: tuple[Transition, ...] = (
    Transition(status="completed"),
    Transition(status="paused"),
    Transition(status="blocked"),
    Transition(status="blocked", ttl=2),
)


async def race_a_deadline(seed: int, *, subscribers: int = 3) -> DeadlineRace:
    """Two processes handle the deadline while others complete, pause, delete, or give a new ttl."""
    race, chance = DeadlineRace(), random.Random(seed)
    async with open_test_runtime(seed=seed) as runtime:
        engine = runtime.engine
        timetable = Timetable()
        other = Scheduler(
            engine.store,
            engine.store,
            timetable=timetable,
            clock=engine.clock,
            changes=Changes(engine.store, timetable, Metrics(), engine.clock),
            shared=True,
        )

        async def move() -> None:
            await trio.sleep_until(1)
            await steps(chance.randrange(16))
            change = chance.choice([*DEADLINE_MOVES, None])
            try:
                if change is None:
                    await engine.delete("t")
                    race.others.append("deleted")
                else:
                    await engine.transition("t", change)
                    race.others.append(change.status)
                    race.ttl_moved = change.ttl is not UNSET
            except InvalidTransition:
                pass

        async def listen() -> None:
            seen: list[Any] = []
            race.endings.append(seen)
            async with engine.subscribe("t") as subscription:
                async for item in subscription:
                    assert not isinstance(item, Gap)
                    seen.append(item.reason if isinstance(item, Done) else status_of(item.entry))

        async with trio.open_nursery() as nursery:
            await nursery.start(other.run)
            await engine.create(CreateTask(id="t", ttl=1))
            await engine.transition("t", Transition(status="running"))
            for _ in range(subscribers):
                nursery.start_soon(listen)
            nursery.start_soon(move)
            await trio.sleep(1.5)
            record = await engine.store.get("t")
            if record is not None:
                race.final = record.task.status
                page = await engine.store.read("t", after=0, limit=100)
                race.statuses = [status_of(entry) for entry in page.entries]
                race.due_ms = await engine.store.next_due("deadline")
            nursery.cancel_scope.cancel()
    return race


def check_deadline_race(race: DeadlineRace) -> None:
    done = race.others[0] if race.others else None
    if done == "deleted":
        assert race.final is None
    elif done is None:
        assert race.statuses == ["timeout"], "one end, and nothing after it"
    elif done == "blocked" and not race.ttl_moved:
        assert race.statuses == ["blocked", "timeout"], "its clock ran on"
    else:
        assert race.statuses == [done], "a deadline that is not the task's any more ended it"
        assert (race.due_ms is not None) is race.ttl_moved
    ends = {"completed", "timeout", "deleted"}
    for seen in race.endings:
        if race.final is None:
            assert seen[-1] in ends
        elif race.final in ends:
            assert seen == ["running", *race.statuses, race.final]
        else:
            assert seen == ["running", *race.statuses]


def status_of(entry: Entry) -> str:
    assert isinstance(entry.event.data, Raw)
    status: str = msgspec.json.decode(bytes(entry.event.data))["status"]
    return status


def check_terminal_race(race: TerminalRace, *, subscribers: int = 100, racers: int = 10) -> None:
    assert len(race.winners) == 1, f"{len(race.winners)} transitions won"
    assert race.losers == racers - 1
    (winner,) = race.winners
    assert race.final == winner
    assert len(race.endings) == subscribers, "a subscriber never heard of the end"
    for seen in race.endings:
        assert seen == ["running", winner, winner], "the events, and then done with the same status"


@dataclass
class Streamed:
    log: list[Entry]
    stored: list[int]
    clients: list[Client]


async def stream(
    seed: int,
    *,
    publishers: int = 3,
    subscribers: int = 8,
    batches: int = 8,
    loss: float = 0.2,
    away: float = 0.1,
    inbox_commits: int = 1,
    series: bool = True,
    drops: bool = True,
) -> Streamed:
    """Publishers write until all are done and the task ends; subscribers come and go as the seed
    has it.
    """
    chance = random.Random(seed)
    clients = [Client(accumulated=number % 3 == 2) for number in range(subscribers)]
    log: list[Entry] = []
    async with open_test_runtime(seed=seed, inbox_commits=inbox_commits) as runtime:
        store = runtime.engine.store
        carry(runtime, log, chance, loss)
        await runtime.engine.create(CreateTask(id="t"))
        engine = TaskEngine(
            FlakyStore(store, chance, away),
            runtime.engine.fanout,
            runtime.metrics,
            clock=runtime.engine.clock,
            timetable=runtime.engine.timetable,
        )

        async def publish(name: int) -> None:
            make = [draft_text, piece, latest] if series else [draft_text]
            for number in range(batches):
                drafts = [
                    chance.choice(make)(f"{name}.{number};") for _ in range(chance.randrange(1, 4))
                ]
                await until_it_is_there(partial(engine.publish, "t", drafts))
                await rest(chance)

        async def write() -> None:
            async with trio.open_nursery() as nursery:
                for name in range(publishers):
                    nursery.start_soon(publish, name)
            for status in ("running", "completed"):
                change = Transition(status=status)
                await until_it_is_there(partial(engine.transition, "t", change))

        with trio.move_on_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                for client in clients:
                    nursery.start_soon(keep_up, engine, client, chance, "completed", drops)
        page = await store.read("t", after=-1, limit=10_000)
    return Streamed(log, [entry.index for entry in page.entries], clients)


def draft_text(text: str) -> Draft:
    return draft({"delta": text})


async def keep_up(
    engine: TaskEngine, client: Client, chance: random.Random, end: str, drops: bool = True
) -> None:
    """Follow with pauses, cancelled receives, errors and dropped connections, until the end."""
    while client.done != end:
        await rest(chance)
        client.connected()
        follow = Follow(accumulated=client.accumulated, last_event_id=client.last_event_id)
        with suppress(StoreUnavailable):
            async with engine.subscribe("t", follow) as subscription:
                left = chance.randrange(1, 8) if drops else PATIENCE_S
                while left and client.done is None:
                    left -= 1
                    with trio.move_on_after(chance.choice([0, 0.01, 10])):
                        try:
                            items = await subscription.receive()
                        except StoreUnavailable:
                            continue
                        client.take(items)
                    if chance.random() < 0.5:
                        await rest(chance)


def check_streamed(streamed: Streamed) -> None:
    assert [entry.index for entry in streamed.log] == list(range(len(streamed.log)))
    for client in streamed.clients:
        assert client.done == "completed", "a subscriber never heard of the end"
        assert not client.gaps, "nothing was lost for good, so no gap"
        check(client, streamed.log, streamed.stored)


@dataclass
class Joined:
    cursors: list[int]
    seen: list[list[int]]
    published: int


async def join(seed: int, *, rounds: int = 10, subscribers: int = 4) -> Joined:
    """Resume by cursor in the very moment in which others publish; never dropped."""
    chance = random.Random(seed)
    joined = Joined([], [], published=24)
    async with open_test_runtime(seed=seed, inbox_commits=2) as runtime:
        engine = runtime.engine

        async def publish(task_id: str) -> None:
            for _ in range(joined.published - 4):
                await engine.publish(task_id, [draft()])
                await steps(chance.randrange(3))

        async def listen(task_id: str, cursor: Entry) -> None:
            await steps(chance.randrange(12))
            seen: list[int] = []
            joined.cursors.append(cursor.index)
            joined.seen.append(seen)
            async with engine.subscribe(task_id, Follow(last_event_id=cursor.id)) as subscription:
                while not seen or seen[-1] < joined.published - 1:
                    for item in await subscription.receive():
                        assert isinstance(item, Delivery)
                        seen.append(item.entry.index)

        for number in range(rounds):
            task_id = f"t{number}"
            await engine.create(CreateTask(id=task_id))
            first = await engine.publish(task_id, [draft()] * 4)
            with trio.move_on_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    for _ in range(2):
                        nursery.start_soon(listen, task_id, chance.choice(first))
                    nursery.start_soon(publish, task_id)
                    for _ in range(subscribers - 2):
                        nursery.start_soon(listen, task_id, chance.choice(first))
    return joined


def check_joined(joined: Joined) -> None:
    for cursor, seen in zip(joined.cursors, joined.seen, strict=True):
        assert seen == list(range(cursor + 1, joined.published)), "not cursor + 1 and on, once each"


async def live_again(seed: int, *, lives: int = 4, subscribers: int = 6) -> Streamed:
    chance = random.Random(seed)
    clients = [Client(accumulated=number % 2 == 1) for number in range(subscribers)]
    log: list[Entry] = []
    async with open_test_runtime(seed=seed, inbox_commits=2) as runtime:
        engine = runtime.engine

        async def write() -> None:
            for life in range(lives):
                log.clear()
                await engine.create(CreateTask(id="t"))
                for number in range(chance.randrange(1, 8)):
                    make = chance.choice([draft_text, piece])
                    log.extend(await engine.publish("t", [make(f"{life}.{number};")]))
                    await rest(chance)
                if life < lives - 1:
                    await engine.delete("t")
                    await rest(chance)
            await engine.transition("t", Transition(status="cancelled"))

        with trio.move_on_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                for client in clients:
                    nursery.start_soon(keep_up, engine, client, chance, "cancelled")
        page = await engine.store.read("t", after=-1, limit=10_000)
    return Streamed(list(page.entries), [entry.index for entry in page.entries], clients)


def check_lives(streamed: Streamed) -> None:
    for client in streamed.clients:
        assert client.done == "cancelled", "a subscriber never heard of the end"
        check(client, streamed.log, streamed.stored)


@dataclass
class FollowedAll:
    committed: list[tuple[str, int]]
    seen: list[list[tuple[str, int]]]


async def follow_all(seed: int, *, creators: int = 4, followers: int = 3) -> FollowedAll:
    """Tasks come, run and end faster than their followers read."""
    chance = random.Random(seed)
    followed = FollowedAll([], [])
    log: list[Entry] = []
    async with open_test_runtime(seed=seed, inbox_commits=3) as runtime:
        engine = runtime.engine
        carry(runtime, log, chance, 0)
        over = trio.Event()

        async def work(name: int) -> None:
            for number in range(6):
                task_id = f"{name}.{number}"
                await engine.create(CreateTask(id=task_id))
                for _ in range(chance.randrange(4)):
                    await engine.publish(task_id, [draft()])
                    await rest(chance)
                if chance.random() < 0.7:
                    await engine.transition(task_id, Transition(status="cancelled"))

        async def listen(task_status: trio.TaskStatus[None]) -> None:
            seen: list[tuple[str, int]] = []
            followed.seen.append(seen)
            async with engine.follow_all() as events:
                task_status.started()
                nothing_left = False
                while not nothing_left:
                    last_words = over.is_set()
                    with trio.move_on_after(10 if last_words else chance.choice([0, 0.1])) as scope:
                        entries = await events.receive()
                        seen += [(entry.event.task_id, entry.index) for entry in entries]
                    nothing_left = last_words and scope.cancelled_caught
                    await rest(chance)

        async with trio.open_nursery() as listeners:
            for _ in range(followers):
                await listeners.start(listen)
            async with trio.open_nursery() as nursery:
                for name in range(creators):
                    nursery.start_soon(work, name)
            over.set()
    followed.committed = [(entry.event.task_id, entry.index) for entry in log]
    return followed


def check_followed_all(followed: FollowedAll) -> None:
    for seen in followed.seen:
        assert len(set(seen)) == len(seen), "an event came twice"
        assert set(seen) == set(followed.committed), "an event never came"
        for task_id in {task_id for task_id, _ in seen}:
            mine = [index for name, index in seen if name == task_id]
            assert mine == sorted(mine), "events came out of order"
