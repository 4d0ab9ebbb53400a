"""Every route asks for its own scope, and no route is without one but those that are public."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterable
from functools import cache
from typing import Any

import httpx
import jwt
import pytest
import trio

from taskcast_trio.config import Auth, Config, Jwt, Secret, TrustedService, Workers
from taskcast_trio.engine import open_runtime
from taskcast_trio.server import hot
from taskcast_trio.server.app import create_app
from taskcast_trio.server.route_table import ROUTES

SECRET = "a secret of the tests, of 32 bytes or more"
SERVICE_KEY = "a key of a service"
CONFIG = Config(
    auth=Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET))),
    workers=Workers(enabled=True),
    trusted_services=(TrustedService(name="service", key=Secret(SERVICE_KEY)),),
)
PATIENCE_S = 60
PUBLIC = re.compile(r"/|/health(/.*)?|/openapi\.json|/docs(/.*)?|/admin/[a-z]+")
"""The paths that ask nobody for a token: a list of its own, so that the table can't extend it."""
NOT_ROUTES = {"HEAD", "OPTIONS"}  # HEAD is GET without a body; OPTIONS is an unknown path

EVENT = {"type": "a", "level": "info"}
HOOKS = [{"url": "http://127.0.0.1:1/"}]
ARCHIVE = {
    "schema": "taskcast.taskArchive",
    "version": 1,
    "exportedAt": 1,
    "task": {"id": "t", "status": "running", "createdAt": 1, "updatedAt": 1},
    "events": [],
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/tasks"): {"id": "t"},
    ("POST", "/tasks/{task_id}/webhooks/{number}/redeliver"): {},
    ("PATCH", "/tasks/{task_id}/status"): {"status": "running"},
    ("POST", "/tasks/{task_id}/resolve"): {"data": {}},
    ("POST", "/tasks/{task_id}/events"): EVENT,
    ("POST", "/tasks/import"): {"archive": ARCHIVE, "overwrite": True},
    ("POST", "/tasks/{task_id}/storage/release"): {
        "expectedLastEventIndex": 0,
        "inactiveSince": 0,
    },
    ("POST", "/tickets"): {},
    ("PATCH", "/workers/{worker_id}/status"): {"status": "idle"},
    ("POST", "/workers/register"): {"workerId": "new"},
    ("POST", "/workers/{worker_id}/heartbeat"): {},
    ("POST", "/workers/tasks/{task_id}/decline"): {"workerId": "w"},
}
"""What each route takes: a body of the wrong shape would be refused before the caller is judged."""
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
SCOPES: dict[tuple[str, str], str | None] = {
    (route.method, route.path): route.scope for route in ROUTES
}


def served(app: Any) -> set[tuple[str, str]]:
    """The routes of an app: those of its URL map, and those that stand in front of it."""
    found = set(hot.ROUTES + hot.WORKER_ROUTES)
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        found |= {(method, path) for method in rule.methods - NOT_ROUTES}
    return found


