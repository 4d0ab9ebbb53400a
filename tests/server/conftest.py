"""A small ASGI application, a running server and raw sockets to ill-treat it with."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from taskcast_trio.server.connection import (
    Connection,
    ConnectionContext,
    ConnectionFactory,
    GuardStats,
)
from taskcast_trio.server.guard import GuardedConnection
from taskcast_trio.server.http1 import Http1Connection
from taskcast_trio.server.serve import ServeOptions, serve

PATIENCE_S = 60.0


@dataclass
class ProbeApp:
    """Plain ASGI; `drain` ends its streams, `release` lets `/slow` answer."""

    drain: trio.Event = field(default_factory=trio.Event)
    release: trio.Event = field(default_factory=trio.Event)
    live: int = 0
    chunks: int = 0
    lifespan: list[str] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        self.live += 1
        try:
            if scope["type"] == "websocket":
                await self._websocket(scope["path"], receive, send)
            else:
                await self._http(scope["path"], receive, send)
        finally:
            self.live -= 1

    async def _lifespan(self, receive: Any, send: Any) -> None:
        for stage in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{stage}"
            self.lifespan.append(f"{stage} live={self.live}")
            await send({"type": f"lifespan.{stage}.complete"})

    async def _http(self, path: str, receive: Any, send: Any) -> None:
        async def answer(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
            length = (b"content-length", str(len(body)).encode())
            await start(status, length, *headers)
            await send({"type": "http.response.body", "body": body})

        async def start(status: int, *headers: tuple[bytes, bytes]) -> None:
            await send({"type": "http.response.start", "status": status, "headers": headers})

        async def chunk(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        match path:
            case "/echo":
                body = b""
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message["body"]
                    more = message["more_body"]
                await answer(200, body)
            case "/sse":
                await start(200, (b"content-type", b"text/event-stream"))
                await chunk(b": hello\n\n")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_on_disconnect, receive, nursery.cancel_scope)
                    await self.drain.wait()
                    nursery.cancel_scope.cancel()
                if self.drain.is_set():
                    await chunk(b": bye\n\n")
                    await send({"type": "http.response.body", "body": b""})
            case "/deaf":  # never learns of a disconnect
                await start(200)
                await chunk(b"x")
                await trio.sleep_forever()
            case "/big":
                await start(200)
                while True:
                    self.chunks += 1
                    await chunk(bytes(256 * 1024))
            case "/slow":
                await self.release.wait()
                await answer(200, b"slow")
            case "/early":
                await answer(413, b"too large")
            case "/crash":
                raise RuntimeError("secret payload")
            case "/crash-late":
                await start(200)
                await chunk(b"x")
                raise RuntimeError("secret payload")
            case _:
                await answer(200, b"ok")

    async def _end_on_disconnect(self, receive: Any, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _websocket(self, path: str, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if path == "/deaf":
            await trio.sleep_forever()
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})


@dataclass
class RawPeer:
    """The client's end of one connection."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    received: bytearray = field(default_factory=bytearray)

    @property
    def socket(self) -> trio.socket.SocketType:
        stream = self.stream
        return (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE_S):
            await self.stream.send_all(data)

    async def read_until(self, mark: bytes) -> bytes:
        """Read up to and including `mark`, and return what came before and with it."""
        with trio.fail_after(PATIENCE_S):
            while mark not in self.received:
                data = await self.stream.receive_some(65536)
                assert data, f"closed before {mark!r}: {bytes(self.received)!r}"
                self.received += data
        end = self.received.index(mark) + len(mark)
        taken = bytes(self.received[:end])
        del self.received[:end]
        return taken

    async def read_to_end(self) -> bytes:
        """Read until the server ends the connection, by FIN or RST."""
        with trio.fail_after(PATIENCE_S):
            try:
                while data := await self.stream.receive_some(65536):
                    self.received += data
            except trio.BrokenResourceError:
                pass
        taken = bytes(self.received)
        self.received.clear()
        return taken

    async def get(self, path: str = "/") -> bytes:
        """Send a GET and return the body, whose length the answer declares."""
        await self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return await self.read_answer()

    async def read_answer(self, status: int = 200) -> bytes:
        head = await self.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        with trio.fail_after(PATIENCE_S):
            while len(self.received) < length:
                self.received += await self.stream.receive_some(65536)
        body = bytes(self.received[:length])
        del self.received[:length]
        return body

    async def finish(self) -> None:
        """Send no more: FIN, or close_notify over TLS, which cannot be half-closed."""
        if isinstance(self.stream, trio.SSLStream):
            self.socket.shutdown(socket.SHUT_WR)
        else:
            await self.stream.send_eof()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@dataclass
