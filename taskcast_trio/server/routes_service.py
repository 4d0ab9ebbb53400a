"""The routes about the server itself: info, health, metrics, documentation."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from quart import Response, request
from quart_trio import QuartTrio

from taskcast_trio import __version__
from taskcast_trio.engine import Runtime

from . import answers, docs, openapi, readiness
from .requests import Permits

NAME = "taskcast-trio"
API_VERSION = "v1"
STORAGE_PROTOCOL_VERSION = 2


def register(app: QuartTrio, runtime: Runtime) -> None:
    config = runtime.config
    permits = Permits(runtime.engine)
    about = {"name": NAME, "version": __version__, "apiVersion": API_VERSION}
    links = {
        "health": "/health",
        "healthReady": "/health/ready",
        "healthDetail": "/health/detail",
        "openapi": "/openapi.json",
        "docs": "/docs",
    }

    @cache
    def openapi_text() -> bytes:
        return msgspec.json.encode(
            openapi.document(workers=config.workers.enabled, version=__version__)
        )

    @app.get("/")
    async def root() -> Response:
        base = request.root_path
        return answers.json({**about, "links": {name: base + path for name, path in links.items()}})

    @app.get("/health")
    async def health() -> Response:
        return answers.json({"ok": True, **about})

    @app.get("/health/ready")
    async def ready() -> Response:
        dependencies = readiness.dependencies(runtime)
        if runtime.drain.is_set():
            return answers.json(
                {"ok": False, "dependencies": dependencies, "draining": True},
                HTTPStatus.SERVICE_UNAVAILABLE,
            )
        ok = readiness.all_ok(dependencies)
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        return answers.json({"ok": ok, "dependencies": dependencies}, status)

    @app.get("/health/detail")
    async def detail() -> Response:
        dependencies = readiness.dependencies(runtime)
        return answers.json(
            {
                "ok": not runtime.drain.is_set() and readiness.all_ok(dependencies),
                **about,
                "uptime": (runtime.engine.clock() - runtime.started_ms) // 1000,
                "auth": {"mode": config.auth.mode},
                "durability": runtime.backend.durability,
                "adapters": readiness.adapters(runtime),
                "dependencies": dependencies,
                "storage": {
                    "releaseReady": False,
                    "requiredStorageProtocolVersion": STORAGE_PROTOCOL_VERSION,
                    "activeWriterCount": readiness.processes(runtime),
                    "incompatibleWriterIds": [],
                },
            }
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        permits.route("metrics")
        runtime.metrics.tasks.set(await runtime.engine.store.count())
        if runtime.archiver is not None:
            runtime.metrics.archive_lag_seconds.set(await runtime.archiver.lag_ms() / 1000)
        text = generate_latest(runtime.metrics.registry)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json")
    async def openapi_page() -> Response:
        return answers.json_text(openapi_text())

    @app.get("/docs")
    async def docs_page() -> Response:
        return Response(docs.page(), content_type="text/html; charset=UTF-8")

    @app.get("/docs/assets/<name>")
    async def docs_asset(name: str) -> Response:
        found = docs.asset(name)
        if found is None:
            return answers.not_found()
        content, media_type = found
        answer = Response(content, content_type=media_type)
        answer.headers["Cache-Control"] = "public, max-age=3600"
        return answer
