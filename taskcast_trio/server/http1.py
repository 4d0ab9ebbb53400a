"""HTTP/1.1 connections on httptools, served by one task each.

The application runs inside the connection's own task, and its ``receive`` reads the socket: that is
how a disconnect is seen while it streams, without a second task. Sockets are read and written
directly where that needs no waiting. WebSocket upgrades, and HTTP/2 over TLS, go on in a
`GuardedConnection`, with the bytes read so far.
"""

from __future__ import annotations

import math

import msgspec
import trio
from hypercorn.utils import parse_socket_addr

from taskcast_trio.server.connection import ConnectionContext, SocketStream
from taskcast_trio.server.exchange import Exchange, Inbox
from taskcast_trio.server.guard import GuardedConnection
from taskcast_trio.server.heads import head
from taskcast_trio.server.http1_parser import ProtocolError, Request
from taskcast_trio.server.wire import Disconnected, TlsWire, Wire


class Http1Connection:
    """One connection. `run` lets exceptions out; containing them is the server's part.

    Reading: a request head, a pause within a body and an idle wait each have a limit. Writing: see
    `Wire`. A request is answered before the next one is looked at; input is read ahead by at most
    64 KiB.
    """

    __slots__ = ("_context", "_guarded", "_idle_since", "_limits", "_scope", "_stream", "_wire")

    def __init__(self, stream: SocketStream, context: ConnectionContext) -> None:
        self._context = context
        self._limits = context.limits
        self._stream: SocketStream | None = stream
        """Until it is a wire, or another's."""
        self._wire: Wire | TlsWire | None = None
        self._guarded: GuardedConnection | None = None
        self._scope = trio.CancelScope()
        """All of it; its deadline is that of a request's head, while one is awaited."""
        self._idle_since = trio.current_time()
        """Since when it waits for a request; infinite while it answers one."""

    async def run(self) -> None:
        """Serve until either side closes. Cancelling it cuts; the stream is closed in any case."""
        try:
            with self._scope:
                await self._begin()
                if self._wire is not None:
                    await self._serve(self._wire)
                if self._wire is not None:
                    await self._wire.finish()
        finally:
            if self._guarded is None and self._wire is not None:
                self._wire.close()

    async def _begin(self) -> None:
        stream = self._stream
        assert stream is not None
        if not isinstance(stream, trio.SSLStream):
            self._wire, self._stream = Wire(stream, self._limits.write_timeout_s), None
            return
        try:
            with trio.fail_after(self._limits.handshake_timeout_s):
                await stream.do_handshake()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            return
        if stream.selected_alpn_protocol() == "h2":
            await self._hand_over(stream, b"")
        else:
            self._wire, self._stream = TlsWire(stream, self._limits.write_timeout_s), None

    async def _serve(self, wire: Wire | TlsWire) -> None:
        family = wire.raw.family
        try:
            client = parse_socket_addr(family, wire.raw.getpeername())
            server = parse_socket_addr(family, wire.raw.getsockname())
        except OSError:
            return
        inbox = Inbox(wire, self._limits.max_head_bytes)
        try:
            deadline = trio.current_time() + self._limits.header_timeout_s
            while (request := await self._next(inbox, deadline)) is not None:
                deadline = math.inf
                if request.upgrade == b"websocket":
                    self._wire = None
                    begun = request.head() + (inbox.parser.behind or b"")
                    await self._hand_over(wire.release(), begun)
                    return
                exchange = Exchange(self._context, inbox, request, self._scope, client, server)
                await exchange.run()
                if exchange.refused is not None:
                    await self._refuse(wire, exchange.refused)
                    return
                if not exchange.keep_alive:
                    unread = not request.complete or bool(inbox.parser.requests)
                    await self._leave(wire, unread=unread)
                    return
                if not inbox.parser.requests:
                    inbox.ahead_bytes = 0
        except Disconnected:
            return

    async def _next(self, inbox: Inbox, head_deadline: float) -> Request | None:
        """The next request; None where the connection is to be closed."""
        parser = inbox.parser
        self._idle_since = trio.current_time()
        while not parser.requests:
            if parser.error is not None:
                await self._refuse(inbox.wire, parser.error)
                return None
            if inbox.ended or (self._context.draining and not parser.in_head):
                return None
            if parser.in_head and head_deadline == math.inf:
                head_deadline = trio.current_time() + self._limits.header_timeout_s
            if head_deadline != math.inf:
                self._scope.deadline = head_deadline
            await inbox.read()
        self._idle_since = math.inf
        if head_deadline != math.inf:
            self._scope.deadline = math.inf
        request = parser.requests.pop(0)
        if parser.error is not None and not request.complete:
            await self._refuse(inbox.wire, parser.error)
            return None
        return request

    async def _refuse(self, wire: Wire | TlsWire, error: ProtocolError) -> None:
        body = msgspec.json.encode({"error": str(error), "code": "bad_request"})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await wire.write(head(error.status, headers) + b"\r\n" + body)
        await self._leave(wire, unread=True)

    async def _leave(self, wire: Wire | TlsWire, *, unread: bool) -> None:
        """Where input is unread, discard it for a moment: a reset would eat the answer.

        RFC 9112, section 9.6.
        """
        if not unread:
            return
        await wire.end()
        with trio.move_on_after(self._limits.close_grace_s):
            while await wire.read():
                pass

    async def _hand_over(self, stream: SocketStream, begun: bytes) -> None:
        self._idle_since = math.inf
        self._guarded = GuardedConnection(stream, self._context, begun=begun)
        await self._guarded.run()

    def begin_drain(self) -> None:
        if self._guarded is not None:
            self._guarded.begin_drain()
        elif self._idle_since != math.inf:
            self._scope.cancel()

    def end_if_idle(self, now: float) -> float:
        due = self._idle_since + self._limits.keep_alive_timeout_s
        if due <= now:
            self._scope.cancel()
        return due

    def abort(self) -> None:
        self._scope.cancel()
        if self._guarded is not None:
            self._guarded.abort()
        elif self._wire is not None:
            self._wire.abort()
        elif self._stream is not None:
            stream = self._stream
            transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
            transport.socket.close()
