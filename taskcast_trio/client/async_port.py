"""The port of the asynchronous client: it does the steps of flows on Trio or asyncio."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import anyio
import httpx

from taskcast_trio.core.errors import TaskcastError

from .steps import Close, Flow, Open, Read, Renew, Reply, Request, Send, Sleep, Step
from .transport import CLOSE_TIMEOUT_S, built, is_stream, reply_of, unavailable, wants_body

T = TypeVar("T")

AsyncToken: TypeAlias = str | Callable[[], str | Awaitable[str]] | None


class AsyncCredentials:
    """The token of a client, and where to get the next one."""

    def __init__(self, token: AsyncToken) -> None:
        self._source = token if callable(token) else None
        self._token = None if callable(token) else token
        self._lock: anyio.Lock | None = None

    async def current(self) -> str | None:
        if self._token is None and self._source is not None:
            await self.renew(None)
        return self._token

    async def renew(self, refused: str | None) -> bool:
        """Whether there is another token than the one that was refused, now.

        Many may ask at the same time: one of them gets it.
        """
        if self._source is None:
            return False
        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            if self._token == refused:
                found = self._source()
                self._token = await found if inspect.isawaitable(found) else found
        return self._token != refused


class AsyncPort:
    """One at a time: a client has one for its calls, where each `Send` is whole by itself, and each
    subscription its own, which holds the stream.
    """

    def __init__(
        self, http: httpx.AsyncClient, base_url: str, credentials: AsyncCredentials
    ) -> None:
        self._http = http
        self._base_url = base_url
        self.credentials = credentials
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes]

    def another(self) -> AsyncPort:
        """A port of its own for a subscription."""
        return AsyncPort(self._http, self._base_url, self.credentials)

    async def run(self, flow: Flow[T]) -> T:
        """Do the steps of a flow until it returns; a cancelled step is the last one."""
        answer: Any = None
        try:
            while True:
                step = flow.send(answer)
                while True:
                    try:
                        answer = await self._do(step)
                    except TaskcastError as error:
                        step = flow.throw(error)
                    else:
                        break
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    async def _do(self, step: Step) -> Any:
        match step:
            case Send(request):
                return await self._send(request)
            case Open(request):
                return await self._open(request)
            case Read():
                return await self._read()
            case Close():
                return await self.close()
            case Sleep(seconds):
                return await anyio.sleep(seconds)
            case Renew(refused):
                return await self.credentials.renew(refused)

    async def _send(self, request: Request) -> Reply:
        token = await self.credentials.current()
        sent = built(self._http, self._base_url, request, token)
        try:
            response = await self._http.send(sent)
        except httpx.RequestError as error:
            raise unavailable(self._base_url, error) from error
        return reply_of(response, token, response.content)

    async def _open(self, request: Request) -> Reply:
        token = await self.credentials.current()
        sent = built(self._http, self._base_url, request, token)
        try:
            response = await self._http.send(sent, stream=True)
            if is_stream(response):
                self._response, self._chunks = response, response.aiter_bytes()
                return reply_of(response, token, b"")
            try:
                body = await response.aread() if wants_body(response) else b""
            finally:
                with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                    await response.aclose()
        except httpx.RequestError as error:
            raise unavailable(self._base_url, error) from error
        return reply_of(response, token, body)

    async def _read(self) -> bytes | None:
        try:
            return await anext(self._chunks, None)
        except httpx.RequestError:
            return None

    async def close(self) -> None:
        """Close the stream, if there is one."""
        response, self._response = self._response, None
        if response is None:
            return
        # httpx reads through nested async generators. Left suspended, they would wait for the
        # garbage collector, which Trio warns of; resumed under a cancelled scope, each unwinds in
        # order.
        with anyio.CancelScope(shield=True) as scope:
            scope.cancel()
            try:
                async for _ in self._chunks:
                    pass
            except httpx.RequestError:
                pass
        await response.aclose()
