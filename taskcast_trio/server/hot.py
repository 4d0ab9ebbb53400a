"""The hot routes, publish and subscribe, as plain ASGI in front of Quart.

They share the engine, the limits, the queries and the shape of errors with the routes behind them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import msgspec
import structlog
import trio

from taskcast_trio.core import validate
from taskcast_trio.core.access import Caller
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import RateLimited, SeqGap, TaskcastError
from taskcast_trio.engine import Runtime
from taskcast_trio.server import sse
from taskcast_trio.server.auth.admission import Admission, Admissions
from taskcast_trio.server.auth.gate import caller_of, limit_key
from taskcast_trio.server.auth.permit import fence_of, idempotency_key, permit, permit_task, visible
from taskcast_trio.server.bodies import PeerGone, read_body
from taskcast_trio.server.ingest import ingest, is_ndjson
from taskcast_trio.server.plain import JSON, Answer, error_answer, field_of, json_answer
from taskcast_trio.server.publish_ws import Publisher, upgrade_required
from taskcast_trio.server.publishing import batch_of, publish_held, read_drafts, unless_gone
from taskcast_trio.server.queries import STREAM_PARAMETERS, follow_all_query, follow_query
from taskcast_trio.server.query import Query
from taskcast_trio.server.target import ASGIApp, Receive, Scope, Send, local_path, path_id
from taskcast_trio.server.worker_ws import WorkerConnection

ROUTES: Final = (
    ("POST", "/tasks/{task_id}/events"),
    ("GET", "/tasks/{task_id}/events"),
    ("GET", "/tasks/{task_id}/events/ws"),
    ("GET", "/events"),
)
WORKER_ROUTES: Final = (("GET", "/workers/ws"),)
WORKER_SOCKET: Final = ["", "workers", "ws"]
_READS: Final = ("GET", "HEAD")

log = structlog.get_logger(__name__)


class HotRoutes:
    """ASGI middleware that answers the hot routes and hands on everything else."""

    def __init__(self, app: ASGIApp, runtime: Runtime, admissions: Admissions) -> None:
        config = runtime.config
        self._app = app
        self._admissions = admissions
        self._runtime = runtime
        self._engine = runtime.engine
        self._told = None if runtime.backend.peers is None else runtime.engine.audience_told
        self._limits = config.limits
        self._body_timeout_s = config.server.body_timeout_seconds
        self._task_pace = sse.Pace(config.sse.keepalive_seconds, config.sse.retry_ms)
        self._global_pace = sse.Pace(config.sse.global_keepalive_seconds, config.sse.retry_ms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        handler = self._route(scope, receive) if scope["type"] == "http" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        try:
            answer = await handler
            if isinstance(answer, sse.Stream) and scope["method"] != "HEAD":
                await answer.open()
        except TaskcastError as raised:
            answer = error_answer(raised)
        except PeerGone:
            return
        except Exception as error:
            log.error("request crashed", error=type(error).__name__, exc_info=error)
            text = msgspec.json.encode({"error": "Internal server error", "code": "internal_error"})
            answer = Answer(500, text, [JSON])
        if isinstance(answer, Answer):
            await answer.send(scope, send)
            return
        if scope["method"] == "HEAD":
            await sse.send_head(send)
            await send({"type": "http.response.body"})
            return
        try:
            await sse.send_stream(answer, scope, receive, send)
        finally:
            answer.close()

    def _route(self, scope: Scope, receive: Receive) -> Awaitable[Answer | sse.Stream] | None:
        path = local_path(scope)
        method: str = scope["method"]
        if path == "/events":
            return self._follow_all(scope) if method in _READS else None
        parts = path.split("/")
        if len(parts) != 4 or parts[1] != "tasks" or parts[3] != "events" or not parts[2]:
            is_socket = _is_socket(parts)
            if parts == WORKER_SOCKET:
                is_socket = self._runtime.workers is not None
            is_handshake = method in _READS and is_socket
            return upgrade_required(scope) if is_handshake else None
        if method == "POST":
            return self._publish(path_id(parts[2]), scope, receive)
        return self._follow(path_id(parts[2]), scope) if method in _READS else None

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = local_path(scope).split("/")
        if parts == WORKER_SOCKET and self._runtime.workers is not None:
            connection = WorkerConnection(
                self._runtime, self._runtime.workers, self._admissions, send
            )
            await connection.run(scope, receive)
        elif _is_socket(parts):
            publisher = Publisher(self._runtime, self._admissions, path_id(parts[2]), send)
            await publisher.run(scope, receive)
        else:
            await self._app(scope, receive, send)

    async def _publish(self, task_id: str, scope: Scope, receive: Receive) -> Answer:
        if is_ndjson(scope):
            caller = await permit_task(self._engine, scope, "publishEvents", task_id)
            with self._admissions.open(caller, limit_key(scope)) as admission:
                return await ingest(self._runtime, admission, task_id, scope, receive)
        limits = self._limits
        body = await read_body(scope, receive, limits.body_bytes, timeout_s=self._body_timeout_s)
        published = await read_drafts(body, limits)
        drafts = batch_of(published)
        caller = caller_of(scope)
        if not caller.open:
            for number, draft in enumerate(drafts):
                validate.draft(draft, number)
            await permit_task(self._engine, scope, "publishEvents", task_id)
        field, fence = field_of(scope, b"idempotency-key"), fence_of(scope)
        key = None if field is None else idempotency_key(field.decode("latin-1"), caller)
        engine = self._engine
        try:
            entries = await engine.publish(task_id, drafts, key=key, fence=fence, hold=False)
        except SeqGap as gap:
            held = partial(self._while_held, scope, receive)
            entries = await publish_held(
                engine, task_id, drafts, gap, held, caller, key=key, fence=fence
            )
        events = [entry.event for entry in entries]
        answer = events if isinstance(published, list) else events[0]
        return json_answer(201, msgspec.json.encode(answer))

    async def _while_held(
        self, scope: Scope, receive: Receive, publish: Callable[[], Awaitable[Sequence[Entry]]]
    ) -> Sequence[Entry]:
        """Publish what waits: meanwhile it is one of the caller's streams, and ends as they do."""
        with self._admissions.open(caller_of(scope), limit_key(scope)) as admission:
            return await admission.during(unless_gone, receive, publish)

    async def _follow(self, task_id: str, scope: Scope) -> Answer | sse.Stream:
        parameters = Query(scope["query_string"], STREAM_PARAMETERS)
        how = follow_query(parameters, _last_event_id(scope))
        caller = await permit_task(self._engine, scope, "followTask", task_id)
        status = await self._engine.finished(task_id, how)
        if status is not None:
            return Answer(204, headers=[(b"taskcast-status", status.encode())])
        if not caller.open:
            how = replace(how, visible=partial(visible, caller, "followTask"))
        limit = self._limits.task_subscribers
        if await self._engine.subscribers(task_id) >= limit:
            raise RateLimited(f"Task {task_id} has {limit} subscribers, as many as it may have")
        return sse.TaskStream(
            self._engine.subscribe(task_id, how),
            self._task_pace,
            self._admit(scope, caller),
            wrap=parameters.get("wrap") != "false",
            told=self._told,
        )

    async def _follow_all(self, scope: Scope) -> sse.Stream:
        options = follow_all_query(scope["query_string"])
        await trio.lowlevel.checkpoint()
        caller = permit(scope, "followAll")
        if not caller.open:
            options = replace(options, visible=partial(visible, caller, "followAll"))
        return sse.GlobalStream(
            self._engine.follow_all(options), self._global_pace, self._admit(scope, caller)
        )

    def _admit(self, scope: Scope, caller: Caller) -> Admission | None:
        if scope["method"] == "HEAD":
            return None
        return self._admissions.open(caller, limit_key(scope))


def _is_socket(parts: list[str]) -> bool:
    """Whether a path is ``/tasks/{task_id}/events/ws``."""
    return parts[:2] + parts[3:] == ["", "tasks", "events", "ws"] and parts[2] != ""


def _last_event_id(scope: Scope) -> str | None:
    """The header, as UTF-8: the encoding in which an ``EventSource`` sends it."""
    value = field_of(scope, b"last-event-id")
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1") if value else None