class Running:
    """A served `ProbeApp`."""

    app: ProbeApp
    url: str
    drain: trio.Event
    stats: GuardStats
    finished: trio.Event
    client_tls: ssl.SSLContext | None
    logs: list[tuple[str, dict[str, Any]]]
    peers: list[trio.SocketStream] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def connect(self, receive_buffer: int | None = None, plain: bool = False) -> RawPeer:
        raw = trio.socket.socket()
        self.peers.append(trio.SocketStream(raw))
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await raw.connect(("127.0.0.1", self.port))
        stream = self.peers[-1]
        if self.client_tls is None or plain:
            return RawPeer(stream)
        secure = trio.SSLStream(stream, self.client_tls, server_hostname="localhost")
        await secure.do_handshake()
        return RawPeer(secure)

    def forget_peers(self) -> None:
        """Close the sockets of every client so far."""
        for peer in self.peers:
            peer.socket.close()
        self.peers.clear()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Poll `condition` without the clock; the server's own sockets move meanwhile."""
        with trio.fail_after(PATIENCE_S):
            while True:  # the server has no event for each of its moves
                if condition():
                    return
                await trio.lowlevel.checkpoint()

    async def assert_healthy(self) -> None:
        """A new connection is served."""
        peer = await self.connect()
        assert await peer.get() == b"ok"
        await peer.stream.aclose()


class Recorder:
    """Stands where a structlog logger would."""

    def __init__(self, lines: list[tuple[str, dict[str, Any]]]) -> None:
        self._lines = lines

    def _log(self, event: str, **fields: Any) -> None:
        json.dumps(fields)
        self._lines.append((event, fields))

    debug = info = warning = error = _log


Serving = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, trustme.CA]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    chain, key = folder / "chain.pem", folder / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(chain))
    issued.private_key_pem.write_to_path(str(key))
    return chain, key, authority


@pytest.fixture(params=[Http1Connection, GuardedConnection], ids=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> ConnectionFactory:
    """Both ways to speak HTTP/1.1: what one promises, the other does too."""
    factory: ConnectionFactory = request.param
    return factory


@pytest.fixture
def serving(certificate: tuple[Path, Path, trustme.CA], http: ConnectionFactory) -> Serving:
    """`async with serving(**ServeOptions fields) as running:`; drained and joined at the end."""

    @asynccontextmanager
    async def start(
        *,
        app: Any = None,
        tls: bool = False,
        alpn: str = "http/1.1",
        connection: ConnectionFactory = http,
        close_grace_s: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Running]:
        probe = ProbeApp() if app is None else app
        options = {"port": 0, "grace_s": 2.0, **options}
        client_tls = None
        if tls:
            chain, key, authority = certificate
            options |= {"certfile": str(chain), "keyfile": str(key)}
            client_tls = ssl.create_default_context()
            authority.configure_trust(client_tls)
            client_tls.set_alpn_protocols([alpn])

        def make(stream: Any, context: ConnectionContext) -> Connection:
            if close_grace_s is not None:
                limits = replace(context.limits, close_grace_s=close_grace_s)
                context = replace(context, limits=limits)
            return connection(stream, context)

        lines: list[tuple[str, dict[str, Any]]] = []
        stats, finished = GuardStats(), trio.Event()
        drain = probe.drain if isinstance(probe, ProbeApp) else trio.Event()

        async def run(**started: Any) -> None:
            await serve(
                probe,
                ServeOptions(**options),
                drain=drain,
                stats=stats,
                connection=make,
                logger=Recorder(lines),
                **started,
            )
            finished.set()

        async with trio.open_nursery() as nursery:
            urls = await nursery.start(run)
            running = Running(probe, urls[0], drain, stats, finished, client_tls, lines)
            try:
                yield running
                drain.set()
                with trio.fail_after(PATIENCE_S):
                    await finished.wait()
            finally:
                running.forget_peers()

    return start
