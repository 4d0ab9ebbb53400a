"""One request and its answer, as an ASGI application sees them (ASGI HTTP specification 2.4)."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

import trio

from taskcast_trio.server.connection import ConnectionContext, contained
from taskcast_trio.server.heads import Date, encode_fields, status_line
from taskcast_trio.server.http1_parser import ProtocolError, Request, RequestParser
from taskcast_trio.server.target import Message
from taskcast_trio.server.wire import Disconnected, SlowWriter, TlsWire, Wire

READ_AHEAD: Final = 64 * 1024

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS: Final = (204, 304)
_ASGI: Final = {"version": "3.0", "spec_version": "2.4"}
_ANSWERS: Final[dict[str, Any]] = {}
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


class Inbox:
    """What comes from the peer: feeds the parser, and remembers the end."""

    __slots__ = ("ahead_bytes", "ended", "parser", "wire")

    def __init__(self, wire: Wire | TlsWire, max_head_bytes: int) -> None:
        self.wire = wire
        self.parser = RequestParser(max_head_bytes)
        self.ahead_bytes = 0
        """How much came while a request was answered."""
        self.ended = False

    async def read(self) -> None:
        """Take what comes next. Cancellation loses nothing."""
        self.feed(await self.wire.read())

    def feed(self, data: bytes) -> None:
        """Take what was read; b"" is the end."""
        if not data:
            self.ended = True
            return
        self.ahead_bytes += len(data)
        self.parser.feed(data)

    @property
    def full(self) -> bool:
        """Whether as much has been read ahead as may be."""
        return self.ahead_bytes >= READ_AHEAD


class Exchange:
    """Runs the application for one request; then ``keep_alive`` says whether another may come."""

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_client",
        "_complete",
        "_context",
        "_inbox",
        "_left",
        "_linked",
        "_lost",
        "_over",
        "_receiving",
        "_request",
        "_scope",
        "_server",
        "_start",
        "_started",
        "_told_end",
        "_unsent",
        "_unwatched",
        "_waiting",
        "_watch",
        "_wire",
        "keep_alive",
        "pushed_bytes",
        "refused",
    )

    def __init__(
        self,
        context: ConnectionContext,
        inbox: Inbox,
        request: Request,
        scope: trio.CancelScope,
        client: Any,
        server: Any,
    ) -> None:
        """``scope`` is the connection's: it ends where the peer is lost or stays gone."""
        self._scope = scope
        self._context = context
        self._inbox = inbox
        self._wire = inbox.wire
        self._request = request
        self._client = client
        self._server = server
        self._over = False
        """The answer is complete, or the peer has gone."""
        self._complete = False
        self._receiving = False
        self._watch: trio.CancelScope | None = None
        self._waiting: trio.Event | None = None
        """Set when it is over: rarely waited for, so made then."""
        self._unwatched: trio.Event | None = None
        self._told_end = False
        self._start: Message | None = None
        self._started = False
        self._chunked = False
        self._bodiless = False
        self._left: int | None = None
        """Of a body whose length was declared; any other length would spoil the next answer."""
        self._linked = False
        self._unsent = b""
        self.pushed_bytes = 0
        self.keep_alive = request.keep_alive
        self.refused: ProtocolError | None = None
        """What is wrong with the request's body; nothing has been answered yet."""
        self._lost: Disconnected | None = None

    async def run(self) -> None:
        """Serve the request.

        Raises:
            Disconnected: the peer has gone, or was cut; the application has been cancelled.
        """
        request, context = self._request, self._context
        raw_path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": request.version,
            "method": request.method,
            "scheme": "https" if self._wire.secure else "http",
            "path": unquote(raw_path.decode("latin-1")),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": self._client,
            "server": self._server,
            "state": context.state.copy(),
            "extensions": {"taskcast.answer": _ANSWERS, "taskcast.link": self},
        }
        try:
            await context.app(scope, self._receive, self._send)
        except Exception as error:
            self._crashed(error)
        finally:
            if self._watch is not None:
                self._watch.cancel()
        if self._unwatched is not None:
            await self._unwatched.wait()
        if self._lost is not None:
            raise self._lost
        if self._complete:
            self.refused = None
            self.keep_alive = self.keep_alive and request.complete
        elif self._started or self._inbox.ended:
            raise Disconnected  # of half an answer only a cut tells the peer
        elif self.refused is None:
            self.refused = ProtocolError("Internal server error", 500)

    def _crashed(self, error: BaseException) -> None:
        self._context.stats.app_errors_total += 1
        self._context.log.error("application failed", error)

    async def _receive(self) -> Message:
        self._receiving = True
        try:
            return await self._next_message()
        finally:
            self._receiving = False

    async def _next_message(self) -> Message:
        request, inbox = self._request, self._inbox
        while not request.body and not request.complete:
            if inbox.parser.error is not None:
                self.refused = inbox.parser.error
                return _DISCONNECT
            if inbox.ended:
                return _DISCONNECT
            if request.expects_continue and not self._started:
                request.expects_continue = False
                await self._write(_CONTINUE)
            inbox.ahead_bytes = 0
            if self._watch is not None and self._unwatched is not None:  # two can't read
                self._watch.cancel()
                await self._unwatched.wait()
                self._watch = self._unwatched = None
            with trio.move_on_after(self._context.limits.body_pause_s) as patience:
                await inbox.read()
            if patience.cancelled_caught:
                self.refused = ProtocolError("The body did not come in time", 408)
                return _DISCONNECT
        if request.body or not self._told_end:
            body = b"".join(request.body)
            request.body.clear()
            self._told_end = request.complete
            return {"type": "http.request", "body": body, "more_body": not request.complete}
        if self._watch is None:
            await self.closed()
        else:
            await self._wait_until_over()
        return _DISCONNECT

    async def closed(self) -> None:
        """Wait for the peer to leave; the application then has a moment to end by itself."""
        inbox = self._inbox
        while not inbox.ended and not inbox.full:
            inbox.feed(await inbox.wire.read())  # not `read`: a frame less for each idle stream
        if inbox.ended:
            self._scope.deadline = trio.current_time() + self._context.limits.close_grace_s
            self._end()
        await self._wait_until_over()

    def _end(self) -> None:
        self._over = True
        if self._waiting is not None:
            self._waiting.set()

    async def _wait_until_over(self) -> None:
        if not self._over:
            if self._waiting is None:
                self._waiting = trio.Event()
            await self._waiting.wait()

    async def _listen_beside(self, watch: trio.CancelScope, unwatched: trio.Event) -> None:
        with contained(self._crashed), watch:
            await self.closed()
        unwatched.set()

    async def _send(self, message: Message) -> None:
        match message["type"]:
            case "taskcast.answer":
                self._start = message
                await self._write(self._frame(message["body"], more=False))
                self._complete = True
                self._end()
            case "http.response.start" if not self._started:
                self._start = message
            case "http.response.body" if self._start is not None or self._started > self._complete:
                body = message.get("body", b"")
                more = message.get("more_body", False)
                await self._write(self._frame(body, more=more))
                if not more:
                    self._complete = True
                    self._end()
                elif self._watch is None and not self._receiving and not self._linked:
                    self._watch = trio.CancelScope()
                    self._unwatched = trio.Event()
                    self._context.spawn(self._listen_beside, self._watch, self._unwatched)
            case kind:
                raise RuntimeError(f"{kind} is out of place")

    def _frame(self, body: bytes, *, more: bool) -> bytes:
        opening = b""
        if self._start is not None:
            opening, self._start = self._head(self._start, body, more), None
        if self._bodiless:
            return opening
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the body is not as long as its head says")
        if not self._chunked:
            return opening + body
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return opening + chunk + (b"" if more else b"0\r\n\r\n")

    def _head(self, start: Message, body: bytes, more: bool) -> bytes:
        status: int = start["status"]
        fields = encode_fields(tuple(map(tuple, start.get("headers", ()))), status in _BODILESS)
        parts = [
            status_line(status),
            Date.now(),
            fields.text,
        ]
        head_only = self._request.method == "HEAD"
        self._bodiless = head_only or status in _BODILESS
        self._left = None if self._bodiless else fields.length
        if fields.length is None and not self._bodiless:
            if not more:
                parts.append(b"content-length: %d\r\n" % len(body))
            elif self._request.version == "1.1":
                self._chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if self._context.draining or not self._request.complete or fields.closes:
            self.keep_alive = False
        if not self.keep_alive:
            if not fields.closes:
                parts.append(b"connection: close\r\n")
        elif self._request.version == "1.0":
            parts.append(b"connection: keep-alive\r\n")
        self._started = True
        parts.append(b"\r\n")
        return b"".join(parts)

    def rest_of_body(self) -> bytes | None:
        """What is left of the body, in place of receiving it; None where some has yet to come."""
        request = self._request
        if not request.complete or self._told_end:
            return None
        self._told_end = True
        body = b"".join(request.body)
        request.body.clear()
        return body

    # The link that a stream may take (see sse.Link)

    def take(self) -> None:
        self._linked = True
        if self.keep_alive:
            self._inbox.parser.rest()

    def push(self, body: bytes) -> bool:
        framed = self._frame(body, more=True)
        self.pushed_bytes += len(body)
        if self._unsent or self._lost is not None:
            self._unsent += framed
            return False
        self._unsent = framed[self._wire.write_nowait(framed) :]
        return not self._unsent

    async def _write(self, data: bytes) -> None:
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        if self._lost is None and data:
            try:
                await self._wire.write(data)
                return
            except SlowWriter as error:
                self._context.stats.write_timeouts_total += 1
                self._lose(error)
            except Disconnected as error:
                self._lose(error)
        await trio.lowlevel.checkpoint()

    def _lose(self, error: Disconnected) -> None:
        """Nobody listens any more: the application ends by cancellation."""
        self._lost = error
        self._wire.abort()
        self._scope.cancel()
