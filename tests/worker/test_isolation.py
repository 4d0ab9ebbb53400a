"""What one task brings, or its handler does wrong, is its own affair: the worker goes on."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from taskcast_trio.worker import Decline, Run

from .support import MODES, actions_of, becomes, worker_of, working


class Mute(Exception):
    """An exception that can't tell its text."""

    def __str__(self) -> str:
        raise RuntimeError("not even that")


async def bad_type(run: Run) -> None:
    await run.emit("half an emoji: \ud83d")
    await trio.sleep_forever()


async def bad_series(run: Run) -> None:
    await run.emit("piece", series=object(), mode="latest")  # type: ignore[arg-type]
    await trio.sleep_forever()


async def bad_level(run: Run) -> None:
    await run.emit("piece", level={1: object()})  # type: ignore[arg-type]


async def mute(run: Run) -> None:
    raise Mute


@pytest.mark.parametrize("fault", [bad_type, bad_series, bad_level, mute])
async def test_a_handler_that_errs_fails_its_task_and_no_other_one(server: Any, fault: Any) -> None:
    worker = worker_of(server.url)
    go_on = trio.Event()
    worker.task("bad")(fault)

    @worker.task("good")
    async def good(run: Run) -> None:
        await go_on.wait()

    async with working(worker):
        beside = await server.task(type="good", assignMode="ws-offer")
        await becomes(server, beside, "running")
        bad = await server.task(type="bad", assignMode="ws-offer")
        await becomes(server, bad, "failed")
        go_on.set()
        await becomes(server, beside, "completed")
        assert await actions_of(server, beside) == ["assigned"]


async def test_params_with_half_an_emoji_reach_the_handler(server: Any, mode: str) -> None:
    """Legal JSON, which the server takes: JavaScript cuts texts like that."""
    worker = worker_of(server.url, mode)
    got: list[Any] = []

    @worker.task()
    async def handler(run: Run) -> None:
        got.append(run.params)
        got.append(await run.block())

    async with working(worker):
        body = f'{{"assignMode": "{MODES[mode]}", "params": {{"cut": "\\ud83d"}}}}'
        headers = {"Content-Type": "application/json"}
        task = (await server.client.post("/tasks", content=body, headers=headers)).json()["id"]
        await becomes(server, task, "blocked")
        answer = '{"data": {"cut": "\\ud83d"}}'
        resolved = await server.client.post(
            f"/tasks/{task}/resolve", content=answer, headers=headers
        )
        assert resolved.status_code == 200
        await becomes(server, task, "completed")
    assert got == [{"cut": "\ud83d"}, {"cut": "\ud83d"}]


async def test_a_handler_gives_its_task_back_from_within_a_nursery(server: Any) -> None:
    worker = worker_of(server.url)
    runs = 0

    @worker.task()
    async def handler(run: Run) -> None:
        nonlocal runs
        runs += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)
            if runs == 1:
                raise Decline

    async with working(worker):
        task = await server.task(assignMode="ws-offer")
        await becomes(server, task, "completed")
    assert await actions_of(server, task) == ["assigned", "declined", "assigned"]
