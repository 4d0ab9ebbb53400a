"""The asynchronous client, on Trio or asyncio, through httpx and anyio."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
import httpx

from . import calls, ending, service_calls, streams
from .async_port import AsyncCredentials, AsyncPort, AsyncToken
from .following import Follow, Item
from .methods import described
from .retries import Call, RetryPolicy, answered
from .run import Publisher, Run
from .subscription import Subscription
from .transport import CLOSE_TIMEOUT_S, limits

P = ParamSpec("P")
T = TypeVar("T")


def _asked(make: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """A method that sends the call."""

    async def method(self: AsyncTaskcastClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.ask(make(*args, **kwargs))

    return described(method, make)


def _followed(
    make: Callable[P, Follow[Item]],
) -> Callable[Concatenate[Any, P], Subscription[Item]]:
    """A method that makes a subscription."""

    def method(
        self: AsyncTaskcastClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> Subscription[Item]:
        return Subscription(make(*args, **kwargs), self.port.another())

    return described(method, make, Subscription.__name__)


def _published(make: Callable[P, ending.Plan]) -> Callable[Concatenate[Any, P], Publisher]:
    """A method that makes a publisher."""

    def method(self: AsyncTaskcastClient, /, *args: P.args, **kwargs: P.kwargs) -> Publisher:
        return Publisher(self, make(*args, **kwargs))

    return described(method, make, Publisher.__name__)


def _ran(make: Callable[P, ending.Plan]) -> Callable[Concatenate[Any, P], Run]:
    """A method that makes a run."""

    def method(self: AsyncTaskcastClient, /, *args: P.args, **kwargs: P.kwargs) -> Run:
        return Run(self, make(*args, **kwargs))

    return described(method, make, Run.__name__)


class AsyncTaskcastClient:
    """Talk to a taskcast server; on Trio or asyncio.

    ::

        async with AsyncTaskcastClient("http://127.0.0.1:3721") as client:
            task = await client.create(type="llm.chat")
            await client.publish(task.id, "llm.delta", {"delta": "Hello"})

    Every method raises ``ServerUnavailable`` where no answer comes, and an error of the tree in
    ``taskcast_trio.core.errors`` (or ``ResponseError``) where the server says no; both after the
    retries of ``retries``, which repeat only what may be repeated. Cancelling a call closes its
    connection; whether a write took effect is then unknown, and an ``idempotency_key`` of your own
    makes it safe to repeat: the server answers the repetition with the first answer and stores
    nothing.

    Values of the caller's own (``data``, ``params``, ...) are anything that msgspec encodes as
    JSON, or a ``msgspec.Raw`` with JSON text, which is sent as it is. They come back as
    ``msgspec.Raw``, which :func:`taskcast_trio.client.value` decodes.

    Args:
        base_url: where the server is, with the prefix it is mounted under, if any.
        token: sent as ``Authorization: Bearer``; or a function, asynchronous or not, that gets one:
            it is called at first and again when the server takes the one that it gave no more.
        http: the httpx client to use; its owner closes it. Without, the client makes one and closes
            it on leaving the context.
        retries: how often calls are tried again.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: AsyncToken = None,
        http: httpx.AsyncClient | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._owns_http = http is None
        self._http = httpx.AsyncClient(limits=limits()) if http is None else http
        self.retries = RetryPolicy() if retries is None else retries
        self.port = AsyncPort(self._http, self.base_url, AsyncCredentials(token))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owns_http:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._http.aclose()

    async def ask(self, call: Call[T], *, retries: RetryPolicy | None = None) -> T:
        """Send a call of `calls`: what every method does."""
        policy = self.retries if retries is None else retries
        return await self.port.run(answered(call, policy))

    create = _asked(calls.create)
    get = _asked(calls.get)
    list = _asked(calls.list_tasks)
    transition = _asked(calls.transition)
    publish = _asked(calls.publish)
    publish_many = _asked(calls.publish_many)
    expected_seq = _asked(calls.expected_seq)
    history = _asked(calls.history)
    snapshot = _asked(calls.snapshot)
    delete = _asked(calls.delete)
    archive = _asked(calls.archive)
    restore = _asked(calls.restore)
    request = _asked(calls.request)
    resolve = _asked(calls.resolve)
    webhooks = _asked(service_calls.webhooks)
    deliveries = _asked(service_calls.deliveries)
    redeliver = _asked(service_calls.redeliver)
    workers = _asked(service_calls.workers)
    worker = _asked(service_calls.worker)
    set_worker_status = _asked(service_calls.set_worker_status)
    delete_worker = _asked(service_calls.delete_worker)
    ticket = _asked(service_calls.ticket)
    ping = _asked(service_calls.ping)
    health = _asked(service_calls.health)
    ready = _asked(service_calls.ready)
    run = _ran(ending.run)
    publisher = _published(ending.publisher)
    subscribe = _followed(streams.subscribe)
    subscribe_all = _followed(streams.subscribe_all)
