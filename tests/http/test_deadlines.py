"""Over HTTP: the end of a stream at a deadline, and a person who is asked and answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Limits
from taskcast_trio.core.deadline import DEADLINE
from taskcast_trio.core.model import BlockedRequest, Transition

from .conftest import Running, Start
from .reading import opened
from .test_auth_over_time import CONFIG, bearer, new_task, seal

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
REQUEST = {"type": "approval", "data": {"q": "Send it?"}, "schema": SCHEMA}


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


async def blocked(server: Running, **request: Any) -> str:
    task = await server.task()
    await server.move(task, "running")
    answer = await server.move(task, "blocked", blockedRequest={**REQUEST, **request})
    assert answer.status_code == 200, answer.text
    return task


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def waits(server: Running, count: int = 1) -> None:
    """Return when so many requests wait for a task."""
    watching = server.runtime.engine.fanout._uncounted
    await until(lambda: watching.total() == count)


async def test_a_stream_ends_with_done_at_the_deadline(start: Start) -> None:
    clock = Clock()
    async with start(clock=clock) as server:
        task = await server.task(ttl=30)
        async with opened(server, f"/tasks/{task}/events") as events:
            clock.now_ms += 30_000
            server.runtime.scheduler.notify({DEADLINE: 0})  # the clock was set
            name, event, _ = await events.event()
            assert (name, event["type"]) == ("taskcast.event", "taskcast:status")
            assert event["data"]["status"] == "timeout"
            assert event["data"]["error"]["code"] == "ttl_expired"
            assert await events.event() == ("taskcast.done", {"reason": "timeout"}, None)
            assert await events.rest() == ""
        found = (await server.client.get(f"/tasks/{task}")).json()
        assert (found["status"], found["error"]["code"]) == ("timeout", "ttl_expired")
        assert (await server.move(task, "completed")).status_code == 409


async def test_the_schema_comes_with_the_request_and_is_held_against_answers(
    server: Running,
) -> None:
    task = await blocked(server)
    assert (await server.client.get(f"/tasks/{task}/request")).json() == REQUEST
    path = f"/tasks/{task}/resolve"
    refused = await server.client.post(path, json={"data": {"ok": "yes"}})
    assert refused.status_code == 400
    assert refused.json() == {
        "error": 'Expected "type": "boolean" - at `$.data.ok`',
        "code": "bad_request",
    }
    taken = await server.client.post(path, json={"data": {"ok": True}})
    assert taken.status_code == 200
    assert (taken.json()["status"], taken.json()["result"]) == ("running", {"ok": True})
    late = await server.client.post(path, json={"data": {"ok": True}})
    assert (late.status_code, late.json()["code"]) == (400, "not_blocked")
    history = (await server.client.get(f"/tasks/{task}/events/history")).json()
    assert [event["data"].get("request") for event in history if "blocked" in event["type"]] == [
        REQUEST
    ]


async def test_a_schema_that_is_none_is_a_400_that_names_the_place(server: Running) -> None:
    task = await server.task()
    await server.move(task, "running")
    request = {"type": "approval", "schema": {"properties": {"ok": {"type": "bool"}}}}
    refused = await server.move(task, "blocked", blockedRequest=request)
    assert refused.status_code == 400
    assert "`$.blockedRequest.schema.properties.ok.type`" in refused.json()["error"]
    assert (await server.client.get(f"/tasks/{task}")).json()["status"] == "running"


@pytest.mark.parametrize("wait", ["x", "-1", "61", "1e999", "nan"])
async def test_a_wait_that_is_none_is_a_400_that_names_it(server: Running, wait: str) -> None:
    refused = await server.client.get(f"/tasks/unknown/request?wait={wait}")
    assert refused.status_code == 400
    assert "wait" in refused.json()["error"]


async def test_without_a_wait_nothing_is_waited_for(server: Running) -> None:
    task = await server.task()
    for query in ("", "?wait=", "?wait=0"):
        answer = await server.client.get(f"/tasks/{task}/request{query}")
        assert (answer.status_code, answer.json()["code"]) == (404, "request_not_found")
    assert (await server.client.head(f"/tasks/{task}/request?wait=60")).status_code == 404
    unknown = await server.client.get("/tasks/unknown/request?wait=60")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "task_not_found")


async def test_a_wait_ends_empty_handed_after_its_time(server: Running) -> None:
    task = await server.task()
    answer = await server.client.get(f"/tasks/{task}/request?wait=0.01")
    assert (answer.status_code, answer.json()["code"]) == (404, "request_not_found")


async def ask(server: Running, task: str) -> None:
    await server.move(task, "blocked", blockedRequest=REQUEST)


async def complete(server: Running, task: str) -> None:
    await server.move(task, "completed")


async def delete(server: Running, task: str) -> None:
    await server.client.delete(f"/tasks/{task}")


async def drain(server: Running, task: str) -> None:
    server.runtime.drain.set()


@pytest.mark.parametrize(
    ("act", "status", "code"),
    [
        (ask, 200, None),
        (complete, 404, "request_not_found"),
        (delete, 404, "task_not_found"),
        (drain, 503, "draining"),
    ],
)
async def test_what_ends_a_wait(
    server: Running, act: Callable[[Running, str], Awaitable[None]], status: int, code: str | None
) -> None:
    task = await server.task()
    await server.move(task, "running")
    answers = []

    async def wait() -> None:
        answers.append(await server.client.get(f"/tasks/{task}/request?wait=60"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await waits(server)
        found = await server.client.get(f"/tasks/{task}")
        assert found.json()["subscriberCount"] == 0
        await act(server, task)
    (answer,) = answers
    assert (answer.status_code, answer.json().get("code")) == (status, code)
    if status == 200:
        assert answer.json() == REQUEST
    if status == 503:
        assert answer.headers["retry-after"]
    await waits(server, 0)


async def test_a_wait_ends_with_its_client(server: Running) -> None:
    task = await server.task()
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.client.get, f"/tasks/{task}/request?wait=60")
            await waits(server)
            nursery.cancel_scope.cancel()
        await waits(server, 0)


async def test_a_wait_takes_one_of_the_callers_streams_and_gives_it_back(start: Start) -> None:
    async with start(Config(limits=Limits(streams_per_caller=1))) as server:
        task = await server.task()
        path = f"/tasks/{task}/request"
        for _ in range(3):
            assert (await server.client.get(f"{path}?wait=0.01")).status_code == 404
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.client.get, f"{path}?wait=60")
            await waits(server)
            second = await server.client.get(f"{path}?wait=60")
            assert (second.status_code, second.json()["code"]) == (429, "rate_limited")
            assert (await server.client.get(path)).status_code == 404, "a look takes none"
            nursery.cancel_scope.cancel()
        await waits(server, 0)
        async with opened(server, f"/tasks/{task}/events"):
            assert (await server.client.get(f"{path}?wait=0.01")).status_code == 429
        # What is there already needs no wait.
        task = await blocked(server)
        async with opened(server, f"/tasks/{task}/events"):
            assert (await server.client.get(f"/tasks/{task}/request?wait=60")).status_code == 200


async def test_a_wait_wants_what_an_answer_wants(start: Start) -> None:
    async with start(CONFIG) as server:
        only_bob = {"rules": [{"match": {"scope": ["task:resolve"]}, "require": {"sub": ["bob"]}}]}
        body = {"id": "t", "authConfig": only_bob}
        await server.client.post("/tasks", json=body, headers=bearer("boss"))
        path = "/tasks/t/request?wait=0.01"
        for who, scope, status in (
            ("bob", "event:subscribe", 403),
            ("ann", "task:resolve", 403),
            ("bob", "task:resolve", 404),
        ):
            headers = bearer(who, scope=[scope])
            assert (await server.client.get(path, headers=headers)).status_code == status


async def revoke_it(server: Running) -> None:
    body = {"adminToken": "the admin token", "jti": "eves"}
    answer = await server.client.post("/admin/revoke", json=body)
    assert answer.status_code == 204, answer.text


@pytest.mark.parametrize(
    ("end", "status", "code"), [(seal, 403, "forbidden"), (revoke_it, 401, "token_revoked")]
)
async def test_a_wait_ends_with_the_right_to_it(
    start: Start, end: Callable[[Running], Awaitable[None]], status: int, code: str
) -> None:
    async with start(CONFIG) as server:
        await new_task(server)
        answers = []

        async def wait() -> None:
            headers = bearer("eve", jti="eves")
            answers.append(await server.client.get("/tasks/t/request?wait=60", headers=headers))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await waits(server)
            await end(server)
        assert (answers[0].status_code, answers[0].json()["code"]) == (status, code)


async def test_a_wait_ends_with_its_token(start: Start) -> None:
    now_s = int(time.time())
    auth = msgspec.structs.replace(CONFIG.auth, stream_expiry_grace_seconds=0)
    clock = Clock()
    clock.now_ms = now_s * 1000 + 990
    async with start(msgspec.structs.replace(CONFIG, auth=auth), clock=clock) as server:
        await new_task(server)
        headers = bearer("eve", exp=now_s + 1)
        answer = await server.client.get("/tasks/t/request?wait=60", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")


async def test_a_request_that_comes_when_the_token_has_ended_is_not_shown(start: Start) -> None:
    """The wait itself has the grace of a stream; an answer has none."""
    clock = Clock()
    clock.now_ms = int(time.time()) * 1000
    async with start(CONFIG, clock=clock) as server:
        await new_task(server)
        await server.runtime.engine.transition("t", Transition(status="running"))
        answers = []

        async def wait() -> None:
            headers = bearer("eve", exp=clock.now_ms // 1000 + 30)
            answers.append(await server.client.get("/tasks/t/request?wait=60", headers=headers))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await waits(server)
            clock.now_ms += 31_000
            request = BlockedRequest(type="secret")
            change = Transition(status="blocked", blocked_request=request)
            await server.runtime.engine.transition("t", change)
        assert (answers[0].status_code, answers[0].json()["code"]) == (401, "token_expired")
