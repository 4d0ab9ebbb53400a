"""Webhooks over HTTP: what is delivered, what is shown of it and to whom, and deliver again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from click.testing import CliRunner
from standardwebhooks import Webhook as Standard

from taskcast_trio.cli import main
from taskcast_trio.config import Auth, Config, Jwt, Secret
from taskcast_trio.config.schema import Retry, Webhook
from tests.receiver import answering, receiving

from .conftest import Running, Start, start_server

KEY = "a secret of the tests, of 32 bytes or more"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WITH_TOKENS = Config(auth=Auth(mode="jwt", jwt=Jwt(secret=Secret(KEY))))
OPEN_HERE = Config(auth=WITH_TOKENS.auth, webhook=Webhook(allow=("127.0.0.0/8",)))
EVENT = {"type": "a", "level": "info", "data": {"n": 1}}


def bearer(*scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {jwt.encode({'scope': scopes}, KEY, 'HS256')}"}


async def until(met: Callable[[], Awaitable[Any]]) -> Any:
    """What it gives once it is true; the server's patience bounds it."""
    while True:
        if found := await met():
            return found
        await trio.sleep(0.02)


async def webhook(server: Running, number: int = 0, **options: Any) -> dict[str, Any]:
    answer = await server.client.get("/tasks/t/webhooks", **options)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["webhooks"][number]
    return found


async def when(server: Running, **wanted: Any) -> dict[str, Any]:
    """The webhook when it is as wanted."""

    async def met() -> dict[str, Any] | None:
        found = await webhook(server)
        return found if wanted.items() <= found.items() else None

    found: dict[str, Any] = await until(met)
    return found


async def test_what_is_published_is_delivered_and_shown(start: Start) -> None:
    async with receiving() as receiver, start() as server:
        await server.task(id="t", webhooks=[{"url": receiver.url("/in?a=b"), "secret": SECRET}])
        events = await server.publish("t", EVENT, {**EVENT, "type": "b"})
        await server.move("t", "running")
        found = await when(server, cursor=2)
        assert [Standard(SECRET).verify(r.body, r.headers) for r in receiver.requests[:2]] == events
        last = found.pop("lastTry")
        assert (last["type"], last["outcome"], last["attempt"]) == (
            "taskcast:status",
            "delivered",
            1,
        )
        assert found == {
            "number": 0,
            "status": "active",
            "host": "127.0.0.1",
            "url": receiver.url("/in?a=b"),
            "cursor": 2,
            "pending": 0,
            "delivered": 3,
            "deadLetters": 0,
            "droppedDeadLetters": 0,
            "failedTries": 0,
        }
        answer = (await server.client.get("/tasks/t/webhooks/0/deliveries")).json()
        assert [one["index"] for one in answer["deliveries"]] == [2, 1, 0]
        assert answer["deliveries"][2]["eventId"] == events[0]["id"]
        assert answer["deadLetters"] == []


async def test_a_dead_letter_is_shown_and_delivered_again(start: Start) -> None:
    hook = {"retry": {"retries": 1, "initialDelayMs": 10}}
    async with (
        receiving(answering(500), answering(503), answering(204)) as receiver,
        start() as server,
    ):
        await server.task(id="t", webhooks=[{"url": receiver.url(), **hook}])
        await server.publish("t", EVENT, EVENT)
        assert (await when(server, cursor=1))["deadLetters"] == 1
        answer = (await server.client.get("/tasks/t/webhooks/0/deliveries")).json()
        (letter,) = answer["deadLetters"]
        assert (letter["index"], letter["attempts"]) == (0, 2)
        assert (letter["status"], letter["error"]) == (503, "status")
        again = await server.client.post("/tasks/t/webhooks/0/redeliver")
        assert (again.status_code, again.json()) == (202, {"ok": True})
        await when(server, deadLetters=0)
        ids = [request.headers["x-taskcast-delivery"] for request in receiver.requests]
        assert ids == [ids[0], ids[0], ids[2], ids[0]]
        await server.client.post("/tasks/t/webhooks/0/redeliver", json={"fromIndex": 1})
        await when(server, delivered=3)
        assert receiver.requests[-1].headers["x-taskcast-delivery"] == ids[2]


