"""What the server can be asked: each function here is a method of both clients.

It makes the call of its arguments; the clients send it, try again where that is safe, and give its
result back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.model import (
    Archive,
    AssignMode,
    BlockedRequest,
    CreateTask,
    DisconnectPolicy,
    Draft,
    Event,
    Imported,
    Level,
    Resolve,
    SeqMode,
    SeriesMode,
    Status,
    Task,
    TaskError,
    TaskView,
    Transition,
    Wire,
)
from taskcast_trio.core.views import (
    Deliveries,
    ExpectedSeq,
    Health,
    HealthDetail,
    Readiness,
    Redeliver,
    TaskList,
    Ticket,
    TicketRequest,
    WebhookList,
    WebhookView,
    Worker,
    WorkerChange,
    WorkerList,
)

from .errors import decode
from .following import GLOBAL_STALL_S, PATIENCE_S, STALL_S, Follow
from .retries import KEY, Call, Repeat
from .sse import DEFAULT_MAX_EVENT_SIZE
from .steps import TIMEOUT_S, Reply, Request

T = TypeVar("T")

FENCE: Final = "Taskcast-Fence"
UNAVAILABLE: Final = 503


def create(
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
) -> Call[Task]:
    """Create a task, described by keywords or, for the rarer fields, by a ``CreateTask``.

    ``ttl`` is in seconds.

    Raises:
        TaskExists: the server has a task of this id.
        BadRequest: a field is not what the server takes.
        TypeError: both a ``CreateTask`` and keywords were given.
    """
    described = CreateTask(
        id=given(id),
        type=given(type),
        params=raw(given(params)),
        metadata=raw(given(metadata)),
        ttl=given(ttl),
        tags=given(tags),
        assign_mode=given(assign_mode),
        cost=given(cost),
        disconnect_policy=given(disconnect_policy),
    )
    if request is None:
        request = described
    elif described != CreateTask():
        raise TypeError("create() takes a CreateTask or keywords, not both")
    return _write("POST", "/tasks", Task, request, key=idempotency_key)


def get(task_id: str) -> Call[TaskView]:
    """The task, and how many follow it.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    return _read(_path(task_id), TaskView, task_id=task_id)


