"""Under a prefix of another application."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio_websocket
from quart_trio import QuartTrio

from taskcast_trio import Mount
from taskcast_trio.config import Auth, Config, Jwt, Secret, Workers
from taskcast_trio.config.schema import Redis
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.server.serve import ServeOptions, StartupFailedError, serve
from taskcast_trio.storage.memory import MemoryBroadcast

from ..storage.redis.server import free_port, new_prefix, redis_url

PATIENCE_S = 60
PREFIX = "/follow"


def site(config: Config | None = None, prefix: str = PREFIX) -> tuple[QuartTrio, Mount]:
    """A site of somebody else's, that uses what is mounted in it."""
    app = QuartTrio("site")
    mount = Mount(app.asgi_app, prefix, config)
    app.asgi_app = mount  # type: ignore[method-assign, assignment]

    @app.get("/")
    async def home() -> str:
        return "the site"

    @app.get("/followers")
    async def followers() -> str:
        return "not what is mounted"

    @app.post("/ask")
    async def ask() -> str:
        task = await mount.engine.create()
        return task.id

    return app, mount


@asynccontextmanager
async def serving(
    app: Any, *, http: Any = "httptools", drain: trio.Event | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    drain = trio.Event() if drain is None else drain
    options = ServeOptions(port=0, http=http)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(partial(serve, app, options, drain=drain))
            async with httpx.AsyncClient(base_url=urls[0], timeout=PATIENCE_S) as client:
                yield client
            drain.set()


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_a_task_from_its_creation_to_its_end(http: Any) -> None:
    app, mount = site()
    async with serving(app, http=http) as client:
        assert (await client.get("/")).text == "the site"
        assert (await client.get("/followers")).text == "not what is mounted"
        assert (await client.get("/tasks")).status_code == 404
        task = (await client.post("/ask")).text
        place = f"{PREFIX}/tasks/{task}"
        assert (await client.get(place)).json()["id"] == task
        await client.patch(f"{place}/status", json={"status": "running"})
        event = {"type": "n", "level": "info", "data": 1}
        assert (await client.post(f"{place}/events", json=event)).status_code == 201
        await client.patch(f"{place}/status", json={"status": "completed"})
        stream = (await client.get(f"{place}/events")).text
        assert "event: taskcast.done" in stream
        history = (await client.get(f"{place}/events/history")).json()
        assert [each["type"] for each in history] == ["taskcast:status", "n", "taskcast:status"]
    with pytest.raises(RuntimeError, match="not up"):
        _ = mount.engine


async def test_ids_with_slashes_and_the_bare_prefix(http: Any) -> None:
    app, _ = site(prefix="/a/b.c")
    async with serving(app, http=http) as client:
        await client.post("/a/b.c/tasks", json={"id": "x/y"})
        assert (await client.get("/a/b.c/tasks/x%2Fy")).json()["id"] == "x/y"
        assert (await client.get("/a/b.c")).json() == (await client.get("/a/b.c/")).json()
        assert (await client.get("/a/b.c//tasks")).status_code == 400


async def test_links_and_the_pages_hold_under_the_prefix() -> None:
    app, _ = site()
    async with serving(app) as client:
        links = (await client.get(f"{PREFIX}/")).json()["links"]
        assert links["docs"] == f"{PREFIX}/docs"
        for link in links.values():
            assert (await client.get(link)).status_code == 200, link
        page = (await client.get(links["docs"])).text
        assert 'src="docs/assets/docs.js"' in page
        assert (await client.get(f"{PREFIX}/docs/assets/docs.js")).status_code == 200
        document = (await client.get(links["openapi"])).json()
        assert document["servers"] == [{"url": "."}]


async def test_sockets_under_the_prefix(http: Any) -> None:
    app, _ = site(Config(workers=Workers(enabled=True)))
    async with serving(app, http=http) as client:
        await client.post(f"{PREFIX}/tasks", json={"id": "t"})
        url = str(client.base_url).replace("http:", "ws:").rstrip("/") + PREFIX
        async with trio_websocket.open_websocket_url(f"{url}/tasks/t/events/ws") as socket:
            await socket.send_message('{"type": "n", "level": "info"}')
            assert json.loads(await socket.get_message())["ok"]
        async with trio_websocket.open_websocket_url(f"{url}/workers/ws") as socket:
            await socket.send_message('{"type": "nonsense"}')
            assert json.loads(await socket.get_message())["type"] == "error"


async def test_what_is_mounted_asks_for_tokens_and_the_site_does_not(http: Any) -> None:
    jwt = Jwt(secret=Secret("a secret that is 32 bytes long, or more"))
    app, _ = site(Config(auth=Auth(mode="jwt", jwt=jwt)))
    async with serving(app, http=http) as client:
        assert (await client.get("/")).status_code == 200
        for path in ("/tasks", "/tasks/t/events", "/events", "/tasks/t"):
            assert (await client.get(PREFIX + path)).status_code == 401, path
        assert (await client.get(f"{PREFIX}/health")).status_code == 200


async def test_streams_end_cleanly_with_the_site() -> None:
    app, mount = site()
    drain = trio.Event()
    async with serving(app, drain=drain) as client:
        await client.post(f"{PREFIX}/tasks", json={"id": "t"})
        async with client.stream("GET", f"{PREFIX}/tasks/t/events") as answer:
            mount.drain()
            assert (await client.get(f"{PREFIX}/health/ready")).status_code == 503
            drain.set()
            assert [line async for line in answer.aiter_lines()]


@pytest.mark.parametrize("way", ["raises", "returns", "starts"])
async def test_an_application_without_a_lifespan_has_that_of_what_is_mounted(way: str) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        if way != "raises" and scope["type"] == "lifespan":
            if way == "starts":
                await send({"type": "lifespan.startup.complete"})
            return
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(Mount(bare, PREFIX)) as client:
        assert (await client.get("/")).status_code == 204
        assert (await client.get(f"{PREFIX}/health/ready")).status_code == 200


async def test_the_lifespan_of_the_site_may_use_it_from_start_to_end() -> None:
    app, mount = site()
    said: list[str] = []

    @app.before_serving
    async def before() -> None:
        said.append((await mount.engine.create()).status)

    @app.after_serving
    async def after() -> None:
        said.append(f"{len(await mount.engine.list_tasks())} tasks")

    async with serving(app) as client:
        await client.get("/")
    assert said == ["pending", "1 tasks"]


async def test_a_store_that_cannot_be_used_keeps_the_site_from_starting() -> None:
    app, _ = site(Config(storage="sqlite", db_path="/nowhere/at/all.db"))
    with pytest.RaisesGroup(
        pytest.RaisesExc(StartupFailedError, match="nowhere"), flatten_subgroups=True
    ):
        async with serving(app):
            raise AssertionError


async def test_a_crash_ends_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = trio.Event()

    async def run(self: Any, sink: Any, *, task_status: Any) -> None:
        task_status.started()
        await crash.wait()
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryBroadcast, "run", run)
    app, _ = site()
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serving(app) as client:
            await client.get(f"{PREFIX}/health")
            crash.set()
            await trio.sleep_forever()


