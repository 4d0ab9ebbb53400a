"""The routes beside tasks and events, as data: workers, access, and the server itself."""

from __future__ import annotations

from typing import Any, Final

from taskcast_trio.core.model import Task
from taskcast_trio.engine.workers.asked import Registration

from .auth.tickets import Ticket, TicketRequest
from .openapi_shapes import (
    About,
    Decline,
    Done,
    Health,
    HealthDetail,
    Heartbeat,
    HeartbeatRequest,
    Readiness,
    Worker,
    WorkerChange,
    WorkerList,
)
from .route_parts import TEXT, Answer, Param, Route

_SOCKET_TEXT: Final = """\
JSON text messages. The worker sends `register` (as the body of `POST /workers/register`), and then
`accept`, `decline` and `claim` with a `taskId`, `update`, `drain` and `pong`. It is sent
`registered`, `offer` and `available` (with a summary of the task), `assigned` and `claimed` (with
the task's `fence`), `declined`, `ping`, to be answered by `pong`, `cancel` (`taskId`, `reason`,
`fence`) for a task that somebody else ended, paused or took back, and `error` (`message`, `code`).

Give the fence with what you do for the task (`Taskcast-Fence`). A close frame signs the worker off;
without one it is waited for.
"""

WORKER_ROUTES: Final = (
    Route(
        "GET",
        "/workers/ws",
        "worker:connect",
        "Work over a WebSocket",
        name="workerSocket",
        tag="Workers",
        text=_SOCKET_TEXT,
        answers={101: Answer("The connection is a WebSocket now.")},
        errors=(426, 503),
        feature="workers",
    ),
    Route(
        "POST",
        "/workers/register",
        "worker:connect",
        "Register a worker that pulls",
        name="registerWorker",
        tag="Workers",
        text="In the place of the one with the same id; what that had is still its own.",
        body=Registration,
        answers={201: Answer("The worker.", Worker)},
        errors=(400, 413),
        feature="workers",
    ),
    Route(
        "POST",
        "/workers/{worker_id}/heartbeat",
        "worker:connect",
        "Say that a worker is there",
        name="heartbeatWorker",
        tag="Workers",
        body=HeartbeatRequest,
        answers={200: Answer("What it is to stop.", Heartbeat)},
        errors=(400, 404, 413),
        feature="workers",
    ),
    Route(
        "GET",
        "/workers",
        "worker:manage",
        "List workers",
        name="listWorkers",
        tag="Workers",
        answers={200: Answer("The workers.", WorkerList)},
        feature="workers",
    ),
    Route(
        "GET",
        "/workers/{worker_id}",
        "worker:manage",
        "Read a worker",
        name="getWorker",
        tag="Workers",
        answers={200: Answer("The worker.", Worker)},
        errors=(404,),
        feature="workers",
    ),
    Route(
        "DELETE",
        "/workers/{worker_id}",
        "worker:manage",
        "Forget a worker",
        name="deleteWorker",
        tag="Workers",
        text="Its tasks wait for `disconnectGraceMs`, and go to others then. Who has registered it "
        "signs it off with `worker:connect` alone.",
        answers={204: Answer("Forgotten.")},
        errors=(404,),
        feature="workers",
    ),
    Route(
        "PATCH",
        "/workers/{worker_id}/status",
        "worker:manage",
        "Drain or resume a worker",
        name="setWorkerStatus",
        tag="Workers",
        body=WorkerChange,
        answers={200: Answer("The worker.", Worker)},
        errors=(400, 404, 413),
        feature="workers",
    ),
    Route(
        "GET",
        "/workers/pull",
        "worker:connect",
        "Wait for a task",
        name="pullTask",
        tag="Workers",
        params=(
            Param("workerId", "Who asks.", TEXT, required=True),
            Param("weight", "Kept as the worker's new weight.", {"type": "number"}),
            Param("timeout", "How long to wait, in ms.", {"type": "integer", "default": 30000}),
        ),
        answers={
            200: Answer(
                "A task, assigned.",
                Task,
                headers={"Taskcast-Fence": "To be given with what is done for the task."},
            ),
            204: Answer("No task in this time, or no such worker."),
        },
        errors=(400,),
        feature="workers",
    ),
    Route(
        "POST",
        "/workers/tasks/{task_id}/decline",
        "worker:connect",
        "Give a task back",
        name="declineTask",
        tag="Workers",
        body=Decline,
        answers={200: Answer("Whether or not there was anything to decline.", Done)},
        errors=(400, 404, 413),
        feature="workers",
    ),
)

ACCESS_ROUTES: Final = (
    Route(
        "POST",
        "/tickets",
        "event:subscribe",
        "Make a ticket for a browser",
        name="createTicket",
        tag="Access",
        text=(
            "An `EventSource` can't send headers: `?ticket=` opens the streams of some tasks for a "
            "short time, as who made it. `taskIds` are within those of the maker; `ttlSeconds` is "
            "at most 300. An `EventSource` reconnects to the same URL, so `singleUse` is off "
            "unless asked for. The stream lives as long as the token that made the ticket."
        ),
        body=TicketRequest,
        answers={201: Answer("`expiresAt` is in Unix seconds.", Ticket)},
        errors=(400, 413),
    ),
    Route(
        "POST",
        "/admin/token",
        None,
        "Make a token",
        name="adminToken",
        tag="Access",
        answers={},
        errors=(400, 401, 404, 501),
        # Off, it is a 404 that a client may meet, and nothing to offer.
        listed=False,
    ),
    Route(
        "POST",
        "/admin/revoke",
        None,
        "Revoke tokens by `jti` or `sub`",
        name="adminRevoke",
        tag="Access",
        answers={},
        errors=(400, 401, 404),
        listed=False,
    ),
)

SERVICE_ROUTES: Final = (
    Route(
        "GET",
        "/",
        None,
        "Name, version and links",
        name="about",
        tag="Service",
        answers={200: Answer("The links are paths.", About)},
    ),
    Route(
        "GET",
        "/health",
        None,
        "Is the process alive",
        name="health",
        tag="Service",
        answers={200: Answer("It is.", Health)},
    ),
    Route(
        "GET",
        "/health/ready",
        None,
        "Does it take work",
        name="ready",
        tag="Service",
        answers={
            200: Answer("It does.", Readiness),
            503: Answer("It shuts down, or a dependency is away.", Readiness),
        },
    ),
    Route(
        "GET",
        "/health/detail",
        None,
        "What it runs on",
        name="healthDetail",
        tag="Service",
        answers={200: Answer("Parts and their state.", HealthDetail)},
    ),
    Route(
        "GET",
        "/metrics",
        "metrics:read",
        "Metrics for Prometheus",
        name="metrics",
        tag="Service",
        text="Who asks from the same machine needs no token.",
        answers={200: Answer("The text exposition format.", media="text/plain")},
    ),
    Route(
        "GET",
        "/openapi.json",
        None,
        "This document",
        name="openapi",
        tag="Service",
        answers={200: Answer("OpenAPI 3.1.", dict[str, Any])},
    ),
    Route(
        "GET",
        "/docs",
        None,
        "This document, for people",
        name="docs",
        tag="Service",
        answers={200: Answer("A page that needs no other server.", media="text/html")},
    ),
    Route(
        "GET",
        "/docs/assets/{name}",
        None,
        "The parts of the page",
        name="docsAsset",
        tag="Service",
        answers={200: Answer("Script or licence.", media="text/javascript")},
        errors=(404,),
        listed=False,
    ),
)
