"""Waiting for what a task asks, and answering it: the first valid answer wins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskcast_trio import TaskEngine
from taskcast_trio.core.errors import (
    BadRequest,
    Draining,
    Forbidden,
    NotBlocked,
    RequestNotFound,
    TaskcastError,
)
from taskcast_trio.core.model import (
    ArchivedTask,
    BlockedRequest,
    CreateTask,
    ImportArchive,
    ImportTask,
    Task,
    Transition,
)
from taskcast_trio.engine.watch import Watch

from ..follower import draft
from .support import create, move, raw

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


async def ask(engine: TaskEngine, type_: str = "approval", **fields: Any) -> None:
    request = BlockedRequest(type=type_, **fields)
    await engine.transition("t", Transition(status="blocked", blocked_request=request))


class Waiter:
    """Asks in the background, and remembers what came when."""

    def __init__(self, engine: TaskEngine, visible: Callable[[Task], bool] | None = None) -> None:
        self._engine, self._visible = engine, visible
        self.came: tuple[float, str] | None = None

    async def run(self) -> None:
        try:
            request = await self._engine.blocked_request("t", wait_s=30, visible=self._visible)
        except TaskcastError as error:
            self.came = trio.current_time(), error.code
        else:
            self.came = trio.current_time(), request.type


@pytest.fixture
async def waiter(engine: TaskEngine, nursery: trio.Nursery) -> Waiter:
    await create(engine)
    await move(engine, "running")
    waiting = Waiter(engine)
    nursery.start_soon(waiting.run)
    await wait_all_tasks_blocked()
    return waiting


async def test_who_waits_hears_of_a_request_in_the_moment_it_is_made(
    engine, waiter, autojump_clock
):
    await trio.sleep(7)
    await engine.publish("t", [draft()] * 3)
    await ask(engine)
    await wait_all_tasks_blocked()
    assert waiter.came == (7, "approval")


async def test_the_wait_has_an_end(engine, waiter, autojump_clock):
    await trio.sleep(31)
    assert waiter.came == (30, "request_not_found")


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "timeout"])
async def test_the_end_of_the_task_is_the_end_of_the_wait(engine, waiter, autojump_clock, status):
    await trio.sleep(7)
    await move(engine, status)
    await wait_all_tasks_blocked()
    assert waiter.came == (7, "request_not_found")


async def test_deleting_the_task_is_the_end_of_the_wait(engine, waiter, autojump_clock):
    await trio.sleep(7)
    await engine.delete("t")
    await wait_all_tasks_blocked()
    assert waiter.came == (7, "task_not_found")


async def test_a_drain_is_the_end_of_the_wait(runtime, engine, waiter, autojump_clock):
    runtime.drain.set()
    await wait_all_tasks_blocked()
    assert waiter.came == (0, "draining")
    with pytest.raises(Draining):
        await engine.blocked_request("t", wait_s=1)


async def test_blocked_without_a_request_is_nothing_to_answer_yet(engine, waiter, autojump_clock):
    await move(engine, "blocked")
    await trio.sleep(1)
    assert waiter.came is None
    await move(engine, "paused")
    await ask(engine)
    await wait_all_tasks_blocked()
    assert waiter.came == (1, "approval")


async def test_a_wait_survives_announcements_that_were_lost(engine, waiter, autojump_clock):
    committed = engine.fanout.committed
    engine.fanout.committed = lambda commit: None
    engine.store._announce = engine.fanout.committed
    await ask(engine)
    engine.store._announce = committed
    engine.fanout.interrupted()
    await wait_all_tasks_blocked()
    assert waiter.came == (0, "approval")


async def test_who_waits_is_no_subscriber_and_costs_no_look_at_the_store_for_events(
    engine, waiter, autojump_clock, monkeypatch
):
    assert (await engine.get("t")).subscriber_count == 0
    async with engine.subscribe("t"):
        assert (await engine.get("t")).subscriber_count == 1
    looks = 0
    get = engine.store.get

    async def counted(task_id: str) -> Any:
        nonlocal looks
        looks += 1
        return await get(task_id)

    monkeypatch.setattr(engine.store, "get", counted)
    for _ in range(200):
        await engine.publish("t", [draft()])
        await wait_all_tasks_blocked()
    assert looks == 0
    await ask(engine)
    await wait_all_tasks_blocked()
    assert waiter.came == (0, "approval")
    assert not engine.fanout._by_task, "nothing is left of the wait"
    assert not engine.fanout._uncounted


async def test_a_watch_that_many_events_overran_while_nobody_looked_says_so(engine, autojump_clock):
    await create(engine)
    known = await engine.record("t")
    with Watch("t", engine.fanout) as watch:
        for _ in range(100):
            await engine.publish("t", [draft()])
        with trio.fail_after(1):
            await watch.changed(known)
        with trio.move_on_after(1) as quiet:
            await watch.changed(known)
        assert quiet.cancelled_caught, "from here on nothing was missed"
        await move(engine, "running")
        await watch.changed(known)
    assert trio.current_time() == 1


async def test_a_wait_that_is_given_up_leaves_nothing(engine, autojump_clock):
    await create(engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Waiter(engine).run)
        await wait_all_tasks_blocked()
        assert engine.fanout._uncounted
        nursery.cancel_scope.cancel()
    assert not engine.fanout._by_task
    assert not engine.fanout._uncounted


async def test_a_task_that_replaced_the_one_waited_for_may_be_hidden(
    engine, nursery, autojump_clock
):
    await engine.create(CreateTask(id="t", type="mine"))
    waiting = Waiter(engine, visible=lambda task: task.type == "mine")
    nursery.start_soon(waiting.run)
    await wait_all_tasks_blocked()
    request = BlockedRequest(type="secret")
    task = ArchivedTask(
        id="t", type="theirs", status="blocked", created_at=1, updated_at=1, blocked_request=request
    )
    archive = ImportArchive(
        schema="taskcast.taskArchive", version=1, exported_at=1, task=task, events=[]
    )
    await engine.import_task(ImportTask(archive=archive, overwrite=True))
    await wait_all_tasks_blocked()
    assert waiting.came == (0, Forbidden.code)


async def test_an_archive_with_a_schema_that_is_none_is_refused(engine, autojump_clock):
    request = BlockedRequest(type="approval", schema=raw({"type": "person"}))
    task = ArchivedTask(
        id="t", status="blocked", created_at=1, updated_at=1, blocked_request=request
    )
    archive = ImportArchive(
        schema="taskcast.taskArchive", version=1, exported_at=1, task=task, events=[]
    )
    with pytest.raises(BadRequest, match=r"`\$\.archive\.task\.blockedRequest\.schema\.type`"):
        await engine.import_task(ImportTask(archive=archive))


async def test_the_first_valid_answer_wins(engine, autojump_clock):
    await create(engine)
    await move(engine, "running")
    await ask(engine, schema=raw(SCHEMA))
    won, lost = [], []

    async def answer(ok: object) -> None:
        try:
            won.append(await engine.resolve("t", raw({"ok": ok})))
        except TaskcastError as error:
            lost.append(type(error))

    async with trio.open_nursery() as nursery:
        for ok in ("yes", True, False, 1, True):
            nursery.start_soon(answer, ok)
    assert len(won) == 1
    assert lost.count(NotBlocked) >= 2
    assert set(lost) <= {NotBlocked, BadRequest}


async def test_an_answer_that_breaks_the_schema_leaves_the_task_as_it_was(engine, autojump_clock):
    await create(engine)
    await move(engine, "running")
    await ask(engine, schema=raw(SCHEMA))
    before = await engine.record("t")
    with pytest.raises(BadRequest, match=r"`\$\.data\.ok`"):
        await engine.resolve("t", raw({"ok": "yes"}))
    assert await engine.record("t") == before
    assert (await engine.resolve("t", raw({"ok": True}))).status == "running"


async def test_a_result_that_comes_with_a_transition_is_an_answer_too(engine, autojump_clock):
    """The log would tell of it as the resolution; without one the task just goes on."""
    await create(engine)
    await move(engine, "running")
    await ask(engine, schema=raw(SCHEMA))
    for result in ({"ok": "yes"}, {}):
        with pytest.raises(BadRequest, match=r"`\$\.result(\.ok)?`"):
            await engine.transition("t", Transition(status="running", result=raw(result)))
    assert (await engine.get("t")).status == "blocked"
    await engine.transition("t", Transition(status="running", result=raw({"ok": True})))
    await ask(engine, schema=raw(SCHEMA))
    await engine.transition("t", Transition(status="running"))
    await ask(engine, schema=raw(SCHEMA))
    await engine.transition("t", Transition(status="cancelled", result=raw({"ok": "no more"})))


async def test_an_answer_is_held_against_the_schema_that_is_there_when_it_is_stored(
    engine, autojump_clock, monkeypatch
):
    """The task was answered and blocked anew, by others, between the look and the step."""
    await create(engine)
    await move(engine, "running")
    await ask(engine, schema=raw({"type": "string"}))
    transition = engine.store.transition

    async def overtaken(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(engine.store, "transition", transition)
        await engine.resolve("t", raw("theirs"))
        await ask(engine, schema=raw({"type": "number"}))
        return await transition(*args, **kwargs)

    monkeypatch.setattr(engine.store, "transition", overtaken)
    with pytest.raises(BadRequest, match="number"):
        await engine.resolve("t", raw("mine"))
    assert (await engine.get("t")).status == "blocked"


async def test_a_schema_that_is_none_does_not_block_the_task(engine, autojump_clock):
    await create(engine)
    await move(engine, "running")
    with pytest.raises(BadRequest, match=r"`\$\.blockedRequest\.schema\.type`"):
        await ask(engine, schema=raw({"type": "person"}))
    assert (await engine.get("t")).status == "running"
    with pytest.raises(RequestNotFound):
        await engine.blocked_request("t")
