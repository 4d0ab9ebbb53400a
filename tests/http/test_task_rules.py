"""The rules of a task and the tasks of a token hold on every way to a task, and to see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx
import jwt
import msgspec
import pytest
import trio

from taskcast_trio.config import Auth, Config, Jwt, Secret, TrustedService

SECRET = "a secret of the tests, of 32 bytes or more"
CONFIG = Config(
    auth=Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET))),
    trusted_services=(
        TrustedService(name="all", key=Secret("key-of-all"), scope=("*",)),
        TrustedService(name="maker", key=Secret("key-of-maker"), scope=("task:create",)),
        TrustedService(
            name="ann",
            key=Secret("key-of-ann"),
            scope=("task:create", "event:subscribe", "event:publish"),
            task_ids=(),
        ),
    ),
)
PATIENCE_S = 60

EVENT = {"type": "a", "level": "info"}
HOOK = {"url": "https://hooks.example/", "secret": "planted-webhook-secret"}
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
NDJSON = {"Content-Type": "application/x-ndjson"}


def bearer(*scopes: str, **claims: Any) -> dict[str, str]:
    token = jwt.encode({"scope": scopes or ["*"], **claims}, SECRET, "HS256")
    return {"Authorization": f"Bearer {token}"}


def service(name: str) -> dict[str, str]:
    return {"X-Taskcast-Service-Key": f"key-of-{name}"}


ANN = bearer(sub="ann", team=["red", "green"], level=1)
BOB = bearer(sub="bob", team="blue", level=True)
ONLY_ANN = {"sub": ["ann"]}


def rules(require: Any, *scope: str) -> Any:
    return {"rules": [{"match": {"scope": list(scope) or ["*"]}, "require": require}]}


def archive(task_id: str, **fields: Any) -> dict[str, Any]:
    task = {"id": task_id, "status": "running", "createdAt": 1, "updatedAt": 1, **fields}
    return {
        "schema": "taskcast.taskArchive",
        "version": 1,
        "exportedAt": 1,
        "task": task,
        "events": [],
    }


@pytest.fixture
async def server(start: Any) -> AsyncIterator[Any]:
    async with start(CONFIG) as running:
        # A refusal may come before the body was sent, and ends its connection then.
        running.client.headers["Connection"] = "close"
        yield running


async def create(server: Any, by: dict[str, str] = ANN, **fields: Any) -> httpx.Response:
    headers = {**by, **fields.pop("headers", {})}
    answer: httpx.Response = await server.client.post("/tasks", json=fields, headers=headers)
    return answer


async def made(server: Any, *task_ids: str, **fields: Any) -> None:
    for task_id in task_ids:
        answer = await create(server, id=task_id, **fields)
        assert answer.status_code == 201, answer.text


async def publish(server: Any, task_id: str, data: Any, by: dict[str, str] = ANN) -> None:
    event = {**EVENT, "data": data}
    answer = await server.client.post(f"/tasks/{task_id}/events", json=event, headers=by)
    assert answer.status_code == 201, answer.text


class Stream:
    """A stream read frame by frame off its own socket."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket
        self._parser = h11.Connection(h11.CLIENT)
        self._text = ""

    async def _event(self) -> Any:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            self._parser.receive_data(await self._socket.receive_some())
        return event

    async def open(self, path: str, headers: dict[str, str]) -> int:
        fields = list({"Host": "h", **headers}.items())
        get = h11.Request(method="GET", target=path, headers=fields)
        await self._socket.send_all(self._parser.send(get) or b"")
        head = await self._event()
        assert isinstance(head, h11.Response | h11.InformationalResponse)
        return head.status_code

    async def frame(self) -> dict[str, Any]:
        """The data of the next frame that has some."""
        while True:
            while "\n\n" in self._text:
                block, self._text = self._text.split("\n\n", 1)
                for line in block.split("\n"):
                    if line.startswith("data: "):
                        data: dict[str, Any] = msgspec.json.decode(line[6:])
                        return data
            event = await self._event()
            assert isinstance(event, h11.Data), event
            self._text += bytes(event.data).decode()


@asynccontextmanager
async def connected(server: Any) -> AsyncIterator[Stream]:
    with trio.fail_after(PATIENCE_S):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as socket:
            yield Stream(socket)


@asynccontextmanager
async def following(server: Any, path: str, by: dict[str, str]) -> AsyncIterator[Stream]:
    async with connected(server) as stream:
        assert await stream.open(path, by) == 200
        yield stream


