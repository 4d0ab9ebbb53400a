"""What the server can be asked about tasks and events: each function here is a method of both
clients.

It makes the call of its arguments; the clients send it, try again where that is safe, and give its
result back.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from msgspec import UNSET

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
from taskcast_trio.core.views import ExpectedSeq, TaskList

from .composing import (
    draft,
    encoded,
    event_params,
    events_path,
    given,
    nothing,
    raw,
    reading,
    segment,
    since_params,
    task_path,
    writing,
)
from .errors import decode
from .retries import Call, Repeat
from .steps import TIMEOUT_S, Reply, Request


def create(
    request: CreateTask | None = None,
    *,
    id: str | None = None,
    type: str | None = None,
    params: Any = None,
    metadata: Any = None,
    ttl: int | None = None,
    tags: list[str] | None = None,
    webhooks: Iterable[Any] | None = None,
    assign_mode: AssignMode | None = None,
    cost: int | None = None,
    disconnect_policy: DisconnectPolicy | None = None,
    idempotency_key: str | None = None,
) -> Call[Task]:
    """Create a task, described by keywords or, for the rarer fields, by a ``CreateTask``.

    ``ttl`` is in seconds; each of ``webhooks`` is a dictionary, as in JSON.

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
        webhooks=UNSET if webhooks is None else [encoded(each) for each in webhooks],
        assign_mode=given(assign_mode),
        cost=given(cost),
        disconnect_policy=given(disconnect_policy),
    )
    if request is None:
        request = described
    elif described != CreateTask():
        raise TypeError("create() takes a CreateTask or keywords, not both")
    return writing("POST", "/tasks", Task, request, key=idempotency_key)


def get(task_id: str) -> Call[TaskView]:
    """The task, and how many follow it.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    return reading(task_path(task_id), TaskView, task_id=task_id)


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
    path = task_path(task_id, "/status")
    return writing("PATCH", path, Task, body, task_id=task_id, key=idempotency_key, fence=fence)


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
    return writing(
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
    return writing(
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
    return reading(task_path(task_id, f"/seq/{segment(client_id)}"), ExpectedSeq, task_id=task_id)


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
    return reading(task_path(task_id, "/events/history"), list[Event], params, task_id=task_id)


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
    return reading(task_path(task_id, "/events/history"), list[Event], params, task_id=task_id)


def delete(task_id: str) -> Call[None]:
    """Remove a task and its events for good.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    request = Request("DELETE", task_path(task_id))
    return Call(request, nothing, "safe", task_id=task_id, removes=True)


def archive(task_id: str) -> Call[Archive]:
    """A task with its events, as one document. :meth:`restore` takes it.

    Raises:
        TaskNotFound: the server has no task of this id.
    """
    return reading(task_path(task_id, "/archive"), Archive, task_id=task_id)


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
    return writing("POST", "/tasks/import", Imported, body, repeat=repeat)


def request(task_id: str, *, wait_s: float = 0) -> Call[BlockedRequest]:
    """What a blocked task waits to be told, as soon as it asks, for at most ``wait_s`` (s; 60).

    Raises:
        RequestNotFound: it does not ask.
        TaskNotFound: the server has no task of this id.
    """
    params = {"wait": f"{wait_s:g}"} if wait_s else {}
    return reading(
        task_path(task_id, "/request"),
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
    path, body = task_path(task_id, "/resolve"), Resolve(data=raw(data))
    return writing("POST", path, Task, body, task_id=task_id, fence=fence, repeat="refused")


def _repeat(drafts: list[Draft]) -> Repeat:
    """Events that their publisher counts are stored once without a key; with others among them the
    server takes none.
    """
    counted = {each.client_id is not UNSET for each in drafts}
    if counted == {True}:
        return "safe"
    return "refused" if True in counted else "keyed"
