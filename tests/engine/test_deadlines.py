"""Deadlines and waking up in memory, to the millisecond: what happens without anyone calling."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio
from msgspec import UNSET

from taskcast_trio import TaskEngine
from taskcast_trio.core.deadline import DEADLINE, WAKE
from taskcast_trio.core.errors import InvalidTransition, StoreUnavailable
from taskcast_trio.core.model import (
    ArchivedTask,
    BlockedRequest,
    CreateTask,
    ImportArchive,
    ImportTask,
    Task,
    Transition,
)
from taskcast_trio.engine import Delivery, Done
from taskcast_trio.engine.scheduler import LOOK_AGAIN_S
from taskcast_trio.storage.memory import MemoryStore
from taskcast_trio.testing import START_MS, open_test_runtime

from .support import drain, move, raw, value

LONG_S = 3600


async def ended_at(engine: TaskEngine, id_: str = "t") -> tuple[float, str]:
    """When the task ends by itself, and how."""
    async with engine.subscribe(id_) as subscription:
        async for item in subscription:
            if isinstance(item, Done):
                return trio.current_time(), item.reason
    raise AssertionError


async def running(engine: TaskEngine, id_: str = "t", ttl: int = 10) -> None:
    await engine.create(CreateTask(id=id_, ttl=ttl))
    await move(engine, "running", id_=id_)


async def test_a_task_that_has_not_ended_by_its_ttl_is_a_timeout_then(engine, autojump_clock):
    await running(engine)
    async with engine.subscribe("t") as subscription:
        items = [item async for item in subscription]
    assert trio.current_time() == 10
    *events, done = items
    assert done == Done("timeout")
    assert [value(event.entry)["status"] for event in events] == ["running", "timeout"]
    last = events[-1].entry
    assert (last.type, last.event.timestamp) == ("taskcast:status", START_MS + 10_000)
    assert value(last)["error"]["code"] == "ttl_expired"
    task = await engine.get("t")
    assert task.error is not UNSET
    assert (task.status, task.error.code, task.completed_at) == (
        "timeout",
        "ttl_expired",
        START_MS + 10_000,
    )


@pytest.mark.parametrize("statuses", [("assigned",), ("running",), ("running", "blocked")])
async def test_the_deadline_holds_in_every_status_that_is_not_paused(
    engine, autojump_clock, statuses
):
    await engine.create(CreateTask(id="t", ttl=10))
    await trio.sleep(4)
    await move(engine, *statuses)
    assert await ended_at(engine) == (10, "timeout")


async def test_blocked_and_back_keeps_the_clock_running(engine, autojump_clock):
    await running(engine)
    for status in ("blocked", "running", "blocked", "running"):
        await trio.sleep(2)
        await move(engine, status)
    assert await ended_at(engine) == (10, "timeout")


async def test_paused_stops_the_clock_and_leaving_it_starts_the_full_ttl(engine, autojump_clock):
    await running(engine)
    await trio.sleep(9)
    await move(engine, "paused")
    await trio.sleep(LONG_S)
    assert (await engine.get("t")).status == "paused"
    await move(engine, "running")
    assert await ended_at(engine) == (9 + LONG_S + 10, "timeout")


@pytest.mark.parametrize("ttl", [3, 30])
async def test_a_ttl_in_a_transition_replaces_the_one_before(engine, autojump_clock, ttl):
    await running(engine)
    await trio.sleep(5)
    await engine.transition("t", Transition(status="blocked", ttl=ttl))
    assert await ended_at(engine) == (5 + ttl, "timeout")


async def test_a_task_that_ends_in_time_hears_no_more_of_its_deadline(engine, autojump_clock):
    await running(engine)
    await trio.sleep(9.999)
    await move(engine, "completed")
    await trio.sleep(LONG_S)
    assert (await engine.get("t")).status == "completed"
    assert (await engine.record("t")).next_index == 2
    assert await engine.store.next_due(DEADLINE) is None


async def test_a_deleted_task_takes_its_deadline_with_it(engine, autojump_clock):
    await running(engine)
    await engine.delete("t")
    await engine.create(CreateTask(id="t"))
    await trio.sleep(LONG_S)
    assert (await engine.get("t")).status == "pending"


async def test_an_import_starts_a_full_ttl(engine, autojump_clock):
    await trio.sleep(50)
    archived = ArchivedTask(id="t", status="running", created_at=1, updated_at=1, ttl=10)
    archive = ImportArchive(
        schema="taskcast.taskArchive", version=1, exported_at=1, task=archived, events=[]
    )
    await engine.import_task(ImportTask(archive=archive))
    assert await ended_at(engine) == (60, "timeout")
    paused = msgspec.structs.replace(archived, status="paused")
    archive = msgspec.structs.replace(archive, task=paused)
    await engine.import_task(ImportTask(archive=archive, overwrite=True))
    await trio.sleep(LONG_S)
    assert (await engine.get("t")).status == "paused"


async def test_a_blocked_task_goes_on_at_its_time_as_if_nobody_had_answered(engine, autojump_clock):
    await running(engine, ttl=LONG_S)
    await engine.transition(
        "t",
        Transition(
            status="blocked",
            resume_after_ms=1500,
            reason="why",
            blocked_request=BlockedRequest(type="approval"),
        ),
    )
    async with engine.subscribe("t") as subscription:
        await drain(subscription)
        items = await subscription.receive()
    assert trio.current_time() == 1.5
    entries = [item.entry for item in items if isinstance(item, Delivery)]
    assert [(e.type, value(e)) for e in entries] == [
        ("taskcast:status", {"status": "running"}),
        ("taskcast:resolved", {}),
    ]
    task = await engine.get("t")
    assert (task.status, task.resume_at, task.blocked_request) == ("running", UNSET, UNSET)


async def test_an_answer_before_the_time_is_the_end_of_it(engine, autojump_clock):
    await running(engine, ttl=LONG_S)
    await engine.transition("t", Transition(status="blocked", resume_after_ms=1500))
    await engine.resolve("t", raw(1))
    assert await engine.store.next_due(WAKE) is None
    await engine.transition("t", Transition(status="blocked"))
    await trio.sleep(60)
    assert (await engine.get("t")).status == "blocked"


async def test_a_task_that_is_paused_while_blocked_wakes_once_it_is_blocked_again(
    engine, autojump_clock
):
    await running(engine, ttl=LONG_S)
    await engine.transition("t", Transition(status="blocked", resume_after_ms=1500))
    await move(engine, "paused")
    await trio.sleep(5)
    assert (await engine.get("t")).status == "paused"
    await move(engine, "blocked")
    await trio.testing.wait_all_tasks_blocked()
    assert (await engine.get("t")).status == "running"


async def test_deadlines_that_are_due_together_are_all_met_then(engine, autojump_clock):
    ids = [str(number) for number in range(300)]
    for id_ in ids:
        await engine.create(CreateTask(id=id_, ttl=10))
    async with trio.open_nursery() as nursery:
        for id_ in ids:
            nursery.start_soon(ended_at, engine, id_)
    assert trio.current_time() == 10
    assert engine.metrics.transitions.labels("timeout")._value.get() == 300


class AwayStore:
    """A store that is away for as long as ``away`` says."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.away = False
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        step = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if self.away:
                await trio.lowlevel.checkpoint()
                raise StoreUnavailable("away")
            return await step(*args, **kwargs)

        return call


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> AwayStore:
    """What stands between every engine of the test and its store."""
    stand_in = AwayStore(MemoryStore())

    def made(announce: Any) -> Any:
        stand_in._store._announce = announce
        return stand_in

    monkeypatch.setattr("taskcast_trio.storage.memory.MemoryStore", made)
    return stand_in


