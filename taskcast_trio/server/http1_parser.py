"""HTTP/1.1 requests from bytes, on httptools (llhttp). Pure: bytes in, requests out, no I/O.

llhttp is strict about what frames a message (RFC 9112 sections 6.1 to 6.3): both Content-Length and
Transfer-Encoding, repeated or malformed lengths, folded headers and stray CR or LF are errors.
"""

from __future__ import annotations

from typing import Any, Final

import httptools

MAX_HEAD_BYTES: Final = 32 * 1024
_NO_EXPECT: Final = b""
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class ProtocolError(Exception):
    """A request that can't be answered in any other way than by ``status`` and a close."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Request:
    """One request: its head, and the parts of its body as they come."""

    __slots__ = (
        "body",
        "complete",
        "expects_continue",
        "headers",
        "keep_alive",
        "method",
        "target",
        "upgrade",
        "version",
    )

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.method = ""
        self.version = "1.1"
        self.keep_alive = True
        self.expects_continue = False
        self.upgrade = _NO_EXPECT
        """The protocol that an upgrade is asked to, in lower case; empty where none is."""
        self.body: list[bytes] = []
        self.complete = False

    def head(self) -> bytes:
        """The head as bytes again, for another parser."""
        lines = [b"%b %b HTTP/%b" % (self.method.encode(), self.target, self.version.encode())]
        lines += [b"%b: %b" % field for field in self.headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"


class RequestParser:
    """Feed it bytes; take requests, in order, from ``requests`` as soon as their head is there.

    After an error nothing more can be fed: ``error`` says what to answer behind the requests that
    came before it. A head, or a trailer, is at most ``max_head_bytes`` long.
    """

    __slots__ = (
        "_fields_bytes",
        "_has_host",
        "_head_bytes",
        "_head_limit",
        "_in_head",
        "_parser",
        "_request",
        "behind",
        "error",
        "requests",
    )

    def __init__(self, max_head_bytes: int = MAX_HEAD_BYTES) -> None:
        self.requests: list[Request] = []
        self.behind: bytes | None = None
        """What came behind a WebSocket handshake, which is the last request."""
        self.error: ProtocolError | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._request: Request | None = None
        self._head_limit = max_head_bytes
        self._head_bytes = 0
        """Fed since there was the last progress: a head or a part of a body."""
        self._fields_bytes = 0
        self._in_head = True
        self._has_host = False

    @property
    def in_head(self) -> bool:
        """Whether a request has begun whose head is not complete."""
        return self._in_head and (self._request is not None or self._head_bytes > 0)

    def rest(self) -> None:
        """Between two requests that share the connection, weigh little until something comes."""
        if self._request is None and self._head_bytes == 0:
            self._parser = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes off the connection."""
        if self.behind is not None:
            self.behind += data
        if self.behind is not None or self.error is not None or not data:
            return
        self._head_bytes += len(data)
        rest = data
        try:
            while rest:
                rest = self._parse(rest)
        except (httptools.HttpParserError, ProtocolError) as error:
            self._fail(error)
            return
        if self._head_bytes > self._head_limit:
            self._fail(_too_large())

    def _parse(self, data: bytes) -> bytes:
        """Parse up to an upgrade; what is behind it is returned.

        Upgrades but those to WebSocket are ignored, which leaves an ordinary request.
        """
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self.requests[-1].upgrade == b"websocket":
                self.behind = rest
                return b""
            self._parser = httptools.HttpRequestParser(self)
            self._expect_body(self.requests[-1])
            return rest
        return b""

    def _expect_body(self, request: Request) -> None:
        # llhttp takes what follows an upgrade for the other protocol, but the request's own body
        # comes first (RFC 9110, section 7.8); read as a request, it would be a smuggled one.
        for field in request.headers:
            if field[0] in _FRAMING:
                self._parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n%b: %b\r\n\r\n" % field)
                if not self.requests.pop().complete:
                    self._request, self._in_head, request.complete = request, False, False

    def _fail(self, error: Exception) -> None:
        cause = error.__context__ if isinstance(error.__context__, ProtocolError) else error
        if not isinstance(cause, ProtocolError):
            http2 = "PRI" in str(error)
            cause = ProtocolError(f"Malformed request: {error}", 505 if http2 else 400)
        self.error = cause

    # What httptools calls

    def on_message_begin(self) -> None:
        self._request = Request()
        self._in_head = True
        self._fields_bytes = 0
        self._has_host = False

    def on_url(self, url: bytes) -> None:
        if self._request is not None:
            self._request.target += url
            self._fields_bytes += len(url)
            if self._fields_bytes > self._head_limit:
                raise _too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        assert request is not None
        self._fields_bytes += len(name) + len(value)
        if self._fields_bytes > self._head_limit:  # however many pieces they came in
            raise _too_large()
        if self._in_head:  # else a trailer of a chunked body
            lower, value = name.lower(), value.rstrip(b" \t")
            request.headers.append((lower, value))
            if lower == b"expect":
                request.expects_continue = value.lower() == b"100-continue"
            elif lower == b"host":
                if self._has_host:
                    raise ProtocolError("A request has one Host")
                self._has_host = True
            elif lower == b"upgrade":
                request.upgrade = value.lower()
            elif lower == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise ProtocolError("Of the transfer codings only chunked is understood", 501)
                if self._parser.get_http_version() == "1.0":  # RFC 9112, section 6.1
                    raise ProtocolError("HTTP/1.0 has no transfer codings")

    def on_headers_complete(self) -> None:
        request = self._request
        assert request is not None
        request.method = self._parser.get_method().decode("ascii")
        request.version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        if request.version == "1.1":
            if not self._has_host:
                raise ProtocolError("A request of HTTP/1.1 needs a Host")
        elif request.version == "1.0":
            request.expects_continue = False  # RFC 9110, section 10.1.1
        else:
            raise ProtocolError("Only HTTP/1.0 and HTTP/1.1 are spoken here", 505)
        if not self._parser.should_upgrade():
            request.upgrade = _NO_EXPECT
        self._in_head = False
        self._head_bytes = 0
        self.requests.append(request)

    def on_body(self, body: bytes) -> None:
        if self._request is not None:
            self._request.body.append(body)
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        if self._request is not None:
            self._request.complete = True
        self._request = None
        self._in_head = True
        self._head_bytes = 0


def _too_large() -> ProtocolError:
    return ProtocolError("The request head is too large", 431)
