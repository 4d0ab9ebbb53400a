"""Who reads the last word of a stream is counted no more: it may ask who follows, or come again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from taskcast_trio.config import Config
from taskcast_trio.core.access import OPEN, Caller
from taskcast_trio.core.model import CreateTask, Transition
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.server.auth.admission import Admissions
from taskcast_trio.server.auth.gate import CALLER
from taskcast_trio.server.auth.limits import StreamSlots
from taskcast_trio.server.hot import HotRoutes
from taskcast_trio.testing import trio_clock_ms


class Direct:
    """The routes without a server, and what there was of a stream when its end was sent."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.slots = StreamSlots(total=100, per_caller=100)
        self.admissions = Admissions(self.slots, clock_ms=runtime.engine.clock, grace_s=0)
        self.at_end: list[tuple[int, int]] = []
        self.caller = OPEN
        self._app = HotRoutes(self._nothing_else, runtime, self.admissions)

    async def _nothing_else(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope)

    def _look(self, end: bytes, body: bytes) -> None:
        if end in body:
            followers = self.runtime.engine.fanout.subscribers("t")
            self.at_end.append((followers, self.slots.open_streams))

    async def follow(self, end: bytes, *, linked: bool) -> None:
        """Follow t up to its end, over a link or without one."""
        extensions: dict[str, Any] = {}
        if linked:
            extensions["taskcast.link"] = Link(lambda body: self._look(end, body))
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/tasks/t/events",
            "raw_path": b"/tasks/t/events",
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "extensions": extensions,
            CALLER: self.caller,
        }

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            self._look(end, message.get("body", b""))

        async def receive() -> dict[str, Any]:
            await trio.sleep_forever()
            raise AssertionError

        with trio.fail_after(60):
            await self._app(scope, receive, send)


class Link:
    """A connection to a peer that reads all at once."""

    def __init__(self, look: Callable[[bytes], None]) -> None:
        self._look = look

    def take(self) -> None:
        """The peer is watched elsewhere."""

    def push(self, body: bytes) -> bool:
        self._look(body)
        return True

    async def closed(self) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def direct() -> AsyncIterator[Direct]:
    async with open_runtime(Config(), clock=trio_clock_ms()) as runtime:
        await runtime.engine.create(CreateTask(id="t"))
        yield Direct(runtime)


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("live", [True, False])
async def test_its_place_is_free_before_the_client_hears_that_the_task_has_ended(
    linked: bool, live: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with direct() as to, trio.open_nursery() as nursery:
        if live:
            nursery.start_soon(partial(to.follow, b"taskcast.done", linked=linked))
            await trio.testing.wait_all_tasks_blocked()
            assert to.slots.open_streams == to.runtime.engine.fanout.subscribers("t") == 1
        await to.runtime.engine.transition("t", Transition(status="cancelled"))
        if not live:
            await to.follow(b"taskcast.done", linked=linked)
    assert to.at_end == [(0, 0)]


@pytest.mark.parametrize("linked", [True, False])
async def test_and_before_it_hears_that_the_server_drains_or_its_token_is_no_more(
    linked: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with direct() as to, trio.open_nursery() as nursery:
        to.caller = Caller(scopes=frozenset({"*"}), expires_at=to.runtime.engine.clock() / 1000 + 5)
        await to.follow(b"taskcast.error", linked=linked)
        assert to.at_end == [(0, 0)]
        to.caller = OPEN
        nursery.start_soon(partial(to.follow, b"retry: ", linked=linked))
        await trio.testing.wait_all_tasks_blocked()
        to.runtime.drain.set()
    assert to.at_end == [(0, 0), (1, 1), (0, 0)]
