"""One structured log line per request, and the request id that ties a request's lines together."""

from __future__ import annotations

import re
from functools import lru_cache
from random import getrandbits
from time import monotonic
from typing import Any, Final

from taskcast_trio.logs import request_fields
from taskcast_trio.server.target import ASGIApp, Message, Receive, Scope, Send, origin_form

MAX_LOGGED_PATH: Final = 512
MAX_REMEMBERED: Final = 256
"""Longer paths are described anew each time: remembering them would be the caller's to fill."""
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_UNSAFE: Final = re.compile(rb"[^\x21-\x7e]")
_TASK: Final = re.compile(r"/tasks/(?!(?:import|cleanup)$)([^/]+)")


def request_id_of(scope: Scope) -> str:
    """Return the `X-Request-Id` of a request if it is a plain token, else a new random id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{getrandbits(128):032x}"


def loggable_path(scope: Scope) -> str:
    """Return the percent-encoded path of a request as one harmless, bounded line of ASCII.

    It never holds the query, nor the authority of an absolute-form target, which may carry
    credentials; whatever is not visible ASCII is percent-encoded.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogatepass")
    path = origin_form(raw)[0][:MAX_LOGGED_PATH]
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], path)[:MAX_LOGGED_PATH].decode()


def _described(scope: Scope) -> tuple[str, str | None]:
    """The path as it is logged, and the task that it names."""
    raw = scope.get("raw_path")
    if raw is not None and len(raw) <= MAX_REMEMBERED:
        return _described_path(raw)
    path = loggable_path(scope)
    found = _TASK.search(path)
    return path, found and found[1]


@lru_cache(maxsize=1024)
def _described_path(raw: bytes) -> tuple[str, str | None]:
    path = loggable_path({"raw_path": raw})
    found = _TASK.search(path)
    return path, found and found[1]


class AccessLog:
    """ASGI middleware that logs each request once, when it has ended, and binds its ids.

    Fields: `method`, `path`, `status` (None if the request ended without a response),
    `duration_ms`, `bytes` (of body, before transfer coding), `client`, `request_id`, and `task_id`
    (percent-encoded, as in the path) on the routes of a task. A stream is logged at its end.
    `/health*` and `/metrics` are logged at debug level, the rest at info level. Both ids are on
    every log line written while the application runs.

    Exceptions and cancellation pass through; the line is written all the same.

    Args:
        app: the ASGI application to wrap.
        logger: a structlog logger.
    """

    def __init__(self, app: ASGIApp, logger: Any) -> None:
        self._app = app
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        status: int | None = None
        sent_bytes = 0

        async def observe(message: Message) -> None:
            nonlocal status, sent_bytes
            await send(message)
            match message["type"]:
                case "taskcast.answer":
                    status, sent_bytes = message["status"], len(message["body"])
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                case "http.response.body" | "websocket.http.response.body":
                    sent_bytes += len(message.get("body", b""))
                case "websocket.accept":
                    status = 101
                case "websocket.send":
                    sent_bytes += len(message.get("bytes") or message.get("text") or b"")

        link = (scope.get("extensions") or {}).get("taskcast.link")
        path, task_id = _described(scope)
        about = {"request_id": request_id_of(scope)}
        if task_id is not None:
            about["task_id"] = task_id
        started = monotonic()
        bound = request_fields.set(about)
        try:
            await self._app(scope, receive, observe)
        except Exception:
            status = status or 500  # what the server answers when nothing was sent
            raise
        finally:
            request_fields.reset(bound)
            log = self._logger.debug if _is_probe(scope, path) else self._logger.info
            log(
                "request",
                method=scope.get("method", "WEBSOCKET"),
                path=path,
                status=status,
                duration_ms=round((monotonic() - started) * 1000, 3),
                bytes=sent_bytes + (link.pushed_bytes if link is not None else 0),
                client=(scope.get("client") or (None,))[0],
                **about,
            )


def _is_probe(scope: Scope, path: str) -> bool:
    inner = path.removeprefix(scope.get("root_path", ""))
    return inner in ("/health", "/metrics") or inner.startswith("/health/")
