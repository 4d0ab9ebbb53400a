"""One try to deliver an event: bounded in time, in memory and in what it may connect to."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, Literal, Self, TypeAlias

import h11
import httpcore
import httpx
import trio
from msgspec import Struct

from taskcast_trio import __version__
from taskcast_trio.core.backoff import retry_after_ms
from taskcast_trio.core.webhook import (
    RETRY_AFTER_LIMIT_MS,
    Outcome,
    Webhook,
    headers_for,
    heeds_retry_after,
    outcome_of,
)

from .dial import AddressRefused, Dialer, HostNotFound
from .turns import Turns

Failure: TypeAlias = Literal[
    "address_refused",
    "closed",
    "connect",
    "dns",
    "invalid_url",
    "protocol",
    "redirect",
    "status",
    "timeout",
    "tls",
]

CONCURRENCY: Final = 64
PER_HOST: Final = 8
MAX_BODY: Final = 64 * 1024
"""Of an answer's body. It is read only so that the connection can be used again."""
IDLE_S: Final = 2.0
"""How long a connection is kept: less than common receivers keep theirs, so that no event meets a
connection that is just being closed."""


class Attempt(Struct, frozen=True, kw_only=True):
    """How a try ended. ``error`` is a word and never holds what was sent or received.

    ``status`` is that of the answer, if there was one: it decides, whatever became of the body.
    ``retry_after_ms`` is what a 429 or 503 asked for.
    """

    outcome: Outcome
    duration_ms: int
    status: int | None = None
    error: Failure | None = None
    retry_after_ms: int | None = None


@asynccontextmanager
async def open_sender(
    dialer: Dialer,
    *,
    concurrency: int = CONCURRENCY,
    per_host: int = PER_HOST,
    ssl_context: ssl.SSLContext | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Sender]:
    """A sender, whose connections are closed at the end.

    ``ssl_context`` is for receivers with certificates of an authority of one's own; ``clock`` takes
    the place of the wall clock (Unix seconds).
    """
    transport = _Transport(dialer, ssl_context or httpx.create_ssl_context(), concurrency)
    async with transport:
        yield Sender(transport, Turns(concurrency, per_host), clock)


class Sender:
    """Makes the tries of all webhooks; use :func:`open_sender`.

    It asks httpx's transport and not a client: a client logs URLs, keeps cookies, parses redirects
    that it does not follow, and looks for proxies and passwords in the environment.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport, turns: Turns, clock: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._turns = turns
        self._clock = clock

    async def attempt(
        self, webhook: Webhook, *, event_type: str, delivery: str, body: bytes
    ) -> Attempt:
        """Try once, as soon as there is a turn for the webhook's host.

        From then on it takes at most ``webhook.retry.timeout_ms``, whatever the receiver does.
        Never raises for anything that a receiver or a definition can do. Cancelled, the connection
        is closed, and nobody knows whether the receiver has the event.
        """
        async with self._turns.turn(webhook.host):
            started = trio.current_time()
            status: int | None = None
            wait: int | None = None
            error: Failure | None = "timeout"
            with trio.move_on_after(webhook.retry.timeout_ms / 1000):
                try:
                    response = await self._send(webhook, event_type, delivery, body)
                except _FAILURES as failure:
                    error = _word(failure)
                else:
                    status = response.status_code
                    error = _judgement(status)
                    wait = self._asked_wait(response)
                    await _drain(response)
            return Attempt(
                outcome="failed" if status is None else outcome_of(status),
                duration_ms=round((trio.current_time() - started) * 1000),
                status=status,
                error=error,
                retry_after_ms=wait,
            )

    async def _send(
        self, webhook: Webhook, event_type: str, delivery: str, body: bytes
    ) -> httpx.Response:
        # Signed now, not when it began to wait: receivers refuse an old timestamp.
        headers = headers_for(
            webhook.secrets,
            event_type=event_type,
            delivery=delivery,
            timestamp_s=int(self._clock()),
            body=body,
        )
        headers["User-Agent"] = f"taskcast-trio/{__version__}"
        # What is compressed could become long before it can be counted.
        headers["Accept-Encoding"] = "identity"
        headers["Content-Length"] = str(len(body))
        url = httpx.URL(webhook.url)
        headers["Host"] = url.netloc.decode("ascii")
        request = httpx.Request("POST", url, headers=headers, stream=_Sent(body))
        return await self._transport.handle_async_request(request)

    def _asked_wait(self, response: httpx.Response) -> int | None:
        value = response.headers.get("retry-after")
        if value is None or not heeds_retry_after(response.status_code):
            return None
        return retry_after_ms(value, self._clock(), limit_ms=RETRY_AFTER_LIMIT_MS)


async def _drain(response: httpx.Response) -> None:
    size = 0
    # Cancelled, and not left early: only so do all of httpx's generators end here.
    with trio.CancelScope() as enough:
        try:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > MAX_BODY:
                    enough.cancel()
        except _FAILURES:
            pass  # the status stands


def _judgement(status: int) -> Failure | None:
    if outcome_of(status) == "delivered":
        return None
    return "redirect" if 300 <= status < 400 else "status"


_FAILURES: Final = (
    AddressRefused,
    HostNotFound,
    httpx.InvalidURL,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
)


def _word(failure: BaseException) -> Failure:
    match failure:
        case AddressRefused():
            return "address_refused"
        case HostNotFound():
            return "dns"
        case httpx.InvalidURL():
            return "invalid_url"
        case httpcore.TimeoutException():
            return "timeout"
    causes = list(_causes(failure))
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "tls"
    if isinstance(failure, httpcore.ConnectError):
        return "connect"
    # httpcore calls it a breach of protocol, too, when a peer leaves without a word.
    if any(isinstance(cause, h11.ProtocolError) for cause in causes):
        return "protocol"
    return "closed"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__  # the pool raises "from None"


class _Sent(httpx.AsyncByteStream):
    """A request's body. httpx's own are generators, and those of failed requests never end."""

    def __init__(self, body: bytes) -> None:
        self._pieces = iter([body])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, AsyncIterable)
        return aiter(self._response.stream)

    async def aclose(self) -> None:
        await self._response.aclose()


class _Transport(httpx.AsyncBaseTransport):
    """A pool that connects by the dialer alone; httpx's own transport has no place for one."""

    def __init__(self, dialer: Dialer, ssl_context: ssl.SSLContext, connections: int) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=IDLE_S,
            network_backend=dialer,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = await self._pool.handle_async_request(
            httpcore.Request(
                request.method,
                httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response))

    async def aclose(self) -> None:
        await self._pool.aclose()
