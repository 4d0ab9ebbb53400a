"""``POST /tasks/cleanup``: what it tells and who may ask."""

from __future__ import annotations

from typing import Any

import jwt
import pytest

from taskcast_trio.config import Auth, Config, Jwt, Secret
from taskcast_trio.config.schema import Cleanup

SECRET = "a secret of the tests, of 32 bytes or more"
NOW = 1_700_000_000_000
RULES = Cleanup(
    rules=(
        {
            "name": "chatter",
            "target": "events",
            "trigger": {"afterMs": 1000},
            "eventFilter": {"levels": ["debug"]},
        },
        {"target": "all", "trigger": {"afterMs": 5000}},
    )
)


class Clock:
    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


async def ended(server: Any, id_: str, **fields: Any) -> None:
    await server.task(id=id_, **fields)
    await server.move(id_, "running")
    await server.publish(id_, {"type": "a", "level": "debug"}, {"type": "a", "level": "info"})
    await server.move(id_, "completed")


async def test_a_look_ahead_changes_nothing_and_a_run_tells_what_went(start: Any) -> None:
    clock = Clock()
    async with start(Config(cleanup=RULES), clock=clock) as server:
        await ended(server, "t")
        await ended(server, "u")

        async def clean(**body: Any) -> Any:
            answer = await server.client.post("/tasks/cleanup", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        none = {"rules": [], "taskIds": [], "more": False}
        assert await clean(dryRun=True) == {"dryRun": True, **none}
        ahead = await clean(dryRun=True, withinMs=1000)
        chatter = [{"rule": "chatter", "target": "events", "tasks": 2, "events": 2}]
        assert ahead == {"dryRun": True, "rules": chatter, "taskIds": ["t", "u"], "more": False}
        assert (await clean(dryRun=True, withinMs=5000))["rules"] == [
            {"rule": "cleanup.rules[1]", "target": "all", "tasks": 2, "events": 8}
        ]
        assert len((await server.client.get("/tasks")).json()["tasks"]) == 2
        clock.ms += 1000
        assert await clean() == {**ahead, "dryRun": False}
        history = (await server.client.get("/tasks/t/events/history")).json()
        assert [event["index"] for event in history] == [0, 2, 3]
        assert (await server.client.post("/tasks/cleanup")).json() == {"dryRun": False, **none}
        resumed = {"Last-Event-ID": history[0]["id"]}
        text = await server.finished_stream("/tasks/t/events", headers=resumed)
        gap = 'event: taskcast.gap\ndata: {"reason":"events_expired","replayedFrom":0}\n\n'
        assert gap in text
        clock.ms += 4000
        assert (await clean())["rules"][0]["tasks"] == 2
        assert (await server.client.get("/tasks/t")).status_code == 404


@pytest.mark.parametrize(
    "body",
    [b"[]", b'{"dryRun":"yes"}', b'{"dryRun":true,"withinMs":-1}', b'{"withinMs":1}', b"{"],
)
async def test_what_can_not_be_meant_is_refused(start: Any, body: bytes) -> None:
    async with start(Config()) as server:
        answer = await server.client.post("/tasks/cleanup", content=body)
        assert answer.status_code == 400


async def test_it_is_for_who_may_manage_all_tasks_and_names_only_what_they_may(
    start: Any,
) -> None:
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET)))

    def bearer(**claims: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}

    clock = Clock()
    async with start(Config(auth=auth, cleanup=RULES), clock=clock) as server:
        server.client.headers.update(bearer(scope=["*"], sub="ann"))
        hidden = {"rules": [{"match": {"scope": ["task:manage"]}, "require": {"sub": ["ann"]}}]}
        await ended(server, "open")
        await ended(server, "hidden", authConfig=hidden)
        look = {"dryRun": True, "withinMs": 5000}

        async def ask(**claims: Any) -> Any:
            return await server.client.post("/tasks/cleanup", json=look, headers=bearer(**claims))

        assert (await ask(scope=["task:create", "event:history"])).status_code == 403
        assert (await ask(scope=["task:manage"], taskIds=["open"])).status_code == 403
        seen = (await ask(scope=["task:manage"], sub="bob")).json()
        assert seen["taskIds"] == ["open"]
        assert seen["rules"][0]["tasks"] == 2
        seen = (await ask(scope=["*"], sub="ann")).json()
        assert sorted(seen["taskIds"]) == ["hidden", "open"]


async def test_a_create_takes_any_rules_and_gives_them_back(start: Any) -> None:
    rules = ["junk", {"target": "all"}, 7, None, {"trigger": {}, "target": "task", "x": [1]}]
    async with start(Config()) as server:
        answer = await server.client.post("/tasks", json={"id": "t", "cleanup": {"rules": rules}})
        assert answer.status_code == 201
        assert answer.json()["cleanup"] == {"rules": rules}
        assert (await server.move("t", "cancelled")).status_code == 200
