"""The engine's own promises: keys, lost races, a runtime that dies loudly and drains quietly."""

from __future__ import annotations

import pytest
import trio
from msgspec import UNSET

from taskcast_trio import open_engine, open_runtime
from taskcast_trio.config import Config
from taskcast_trio.config.schema import Limits
from taskcast_trio.core.errors import (
    Draining,
    InvalidTransition,
    KeyReused,
    NotBlocked,
    ReleaseUnsupported,
    RequestNotFound,
    TaskEnded,
    TaskExists,
    TaskFull,
    TaskNotFound,
)
from taskcast_trio.core.model import (
    BlockedRequest,
    CreateTask,
    StorageRelease,
    Transition,
)
from taskcast_trio.storage.memory import MemoryBroadcast

from ..follower import draft
from .support import create, entries, follow, move, raw, value

DAY_S = 24 * 60 * 60


def counted(runtime, name):
    return runtime.metrics.registry.get_sample_value(name)


async def test_a_create_with_a_key_is_done_once(runtime, engine, autojump_clock):
    request = CreateTask(type="demo")
    first = await engine.create(request, key="k")
    await trio.sleep(5)
    assert await engine.create(request, key="k") == first
    assert len(await engine.list_tasks()) == 1
    assert counted(runtime, "taskcast_tasks_created_total") == 1
    with pytest.raises(KeyReused):
        await engine.create(CreateTask(type="other"), key="k")
    assert (await engine.create(request, key="another")).id != first.id
    with pytest.raises(TaskExists):
        await engine.create(CreateTask(id=first.id))


async def test_racing_creates_with_one_key_make_one_task(engine, autojump_clock):
    made = []

    async def attempt():
        made.append((await engine.create(CreateTask(type="demo"), key="k")).id)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(attempt)
    assert len(set(made)) == 1


async def test_a_publish_with_a_key_is_done_once_even_after_the_end(
    runtime, engine, autojump_clock
):
    await create(engine)
    first = await engine.publish("t", [draft(1), draft(2)], key="k")
    await move(engine, "cancelled")
    again = await engine.publish("t", [draft(1), draft(2)], key="k")
    assert [entry.event for entry in again] == [entry.event for entry in first]
    with pytest.raises(KeyReused):
        await engine.publish("t", [draft(1)], key="k")
    with pytest.raises(TaskEnded):
        await engine.publish("t", [draft(1)], key="new")
    assert counted(runtime, "taskcast_events_total") == 3, "a repeat is not counted"


async def test_a_transition_with_a_key_is_done_once_and_answers_as_it_did(engine, autojump_clock):
    await create(engine)
    first = await engine.transition("t", Transition(status="running"), key="k")
    await move(engine, "completed")
    assert await engine.transition("t", Transition(status="running"), key="k") == first
    assert (await engine.get("t")).status == "completed"
    with pytest.raises(KeyReused):
        await engine.transition("t", Transition(status="failed"), key="k")
    with pytest.raises(InvalidTransition):
        await engine.transition("t", Transition(status="running"), key="new")


async def test_one_key_may_serve_a_create_a_publish_and_a_transition(engine, autojump_clock):
    task = await engine.create(CreateTask(id="t"), key="k")
    await engine.publish("t", [draft()], key="k")
    moved = await engine.transition("t", Transition(status="running"), key="k")
    assert (task.status, moved.status) == ("pending", "running")
    assert (await engine.record("t")).next_index == 2


async def test_a_key_is_forgotten_after_a_day_and_with_its_task(engine, autojump_clock):
    await create(engine)
    await engine.publish("t", [draft()], key="k")
    await trio.sleep(DAY_S - 1)
    await engine.publish("t", [draft()], key="k")
    assert (await engine.record("t")).next_index == 1
    await trio.sleep(1)
    await engine.publish("t", [draft()], key="k")
    assert (await engine.record("t")).next_index == 2
    await engine.delete("t")
    await create(engine)
    await engine.publish("t", [draft("other")], key="k")
    assert (await engine.record("t")).next_index == 1


async def test_a_transition_that_lost_a_race_decides_anew(engine, autojump_clock):
    await create(engine)
    store, transition = engine.store, engine.store.transition
    lost: list[str] = []

    async def transition_behind_another(task, drafts, **expected):
        if not lost:
            lost.append(task.status)
            store.transition = transition
            await move(engine, "paused")
            store.transition = transition_behind_another
        return await transition(task, drafts, **expected)

    store.transition = transition_behind_another
    moved = await engine.transition("t", Transition(status="running"))
    assert lost == ["running"]
    assert moved.status == "running"
    statuses = [value(entry)["status"] for entry in entries(await follow(engine))]
    assert statuses == ["paused", "running"]


