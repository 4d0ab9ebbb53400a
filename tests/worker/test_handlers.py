"""Handlers against a real server: how they begin, speak and end, in both modes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskcast_trio.testing import START_MS
from taskcast_trio.worker import Decline, Run

from ..http.conftest import start_server
from .support import MODES, actions_of, becomes, config, events_of, worker_of, working


async def test_what_a_handler_returns_completes_the_task_and_the_longest_pattern_decides(
    server: Any, mode: str
) -> None:
    worker = worker_of(server.url, mode, metadata={"host": "a"}, worker_id="w")
    seen: list[tuple[str, Any]] = []

    @worker.task("llm.*", "other")
    async def general(run: Run) -> None:
        seen.append(("general", run.params))

    @worker.task("llm.answer")
    async def answer(run: Run) -> dict[str, int]:
        seen.append(("answer", run.params))
        await run.emit("llm.delta", {"delta": "a"}, series="answer", mode="accumulate")
        await run.emit("llm.delta", {"delta": "b"}, series="answer", mode="accumulate")
        await run.emit("note", level="debug")
        return {"tokens": 2}

    async with working(worker):
        one = await server.task(type="llm.x", assignMode=MODES[mode])
        other = await server.task(type="llm.answer", assignMode=MODES[mode], params={"p": [1]})
        assert "result" not in await becomes(server, one, "completed")
        assert (await becomes(server, other, "completed"))["result"] == {"tokens": 2}
        shown = (await server.client.get("/workers/w")).json()
        assert (shown["metadata"], shown["capacity"], shown["connectionMode"]) == (
            {"host": "a"},
            5,
            mode,
        )
        assert shown["matchRule"] == {"taskTypes": ["llm.*", "other", "llm.answer"]}
    assert sorted(seen) == [("answer", {"p": [1]}), ("general", {})]
    types = [event["type"] for event in await events_of(server, other)]
    assert types == [
        "taskcast:audit",
        "taskcast:status",
        "llm.delta",
        "llm.delta",
        "note",
        "taskcast:status",
    ]


async def test_an_exception_fails_the_task_and_the_server_decides_about_another_attempt(
    server: Any, mode: str
) -> None:
    worker = worker_of(server.url, mode)
    attempts: list[int] = []

    @worker.task()
    async def fail(run: Run) -> None:
        attempts.append(run.attempt)
        await run.emit("before")
        async with trio.open_nursery():
            raise LookupError("no such model")

    async with working(worker):
        retry = {"backoff": "fixed", "initialDelayMs": 50}
        task = await server.task(assignMode=MODES[mode], maxAttempts=2, retry=retry)
        failed = await becomes(server, task, "failed")
    assert failed["error"] == {"message": "no such model", "code": "LookupError"}
    assert attempts == [1, 2]
    assert len(await events_of(server, task, "before")) == 2


@pytest.mark.parametrize("result", [["a list"], "text", {1, 2}, object()])
async def test_a_result_that_is_no_object_fails_the_task(server: Any, result: Any) -> None:
    worker = worker_of(server.url)

    @worker.task()
    async def handler(run: Run) -> Any:
        return result

    async with working(worker):
        task = await server.task(assignMode="ws-offer")
        assert (await becomes(server, task, "failed"))["error"]["code"] == "TypeError"


async def test_a_result_that_the_server_refuses_fails_the_task(server: Any) -> None:
    worker = worker_of(server.url)

    @worker.task()
    async def handler(run: Run) -> dict[str, str]:
        return {"text": "x" * 2_000_000}

    async with working(worker):
        task = await server.task(assignMode="ws-offer")
        assert (await becomes(server, task, "failed"))["error"]["code"] == "PayloadTooLarge"


async def test_pieces_are_sent_at_once_in_order_and_together_under_load(
    server: Any, mode: str
) -> None:
    worker = worker_of(server.url, mode)
    count = 3000
    first_at: list[float] = []

    @worker.task()
    async def handler(run: Run) -> dict[str, int]:
        await run.emit("piece", {"n": 0})
        await run.flush()
        first_at.append(trio.current_time())
        for n in range(1, count):
            await run.emit("piece", {"n": n})
        return {"n": count}

    async with working(worker):
        task = await server.task(assignMode=MODES[mode])
        await becomes(server, task, "completed")
    pieces = await events_of(server, task, "piece")
    assert [each["data"]["n"] for each in pieces] == list(range(count))
    batches = len({each["timestamp"] for each in pieces})
    assert batches < count / 4


async def test_a_blocked_handler_goes_on_with_the_answer(server: Any, mode: str) -> None:
    worker = worker_of(server.url, mode)
    answers: list[Any] = []

    @worker.task()
    async def handler(run: Run) -> dict[str, Any]:
        await run.emit("asking")
        schema = {"type": "object", "required": ["ok"]}
        answers.append(await run.block({"q": 1}, schema=schema, type="approval", reason="why"))
        answers.append(await run.block())
        answers.append(await run.block(resume_after_s=0.2))
        return {"n": len(answers)}

    async with working(worker):
        task = await server.task(assignMode=MODES[mode])
        blocked = await becomes(server, task, "blocked")
        assert blocked["reason"] == "why"
        asked = (await server.client.get(f"/tasks/{task}/request")).json()
        assert (asked["type"], asked["data"]) == ("approval", {"q": 1})
        resolve = f"/tasks/{task}/resolve"
        assert (await server.client.post(resolve, json={"data": {"no": 1}})).status_code == 400
        assert (await server.client.post(resolve, json={"data": {"ok": True}})).is_success
        await becomes(server, task, "blocked")
        assert (await server.client.post(resolve, json={"data": "yes"})).is_success
        await becomes(server, task, "completed")
    assert answers == [{"ok": True}, "yes", None]


async def test_a_second_attempt_waits_for_an_answer_of_its_own(server: Any) -> None:
    worker = worker_of(server.url)
    answers: list[Any] = []

    @worker.task()
    async def handler(run: Run) -> None:
        answers.append(await run.block())
        if run.attempt == 1:
            raise RuntimeError("after the answer")

    async with working(worker):
        retry = {"backoff": "fixed", "initialDelayMs": 0}
        task = await server.task(assignMode="ws-offer", maxAttempts=2, retry=retry)
        for answer in (1, 2):
            await becomes(server, task, "blocked")
            await server.client.post(f"/tasks/{task}/resolve", json={"data": answer})
        await becomes(server, task, "completed")
    assert answers == [1, 2]


async def test_requests_of_one_millisecond_do_not_get_each_others_answers() -> None:
    async with start_server(config(), clock=lambda: START_MS) as server:
        worker = worker_of(server.url)

        @worker.task()
        async def handler(run: Run) -> dict[str, Any]:
            return {"answers": [await run.block(), await run.block()]}

        async with working(worker):
            task = await server.task(assignMode="ws-offer")
            for answer in (1, 2):
                await becomes(server, task, "blocked")
                resolve = f"/tasks/{task}/resolve"
                assert (await server.client.post(resolve, json={"data": answer})).is_success
            assert (await becomes(server, task, "completed"))["result"] == {"answers": [1, 2]}


async def test_a_block_that_is_cancelled_alone_takes_its_request_back(server: Any) -> None:
    worker = worker_of(server.url)
    asking = trio.CancelScope()

    @worker.task()
    async def handler(run: Run) -> dict[str, bool]:
        with asking:
            await run.block()
        return {"gave_up": asking.cancelled_caught}

    async with working(worker):
        task = await server.task(assignMode="ws-offer")
        await becomes(server, task, "blocked")
        asking.cancel()
        assert (await becomes(server, task, "completed"))["result"] == {"gave_up": True}


async def test_a_handler_may_give_its_task_back(server: Any, mode: str) -> None:
    first, second = (worker_of(server.url, mode, worker_id=name) for name in ("one", "two"))
    ran: list[str] = []

    def handle(name: str) -> Any:
        async def handler(run: Run) -> None:
            ran.append(name)
            if len(ran) == 1:
                raise Decline(blacklist=True)

        return handler

    first.task()(handle("one"))
    second.task()(handle("two"))
    async with working(first, second):
        task = await server.task(assignMode=MODES[mode])
        await becomes(server, task, "completed")
    assert sorted(ran) == ["one", "two"]
    assert await actions_of(server, task) == ["assigned", "declined", "assigned"]


async def test_no_more_runs_at_once_than_there_are_slots(server: Any, mode: str) -> None:
    worker = worker_of(server.url, mode, capacity=3)
    now = most = 0

    @worker.task()
    async def handler(run: Run) -> None:
        nonlocal now, most
        cost = run.task.cost
        assert isinstance(cost, int)
        now += cost
        most = max(most, now)
        await wait_all_tasks_blocked(0.02)  # whatever else fits has begun
        now -= cost

    async with working(worker):
        tasks = [await server.task(assignMode=MODES[mode], cost=1 + n % 2) for n in range(10)]
        for task in tasks:
            await becomes(server, task, "completed")
            assert await actions_of(server, task) == ["assigned"], "none was offered too early"
    assert most == 3


async def test_an_available_task_is_claimed_by_one_as_soon_as_it_has_room() -> None:
    """Which is once told of it: it is told again after ten seconds only."""
    ran: list[str] = []

    async def handler(run: Run) -> None:
        ran.append(run.task.id)
        await wait_all_tasks_blocked(0.01)

    async with start_server(config()) as server:
        workers = [worker_of(server.url, worker_id=f"w{n}", capacity=1) for n in range(3)]
        for worker in workers:
            worker.task("race")(handler)
        async with working(*workers):
            tasks = [await server.task(type="race", assignMode="ws-race") for _ in range(9)]
            for task in tasks:
                await becomes(server, task, "completed", wait_s=5)
    assert sorted(ran) == sorted(tasks)
