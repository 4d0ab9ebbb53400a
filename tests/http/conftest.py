"""A real server on a free port for each test, and an HTTP client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import httpx
import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.engine.engine import wall_clock_ms
from taskcast_trio.server.app import create_app
from taskcast_trio.server.auth.custom import Authenticate
from taskcast_trio.server.serve import ServeOptions, serve

PATIENCE_S = 60


@dataclass
class Running:
    """A server that listens, its runtime, and a client of it."""

    url: str
    runtime: Runtime
    client: httpx.AsyncClient

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def task(self, **fields: Any) -> str:
        answer = await self.client.post("/tasks", json=fields)
        assert answer.status_code == 201, answer.text
        task_id: str = answer.json()["id"]
        return task_id

    async def publish(self, task_id: str, *events: dict[str, Any]) -> list[dict[str, Any]]:
        answer = await self.client.post(f"/tasks/{task_id}/events", json=list(events))
        assert answer.status_code == 201, answer.text
        published: list[dict[str, Any]] = answer.json()
        return published

    async def move(self, task_id: str, status: str, **fields: Any) -> httpx.Response:
        return await self.client.patch(
            f"/tasks/{task_id}/status", json={"status": status, **fields}
        )

    async def finished_stream(self, path: str, **options: Any) -> str:
        """The whole text of a stream that ends by itself."""
        answer = await self.client.get(path, **options)
        return answer.text


Start: TypeAlias = Callable[..., AbstractAsyncContextManager[Running]]


@asynccontextmanager
async def start_server(
    config: Config | None = None,
    *,
    mount: Callable[[Any], Any] = lambda app: app,
    clock: Callable[[], int] = wall_clock_ms,
    authenticate: Authenticate | None = None,
    port: int = 0,
    **options: Any,
) -> AsyncIterator[Running]:
    with trio.fail_after(PATIENCE_S):
        async with open_runtime(config, clock=clock) as runtime, trio.open_nursery() as nursery:
            serve_options = ServeOptions(host="127.0.0.1", port=port, **options)
            app = mount(create_app(runtime, authenticate=authenticate))
            urls = await nursery.start(
                lambda task_status: serve(
                    app, serve_options, drain=runtime.drain, task_status=task_status
                )
            )
            url = urls[0].rstrip("/")
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
                yield Running(url, runtime, client)
            nursery.cancel_scope.cancel()


@pytest.fixture(params=["httptools", "h11"])
def start(request: pytest.FixtureRequest) -> Start:
    """Starts a server with a configuration of the test's own, on either way to speak HTTP/1.1."""
    return partial(start_server, http=request.param)


@pytest.fixture
async def server(start: Start) -> AsyncIterator[Running]:
    async with start() as running:
        yield running
