"""Servers that share a Redis are one: tickets, revocations, limits, audience, health."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import jwt
import pytest
import trio

from taskcast_trio.config import Config, Secret
from taskcast_trio.config.schema import Auth, Jwt, Limits, Redis
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.engine.backends import open_stores
from taskcast_trio.server.readiness import processes
from taskcast_trio.storage.records import StoreRefused
from taskcast_trio.storage.redis import peers

from ..storage.redis.server import new_prefix, redis_url, running
from .conftest import Running, start_server
from .reading import opened

SECRET = "a secret of these tests, long enough for HS256"
ADMIN = "the admin token of these tests"
PASSWORD = "hush-hush"
EVENT = {"type": "note", "level": "info", "data": {"n": 1}}


def config(url: str | None = None, **fields: Any) -> Config:
    """Of servers that share a store, where it is used more than once."""
    redis = Redis(url=SecretUrl(url or redis_url()), prefix=new_prefix(), timeout_seconds=2.0)
    return Config(storage="redis", redis=redis, **fields)


def with_jwt(**fields: Any) -> Config:
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET)), stream_expiry_grace_seconds=0)
    return config(auth=auth, admin_api=True, admin_token=Secret(ADMIN), **fields)


def bearer(**claims: Any) -> dict[str, str]:
    token = jwt.encode({"scope": ["*"], **claims}, SECRET, algorithm="HS256")
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def two(configuration: Config) -> AsyncIterator[tuple[Running, Running]]:
    async with start_server(configuration) as one, start_server(configuration) as other:
        yield one, other


async def new_task(server: Running) -> str:
    answer = await server.client.post("/tasks", json={}, headers=bearer())
    task_id: str = answer.json()["id"]
    return task_id


async def revoke(server: Running, **fields: Any) -> None:
    answer = await server.client.post("/admin/revoke", json={"adminToken": ADMIN, **fields})
    assert answer.status_code == 204, answer.text


async def test_what_one_publishes_the_other_delivers_and_both_tell_the_audience() -> None:
    async with two(config()) as (one, other):
        task = await one.task()
        path = f"/tasks/{task}/events"
        async with opened(one, path), opened(other, path) as stream, opened(other, path):
            for server in (one, other):
                count = 0
                while count != 3:
                    view = (await server.client.get(f"/tasks/{task}")).json()
                    count = view["subscriberCount"]
                    assert view["hot"] is (count > 0)
                (listed,) = (await server.client.get("/tasks")).json()["tasks"]
                assert listed["subscriberCount"] == 3
            await one.publish(task, EVENT)
            assert (await stream.event())[1]["filteredIndex"] == 0
        while (await one.client.get(f"/tasks/{task}")).json()["subscriberCount"]:
            await trio.lowlevel.checkpoint()


async def test_a_stream_counts_in_both_from_its_answer_on_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "FLUSH_S", 60)
    async with two(config(limits=Limits(task_subscribers=1))) as (one, other):
        while min(processes(server.runtime) for server in (one, other)) < 2:  # noqa: ASYNC110
            await trio.sleep(0.05)
        for here, there in ((one, other), (other, one)):
            task = await here.task()
            path = f"/tasks/{task}/events"
            async with opened(here, path) as stream:
                assert (await there.client.get(f"/tasks/{task}")).json()["subscriberCount"] == 1
                assert (await there.client.get(path)).status_code == 429
                move = {"status": "cancelled"}
                await there.client.patch(f"/tasks/{task}/status", json=move)
                while (await stream.event())[0] != "taskcast.done":
                    pass
                assert (await there.client.get(f"/tasks/{task}")).json()["subscriberCount"] == 0


async def test_a_task_has_no_more_subscribers_than_it_may_have_over_both() -> None:
    async with two(config(limits=Limits(task_subscribers=2))) as (one, other):
        task = await one.task()
        path = f"/tasks/{task}/events"

        async def refused(server: Running) -> bool:
            async with server.client.stream("GET", path) as answer:
                return answer.status_code == 429

        async with opened(one, path), opened(other, path):
            while (await one.client.get(f"/tasks/{task}")).json()["subscriberCount"] != 2:
                await trio.lowlevel.checkpoint()
            assert await refused(one)
            assert await refused(other)
        while await refused(other):
            pass


async def test_a_revocation_at_one_ends_the_streams_at_the_other_within_a_second_or_so() -> None:
    async with two(with_jwt()) as (one, other):
        task = await new_task(one)
        path, later = f"/tasks/{task}/events", int(time.time()) + 5
        async with (
            opened(other, path, bearer(sub="eve")) as eves,
            opened(other, path, bearer(sub="eve", iat=later)) as newer,
            opened(other, path, bearer(sub="ann")) as anns,
            opened(one, path, bearer(sub="eve")) as here,
        ):
            await revoke(one, sub="eve")
            for stream in (here, eves):
                with trio.fail_after(3):
                    ended = await stream.event()
                assert ended == ("taskcast.error", {"code": "token_revoked"}, None)
            await other.client.post(path, json=EVENT, headers=bearer())
            for stream in (newer, anns):
                assert (await stream.event())[0] == "taskcast.event"
        refused = await other.client.get(f"/tasks/{task}", headers=bearer(sub="eve"))
        assert refused.json()["code"] == "token_revoked"


async def test_a_ticket_made_at_one_opens_a_stream_at_the_other() -> None:
    async with two(with_jwt()) as (one, other):
        task = await new_task(one)
        made = await one.client.post("/tickets", json={"taskIds": [task]}, headers=bearer())
        path = f"/tasks/{task}/events?ticket={made.json()['ticket']}"
        async with opened(other, path) as stream:
            await one.client.post(f"/tasks/{task}/events", json=EVENT, headers=bearer())
            assert (await stream.event())[0] == "taskcast.event"


async def test_a_ticket_for_one_use_is_used_once_however_many_race_for_it() -> None:
    async with two(with_jwt()) as (one, other):
        task = await new_task(one)
        await one.client.patch(
            f"/tasks/{task}/status", json={"status": "cancelled"}, headers=bearer()
        )
        for _ in range(5):
            made = await one.client.post("/tickets", json={"singleUse": True}, headers=bearer())
            path = f"/tasks/{task}/events?ticket={made.json()['ticket']}"
            statuses: list[int] = []

            async def use(server: Running, path: str, statuses: list[int]) -> None:
                statuses.append((await server.client.get(path)).status_code)

            async with trio.open_nursery() as nursery:
                for server in (one, other) * 6:
                    nursery.start_soon(use, server, path, statuses)
            assert sorted(statuses) == [200] + [401] * 11


@pytest.mark.parametrize("mode", ["none", "jwt"])
async def test_what_a_caller_may_ask_in_a_second_is_counted_over_both(mode: str) -> None:
    limits, per_second = Limits(requests_per_second=10), 10
    made = config(limits=limits) if mode == "none" else with_jwt(limits=limits)
    async with two(made) as (one, other):
        answers: list[httpx.Response] = []

        async def ask(server: Running) -> None:
            for _ in range(20):
                answers.append(await server.client.get("/tasks", headers=bearer(sub="ann")))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for server in (one, other) * 3:
                nursery.start_soon(ask, server)
        windows = int(trio.current_time() - began) + 1
        statuses = [answer.status_code for answer in answers]
        assert per_second <= statuses.count(200) <= (per_second + 4) * windows
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {
            (429, "1")
        }
        assert (await one.client.get("/health")).is_success


async def test_the_limit_of_tickets_is_counted_over_both() -> None:
    async with two(with_jwt(limits=Limits(tickets_per_second=3))) as (one, other):
        statuses = [
            (await server.client.post("/tickets", headers=bearer(sub="ann"))).status_code
            for server in (one, other) * 4
        ]
        assert statuses[:4] == [201, 201, 201, 429]


async def test_health_tells_the_processes_and_what_redis_is() -> None:
    with running("--appendonly", "yes") as redis:
        async with two(config(redis.url, require_durable=True)) as (one, other):
            for server in (one, other):
                detail: Any = {"storage": {"activeWriterCount": 0}}
                while detail["storage"]["activeWriterCount"] != 2:
                    detail = (await server.client.get("/health/detail")).json()
                assert detail["durability"] == "durable"
                assert detail["adapters"]["broadcast"] == {"provider": "redis", "status": "ok"}
                redis_state = detail["dependencies"]["redis"]
                assert redis_state.pop("version")[0].isdigit()
                assert redis_state == {
                    "status": "ok",
                    "commands": "ok",
                    "pubsub": "ok",
                    "kind": "server",
                    "durability": "durable",
                }


async def test_a_redis_that_writes_nothing_down_is_told_of_and_refused_where_it_must_not_be() -> (
    None
):
    with running() as redis:
        async with start_server(config(redis.url)) as server:
            detail = (await server.client.get("/health/detail")).json()
            assert detail["durability"] == "volatile"
            assert detail["adapters"]["shortTermStore"]["durability"] == "volatile"
        with pytest.raises(StoreRefused, match=r"^requireDurable: Redis has no append-only file"):
            async with open_stores(config(redis.url, require_durable=True)):
                raise AssertionError("it opened")


async def readiness(server: Running, done: Any) -> dict[str, Any]:
    """The page, once it is so."""
    while True:
        answer = await server.client.get("/health/ready")
        assert PASSWORD not in answer.text
        page: dict[str, Any] = answer.json()
        assert answer.status_code == (200 if page["ok"] else 503)
        if done(page["dependencies"]["redis"]):
            return page
        await trio.sleep(0.01)


async def test_an_outage_is_told_by_readiness_answered_by_503_and_over_by_itself() -> None:
    with running("--appendonly", "yes", "--requirepass", PASSWORD) as redis:
        url = f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/0"
        async with start_server(config(url)) as server:
            task = await server.task()
            path = f"/tasks/{task}/events"
            await server.publish(task, EVENT)
            async with opened(server, path) as stream:
                assert (await stream.event())[1]["rawIndex"] == 0
                assert (await readiness(server, lambda redis: True))["ok"]
                await trio.to_thread.run_sync(redis.stop)
                refused = await server.client.post(path, json=EVENT)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
                assert PASSWORD not in refused.text
                page = await readiness(
                    server, lambda redis: redis["commands"] == redis["pubsub"] == "unavailable"
                )
                assert page["ok"] is False
                assert page["dependencies"]["redis"]["status"] == "unavailable"
                detail = await server.client.get("/health/detail")
                assert detail.json()["ok"] is False
                assert PASSWORD not in detail.text
                assert (await server.client.get("/health")).is_success
                await trio.to_thread.run_sync(partial(redis.start))
                answer = refused
                while answer.status_code != 201:
                    answer = await server.client.post(path, json=EVENT)
                await readiness(server, lambda redis: redis["status"] == "ok")
                assert (await stream.event())[1]["rawIndex"] == 1
