"""Reading and decoding request bodies."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import trio

from taskcast_trio.config.schema import Limits
from taskcast_trio.core import jsontext
from taskcast_trio.core.errors import PayloadTooLarge, RequestTimeout
from taskcast_trio.engine.serial_thread import SerialThread
from taskcast_trio.server.auth.gate import recheck
from taskcast_trio.server.plain import field_of
from taskcast_trio.server.target import Receive, Scope

BODY_TIMEOUT_S: Final = 10.0
THREAD_BYTES: Final = 2 * 1024 * 1024
_thread: Final = SerialThread("large bodies")


class PeerGone(Exception):
    """The peer left before its request was complete."""


async def parse_body(body: bytes, type_: Any, limits: Limits, *, wrapped_levels: int = 0) -> Any:
    """The body, decoded and checked; it may nest ``wrapped_levels`` deeper than others.

    Raises:
        BadRequest: it is not what ``type_`` describes.
    """
    parse = partial(jsontext.parse, body, type_, max_depth=limits.json_depth + wrapped_levels)
    # A large body would hold up every stream for as long as it takes.
    if len(body) <= THREAD_BYTES:
        return parse()
    return await _thread.run(parse)


async def read_body(
    scope: Scope, receive: Receive, limit: int, *, timeout_s: float = BODY_TIMEOUT_S
) -> bytes:
    """The whole body, which has ``timeout_s`` to come.

    Raises:
        PayloadTooLarge: it is over ``limit`` bytes; of a declared length before it is read.
        RequestTimeout: it did not come in time.
        Unauthorized: the caller's token has ended meanwhile.
        PeerGone: the peer left.
    """
    declared = field_of(scope, b"content-length")
    if declared is not None and int(declared) > limit:
        raise too_large(limit)
    link = (scope.get("extensions") or {}).get("taskcast.link")
    if link is not None and (body := link.rest_of_body()) is not None:
        # Mostly: a deadline costs more than all of this. An answer has its own checkpoint.
        if len(body) > limit:
            raise too_large(limit)
        return bytes(body)
    with trio.move_on_after(timeout_s):
        body = await _read_parts(receive, limit)
        await recheck(scope)
        return body
    raise RequestTimeout("The body did not come in time")


async def _read_parts(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await _next(receive)
        parts.append(message["body"])
        size += len(message["body"])
        if size > limit:
            raise too_large(limit)
        more = message["more_body"]
    return b"".join(parts)


def too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is over the limit of {limit} bytes")


async def _next(receive: Receive) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise PeerGone
    message.setdefault("body", b"")
    message.setdefault("more_body", False)
    return message
