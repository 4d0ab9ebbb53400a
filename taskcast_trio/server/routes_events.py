"""The history of events, and where a publisher stands.

Publish and subscribe are hot routes, in front of Quart: see ``hot``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from taskcast_trio.engine import Runtime
from taskcast_trio.engine.history import History

from . import answers, sse
from .openapi_shapes import ExpectedSeq
from .queries import history_query
from .requests import Permits, is_head, streamed
from .target import path_id


async def _history_text(history: History) -> AsyncIterator[bytes]:
    yield b"["
    first = True
    async for events in history.pages():
        separated = (b"," + msgspec.json.encode(event) for event in events)
        for text in sse.chunks(separated):
            yield text[1:] if first else text
            first = False
    yield b"]"


def register(app: QuartTrio, runtime: Runtime) -> None:
    engine = runtime.engine
    permits = Permits(engine)

    @app.get("/tasks/<task_id>/seq/<client_id>")
    async def expected_seq(task_id: str, client_id: str) -> Response:
        await permits.task("expectedSeq", path_id(task_id))
        publisher = path_id(client_id)
        expected = await engine.expected_seq(path_id(task_id), publisher)
        return answers.json(ExpectedSeq(client_id=publisher, expected_seq=expected))

    @app.get("/tasks/<task_id>/events/history")
    async def history(task_id: str) -> Response:
        wanted = history_query(request.query_string)
        await permits.task("getHistory", path_id(task_id))
        pages = await engine.history(path_id(task_id), wanted)
        return streamed(b"" if is_head() else _history_text(pages), answers.JSON_TYPE)
