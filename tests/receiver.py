"""A receiver of webhooks that answers as scripted, byte for byte, and keeps what it was sent.

Every connection is served until the receiver or the sender ends it; requests are read by hand, so
that what a test sees is what was on the wire.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpcore
import trio
from trio.testing import lockstep_stream_pair

PATIENCE_S: Final = 20.0


@dataclass(frozen=True)
class Received:
    """One request: its head as it was on the wire, and its body."""

    head: bytes
    body: bytes
    connection: int

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("ascii")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The headers in order, names as they were spelled."""
        lines = self.head.decode("ascii").rstrip("\r\n").split("\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (one.partition(":") for one in lines)]

    @property
    def headers(self) -> dict[str, str]:
        """The headers by their names in small letters."""
        return {name.lower(): value for name, value in self.fields}


class Wire:
    """The receiver's side of one connection, for a script."""

    def __init__(self, stream: trio.abc.Stream, transport: trio.abc.Stream) -> None:
        self._stream = stream
        self._transport = transport

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer that leaves the connection open."""
        lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def reset(self) -> None:
        """Make the connection end with a RST when the script returns False."""
        assert isinstance(self._transport, trio.SocketStream)
        self._transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def closed(self) -> None:
        """Return when the sender has closed."""
        with suppress(trio.BrokenResourceError):
            while await self._stream.receive_some():
                pass


Script = Callable[[Received, Wire], Awaitable[bool | None]]
"""Answers one request; False: the connection ends here."""


@dataclass
class Receiver:
    scripts: list[Script]
    port: int = 80
    scheme: str = "http"
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    """Accepted so far."""
    open: int = 0
    most_open: int = 0

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def serve(self, stream: trio.abc.Stream, tls: ssl.SSLContext | None = None) -> None:
        self.connections += 1
        number = self.connections
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        whole = stream
        if tls is not None:
            whole = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            async with whole:
                with suppress(trio.BrokenResourceError):
                    wire = Wire(whole, stream)
                    while request := await self._read(whole, number):
                        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
                        self.requests.append(request)
                        if await script(request, wire) is False:
                            return
        finally:
            self.open -= 1

    async def _read(self, stream: trio.abc.Stream, number: int) -> Received | None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await stream.receive_some()):
                return None
            data += more
        head, body = data.split(b"\r\n\r\n", 1)
        request = Received(head + b"\r\n\r\n", b"", number)
        length = int(request.headers.get("content-length", "0"))
        while len(body) < length:
            if not (more := await stream.receive_some()):
                return None
            body += more
        return Received(request.head, body, number)


@asynccontextmanager
async def receiving(
    *scripts: Script,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    patience_s: float = PATIENCE_S,
) -> AsyncIterator[Receiver]:
    """A receiver on a free port, for at most ``patience_s``.

    The first script answers the first request, and the last one all that come after.
    """
    with trio.fail_after(patience_s):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host=host)
            port = listeners[0].socket.getsockname()[1]
            scheme = "http" if tls is None else "https"
            receiver = Receiver(list(scripts) or [answering(204)], port, scheme)

            async def serve(stream: trio.SocketStream) -> None:
                await receiver.serve(stream, tls)

            await nursery.start(trio.serve_listeners, serve, listeners)
            yield receiver
            nursery.cancel_scope.cancel()


class MemoryNetwork(httpcore.AsyncNetworkBackend):
    """A network without sockets, for the autojump clock: each address has a receiver, or nobody."""

    def __init__(self, nursery: trio.Nursery, receivers: Mapping[str, Receiver]) -> None:
        self._nursery = nursery
        self._receivers = receivers
        self.dialled: list[str] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        await trio.lowlevel.checkpoint()
        self.dialled.append(host)
        if (receiver := self._receivers.get(host)) is None:
            raise httpcore.ConnectError
        ours, theirs = lockstep_stream_pair()
        self._nursery.start_soon(receiver.serve, theirs)
        return MemoryConnection(ours)


class MemoryConnection(httpcore.AsyncNetworkStream):
    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            await self._stream.send_all(buffer)
        except trio.BrokenResourceError:
            raise httpcore.WriteError from None

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return None


def answering(status: int, body: bytes = b"", **headers: str) -> Script:
    """Give this answer, and keep the connection."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.answer(status, body, **headers)

    return script


def saying(*pieces: bytes, reset: bool = False) -> Script:
    """Send these bytes, whatever they are, and end the connection."""

    async def script(_: Received, wire: Wire) -> bool:
        for piece in pieces:
            await wire.send(piece)
        if reset:
            wire.reset()
        return False

    return script


def pouring(start: bytes, piece: bytes, every_s: float = 0) -> Script:
    """Send a start, and then the same piece until the sender has had enough."""

    async def script(_: Received, wire: Wire) -> bool:
        await wire.send(start)
        while True:
            await trio.sleep(every_s)
            await wire.send(piece)

    return script


async def hanging(_: Received, wire: Wire) -> bool:
    """Say nothing until the sender leaves."""
    await wire.closed()
    return False
