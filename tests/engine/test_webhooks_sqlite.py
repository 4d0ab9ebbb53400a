"""Deliveries on a database file with short times, and across restarts: nothing starts anew."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Sqlite
from taskcast_trio.engine import Runtime, open_runtime
from taskcast_trio.engine.webhooks.state import RETRY, WEBHOOK, Kept
from taskcast_trio.storage.protocols import PARKED_MS
from tests.receiver import Receiver, answering, hanging, receiving, saying

from .support import move, raw
from .webhook_support import create, look, publish

SHORT = {"retries": 3, "backoff": "fixed", "initialDelayMs": 30, "timeoutMs": 300}


@asynccontextmanager
async def opened(path: Path, *, hours_later: int = 0) -> AsyncIterator[Runtime]:
    config = Config(
        storage="sqlite", db_path=str(path / "t.db"), sqlite=Sqlite(synchronous="normal")
    )

    def clock() -> int:
        return time.time_ns() // 1_000_000 + hours_later * 3_600_000

    with trio.fail_after(20):
        async with open_runtime(config, clock=clock) as runtime:
            yield runtime


def hook(receiver: Receiver, **retry: Any) -> Any:
    return raw({"url": receiver.url(), "retry": {**SHORT, **retry}})


def sent(receiver: Receiver) -> list[int]:
    return [msgspec.json.decode(request.body)["index"] for request in receiver.requests]


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await met():
            return
        await trio.sleep(0.01)


async def idle(runtime: Runtime) -> None:
    """Wait until no task is at work and none is to be tried again."""

    async def met() -> bool:
        due = [await runtime.backend.store.next_due(kind) for kind in (WEBHOOK, RETRY)]
        return not runtime.webhooks.workers and due[0] in (None, PARKED_MS) and due[1] is None

    await until(met)


async def kept(runtime: Runtime, met: Callable[[Kept], bool]) -> Kept:
    while True:
        found = await look(runtime)
        if met(found):
            return found
        await trio.sleep(0.01)


async def test_order_and_counts_are_exact_whatever_the_receiver_does(tmp_path: Path) -> None:
    scripts = (
        answering(500),
        hanging,
        saying(b"HTTP/1.1 2"),
        answering(204),  # event 0
        *[answering(302, Location="http://127.0.0.1:1/")] * 4,  # event 1: a dead letter
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),  # event 2
        answering(429, Retry_After="0"),
        answering(204),  # event 3
        answering(410),  # event 4
        answering(204),
    )
    async with receiving(*scripts) as receiver, opened(tmp_path) as runtime:
        await create(runtime, hook(receiver))
        await publish(runtime, *"abcdef")
        await idle(runtime)
        assert sent(receiver) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 4]
        found = await look(runtime)
        assert found.state.disabled is not None
        assert [(one.index, one.tries, one.error) for one in found.dead.values()] == [
            (1, 4, "redirect")
        ]
        await runtime.webhooks.redeliver("t", 0)
        await idle(runtime)
        assert sent(receiver)[12:] == [1, 4, 5]
        await move(runtime.engine, "running", "completed")
        await idle(runtime)
        assert sent(receiver)[15:] == [6, 7]
        assert await runtime.backend.store.next_due(WEBHOOK) is None
        found = await look(runtime)
        assert (found.state.cursor, found.state.delivered, found.dead) == (7, 8, {})


async def test_a_restart_goes_on_in_the_middle(tmp_path: Path) -> None:
    async with receiving() as receiver:
        async with opened(tmp_path) as runtime:
            await create(runtime, hook(receiver))
            await publish(runtime, *["a"] * 500)
            await kept(runtime, lambda found: found.state.cursor > 20)
        before = len(receiver.requests)
        assert before < 500
        async with opened(tmp_path) as runtime:
            await idle(runtime)
        assert sent(receiver) == list(range(500))


async def test_tries_and_their_times_outlive_a_restart(tmp_path: Path) -> None:
    scripts = answering(500), answering(429, Retry_After="3000"), answering(204)
    async with receiving(*scripts) as receiver:
        async with opened(tmp_path) as runtime:
            await create(runtime, hook(receiver))
            await publish(runtime, "a")
            first = await kept(runtime, lambda found: found.state.tries == 2)
        async with opened(tmp_path) as runtime:
            await trio.sleep(0.3)
            again = await look(runtime)
            assert again.state == first.state
            assert len(receiver.requests) == 2
        async with opened(tmp_path, hours_later=1) as runtime:
            found = await kept(runtime, lambda found: found.state.delivered == 1)
            assert found.state.recent[-1].number == 3
        assert sent(receiver) == [0, 0, 0]


async def test_many_tasks_are_delivered_side_by_side(tmp_path: Path) -> None:
    async with receiving() as receiver, opened(tmp_path) as runtime:
        for number in range(60):
            await create(runtime, hook(receiver), id_=f"t{number}")
        async with trio.open_nursery() as nursery:
            for number in range(60):
                for _ in range(5):
                    nursery.start_soon(lambda id_: publish(runtime, "a", id_=id_), f"t{number}")
        await idle(runtime)
        by_task: dict[str, list[int]] = {}
        for request in receiver.requests:
            event = msgspec.json.decode(request.body)
            by_task.setdefault(event["taskId"], []).append(event["index"])
        assert by_task == {f"t{number}": list(range(5)) for number in range(60)}
        assert receiver.most_open <= 8
