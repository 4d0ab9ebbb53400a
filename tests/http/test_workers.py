"""Workers that pull: register, long-poll, heartbeats, fences, retries; with nothing but HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import jwt
import pytest
import trio

from taskcast_trio.config import Auth, Config, Jwt, Secret, Workers
from taskcast_trio.config.schema import Limits, WorkerDefaults

from ..waiting import until

SECRET = "a secret of the tests, of 32 bytes or more"


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def config(**defaults: Any) -> Config:
    return Config(workers=Workers(enabled=True, defaults=WorkerDefaults(**defaults)))


@pytest.fixture
async def server(start: Any) -> AsyncIterator[Any]:
    async with start(config()) as running:
        yield running


async def register(server: Any, worker: str = "w", **fields: Any) -> dict[str, Any]:
    answer = await server.client.post("/workers/register", json={"workerId": worker, **fields})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def pull(server: Any, worker: str = "w", wait_ms: int = 0, **query: Any) -> httpx.Response:
    parameters = {"workerId": worker, "timeout": wait_ms, **query}
    answer: httpx.Response = await server.client.get("/workers/pull", params=parameters)
    return answer


async def waiting(server: Any, count: int) -> None:
    """Wait until so many pulls do."""
    await until(lambda: len(server.runtime.workers.dispatcher.waiters) == count)


async def pulled(server: Any, worker: str = "w") -> tuple[str, dict[str, str]]:
    """A task, and the header to work on it with."""
    answer = await pull(server, worker, 5000)
    assert answer.status_code == 200, answer.status_code
    return answer.json()["id"], {"Taskcast-Fence": answer.headers["Taskcast-Fence"]}


async def worker_of(server: Any, worker: str = "w") -> dict[str, Any]:
    found: dict[str, Any] = (await server.client.get(f"/workers/{worker}")).json()
    return found


async def is_free(server: Any, worker: str = "w") -> bool:
    return bool((await worker_of(server, worker))["usedSlots"] == 0)


async def heartbeat(server: Any, worker: str = "w", **body: Any) -> dict[str, Any]:
    answer = await server.client.post(f"/workers/{worker}/heartbeat", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def patch(server: Any, task: str, status: str, headers: Any = None, **body: Any) -> Any:
    return await server.client.patch(
        f"/tasks/{task}/status", json={"status": status, **body}, headers=headers
    )


async def publish(server: Any, task: str, headers: Any) -> httpx.Response:
    event = {"type": "a", "level": "info"}
    answer: httpx.Response = await server.client.post(
        f"/tasks/{task}/events", json=event, headers=headers
    )
    return answer


async def test_a_worker_needs_nothing_but_http(server: Any) -> None:
    made = await register(
        server, capacity=2, metadata={"host": "a"}, matchRule={"taskTypes": ["x.*"]}
    )
    assert (made["connectionMode"], made["status"], made["metadata"]) == (
        "pull",
        "idle",
        {"host": "a"},
    )
    task = await server.task(type="x.y", assignMode="pull", params={"p": 1})
    await server.task(type="z", assignMode="pull")
    answer = await pull(server)
    assert answer.json()["id"] == task
    assert answer.json()["fence"] == int(answer.headers["Taskcast-Fence"]) == 1
    fence = {"Taskcast-Fence": "1"}
    assert (await patch(server, task, "running", fence)).status_code == 200
    assert (await publish(server, task, fence)).status_code == 201
    assert (await worker_of(server))["usedSlots"] == 1
    done = await patch(server, task, "completed", fence, result={"n": 1})
    assert done.json()["status"] == "completed"
    await until(lambda: is_free(server))
    assert (await pull(server)).status_code == 204
    assert (await heartbeat(server)) == {"ok": True, "cancel": [], "intervalMs": 30_000}


async def test_a_waiting_pull_is_woken_at_once_by_a_task_that_is_created_later(
    server: Any,
) -> None:
    await register(server)
    waited: list[float] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert (await pull(server, wait_ms=15_000)).status_code == 200
            waited.append(trio.current_time())

        nursery.start_soon(wait)
        await waiting(server, 1)
        await server.task(assignMode="pull")
        created = trio.current_time()
    assert waited[0] - created < 0.5


async def test_the_heaviest_worker_that_waits_gets_the_task_and_of_equals_the_first(
    server: Any,
) -> None:
    got: dict[str, str] = {}
    async with trio.open_nursery() as nursery:

        async def wait(worker: str) -> None:
            answer = await pull(server, worker, 10_000)
            if answer.status_code == 200:
                got[worker] = answer.json()["id"]

        for number, (worker, weight) in enumerate((("light", 1), ("first", 60), ("second", 60))):
            await register(server, worker, weight=weight, capacity=1)
            nursery.start_soon(wait, worker)
            await waiting(server, number + 1)
        tasks = [await server.task(assignMode="pull") for _ in range(3)]
    assert [got["first"], got["second"], got["light"]] == tasks


async def test_a_task_goes_out_at_once_when_a_slot_is_free_and_by_priority(server: Any) -> None:
    await register(server, capacity=1)
    task, fence = (await server.task(assignMode="pull")), None
    _, fence = await pulled(server)
    waiting = [await server.task(assignMode="pull", priority=n) for n in (0, 5, -5, 5)]
    in_order = [waiting[1], waiting[3], waiting[0], waiting[2]]
    for expected in in_order:
        assert (await pull(server, wait_ms=0)).status_code == 204
        async with trio.open_nursery() as nursery:
            nursery.start_soon(patch, server, task, "cancelled")
            started = trio.current_time()
            task, fence = await pulled(server)
            assert trio.current_time() - started < 1
        assert task == expected
    assert fence == {"Taskcast-Fence": "1"}


async def test_a_task_is_not_handed_out_before_its_time(server: Any) -> None:
    await register(server)
    now_ms = server.runtime.engine.clock()
    await server.task(assignMode="pull", runAt=now_ms + 700)
    assert (await pull(server)).status_code == 204
    answer = await pull(server, wait_ms=5000)
    assert answer.status_code == 200
    assert server.runtime.engine.clock() >= now_ms + 700


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "pending"])
@pytest.mark.parametrize("by_worker", [True, False])
async def test_a_repeat_of_what_ends_an_assignment_gets_the_first_answer(
    server: Any, status: str, by_worker: bool
) -> None:
    await register(server)
    task = await server.task(assignMode="pull", runAt=1)
    _, fence = await pulled(server)
    if status in ("completed", "failed"):
        await patch(server, task, "running", fence)
    headers = {"Idempotency-Key": "k", **(fence if by_worker else {})}
    answers = [await patch(server, task, status, headers) for _ in range(2)]
    assert answers[0].json()["assignedWorker"] == "w"
    assert answers[1].status_code == 200
    assert answers[1].json() == answers[0].json()
    await patch(server, task, "cancelled")
    assert "assignedWorker" not in (await server.client.get(f"/tasks/{task}")).json()


async def test_a_failure_with_attempts_left_is_a_200_with_the_task_pending(server: Any) -> None:
    await register(server)
    retry = {"backoff": "fixed", "initialDelayMs": 300}
    task = await server.task(assignMode="pull", maxAttempts=2, retry=retry)
    for attempt in (1, 2):
        found, fence = await pulled(server)
        assert found == task
        await patch(server, task, "running", fence)
        failed = await patch(server, task, "failed", fence, error={"message": "no luck"})
        assert failed.status_code == 200
        assert failed.json()["attempts"] == attempt
        assert failed.json()["status"] == ("pending" if attempt == 1 else "failed")
        assert (await publish(server, task, fence)).status_code in (400, 409)
    assert (await server.client.get(f"/tasks/{task}")).json()["error"] == {"message": "no luck"}


async def test_a_task_that_is_cancelled_is_told_to_its_worker_by_409_and_by_the_heartbeat(
    server: Any,
) -> None:
    await register(server)
    tasks = [await server.task(assignMode="pull") for _ in range(2)]
    fences = dict([await pulled(server), await pulled(server)])
    for task in tasks:
        await patch(server, task, "running", fences[task])
    await patch(server, tasks[0], "paused")
    await patch(server, tasks[1], "cancelled")
    for task in tasks:
        for answer in (
            await publish(server, task, fences[task]),
            await patch(server, task, "completed", fences[task]),
        ):
            assert (answer.status_code, answer.json()["code"]) == (409, "task_cancelled")
    # Without a fence nothing is checked that was not before.
    assert (await publish(server, tasks[0], None)).status_code == 201
    assert (await publish(server, tasks[1], None)).status_code == 400
    with trio.fail_after(5):
        told: list[Any] = []
        while len(told) < 2:
            told += (await heartbeat(server))["cancel"]
    reasons = {each["taskId"]: each["reason"] for each in told}
    assert reasons == {tasks[0]: "paused", tasks[1]: "cancelled"}
    assert (await heartbeat(server))["cancel"] == []
    asked = [{"taskId": task, "fence": 1} for task in tasks]
    assert len((await heartbeat(server, tasks=asked))["cancel"]) == 2
    await until(lambda: is_free(server))


@pytest.mark.parametrize("status", ["paused", "cancelled"])
async def test_every_way_to_publish_tells_a_worker_to_stop(server: Any, status: str) -> None:
    await register(server)
    task = await server.task(assignMode="pull")
    _, fence = await pulled(server)
    await patch(server, task, "running", fence)
    await patch(server, task, status)
    answers = [
        await publish(server, task, fence),
        await server.client.post(f"/tasks/{task}/events", json=[], headers=fence),
        await server.client.post(
            f"/tasks/{task}/events",
            content=b'{"type":"a","level":"info"}\n',
            headers={**fence, "Content-Type": "application/x-ndjson"},
        ),
        await server.client.get(f"/tasks/{task}/events/ws", headers={**fence, **HANDSHAKE}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (409, "task_cancelled")


async def test_a_task_that_is_resumed_finds_another_worker(server: Any) -> None:
    await register(server)
    task = await server.task(assignMode="pull")
    _, fence = await pulled(server)
    await patch(server, task, "running", fence)
    await patch(server, task, "paused")
    assert (await patch(server, task, "running")).json()["status"] == "running"
    again, fence = await pulled(server)
    assert again == task
    assert (await publish(server, task, fence)).status_code == 201


async def test_a_task_put_back_to_pending_by_a_client_leaves_its_worker(server: Any) -> None:
    await register(server)
    task = await server.task(assignMode="pull")
    _, fence = await pulled(server)
    back = (await patch(server, task, "pending")).json()
    assert back["status"] == "pending"
    late = await publish(server, task, fence)
    assert (late.status_code, late.json()["code"]) == (409, "stale_fence")
    _, newer = await pulled(server)
    assert int(newer["Taskcast-Fence"]) > int(fence["Taskcast-Fence"])


async def test_a_heartbeat_that_does_not_name_a_task_gives_it_back_and_keeps_a_new_one(
    start: Any,
) -> None:
    """The answer to its pull may have been lost."""
    now_ms = 1_700_000_000_000
    async with start(config(), clock=lambda: now_ms) as server:
        await register(server)
        task = await server.task(assignMode="pull")
        await pulled(server)
        await heartbeat(server, tasks=[])
        assert (await server.client.get(f"/tasks/{task}")).json()["status"] == "assigned"
        now_ms += 16_000
        await heartbeat(server)
        assert (await server.client.get(f"/tasks/{task}")).json()["status"] == "assigned"
        await heartbeat(server, tasks=[])
        assert (await server.client.get(f"/tasks/{task}")).json()["status"] == "pending"
        assert (await pulled(server))[0] == task


async def test_who_leaves_while_it_waits_gets_no_task(server: Any) -> None:
    await register(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(pull, server, wait_ms=20_000))
        await waiting(server, 1)
        nursery.cancel_scope.cancel()
    await waiting(server, 0)
    task = await server.task(assignMode="pull")
    assert (await pulled(server))[0] == task


async def test_a_declined_task_is_asked_of_others_first_and_of_the_same_after_a_second(
    server: Any,
) -> None:
    await register(server, "a", weight=90)
    await register(server, "b", weight=10)
    task = await server.task(assignMode="pull")
    await pulled(server, "a")
    got: list[tuple[str, float]] = []
    async with trio.open_nursery() as nursery:

        async def wait(worker: str) -> None:
            if (await pull(server, worker, 3000)).status_code == 200:
                got.append((worker, trio.current_time()))

        nursery.start_soon(wait, "a")
        nursery.start_soon(wait, "b")
        await waiting(server, 2)
        body = {"workerId": "a"}
        await server.client.post(f"/workers/tasks/{task}/decline", json=body)
    assert [worker for worker, _ in got] == ["b"]
    await server.client.post(f"/workers/tasks/{task}/decline", json={"workerId": "b"})
    declined = trio.current_time()
    assert (await pull(server, "b", 5000)).status_code == 200
    assert trio.current_time() - declined > 0.9


async def test_a_draining_worker_gets_nothing_until_it_is_set_idle(server: Any) -> None:
    await register(server)
    drained = await server.client.patch("/workers/w/status", json={"status": "draining"})
    assert drained.json()["status"] == "draining"
    await server.task(assignMode="pull")
    assert (await pull(server)).status_code == 204
    await server.client.patch("/workers/w/status", json={"status": "idle"})
    assert (await pull(server, wait_ms=3000)).status_code == 200


async def test_the_drain_of_the_server_ends_waiting_pulls(start: Any) -> None:
    async with start(config()) as server:
        await register(server)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                assert (await pull(server, wait_ms=15_000)).status_code == 204

            nursery.start_soon(wait)
            await waiting(server, 1)
            nursery.cancel_scope.deadline = trio.current_time() + 3
            server.runtime.drain.set()
        assert not nursery.cancel_scope.cancelled_caught


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/workers/register", {"capacity": 0}),
        ("/workers/register", {"capacity": -1}),
        ("/workers/register", {"capacity": 1.5}),
        ("/workers/register", {"capacity": "1"}),
        ("/workers/register", {"weight": -1}),
        ("/workers/register", {"weight": 1e300}),
        ("/workers/register", {"workerId": ""}),
        ("/workers/register", {"workerId": "a\n"}),
        ("/workers/register", {"workerId": "x" * 1025}),
        ("/workers/register", {"workerId": 5}),
        ("/workers/register", {"metadata": []}),
        ("/workers/register", {"metadata": {"x": "x" * 20_000}}),
        ("/workers/register", {"matchRule": {"taskTypes": "a"}}),
        ("/workers/register", {"matchRule": {"tags": {"all": [1]}}}),
        ("/workers/register", {"tasks": [{"taskId": "t"}]}),
        ("/workers/register", []),
        ("/workers/w/heartbeat", {"tasks": [{"taskId": "t", "fence": "1"}]}),
        ("/workers/w/heartbeat", {"tasks": [{"taskId": "t", "fence": 1}] * 1001}),
        ("/workers/tasks/t/decline", {"workerId": None}),
        ("/tasks", {"priority": 1001}),
        ("/tasks", {"priority": 0.5}),
        ("/tasks", {"runAt": -1}),
        ("/tasks", {"maxAttempts": 0}),
        ("/tasks", {"maxAttempts": "3"}),
        ("/tasks", {"retry": {"backoff": "never"}}),
        ("/tasks", {"retry": {"initialDelayMs": -1}}),
    ],
)
async def test_bad_input_is_a_400(server: Any, path: str, body: Any) -> None:
    await register(server)
    answer = await server.client.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text


@pytest.mark.parametrize("fence", ["", "x", "-1", "1.0", "9" * 16])
async def test_a_fence_that_is_none_is_a_400(server: Any, fence: str) -> None:
    task = await server.task()
    assert (await publish(server, task, {"Taskcast-Fence": fence})).status_code == 400
    assert (await patch(server, task, "running", {"Taskcast-Fence": fence})).status_code == 400


async def test_ids_may_hold_anything_else(server: Any) -> None:
    for worker in ("a/b", "é", "a b", "%2F", "\U0001f600", "ws", "pull"):
        await register(server, worker)
    listed = (await server.client.get("/workers")).json()["workers"]
    assert len(listed) == 7
    assert (await server.client.get("/workers/a%2Fb")).json()["id"] == "a/b"
    lone = b'{"workerId":"\\ud800"}'
    answer = await server.client.post(
        "/workers/register", content=lone, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text


async def test_a_status_that_no_worker_can_be_set_to_names_those_that_it_can(server: Any) -> None:
    await register(server)
    answer = await server.client.patch("/workers/w/status", json={"status": "busy"})
    assert answer.status_code == 400
    assert answer.json()["error"].endswith("at `$.status`: expected draining, idle")


async def test_no_more_workers_are_registered_than_there_may_be(start: Any) -> None:
    limits = Limits(workers=2)
    async with start(Config(workers=Workers(enabled=True), limits=limits)) as server:
        for worker in ("w", "v"):
            await register(server, worker)
        path, third = "/workers/register", {"workerId": "third"}
        refused = await server.client.post(path, json=third)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "limits.workers" in refused.json()["error"]
        assert (await register(server, "w", capacity=3))["capacity"] == 3, "it is known"
        task = await server.task(assignMode="pull")
        await pulled(server, "w")
        for worker in ("w", "v"):
            await server.client.delete(f"/workers/{worker}")
        await register(server, "third")
        refused = await server.client.post(path, json={})
        assert refused.status_code == 429, f"task {task} waits for its worker"
        await register(server, "w")


async def test_a_weight_is_written_as_it_was_given(server: Any) -> None:
    for weight, text in ((50, '"weight":50,'), (0.5, '"weight":0.5,')):
        await register(server, weight=weight)
        assert text in (await server.client.get("/workers/w")).text


async def test_an_unknown_worker_is_told_so(server: Any) -> None:
    answer = await server.client.post("/workers/none/heartbeat", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "worker_not_found")


@asynccontextmanager
async def guarded(start: Any) -> AsyncIterator[Any]:
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET)))
    async with start(Config(auth=auth, workers=Workers(enabled=True))) as server:
        yield server


def bearer(**claims: Any) -> dict[str, str]:
    token = jwt.encode({"scope": ["worker:connect"], **claims}, SECRET, "HS256")
    return {"Authorization": f"Bearer {token}"}


async def test_a_worker_belongs_to_the_caller_that_registered_it(start: Any) -> None:
    async with guarded(start) as server:
        client = server.client

        async def post(path: str, body: Any, **claims: Any) -> int:
            answer = await client.post(path, json=body, headers=bearer(**claims))
            found: int = answer.status_code
            return found

        assert await post("/workers/register", {"workerId": "w"}, sub="alice") == 201
        assert await post("/workers/register", {"workerId": "w"}, sub="bob") == 403
        assert await post("/workers/w/heartbeat", {}, sub="bob") == 403
        assert await post("/workers/tasks/t/decline", {"workerId": "w"}, sub="bob") == 403
        theirs = await client.get("/workers/pull?workerId=w&timeout=1", headers=bearer(sub="bob"))
        assert theirs.status_code == 403
        assert await post("/workers/w/heartbeat", {}, sub="alice") == 200
        assert await post("/workers/register", {"workerId": "w"}, sub="alice") == 201
        own = bearer(sub="x", workerId="v")
        made = await client.post("/workers/register", json={}, headers=own)
        assert made.json()["id"] == "v"
        assert await post("/workers/register", {"workerId": "u"}, sub="x", workerId="v") == 403
        assert await post("/workers/w/heartbeat", {}, sub="x", workerId="v") == 403


async def test_a_worker_gets_only_tasks_that_its_token_reaches(start: Any) -> None:
    async with guarded(start) as server:
        client = server.client
        every = {"Authorization": bearer(scope=["*"])["Authorization"]}
        rules = {"rules": [{"match": {"scope": ["*"]}, "require": {"sub": ["alice"]}}]}
        for task in ("hidden", "seen"):
            body = {"id": task, "assignMode": "pull", "authConfig": rules}
            if task == "seen":
                del body["authConfig"]
            await client.post("/tasks", json=body, headers=every)
        limited = bearer(sub="w", taskIds=["hidden", "seen"])
        await client.post("/workers/register", json={"workerId": "w"}, headers=limited)
        answers = [
            await client.get(f"/workers/pull?workerId=w&timeout={wait_ms}", headers=limited)
            for wait_ms in (5000, 0)
        ]
        assert [answer.status_code for answer in answers] == [200, 204]
        assert answers[0].json()["id"] == "seen"
        alice = bearer(sub="alice")
        await client.post("/workers/register", json={"workerId": "a"}, headers=alice)
        answer = await client.get("/workers/pull?workerId=a&timeout=3000", headers=alice)
        assert answer.json()["id"] == "hidden"


async def test_who_has_registered_a_worker_signs_it_off_and_nobody_else_without_the_scope(
    start: Any,
) -> None:
    auth = Auth(mode="jwt", jwt=Jwt(algorithm="HS256", secret=Secret(SECRET)))

    def token(*scopes: str, **claims: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {jwt.encode({'scope': scopes, **claims}, SECRET)}"}

    async with start(Config(auth=auth, workers=Workers(enabled=True))) as server:
        own, other = token("worker:connect", sub="a"), token("worker:connect", sub="b")
        bound = token("worker:connect", sub="a", workerId="x")
        for worker in ("w", "v"):
            body = {"workerId": worker}
            await server.client.post("/workers/register", json=body, headers=own)
        for headers in (other, bound, token("worker:other", sub="a")):
            refused = await server.client.delete("/workers/w", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        # Whether there is such a worker is not told to who may not look.
        absent = await server.client.delete("/workers/absent", headers=own)
        assert absent.json() == refused.json()
        assert (await server.client.delete("/workers/w", headers=own)).status_code == 204
        assert (await server.client.delete("/workers/w", headers=own)).status_code == 403
        listed = await server.client.get("/workers", headers=token("worker:manage"))
        assert [worker["id"] for worker in listed.json()["workers"]] == ["v"]