async def test_one_that_is_gone_is_disabled_until_it_is_asked_for(start: Start) -> None:
    async with receiving(answering(410), answering(204)) as receiver, start() as server:
        await server.task(id="t", webhooks=[{"url": receiver.url()}])
        await server.publish("t", EVENT)
        found = await when(server, status="disabled")
        assert "410" in found["reason"]
        assert found["cursor"] == -1
        await server.client.post("/tasks/t/webhooks/0/redeliver", json={})
        await when(server, status="active", cursor=0)


async def test_a_waiting_one_says_when(start: Start) -> None:
    async with receiving(answering(500)) as receiver, start() as server:
        await server.task(id="t", webhooks=[{"url": receiver.url()}])
        await server.publish("t", EVENT)
        found = await when(server, status="retrying")
        assert found["failedTries"] == 1
        wait = found["nextTryAt"] - found["lastTry"]["at"]
        assert 750 <= wait <= 1000
        assert found["pending"] == 1


@pytest.mark.parametrize(
    "definition", [None, 1, "x", [], {}, {"url": 1}, {"url": "ftp://h/"}, {"url": "http://u:p@h/"}]
)
async def test_a_task_with_an_unusable_webhook_is_created_and_says_why_it_is_not_used(
    start: Start, definition: object
) -> None:
    async with start() as server:
        await server.task(id="t", webhooks=[definition])
        await server.publish("t", EVENT)
        found = await webhook(server)
        assert found.pop("reason")
        assert found == {"number": 0, "status": "disabled"}
        again = await server.client.post("/tasks/t/webhooks/0/redeliver")
        assert again.status_code == 400
        nothing = (await server.client.get("/tasks/t/webhooks/0/deliveries")).json()
        assert nothing == {"deliveries": [], "deadLetters": []}


async def test_wrong_requests_are_refused(start: Start) -> None:
    async with start() as server:
        await server.task(id="t", webhooks=[{"url": "http://127.0.0.1:1/"}])
        await server.task(id="none")
        for path in ("/tasks/t/webhooks/{}/deliveries", "/tasks/t/webhooks/{}/redeliver"):
            method = "POST" if path.endswith("redeliver") else "GET"
            for number in ("1", "-1", "x", "1e3", "\u0661", "9" * 5000):
                answer = await server.client.request(method, path.format(number))
                assert (answer.status_code, answer.json()["code"]) == (404, "webhook_not_found")
        for body, status in (
            ({"fromIndex": 1}, 400),
            ({"fromIndex": -1}, 400),
            ({"fromIndex": "0"}, 400),
            ([], 400),
            ({"fromIndex": 0}, 202),
        ):
            answer = await server.client.post("/tasks/t/webhooks/0/redeliver", json=body)
            assert answer.status_code == status, body
        assert (await server.client.get("/tasks/none/webhooks")).json() == {"webhooks": []}
        for path in ("/tasks/x/webhooks", "/tasks/x/webhooks/0/deliveries"):
            assert (await server.client.get(path)).json()["code"] == "task_not_found"


async def test_the_url_is_shown_to_managers_and_the_secret_to_nobody(start: Start) -> None:
    hook = {"url": "http://hooks.example/a-path-that-is-a-password", "secret": SECRET}
    async with start(WITH_TOKENS) as server:
        server.client.headers.update(bearer("*"))
        await server.task(id="t", webhooks=[hook])
        reader = await webhook(server, headers=bearer("event:subscribe"))
        assert reader["host"] == "hooks.example"
        assert "url" not in reader
        manager = await webhook(server, headers=bearer("event:subscribe", "task:manage"))
        assert manager["url"] == hook["url"]
        for path in ("/tasks/t/webhooks", "/tasks/t/webhooks/0/deliveries"):
            assert SECRET not in (await server.client.get(path)).text