def undeclared(routes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The routes that would let anybody pass though nobody has said so."""
    return sorted(
        route
        for route in routes
        if SCOPES.get(route) is None and PUBLIC.fullmatch(route[1]) is None
    )


@cache
def _matrix() -> list[tuple[str, str]]:
    async def routes() -> set[tuple[str, str]]:
        async with open_runtime(CONFIG) as runtime:
            return served(create_app(runtime))

    found = trio.run(routes)
    return sorted(route for route in found if PUBLIC.fullmatch(route[1]) is None)


EVERY_SCOPE = {route.scope for route in ROUTES if route.scope is not None} | {"webhook:create"}
MATRIX = _matrix()
NAMING = [route for route in MATRIX if "{task_id}" in route[1] or route[1] == "/tasks/import"]
IDS = [f"{method} {path}" for method, path in MATRIX]


def own_scope(route: tuple[str, str]) -> str:
    scope = SCOPES[route]
    assert scope is not None
    return scope


@pytest.fixture
async def server(start: Any) -> AsyncIterator[Any]:
    async with start(CONFIG) as running:
        # A refusal may come before the body was sent, and ends its connection then.
        running.client.headers["Connection"] = "close"
        running.client.headers["Authorization"] = bearer("*")
        await running.task(id="t", webhooks=HOOKS)
        await running.task(id="s")
        del running.client.headers["Authorization"]
        yield running


def bearer(*scopes: str, **claims: Any) -> str:
    return f"Bearer {jwt.encode({'scope': scopes, **claims}, SECRET, 'HS256')}"


async def ask(server: Any, route: tuple[str, str], token: str | None) -> httpx.Response:
    """The answer of a route; of a stream, its head."""
    method, template = route
    path = template.replace("{task_id}", "t").replace("{worker_id}", "w").replace("{number}", "0")
    if template == "/workers/pull":
        path += "?workerId=none"
    headers = {} if token is None else {"Authorization": token}
    if template.endswith("/ws"):
        headers |= HANDSHAKE
    if template == "/metrics":
        headers["X-Forwarded-For"] = "203.0.113.7"
    with trio.fail_after(PATIENCE_S):
        if template.endswith("/ws"):
            return await _handshake(server.port, path, headers)
        async with server.client.stream(
            method, path, headers=headers, json=BODIES.get(route)
        ) as answer:
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                await answer.aread()
            found: httpx.Response = answer
            return found


async def _handshake(port: int, path: str, headers: dict[str, str]) -> httpx.Response:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with await trio.open_tcp_stream("127.0.0.1", port) as peer:
        await peer.send_all(f"GET {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode())
        text = b""
        while b"\r\n\r\n" not in text:
            part = await peer.receive_some()
            assert part, text
            text += part
    return httpx.Response(int(text.split(b" ", 2)[1]))


async def test_every_route_of_the_app_is_public_or_declares_its_scope() -> None:
    async with open_runtime(CONFIG) as runtime:
        app = create_app(runtime)
        assert undeclared(served(app)) == []
        assert {*MATRIX, ("GET", "/"), ("GET", "/health")} <= served(app)


@pytest.mark.parametrize("path", ["/tasks/<task_id>/new", "/new", "/healthy", "/docs-of/<name>"])
async def test_a_new_route_without_a_scope_is_found(path: str) -> None:
    async with open_runtime(CONFIG) as runtime:
        app = create_app(runtime)
        app.add_url_rule(path, "new", lambda: "", methods=["PUT"])
        template = path.replace("<", "{").replace(">", "}")
        assert undeclared(served(app)) == [("PUT", template)]


def test_what_is_public_is_declared_so() -> None:
    public = [route for route in SCOPES if PUBLIC.fullmatch(route[1])]
    assert [SCOPES[route] for route in public] == [None] * len(public)
    assert len(MATRIX) > 15


async def test_without_a_token_no_route_answers(server: Any) -> None:
    for route in MATRIX:
        assert (await ask(server, route, None)).status_code == 401, route


async def test_a_token_that_shows_nothing_good_is_refused_by_every_route(server: Any) -> None:
    expired = bearer("*", exp=time.time() - 1)
    forged = f"Bearer {jwt.encode({'scope': ['*']}, SECRET[::-1], 'HS256')}"
    for route in MATRIX:
        for token in (expired, forged, bearer("*").replace("Bearer", "bearer"), "Bearer x", ""):
            assert (await ask(server, route, token)).status_code == 401, (route, token)


async def test_every_scope_but_its_own_does_not_open_a_route(server: Any) -> None:
    for route in MATRIX:
        others = EVERY_SCOPE - {own_scope(route)}
        answer = await ask(server, route, bearer(*others))
        assert answer.status_code == 403, route
        if not route[1].endswith("/ws"):
            assert answer.json()["code"] == "forbidden"
            assert own_scope(route) in answer.json()["error"]


async def test_no_scope_at_all_opens_no_route(server: Any) -> None:
    for route in MATRIX:
        assert (await ask(server, route, bearer())).status_code == 403, route


@pytest.mark.parametrize("route", MATRIX, ids=IDS)
async def test_its_own_scope_alone_opens_a_route_and_so_does_the_star(
    start: Any, route: tuple[str, str]
) -> None:
    for scope in (own_scope(route), "*"):
        async with start(CONFIG) as server:
            headers = {"Authorization": bearer("*")}
            body = {"id": "t", "webhooks": HOOKS}
            made = await server.client.post("/tasks", json=body, headers=headers)
            assert made.status_code == 201
            if route == ("POST", "/tasks"):
                await server.client.delete("/tasks/t", headers=headers)
            if "{worker_id}" in route[1]:
                worker = {"workerId": "w"}
                await server.client.post("/workers/register", json=worker, headers=headers)
            answer = await ask(server, route, bearer(scope, taskIds=["t"]))
            expected = {
                ("POST", "/tasks/{task_id}/resolve"): 400,  # it is not blocked
                ("GET", "/tasks/{task_id}/request"): 404,
                ("POST", "/tasks/{task_id}/storage/release"): 503,
                ("GET", "/tasks/{task_id}/events/ws"): 101,
                ("GET", "/workers/ws"): 101,
                ("POST", "/tasks/cleanup"): 403,  # it is for all tasks
            }
            if route in expected:
                assert answer.status_code == expected[route]
            else:
                assert answer.is_success, answer.status_code


@pytest.mark.parametrize("task_ids", [["s"], [], ["*"], ["T", "t "]])
async def test_a_route_that_names_a_task_wants_it_among_the_tasks_of_the_token(
    server: Any, task_ids: list[str]
) -> None:
    for route in [*NAMING, ("POST", "/tasks")]:
        answer = await ask(server, route, bearer("*", taskIds=task_ids))
        assert answer.status_code == 403, route


async def test_a_task_out_of_reach_and_none_at_all_are_refused_alike(server: Any) -> None:
    """403 comes before existence is looked at."""
    limited = {"Authorization": bearer("*", taskIds=["s"])}
    for method, path in NAMING:
        if path in ("/tasks/import", "/tasks/{task_id}/events/ws"):
            continue
        answers = [
            await server.client.request(
                method,
                path.replace("{task_id}", task),
                json=BODIES.get((method, path)),
                headers=limited,
            )
            for task in ("t", "u")
        ]
        assert [answer.status_code for answer in answers] == [403, 403]
        assert answers[0].text.replace("Task t ", "Task u ") == answers[1].text


async def test_a_service_without_scopes_opens_no_route_and_its_key_beats_a_token(
    server: Any,
) -> None:
    for key, status in ((SERVICE_KEY, 403), ("another", 401), ("", 401)):
        headers = {"X-Taskcast-Service-Key": key, "Authorization": bearer("*")}
        for method, path in MATRIX:
            if path.endswith("/ws") or path == "/metrics":
                continue
            answer = await server.client.request(
                method,
                path.replace("{task_id}", "t"),
                json=BODIES.get((method, path)),
                headers=headers,
            )
            assert answer.status_code == status, (method, path, key)


async def test_head_asks_for_what_get_asks_for(server: Any) -> None:
    for method, path in MATRIX:
        if method != "GET" or path.endswith("/ws"):
            continue
        for token, status in (
            (None, 401),
            (bearer(*(EVERY_SCOPE - {own_scope((method, path))})), 403),
        ):
            assert (await ask(server, ("HEAD", path), token)).status_code == status, path


async def test_metrics_are_for_this_machine_or_for_who_may_read_them(server: Any) -> None:
    async def status(**headers: str) -> int:
        answer = await server.client.get("/metrics", headers=headers)
        found: int = answer.status_code
        return found

    assert await status() == 200
    assert await status(Authorization="Bearer x") == 200
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert await status(**{name: "for=127.0.0.1"}) == 401
        assert await status(**{name: "::1", "Authorization": bearer("task:manage")}) == 403
        assert await status(**{name: "::1", "Authorization": bearer("metrics:read")}) == 200


@pytest.mark.parametrize("path", ["/tasks/t/none", "/workers/", "/workers/x/y", "/events/x"])
async def test_an_unknown_path_below_a_protected_one_asks_for_a_token_first(
    server: Any, path: str
) -> None:
    assert (await server.client.get(path)).status_code == 401
    headers = {"Authorization": bearer()}
    assert (await server.client.get(path, headers=headers)).status_code == 404


async def test_public_routes_ask_nobody(server: Any) -> None:
    for path in ("/", "/health", "/health/ready", "/health/detail", "/openapi.json", "/docs"):
        answer = await server.client.get(path, headers={"Authorization": "Bearer x"})
        assert answer.status_code == 200, path
    assert (await server.client.post("/admin/token", json={})).status_code == 404


async def test_a_create_with_webhooks_needs_a_scope_of_its_own(server: Any) -> None:
    body = {"webhooks": [{"url": "https://hooks.example/"}]}
    for scopes, status in ((["task:create"], 403), (["task:create", "webhook:create"], 201)):
        headers = {"Authorization": bearer(*scopes)}
        answer = await server.client.post("/tasks", json=body, headers=headers)
        assert answer.status_code == status
