"""Reading requests: bodies, queries and the headers that routes look at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final, cast

from quart import Response, request
from quart_trio.wrappers import TrioRequest

from taskcast_trio.config.schema import Limits
from taskcast_trio.core.access import Caller
from taskcast_trio.core.errors import TaskNotFound
from taskcast_trio.engine import TaskEngine

from .auth import permit
from .auth.gate import caller_of, limit_key, recheck
from .bodies import parse_body
from .query import Query
from .target import Scope, local_path

IMPORT_TIMEOUT_S: Final = 600
"""For 64 MiB over a slow line: about 1 Mbit/s."""


def request_class(limits: Limits) -> type[TrioRequest]:
    """A request whose body limit depends on its route: an import may be larger."""

    class LimitedRequest(TrioRequest):
        def __init__(self, *args: Any, scope: Scope, **options: Any) -> None:
            options["max_content_length"] = limits.body_bytes
            is_import = local_path(scope) == "/tasks/import"
            if is_import and caller_of(scope).has("task:manage"):
                options["max_content_length"] = limits.import_bytes
                options["body_timeout"] = max(options.get("body_timeout") or 0, IMPORT_TIMEOUT_S)
            super().__init__(*args, **{**options, "scope": scope})
            self.body_limit: int = options["max_content_length"]

    return LimitedRequest


async def read_body(
    type_: Any, limits: Limits, *, wrapped_levels: int = 0, empty: bytes = b""
) -> Any:
    """The body, or ``empty`` in place of none, decoded and checked; see :func:`parse_body`.

    Raises:
        BadRequest: it is not what ``type_`` describes.
        werkzeug.exceptions.RequestEntityTooLarge: it is over the limit.
        werkzeug.exceptions.RequestTimeout: it did not come in time.
    """
    body: bytes = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    await recheck(_scope())
    return await parse_body(body or empty, type_, limits, wrapped_levels=wrapped_levels)


def body_limit() -> int:
    """The most bytes that the body of the request in progress may have."""
    limit: int = request.body_limit  # type: ignore[attr-defined]  # see request_class
    return limit


def query(declared: frozenset[str]) -> Query:
    return Query(request.query_string, declared)


def idempotency_key(caller: Caller) -> str | None:
    key = request.headers.get("Idempotency-Key")
    return None if key is None else permit.idempotency_key(key, caller)


class Permits:
    """Whether the caller of the request in progress may use a route; see `auth.permit`."""

    def __init__(self, engine: TaskEngine) -> None:
        self._engine = engine

    def caller(self) -> Caller:
        """Who asks; nothing is looked at."""
        return caller_of(_scope())

    def route(self, name: str, task_id: str | None = None) -> Caller:
        return permit.permit(_scope(), name, task_id)

    async def task(self, name: str, task_id: str) -> Caller:
        return await permit.permit_task(self._engine, _scope(), name, task_id)

    async def existing(self, name: str, task_id: str) -> None:
        """As `task`, where there may be no such task."""
        with suppress(TaskNotFound):
            await self.task(name, task_id)

    def fence(self) -> int | None:
        """See `auth.permit`."""
        return permit.fence_of(_scope())

    async def recheck(self) -> None:
        """After a wait; see `auth.gate`."""
        await recheck(_scope())

    def limit_key(self) -> str:
        return limit_key(_scope())


def _scope() -> Scope:
    return cast(Scope, request.scope)


def is_head() -> bool:
    return request.method == "HEAD"


def streamed(body: AsyncIterator[bytes] | bytes, content_type: str) -> Response:
    """A body sent as it comes; the connection's own write deadline bounds it, not Quart's."""
    answer = Response(body, content_type=content_type)
    answer.timeout = None
    if is_head():
        # GET sends it chunked; a length of 0 would be untrue (RFC 9110, section 8.6).
        answer.headers.pop("Content-Length", None)
    return answer
