"""A server on SQLite answers as one in memory does, and says so where its disk does not."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Auth, Jwt
from taskcast_trio.config.secret import Secret
from taskcast_trio.storage.records import StoreRefused

from .conftest import Start, start_server
from .reading import opened

EVENT = {"type": "a", "level": "info", "data": {"n": 1}}


def config(path: Path, **fields: Any) -> Config:
    return Config(storage="sqlite", db_path=str(path / "t.db"), **fields)


async def test_a_stream_replays_from_the_file_and_goes_on_live(
    start: Start, tmp_path: Path
) -> None:
    async with start(config(tmp_path)) as server:
        task = await server.task()
        await server.publish(task, *[EVENT] * 600)
        async with opened(server, f"/tasks/{task}/events") as events:
            seen = [(await events.event())[1]["rawIndex"] for _ in range(600)]
            await server.publish(task, EVENT)
            seen.append((await events.event())[1]["rawIndex"])
            await server.move(task, "running")
            await server.move(task, "completed")
            rest = await events.rest()
        assert seen == list(range(601))
        assert rest.count("event: taskcast.done") == 1


async def test_concurrent_publishes_get_indexes_without_gaps(start: Start, tmp_path: Path) -> None:
    async with start(config(tmp_path)) as server:
        task = await server.task()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(server.publish, task, EVENT)
        history = (await server.client.get(f"/tasks/{task}/events/history")).json()
        assert [event["index"] for event in history] == list(range(50))


async def test_tasks_tickets_and_revocations_outlive_the_server(tmp_path: Path) -> None:
    secret = "a secret of these tests, long enough for HS256"
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(secret)))
    admin = {"adminToken": "an admin token of these tests"}
    config_ = config(tmp_path, auth=auth, admin_api=True, admin_token=Secret(admin["adminToken"]))
    async with start_server(config_) as server:
        made = (await server.client.post("/admin/token", json=admin)).json()["token"]
        headers = {"Authorization": f"Bearer {made}"}
        await server.client.post("/tasks", json={"id": "t"}, headers=headers)
        ticket = (await server.client.post("/tickets", headers=headers)).json()["ticket"]
        revocation = await server.client.post("/admin/revoke", json={**admin, "jti": "gone"})
        assert revocation.status_code == 204
    async with start_server(config_) as server:
        async with opened(server, f"/tasks/t/events?ticket={ticket}"):
            pass
        listed = await server.client.get("/tasks", headers=headers)
        assert [task["id"] for task in listed.json()["tasks"]] == ["t"]


async def test_a_full_disk_is_a_503_that_says_when_to_come_back_and_heals(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(tmp_path)) as server:
        task = await server.task()
        writer = server.runtime.backend.store.writer  # type: ignore[attr-defined]
        connection: sqlite3.Connection = writer._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
        big = {**EVENT, "data": "x" * 50_000}
        answer = await server.client.post(f"/tasks/{task}/events", json=big)
        while answer.status_code == 201:
            answer = await server.client.post(f"/tasks/{task}/events", json=big)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
        stored = len((await server.client.get(f"/tasks/{task}/events/history")).json())
        connection.execute("PRAGMA max_page_count = 100000")
        (event,) = await server.publish(task, EVENT)
        assert event["index"] == stored


async def test_a_second_server_on_the_file_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    async with start_server(config(tmp_path)) as server:
        with pytest.RaisesGroup(StoreRefused, flatten_subgroups=True, allow_unwrapped=True):
            async with start_server(config(tmp_path)):
                pass
        await server.task()
