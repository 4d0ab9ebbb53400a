"""The routes of events: publish, history, and the streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import TypeAlias

import msgspec
from quart import Response
from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio

from taskcast_trio.core.errors import PayloadTooLarge
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import Draft
from taskcast_trio.engine import Follow, FollowAllOptions, HistoryQuery, Runtime
from taskcast_trio.engine.history import History

from . import answers, sse
from .query import Query
from .requests import idempotency_key, is_head, last_event_id, query, read_body, streamed
from .target import path_id

Published: TypeAlias = Draft | list[Draft]

SINCE = frozenset({"since.id", "since.index", "since.timestamp"})
FILTER = frozenset({"types", "levels", "includeStatus"})
HISTORY_PARAMETERS = SINCE | FILTER | {"limit", "seriesFormat"}
STREAM_PARAMETERS = HISTORY_PARAMETERS | {"wrap", "last_event_id"}
GLOBAL_PARAMETERS = frozenset({"types", "levels", "existing"})


def history_query(parameters: Query) -> HistoryQuery:
    return HistoryQuery(
        filter=EventFilter.from_query(
            parameters.get("types"), parameters.get("levels"), parameters.get("includeStatus")
        ),
        since_id=parameters.get("since.id") or None,
        since_index=parameters.number("since.index"),
        since_timestamp=parameters.number("since.timestamp"),
        limit=parameters.limit(),
        accumulated=parameters.get("seriesFormat") == "accumulated",
    )


def follow_query(parameters: Query, last_event_id: str | None) -> Follow:
    return Follow(
        filter=EventFilter.from_query(
            parameters.get("types"), parameters.get("levels"), parameters.get("includeStatus")
        ),
        last_event_id=last_event_id or parameters.get("last_event_id") or None,
        since_id=parameters.get("since.id") or None,
        since_index=parameters.lenient_number("since.index"),
        since_timestamp=parameters.lenient_number("since.timestamp"),
        resumed=any(name in parameters for name in SINCE),
        limit=parameters.limit(),
        accumulated=parameters.get("seriesFormat") == "accumulated",
    )


async def _history_text(history: History) -> AsyncIterator[bytes]:
    yield b"["
    first = True
    async for events in history.pages():
        separated = (b"," + msgspec.json.encode(event) for event in events)
        for text in sse.chunks(separated):
            yield text[1:] if first else text
            first = False
    yield b"]"


def _stream(body: ResponseBody | bytes) -> Response:
    answer = streamed(body, sse.HEADERS["Content-Type"])
    answer.headers.update(sse.HEADERS)
    return answer


def register(app: QuartTrio, runtime: Runtime) -> None:
    engine, config = runtime.engine, runtime.config
    limits = config.limits
    task_pace = sse.Pace(config.sse.keepalive_seconds, config.sse.retry_ms)
    global_pace = sse.Pace(config.sse.global_keepalive_seconds, config.sse.retry_ms)

    @app.post("/tasks/<task_id>/events")
    async def publish(task_id: str) -> Response:
        body: Published = await read_body(Published, limits)
        drafts = body if isinstance(body, list) else [body]
        if len(drafts) > limits.batch_events:
            raise PayloadTooLarge(f"A batch holds at most {limits.batch_events} events")
        entries = await engine.publish(path_id(task_id), drafts, key=idempotency_key())
        events = [entry.event for entry in entries]
        return answers.json(events if isinstance(body, list) else events[0], HTTPStatus.CREATED)

    @app.get("/tasks/<task_id>/events/history")
    async def history(task_id: str) -> Response:
        pages = await engine.history(path_id(task_id), history_query(query(HISTORY_PARAMETERS)))
        return streamed(b"" if is_head() else _history_text(pages), answers.JSON_TYPE)

    @app.get("/tasks/<task_id>/events")
    async def follow(task_id: str) -> Response:
        parameters = query(STREAM_PARAMETERS)
        how = follow_query(parameters, last_event_id())
        status = await engine.finished(path_id(task_id), how)
        if status is not None:
            return Response(b"", HTTPStatus.NO_CONTENT, {"Taskcast-Status": status})
        if is_head():
            return _stream(b"")
        wrap = parameters.get("wrap") != "false"
        subscription = engine.subscribe(path_id(task_id), how)
        return _stream(sse.TaskStream(subscription, task_pace, wrap=wrap))

    @app.get("/events")
    async def follow_all() -> Response:
        parameters = query(GLOBAL_PARAMETERS)
        options = FollowAllOptions(
            filter=EventFilter.from_query(
                parameters.get("types"), parameters.get("levels"), None, empty_is_absent=True
            ),
            existing=parameters.flag("existing"),
        )
        if is_head():
            return _stream(b"")
        return _stream(sse.GlobalStream(engine.follow_all(options), global_pace))
