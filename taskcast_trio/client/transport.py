"""What both ports have in common: httpx requests, and what their failures mean."""

from __future__ import annotations

from typing import Final

import httpx

from .errors import ServerUnavailable
from .steps import TIMEOUT_S, Reply, Request

CLOSE_TIMEOUT_S: Final = 2.0
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NEVER_RIGHT: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


def limits() -> httpx.Limits:
    # A subscription keeps its connection, so a limit would be one on subscriptions.
    return httpx.Limits(max_connections=None, max_keepalive_connections=20)


def built(
    http: httpx.Client | httpx.AsyncClient, base_url: str, request: Request, token: str | None
) -> httpx.Request:
    headers = dict(request.headers)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return http.build_request(
        request.method,
        base_url + request.path,
        params=request.params or None,
        content=request.body,
        headers=headers,
        timeout=httpx.Timeout(TIMEOUT_S, read=request.read_timeout_s),
    )


def unavailable(base_url: str, error: httpx.RequestError) -> ServerUnavailable:
    """What a request that got no answer is told as."""
    reason = str(error) or type(error).__name__
    failure = ServerUnavailable(f"No answer from {base_url}: {reason}")
    failure.sent = not isinstance(error, _NEVER_SENT + _NEVER_RIGHT)
    if isinstance(error, _NEVER_RIGHT):
        failure.retryable = False  # type: ignore[misc]  # the caller's mistake: it stays one
    return failure


def is_stream(response: httpx.Response) -> bool:
    """Whether the body is to be read as it comes."""
    kind: str = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response.status_code == httpx.codes.OK and kind == "text/event-stream"


def reply_of(response: httpx.Response, token: str | None, body: bytes) -> Reply:
    return Reply(response.status_code, response.headers, body, token)


def wants_body(response: httpx.Response) -> bool:
    """Whether an answer to `Open` that is no stream says why; a page of some kind does not."""
    return response.status_code not in (httpx.codes.OK, httpx.codes.NO_CONTENT)
