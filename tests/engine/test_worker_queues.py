"""The queues of tasks that no worker can take, while others change them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from taskcast_trio.core.assignment import DISPATCH
from taskcast_trio.core.matching import MatchRule
from taskcast_trio.core.model import Task
from taskcast_trio.engine.workers.queues import Queues
from taskcast_trio.engine.workers.registry import Worker
from taskcast_trio.storage.memory import MemoryStore

NOW = 1_700_000_000_000
MODES = frozenset({"pull"})


class LateStore:
    """A store whose answers arrive late: what they say may not be so any more."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.late: set[str] = set()
        self.looks = 0

    def __getattr__(self, name: str) -> Any:
        async def step(*args: Any, **options: Any) -> Any:
            self.looks += name == "next_due"
            answer = await getattr(self.store, name)(*args, **options)
            if name in self.late:
                await trio.sleep(1)
            return answer

        return step


def worker(**fields: Any) -> Worker:
    given: dict[str, Any] = {"id": "w", "rule": MatchRule(), "capacity": 9, "weight": 50.0}
    given |= {"mode": "pull", "connected_ms": NOW, "heartbeat_ms": NOW} | fields
    return Worker(**given)


def made(filled: Callable[[str], None] = lambda kind: None) -> tuple[LateStore, Queues]:
    store: Any = LateStore()
    return store, Queues(store, clock=lambda: NOW, filled=filled)


async def park(store: LateStore, queues: Queues, task_id: str, **fields: Any) -> str:
    """Create a task and let it wait; its queue."""
    task = Task(
        id=task_id,
        status="pending",
        created_at=NOW,
        updated_at=NOW,
        assign_mode="pull",
        **fields,
    )
    timers = {DISPATCH: NOW}
    commit = await store.store.create(task, epoch="E", now_ms=NOW, timers=timers)
    (timer,) = await store.store.take_due(DISPATCH, now_ms=NOW, lease_ms=5000, limit=1)
    await queues.park(commit.record, timer)
    (kind,) = [kind for kind, queue in queues._queues.items() if queue.type == task.type]
    return kind


def fitting(queues: Queues) -> list[str]:
    return queues.fitting(worker(), MODES, 9)


async def test_what_comes_while_an_empty_queue_is_looked_at_is_not_forgotten(autojump_clock):
    for name, look in (
        ("take_due", lambda queues, kind: queues.take(kind)),
        ("list_due", lambda queues, kind: queues.peek(kind, 9)),
        ("next_due", lambda queues, kind: queues.look_around()),
    ):
        store, queues = made()
        kind = await park(store, queues, "first", type="a")
        await store.store.delete("first")
        store.late = {name}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, queues, kind)
            await trio.sleep(0.5)
            await park(store, queues, "second", type="a")
        assert fitting(queues) == [kind], name


async def test_a_queue_that_is_made_while_the_table_is_read_stays_known(autojump_clock):
    seen: list[list[str]] = []
    store, queues = made(lambda kind: seen.append(fitting(queues)))
    store.late = {"rows"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queues.load)
        await trio.sleep(0.5)
        kind = await park(store, queues, "t", type="a")
    assert fitting(queues) == [kind]


async def test_a_queue_that_is_forgotten_while_a_task_comes_to_it_is_known_again(autojump_clock):
    seen: list[list[str]] = []
    store, queues = made(lambda kind: seen.append(fitting(queues)))
    store.late = {"put_task_note"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(park, store, queues, "t", type="a"))
        await trio.sleep(0.5)
        (kind,) = queues._queues
        await store.store.swap_row("queues", kind, None, known=queues._stored[kind])
        await queues.load()
        assert fitting(queues) == []
    assert seen == [[kind]]


async def test_a_task_that_was_changed_meanwhile_is_not_parked(autojump_clock):
    store, queues = made()
    kind = await park(store, queues, "first", type="a")
    await store.store.delete("first")
    await queues.look_around()
    store.late = {"row", "swap_row", "rows"}
    task = Task(id="t", status="pending", created_at=NOW, updated_at=NOW, type="a")
    commit = await store.store.create(task, epoch="E", now_ms=NOW, timers={DISPATCH: NOW})
    (timer,) = await store.store.take_due(DISPATCH, now_ms=NOW, lease_ms=5000, limit=1)
    await store.store.set_timer("t", DISPATCH, NOW + 7)
    await queues.park(commit.record, timer)
    assert fitting(queues) == []
    assert await store.store.next_due(DISPATCH) == NOW + 7
    assert kind


async def test_the_first_of_many_queues_is_found_without_a_look_at_each(autojump_clock):
    store, queues = made()
    kinds = [await park(store, queues, f"t{n}", type=f"type{n}", priority=-n) for n in range(100)]
    store.looks = 0
    found = []
    while kind := await queues.first(fitting(queues)):
        found.append(kind)
        timer = await queues.take(kind)
        assert timer is not None
        await store.store.delete(timer.task_id)
        await queues.take(kind)
    assert found == kinds
    assert store.looks < 300
