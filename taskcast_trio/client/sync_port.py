"""The port of the synchronous client: it does the steps of flows in the thread of the caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import httpx

from taskcast_trio.core.errors import TaskcastError

from .steps import Bound, Close, Flow, Open, Read, Renew, Reply, Request, Send, Sleep, Step
from .transport import bound, built, is_stream, reply_of, unavailable, wants_body

T = TypeVar("T")

Token: TypeAlias = str | Callable[[], str] | None


class Credentials:
    """The token of a client, and where to get the next one."""

    def __init__(self, token: Token) -> None:
        self._source = token if callable(token) else None
        self._token = None if callable(token) else token
        self._lock = threading.Lock()

    def current(self) -> str | None:
        if self._token is None and self._source is not None:
            self.renew(None)
        return self._token

    def renew(self, refused: str | None) -> bool:
        """Whether there is another token than the one that was refused, now.

        Threads may share a client: one of them gets it.
        """
        if self._source is None:
            return False
        with self._lock:
            if self._token == refused:
                self._token = self._source()
        return self._token != refused


class Port:
    """One at a time, as `AsyncPort`."""

    def __init__(
        self,
        http: httpx.Client,
        base_url: str,
        credentials: Credentials,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._http = http
        self._base_url = base_url
        self._credentials = credentials
        self._sleep = sleep
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes]

    def another(self, *, sleep: Callable[[float], object] = time.sleep) -> Port:
        """A port of its own, for a subscription, or for who has to wait in another way."""
        return Port(self._http, self._base_url, self._credentials, sleep=sleep)

    def run(self, flow: Flow[T]) -> T:
        """Do the steps of a flow until it returns."""
        answer: Any = None
        try:
            while True:
                step = flow.send(answer)
                while True:
                    try:
                        answer = self._do(step)
                    except TaskcastError as error:
                        step = flow.throw(error)
                    else:
                        break
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    def close(self) -> None:
        """Close the stream, if there is one."""
        response, self._response = self._response, None
        if response is not None:
            with suppress(httpx.RequestError):
                response.close()

    def _do(self, step: Step) -> Any:
        match step:
            case Send(request):
                return self._send(request)
            case Open(request):
                return self._open(request)
            case Bound(silence_s):
                return bound(self._response, silence_s)
            case Read():
                return self._read()
            case Close():
                return self.close()
            case Sleep(seconds):
                return self._sleep(seconds)
            case Renew(refused):
                return self._credentials.renew(refused)

    def _send(self, request: Request) -> Reply:
        token = self._credentials.current()
        sent = built(self._http, self._base_url, request, token)
        try:
            response = self._http.send(sent)
        except httpx.RequestError as error:
            raise unavailable(self._base_url, error) from error
        return reply_of(response, token, response.content)

    def _open(self, request: Request) -> Reply:
        token = self._credentials.current()
        sent = built(self._http, self._base_url, request, token)
        try:
            response = self._http.send(sent, stream=True)
            if is_stream(response):
                self._response, self._chunks = response, response.iter_bytes()
                return reply_of(response, token, b"")
            try:
                body = response.read() if wants_body(response) else b""
            finally:
                response.close()
        except httpx.RequestError as error:
            raise unavailable(self._base_url, error) from error
        return reply_of(response, token, body)

    def _read(self) -> bytes | None:
        try:
            return next(self._chunks, None)
        except httpx.RequestError:
            return None
