"""The routes of tasks: create, read, transition, answer, archive."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from msgspec import UNSET
from quart import Response
from quart_trio import QuartTrio

from taskcast_trio.core import machine, validate
from taskcast_trio.core.access import Caller, check_rules, exported, shown
from taskcast_trio.core.errors import Forbidden, RequestNotFound
from taskcast_trio.core.model import (
    ArchivedTask,
    CreateTask,
    ImportTask,
    Resolve,
    StorageRelease,
    Task,
    Transition,
)
from taskcast_trio.engine import Runtime

from . import answers
from .auth.admission import Admissions
from .auth.permit import visible
from .requests import Permits, idempotency_key, is_head, query, read_body, streamed
from .target import path_id

# An archive wraps what was accepted before: archive, events, event, and a status event's data.
ARCHIVE_LEVELS = 6
MAX_WAIT_S = 60
LIST_PARAMETERS = frozenset({"status", "type", "after", "limit"})
REQUEST_PARAMETERS = frozenset({"wait"})


def register(app: QuartTrio, runtime: Runtime, admissions: Admissions) -> None:
    engine, limits = runtime.engine, runtime.config.limits
    permits = Permits(engine)

    def answer(task: Task, caller: Caller, status: int = HTTPStatus.OK) -> Response:
        return answers.json(shown(task, caller), status)

    @app.post("/tasks")
    async def create_task() -> Response:
        # The contract judges what a request says before who says it.
        request: CreateTask = await read_body(CreateTask, limits)
        validate.new_task(request)
        caller = permits.route("createTask")
        if not caller.open:
            check_rules(request.auth_config)
            _check_webhooks(caller, request)
            if caller.service is None:  # a service may create what it can't reach then
                _check_new_id(caller, request)
        task = await engine.create(request, key=idempotency_key(caller))
        return answer(task, caller, HTTPStatus.CREATED)

    @app.get("/tasks")
    async def list_tasks() -> Response:
        parameters = query(LIST_PARAMETERS)
        caller = permits.route("listTasks")
        statuses = frozenset(filter(None, (parameters.get("status") or "").split(",")))
        tasks = await engine.list_tasks(
            statuses=statuses or None,
            type_=parameters.get("type") or None,
            after=parameters.get("after") or None,
            limit=parameters.limit(),
            visible=None if caller.open else partial(visible, caller, "listTasks"),
        )
        return answers.json({"tasks": [shown(task, caller) for task in tasks]})

    @app.get("/tasks/<task_id>")
    async def get_task(task_id: str) -> Response:
        caller = await permits.task("getTask", path_id(task_id))
        return answer(await engine.get(path_id(task_id)), caller)

    @app.delete("/tasks/<task_id>")
    async def delete_task(task_id: str) -> Response:
        await permits.task("deleteTask", path_id(task_id))
        await engine.delete(path_id(task_id))
        return Response(b"", HTTPStatus.NO_CONTENT)

    @app.patch("/tasks/<task_id>/status")
    async def transition_task(task_id: str) -> Response:
        change: Transition = await read_body(Transition, limits)
        machine.check_transition(change)
        caller = await permits.task("transitionTask", path_id(task_id))
        key, fence = idempotency_key(caller), permits.fence()
        task = await engine.transition(path_id(task_id), change, key=key, fence=fence)
        return answer(task, caller)

    @app.post("/tasks/<task_id>/resolve")
    async def resolve_task(task_id: str) -> Response:
        # The contract judges existence and state before the body.
        caller = await permits.task("resolveTask", path_id(task_id))
        await engine.blocked(path_id(task_id))
        resolution: Resolve = await read_body(Resolve, limits)
        fence = permits.fence()
        task = await engine.resolve(path_id(task_id), resolution.data, fence=fence)
        return answer(task, caller)

    @app.get("/tasks/<task_id>/request")
    async def blocked_request(task_id: str) -> Response:
        wait_s = 0.0 if is_head() else query(REQUEST_PARAMETERS).seconds("wait", MAX_WAIT_S)
        caller = await permits.task("getBlockedRequest", path_id(task_id))
        try:
            return answers.json(await engine.blocked_request(path_id(task_id)))
        except RequestNotFound:
            if not wait_s:
                raise
        # From here on it is one of the caller's streams, and ends when they would.
        with admissions.open(caller, permits.limit_key()) as admission:
            request = await admission.during(
                engine.blocked_request,
                path_id(task_id),
                wait_s=wait_s,
                visible=None if caller.open else partial(visible, caller, "getBlockedRequest"),
            )
        await permits.recheck()
        return answers.json(request)

    @app.get("/tasks/<task_id>/archive")
    async def export_task(task_id: str) -> Response:
        caller = await permits.task("exportTask", path_id(task_id))
        parts = await engine.archive(path_id(task_id), shown=partial(exported, caller=caller))
        return streamed(b"" if is_head() else parts, answers.JSON_TYPE)

    @app.post("/tasks/import")
    async def import_task() -> Response:
        request: ImportTask = await read_body(ImportTask, limits, wrapped_levels=ARCHIVE_LEVELS)
        task = request.archive.task
        caller = permits.route("importTask", task.id)
        if not caller.open:
            check_rules(task.auth_config, "$.archive.task.authConfig")
            _check_webhooks(caller, task)
            if request.overwrite:
                await permits.existing("importTask", task.id)
        return answers.json(await engine.import_task(request))

    @app.post("/tasks/<task_id>/storage/release")
    async def release_storage(task_id: str) -> Response:
        request: StorageRelease = await read_body(StorageRelease, limits)
        validate.storage_release(request)
        await permits.task("releaseStorage", path_id(task_id))
        await engine.release_storage(path_id(task_id), request)
        return Response(b"", HTTPStatus.NO_CONTENT)


def _check_webhooks(caller: Caller, request: CreateTask | ArchivedTask) -> None:
    if request.webhooks is not UNSET and request.webhooks:
        caller.require("webhook:create")


def _check_new_id(caller: Caller, request: CreateTask) -> None:
    if request.id is not UNSET:
        caller.require("task:create", request.id)
    elif caller.task_ids is not None:
        raise Forbidden("This caller is limited to some tasks: name one of them in id")
