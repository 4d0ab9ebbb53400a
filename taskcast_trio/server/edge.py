"""What holds for every answer, whichever part of the application gives it.

Requests are counted, new work is refused while the server drains, and CORS (Fetch standard, section
3.2) is spoken as configured.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from prometheus_client import Counter

from taskcast_trio.config.schema import Cors
from taskcast_trio.core.errors import Draining
from taskcast_trio.engine import Runtime
from taskcast_trio.server.plain import Answer, Headers, error_answer, field_of
from taskcast_trio.server.target import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    local_path,
)

_OPENINGS: Final = ("taskcast.answer", "http.response.start")
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
CORS_METHODS: Final = b"GET, HEAD, POST, PATCH, DELETE"
EXPOSED: Final = b"Retry-After, Taskcast-Keepalive, Taskcast-Status"
MAX_AGE_S: Final = b"600"


class CorsRules:
    """Which origins may read answers, and what they are told."""

    def __init__(self, cors: Cors) -> None:
        self._origins = frozenset(origin.encode() for origin in cors.origins)
        self._any = b"*" in self._origins
        self._credentials = cors.credentials
        self._headers = ", ".join(cors.headers).encode()

    def __bool__(self) -> bool:
        return bool(self._origins)

    def marks(self, origin: bytes | None) -> Headers:
        """The header fields for an answer to ``origin``."""
        marks: Headers = [(b"vary", b"Origin")]
        if origin is None or not (self._any or origin in self._origins):
            return marks
        allowed = b"*" if self._any and not self._credentials else origin
        marks.append((b"access-control-allow-origin", allowed))
        marks.append((b"access-control-expose-headers", EXPOSED))
        if self._credentials:
            marks.append((b"access-control-allow-credentials", b"true"))
        return marks

    def preflight(self, scope: Scope) -> Headers | None:
        """What a preflight from an allowed origin is answered; None where ``scope`` is none."""
        if scope["method"] != "OPTIONS":
            return None
        if field_of(scope, b"access-control-request-method") is None:
            return None
        if len(self.marks(field_of(scope, b"origin"))) == 1:
            return None
        return [
            (b"access-control-allow-methods", CORS_METHODS),
            (b"access-control-allow-headers", self._headers),
            (b"access-control-max-age", MAX_AGE_S),
        ]


class Edge:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._drain = runtime.drain
        self._cors = CorsRules(runtime.config.cors)
        self._requests = runtime.metrics.requests
        self._counters: dict[tuple[str, int], Counter] = {}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        marks = self._cors.marks(field_of(scope, b"origin")) if self._cors else None

        def mark(message: Message) -> Awaitable[None]:
            if message["type"] in _OPENINGS:
                self._count(scope["method"], message["status"])
                if marks:
                    message["headers"] = [*message.get("headers", ()), *marks]
            return send(message)

        if self._cors and (preflight := self._cors.preflight(scope)) is not None:
            return Answer(204, headers=preflight).send(scope, mark)
        if self._drain.is_set() and not local_path(scope).startswith("/health"):
            return error_answer(Draining("The server is shutting down: try again")).send(
                scope, mark
            )
        return self._app(scope, receive, mark)

    def _count(self, method: str, status: int) -> None:
        key = (method if method in METHODS else "other", status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(key[0], str(status))
        counter.inc()
