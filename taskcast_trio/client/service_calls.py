"""What the server can be asked beside tasks and events; as `calls`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from msgspec import UNSET

from taskcast_trio.core.views import (
    Deliveries,
    Health,
    HealthDetail,
    Readiness,
    Redeliver,
    Ticket,
    TicketRequest,
    WebhookList,
    WebhookView,
    Worker,
    WorkerChange,
    WorkerList,
)

from .composing import given, nothing, reading, segment, task_path, writing
from .errors import decode
from .retries import Call
from .steps import Reply, Request

UNAVAILABLE: Final = 503


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
    return reading(f"/workers/{segment(worker_id)}", Worker)


def set_worker_status(worker_id: str, status: Literal["draining", "idle"]) -> Call[Worker]:
    """Give a worker no more tasks (``draining``), or tasks again (``idle``).

    Raises:
        WorkerNotFound: the server has no worker of this id.
    """
    path, body = f"/workers/{segment(worker_id)}/status", WorkerChange(status=status)
    return writing("PATCH", path, Worker, body, repeat="safe")


def delete_worker(worker_id: str) -> Call[None]:
    """Forget a worker.

    Raises:
        WorkerNotFound: the server has no worker of this id.
    """
    return Call(Request("DELETE", f"/workers/{segment(worker_id)}"), nothing, "safe", removes=True)


def webhooks(task_id: str) -> Call[list[WebhookView]]:
    """How far the webhooks of a task are.

    Raises:
        TaskNotFound: the server has no task of this id.
    """

    def read(reply: Reply) -> list[WebhookView]:
        return decode(reply.body, WebhookList, status=reply.status).webhooks

    return Call(Request("GET", task_path(task_id, "/webhooks")), read, "safe", task_id=task_id)


def deliveries(task_id: str, number: int = 0) -> Call[Deliveries]:
    """The last tries and the dead letters of a webhook.

    Raises:
        WebhookNotFound: the task has no webhook of this number.
        TaskNotFound: the server has no task of this id.
    """
    return reading(
        task_path(task_id, f"/webhooks/{number}/deliveries"), Deliveries, task_id=task_id
    )


def redeliver(task_id: str, number: int = 0, *, from_index: int | None = None) -> Call[None]:
    """Deliver the dead letters of a webhook again, or everything from an index on.

    Raises:
        WebhookNotFound: the task has no webhook of this number.
        TaskArchived: only the archive has the task.
        TaskNotFound: the server has no task of this id.
    """
    body = msgspec.json.encode(Redeliver(from_index=given(from_index)))
    path = task_path(task_id, f"/webhooks/{number}/redeliver")
    headers = {"Content-Type": "application/json"}
    sent = Request("POST", path, headers=headers, body=body)
    return Call(sent, nothing, "refused", task_id=task_id)


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
    return writing("POST", "/tickets", Ticket, body, repeat="safe")


def ping() -> Call[Health]:
    """Which server is there."""
    return reading("/health", Health)


def health() -> Call[HealthDetail]:
    """What the server runs on, and how that is."""
    return reading("/health/detail", HealthDetail)


def ready() -> Call[Readiness]:
    """Whether the server takes new work, and what of it is away."""

    def read(reply: Reply) -> Readiness:
        return decode(reply.body, Readiness, status=reply.status)

    return Call(Request("GET", "/health/ready"), read, "safe", also_good=UNAVAILABLE)