async def test_a_store_that_is_away_at_the_deadline_is_asked_again(behind, autojump_clock):
    async with open_test_runtime() as runtime:
        await running(runtime.engine)
        await trio.sleep(9)
        behind.away = True
        await trio.sleep(3)
        behind.away = False
        at_s, status = await ended_at(runtime.engine)
    assert status == "timeout"
    assert 12 <= at_s < 14


async def test_a_deadline_is_known_although_the_answer_of_its_step_was_lost(
    behind, autojump_clock, monkeypatch
):
    async with open_test_runtime() as runtime:
        await running(runtime.engine, ttl=LONG_S)
        await trio.testing.wait_all_tasks_blocked()
        transition = behind._store.transition

        async def lost(*args: Any, **kwargs: Any) -> None:
            await transition(*args, **kwargs)
            monkeypatch.undo()
            raise StoreUnavailable("it is not known whether this was done")

        monkeypatch.setattr(behind._store, "transition", lost)
        with pytest.raises(StoreUnavailable):
            await runtime.engine.transition("t", Transition(status="blocked", ttl=5))
        assert await ended_at(runtime.engine) == (5, "timeout")


async def test_two_processes_on_one_store_end_a_task_once(behind, autojump_clock):
    async with open_test_runtime(seed=1) as one, open_test_runtime(seed=2) as two:
        ids = [str(number) for number in range(50)]
        for id_ in ids:
            await one.engine.create(CreateTask(id=id_, ttl=10))
        two.scheduler.notify({DEADLINE: START_MS + 10_000})
        await trio.sleep(11)
        ended = [
            runtime.engine.metrics.transitions.labels("timeout")._value.get()
            for runtime in (one, two)
        ]
        for id_ in ids:
            assert (await one.engine.record(id_)).next_index == 1
    assert sum(ended) == 50


