"""The loop that waits for what is due: no timer is overslept, no store is asked for nothing."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.core.model import Task
from taskcast_trio.engine.timer_loop import TimerLoop
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.records import Timer
from taskcast_trio.testing import START_MS, trio_clock_ms

KIND = "test"


class SlowStore(MemoryStore):
    """What it says of the next timer is a second old."""

    async def next_due(self, kind: str) -> int | None:
        due_ms = await super().next_due(kind)
        await trio.sleep(1)
        return due_ms


async def add(store: MemoryStore, id_: str, due_ms: int) -> None:
    task = Task(id=id_, status="running", created_at=1, updated_at=1)
    await store.create(task, epoch="e", now_ms=1, timers={KIND: due_ms})


class Handled:
    """Clears each timer after a second, and remembers when."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.done: list[tuple[str, float]] = []
        self.away = 0

    async def __call__(self, timer: Timer) -> None:
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        await trio.sleep(1)
        await self._store.set_timer(timer.task_id, KIND, None, if_due=timer.due_ms)
        self.done.append((timer.task_id, trio.current_time()))


def loop_of(store: MemoryStore, handled: Handled, at_once: int = 1) -> TimerLoop:
    return TimerLoop(
        store,
        KIND,
        handled,
        clock=trio_clock_ms(),
        lease_ms=60_000,
        look_again_s=3600,
        at_once=at_once,
    )


async def test_a_timer_that_is_set_while_the_store_is_asked_is_not_overslept(
    nursery, autojump_clock
):
    store = SlowStore()
    handled = Handled(store)
    loop = loop_of(store, handled)
    await add(store, "first", START_MS + 2_000)
    await nursery.start(loop.run)
    # The first is handled from 2 to 3; then the store is asked again, and answers at 4.
    await trio.sleep(3.5)
    await add(store, "second", START_MS + 10_000)
    loop.notify(START_MS + 10_000)
    await trio.sleep(30)
    assert handled.done == [("first", 3), ("second", 11)]


async def test_so_many_timers_are_handled_at_the_same_time(nursery, autojump_clock):
    store = MemoryStore()
    handled = Handled(store)
    for number in range(10):
        await add(store, str(number), START_MS)
    await nursery.start(loop_of(store, handled, at_once=4).run)
    await trio.sleep(30)
    assert [at_s for _, at_s in handled.done] == [1] * 4 + [2] * 4 + [3] * 2


async def test_what_a_store_that_is_away_left_comes_again(nursery, autojump_clock):
    store = MemoryStore()
    handled = Handled(store)
    handled.away = 2
    for number in range(5):
        await add(store, str(number), START_MS)
    await nursery.start(loop_of(store, handled, at_once=4).run)
    await trio.sleep(300)
    assert sorted(id_ for id_, _ in handled.done) == ["0", "1", "2", "3", "4"]


async def test_an_idle_loop_asks_only_when_it_has_to(nursery, autojump_clock):
    store = MemoryStore()
    asked = 0
    next_due = store.next_due

    async def counting(kind: str) -> int | None:
        nonlocal asked
        asked += 1
        return await next_due(kind)

    store.next_due = counting  # type: ignore[method-assign]
    loop = loop_of(store, Handled(store))
    await add(store, "far", START_MS + 3_000_000)
    await nursery.start(loop.run)
    await wait_all_tasks_blocked()
    for number in range(100):
        loop.notify(START_MS + 3_000_000 + number)
        await trio.sleep(1)
    assert asked == 1
