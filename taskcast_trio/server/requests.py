"""Reading requests: bodies, queries and the headers that routes look at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import trio
from quart import Response, request
from quart.wrappers.response import ResponseBody
from quart_trio.wrappers import TrioRequest

from taskcast_trio.config.schema import Limits
from taskcast_trio.core import jsontext, validate

from .query import Query

IMPORT_TIMEOUT_S: Final = 600
"""For 64 MiB over a slow line: about 1 Mbit/s."""

THREAD_BYTES: Final = 2 * 1024 * 1024


def request_class(limits: Limits) -> type[TrioRequest]:
    """A request whose body limit depends on its route: an import may be larger."""

    class LimitedRequest(TrioRequest):
        def __init__(self, method: str, scheme: str, path: str, *args: Any, **options: Any) -> None:
            options["max_content_length"] = limits.body_bytes
            if path == "/tasks/import":
                options["max_content_length"] = limits.import_bytes
                options["body_timeout"] = IMPORT_TIMEOUT_S
            super().__init__(method, scheme, path, *args, **options)

    return LimitedRequest


async def read_body(type_: Any, limits: Limits, *, wrapped_levels: int = 0) -> Any:
    """The body, decoded and checked; it may nest ``wrapped_levels`` deeper than others.

    Raises:
        BadRequest: it is not what ``type_`` describes.
        werkzeug.exceptions.RequestEntityTooLarge: it is over the limit.
        werkzeug.exceptions.RequestTimeout: it did not come in time.
    """
    body: bytes = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    parse = partial(jsontext.parse, body, type_, max_depth=limits.json_depth + wrapped_levels)
    # A large body would hold up every stream for as long as it takes.
    return await trio.to_thread.run_sync(parse) if len(body) > THREAD_BYTES else parse()


def query(declared: frozenset[str]) -> Query:
    return Query(request.query_string, declared)


def idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    return None if key is None else validate.idempotency_key(key)


def last_event_id() -> str | None:
    """The header, as UTF-8: the encoding in which an ``EventSource`` sends it."""
    text = request.headers.get("Last-Event-ID")
    try:
        return None if text is None else text.encode("latin-1").decode()
    except UnicodeError:
        return text


def is_head() -> bool:
    return request.method == "HEAD"


def streamed(body: ResponseBody | AsyncIterator[bytes] | bytes, content_type: str) -> Response:
    """A body sent as it comes; the connection's own write deadline bounds it, not Quart's."""
    answer = Response(body, content_type=content_type)
    answer.timeout = None
    if is_head():
        # GET sends it chunked; a length of 0 would be untrue (RFC 9110, section 8.6).
        answer.headers.pop("Content-Length", None)
    return answer
