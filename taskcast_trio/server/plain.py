"""Answers of plain ASGI, for what stands in front of Quart."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.server.target import Scope, Send

Headers: TypeAlias = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
RETRY_AFTER: Final = (b"retry-after", b"1")


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


def json_answer(status: int, text: bytes) -> Answer:
    return Answer(status, text, [JSON])


def error_answer(raised: TaskcastError) -> Answer:
    """The one shape of errors."""
    text = msgspec.json.encode({"error": str(raised), "code": raised.code})
    return Answer(raised.status, text, [JSON, RETRY_AFTER] if raised.wait else [JSON])


def field_of(scope: Scope, name: bytes) -> bytes | None:
    """The first header field of this (lower-case) name."""
    for each, value in scope["headers"]:
        if each == name:
            found: bytes = value
            return found
    return None
