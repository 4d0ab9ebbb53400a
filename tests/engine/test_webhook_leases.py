"""Answers of the store that come late: what happened meanwhile is neither lost nor done twice."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.engine.timer_loop import TimerLoop
from taskcast_trio.engine.webhooks.state import WEBHOOK
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.storage.records import PARKED_MS, Timer
from tests.receiver import answering

from ..storage.support import task
from .webhook_support import (
    START_MS,
    Held,
    clock,
    create,
    definition,
    delivering,
    hook,
    look,
    publish,
    timers,
)


@pytest.mark.parametrize("taken", [False, True])
async def test_what_comes_while_a_task_is_let_go_of_is_delivered_at_once(
    autojump_clock: MockClock, taken: bool
) -> None:
    live = hook()
    async with delivering({"10.0.0.1": live}) as runtime:
        await create(runtime, definition())
        parks = Held(runtime.backend.store, "set_timer", lambda *args, **_: args[2] == PARKED_MS)
        await publish(runtime, "a")
        await parks.reached.wait()
        await publish(runtime, "b")
        if taken:
            runtime.webhooks.interrupted()  # takes whatever is due
        await wait_all_tasks_blocked()
        parks.go_on.set()
        await trio.sleep(1)
        assert live.indexes == [0, 1]
        assert live.tries[1][0] < 0.3
        assert await timers(runtime) == {WEBHOOK: "parked", "webhook_retry": None}


async def test_a_timer_that_is_told_of_while_the_next_one_is_looked_up_is_not_slept_over(
    autojump_clock: MockClock,
) -> None:
    store, handled = MemoryStore(), []

    async def handle(timer: Timer) -> None:
        handled.append((timer.task_id, trio.current_time()))
        await store.set_timer(timer.task_id, "a", None)

    for name in ("one", "other"):
        await store.create(task(name), epoch="EPOCH001", now_ms=0)
    loop = TimerLoop(store, "a", handle, clock=clock, lease_ms=9_000, look_again_s=100)
    async with trio.open_nursery() as nursery:
        await store.set_timer("one", "a", START_MS + 1000)
        looks = Held(store, "next_due", lambda *_: bool(handled))
        nursery.start_soon(loop.run)
        await looks.reached.wait()
        await store.set_timer("other", "a", START_MS + 1000)
        loop.notify(START_MS + 1000)
        looks.go_on.set()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert handled == [("one", 1), ("other", 1)]


async def test_no_cursor_moves_on_before_its_dead_letter_is_kept(
    autojump_clock: MockClock,
) -> None:
    """The store is away just then: the event is tried once more when the lease has ended."""
    dead = hook(answering(500), answering(500), answering(204))
    async with delivering({"10.0.0.1": dead}) as runtime:
        store = runtime.backend.store
        put = store.put_task_note
        away = [True]

        async def failing(task_id: str, name: str, *args: Any, **options: Any) -> bool:
            if name.startswith("webhook.0.dead") and away:
                away.pop()
                raise StoreUnavailable("away")
            return await put(task_id, name, *args, **options)

        store.put_task_note = failing  # type: ignore[method-assign]
        await create(runtime, definition(retry={"retries": 0}))
        await publish(runtime, "a", "b")
        await trio.sleep(1)
        assert (await look(runtime)).state.cursor == -1
        assert runtime.webhooks.workers == 0
        await trio.sleep(60)
        assert dead.tries == [(0, 0), (15, 0), (15, 1)]
        found = await look(runtime)
        assert (list(found.dead), found.state.cursor) == ([0], 1)


async def test_a_store_that_is_away_for_a_while_loses_nothing(autojump_clock: MockClock) -> None:
    live = hook()
    async with delivering({"10.0.0.1": live}) as runtime:
        store = runtime.backend.store
        away = trio.Event()

        def breaking(step: str) -> None:
            real = getattr(store, step)

            async def broken(*args: Any, **options: Any) -> Any:
                if away.is_set() and trio.current_time() < 30:
                    raise StoreUnavailable("away")
                return await real(*args, **options)

            setattr(store, step, broken)

        for step in ("take_due", "next_due", "set_timer", "put_task_note", "task_notes", "read"):
            breaking(step)
        await create(runtime, definition())
        await publish(runtime, "a")
        await trio.sleep(1)
        away.set()
        await publish(runtime, "b", "c")
        await trio.sleep(100)
        assert live.indexes == [0, 1, 2]
        assert live.tries[1][0] < 60
        assert await timers(runtime) == {WEBHOOK: "parked", "webhook_retry": None}
