"""The HTTP application: a Quart-Trio app over one runtime."""

from __future__ import annotations

from http import HTTPStatus
from typing import cast

import structlog
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.engine import Runtime

from . import answers, routes_events, routes_service, routes_tasks
from .bodies import too_large
from .connection import GuardStats
from .edge import Edge
from .exporter import GuardCollector
from .hot import HotRoutes
from .requests import request_class
from .target import ASGIApp, TargetGuard

log = structlog.get_logger(__name__)

BODY_TIMEOUT_S = 10
RESPONSE_TIMEOUT_S = 30


def create_app(runtime: Runtime, *, stats: GuardStats | None = None) -> QuartTrio:
    """An ASGI app on ``runtime``, which stays its owner's to close.

    ``stats`` are the connection counters of the server that will serve it, for ``/metrics``.

    It can be served by Hypercorn (see ``server.serve``), mounted under a prefix (``root_path``) of
    another app, or called in memory. It starts no task of its own.
    """
    app = QuartTrio("taskcast_trio", static_folder=None)
    app.config.update(
        BODY_TIMEOUT=BODY_TIMEOUT_S,
        RESPONSE_TIMEOUT=RESPONSE_TIMEOUT_S,
        PROVIDE_AUTOMATIC_OPTIONS=False,
        PROPAGATE_EXCEPTIONS=False,
    )
    app.request_class = request_class(runtime.config.limits)
    app.url_map.merge_slashes = False

    @app.errorhandler(TaskcastError)
    async def on_error(raised: TaskcastError) -> Response:
        return answers.from_error(raised)

    @app.errorhandler(HTTPException)
    async def on_http_error(raised: HTTPException) -> Response:
        status = raised.code or HTTPStatus.INTERNAL_SERVER_ERROR
        if isinstance(raised, RequestEntityTooLarge):
            return answers.from_error(too_large(request.max_content_length or 0))
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return answers.not_found()
        return answers.error(status, raised.description or raised.name, f"http_{status}")

    @app.errorhandler(Exception)
    async def on_crash(raised: Exception) -> Response:
        log.error("request crashed", error=type(raised).__name__, exc_info=raised)
        return answers.error(
            HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error", "internal_error"
        )

    if stats is not None:
        runtime.metrics.registry.register(GuardCollector(stats))
    routes_service.register(app, runtime)
    routes_tasks.register(app, runtime)
    routes_events.register(app, runtime)
    hot = HotRoutes(cast(ASGIApp, app.asgi_app), runtime)
    app.asgi_app = TargetGuard(Edge(hot, runtime))  # type: ignore[method-assign, assignment]
    return app
