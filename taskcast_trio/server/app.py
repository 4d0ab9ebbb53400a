"""The HTTP application: a Quart-Trio app over one runtime."""

from __future__ import annotations

from http import HTTPStatus
from typing import cast

import structlog
from quart import Response
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.engine import Runtime

from . import (
    answers,
    routes_auth,
    routes_cleanup,
    routes_events,
    routes_service,
    routes_tasks,
    routes_webhooks,
    routes_workers,
)
from .auth.admission import Admissions
from .auth.custom import Authenticate
from .auth.gate import Authenticator, Gate
from .auth.limits import StreamSlots, limiter_of
from .auth.methods import methods
from .auth.revocation import Revocations
from .auth.tickets import Tickets
from .bodies import too_large
from .connection import GuardStats
from .edge import Edge
from .exporter import GuardCollector
from .hot import HotRoutes
from .requests import body_limit, request_class
from .target import ASGIApp, TargetGuard

log = structlog.get_logger(__name__)

RESPONSE_TIMEOUT_S = 30


def create_app(
    runtime: Runtime,
    *,
    stats: GuardStats | None = None,
    authenticate: Authenticate | None = None,
) -> QuartTrio:
    """An ASGI app on ``runtime``, which stays its owner's to close.

    ``stats`` are the connection counters of the server that will serve it, for ``/metrics``.
    ``authenticate`` finds the caller of a request where ``auth.mode`` is ``custom``; without it
    the one that ``auth.custom`` names is used, and without that every caller is refused.

    It can be served by Hypercorn (see ``server.serve``), mounted under a prefix (``root_path``) of
    another app (see ``server.mount``), or called in memory. It starts no task of its own.

    Raises:
        ConfigError: what the configuration says of authentication can't work.
    """
    config, engine = runtime.config, runtime.engine
    how = methods(config, engine.clock, authenticate)
    if config.auth.mode == "custom" and how.authenticate is None:
        log.warning("nobody can authenticate: auth.mode is custom, and there is no callable")
    leeway_s = config.auth.jwt.leeway_seconds
    tickets = Tickets(engine.store, clock_ms=engine.clock, leeway_s=leeway_s)
    revocations = Revocations(engine.store, clock_ms=engine.clock, leeway_s=leeway_s)
    admissions = Admissions(
        StreamSlots(config.limits.streams, config.limits.streams_per_caller),
        clock_ms=engine.clock,
        grace_s=config.auth.stream_expiry_grace_seconds,
    )
    app = QuartTrio("taskcast_trio", static_folder=None)
    app.config.update(
        BODY_TIMEOUT=runtime.config.server.body_timeout_seconds,
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
            return answers.from_error(too_large(body_limit()))
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
    routes_tasks.register(app, runtime, admissions)
    routes_events.register(app, runtime)
    routes_cleanup.register(app, runtime)
    if runtime.workers is not None:
        routes_workers.register(app, runtime, runtime.workers, admissions)
    routes_webhooks.register(app, runtime)
    routes_auth.register(app, runtime, tickets, revocations, admissions, how.verifier)
    hot = HotRoutes(cast(ASGIApp, app.asgi_app), runtime, admissions)
    gate = Gate(
        hot,
        how,
        Authenticator(how, tickets, revocations, engine.clock),
        limiter_of(runtime, "requests", config.limits.requests_per_second),
        origins=config.cors.origins,
    )
    app.asgi_app = TargetGuard(Edge(gate, runtime))  # type: ignore[method-assign, assignment]
    return app