async def test_a_process_that_died_with_a_deadline_in_hand_is_stood_in_for(behind, autojump_clock):
    async with open_test_runtime() as runtime:
        await running(runtime.engine)
        await trio.sleep(9)
        taken = await behind.take_due(DEADLINE, now_ms=START_MS + 10_000, lease_ms=900, limit=9)
        assert len(taken) == 1
        at_s, _ = await ended_at(runtime.engine)
    assert at_s == 10.9


LOOPS = 5
"""Deadlines, wake-ups, cleanup, webhooks and their retries."""


async def test_100_000_pending_deadlines_cost_nothing_while_idle(behind, autojump_clock):
    async with open_test_runtime() as runtime:
        due_ms = START_MS + 2 * LONG_S * 1000
        for number in range(100_000):
            task = Task(id=str(number), status="running", created_at=1, updated_at=1, ttl=LONG_S)
            timers = {DEADLINE: due_ms + number}
            await behind.create(task, epoch="e", now_ms=START_MS, timers=timers)
        runtime.scheduler.notify({DEADLINE: due_ms})
        await trio.testing.wait_all_tasks_blocked()
        behind.calls.clear()
        looks = Looks()
        trio.lowlevel.add_instrument(looks)
        await trio.sleep(LONG_S)
        trio.lowlevel.remove_instrument(looks)
        calls = dict(behind.calls)
    # Each loop looks once a minute, against a clock that was set forward.
    most = LOOPS * (LONG_S / LOOK_AGAIN_S + 1)
    assert set(calls) <= {"take_due", "next_due"}
    assert max(calls.values()) <= most
    assert looks.steps <= 5 * most


class Looks(trio.abc.Instrument):
    """Counts how often any task runs."""

    steps = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def test_tasks_of_a_version_without_timers_get_theirs_once(behind, autojump_clock):
    task = Task(id="1", status="running", created_at=1, updated_at=1, ttl=10)
    await behind.create(task, epoch="e", now_ms=1)
    async with open_test_runtime() as runtime:
        await trio.sleep(4)
        assert await behind.next_due(DEADLINE) == START_MS + 10_000
        assert (await runtime.engine.record("1")).next_index == 0
    behind.calls.clear()
    async with open_test_runtime() as runtime:
        assert await ended_at(runtime.engine, "1") == (10, "timeout")
        assert behind.calls["list_tasks"] == 0, "the store was swept before"


async def test_a_deadline_and_a_completion_in_the_same_moment_end_the_task_once(
    engine, autojump_clock
):
    await running(engine)
    await trio.sleep(10)
    with suppress(InvalidTransition):
        await move(engine, "completed")
    await trio.sleep(1)
    assert (await engine.record("t")).next_index == 2
