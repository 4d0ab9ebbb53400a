"""A server in this process, workers on it, and what tests ask of both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import trio

from taskcast_trio.config import Config, Workers
from taskcast_trio.config.schema import WorkerDefaults
from taskcast_trio.engine.workers.registry import Worker as Row
from taskcast_trio.worker import Worker

from .. import waiting

MODES = {"websocket": "ws-offer", "pull": "pull"}
"""How tasks are assigned in each mode of a worker."""


def config(**defaults: Any) -> Config:
    return Config(workers=Workers(enabled=True, defaults=WorkerDefaults(**defaults)))


def worker_of(url: str, mode: str = "websocket", **options: Any) -> Worker:
    settings = {"capacity": 5, "handle_signals": False, "heartbeat_s": 0.2, "grace_s": 1.0}
    return Worker(url, mode=mode, **settings | options)  # type: ignore[arg-type]


@asynccontextmanager
async def working(*workers: Worker) -> AsyncIterator[None]:
    """The workers run, known to the server, and are stopped in the end."""
    async with trio.open_nursery() as nursery:
        for worker in workers:
            await nursery.start(worker.run)
        yield
        for worker in workers:
            worker.stop()


async def becomes(server: Any, task: str, status: str, wait_s: float = 20) -> dict[str, Any]:
    """The task, once it has this status."""
    found = await waiting.becomes(server.runtime.engine, task, status, wait_s)
    shown: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return shown


def row_of(server: Any, worker: Worker) -> Row:
    """The worker as its server knows it."""
    row = server.runtime.workers.registry.get(worker.id)
    assert isinstance(row, Row)
    return row


async def events_of(server: Any, task: str, type_: str | None = None) -> list[dict[str, Any]]:
    answer = await server.client.get(f"/tasks/{task}/events/history")
    return [event for event in answer.json() if type_ in (None, event["type"])]


async def actions_of(server: Any, task: str) -> list[str]:
    """What the audit of the task says."""
    return [each["data"]["action"] for each in await events_of(server, task, "taskcast:audit")]


class Relay:
    """A way to the server that can be cut without a word, or lose answers."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self.through = True
        self.lose: bytes | None = None
        """The next answer to a request that holds this is lost, with its connection."""
        self.lost = 0
        self.has_lost = trio.Event()
        self.met = trio.Event()
        self._port = port

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, near: trio.SocketStream) -> None:
        self.met.set()
        async with near:
            if not self.through:
                await trio.sleep_forever()
            await self._relay(near)

    async def _relay(self, near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as far:
            asked = b""
            with trio.CancelScope() as scope:

                async def up() -> None:
                    nonlocal asked
                    while data := await self._some(near):
                        asked = data
                        await self._give(far, data)
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(up)
                    while data := await self._some(far):
                        if self.lose is not None and self.lose in asked:
                            self.lose = None
                            self.lost += 1
                            self.has_lost.set()
                            break
                        await self._give(near, data)
                    scope.cancel()

    async def _give(self, stream: trio.SocketStream, data: bytes) -> None:
        with suppress(trio.BrokenResourceError):  # its end is read next
            await stream.send_all(data)

    async def _some(self, stream: trio.SocketStream) -> bytes:
        try:
            data = await stream.receive_some()
        except trio.BrokenResourceError:
            return b""
        if not self.through:
            await trio.sleep_forever()
        return bytes(data)