Use = Callable[[Any, dict[str, str]], Awaitable[int]]


def plain(method: str, path: str, **options: Any) -> Use:
    async def use(server: Any, by: dict[str, str]) -> int:
        headers = {**by, **options.get("headers", {})}
        rest = {name: value for name, value in options.items() if name != "headers"}
        answer = await server.client.request(method, f"/tasks/t{path}", headers=headers, **rest)
        status: int = answer.status_code
        return status

    return use


async def follow(server: Any, by: dict[str, str]) -> int:
    async with connected(server) as stream:
        return await stream.open("/tasks/t/events", by)


async def publish_by_socket(server: Any, by: dict[str, str]) -> int:
    async with connected(server) as stream:
        return await stream.open("/tasks/t/events/ws", {**by, **HANDSHAKE})


WAYS: dict[str, tuple[str, Use, int]] = {
    "publish": ("event:publish", plain("POST", "/events", json=EVENT), 201),
    "publish a batch": ("event:publish", plain("POST", "/events", json=[EVENT]), 201),
    "publish NDJSON": ("event:publish", plain("POST", "/events", content="", headers=NDJSON), 201),
    "publish by WebSocket": ("event:publish", publish_by_socket, 101),
    "follow": ("event:subscribe", follow, 200),
    "read": ("event:subscribe", plain("GET", ""), 200),
    "head": ("event:subscribe", plain("HEAD", ""), 200),
    "head of a stream": ("event:subscribe", plain("HEAD", "/events"), 200),
    "history": ("event:history", plain("GET", "/events/history"), 200),
    "archive": ("event:history", plain("GET", "/archive"), 200),
    "request": ("task:resolve", plain("GET", "/request"), 200),
    "resolve": ("task:resolve", plain("POST", "/resolve", json={}), 200),
    "transition": ("task:manage", plain("PATCH", "/status", json={"status": "running"}), 200),
    "release": (
        "task:manage",
        plain("POST", "/storage/release", json={"expectedLastEventIndex": 0, "inactiveSince": 0}),
        503,
    ),
    "delete": ("task:manage", plain("DELETE", ""), 204),
}


async def blocked_task(server: Any, auth_config: Any) -> None:
    """A task that every way can be used on."""
    await made(server, "t")
    for body in ({"status": "running"}, {"status": "blocked", "blockedRequest": {"type": "q"}}):
        answer = await server.client.patch("/tasks/t/status", json=body, headers=ANN)
        assert answer.status_code == 200
    exported = (await server.client.get("/tasks/t/archive", headers=ANN)).json()
    exported["task"]["authConfig"] = auth_config
    body = {"archive": exported, "overwrite": True}
    answer = await server.client.post("/tasks/import", json=body, headers=ANN)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("matched", ["*", "its own"])
async def test_the_rules_of_a_task_hold_on_every_way_to_it(
    server: Any, way: str, matched: str
) -> None:
    scope, use, status = WAYS[way]
    await blocked_task(server, rules(ONLY_ANN, "*" if matched == "*" else scope))
    for other in (BOB, bearer(), bearer(sub=["ann"]), bearer(sub="Ann"), service("all")):
        assert await use(server, other) == 403
    assert await use(server, ANN) == status


@pytest.mark.parametrize("way", WAYS)
async def test_the_rules_of_other_scopes_do_not_matter(server: Any, way: str) -> None:
    scope, use, status = WAYS[way]
    others = {own for own, *_ in WAYS.values()} - {scope}
    await blocked_task(server, rules({"sub": []}, *sorted(others)))
    assert await use(server, BOB) == status


@pytest.mark.parametrize("way", WAYS)
async def test_rules_give_nothing_to_who_lacks_the_scope_or_the_task(server: Any, way: str) -> None:
    scope, use, _ = WAYS[way]
    await blocked_task(server, rules(ONLY_ANN))
    lacking = {own for own, *_ in WAYS.values()} - {scope}
    assert await use(server, bearer(*sorted(lacking), sub="ann")) == 403
    assert await use(server, bearer(sub="ann", taskIds=["u"])) == 403


