"""Handlers that are stopped: by others, by their deadline, and with their worker."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from taskcast_trio.worker import Run, TaskLost

from ..waiting import until
from .support import MODES, actions_of, becomes, events_of, row_of, worker_of, working

AT_ONCE_S = 8
"""Sooner than by a heartbeat, or than a worker that drains waits, on a busy machine too."""


@pytest.mark.parametrize("status", ["cancelled", "paused"])
async def test_a_task_that_somebody_ends_cancels_its_handler_whose_cleanup_has_its_grace(
    server: Any, mode: str, status: str
) -> None:
    worker = worker_of(server.url, mode, grace_s=0.5)
    times: dict[str, float] = {}
    why: list[str | None] = []
    running, cut = trio.Event(), trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            times["finally"] = trio.current_time()
            why.append(run.cancelled)
            with run.cleanup() as scope:
                await trio.lowlevel.checkpoint()  # noqa: ASYNC102
                times["cleaned"] = trio.current_time()
                with pytest.raises(TaskLost):
                    await run.emit("late")  # noqa: ASYNC102
                    await run.flush()  # noqa: ASYNC102
                await trio.sleep_forever()  # noqa: ASYNC102
            times["cut"] = trio.current_time()
            assert scope.cancelled_caught
            cut.set()

    async with working(worker):
        task = await server.task(assignMode=MODES[mode])
        await running.wait()
        cancelled_at = trio.current_time()
        assert (await server.move(task, status)).status_code == 200
        with trio.fail_after(30):
            await cut.wait()
    assert times["finally"] - cancelled_at < AT_ONCE_S
    assert times["cleaned"] < times["cut"]
    assert 0.4 < times["cut"] - times["finally"] < AT_ONCE_S
    assert why == [status]
    assert await events_of(server, task, "late") == []


@pytest.mark.parametrize("status", ["cancelled", "paused", "failed", "deleted"])
async def test_an_emit_learns_of_an_end_without_any_heartbeat(server: Any, status: str) -> None:
    worker = worker_of(server.url, "pull", heartbeat_s=1000)
    begun, ended, why = trio.Event(), trio.Event(), []

    @worker.task()
    async def handler(run: Run) -> None:
        try:
            while True:
                await run.emit("tick")
                await run.flush()
                begun.set()
        finally:
            why.append(run.cancelled)
            ended.set()

    async with working(worker):
        task = await server.task(assignMode="pull")
        await begun.wait()
        if status == "deleted":
            await server.client.delete(f"/tasks/{task}")
        else:
            await server.move(task, status)
        with trio.fail_after(2):
            await ended.wait()
    assert why == [status]


async def test_the_deadline_of_a_task_cancels_its_handler(server: Any, mode: str) -> None:
    worker = worker_of(server.url, mode, heartbeat_s=1000)
    why: list[str | None] = []
    ended = trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            why.append(run.cancelled)
            ended.set()

    async with working(worker):
        started = trio.current_time()
        task = await server.task(assignMode=MODES[mode], ttl=1)
        await becomes(server, task, "timeout")
        with trio.fail_after(AT_ONCE_S):
            await ended.wait()
        assert trio.current_time() - started > 0.9
    assert why == ["timeout"]


async def test_a_cancel_reaches_a_handler_that_is_blocked(server: Any, mode: str) -> None:
    worker = worker_of(server.url, mode)
    why: list[str | None] = []
    ended = trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        try:
            await run.block()
        finally:
            why.append(run.cancelled)
            ended.set()

    async with working(worker):
        task = await server.task(assignMode=MODES[mode])
        await becomes(server, task, "blocked")
        await server.move(task, "cancelled")
        with trio.fail_after(2):
            await ended.wait()
    assert why == ["cancelled"]


async def test_a_drain_lets_handlers_finish_and_takes_no_new_task(server: Any, mode: str) -> None:
    worker = worker_of(server.url, mode)
    begun, go_on = trio.Event(), trio.Event()

    @worker.task()
    async def handler(run: Run) -> dict[str, bool]:
        begun.set()
        await go_on.wait()
        await run.emit("last")
        return {"done": True}

    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        task = await server.task(assignMode=MODES[mode])
        await begun.wait()
        worker.stop()
        if mode == "pull":
            await until(lambda: not server.runtime.workers.dispatcher.waiters)
        else:
            await until(lambda: row_of(server, worker).draining)
        later = await server.task(assignMode=MODES[mode])
        go_on.set()
        await becomes(server, task, "completed")
    assert len(await events_of(server, task, "last")) == 1
    assert (await becomes(server, later, "pending"))["status"] == "pending"
    assert await actions_of(server, later) == []
    assert (await server.client.get("/workers")).json() == {"workers": []}


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_worker_that_ends_gives_back_what_it_could_not_finish(
    server: Any, mode: str, how: str
) -> None:
    worker = worker_of(server.url, mode, drain_s=0.2)
    begun, cleaned = trio.Event(), []

    @worker.task()
    async def handler(run: Run) -> None:
        try:
            await run.emit("one")
            begun.set()
            await trio.sleep_forever()
        finally:
            assert run.cancelled == "stopping"
            with run.cleanup():
                await run.emit("last words")  # noqa: ASYNC102
                cleaned.append(trio.current_time())

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        task = await server.task(assignMode=MODES[mode])
        await begun.wait()
        if how == "stop":
            worker.stop()
        else:
            nursery.cancel_scope.cancel()
    assert trio.current_time() - started < AT_ONCE_S
    assert len(cleaned) == 1
    assert (await becomes(server, task, "pending"))["status"] == "pending"
    assert await actions_of(server, task) == ["assigned", "declined"]
    assert len(await events_of(server, task, "last words")) == 1


async def test_a_handler_that_finishes_while_it_is_stopped_has_finished(server: Any) -> None:
    worker = worker_of(server.url, drain_s=0.1)
    begun = trio.Event()

    @worker.task()
    async def handler(run: Run) -> dict[str, str]:
        begun.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:  # noqa: ASYNC103
            return {"partial": "yes"}  # noqa: ASYNC104
        return {}

    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        task = await server.task(assignMode="ws-offer")
        await begun.wait()
        worker.stop()
    assert (await becomes(server, task, "completed"))["result"] == {"partial": "yes"}


async def test_a_handler_that_does_not_end_keeps_its_slot_and_the_log_says_so(
    server: Any, mode: str, caplog: Any
) -> None:
    worker = worker_of(server.url, mode, capacity=2, grace_s=0.2)
    release, begun = trio.Event(), []
    first = trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        begun.append(run.task.id)
        first.set()
        if run.params.get("stuck"):
            with trio.CancelScope(shield=True):
                await release.wait()

    async with working(worker):
        stuck = await server.task(assignMode=MODES[mode], params={"stuck": True})
        with trio.fail_after(30):
            await first.wait()
        await server.move(stuck, "cancelled")
        told = f"The handler of task {stuck!r} was cancelled and does not end"
        await until(lambda: told in caplog.text)
        wide = await server.task(assignMode=MODES[mode], cost=2)
        narrow = await server.task(assignMode=MODES[mode])
        await becomes(server, narrow, "completed")
        assert begun == [stuck, narrow]
        release.set()
        await becomes(server, wide, "completed")
