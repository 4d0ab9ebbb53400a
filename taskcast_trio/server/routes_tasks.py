"""The routes of tasks: create, read, transition, answer, archive."""

from __future__ import annotations

from http import HTTPStatus

from quart import Response
from quart_trio import QuartTrio

from taskcast_trio.core.model import CreateTask, ImportTask, Resolve, StorageRelease, Transition
from taskcast_trio.engine import Runtime

from . import answers
from .requests import idempotency_key, is_head, query, read_body, streamed
from .target import path_id

# An archive wraps what was accepted before: archive, events, event, and a status event's data.
ARCHIVE_LEVELS = 6
LIST_PARAMETERS = frozenset({"status", "type", "after", "limit"})


def register(app: QuartTrio, runtime: Runtime) -> None:
    engine, limits = runtime.engine, runtime.config.limits

    @app.post("/tasks")
    async def create_task() -> Response:
        request: CreateTask = await read_body(CreateTask, limits)
        task = await engine.create(request, key=idempotency_key())
        return answers.json(task, HTTPStatus.CREATED)

    @app.get("/tasks")
    async def list_tasks() -> Response:
        parameters = query(LIST_PARAMETERS)
        statuses = frozenset(filter(None, (parameters.get("status") or "").split(",")))
        tasks = await engine.list_tasks(
            statuses=statuses or None,
            type_=parameters.get("type") or None,
            after=parameters.get("after") or None,
            limit=parameters.limit(),
        )
        return answers.json({"tasks": tasks})

    @app.get("/tasks/<task_id>")
    async def get_task(task_id: str) -> Response:
        return answers.json(await engine.get(path_id(task_id)))

    @app.delete("/tasks/<task_id>")
    async def delete_task(task_id: str) -> Response:
        await engine.delete(path_id(task_id))
        return Response(b"", HTTPStatus.NO_CONTENT)

    @app.patch("/tasks/<task_id>/status")
    async def transition_task(task_id: str) -> Response:
        change: Transition = await read_body(Transition, limits)
        task = await engine.transition(path_id(task_id), change, key=idempotency_key())
        return answers.json(task)

    @app.post("/tasks/<task_id>/resolve")
    async def resolve_task(task_id: str) -> Response:
        # The contract judges existence and state before the body.
        await engine.blocked(path_id(task_id))
        answer: Resolve = await read_body(Resolve, limits)
        return answers.json(await engine.resolve(path_id(task_id), answer.data))

    @app.get("/tasks/<task_id>/request")
    async def blocked_request(task_id: str) -> Response:
        return answers.json(await engine.blocked_request(path_id(task_id)))

    @app.get("/tasks/<task_id>/archive")
    async def export_task(task_id: str) -> Response:
        parts = await engine.archive(path_id(task_id))
        return streamed(b"" if is_head() else parts, answers.JSON_TYPE)

    @app.post("/tasks/import")
    async def import_task() -> Response:
        request: ImportTask = await read_body(ImportTask, limits, wrapped_levels=ARCHIVE_LEVELS)
        return answers.json(await engine.import_task(request))

    @app.post("/tasks/<task_id>/storage/release")
    async def release_storage(task_id: str) -> Response:
        request: StorageRelease = await read_body(StorageRelease, limits)
        await engine.release_storage(path_id(task_id), request)
        return Response(b"", HTTPStatus.NO_CONTENT)