async def test_a_blocked_task_is_answered_once(engine, autojump_clock):
    await create(engine)
    await move(engine, "running")
    request = BlockedRequest(type="approval", data=raw({"q": 1}))
    await engine.transition("t", Transition(status="blocked", blocked_request=request))
    assert await engine.blocked_request("t") == request
    assert (await engine.blocked("t")).status == "blocked"
    task = await engine.resolve("t", raw(7))
    assert bytes(task.result) == b'{"resolution":7}'
    with pytest.raises(NotBlocked):
        await engine.resolve("t", UNSET)
    with pytest.raises(RequestNotFound):
        await engine.blocked_request("t")


async def test_every_call_on_an_unknown_task_says_so(engine, autojump_clock):
    release = StorageRelease(expected_last_event_index=-1, inactive_since=0)
    calls = [
        lambda: engine.get("nope"),
        lambda: engine.publish("nope", [draft()]),
        lambda: engine.transition("nope", Transition(status="running")),
        lambda: engine.transition("nope", Transition(status="running"), key="k"),
        lambda: engine.resolve("nope", UNSET),
        lambda: engine.blocked("nope"),
        lambda: engine.blocked_request("nope"),
        lambda: engine.snapshot("nope"),
        lambda: engine.archive("nope"),
        lambda: engine.delete("nope"),
        lambda: engine.release_storage("nope", release),
    ]
    for call in calls:
        with pytest.raises(TaskNotFound):
            await call()
    await create(engine)
    with pytest.raises(ReleaseUnsupported):
        await engine.release_storage("t", release)


async def test_lists_show_the_audience(engine, autojump_clock):
    await create(engine, "a")
    await create(engine, "b")
    async with engine.subscribe("b"):
        views = await engine.list_tasks(statuses=frozenset({"pending"}), limit=2)
    assert [(view.id, view.hot, view.subscriber_count) for view in views] == [
        ("a", False, 0),
        ("b", True, 1),
    ]
    assert [view.id for view in await engine.list_tasks(after="a")] == ["b"]


async def test_a_crash_of_a_background_task_cancels_the_body_and_is_raised(
    monkeypatch, autojump_clock
):
    crash = trio.Event()

    async def run(self, sink, *, task_status):
        task_status.started()
        await crash.wait()
        raise RuntimeError("the listener died")

    monkeypatch.setattr(MemoryBroadcast, "run", run)
    cancelled = []
    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="the listener died"), flatten_subgroups=True
    ):
        async with open_engine() as engine:
            await engine.create()
            crash.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                cancelled.append(True)
                raise
    assert cancelled == [True]


async def test_an_exception_of_the_body_is_raised_as_it_is(autojump_clock):
    with pytest.raises(TaskNotFound):
        async with open_engine() as engine:
            await engine.get("nope")


async def test_a_crash_while_opening_is_raised_and_the_body_never_runs(monkeypatch, autojump_clock):
    async def run(self, sink, *, task_status):
        raise RuntimeError("no listener")

    monkeypatch.setattr(MemoryBroadcast, "run", run)
    entered = []
    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="no listener"), flatten_subgroups=True
    ):
        async with open_engine():
            entered.append(True)
    assert entered == []


async def test_leaving_the_runtime_ends_its_tasks_and_cancelling_it_is_ordinary(autojump_clock):
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with open_runtime() as runtime:
        await runtime.engine.create()
        assert trio.lowlevel.current_statistics().tasks_living > tasks
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    with trio.move_on_after(1) as scope:
        async with open_engine():
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.lowlevel.current_statistics().tasks_living == tasks


@pytest.mark.parametrize(
    ("limits", "said"),
    [(Limits(task_events=3), "3 events"), (Limits(task_bytes=1024), "1024 bytes")],
)
async def test_a_full_task_takes_no_more_but_can_still_end(limits, said, autojump_clock):
    async with open_runtime(Config(limits=limits)) as runtime:
        engine = runtime.engine
        await create(engine)
        first = await engine.publish("t", [draft("x" * 500)], key="k")
        await engine.publish("t", [draft("x" * 500)])
        with pytest.raises(TaskFull, match=said):
            await engine.publish("t", [draft("x" * 500)] * 2)
        assert counted(runtime, "taskcast_events_total") == 2, "what is refused is not counted"
        again = await engine.publish("t", [draft("x" * 500)], key="k")
        assert [entry.id for entry in again] == [entry.id for entry in first]
        assert (await move(engine, "running", "completed")).status == "completed"


async def test_draining_ends_every_stream_and_refuses_new_ones(runtime, engine, autojump_clock):
    await create(engine)
    ended = []

    async def listen():
        try:
            await follow(engine)
        except Draining:
            ended.append("task")

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(listen)
        await trio.sleep(0.5)
        runtime.drain.set()
    assert ended == ["task"] * 10
    await engine.publish("t", [draft()])
    assert (await engine.get("t")).subscriber_count == 0
