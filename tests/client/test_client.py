"""The client's calls: what goes over the wire, and which error each answer becomes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import trio
from msgspec import UNSET, Raw

from taskcast_trio.client import AsyncTaskcastClient, ResponseError, ServerUnavailable, draft
from taskcast_trio.core import errors
from taskcast_trio.core.model import CreateTask, Draft, TaskError

from .tiny_server import Peer, Request, answering, connected, serve

TASK = {"id": "t", "status": "pending", "createdAt": 1, "updatedAt": 2}
EVENT = {"id": "e", "taskId": "t", "index": 0, "timestamp": 3, "type": "note", "level": "info"}


async def test_create_sends_what_was_given_and_nothing_else() -> None:
    async with connected(answering(201, TASK)) as (server, client):
        task = await client.create(
            type="llm", params={"a": None}, ttl=5, assign_mode="pull", idempotency_key="k"
        )
        assert (task.id, task.status, task.created_at, task.type) == ("t", "pending", 1, UNSET)
        await client.create(CreateTask(auth_config=Raw(b'{"b":1.0}')))
        await client.create()
        with pytest.raises(TypeError):
            await client.create(CreateTask(), id="t")
    first, second, third = server.requests
    assert (first.method, first.target) == ("POST", "/tasks")
    assert json.loads(first.body) == {
        "type": "llm",
        "params": {"a": None},
        "ttl": 5,
        "assignMode": "pull",
    }
    assert first.headers["content-type"] == "application/json"
    assert first.headers["idempotency-key"] == "k"
    assert second.body == b'{"authConfig":{"b":1.0}}'
    assert third.body == b"{}"


async def test_get_tells_who_follows() -> None:
    view = {**TASK, "result": {"n": 1}, "hot": True, "subscriberCount": 2}
    async with connected(answering(200, view)) as (server, client):
        task = await client.get("t")
    assert (task.hot, task.subscriber_count) == (True, 2)
    assert isinstance(task.result, Raw)
    assert json.loads(bytes(task.result)) == {"n": 1}
    assert server.requests[0].target == "/tasks/t"


async def test_transition() -> None:
    async with connected(answering(200, TASK)) as (server, client):
        await client.transition("t", "failed", result={"x": []}, error=TaskError(message="no"))
        await client.transition("t", "blocked", reason="r", resume_after_ms=9, idempotency_key="k")
    first, second = server.requests
    assert (first.method, first.target) == ("PATCH", "/tasks/t/status")
    assert json.loads(first.body) == {
        "status": "failed",
        "result": {"x": []},
        "error": {"message": "no"},
    }
    assert json.loads(second.body) == {"status": "blocked", "reason": "r", "resumeAfterMs": 9}
    assert second.headers["idempotency-key"] == "k"


async def test_publish_tells_missing_data_from_null() -> None:
    async with connected(answering(201, EVENT)) as (server, client):
        event = await client.publish("t", "note")
        assert (event.id, event.index, event.data) == ("e", 0, UNSET)
        await client.publish("t", "note", None, level="warn")
        await client.publish(
            "t",
            "llm",
            {"x": "a"},
            series="s",
            mode="accumulate",
            acc_field="x",
            idempotency_key="k",
        )
    bodies = [json.loads(request.body) for request in server.requests]
    assert bodies[0] == {"type": "note", "level": "info"}
    assert bodies[1] == {"type": "note", "level": "warn", "data": None}
    assert bodies[2] == {
        "type": "llm",
        "level": "info",
        "data": {"x": "a"},
        "seriesId": "s",
        "seriesMode": "accumulate",
        "seriesAccField": "x",
    }
    assert [request.headers.get("idempotency-key") for request in server.requests][2] == "k"
    assert {request.target for request in server.requests} == {"/tasks/t/events"}


def test_half_a_series_is_refused_where_it_is_written() -> None:
    for half in ({"series": "answer"}, {"mode": "accumulate"}):
        with pytest.raises(ValueError, match="series and mode"):
            draft("llm.delta", {"delta": "x"}, **half)  # type: ignore[arg-type]


async def test_publish_many_is_one_request() -> None:
    answer = [EVENT, {**EVENT, "id": "f", "index": 1}]
    async with connected(answering(201, answer)) as (server, client):
        drafts = (draft("a", 1), Draft(type="b", level="debug", data=Raw(b"1.0")))
        events = await client.publish_many("t", iter(drafts))
    assert [event.id for event in events] == ["e", "f"]
    (request,) = server.requests
    assert request.body == (
        b'[{"type":"a","level":"info","data":1},{"type":"b","level":"debug","data":1.0}]'
    )


async def test_values_come_back_byte_for_byte() -> None:
    """Also those that msgspec would refuse: an emoji cut in half is legal JSON."""
    text = b'{"a":1.0, "a":"\\ud83d"}'
    body = json.dumps(EVENT).encode()[:-1] + b',"data":' + text + b"}"
    async with connected(answering(201, body)) as (server, client):
        event = await client.publish("t", "note", Raw(text))
    assert event.data == Raw(text)
    assert text in server.requests[0].body


@pytest.mark.parametrize(
    ("task_id", "segment"),
    [
        ("a/b", "a%2Fb"),
        ("../x", "..%2Fx"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("a b?c#d%2F", "a%20b%3Fc%23d%252F"),
        ("é\U0001f600", "%C3%A9%F0%9F%98%80"),
    ],
)
async def test_an_id_is_one_segment_of_the_path(task_id: str, segment: str) -> None:
    view = {**TASK, "hot": False, "subscriberCount": 0}
    async with (
        serve(answering(200, view)) as server,
        AsyncTaskcastClient(server.url + "/prefix/") as client,
    ):
        await client.get(task_id)
        await client.transition(task_id, "running")
    assert [request.target for request in server.requests] == [
        f"/prefix/tasks/{segment}",
        f"/prefix/tasks/{segment}/status",
    ]


async def test_the_token_goes_with_every_request() -> None:
    script = answering(200, {**TASK, "hot": False, "subscriberCount": 0}), answering(204)
    async with serve(*script) as server, AsyncTaskcastClient(server.url, token="s3cret") as client:
        await client.get("t")
        async with client.subscribe("t"):
            pass
    assert [r.headers["authorization"] for r in server.requests] == ["Bearer s3cret"] * 2


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": "e", "code": "bad_request"}, errors.BadRequest),
        (400, {"error": "e", "code": "task_ended"}, errors.TaskEnded),
        (401, {"error": "e", "code": "unauthorized"}, errors.Unauthorized),
        (403, {"error": "e", "code": "forbidden"}, errors.Forbidden),
        (404, {"error": "e", "code": "task_not_found"}, errors.TaskNotFound),
        (409, {"error": "e", "code": "invalid_transition"}, errors.InvalidTransition),
        (413, {"error": "e", "code": "payload_too_large"}, errors.PayloadTooLarge),
        (422, {"error": "e", "code": "idempotency_key_reused"}, errors.KeyReused),
        (429, {"error": "e", "code": "rate_limited"}, errors.RateLimited),
        (503, {"error": "e", "code": "draining"}, errors.Draining),
        (503, {"error": "e", "code": "store_unavailable"}, errors.StoreUnavailable),
        # Servers of the same contract that send no code.
        (400, {"error": "e"}, errors.BadRequest),
        (404, {"error": "e"}, errors.TaskNotFound),
        (404, b"404 Not Found", errors.NotFound),
        (409, {"error": "e"}, errors.Conflict),
        (400, {"success": False, "error": {"name": "ZodError"}}, errors.BadRequest),
    ],
)
async def test_each_refusal_has_its_error(status: int, body: Any, expected: type) -> None:
    async with connected(answering(status, body)) as (_, client):
        with pytest.raises(errors.TaskcastError) as publishing:
            await client.publish("t", "note")
        with pytest.raises(errors.TaskcastError) as following:
            async with client.subscribe("t"):
                pass
    for caught in (publishing, following):
        assert type(caught.value) is expected
        if isinstance(body, dict) and body["error"] == "e":
            assert str(caught.value) == "e"
        if isinstance(caught.value, errors.TaskNotFound):
            assert caught.value.task_id == "t"


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(418, "teapot", False), (400, "of_another_version", False), (502, "", True), (302, "", False)],
)
async def test_other_refusals_keep_status_code_and_body(
    status: int, code: str, retryable: bool
) -> None:
    body = json.dumps({"error": "e", "code": code} if code else "e").encode()
    async with connected(answering(status, body)) as (_, client):
        with pytest.raises(ResponseError) as caught:
            await client.get("t")
    error = caught.value
    assert (error.status, error.code, error.body) == (status, code, body)
    assert error.retryable is retryable


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"id":"t"}', b"<html>"])
async def test_an_answer_that_is_no_task_is_an_error_of_ours(body: bytes) -> None:
    async with connected(answering(200, body)) as (_, client):
        with pytest.raises(ResponseError, match="can't be read") as caught:
            await client.get("t")
    assert (caught.value.code, caught.value.body) == ("bad_answer", body)


async def test_no_server_is_unavailable() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    async with AsyncTaskcastClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ServerUnavailable, match=f"127.0.0.1:{port}"):
            await client.get("t")
        with pytest.raises(ServerUnavailable):
            async with client.subscribe("t"):
                pass


async def test_a_connection_that_breaks_before_the_answer_is_unavailable() -> None:
    async def hang_up(request: Request, peer: Peer) -> None:
        peer.reset()

    async with connected(hang_up) as (_, client):
        with pytest.raises(ServerUnavailable):
            await client.create()


async def test_a_given_http_client_is_closed_by_its_owner_only() -> None:
    async with serve(answering(201, TASK)) as server, httpx.AsyncClient() as http:
        async with AsyncTaskcastClient(server.url, http=http) as client:
            await client.create()
        assert not http.is_closed
        await client.create()
