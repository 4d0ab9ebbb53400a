"""Workers against a real server: how handlers begin, speak and end, in both modes."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
import trio

from taskcast_trio.config import Auth, Config, Jwt, Secret, Workers
from taskcast_trio.core.errors import Forbidden, NotFound, Unauthorized
from taskcast_trio.worker import Decline, Run, TaskLost, WorkerReplaced

from ..http.conftest import start_server
from ..storage.redis.server import free_port
from .support import MODES, actions_of, becomes, config, events_of, worker_of, working

SECRET = "a secret of the tests, of 32 bytes or more"


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


@pytest.mark.parametrize("status", ["cancelled", "paused"])
async def test_a_task_that_somebody_ends_cancels_its_handler_whose_cleanup_has_its_grace(
    server: Any, mode: str, status: str
) -> None:
    worker = worker_of(server.url, mode, grace_s=0.5)
    times: dict[str, float] = {}
    why: list[str | None] = []
    running = trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            times["finally"] = trio.current_time()
            why.append(run.cancelled)
            with run.cleanup() as scope:
                await trio.sleep(0.1)  # noqa: ASYNC102
                times["cleaned"] = trio.current_time()
                with pytest.raises(TaskLost):
                    await run.emit("late")  # noqa: ASYNC102
                    await run.flush()  # noqa: ASYNC102
                await trio.sleep_forever()  # noqa: ASYNC102
            times["cut"] = trio.current_time()
            assert scope.cancelled_caught

    async with working(worker):
        task = await server.task(assignMode=MODES[mode])
        await running.wait()
        cancelled_at = trio.current_time()
        assert (await server.move(task, status)).status_code == 200
        with trio.fail_after(5):
            while "cut" not in times:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert times["finally"] - cancelled_at < 1
    assert times["cleaned"] < times["cut"]
    assert 0.4 < times["cut"] - times["finally"] < 1
    assert why == [status]
    assert await events_of(server, task, "late") == []


async def test_an_emit_learns_of_a_cancel_without_any_heartbeat(server: Any) -> None:
    worker = worker_of(server.url, "pull", heartbeat_s=1000)
    begun, why = trio.Event(), []

    @worker.task()
    async def handler(run: Run) -> None:
        try:
            while True:
                await run.emit("tick")
                begun.set()
                await trio.sleep(0.05)
        finally:
            why.append(run.cancelled)

    async with working(worker):
        task = await server.task(assignMode="pull")
        await begun.wait()
        await server.move(task, "cancelled")
        with trio.fail_after(2):
            while not why:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert why == ["task_cancelled"]


async def test_the_deadline_of_a_task_cancels_its_handler(server: Any, mode: str) -> None:
    worker = worker_of(server.url, mode, heartbeat_s=1000)
    why: list[str | None] = []

    @worker.task()
    async def handler(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            why.append(run.cancelled)

    async with working(worker):
        started = trio.current_time()
        task = await server.task(assignMode=MODES[mode], ttl=1)
        await becomes(server, task, "timeout")
        with trio.fail_after(2):
            while not why:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert 0.9 < trio.current_time() - started < 2
    assert why == ["timeout"]


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
        with trio.fail_after(5):
            while not (await server.client.post(resolve, json={"data": "yes"})).is_success:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await becomes(server, task, "completed")
    assert answers == [{"ok": True}, "yes", None]


async def test_a_block_that_is_cancelled_alone_takes_its_request_back(server: Any) -> None:
    worker = worker_of(server.url)

    @worker.task()
    async def handler(run: Run) -> dict[str, bool]:
        with trio.move_on_after(0.3) as waiting:
            await run.block()
        return {"gave_up": waiting.cancelled_caught}

    async with working(worker):
        task = await server.task(assignMode="ws-offer")
        assert (await becomes(server, task, "completed"))["result"] == {"gave_up": True}


async def test_a_cancel_reaches_a_handler_that_is_blocked(server: Any, mode: str) -> None:
    worker = worker_of(server.url, mode)
    why: list[str | None] = []

    @worker.task()
    async def handler(run: Run) -> None:
        try:
            await run.block()
        finally:
            why.append(run.cancelled)

    async with working(worker):
        task = await server.task(assignMode=MODES[mode])
        await becomes(server, task, "blocked")
        await server.move(task, "cancelled")
        with trio.fail_after(2):
            while not why:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert why == ["cancelled"]


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
        await trio.sleep(0.05)
        now -= cost

    async with working(worker):
        tasks = [await server.task(assignMode=MODES[mode], cost=1 + n % 2) for n in range(10)]
        for task in tasks:
            await becomes(server, task, "completed")
            assert await actions_of(server, task) == ["assigned"], "none was offered too early"
    assert most == 3


async def test_an_available_task_is_claimed_by_one(server: Any) -> None:
    workers = [worker_of(server.url, worker_id=f"w{n}", capacity=1) for n in range(3)]
    ran: list[str] = []

    async def handler(run: Run) -> None:
        ran.append(run.task.id)
        await trio.sleep(0.02)

    for worker in workers:
        worker.task("race")(handler)
    async with working(*workers):
        await trio.sleep(0.2)
        tasks = [await server.task(type="race", assignMode="ws-race") for _ in range(9)]
        for task in tasks:
            await becomes(server, task, "completed")
    assert sorted(ran) == sorted(tasks)


# The end -----------------------------------------------------------------------------------------


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
        await trio.sleep(0.2)
        later = await server.task(assignMode=MODES[mode])
        await trio.sleep(0.5)
        go_on.set()
        await becomes(server, task, "completed")
    assert len(await events_of(server, task, "last")) == 1
    assert (await becomes(server, later, "pending"))["status"] == "pending"
    if mode == "websocket":
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
    assert trio.current_time() - started < 3
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

    @worker.task()
    async def handler(run: Run) -> None:
        begun.append(run.task.id)
        if run.params.get("stuck"):
            with trio.CancelScope(shield=True):
                await release.wait()

    async with working(worker):
        stuck = await server.task(assignMode=MODES[mode], params={"stuck": True})
        with trio.fail_after(5):
            while not begun:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await server.move(stuck, "cancelled")
        await trio.sleep(0.6)
        wide = await server.task(assignMode=MODES[mode], cost=2)
        narrow = await server.task(assignMode=MODES[mode])
        await becomes(server, narrow, "completed")
        assert begun == [stuck, narrow]
        release.set()
        await becomes(server, wide, "completed")


# The server --------------------------------------------------------------------------------------


async def test_a_task_that_was_handed_on_is_stopped_and_its_late_words_are_refused(
    server: Any,
) -> None:
    """Its worker goes on in good faith: the heartbeat that is to tell it comes too late."""
    worker = worker_of(server.url, "pull", heartbeat_s=1000, worker_id="late")
    begun, go_on, why = trio.Event(), trio.Event(), []

    @worker.task()
    async def handler(run: Run) -> None:
        begun.set()
        try:
            await go_on.wait()
            await run.emit("late")
            await trio.sleep_forever()
        finally:
            why.append(run.cancelled)

    async with working(worker):
        task = await server.task(assignMode="pull")
        await begun.wait()
        await server.client.post("/workers/register", json={"workerId": "late", "tasks": []})
        await becomes(server, task, "pending")
        await server.move(task, "running")
        go_on.set()
        with trio.fail_after(5):
            while not why:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert why[0] == "stale_fence"
        assert await events_of(server, task, "late") == []


async def test_a_worker_that_the_server_forgot_comes_back_with_its_tasks(server: Any) -> None:
    worker = worker_of(server.url, "pull", worker_id="w")
    begun, go_on = trio.Event(), trio.Event()

    @worker.task()
    async def handler(run: Run) -> None:
        begun.set()
        await go_on.wait()

    async with working(worker):
        task = await server.task(assignMode="pull")
        await begun.wait()
        await server.client.delete("/workers/w")
        with trio.fail_after(5):
            while (await server.client.get("/workers/w")).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(0.02)
        await trio.sleep(1)
        go_on.set()
        await becomes(server, task, "completed")
        assert await actions_of(server, task) == ["assigned"]


async def test_a_worker_whose_id_another_one_takes_ends_and_leaves_it_its_tasks(
    server: Any,
) -> None:
    one, two = (worker_of(server.url, worker_id="w") for _ in range(2))
    ran: list[int] = []

    async def handler(run: Run) -> None:
        ran.append(1)
        if len(ran) == 1:
            await trio.sleep_forever()
        await trio.sleep(0.5)

    one.task()(handler)
    two.task()(handler)
    async with trio.open_nursery() as nursery:
        replaced = trio.Event()

        async def first() -> None:
            with pytest.raises(WorkerReplaced):
                await one.run()
            replaced.set()

        nursery.start_soon(first)
        task = await server.task(assignMode="ws-offer")
        await becomes(server, task, "running")
        nursery.start_soon(two.run)
        await replaced.wait()
        await becomes(server, task, "completed")
        two.stop()
    assert await actions_of(server, task) == ["assigned", "lost", "assigned"]


async def test_handlers_are_stopped_when_the_server_is_away_for_longer_than_the_lease(
    server: Any,
) -> None:
    """A connection that is dead without a word, as behind a router that has lost it."""
    begun, why = trio.Event(), []
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    through = True

    async def relay(near: trio.SocketStream) -> None:
        if not through:
            await trio.sleep_forever()
        far = await trio.open_tcp_stream("127.0.0.1", server.port)

        async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            while through and (data := await source.receive_some()):
                if not through:
                    break
                await sink.send_all(data)
            if not through:
                await trio.sleep_forever()

        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(copy, near, far)
            await copy(far, near)
            nursery.cancel_scope.cancel()

    worker = worker_of(f"http://127.0.0.1:{port}", lease_s=1.5, worker_id="w")

    @worker.task()
    async def handler(run: Run) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            why.append((run.cancelled, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, relay, listeners)
        await nursery.start(worker.run)
        task = await server.task(assignMode="ws-offer")
        await begun.wait()
        through = False
        cut_at = trio.current_time()
        with trio.fail_after(5):
            while not why:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert why[0][0] == "lease_ended"
        assert why[0][1] - cut_at < 2.5
        await becomes(server, task, "pending")
        nursery.cancel_scope.cancel()


async def test_a_worker_whose_token_is_not_taken_raises(mode: str) -> None:
    auth = Auth(mode="jwt", jwt=Jwt(algorithm="HS256", secret=Secret(SECRET)))
    async with start_server(Config(auth=auth, workers=Workers(enabled=True))) as server:
        powerless = jwt.encode({"sub": "x", "scope": ["event:subscribe"]}, SECRET, "HS256")
        for token, error in ((None, Unauthorized), ("x.y.z", Unauthorized), (powerless, Forbidden)):
            worker = worker_of(server.url, mode, token=token)

            @worker.task()
            async def nothing(run: Run) -> None: ...

            with trio.fail_after(5), pytest.raises(error):
                await worker.run()
        scopes = ["worker:connect", "task:manage", "event:publish", "event:subscribe"]
        token = jwt.encode({"sub": "x", "scope": scopes, "workerId": "mine"}, SECRET, "HS256")
        maker = jwt.encode({"scope": ["task:create", "*"]}, SECRET, "HS256")
        server.client.headers["Authorization"] = f"Bearer {maker}"
        worker = worker_of(server.url, mode, token=token)

        @worker.task()
        async def answer(run: Run) -> dict[str, Any]:
            return {"answer": await run.block()}

        async with working(worker):
            task = await server.task(assignMode=MODES[mode])
            await becomes(server, task, "blocked")
            await server.client.post(f"/tasks/{task}/resolve", json={"data": 7})
            assert (await becomes(server, task, "completed"))["result"] == {"answer": 7}
            assert worker.id == "mine"


async def test_a_server_without_workers_is_told_apart_from_one_that_is_away(mode: str) -> None:
    async with start_server() as server:
        worker = worker_of(server.url, mode)

        @worker.task()
        async def nothing(run: Run) -> None: ...

        with trio.fail_after(5), pytest.raises(NotFound):
            await worker.run()


async def test_a_server_that_is_away_at_the_start_is_waited_for(mode: str) -> None:
    port = free_port()
    worker = worker_of(f"http://127.0.0.1:{port}", mode)

    @worker.task()
    async def nothing(run: Run) -> None: ...

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep(0.6)
        assert worker.id is None
        async with start_server(config(), port=port) as server:
            task = await server.task(assignMode=MODES[mode])
            await becomes(server, task, "completed")
            worker.stop()


async def test_a_worker_that_never_met_its_server_can_be_stopped(mode: str) -> None:
    worker = worker_of(f"http://127.0.0.1:{free_port()}", mode)

    @worker.task()
    async def nothing(run: Run) -> None: ...

    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await trio.sleep(0.3)
            worker.stop()


def test_what_can_be_no_worker_is_refused() -> None:
    for options in ({"capacity": 0}, {"capacity": 1001}, {"mode": "push"}):
        with pytest.raises(ValueError):
            worker_of("http://localhost", **options)
    with pytest.raises(ValueError):
        worker_of("localhost:3721")
    worker = worker_of("http://localhost")
    with pytest.raises(ValueError):
        trio.run(worker.run)

    async def nothing(run: Run) -> None: ...

    worker.task("a")(nothing)
    with pytest.raises(ValueError):
        worker.task("b", "a")(nothing)
