"""A server of a few lines that answers as scripted, and can break off at any byte."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import h11
import trio

from taskcast_trio.client import AsyncTaskcastClient

PATIENCE_S: Final = 10.0
RETRY_AT_ONCE: Final = b"retry: 0\n\n"


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def cursor(self) -> str | None:
        return self.headers.get("last-event-id")


class Peer:
    """One accepted connection, good for one request."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER)

    async def request(self) -> Request:
        head = await self._next()
        assert isinstance(head, h11.Request)
        body = b""
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Request(head.method.decode(), head.target.decode(), headers, body)

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some())
        return event

    async def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        """A whole answer; a body that is not bytes is sent as JSON."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        fields.append(("Connection", "close"))
        if status != 204:
            fields.append(("Content-Length", str(len(text))))
        await self._send(h11.Response(status_code=status, headers=fields))
        if text:
            await self._send(h11.Data(text))
        await self._send(h11.EndOfMessage())

    async def stream(self, *blocks: bytes) -> None:
        """Open an event stream, and send these blocks."""
        head = [("Content-Type", "text/event-stream; charset=utf-8")]
        await self._send(h11.Response(status_code=200, headers=head))
        await self.send(*blocks)

    async def send(self, *blocks: bytes) -> None:
        for block in blocks:
            await self._send(h11.Data(block))

    async def end(self) -> None:
        """End the stream in good order."""
        await self._send(h11.EndOfMessage())

    def reset(self) -> None:
        """Make the connection end with a RST when it is closed."""
        linger = struct.pack("ii", 1, 0)
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def closed(self) -> None:
        """Return when the client has closed."""
        with suppress(trio.BrokenResourceError):
            assert await self._stream.receive_some() == b""

    async def _send(self, event: Any) -> None:
        if (data := self._http.send(event)) is not None:
            await self._stream.send_all(data)


Handler = Callable[[Request, Peer], Awaitable[None]]
Script = list[Handler]
"""What to do with each connection, the first to the first, and the last to all others."""


@dataclass
class TinyServer:
    url: str
    script: Script
    requests: list[Request] = field(default_factory=list)

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection; what the handler leaves unsaid is cut off."""
        async with stream:
            peer = Peer(stream)
            request = await peer.request()
            handler = self.script[min(len(self.requests), len(self.script) - 1)]
            self.requests.append(request)
            await handler(request, peer)


@asynccontextmanager
async def serve(*script: Handler) -> AsyncIterator[TinyServer]:
    """A running server on a free port, for at most 10 s."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            server = TinyServer(f"http://127.0.0.1:{port}", list(script))
            await nursery.start(trio.serve_listeners, server.handle, listeners)
            yield server
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(*script: Handler) -> AsyncIterator[tuple[TinyServer, AsyncTaskcastClient]]:
    """A running server and a client of it."""
    async with serve(*script) as server, AsyncTaskcastClient(server.url) as client:
        yield server, client


def answering(status: int, body: Any = b"", **headers: str) -> Handler:
    """A handler that gives this one answer."""

    async def handler(request: Request, peer: Peer) -> None:
        await peer.answer(status, body, **headers)

    return handler


def streaming(*blocks: bytes, cut: bool = False) -> Handler:
    """A handler that sends these blocks of an event stream, and ends it or cuts it off."""

    async def handler(request: Request, peer: Peer) -> None:
        await peer.stream(RETRY_AT_ONCE, *blocks)
        if not cut:
            await peer.end()

    return handler


def event_id(index: int, epoch: str = "A") -> str:
    return f"{epoch}-{index}"


def envelope(index: int, *, epoch: str = "A", **fields: Any) -> bytes:
    """The frame of the event at ``index``."""
    shape = {
        "filteredIndex": index,
        "rawIndex": index,
        "eventId": event_id(index, epoch),
        "taskId": "t",
        "type": "note",
        "timestamp": 1,
        "level": "info",
        **fields,
    }
    lines = ["event: taskcast.event", f"data: {json.dumps(shape)}", f"id: {shape['eventId']}"]
    return ("\n".join(lines) + "\n\n").encode()


def gap(replayed_from: int = 0, reason: str = "unknown_cursor") -> bytes:
    data = json.dumps({"reason": reason, "replayedFrom": replayed_from})
    return f"event: taskcast.gap\ndata: {data}\n\n".encode()


def done(reason: str = "completed") -> bytes:
    return f'event: taskcast.done\ndata: {{"reason":"{reason}"}}\n\n'.encode()