async def test_a_server_that_outlives_the_crash_is_told_by_each_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hypercorn logs the end of a lifespan, and goes on."""

    async def run(self: Any, sink: Any, *, task_status: Any) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async def receive() -> dict[str, str]:
        if not startup:
            await trio.sleep_forever()
        return startup.pop()

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()

    startup = [{"type": "lifespan.startup"}]
    monkeypatch.setattr(MemoryBroadcast, "run", run)
    app, _ = site()
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await app.asgi_app({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
    answer = await app.test_client().get(f"{PREFIX}/health/ready")
    assert answer.status_code == 503


async def test_before_and_without_a_lifespan_it_says_so() -> None:
    app, _ = site()
    client = app.test_client()
    answer = await client.get(f"{PREFIX}/tasks")
    assert answer.status_code == 503
    assert "lifespan" in (await answer.get_json())["error"]
    assert (await client.get("/")).status_code == 200


async def test_with_the_test_client_of_quart() -> None:
    app, _ = site()
    async with app.test_app() as test_app:
        client = test_app.test_client()
        assert (await client.post(f"{PREFIX}/tasks", json={"id": "t"})).status_code == 201


async def test_with_redis() -> None:
    """The loop of its drivers is opened in the lifespan, where no request descends from."""
    redis = Redis(url=SecretUrl(redis_url()), prefix=new_prefix())
    app, _ = site(Config(storage="redis", redis=redis))
    async with serving(app) as client:
        assert (await client.post(f"{PREFIX}/tasks", json={"id": "t"})).status_code == 201
        await client.patch(f"{PREFIX}/tasks/t/status", json={"status": "running"})
        assert (await client.get(f"{PREFIX}/tasks/t")).json()["status"] == "running"


@pytest.mark.parametrize("prefix", ["", "/", "follow", "/follow/", "/a//b", "/a b", "/a%20b", "/é"])
def test_a_prefix_is_a_path_of_plain_segments(prefix: str) -> None:
    with pytest.raises(ValueError, match="not a prefix"):
        site(prefix=prefix)


SITE = """
from quart_trio import QuartTrio
from taskcast_trio import Mount

app = QuartTrio(__name__)
app.asgi_app = Mount(app.asgi_app, "/follow")
"""


async def test_with_hypercorn_itself(tmp_path: Path) -> None:
    (tmp_path / "site_of_a_test.py").write_text(SITE)
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "-k", "trio", "-b", f"127.0.0.1:{port}"]
    process = await trio.lowlevel.open_process(
        [*command, "site_of_a_test:app"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(PATIENCE_S):
            base = f"http://127.0.0.1:{port}/follow"
            async with httpx.AsyncClient(base_url=base, timeout=PATIENCE_S) as client:
                while True:
                    try:
                        await client.get("/health")
                        break
                    except httpx.ConnectError:
                        await trio.sleep(0.02)
                await client.post("/tasks", json={"id": "t"})
                await client.patch("/tasks/t/status", json={"status": "running"})
                async with trio_websocket.open_websocket_url(
                    f"ws://127.0.0.1:{port}/follow/tasks/t/events/ws"
                ) as socket:
                    await socket.send_message('{"type": "n", "level": "info"}')
                    assert json.loads(await socket.get_message())["ok"]
                await client.patch("/tasks/t/status", json={"status": "completed"})
                assert "taskcast.done" in (await client.get("/tasks/t/events")).text
            process.terminate()
            assert await process.wait() == 0
    finally:
        process.kill()


async def test_on_asyncio_it_refuses_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "site_of_a_test.py").write_text(
        "from starlette.applications import Starlette\n"
        "from taskcast_trio import Mount\n"
        'app = Mount(Starlette(), "/follow")\n'
    )
    command = [sys.executable, "-m", "uvicorn", "--port", "0", "site_of_a_test:app"]
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            command, cwd=tmp_path, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode != 0
    assert b"taskcast_trio.background()" in done.stderr
