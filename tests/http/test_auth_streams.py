"""Streams end when the right to them does, and lose nothing; tickets, revocation, limits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
import trio

from taskcast_trio.config import Config, Secret
from taskcast_trio.config.schema import Auth, Cors, Jwt, Limits, TrustedService

from .conftest import Running, Start
from .reading import opened

SECRET = "a secret of these tests, long enough for HS256"
ADMIN = "the admin token of these tests"
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
EVENT = {"type": "note", "level": "info", "data": {"n": 1}}


def config(**fields: Any) -> Config:
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET)), stream_expiry_grace_seconds=0)
    return Config(**{"auth": auth, "admin_api": True, "admin_token": Secret(ADMIN), **fields})


def token(**claims: Any) -> str:
    return jwt.encode({"scope": ["*"], **claims}, SECRET, algorithm="HS256")


def bearer(**claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(**claims)}"}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def new_task(server: Running, **fields: Any) -> str:
    answer = await server.client.post("/tasks", json=fields, headers=bearer())
    assert answer.status_code == 201, answer.text
    task_id: str = answer.json()["id"]
    return task_id


async def publish(server: Running, task_id: str) -> None:
    answer = await server.client.post(f"/tasks/{task_id}/events", json=EVENT, headers=bearer())
    assert answer.status_code == 201, answer.text


async def ticket(server: Running, claims: dict[str, Any] | None = None, **fields: Any) -> str:
    answer = await server.client.post("/tickets", json=fields, headers=bearer(**(claims or {})))
    assert answer.status_code == 201, answer.text
    text: str = answer.json()["ticket"]
    return text


# Tickets


async def test_a_ticket_opens_a_stream_where_no_header_can_be_sent(start: Start) -> None:
    async with start(config()) as server:
        task_id = await new_task(server)
        await publish(server, task_id)
        text = await ticket(server, {"sub": "ann"}, taskIds=[task_id])
        for _ in range(2):  # an EventSource reconnects to the same URL
            async with opened(server, f"/tasks/{task_id}/events?ticket={text}") as events:
                assert (await events.event())[0] == "taskcast.event"
        async with opened(server, f"/events?existing=true&ticket={text}") as events:
            await publish(server, task_id)
            assert (await events.event())[1]["taskId"] == task_id


async def test_a_ticket_says_when_it_expires_in_seconds(start: Start) -> None:
    async with start(config()) as server:
        answer = await server.client.post("/tickets", json={"ttlSeconds": 300}, headers=bearer())
        assert 298 <= answer.json()["expiresAt"] - time.time() <= 301
        refused = await server.client.post("/tickets", json={"ttlSeconds": 301}, headers=bearer())
        assert code(refused) == (400, "bad_request")
        assert "$.ttlSeconds" in refused.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/tasks"),
        ("GET", "/tasks/{}"),
        ("GET", "/tasks/{}/events/history"),
        ("GET", "/tasks/{}/archive"),
        ("POST", "/tasks/{}/events"),
        ("DELETE", "/tasks/{}"),
        ("POST", "/tickets"),
        ("GET", "/metrics"),
    ],
)
async def test_a_ticket_is_good_for_streams_only(start: Start, method: str, path: str) -> None:
    async with start(config()) as server:
        task_id = await new_task(server)
        text = await ticket(server)
        url = f"{path.format(task_id)}?ticket={text}"
        answer = await server.client.request(
            method, url, json=EVENT, headers={"X-Forwarded-For": "192.0.2.1"}
        )
        assert code(answer) == (401, "unauthorized")


async def test_a_ticket_reaches_its_tasks_only_and_one_for_a_single_use_once(start: Start) -> None:
    async with start(config()) as server:
        mine, other = await new_task(server), await new_task(server)
        text = await ticket(server, taskIds=[mine], singleUse=True)
        first = await server.client.get(f"/tasks/{other}/events?ticket={text}")
        assert code(first) == (403, "forbidden")
        again = await server.client.get(f"/tasks/{mine}/events?ticket={text}")
        assert code(again) == (401, "unauthorized")
        limited = bearer(taskIds=[mine])
        wider = await server.client.post("/tickets", json={"taskIds": [other]}, headers=limited)
        assert code(wider) == (403, "forbidden")


async def test_a_ticket_of_a_revoked_token_opens_nothing(start: Start) -> None:
    async with start(config()) as server:
        task_id = await new_task(server)
        text = await ticket(server, {"jti": "t-1"})
        await revoke(server, jti="t-1")
        answer = await server.client.get(f"/tasks/{task_id}/events?ticket={text}")
        assert code(answer) == (401, "token_revoked")


@pytest.mark.parametrize("text", ["", "tkt_", "x" * 5000, "tkt_" + "A" * 43, "%00", "tkt_é"])
async def test_a_ticket_that_is_none_is_a_401(start: Start, text: str) -> None:
    async with start(config()) as server:
        answer = await server.client.get("/events", params={"ticket": text})
        assert code(answer) == (401, "unauthorized")
        twice = await server.client.get(f"/events?ticket={text}&ticket={text}")
        assert twice.status_code == 400


# Expiry


def clock_before(expiry_s: int) -> Callable[[], int]:
    """A clock that stands 20 ms before that."""
    return lambda: expiry_s * 1000 - 20


@pytest.mark.parametrize("path", ["/tasks/t/events", "/tasks/t/events?wrap=false", "/events"])
async def test_a_stream_ends_with_its_token_and_says_why(start: Start, path: str) -> None:
    expiry = int(time.time()) + 1000
    async with start(config(), clock=clock_before(expiry)) as server:
        await new_task(server, id="t")
        async with opened(server, path, headers=bearer(exp=expiry)) as events:
            assert await events.event() == ("taskcast.error", {"code": "token_expired"}, None)
            assert await events.rest() == ""


async def test_the_grace_lets_a_stream_outlive_its_token(start: Start) -> None:
    expiry = int(time.time()) + 1000
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET)), stream_expiry_grace_seconds=3600)
    now_ms = [expiry * 1000 - 20]
    async with start(config(auth=auth), clock=lambda: now_ms[0]) as server:
        await new_task(server, id="t")
        async with opened(server, "/tasks/t/events", headers=bearer(exp=expiry)) as events:
            now_ms[0] += 1000
            await publish(server, "t")
            assert (await events.event())[0] == "taskcast.event"
        late = await server.client.get("/tasks/t/events", headers=bearer(exp=expiry))
        assert code(late) == (401, "token_expired")


async def test_a_client_that_renews_its_token_resumes_without_loss(start: Start) -> None:
    """Events are published all the while; each comes once, over any number of short tokens."""
    expiry = int(time.time()) + 1000
    seen: list[int] = []
    async with start(config(), clock=clock_before(expiry)) as server:
        await new_task(server, id="t")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_many, server, 60)
            cursor: dict[str, str] = {}
            streams = 0
            while len(seen) < 60:
                streams += 1
                headers = bearer(exp=expiry) | cursor
                async with opened(server, "/tasks/t/events", headers=headers) as events:
                    name, data, event_id = await events.event()
                    while name == "taskcast.event":
                        seen.append(data["rawIndex"])
                        cursor = {"Last-Event-ID": event_id or ""}
                        name, data, event_id = await events.event()
        assert seen == list(range(60))
        assert streams > 1


async def publish_many(server: Running, count: int) -> None:
    for _ in range(count):
        await publish(server, "t")


async def test_a_publisher_that_goes_on_is_told_that_its_token_expired(start: Start) -> None:
    expiry = int(time.time()) + 1000

    async with start(config(), clock=clock_before(expiry)) as server:
        await new_task(server, id="t")
        line = json.dumps(EVENT).encode() + b"\n"
        head = (
            f"POST /tasks/t/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            f"Content-Type: application/x-ndjson\r\n"
            f"Authorization: {bearer(exp=expiry)['Authorization']}\r\n\r\n"
        )
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as socket:
            await socket.send_all(head.encode() + b"%x\r\n%b\r\n" % (len(line), line))
            answer = b""
            while not answer.endswith(b"}"):  # the body never ends, so it ends the connection
                answer += await socket.receive_some()
        assert answer.startswith(b"HTTP/1.1 401")
        assert b'"code":"token_expired","accepted":1' in answer
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as socket:
            fields = {**HANDSHAKE, **bearer(exp=expiry)}
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            await socket.send_all(
                f"GET /tasks/t/events/ws HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()
            )
            opened_and_closed = b""
            while b"token_expired" not in opened_and_closed:
                opened_and_closed += await socket.receive_some()
        assert opened_and_closed.startswith(b"HTTP/1.1 101")
        assert opened_and_closed.endswith((1008).to_bytes(2) + b"token_expired")


async def test_a_websocket_without_a_token_is_refused_before_it_opens(start: Start) -> None:
    async with start(config()) as server:
        await new_task(server, id="t")
        answer = await server.client.get("/tasks/t/events/ws", headers=HANDSHAKE)
        assert code(answer) == (401, "unauthorized")
        scopeless = HANDSHAKE | bearer(scope=["event:subscribe"])
        answer = await server.client.get("/tasks/t/events/ws", headers=scopeless)
        assert code(answer) == (403, "forbidden")


# Revocation


async def revoke(server: Running, **fields: Any) -> None:
    answer = await server.client.post("/admin/revoke", json={"adminToken": ADMIN, **fields})
    assert answer.status_code == 204, answer.text


@pytest.mark.parametrize("path", ["/tasks/t/events", "/events"])
async def test_revoking_a_token_ends_its_streams_and_no_others(start: Start, path: str) -> None:
    async with start(config()) as server:
        await new_task(server, id="t")
        async with (
            opened(server, path, headers=bearer(sub="eve", jti="1")) as eves,
            opened(server, "/tasks/t/events", headers=bearer(sub="ann", jti="2")) as anns,
        ):
            await revoke(server, sub="eve")
            assert await eves.event() == ("taskcast.error", {"code": "token_revoked"}, None)
            assert await eves.rest() == ""
            await publish(server, "t")
            assert (await anns.event())[0] == "taskcast.event"
        answer = await server.client.get("/tasks", headers=bearer(sub="eve"))
        assert code(answer) == (401, "token_revoked")


async def test_a_stream_that_opens_while_its_token_is_revoked_is_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token was good when it was looked at, and there was no stream yet to be ended."""
    async with start(config()) as server:
        task = await new_task(server)
        engine, looking, go_on = server.runtime.engine, trio.Event(), trio.Event()
        finished = engine.finished

        async def late(*args: Any) -> str | None:
            looking.set()
            await go_on.wait()
            return await finished(*args)

        monkeypatch.setattr(engine, "finished", late)
        answers: list[httpx.Response] = []

        async def follow() -> None:
            path = f"/tasks/{task}/events"
            with trio.move_on_after(2):
                answers.append(await server.client.get(path, headers=bearer(jti="t-1")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await looking.wait()
            await revoke(server, jti="t-1")
            go_on.set()
        assert [code(answer) for answer in answers] == [(401, "token_revoked")]


async def test_a_new_token_of_a_revoked_subject_passes(start: Start) -> None:
    async with start(config()) as server:
        await revoke(server, sub="ann", expiresAt=time.time() + 60)
        later = int(time.time()) + 2
        assert (await server.client.get("/tasks", headers=bearer(sub="ann"))).status_code == 401
        passed = await server.client.get("/tasks", headers=bearer(sub="ann", iat=later))
        assert passed.status_code == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (401, "unauthorized")),
        ({"adminToken": "wrong", "jti": "x"}, (401, "unauthorized")),
        ({"adminToken": ADMIN}, (400, "bad_request")),
        ({"adminToken": ADMIN, "jti": "x", "sub": "y"}, (400, "bad_request")),
        ({"adminToken": ADMIN, "jti": 5}, (400, "bad_request")),
        ({"adminToken": ADMIN, "jti": "x", "expiresAt": 1}, (400, "bad_request")),
    ],
)
async def test_a_bad_revocation_is_refused(
    start: Start, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    async with start(config()) as server:
        assert code(await server.client.post("/admin/revoke", json=body)) == expected
    async with start(config(admin_api=False)) as server:
        off = await server.client.post("/admin/revoke", json=body)
        assert code(off) == (404, "admin_api_off")


async def test_the_admin_token_makes_tokens_that_work(start: Start) -> None:
    async with start(config()) as server:
        body = {"adminToken": ADMIN, "scopes": ["event:subscribe"], "expiresIn": 60}
        answer = await server.client.post("/admin/token", json=body)
        headers = {"Authorization": f"Bearer {answer.json()['token']}"}
        assert (await server.client.get("/tasks", headers=headers)).status_code == 200
        assert (await server.client.post("/tasks", json={}, headers=headers)).status_code == 403


# Limits


async def test_over_the_rate_a_caller_waits_and_others_do_not(start: Start) -> None:
    async with start(config(limits=Limits(requests_per_second=5))) as server:
        statuses = [
            (await server.client.get("/tasks", headers=bearer(sub="eve"))).status_code
            for _ in range(40)
        ]
        assert statuses[:5] == [200] * 5
        assert 429 in statuses
        answer = await server.client.get("/tasks", headers=bearer(sub="eve"))
        while answer.status_code != 429:
            answer = await server.client.get("/tasks", headers=bearer(sub="eve"))
        assert code(answer) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await server.client.get("/tasks", headers=bearer(sub="ann"))).status_code == 200
        assert (await server.client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(streams=2), "this server"),
        (Limits(streams_per_caller=2), "one caller"),
        (Limits(task_subscribers=2), "subscribers"),
    ],
)
async def test_over_a_limit_of_streams_the_next_one_is_a_429_until_one_ends(
    start: Start, limits: Limits, what: str
) -> None:
    async with start(config(limits=limits)) as server:
        await new_task(server, id="t")
        path, headers = "/tasks/t/events", bearer(sub="ann")
        async with opened(server, path, headers=headers):
            async with opened(server, path, headers=headers):
                answer = await server.client.get(path, headers=headers)
                assert code(answer) == (429, "rate_limited")
                assert what in answer.json()["error"]
                assert "retry-after" in answer.headers
                head = await server.client.head(path, headers=headers)
                assert head.status_code in (200, 429)
            answer = await server.client.get(f"{path}/history", headers=headers)
            assert answer.status_code == 200
            with trio.fail_after(5):
                while (status := await status_of(server, path, headers=headers)) == 429:
                    pass
            assert status == 200