def list_tasks(
    *,
    status: Status | Iterable[Status] | None = None,
    type: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> Call[list[TaskView]]:
    """Tasks in order of creation.

    Args:
        status: only those in this status, or in one of these.
        type: only those of exactly this type.
        after: only those behind the task of this id: the last one of the page before.
        limit: at most so many; all without it.
    """
    params: dict[str, str] = {}
    if status is not None:
        params["status"] = status if isinstance(status, str) else ",".join(status)
    if type is not None:
        params["type"] = type
    if after is not None:
        params["after"] = after
    if limit is not None:
        params["limit"] = str(limit)

    def read(reply: Reply) -> list[TaskView]:
        return decode(reply.body, TaskList, status=reply.status).tasks

    return Call(Request("GET", "/tasks", params), read, "safe")


def transition(
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
    fence: int | None = None,
) -> Call[Task]:
    """Move a task to another status. ``ttl`` is in seconds; ``fence`` is that of a worker.

    Raises:
        InvalidTransition: the task can't go there from where it is.
        TaskNotFound: the server has no task of this id.
    """
    body = Transition(
        status=status,
        result=raw(given(result)),
        error=given(error),
        reason=given(reason),
        ttl=given(ttl),
        resume_after_ms=given(resume_after_ms),
        blocked_request=given(blocked_request),
    )
    path = _path(task_id, "/status")
    return _write("PATCH", path, Task, body, task_id=task_id, key=idempotency_key, fence=fence)


def publish(
    task_id: str,
    type: str,
    data: Any = UNSET,
    *,
    level: Level = "info",
    series: str | None = None,
    mode: SeriesMode | None = None,
    acc_field: str | None = None,
    client_id: str | None = None,
    client_seq: int | None = None,
    seq_mode: SeqMode | None = None,
    idempotency_key: str | None = None,
    fence: int | None = None,
) -> Call[Event]:
    """Append one event, described as for :func:`draft`, to a task's log; the event as stored.

    Raises:
        SeqGap: events of this publisher before it are missing.
        TaskEnded: the task takes no more events.
        TaskNotFound: the server has no task of this id.
    """
    body = draft(
        type,
        data,
        level=level,
        series=series,
        mode=mode,
        acc_field=acc_field,
        client_id=client_id,
        client_seq=client_seq,
        seq_mode=seq_mode,
    )
    return _write(
        "POST",
        events_path(task_id),
        Event,
        body,
        task_id=task_id,
        key=idempotency_key,
        fence=fence,
        repeat=_repeat([body]),
    )


def publish_many(
    task_id: str,
    drafts: Iterable[Draft],
    *,
    idempotency_key: str | None = None,
    fence: int | None = None,
) -> Call[list[Event]]:
    """Append events in one step, all or none; the events as stored. :func:`draft` makes them.

    Raises: as :meth:`publish`; ``PayloadTooLarge`` for more than the server takes at once.
    """
    body = list(drafts)
    return _write(
        "POST",
        events_path(task_id),
        list[Event],
        body,
        task_id=task_id,
        key=idempotency_key,
        fence=fence,
        repeat=_repeat(body),
    )


def expected_seq(task_id: str, client_id: str) -> Call[ExpectedSeq]:
    """Which number the next event of a publisher has to have: 0 of one that is not known.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    return _read(_path(task_id, f"/seq/{segment(client_id)}"), ExpectedSeq, task_id=task_id)


def history(
    task_id: str,
    *,
    since: str | int | datetime | None = None,
    limit: int | None = None,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    include_status: bool = True,
    series_format: Literal["delta", "accumulated"] = "delta",
) -> Call[list[Event]]:
    """The log of a task, in stored order.

    Args:
        since: only what comes after the event of this id, after this index, or after this time.
        limit: at most so many.
        types, levels, include_status: as of :meth:`subscribe`.
        series_format: ``accumulated`` makes each accumulate series one event with its whole text.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    params = event_params(types, levels, include_status, series_format)
    if isinstance(since, int):
        params["since.index"] = str(since)
    else:
        params |= since_params(since)
    if limit is not None:
        params["limit"] = str(limit)
    return _read(_path(task_id, "/events/history"), list[Event], params, task_id=task_id)


def snapshot(
    task_id: str,
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    include_status: bool = True,
) -> Call[list[Event]]:
    """The log of a task as it stands: each accumulate series is one event with its whole text.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    params = event_params(types, levels, include_status, "accumulated")
    return _read(_path(task_id, "/events/history"), list[Event], params, task_id=task_id)


def delete(task_id: str) -> Call[None]:
    """Remove a task and its events for good.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    request = Request("DELETE", _path(task_id))
    return Call(request, _nothing, "safe", task_id=task_id, removes=True)


def archive(task_id: str) -> Call[Archive]:
    """A task with its events, as one document. :meth:`restore` takes it.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    return _read(_path(task_id, "/archive"), Archive, task_id=task_id)


class _Import(Wire, frozen=True, kw_only=True):
    archive: Archive
    overwrite: bool = False


def restore(archive: Archive, *, overwrite: bool = False) -> Call[Imported]:
    """Store what :meth:`archive` gave, in the place of a task of the same id if that is meant.

    Raises:
        TaskExists: the server has a task of this id, and ``overwrite`` is off.
    """
    body = _Import(archive=archive, overwrite=overwrite)
    repeat: Repeat = "safe" if overwrite else "refused"
    return _write("POST", "/tasks/import", Imported, body, repeat=repeat)


def request(task_id: str, *, wait_s: float = 0) -> Call[BlockedRequest]:
    """What a blocked task waits to be told, as soon as it asks, for at most ``wait_s`` (s; 60).

    Raises:
        RequestNotFound: it does not ask.
        TaskNotFound: the server has no task of this id.
    """
    params = {"wait": f"{wait_s:g}"} if wait_s else {}
    return _read(
        _path(task_id, "/request"),
        BlockedRequest,
        params,
        task_id=task_id,
        read_timeout_s=TIMEOUT_S + wait_s,
    )


def resolve(task_id: str, data: Any = UNSET, *, fence: int | None = None) -> Call[Task]:
    """Answer a blocked task, which goes on.

    Raises:
        NotBlocked: it does not ask (any more).
        BadRequest: the answer breaks the schema of the request.
    """
    path, body = _path(task_id, "/resolve"), Resolve(data=raw(data))
    return _write("POST", path, Task, body, task_id=task_id, fence=fence, repeat="refused")


def workers() -> Call[list[Worker]]:
    """The workers that the server knows."""

    def read(reply: Reply) -> list[Worker]:
        return decode(reply.body, WorkerList, status=reply.status).workers

    return Call(Request("GET", "/workers"), read, "safe")


def worker(worker_id: str) -> Call[Worker]:
    """One worker.

    Raises:
        WorkerNotFound: the server has no worker of this id.
    """
    return _read(f"/workers/{segment(worker_id)}", Worker)


def set_worker_status(worker_id: str, status: Literal["draining", "idle"]) -> Call[Worker]:
    """Give a worker no more tasks (``draining``), or tasks again (``idle``).

    Raises:
        WorkerNotFound: the server has no worker of this id.
    """
    path, body = f"/workers/{segment(worker_id)}/status", WorkerChange(status=status)
    return _write("PATCH", path, Worker, body, repeat="safe")


def delete_worker(worker_id: str) -> Call[None]:
    """Forget a worker.

    Raises:
        WorkerNotFound: the server has no worker of this id.
    """
    return Call(Request("DELETE", f"/workers/{segment(worker_id)}"), _nothing, "safe", removes=True)


def webhooks(task_id: str) -> Call[list[WebhookView]]:
    """How far the webhooks of a task are.

    Raises:
        TaskNotFound: the server has no task of this id.
    """

    def read(reply: Reply) -> list[WebhookView]:
        return decode(reply.body, WebhookList, status=reply.status).webhooks

    return Call(Request("GET", _path(task_id, "/webhooks")), read, "safe", task_id=task_id)


def deliveries(task_id: str, number: int = 0) -> Call[Deliveries]:
    """The last tries and the dead letters of a webhook.

    Raises:
        WebhookNotFound: the task has no webhook of this number.
        TaskNotFound: the server has no task of this id.
    """
    return _read(_path(task_id, f"/webhooks/{number}/deliveries"), Deliveries, task_id=task_id)


def redeliver(task_id: str, number: int = 0, *, from_index: int | None = None) -> Call[None]:
    """Deliver the dead letters of a webhook again, or everything from an index on.

    Raises:
        WebhookNotFound: the task has no webhook of this number.
        TaskArchived: only the archive has the task.
        TaskNotFound: the server has no task of this id.
    """
    body = msgspec.json.encode(Redeliver(from_index=given(from_index)))
    path = _path(task_id, f"/webhooks/{number}/redeliver")
    headers = {"Content-Type": "application/json"}
    sent = Request("POST", path, headers=headers, body=body)
    return Call(sent, _nothing, "refused", task_id=task_id)


def ticket(
    task_ids: Iterable[str] | None = None,
    *,
    ttl_s: float | None = None,
    single_use: bool = False,
) -> Call[Ticket]:
    """A text that opens the streams of these tasks (all that the caller reaches, without) for a
    short time, for those who can't set a header: ``?ticket=``.

    Raises:
        Forbidden: the caller does not reach all of these tasks.
    """
    body = TicketRequest(
        task_ids=UNSET if task_ids is None else list(task_ids),
        ttl_seconds=given(ttl_s),
        single_use=single_use,
    )
    return _write("POST", "/tickets", Ticket, body, repeat="safe")


def ping() -> Call[Health]:
    """Which server is there."""
    return _read("/health", Health)


def health() -> Call[HealthDetail]:
    """What the server runs on, and how that is."""
    return _read("/health/detail", HealthDetail)


def ready() -> Call[Readiness]:
    """Whether the server takes new work, and what of it is away."""

    def read(reply: Reply) -> Readiness:
        return decode(reply.body, Readiness, status=reply.status)

    return Call(Request("GET", "/health/ready"), read, "safe", also_good=UNAVAILABLE)


def subscribe(
    task_id: str,
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    include_status: bool = True,
    series_format: Literal["delta", "accumulated"] = "delta",
    since: str | datetime | None = None,
    last_event_id: str | None = None,
    stall_s: float = STALL_S,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow:
    """Follow a task's events; enter the result and iterate it, see :class:`Subscription`.

    Without ``since`` and ``last_event_id`` it starts with the log so far, where each accumulate
    series is one event that holds its whole text (``series_snapshot``).

    Args:
        types: only these event types: exact, ``prefix.*``, or ``*``.
        levels: only these levels.
        include_status: whether ``taskcast:status`` events come.
        series_format: ``delta`` for the pieces of a series as published, ``accumulated`` for its
            running value with each.
        since: only what comes after this time, or after the event of this id; with every piece of a
            series as it was published.
        last_event_id: go on after this event, as a subscription does that was cut there.
        stall_s: a connection that brings no byte for so long (s) counts as lost. The server sends a
            comment after 15 s of silence unless configured otherwise.
        patience_s: how long (s) to try to reconnect before ``ServerUnavailable`` is raised.
        max_event_size: bytes that one event may have.
    """
    return Follow(
        events_path(task_id),
        event_params(types, levels, include_status, series_format),
        task_id,
        since_params(since),
        last_event_id,
        accumulated=series_format == "accumulated",
        stall_s=stall_s,
        patience_s=patience_s,
        max_event_size=max_event_size,
    )


def subscribe_all(
    *,
    types: Iterable[str] | None = None,
    levels: Iterable[Level] | None = None,
    existing: bool = True,
    stall_s: float = GLOBAL_STALL_S,
    patience_s: float = PATIENCE_S,
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Follow:
    """Follow the events of all tasks from now on, without an end.

    There is no cursor over all tasks: after a lost connection comes a ``Gap`` with the reason
    ``reconnected``, and what was published meanwhile is missing.

    Args:
        types, levels, patience_s, max_event_size: as of :meth:`subscribe`.
        existing: also the tasks that are there already.
        stall_s: as of :meth:`subscribe`; this stream is sent a comment after 30 s.
    """
    params = event_params(types, levels, True, "delta")
    if existing:
        params["existing"] = "true"
    return Follow(
        "/events",
        params,
        stall_s=stall_s,
        patience_s=patience_s,
        max_event_size=max_event_size,
    )


def draft(
    type: str,
    data: Any = UNSET,
    *,
    level: Level = "info",
    series: str | None = None,
    mode: SeriesMode | None = None,
    acc_field: str | None = None,
    client_id: str | None = None,
    client_seq: int | None = None,
    seq_mode: SeqMode | None = None,
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
        client_id: of a publisher that counts its events (`Publisher` does it by itself).
        client_seq: its number among them, from 0: the server stores each once, in this order.
        seq_mode: what becomes of one that comes before others that are missing: it waits for them
            (``hold``), or is refused (``fast-fail``).
    """
    return Draft(
        type=type,
        level=level,
        data=raw(data),
        series_id=given(series),
        series_mode=given(mode),
        series_acc_field=given(acc_field),
        client_id=given(client_id),
        client_seq=given(client_seq),
        seq_mode=given(seq_mode),
    )


def event_params(
    types: Iterable[str] | None,
    levels: Iterable[Level] | None,
    include_status: bool,
    series_format: Literal["delta", "accumulated"],
) -> dict[str, str]:
    """The parts of a query that say which events, and how."""
    params: dict[str, str] = {}
    if types is not None:
        params["types"] = ",".join(types)
    if levels is not None:
        params["levels"] = ",".join(levels)
    if not include_status:
        params["includeStatus"] = "false"
    if series_format != "delta":
        params["seriesFormat"] = series_format
    return params


def since_params(since: str | datetime | None) -> dict[str, str]:
    """The part of a query that says from where on."""
    if since is None:
        return {}
    if isinstance(since, str):
        return {"since.id": since}
    return {"since.timestamp": str(round(since.timestamp() * 1000))}


def events_path(task_id: str) -> str:
    return _path(task_id, "/events")


def segment(text: str) -> str:
    """One segment of a path; every character of the text is one of its own, ``/`` included."""
    quoted = quote(text, safe="")
    if quoted in (".", ".."):
        # RFC 3986, section 5.2.4: as they are, clients and proxies would remove these.
        quoted = quoted.replace(".", "%2E")
    return quoted


def given(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


def raw(value: Any) -> Raw | UnsetType:
    if value is UNSET or isinstance(value, Raw):
        return value
    return Raw(msgspec.json.encode(value))


def _path(task_id: str, below: str = "") -> str:
    return f"/tasks/{segment(task_id)}{below}"


def _repeat(drafts: list[Draft]) -> Repeat:
    """Events that their publisher counts are stored once without a key; with others among them the
    server takes none.
    """
    counted = {each.client_id is not UNSET for each in drafts}
    if counted == {True}:
        return "safe"
    return "refused" if True in counted else "keyed"


def _nothing(reply: Reply) -> None:
    return None


def _decoder(type_: type[T]) -> Any:
    def read(reply: Reply) -> T:
        return decode(reply.body, type_, status=reply.status)

    return read


def _read(
    path: str,
    type_: type[T],
    params: Mapping[str, str] | None = None,
    *,
    task_id: str | None = None,
    read_timeout_s: float = TIMEOUT_S,
) -> Call[T]:
    sent = Request("GET", path, params or {}, read_timeout_s=read_timeout_s)
    return Call(sent, _decoder(type_), "safe", task_id=task_id)


def _write(
    method: str,
    path: str,
    type_: type[T],
    body: msgspec.Struct | list[Draft],
    *,
    task_id: str | None = None,
    key: str | None = None,
    fence: int | None = None,
    repeat: Repeat = "keyed",
) -> Call[T]:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers[KEY] = key
    if fence is not None:
        headers[FENCE] = str(fence)
    sent = Request(method, path, headers=headers, body=msgspec.json.encode(body))
    return Call(sent, _decoder(type_), repeat, task_id=task_id)
