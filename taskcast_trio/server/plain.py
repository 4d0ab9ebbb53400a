"""Answers of plain ASGI, for what stands in front of Quart."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from taskcast_trio.core.errors import RateLimited, TaskcastError
from taskcast_trio.server.target import Receive, Scope, Send

Headers: TypeAlias = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
BEARER: Final = (b"www-authenticate", b"Bearer")
RETRY_AFTER: Final = (b"retry-after", b"1")


POLICY_VIOLATION: Final = 1008
"""Close code of RFC 6455, section 7.4.1."""


class Answer(Struct, frozen=True):
    """A whole answer."""

    status: int
    body: bytes = b""
    headers: Headers = []

    async def send(self, scope: Scope, send: Send) -> None:
        """Send it: as one message to a server of ours, which costs half of the usual two."""
        headers = self.headers
        if "taskcast.answer" in scope.get("extensions", ()):
            await send(
                {
                    "type": "taskcast.answer",
                    "status": self.status,
                    "headers": headers,
                    "body": self.body,
                }
            )
            return
        if self.status != HTTPStatus.NO_CONTENT:
            headers = [*headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: TaskcastError) -> None:
    """Answer a request, or a WebSocket handshake, with an error."""
    answer = error_answer(refusal)
    if scope["type"] == "http":
        await answer.send(scope, send)
        return
    await receive()  # websocket.connect
    await refuse_handshake(scope, send, answer)


async def refuse_handshake(scope: Scope, send: Send, answer: Answer) -> None:
    """Answer a WebSocket handshake whose ``websocket.connect`` was received."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        reason = msgspec.json.decode(answer.body)["error"]
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
        return
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    if not is_http2(scope):  # the server closes, and a pool of connections has to know
        headers.append((b"connection", b"close"))
    start = {"status": answer.status, "headers": headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": answer.body})


def is_http2(scope: Scope) -> bool:
    """Whether fields about the connection can't be sent (RFC 9113, section 8.2.2)."""
    version: str = scope["http_version"]
    return version.startswith("2")


def json_answer(status: int, text: bytes) -> Answer:
    return Answer(status, text, [JSON])


def error_answer(raised: TaskcastError) -> Answer:
    """The one shape of errors."""
    text = msgspec.json.encode({"error": str(raised), "code": raised.code, **raised.facts})
    if raised.status == HTTPStatus.UNAUTHORIZED:  # RFC 9110, section 15.5.2
        return Answer(raised.status, text, [JSON, BEARER])
    return Answer(raised.status, text, [JSON, _retry_after(raised)] if raised.wait else [JSON])


def _retry_after(raised: TaskcastError) -> tuple[bytes, bytes]:
    """Whole seconds, at least 1 (RFC 9110, section 10.2.3)."""
    if isinstance(raised, RateLimited) and raised.retry_after_s is not None:
        return (RETRY_AFTER[0], b"%d" % max(1, raised.retry_after_s))
    return RETRY_AFTER


def field_of(scope: Scope, name: bytes) -> bytes | None:
    """The first header field of this (lower-case) name."""
    for each, value in scope["headers"]:
        if each == name:
            found: bytes = value
            return found
    return None
