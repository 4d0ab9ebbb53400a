"""What was allowed once is looked at again where time passes or the task becomes another one."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
import trio
from trio_websocket import WebSocketConnection
from trio_websocket import wrap_client_stream as wrap

from taskcast_trio.config import Config, Secret
from taskcast_trio.config.schema import Auth, Cors, Jwt, Limits
from taskcast_trio.core.access import Caller

from .conftest import Running, Start
from .reading import opened

SECRET = "a secret of these tests, long enough for HS256"
CONFIG = Config(
    auth=Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET))),
    admin_api=True,
    admin_token=Secret("the admin token"),
)
EVENT = {"type": "note", "level": "info", "data": {"n": 1}}
SEALED = {"match": {"scope": ["*"]}, "require": {"sub": ["boss"]}}


def bearer(sub: str, **claims: Any) -> dict[str, str]:
    text = jwt.encode({"scope": ["*"], "sub": sub, **claims}, SECRET, algorithm="HS256")
    return {"Authorization": f"Bearer {text}"}


async def seal(server: Running) -> None:
    """Import over the task another one, which only the boss may use."""
    event = {**EVENT, "id": "e", "taskId": "t", "index": 0, "timestamp": 1, "data": "sealed"}
    task = {"id": "t", "status": "running", "createdAt": 1, "updatedAt": 1}
    archive = {
        "schema": "taskcast.taskArchive",
        "version": 1,
        "exportedAt": 1,
        "task": {**task, "authConfig": {"rules": [SEALED]}},
        "events": [event],
    }
    answer = await server.client.post(
        "/tasks/import", json={"archive": archive, "overwrite": True}, headers=bearer("boss")
    )
    assert answer.status_code == 200, answer.text


async def new_task(server: Running) -> None:
    answer = await server.client.post("/tasks", json={"id": "t"}, headers=bearer("boss"))
    assert answer.status_code == 201


async def test_an_open_stream_ends_where_its_task_is_replaced_by_one_that_denies_it(
    start: Start,
) -> None:
    async with start(CONFIG) as server:
        await new_task(server)
        async with (
            opened(server, "/tasks/t/events", bearer("eve")) as eves,
            opened(server, "/tasks/t/events", bearer("boss")) as own,
        ):
            await seal(server)
            await server.client.post("/tasks/t/events", json=EVENT, headers=bearer("boss"))
            text = await eves.rest()
            assert "sealed" not in text
            assert text.endswith('event: taskcast.error\ndata: {"code":"forbidden"}\n\n')
            assert (await own.event())[0] == "taskcast.gap"
            assert (await own.event())[1]["data"] == "sealed"


@asynccontextmanager
async def publisher(server: Running, headers: dict[str, str]) -> AsyncIterator[WebSocketConnection]:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream, trio.open_nursery() as nursery:
        socket = await wrap(nursery, stream, "h", "/tasks/t/events/ws", extra_headers=fields)
        yield socket
        await socket.aclose()


async def test_an_open_publisher_is_denied_where_its_task_is_replaced(start: Start) -> None:
    async with start(CONFIG) as server:
        await new_task(server)
        async with publisher(server, bearer("eve")) as socket:
            await socket.send_message(json.dumps(EVENT))
            assert json.loads(await socket.get_message())["ok"] is True
            await seal(server)
            await socket.send_message(json.dumps(EVENT))
            assert json.loads(await socket.get_message())["code"] == "forbidden"
        history = await server.client.get("/tasks/t/events/history", headers=bearer("boss"))
        assert [event["data"] for event in history.json()] == ["sealed"]


async def test_an_upload_is_denied_where_its_task_is_replaced(start: Start) -> None:
    line = json.dumps(EVENT).encode() + b"\n"
    chunk = b"%x\r\n%b\r\n" % (len(line), line)
    head = (
        "POST /tasks/t/events HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
        "Content-Type: application/x-ndjson\r\n"
        f"Authorization: {bearer('eve')['Authorization']}\r\n\r\n"
    )
    async with start(CONFIG) as server:
        await new_task(server)
        async with (
            opened(server, "/tasks/t/events", bearer("boss")) as own,
            await trio.open_tcp_stream("127.0.0.1", server.port) as peer,
        ):
            await peer.send_all(head.encode() + chunk)
            assert (await own.event())[0] == "taskcast.event"
            await seal(server)
            await peer.send_all(chunk)
            answer = b""
            while not answer.endswith(b"}"):
                answer += await peer.receive_some()
        assert answer.startswith(b"HTTP/1.1 403")
        assert b'"code":"forbidden","accepted":1' in answer


@pytest.mark.parametrize("path", ["/tasks", "/tasks/t/events"])
async def test_a_token_that_ends_while_its_body_comes_changes_nothing(
    start: Start, path: str
) -> None:
    now_ms = [int(time.time() * 1000)]
    async with start(CONFIG, clock=lambda: now_ms[0]) as server:
        await new_task(server)
        for claims in ({"jti": "1"}, {"exp": now_ms[0] // 1000 + 60}):
            body = json.dumps(EVENT | {"id": "new"}).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n"
                f"Authorization: {bearer('eve', **claims)['Authorization']}\r\n\r\n"
            )
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as peer:
                await peer.send_all(head.encode() + body[:5])
                # Another request that is answered later: by then the first one waits for its body.
                revocation = {"adminToken": "the admin token", "jti": "1"}
                done = await server.client.post("/admin/revoke", json=revocation)
                assert done.status_code == 204
                now_ms[0] += 120_000
                await peer.send_all(body[5:])
                answer = await peer.receive_some()
            assert answer.startswith(b"HTTP/1.1 401"), claims
        listed = await server.client.get("/tasks", headers=bearer("boss"))
        assert [task["id"] for task in listed.json()["tasks"]] == ["t"]
        history = await server.client.get("/tasks/t/events/history", headers=bearer("boss"))
        assert history.json() == []


async def test_only_who_may_import_may_send_as_much_as_an_import(start: Start) -> None:
    config = Config(auth=CONFIG.auth, limits=Limits(body_bytes=1000, import_bytes=100_000))
    big = {"archive": "x" * 5000}
    async with start(config) as server:
        for path in ("/tasks", "/tasks/import"):
            refused = await server.client.post(
                path, json=big, headers=bearer("eve", scope=["task:create"])
            )
            assert refused.status_code == 413
            assert "limit of 1000 bytes" in refused.json()["error"]
        wrong = await server.client.post("/tasks/import", json=big, headers=bearer("boss"))
        assert wrong.status_code == 400


async def test_another_site_can_not_use_what_a_browser_sends_along(start: Start) -> None:
    """With custom authentication that may be a cookie (RFC 6454; CSRF)."""

    async def authenticate(_: Any) -> Caller:
        return Caller(sub="ann", scopes=frozenset({"*"}))

    config = Config(auth=Auth(mode="custom"), cors=Cors(origins=("https://good.example",)))
    async with start(config, authenticate=authenticate) as server:
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            ("https://good.example", 201),
            (server.url, 201),
        ):
            answer = await server.client.post("/tasks", json={}, headers={"Origin": origin})
            assert answer.status_code == status, origin
            assert (await server.client.get("/tasks", headers={"Origin": origin})).is_success
        assert (await server.client.post("/tasks", json={})).status_code == 201


@pytest.mark.parametrize(
    "found",
    [
        Caller(scopes="xtask:createx"),  # type: ignore[arg-type]
        Caller(scopes=frozenset({"*"}), task_ids="a-b"),  # type: ignore[arg-type]
        Caller(scopes=frozenset({"*"}), sub=42),  # type: ignore[arg-type]
        Caller(scopes=frozenset({"*"}), claims={"x": {1, 2}}),
        Caller(scopes=frozenset({"*"}), expires_at=float("nan")),
    ],
)
async def test_a_caller_that_makes_no_sense_is_no_caller(start: Start, found: Caller) -> None:
    async def authenticate(_: Any) -> Caller:
        return found

    async with start(Config(auth=Auth(mode="custom")), authenticate=authenticate) as server:
        for path in ("/tasks", "/tickets"):
            answer = await server.client.post(path, json={})
            assert (answer.status_code, answer.json()["code"]) == (503, "auth_unavailable")


async def test_callers_without_a_name_do_not_meet_by_their_keys(start: Start) -> None:
    async with start(CONFIG) as server:
        ids = []
        for tenant, expiry in (("a", 100), ("b", 100), ("a", 200)):
            claims = {"scope": ["*"], "tenant": tenant, "exp": int(time.time()) + expiry}
            text = jwt.encode(claims, SECRET, algorithm="HS256")
            headers = {"Authorization": f"Bearer {text}", "Idempotency-Key": "k"}
            answer = await server.client.post("/tasks", json={}, headers=headers)
            ids.append(answer.json()["id"])
        assert ids[0] != ids[1]
        assert ids[0] == ids[2]


async def test_a_ticket_needs_no_body_and_their_number_has_a_limit(start: Start) -> None:
    config = Config(auth=CONFIG.auth, limits=Limits(tickets_per_second=3))
    async with start(config) as server:
        answers = [await server.client.post("/tickets", headers=bearer("ann")) for _ in range(20)]
        assert answers[0].status_code == 201
        assert 429 in {answer.status_code for answer in answers}
        wrong = await server.client.get("/tasks?ticket=tkt_x")
        assert "streams only" in wrong.json()["error"]


async def test_guessing_counts_by_the_address_of_who_guesses(start: Start) -> None:
    config = Config(auth=CONFIG.auth, limits=Limits(requests_per_second=5))
    async with start(config) as server:
        wrong = {"Authorization": "Bearer a.b.c"}
        statuses = [
            (await server.client.get("/tasks", headers=wrong)).status_code for _ in range(30)
        ]
        assert statuses[:5] == [401] * 5
        assert 429 in statuses
        passed = await server.client.get("/tasks", headers=bearer("ann"))
        assert passed.status_code == 200