async def status_of(server: Running, path: str, headers: dict[str, str]) -> int:
    async with server.client.stream("GET", path, headers=headers) as answer:
        return answer.status_code


async def test_a_full_task_takes_no_more_events_but_still_ends(start: Start) -> None:
    async with start(config(limits=Limits(task_events=3))) as server:
        await new_task(server, id="t")
        answer = await server.client.patch(
            "/tasks/t/status", json={"status": "running"}, headers=bearer()
        )
        assert answer.status_code == 200
        await publish(server, "t")
        await publish(server, "t")
        full = await server.client.post("/tasks/t/events", json=EVENT, headers=bearer())
        assert code(full) == (413, "task_full")
        ended = await server.client.patch(
            "/tasks/t/status", json={"status": "completed"}, headers=bearer()
        )
        assert ended.status_code == 200


# Browsers


@pytest.mark.parametrize(
    "path", ["/tasks", "/tasks/t", "/tasks/t/events", "/events", "/tickets", "/tasks/import"]
)
async def test_a_preflight_needs_no_token_and_errors_can_be_read(start: Start, path: str) -> None:
    origin = {"Origin": "https://app.example"}
    async with start(config(cors=Cors(origins=("https://app.example",)))) as server:
        asked = {**origin, "Access-Control-Request-Method": "POST"}
        preflight = await server.client.options(path, headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        refused = await server.client.get(path, headers=origin)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.headers["access-control-allow-origin"] == "https://app.example"


async def test_without_cors_no_answer_speaks_of_it(start: Start) -> None:
    async with start(config()) as server:
        answer = await server.client.options("/tasks", headers={"Origin": "https://app.example"})
        assert answer.status_code == 401
        assert not [name for name in answer.headers if name.startswith("access-control")]


# Services


async def test_a_service_key_works_beside_tokens(start: Start) -> None:
    service = TrustedService(name="biller", key=Secret("the key of a service"), scope=("*",))
    async with start(config(trusted_services=(service,))) as server:
        key = {"X-Taskcast-Service-Key": "the key of a service"}
        assert (await server.client.get("/tasks", headers=key)).status_code == 200
        wrong = await server.client.get("/tasks", headers={**bearer(), **key, **WRONG_KEY})
        assert code(wrong) == (401, "unauthorized")


WRONG_KEY = {"X-Taskcast-Service-Key": "another"}
