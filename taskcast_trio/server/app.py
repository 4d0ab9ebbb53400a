"""The HTTP application: a Quart-Trio app over one runtime."""

from __future__ import annotations

from http import HTTPStatus

import structlog
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from taskcast_trio.core.errors import Draining, PayloadTooLarge, TaskcastError
from taskcast_trio.engine import Runtime

from . import answers, cors, routes_events, routes_service, routes_tasks
from .connection import GuardStats
from .exporter import GuardCollector
from .requests import request_class
from .target import TargetGuard

log = structlog.get_logger(__name__)

BODY_TIMEOUT_S = 10
RESPONSE_TIMEOUT_S = 30
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})


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

    @app.before_request
    async def refuse_while_draining() -> None:
        if runtime.drain.is_set() and not request.path.startswith("/health"):
            raise Draining("The server is shutting down: try again")

    @app.after_request
    async def count(answer: Response) -> Response:
        method = request.method if request.method in METHODS else "other"
        runtime.metrics.requests.labels(method, str(answer.status_code)).inc()
        return answer

    @app.errorhandler(TaskcastError)
    async def on_error(raised: TaskcastError) -> Response:
        return answers.from_error(raised)

    @app.errorhandler(HTTPException)
    async def on_http_error(raised: HTTPException) -> Response:
        status = raised.code or HTTPStatus.INTERNAL_SERVER_ERROR
        if isinstance(raised, RequestEntityTooLarge):
            limit = request.max_content_length
            return answers.from_error(
                PayloadTooLarge(f"The body is over the limit of {limit} bytes")
            )
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
    cors.register(app, runtime.config.cors)
    routes_service.register(app, runtime)
    routes_tasks.register(app, runtime)
    routes_events.register(app, runtime)
    app.asgi_app = TargetGuard(app.asgi_app)  # type: ignore[method-assign, assignment]
    return app