@pytest.mark.parametrize(
    ("config", "outcome"),
    [
        (Config(), "delivered"),
        (Config(webhook=Webhook(allow_private=False)), "failed"),
        (Config(webhook=Webhook(deny=("127.0.0.0/8",))), "failed"),
        (WITH_TOKENS, "failed"),
        (OPEN_HERE, "delivered"),
        (Config(auth=WITH_TOKENS.auth, webhook=Webhook(allow_private=True)), "delivered"),
    ],
)
async def test_private_networks_are_open_only_where_the_configuration_says_so(
    start: Start, config: Config, outcome: str
) -> None:
    async with receiving() as receiver, start(config) as server:
        server.client.headers.update(bearer("*"))
        await server.task(id="t", webhooks=[{"url": receiver.url(), "retry": {"retries": 0}}])
        await server.publish("t", EVENT)
        found = await when(server, cursor=0)
        assert found["lastTry"]["outcome"] == outcome
        if outcome == "failed":
            assert found["lastTry"]["error"] == "address_refused"
            assert receiver.connections == 0


async def test_metrics_count_deliveries_failures_and_dead_letters(start: Start) -> None:
    async with receiving(answering(500), answering(204)) as receiver, start() as server:
        await server.task(id="t", webhooks=[{"url": receiver.url(), "retry": {"retries": 0}}])
        await server.publish("t", EVENT, EVENT)
        await when(server, cursor=1)
        text = (await server.client.get("/metrics")).text
        for line in (
            'taskcast_webhook_tries_total{outcome="delivered"} 1.0',
            'taskcast_webhook_tries_total{outcome="failed"} 1.0',
            'taskcast_webhook_failures_total{reason="status"} 1.0',
            "taskcast_webhook_dead_letters_total 1.0",
            "taskcast_webhook_lag_seconds_count 1.0",
        ):
            assert line in text


async def test_the_default_schedule_is_that_of_the_configuration(start: Start) -> None:
    retry = Retry(retries=2, backoff="fixed", initial_delay_ms=1)
    async with (
        receiving(answering(500)) as receiver,
        start(Config(webhook=Webhook(default_retry=retry))) as server,
    ):
        await server.task(id="t", webhooks=[{"url": receiver.url()}])
        await server.publish("t", EVENT)
        await when(server, cursor=0, deadLetters=1)
        assert len(receiver.requests) == 3


async def test_the_command_shows_it_and_delivers_again(tmp_path: Path) -> None:
    async def run(*arguments: str) -> str:
        def invoke() -> str:
            env = {"TASKCAST_URL": server.url, "NO_PROXY": "*"}
            result = CliRunner().invoke(main, ["webhooks", *arguments], env=env)
            return f"{result.exit_code} {result.output}"

        return await trio.to_thread.run_sync(invoke)

    async with receiving(answering(500), answering(204)) as receiver, start_server() as server:
        hook = {"url": receiver.url(), "retry": {"retries": 0}}
        await server.task(id="t", webhooks=[hook, 3])
        await server.publish("t", {**EVENT, "type": "a\u202eb"}, EVENT)
        await when(server, cursor=1)
        shown = await run("t")
        assert shown.startswith("0 webhook  status")
        assert f"0        active    {receiver.url()}  1" in shown
        assert "webhook 1: " in shown
        tries = await run("t", "--deliveries", "0")
        assert "failed" not in tries.splitlines()[0]
        assert "500" in tries
        assert "dead letters: 1" in tries
        assert "\u202e" not in tries
        assert (await run("t", "--redeliver", "0")) == "0 it will be delivered again\n"
        await when(server, deadLetters=0)
        assert '"webhooks":[' in await run("t", "--json")
        assert (await run("t", "--redeliver", "0", "--from-index", "0")).startswith("0 ")
        await when(server, delivered=4)
        assert "5 Error: no task x at" in await run("x")
        assert "5 Error: Task t has no webhook 7" in await run("t", "--deliveries", "7")
        assert (await run("t", "--from-index", "0")).startswith("2 ")
        assert "is no URL" in await run("t", "--url", "localhost:1")
        assert "no server at" in await run("t", "--url", "http://127.0.0.1:1")
