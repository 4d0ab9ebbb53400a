"""A worker and its server in one process without a socket, so that a seed decides what is lost."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import trio
import trio.testing
from trio_websocket import ConnectionClosed, ConnectionRejected

OUTBOX = 10_000


class Net:
    """The way to the server: requests and answers are lost, and connections cut, while ``calm`` is
    False. What it serves runs in ``nursery``.
    """

    def __init__(self, app: Any, rng: random.Random, nursery: trio.Nursery) -> None:
        self.app = app
        self.rng = rng
        self.nursery = nursery
        self.calm = False
        self.lost = 0
        self.sockets: set[Socket] = set()

    def loses(self, chance: float) -> bool:
        lost = not self.calm and self.rng.random() < chance
        self.lost += lost
        return lost

    async def delay(self) -> None:
        await trio.sleep(self.rng.expovariate(50))

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=Transport(self))

    async def dial(self, *args: Any) -> trio.abc.Stream:
        await self.delay()
        if self.loses(0.2):
            raise OSError("nobody is there")
        return trio.testing.memory_stream_pair()[0]

    async def wrap(
        self, nursery: trio.Nursery, stream: Any, host: str, path: str, **options: Any
    ) -> Socket:
        socket = Socket(self, path, options["extra_headers"])
        await socket.open()
        return socket

    def cut_one(self) -> None:
        if self.sockets:
            self.rng.choice(sorted(self.sockets, key=lambda socket: socket.number)).cut()


def _scope(kind: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> Any:
    return {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http" if kind == "http" else "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "extensions": {"websocket.http.response": {}},
        "subprotocols": [],
        "state": {},
    }


class Exchange(httpx.AsyncByteStream, AsyncIterator[bytes]):
    """One request, which the application answers in a task of its own."""

    def __init__(self, net: Net, request: httpx.Request, body: bytes) -> None:
        self._net = net
        self._body: bytes | None = body
        self._parts, self._to_read = trio.open_memory_channel[bytes](math.inf)
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        self._begun = trio.Event()
        self._request = request
        self.over = trio.Event()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    async def begin(self) -> None:
        self._net.nursery.start_soon(self._run)
        await self._begun.wait()

    async def _run(self) -> None:
        url, request = self._request.url, self._request
        path = url.raw_path.partition(b"?")[0].decode()
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        scope = _scope("http", path, url.query, headers) | {"method": request.method}
        scope["path"] = url.path
        try:
            with self._scope:
                await self._net.app(scope, self._receive, self._send)
        finally:
            self._parts.close()
            self._begun.set()
            self.over.set()

    async def _receive(self) -> Any:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
            self._begun.set()
        elif message["type"] == "http.response.body":
            self._parts.send_nowait(message.get("body", b""))
            if not message.get("more_body"):
                self._parts.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        part = await anext(self._to_read)
        if self._net.loses(0.02):
            raise httpx.ReadError("cut")
        return part

    async def aclose(self) -> None:
        self._gone.set()
        self._scope.cancel()


class Transport(httpx.AsyncBaseTransport):
    def __init__(self, net: Net) -> None:
        self._net = net

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        net, body = self._net, await request.aread()
        await net.delay()
        if net.loses(0.05):
            raise httpx.ConnectError("nobody is there")
        exchange = Exchange(net, request, body)
        begun = False
        try:
            await exchange.begin()
            await net.delay()
            if net.loses(0.05) or not exchange.status:
                raise httpx.ReadError("the answer is lost")
            begun = True
        finally:
            if not begun:
                await exchange.aclose()
        return httpx.Response(exchange.status, headers=exchange.headers, stream=exchange)


class Socket:
    """The worker's end of a WebSocket, as trio-websocket has it."""

    count = 0

    def __init__(self, net: Net, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        Socket.count += 1
        self.number = Socket.count
        self._net = net
        self._asgi = _scope("websocket", path, b"", headers)
        self._up, self._to_hear = trio.open_memory_channel[Any](OUTBOX)
        self._down, self._to_read = trio.open_memory_channel[str](OUTBOX)
        self._opened = trio.Event()
        self._refused = 0
        self._closed = False
        self._reason: Any = None

    async def open(self) -> None:
        self._up.send_nowait({"type": "websocket.connect"})
        self._net.nursery.start_soon(self._run)
        await self._opened.wait()
        if self._refused:
            raise ConnectionRejected(self._refused, (), b"")
        self._net.sockets.add(self)

    async def _run(self) -> None:
        try:
            await self._net.app(self._asgi, self._to_hear.receive, self._send)
        finally:
            self._down.close()
            self._opened.set()
            self._end(None)

    async def _send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        match message["type"]:
            case "websocket.accept":
                self._opened.set()
            case "websocket.send" if not self._closed:
                self._down.send_nowait(message["text"])
            case "websocket.close":
                self._end(_Reason(message["code"], message.get("reason", "")))
            case "websocket.http.response.start":
                self._refused = message["status"]

    def _end(self, reason: Any, code: int = 1005) -> None:
        if not self._closed:
            self._closed, self._reason = True, reason
            self._net.sockets.discard(self)
            self._up.send_nowait({"type": "websocket.disconnect", "code": code})
            self._down.close()

    def cut(self) -> None:
        """End it without a word."""
        self._net.lost += 1
        self._end(None, 1006)

    async def get_message(self) -> str:
        try:
            return await self._to_read.receive()
        except trio.EndOfChannel:
            raise ConnectionClosed(self._reason) from None

    async def send_message(self, text: str) -> None:
        await self._net.delay()
        if self._closed:
            raise ConnectionClosed(self._reason)
        self._up.send_nowait({"type": "websocket.receive", "text": text})

    async def ping(self) -> None:
        await self._net.delay()
        if self._closed:
            raise ConnectionClosed(self._reason)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._end(None, 1000)


class _Reason:
    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
