"""The asynchronous client, on Trio through httpx."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import trio
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.model import (
    AssignMode,
    BlockedRequest,
    CreateTask,
    DisconnectPolicy,
    Draft,
    Event,
    Level,
    SeriesMode,
    Status,
    Task,
    TaskError,
    TaskView,
    Transition,
)

from .errors import ResponseError, ServerUnavailable, decode, error_of
from .sse import DEFAULT_MAX_EVENT_SIZE
from .subscription import Subscription

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
STALL_S: Final = 45.0
PATIENCE_S: Final = 300.0
CLOSE_TIMEOUT_S: Final = 2.0


class AsyncTaskcastClient:
    """Talk to a taskcast server; on Trio.

    ::

        async with AsyncTaskcastClient("http://127.0.0.1:3721") as client:
            task = await client.create(type="llm.chat")
            await client.publish(task.id, "llm.delta", {"delta": "Hello"})

    Every method raises ``ServerUnavailable`` where no answer comes, and an error of the tree in
    ``taskcast_trio.core.errors`` (or ``ResponseError``) where the server says no. Cancelling a call
    closes its connection; whether a write took effect is then unknown, and an ``idempotency_key``
    makes it safe to repeat: the server answers the repetition with the first answer and stores
    nothing.

    Values of the caller's own (``data``, ``params``, ...) are anything that msgspec encodes as
    JSON, or a ``msgspec.Raw`` with JSON text, which is sent as it is. They come back as
    ``msgspec.Raw``.

    Args:
        base_url: where the server is, with the prefix it is mounted under, if any.
        token: sent as ``Authorization: Bearer``.
        http: the httpx client to use; its owner closes it. Without, the client makes one and closes
            it on leaving the context.
    """

    def __init__(
        self, base_url: str, *, token: str | None = None, http: httpx.AsyncClient | None = None
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._owns_http = http is None
        # A subscription keeps its connection, so a limit would be one on subscriptions.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._http = httpx.AsyncClient(limits=limits) if http is None else http

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owns_http:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._http.aclose()

    async def create(
        self,
        request: CreateTask | None = None,
        *,
        id: str | None = None,
        type: str | None = None,
        params: Any = None,
        metadata: Any = None,
        ttl: int | None = None,
        tags: list[str] | None = None,
        assign_mode: AssignMode | None = None,
        cost: int | None = None,
        disconnect_policy: DisconnectPolicy | None = None,
        idempotency_key: str | None = None,
    ) -> Task:
        """Create a task, described by keywords or, for the rarer fields, by a ``CreateTask``.

        ``ttl`` is in seconds.

        Raises:
            TaskExists: the server has a task of this id.
            BadRequest: a field is not what the server takes.
            TypeError: both a ``CreateTask`` and keywords were given.
        """
        described = CreateTask(
            id=_given(id),
            type=_given(type),
            params=_raw(_given(params)),
            metadata=_raw(_given(metadata)),
            ttl=_given(ttl),
            tags=_given(tags),
            assign_mode=_given(assign_mode),
            cost=_given(cost),
            disconnect_policy=_given(disconnect_policy),
        )
        if request is None:
            request = described
        elif described != CreateTask():
            raise TypeError("create() takes a CreateTask or keywords, not both")
        return await self._call("POST", "/tasks", Task, request, idempotency_key=idempotency_key)

    async def get(self, task_id: str) -> TaskView:
        """The task, and how many follow it.

        Raises:
            TaskNotFound: the server has no task of this id.
        """
        return await self._call("GET", _path(task_id), TaskView, task_id=task_id)

    async def transition(
        self,
        task_id: str,
        status: Status,
        *,
        result: Any = None,
        error: TaskError | None = None,
        reason: str | None = None,
        ttl: int | None = None,
        resume_after_ms: int | None = None,
        blocked_request: BlockedRequest | None = None,
        idempotency_key: str | None = None,
    ) -> Task:
        """Move a task to another status. ``ttl`` is in seconds.

        Raises:
            InvalidTransition: the task can't go there from where it is.
            TaskNotFound: the server has no task of this id.
        """
        body = Transition(
            status=status,
            result=_raw(_given(result)),
            error=_given(error),
            reason=_given(reason),
            ttl=_given(ttl),
            resume_after_ms=_given(resume_after_ms),
            blocked_request=_given(blocked_request),
        )
        return await self._call(
            "PATCH",
            _path(task_id, "/status"),
            Task,
            body,
            task_id=task_id,
            idempotency_key=idempotency_key,
        )

    async def publish(
        self,
        task_id: str,
        type: str,
        data: Any = UNSET,
        *,
        level: Level = "info",
        series: str | None = None,
        mode: SeriesMode | None = None,
        acc_field: str | None = None,
        idempotency_key: str | None = None,
    ) -> Event:
        """Append one event, described as for :func:`draft`, to a task's log; the event as stored.

        Raises:
            TaskEnded: the task takes no more events.
            TaskNotFound: the server has no task of this id.
        """
        body = draft(type, data, level=level, series=series, mode=mode, acc_field=acc_field)
        return await self._call(
            "POST",
            _path(task_id, "/events"),
            Event,
            body,
            task_id=task_id,
            idempotency_key=idempotency_key,
        )

    async def publish_many(
        self, task_id: str, drafts: Iterable[Draft], *, idempotency_key: str | None = None
    ) -> list[Event]:
        """Append events in one step, all or none; the events as stored. :func:`draft` makes them.

        Raises: as :meth:`publish`; ``PayloadTooLarge`` for more than the server takes at once.
        """
        return await self._call(
            "POST",
            _path(task_id, "/events"),
            list[Event],
            list(drafts),
            task_id=task_id,
            idempotency_key=idempotency_key,
        )

    def subscribe(
        self,
        task_id: str,
        *,
        types: Iterable[str] | None = None,
        levels: Iterable[Level] | None = None,
        include_status: bool = True,
        series_format: Literal["delta", "accumulated"] = "delta",
        last_event_id: str | None = None,
        stall_s: float = STALL_S,
        patience_s: float = PATIENCE_S,
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
    ) -> Subscription:
        """Follow a task's events; enter the result and iterate it, see :class:`Subscription`.

        Without ``last_event_id`` it starts with the log so far, where each accumulate series is one
        event that holds its whole text (``series_snapshot``).

        Args:
            types: only these event types: exact, ``prefix.*``, or ``*``.
            levels: only these levels.
            include_status: whether ``taskcast:status`` events come.
            series_format: ``delta`` for the pieces of a series as published, ``accumulated`` for
                its running value with each.
            last_event_id: go on after this event.
            stall_s: a connection that brings no byte for so long (s) counts as lost. The server
                sends a comment after 15 s of silence unless configured otherwise.
            patience_s: how long (s) to try to reconnect before ``ServerUnavailable`` is raised.
            max_event_size: bytes that one event may have.
        """
        params: dict[str, str] = {}
        if types is not None:
            params["types"] = ",".join(types)
        if levels is not None:
            params["levels"] = ",".join(levels)
        if not include_status:
            params["includeStatus"] = "false"
        if series_format != "delta":
            params["seriesFormat"] = series_format
        return Subscription(
            functools.partial(self._open_stream, task_id, params, stall_s),
            last_event_id=last_event_id,
            patience_s=patience_s,
            max_event_size=max_event_size,
        )

    async def _open_stream(
        self, task_id: str, params: dict[str, str], stall_s: float, cursor: str | None
    ) -> httpx.Response:
        """The open response of an event stream, or a 204; its receiver closes it."""
        headers = {**self._headers, "Accept": "text/event-stream", "Cache-Control": "no-store"}
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        request = self._http.build_request(
            "GET",
            self._base_url + _path(task_id, "/events"),
            params=params,
            headers=headers,
            timeout=httpx.Timeout(TIMEOUT_S, read=stall_s),
        )
        response = await self._send(request, stream=True)
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.status_code == httpx.codes.NO_CONTENT:
            return response
        if response.status_code == httpx.codes.OK:
            if content_type == "text/event-stream":
                return response
            await response.aclose()
            raise ResponseError(
                f"Expected an event stream, got {content_type or 'no content type'}",
                status=response.status_code,
                code="bad_answer",
                body=b"",
            )
        try:
            body = await response.aread()
        except httpx.RequestError as error:
            raise self._unavailable(error) from error
        finally:
            await response.aclose()
        raise error_of(response.status_code, body, task_id)

    async def _call(
        self,
        method: str,
        path: str,
        type_: type[T],
        body: msgspec.Struct | list[Draft] | None = None,
        *,
        task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> T:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        request = self._http.build_request(
            method,
            self._base_url + path,
            content=None if body is None else msgspec.json.encode(body),
            headers=headers,
            timeout=TIMEOUT_S,
        )
        response = await self._send(request)
        if not response.is_success:
            raise error_of(response.status_code, response.content, task_id)
        return decode(response.content, type_, status=response.status_code)

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            return await self._http.send(request, stream=stream)
        except httpx.RequestError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: httpx.RequestError) -> ServerUnavailable:
        reason = str(error) or type(error).__name__
        return ServerUnavailable(f"No answer from {self._base_url}: {reason}")


def draft(
    type: str,
    data: Any = UNSET,
    *,
    level: Level = "info",
    series: str | None = None,
    mode: SeriesMode | None = None,
    acc_field: str | None = None,
) -> Draft:
    """An event to publish.

    Args:
        type: its type, ``llm.delta`` for example.
        data: anything that is JSON; left out, the event has none, which is not the same as ``None``
            (null).
        level: how important it is.
        series: the id of the series it belongs to, if any.
        mode: what the series does with it: ``accumulate`` joins texts, ``latest`` keeps only the
            newest.
        acc_field: the field of ``data`` that ``accumulate`` joins, ``delta`` without.
    """
    return Draft(
        type=type,
        level=level,
        data=_raw(data),
        series_id=_given(series),
        series_mode=_given(mode),
        series_acc_field=_given(acc_field),
    )


def _path(task_id: str, below: str = "") -> str:
    """The path of a task; every character of the id is one of its own, ``/`` included."""
    segment = quote(task_id, safe="")
    if segment in (".", ".."):
        # RFC 3986, section 5.2.4: as they are, clients and proxies would remove these.
        segment = segment.replace(".", "%2E")
    return f"/tasks/{segment}{below}"


def _given(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


def _raw(value: Any) -> Raw | UnsetType:
    if value is UNSET or isinstance(value, Raw):
        return value
    return Raw(msgspec.json.encode(value))