@pytest.mark.parametrize(
    ("require", "passes"),
    [
        ({"claims": {"team": "red"}}, True),
        ({"claims": {"team": ["red", "green"]}}, True),
        ({"claims": {"team": "blue"}}, False),
        ({"claims": {"level": 1}}, True),
        ({"claims": {"level": True}}, False),
        ({"claims": {"team": "red", "absent": None}}, False),
        ({"claims": {"sub": "ann"}, "sub": ["bob", "ann"]}, True),
        ({"claims": {"team": "red"}, "sub": ["bob"]}, False),
    ],
)
async def test_claims_are_those_of_the_token(server: Any, require: Any, passes: bool) -> None:
    await made(server, "t", authConfig=rules(require))
    answer = await server.client.get("/tasks/t", headers=ANN)
    assert answer.status_code == (200 if passes else 403)
    if not passes:
        assert answer.json() == {
            "error": "The rules of task t do not allow event:subscribe to this caller",
            "code": "forbidden",
        }


async def test_rules_that_nobody_could_keep_are_refused_by_place(server: Any) -> None:
    wrong = rules({"subject": ["ann"]})
    answer = await create(server, authConfig=wrong)
    assert answer.status_code == 400
    assert "at `$.authConfig.rules[0].require`" in answer.json()["error"]
    body = {"archive": archive("t", authConfig=wrong)}
    answer = await server.client.post("/tasks/import", json=body, headers=ANN)
    assert answer.status_code == 400
    assert "at `$.archive.task.authConfig.rules[0].require`" in answer.json()["error"]


async def listed(server: Any, by: dict[str, str], query: str = "") -> list[str]:
    answer = await server.client.get(f"/tasks{query}", headers=by)
    assert answer.status_code == 200, answer.text
    return [task["id"] for task in answer.json()["tasks"]]


LIMITED = bearer(taskIds=["v1", "v2", "v3", "unknown"])


@pytest.mark.parametrize("by", [BOB, LIMITED], ids=["rules", "taskIds"])
async def test_a_list_is_as_if_hidden_tasks_were_not_there(server: Any, by: dict[str, str]) -> None:
    hidden = rules(ONLY_ANN, "event:subscribe")
    for task_id in ("h1", "v1", "h2", "h3", "v2", "v3", "h4"):
        await made(server, task_id, authConfig=hidden if task_id.startswith("h") else {})
    assert await listed(server, ANN) == ["h1", "v1", "h2", "h3", "v2", "v3", "h4"]
    assert await listed(server, by) == ["v1", "v2", "v3"]
    assert await listed(server, by, "?limit=1") == ["v1"]
    assert await listed(server, by, "?limit=2") == ["v1", "v2"]
    assert await listed(server, by, "?after=v1&limit=1") == ["v2"]
    assert await listed(server, by, "?after=v3") == []
    assert await listed(server, by, "?status=pending&limit=3") == ["v1", "v2", "v3"]
    assert await listed(server, by, "?status=running") == []
    refusals = []
    for task_id in ("h2", "gone"):
        answer = await server.client.get(f"/tasks?after={task_id}", headers=by)
        refusals.append((answer.status_code, answer.text.replace(task_id, "it")))
    assert refusals[0] == refusals[1]
    assert refusals[0][0] == 400


@pytest.mark.parametrize("query", ["", "?existing=true"])
@pytest.mark.parametrize("by", [BOB, LIMITED], ids=["rules", "taskIds"])
async def test_the_stream_of_all_tasks_has_nothing_of_hidden_ones(
    server: Any, by: dict[str, str], query: str
) -> None:
    hidden = rules(ONLY_ANN, "event:subscribe")
    await made(server, "h1", authConfig=hidden)
    await made(server, "v1")
    async with following(server, f"/events{query}", by) as stream:
        await made(server, "h2", authConfig=hidden)
        await made(server, "v2")
        for task_id in ("h1", "v1", "h2", "v2"):
            await publish(server, task_id, task_id)
            await server.client.patch(
                f"/tasks/{task_id}/status", json={"status": "running"}, headers=ANN
            )
        body = {"archive": archive("h3", authConfig=hidden)}
        assert (await server.client.post("/tasks/import", json=body, headers=ANN)).is_success
        await publish(server, "h3", "h3")
        await publish(server, "v2", "the last")
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1].get("data") != "the last":
            seen.append(await stream.frame())
    expected = ["v2", "v2", "v2"] if query == "" else ["v1", "v1", "v2", "v2", "v2"]
    assert [frame["taskId"] for frame in seen] == expected


async def test_a_task_that_is_hidden_by_an_import_leaves_the_stream_of_all(server: Any) -> None:
    await made(server, "v1", "v2")
    async with following(server, "/events?existing=true", BOB) as stream:
        await publish(server, "v1", "before")
        body = {"archive": archive("v1", authConfig=rules(ONLY_ANN)), "overwrite": True}
        assert (await server.client.post("/tasks/import", json=body, headers=ANN)).is_success
        await publish(server, "v1", "hidden")
        await publish(server, "v2", "after")
        assert [(await stream.frame())["data"] for _ in range(2)] == ["before", "after"]


