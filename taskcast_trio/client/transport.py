"""What both ports have in common: httpx requests, and what their failures mean."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, Self

import httpx

from .errors import ServerUnavailable
from .steps import TIMEOUT_S, Reply, Request

CLOSE_TIMEOUT_S: Final = 2.0
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NEVER_RIGHT: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


class _Pieces:
    """One piece of bytes as an asynchronous iterator."""

    def __init__(self, content: bytes) -> None:
        self._left = [content]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class _Body(httpx.ByteStream):
    """A body whose sending may break: httpx's own would leave a generator, which Trio warns of."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(self._content)


def limits() -> httpx.Limits:
    # A subscription keeps its connection, so a limit would be one on subscriptions.
    return httpx.Limits(max_connections=None, max_keepalive_connections=20)


def built(
    http: httpx.Client | httpx.AsyncClient, base_url: str, request: Request, token: str | None
) -> httpx.Request:
    headers = dict(request.headers)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    sent = http.build_request(
        request.method,
        base_url + request.path,
        params=request.params or None,
        content=request.body,
        headers=headers,
        timeout=httpx.Timeout(TIMEOUT_S, read=request.read_timeout_s),
    )
    if request.body is not None:
        sent.stream = _Body(request.body)
    return sent


def bound(response: httpx.Response | None, silence_s: float) -> None:
    """How long the body of a stream may bring no byte; before it is read."""
    if response is not None:
        # Of the request, as httpx asks for it: the head may be what says how long.
        response.request.extensions["timeout"]["read"] = silence_s


def unavailable(base_url: str, error: httpx.RequestError) -> ServerUnavailable:
    """What a request that got no answer is told as."""
    failure = ServerUnavailable(f"No answer from {base_url}: {_reason(error)}")
    failure.sent = not isinstance(error, _NEVER_SENT + _NEVER_RIGHT)
    if isinstance(error, _NEVER_RIGHT):
        failure.retryable = False  # type: ignore[misc]  # the caller's mistake: it stays one
    return failure


def _reason(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.LocalProtocolError):
        return "a header has characters that none may have"  # its text shows the header: a token
    # Of TLS, what it is about stands at the end of the chain alone.
    cause: BaseException | None = error
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__ if cause is None else str(cause)


def is_stream(response: httpx.Response) -> bool:
    """Whether the body is to be read as it comes."""
    kind: str = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response.status_code == httpx.codes.OK and kind == "text/event-stream"


def reply_of(response: httpx.Response, token: str | None, body: bytes) -> Reply:
    return Reply(response.status_code, response.headers, body, token)


def wants_body(response: httpx.Response) -> bool:
    """Whether an answer to `Open` that is no stream says why; a page of some kind does not."""
    return response.status_code not in (httpx.codes.OK, httpx.codes.NO_CONTENT)
