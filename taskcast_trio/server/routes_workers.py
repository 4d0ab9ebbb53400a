"""The routes of workers: who is there, and everything that a worker needs that pulls."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec
from msgspec import UNSET, Raw
from quart import Response
from quart_trio import QuartTrio

from taskcast_trio.core.access import shown
from taskcast_trio.core.errors import BadRequest, Draining
from taskcast_trio.engine import Runtime
from taskcast_trio.engine.workers import Workers, registry
from taskcast_trio.engine.workers.asked import Registration, checked, is_weight

from . import answers
from .auth.admission import Admissions
from .auth.permit import check_worker, own_registration, owner_of, visible
from .openapi_shapes import (
    Decline,
    Done,
    Heartbeat,
    HeartbeatRequest,
    MatchRule,
    Worker,
    WorkerChange,
    WorkerList,
)
from .requests import Permits, is_head, query, read_body
from .target import path_id

PULL_PARAMETERS: Final = frozenset({"workerId", "weight", "timeout"})
DEFAULT_WAIT_MS: Final = 30_000
MAX_WAIT_MS: Final = 300_000


def register(app: QuartTrio, runtime: Runtime, workers: Workers, admissions: Admissions) -> None:
    limits = runtime.config.limits
    permits = Permits(runtime.engine)

    @app.get("/workers")
    async def list_workers() -> Response:
        permits.route("listWorkers")
        found = [worker_shape(worker) for worker in await workers.all()]
        return answers.json(WorkerList(workers=found))

    @app.get("/workers/<worker_id>")
    async def get_worker(worker_id: str) -> Response:
        permits.route("getWorker")
        return answers.json(worker_shape(await workers.get(path_id(worker_id))))

    @app.delete("/workers/<worker_id>")
    async def delete_worker(worker_id: str) -> Response:
        permits.route("deleteWorker")
        await workers.delete(path_id(worker_id))
        return Response(b"", HTTPStatus.NO_CONTENT)

    @app.patch("/workers/<worker_id>/status")
    async def set_worker_status(worker_id: str) -> Response:
        change: WorkerChange = await read_body(WorkerChange, limits)
        permits.route("setWorkerStatus")
        is_draining = change.status == "draining"
        worker = await workers.set_draining(path_id(worker_id), is_draining)
        return answers.json(worker_shape(worker))

    @app.post("/workers/register")
    async def register_worker() -> Response:
        asked = checked(await read_body(Registration, limits, empty=b"{}"))
        caller = permits.route("registerWorker")
        asked = own_registration(caller, asked)
        worker = await workers.register(asked, mode="pull", owner=owner_of(caller))
        return answers.json(worker_shape(worker), HTTPStatus.CREATED)

    @app.post("/workers/<worker_id>/heartbeat")
    async def heartbeat(worker_id: str) -> Response:
        request: HeartbeatRequest = await read_body(HeartbeatRequest, limits, empty=b"{}")
        caller = permits.route("heartbeatWorker")
        check_worker(caller, path_id(worker_id))
        cancel = await workers.heartbeat(path_id(worker_id), request.tasks, owner=owner_of(caller))
        interval_ms = int(workers.heartbeat_s * 1000)
        return answers.json(Heartbeat(ok=True, cancel=cancel, interval_ms=interval_ms))

    @app.get("/workers/pull")
    async def pull_task() -> Response:
        parameters = query(PULL_PARAMETERS)
        caller = permits.route("pullTask")
        worker_id = parameters.get("workerId")
        if not worker_id:
            raise BadRequest("Query parameter workerId is missing")
        # The contract takes any text for these, and only numbers count.
        weight = parameters.lenient_number("weight") if parameters.get("weight") else None
        if weight is not None and not is_weight(weight):
            weight = None
        wait_ms = parameters.lenient_number("timeout") if parameters.get("timeout") else None
        wait_ms = min(max(DEFAULT_WAIT_MS if wait_ms is None else wait_ms, 0), MAX_WAIT_MS)
        check_worker(caller, worker_id)
        if is_head():
            return Response(b"", HTTPStatus.NO_CONTENT)
        if runtime.drain.is_set():
            raise Draining("The server is shutting down: try again")
        # It is one of the caller's streams, and ends when they would.
        with admissions.open(caller, permits.limit_key()) as admission:
            task = await admission.during(
                workers.pull,
                worker_id,
                owner=owner_of(caller),
                may=partial(visible, caller, "pullTask"),
                weight=weight,
                wait_s=wait_ms / 1000,
            )
        if task is None:
            return Response(b"", HTTPStatus.NO_CONTENT)
        answer = answers.json(shown(task, caller))
        answer.headers["Taskcast-Fence"] = str(task.fence)
        return answer

    @app.post("/workers/tasks/<task_id>/decline")
    async def decline_task(task_id: str) -> Response:
        request: Decline = await read_body(Decline, limits)
        caller = permits.route("declineTask", path_id(task_id))
        check_worker(caller, request.worker_id)
        await workers.decline(
            request.worker_id,
            path_id(task_id),
            blacklist=request.blacklist is True,
            owner=owner_of(caller),
        )
        return answers.json(Done(ok=True))


def worker_shape(worker: registry.Worker) -> Worker:
    return Worker(
        id=worker.id,
        status=worker.status,
        match_rule=msgspec.convert(msgspec.to_builtins(worker.rule), MatchRule),
        capacity=worker.capacity,
        used_slots=worker.used_slots,
        weight=int(worker.weight) if worker.weight.is_integer() else worker.weight,
        connection_mode=worker.mode,
        connected_at=worker.connected_ms,
        last_heartbeat_at=worker.heartbeat_ms,
        metadata=UNSET if worker.metadata is None else Raw(worker.metadata),
    )