async def test_a_limited_token_creates_only_its_tasks(server: Any) -> None:
    limited = bearer("task:create", taskIds=["a"])
    assert (await create(server, limited)).status_code == 403
    assert (await create(server, limited, id="b")).status_code == 403
    assert (await create(server, bearer(taskIds=[]), id="b")).status_code == 403
    assert (await create(server, limited, id="a")).status_code == 201
    assert await listed(server, ANN) == ["a"]


async def test_a_limited_token_imports_only_its_tasks(server: Any) -> None:
    limited = bearer("task:manage", taskIds=["a"])
    for task_id, status in (("b", 403), ("a", 200)):
        body = {"archive": archive(task_id)}
        answer = await server.client.post("/tasks/import", json=body, headers=limited)
        assert answer.status_code == status
    assert await listed(server, ANN) == ["a"]


async def test_a_service_may_create_any_task_and_use_its_own_only(server: Any) -> None:
    for fields in ({"id": "any"}, {}):
        assert (await create(server, service("ann"), **fields)).status_code == 201
    assert await listed(server, service("ann")) == []
    assert (await server.client.get("/tasks/any", headers=service("ann"))).status_code == 403
    answer = await server.client.post("/tasks/any/events", json=EVENT, headers=service("ann"))
    assert answer.status_code == 403
    refused = await create(server, service("ann"), webhooks=[HOOK])
    assert refused.status_code == 403


async def test_webhooks_need_a_scope_of_their_own(server: Any) -> None:
    makers = bearer("task:create", "task:manage")
    both = bearer("task:create", "task:manage", "webhook:create")
    for by, hooks, statuses in ((makers, [HOOK], (403, 403)), (makers, [], (201, 200))):
        got = await create(server, by, id="a", webhooks=hooks)
        body = {"archive": archive("b", webhooks=hooks)}
        imported = await server.client.post("/tasks/import", json=body, headers=by)
        assert (got.status_code, imported.status_code) == statuses
    assert (await create(server, both, id="c", webhooks=[HOOK])).status_code == 201
    body = {"archive": archive("d", webhooks=[HOOK])}
    assert (await server.client.post("/tasks/import", json=body, headers=both)).is_success


async def test_to_overwrite_a_task_its_own_rules_must_be_kept(server: Any) -> None:
    await made(server, "t", type="old", authConfig=rules(ONLY_ANN, "task:manage"))
    for overwrite, status in ((True, 403), (False, 409)):
        body = {"archive": archive("t", type="new"), "overwrite": overwrite}
        answer = await server.client.post("/tasks/import", json=body, headers=BOB)
        assert answer.status_code == status, answer.text
    assert (await server.client.get("/tasks/t", headers=BOB)).json()["type"] == "old"
    body = {"archive": archive("t", type="new"), "overwrite": True}
    assert (await server.client.post("/tasks/import", json=body, headers=ANN)).is_success
    assert (await server.client.get("/tasks/t", headers=BOB)).json()["type"] == "new"


async def test_the_rules_of_the_archive_do_not_open_the_task_that_is_there(server: Any) -> None:
    await made(server, "t", authConfig=rules(ONLY_ANN, "task:manage"))
    configs: list[Any] = [rules({"sub": ["bob"]}), {}, {"rules": []}]
    for config in configs:
        body = {"archive": archive("t", authConfig=config), "overwrite": True}
        answer = await server.client.post("/tasks/import", json=body, headers=BOB)
        assert answer.status_code == 403
    body = {"archive": archive("new", authConfig=rules(ONLY_ANN)), "overwrite": True}
    assert (await server.client.post("/tasks/import", json=body, headers=BOB)).is_success


async def test_one_key_of_two_callers_is_two_keys(server: Any) -> None:
    key = {"Idempotency-Key": "k"}
    callers = [ANN, BOB, service("ann"), service("maker")]
    first = [await create(server, by, type="job", headers=key) for by in callers]
    again = [await create(server, by, type="job", headers=key) for by in callers]
    assert {answer.status_code for answer in [*first, *again]} == {201}
    ids = [answer.json()["id"] for answer in first]
    assert len(set(ids)) == len(callers)
    assert [answer.json()["id"] for answer in again] == ids
    renewed = bearer(sub="ann", jti="a newer token")
    assert (await create(server, renewed, type="job", headers=key)).json()["id"] == ids[0]
    assert (await create(server, ANN, type="other", headers=key)).status_code == 422


