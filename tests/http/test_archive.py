"""A server that archives in PostgreSQL: what it says of itself, and while the database is away."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Postgres
from taskcast_trio.config.secret import SecretUrl

from ..storage.postgres.server import LocalServer, migrated_on
from .conftest import Running, Start, start_server

EVENT = {"type": "a", "level": "info", "data": {"n": 1}}


def config(url: str) -> Config:
    return Config(postgres=Postgres(url=SecretUrl(url), timeout_seconds=2.0))


@pytest.fixture
def url(postgres_server: LocalServer) -> str:
    """A migrated database on the server that outages are tried on."""
    return migrated_on(postgres_server)


async def until_archived(server: Running) -> None:
    while await server.runtime.backend.store.next_due("archive") is not None:
        await trio.lowlevel.checkpoint()


async def readiness(server: Running, status: int) -> dict[str, object]:
    """The page, once it answers so."""
    while (answer := await server.client.get("/health/ready")).status_code != status:
        await trio.lowlevel.checkpoint()
    page: dict[str, object] = answer.json()
    return page


@pytest.fixture
async def stopped(postgres_server: LocalServer) -> AsyncIterator[LocalServer]:
    """The database, to be stopped and started by the test; it runs in the end."""
    yield postgres_server
    if not postgres_server.running:
        await trio.to_thread.run_sync(postgres_server.start)


async def test_an_outage_is_told_by_readiness_and_answered_by_503_where_it_matters(
    start: Start, url: str, stopped: LocalServer
) -> None:
    async with start(config(url)) as server:
        task = await server.task()
        await until_archived(server)
        assert await readiness(server, 200) == {
            "ok": True,
            "dependencies": {"postgres": {"status": "ok"}},
        }
        await trio.to_thread.run_sync(stopped.stop)
        await server.publish(task, EVENT)
        page = await readiness(server, 503)
        assert page == {"ok": False, "dependencies": {"postgres": {"status": "unavailable"}}}
        detail = (await server.client.get("/health/detail")).json()
        assert not detail["ok"]
        assert detail["adapters"]["longTermStore"] == {
            "provider": "postgres",
            "status": "unavailable",
        }
        for method, path, body in (
            ("GET", "/tasks/unknown", None),
            ("GET", "/tasks/unknown/events", None),
            ("POST", "/tasks/unknown/events", EVENT),
            ("PATCH", "/tasks/unknown/status", {"status": "running"}),
            ("POST", "/tasks", {"id": "chosen"}),
            ("DELETE", f"/tasks/{task}", None),
            ("GET", "/tasks", None),
        ):
            answer = await server.client.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), path
            assert answer.headers["retry-after"] == "1"
            assert str(stopped.port) not in answer.text
        await server.publish(await server.task(), EVENT)
        lag = [
            line
            for line in (await server.client.get("/metrics")).text.splitlines()
            if line.startswith("taskcast_archive_lag_seconds ")
        ]
        assert float(lag[0].split()[1]) > 0
        await trio.to_thread.run_sync(stopped.start)
        await readiness(server, 200)
        await until_archived(server)
        assert (await server.client.get("/tasks/unknown")).status_code == 404


async def test_streams_of_archived_tasks_are_those_of_before(url: str) -> None:
    async with start_server(config(url)) as server:
        task = await server.task(id="t")
        piece = {**EVENT, "data": {"delta": "x"}, "seriesId": "s", "seriesMode": "accumulate"}
        await server.publish(task, *[piece] * 700, EVENT)
        await server.move(task, "running")
        await server.move(task, "completed")
        paths = [
            "/tasks/t",
            "/tasks/t/events",
            "/tasks/t/events?since.index=3&wrap=false",
            "/tasks/t/events?seriesFormat=accumulated&types=a&since.index=-1",
            "/tasks/t/events/history",
            "/tasks/t/events/history?seriesFormat=accumulated",
            "/tasks",
        ]
        before = [(await server.client.get(path)).text for path in paths]
    async with start_server(config(url)) as server:
        assert [(await server.client.get(path)).text for path in paths] == before
        events = (await server.client.get("/tasks/t/events/history")).json()
        headers = {"Last-Event-ID": events[500]["id"]}
        rest = await server.finished_stream("/tasks/t/events", headers=headers)
        assert rest.count("event: taskcast.event") == len(events) - 501
        assert (await server.client.get("/tasks/t/archive")).status_code == 200
        last = await server.client.get(
            "/tasks/t/events", headers={"Last-Event-ID": events[-1]["id"]}
        )
        assert last.status_code in (200, 204)
