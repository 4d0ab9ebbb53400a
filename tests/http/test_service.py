"""The server about itself: health, metrics, documentation, CORS, mounting, lifecycle."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Cors
from taskcast_trio.engine import open_runtime
from taskcast_trio.server import hot
from taskcast_trio.server.app import create_app
from taskcast_trio.server.connection import GuardStats
from taskcast_trio.server.route_table import routes
from taskcast_trio.storage.memory import MemoryBroadcast


async def test_every_route_of_the_app_is_in_the_route_table_and_back() -> None:
    async with open_runtime() as runtime:
        app = create_app(runtime)
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    served |= set(hot.ROUTES)
    declared = {(route.method, route.path) for route in routes(workers=False)}
    assert served - {("GET", "/docs/assets/{name}")} == declared - {("GET", "/docs/assets/{name}")}


async def test_readiness_fails_and_new_work_is_refused_while_draining(server: Any) -> None:
    assert (await server.client.get("/health/ready")).status_code == 200
    async with open_runtime() as runtime:
        client = create_app(runtime).test_client()
        runtime.drain.set()
        ready = await client.get("/health/ready")
        assert (ready.status_code, (await ready.get_json())["ok"]) == (503, False)
        refused = await client.post("/tasks", json={})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert (await client.get("/health")).status_code == 200


async def test_metrics_count_what_happened(server: Any) -> None:
    task = await server.task()
    await server.publish(task, *[{"type": "a", "level": "info"}] * 3)
    await server.move(task, "cancelled")
    lines = (await server.client.get("/metrics")).text.splitlines()
    for line in (
        "taskcast_tasks 1.0",
        "taskcast_tasks_created_total 1.0",
        "taskcast_events_total 4.0",
        'taskcast_transitions_total{status="cancelled"} 1.0',
        'taskcast_subscribers{kind="task"} 0.0',
        'taskcast_http_requests_total{method="POST",status="201"} 2.0',
    ):
        assert line in lines


async def test_connection_counters_are_exported_where_the_server_gives_them() -> None:
    stats = GuardStats()
    async with open_runtime() as runtime:
        client = create_app(runtime, stats=stats).test_client()
        stats.refused_total = 7
        text = await (await client.get("/metrics")).get_data(as_text=True)
    assert "taskcast_connections_refused_total 7.0" in text


async def test_the_documentation_needs_nothing_from_outside(server: Any) -> None:
    page = (await server.client.get("/docs")).text
    sources = re.findall(r'(?:src|href|spec-url)="([^"]*)"', page)
    assert sources
    for source in sources:
        assert not source.startswith(("http:", "https:", "//")), source
        if source.startswith("data:"):
            continue
        answer = await server.client.get(f"/{source.lstrip('./')}")
        assert answer.status_code == 200, source
    assert (await server.client.get("/docs/assets/..%2Fdocs.py")).status_code == 404


async def test_no_cors_header_without_configuration(server: Any) -> None:
    answer = await server.client.get("/health", headers={"Origin": "https://app.example"})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert (await server.client.options("/tasks")).status_code == 404


@pytest.mark.parametrize(
    ("origins", "credentials", "origin", "allowed"),
    [
        (("https://app.example",), False, "https://app.example", "https://app.example"),
        (("https://app.example",), True, "https://app.example", "https://app.example"),
        (("https://app.example",), False, "https://evil.example", None),
        (("*",), False, "https://any.example", "*"),
    ],
)
async def test_cors_allows_the_configured_origins_only(
    start: Any, origins: tuple[str, ...], credentials: bool, origin: str, allowed: str | None
) -> None:
    async with start(Config(cors=Cors(origins=origins, credentials=credentials))) as server:
        plain = await server.client.get("/health", headers={"Origin": origin})
        assert plain.headers.get("Access-Control-Allow-Origin") == allowed
        assert "Origin" in plain.headers["Vary"]
        preflight = await server.client.options(
            "/tasks/x/events",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert preflight.status_code == (204 if allowed else 404)
        assert preflight.headers.get("Access-Control-Allow-Origin") == allowed
        assert ("Access-Control-Allow-Credentials" in preflight.headers) == (
            credentials and allowed is not None
        )


async def test_it_works_mounted_under_a_prefix(start: Any) -> None:
    def mount(app: Any) -> Any:
        async def outer(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                scope = {**scope, "root_path": "/follow"}
            await app(scope, receive, send)

        return outer

    async with start(mount=mount) as server:
        created = await server.client.post("/follow/tasks", json={"id": "a/b"})
        assert created.status_code == 201
        assert (await server.client.get("/follow/tasks/a%2Fb")).json()["id"] == "a/b"
        assert (await server.client.get("/tasks/a%2Fb")).status_code in (200, 404)
        assert (await server.client.get("/follow/docs")).status_code == 200


async def test_head_answers_like_get_without_a_body(server: Any) -> None:
    task = await server.task()
    for path in ("", "/events", "/events/history", "/archive"):
        get_type = "text/event-stream" if path == "/events" else "application/json"
        answer = await server.client.head(f"/tasks/{task}{path}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Type"] == get_type
        if path:
            assert "Content-Length" not in answer.headers, "GET is chunked"
    assert server.runtime.engine.fanout.subscribers(task) == 0


async def test_a_crashed_background_task_ends_the_server(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = trio.Event()

    async def run(self: Any, sink: Any, *, task_status: Any) -> None:
        task_status.started()
        await crash.wait()
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryBroadcast, "run", run)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True, allow_unwrapped=True):
        async with start() as server:
            assert (await server.client.get("/health")).status_code == 200
            crash.set()
            await trio.sleep_forever()


async def test_listing_pages_in_order_of_creation(server: Any) -> None:
    ids = [await server.task(type="x") for _ in range(5)]
    seen: list[str] = []
    while True:
        parameters = {"limit": 2, **({"after": seen[-1]} if seen else {})}
        page = (await server.client.get("/tasks", params=parameters)).json()["tasks"]
        if not page:
            break
        seen += [task["id"] for task in page]
    assert seen == ids
    unknown = await server.client.get("/tasks?after=nope")
    assert unknown.status_code == 400
