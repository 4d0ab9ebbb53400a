"""The synchronous client, through httpx."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from . import calls, ending, service_calls, streams
from .following import Follow, Item
from .methods import described
from .retries import Call, RetryPolicy, answered
from .sync_port import Credentials, Port, Token
from .sync_run import SyncPublisher, SyncRun
from .sync_subscription import SyncSubscription
from .transport import limits

P = ParamSpec("P")
T = TypeVar("T")


def _asked(make: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], T]:
    """A method that sends the call."""

    def method(self: TaskcastClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.ask(make(*args, **kwargs))

    return described(method, make)


def _followed(
    make: Callable[P, Follow[Item]],
) -> Callable[Concatenate[Any, P], SyncSubscription[Item]]:
    """A method that makes a subscription."""

    def method(
        self: TaskcastClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncSubscription[Item]:
        return SyncSubscription(make(*args, **kwargs), self.port.another())

    return described(method, make, SyncSubscription.__name__)


def _published(make: Callable[P, ending.Plan]) -> Callable[Concatenate[Any, P], SyncPublisher]:
    """A method that makes a publisher."""

    def method(self: TaskcastClient, /, *args: P.args, **kwargs: P.kwargs) -> SyncPublisher:
        return SyncPublisher(self, make(*args, **kwargs))

    return described(method, make, SyncPublisher.__name__)


def _ran(make: Callable[P, ending.Plan]) -> Callable[Concatenate[Any, P], SyncRun]:
    """A method that makes a run."""

    def method(self: TaskcastClient, /, *args: P.args, **kwargs: P.kwargs) -> SyncRun:
        return SyncRun(self, make(*args, **kwargs))

    return described(method, make, SyncRun.__name__)


class TaskcastClient:
    """Talk to a taskcast server, without an event loop; otherwise as `AsyncTaskcastClient`.

    ::

        with TaskcastClient("http://127.0.0.1:3721") as client:
            task = client.create(type="llm.chat")
            client.publish(task.id, "llm.delta", {"delta": "Hello"})

    Threads may share it. Args: as of `AsyncTaskcastClient`; a function as ``token`` is an ordinary
    one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: Token = None,
        http: httpx.Client | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._owns_http = http is None
        self._http = httpx.Client(limits=limits()) if http is None else http
        self.retries = RetryPolicy() if retries is None else retries
        self.port = Port(self._http, self.base_url, Credentials(token))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owns_http:
            self._http.close()

    def ask(self, call: Call[T], *, retries: RetryPolicy | None = None) -> T:
        """Send a call of `calls`: what every method does."""
        policy = self.retries if retries is None else retries
        return self.port.run(answered(call, policy))

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