async def test_one_key_of_two_publishers_stores_both_events(server: Any) -> None:
    await made(server, "t")
    for by, data in ((ANN, 1), (BOB, 2), (ANN, 1), (BOB, 2)):
        await publish(server, "t", data, {**by, "Idempotency-Key": "k"})
    history = await server.client.get("/tasks/t/events/history", headers=ANN)
    assert [event["data"] for event in history.json()] == [1, 2]
    for by in (ANN, BOB):
        headers = {**by, "Idempotency-Key": "move"}
        body = {"status": "running" if by is ANN else "paused"}
        answer = await server.client.patch("/tasks/t/status", json=body, headers=headers)
        assert answer.status_code == 200, answer.text


async def test_reads_hide_secrets_and_rules_from_whom_they_do_not_concern(server: Any) -> None:
    config = rules(ONLY_ANN, "webhook:create")
    created = await create(server, id="t", webhooks=[HOOK], authConfig=config)
    reader = bearer("event:subscribe", "event:history")
    manager = bearer("event:subscribe", "event:history", "task:manage")
    for by, sees_rules in ((reader, False), (manager, True)):
        one = (await server.client.get("/tasks/t", headers=by)).json()
        (of_list,) = (await server.client.get("/tasks", headers=by)).json()["tasks"]
        assert one == of_list
        assert one["webhooks"] == created.json()["webhooks"] == [{"url": HOOK["url"]}]
        assert one.get("authConfig") == (config if sees_rules else None)
        exported = (await server.client.get("/tasks/t/archive", headers=by)).json()["task"]
        assert exported["webhooks"] == ([HOOK] if sees_rules else [{"url": HOOK["url"]}])
        assert exported.get("authConfig") == (config if sees_rules else None)


OPEN = Config(
    trusted_services=(
        TrustedService(name="reader", key=Secret("key-of-reader"), scope=("event:subscribe",)),
        TrustedService(name="all", key=Secret("key-of-all"), scope=("*",)),
    ),
)


@pytest.mark.parametrize("config", [Config(), OPEN], ids=["no services", "services"])
async def test_who_shows_nothing_to_an_open_server_meets_no_rule_and_sees_everything(
    start: Any, config: Config
) -> None:
    async with start(config) as server:
        server.client.headers["Connection"] = "close"
        for number, auth in enumerate([rules({"sub": []}), {"rules": "none at all"}]):
            fields = {"id": f"t{number}", "webhooks": [HOOK], "authConfig": auth}
            created = await create(server, {}, **fields)
            assert created.status_code == 201
            for task in (
                created.json(),
                (await server.client.get(f"/tasks/t{number}")).json(),
                (await server.client.get("/tasks")).json()["tasks"][number],
            ):
                assert (task["webhooks"], task["authConfig"]) == ([HOOK], auth)
            await publish(server, f"t{number}", 1, {})
        async with following(server, "/events?existing=true", {}) as stream:
            await publish(server, "t1", 2, {})
            assert (await stream.frame())["data"] == 2
        body = {"archive": archive("t0"), "overwrite": True}
        assert (await server.client.post("/tasks/import", json=body)).is_success


async def test_a_service_meets_scopes_and_rules_on_an_open_server_too(start: Any) -> None:
    async with start(OPEN) as server:
        server.client.headers["Connection"] = "close"
        await made(
            server, "t", by={}, webhooks=[HOOK], authConfig=rules({"sub": []}, "task:manage")
        )
        await made(server, "h", by={}, authConfig=rules(ONLY_ANN))
        reader, everything = service("reader"), service("all")
        assert await listed(server, reader) == await listed(server, everything) == ["t"]
        task = (await server.client.get("/tasks/t", headers=reader)).json()
        assert (task["webhooks"], "authConfig" in task) == ([{"url": HOOK["url"]}], False)
        for by, method, path, status in (
            (reader, "GET", "/tasks/h", 403),
            (everything, "GET", "/tasks/h", 403),
            (reader, "DELETE", "/tasks/t", 403),
            (everything, "DELETE", "/tasks/t", 403),
            ({"X-Taskcast-Service-Key": "x"}, "GET", "/tasks/t", 401),
            ({}, "DELETE", "/tasks/t", 204),
        ):
            answer = await server.client.request(method, path, headers=by)
            assert answer.status_code == status, (by, method, path)
