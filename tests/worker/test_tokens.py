"""Tokens that end while the worker lives: it gets others, and handlers go on meanwhile."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
import trio

from taskcast_trio.client import ServerUnavailable
from taskcast_trio.config import Auth, Config, Jwt, Secret, Workers
from taskcast_trio.config.schema import WorkerDefaults
from taskcast_trio.core.errors import Unauthorized
from taskcast_trio.worker import Run, pull, websocket

from ..http.conftest import start_server
from .support import MODES, actions_of, becomes, events_of, worker_of, working

SECRET = "a secret of the tests, of 32 bytes or more"
ADMIN = "the admin token of the tests"
SCOPES = ["worker:connect", "task:manage", "event:publish", "event:subscribe"]


def token_of(**claims: Any) -> str:
    return jwt.encode({"sub": "w", "scope": SCOPES, **claims}, SECRET, "HS256")


@asynccontextmanager
async def guarded() -> AsyncIterator[Any]:
    jwt_ = Jwt(algorithm="HS256", secret=Secret(SECRET))
    config = Config(
        auth=Auth(mode="jwt", jwt=jwt_, stream_expiry_grace_seconds=0.001),
        admin_api=True,
        admin_token=Secret(ADMIN),
        workers=Workers(enabled=True, defaults=WorkerDefaults(disconnect_grace_ms=10_000)),
    )
    async with start_server(config) as server:
        every = jwt.encode({"scope": ["*"]}, SECRET, "HS256")
        server.client.headers["Authorization"] = f"Bearer {every}"
        yield server


class Giver:
    """Gives a token after the other, each for ``lives_s`` if that is said of it."""

    def __init__(self, server: Any, *lives_s: float) -> None:
        self.given: list[str] = []
        self.again = trio.Event()
        self._server = server
        self._lives_s = lives_s

    def __call__(self) -> str:
        number = len(self.given)
        self.given.append(secrets.token_hex(8))
        if number:
            self.again.set()
        claims: dict[str, Any] = {"jti": self.given[-1]}
        if number < len(self._lives_s):
            claims["exp"] = self._server.runtime.engine.clock() / 1000 + self._lives_s[number]
        return token_of(**claims)

    async def later(self) -> str:
        await trio.lowlevel.checkpoint()
        return self()

    async def revoke(self) -> None:
        """Make the newest token one that the server takes no more."""
        body = {"adminToken": ADMIN, "jti": self.given[-1]}
        assert (await self._server.client.post("/admin/revoke", json=body)).is_success


@pytest.mark.parametrize("how", ["revoked", "expired"])
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_token_that_is_over_is_renewed_and_handlers_go_on(
    mode: str, how: str, kind: str
) -> None:
    async with guarded() as server:
        giver = Giver(server, *([1.0] if how == "expired" else []))
        get: Callable[[], Any] = giver if kind == "plain" else giver.later
        worker = worker_of(server.url, mode, token=get, worker_id="w")
        begun, go_on = trio.Event(), trio.Event()

        @worker.task()
        async def handler(run: Run) -> None:
            await run.emit("before")
            begun.set()
            await go_on.wait()
            await run.emit("after")

        async with working(worker):
            task = await server.task(assignMode=MODES[mode])
            await begun.wait()
            if how == "revoked":
                await giver.revoke()
            with trio.fail_after(10):
                await giver.again.wait()
            go_on.set()
            await becomes(server, task, "completed")
            other = await server.task(assignMode=MODES[mode])
            await becomes(server, other, "completed")
        assert await actions_of(server, task) == ["assigned"]
        for type_ in ("before", "after"):
            assert len(await events_of(server, task, type_)) == 1
        assert len(giver.given) == 2, "one token for the requests and the connection"


async def test_a_function_that_fails_later_is_asked_again(
    mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (pull, websocket):
        monkeypatch.setattr(module, "pause_s", lambda *_: 0.01)
    async with guarded() as server:
        giver = Giver(server)
        failures = 0

        def get() -> str:
            nonlocal failures
            if len(giver.given) == 1 and failures < 3:
                failures += 1
                raise ConnectionError("https://user:s3cret@identity is away")
            return giver()

        worker = worker_of(server.url, mode, token=get)
        begun, go_on = trio.Event(), trio.Event()

        @worker.task()
        async def handler(run: Run) -> None:
            begun.set()
            await go_on.wait()

        async with working(worker):
            task = await server.task(assignMode=MODES[mode])
            await begun.wait()
            await giver.revoke()
            with trio.fail_after(10):
                await giver.again.wait()
            go_on.set()
            await becomes(server, task, "completed")
        assert failures == 3
        assert await actions_of(server, task) == ["assigned"]
        assert "The function that gets tokens failed: ConnectionError" in caplog.text
        assert "s3cret" not in caplog.text


def away() -> str:
    raise LookupError("no s3cret")


async def never_there() -> str:
    raise LookupError("no s3cret")


@pytest.mark.parametrize(
    "get", [away, never_there, lambda: None, lambda: "s3cret\n", lambda: "", lambda: 5]
)
async def test_a_function_that_fails_at_first_ends_the_worker(mode: str, get: Any) -> None:
    async with guarded() as server:
        worker = worker_of(server.url, mode, token=get)

        @worker.task()
        async def nothing(run: Run) -> None: ...

        with trio.fail_after(30), pytest.raises(ServerUnavailable, match="No token") as refused:
            await worker.run()
        assert "s3cret" not in str(refused.value)


async def test_a_token_that_is_refused_again_ends_the_worker(mode: str) -> None:
    """There is no end of tokens that are none, so they are not asked for without an end."""
    async with guarded() as server:
        asked = 0

        def get() -> str:
            nonlocal asked
            asked += 1
            return jwt.encode({"sub": "w", "n": asked}, "x" * 32, "HS256")

        worker = worker_of(server.url, mode, token=get)

        @worker.task()
        async def nothing(run: Run) -> None: ...

        with trio.fail_after(30), pytest.raises(Unauthorized):
            await worker.run()
        assert asked == 2


async def test_a_token_that_ends_while_the_server_is_away_is_renewed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was new when the server went away, and had never been taken."""
    monkeypatch.setattr(websocket, "pause_s", lambda *_: 0.01)
    dial = websocket.SocketLink._dial
    async with guarded() as server:
        giver = Giver(server)
        was_away = False

        async def sometimes(link: websocket.SocketLink) -> Any:
            nonlocal was_away
            if len(giver.given) == 2 and not was_away:
                was_away = True
                await giver.revoke()
                raise ConnectionRefusedError
            return await dial(link)

        monkeypatch.setattr(websocket.SocketLink, "_dial", sometimes)
        worker = worker_of(server.url, "websocket", token=giver)

        @worker.task()
        async def nothing(run: Run) -> None: ...

        async with working(worker):
            await giver.revoke()
            task = await server.task(assignMode=MODES["websocket"])
            await becomes(server, task, "completed")
        assert was_away
        assert len(giver.given) == 3


async def test_a_worker_that_waits_for_a_token_can_be_stopped(mode: str) -> None:
    async with guarded() as server:
        giver = Giver(server)
        waits = trio.Event()

        async def get() -> str:
            if giver.given:
                waits.set()
                await trio.sleep_forever()
            return giver()

        worker = worker_of(server.url, mode, token=get, drain_s=0.1)

        @worker.task()
        async def nothing(run: Run) -> None: ...

        with trio.fail_after(10):
            async with working(worker):
                await giver.revoke()
                await waits.wait()
