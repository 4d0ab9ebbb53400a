"""CORS (Fetch standard, section 3.2), as configured; off by default."""

from __future__ import annotations

from http import HTTPStatus

from quart import Response, request
from quart_trio import QuartTrio

from taskcast_trio.config.schema import Cors

METHODS = "GET, HEAD, POST, PATCH, DELETE"
MAX_AGE_S = "600"


def register(app: QuartTrio, cors: Cors) -> None:
    """Answer preflights on every path, and mark the answers to allowed origins."""
    origins = frozenset(cors.origins)
    if not origins:
        return

    def allowed(origin: str | None) -> str | None:
        if origin is None or not ("*" in origins or origin in origins):
            return None
        return origin if cors.credentials or "*" not in origins else "*"

    @app.before_request
    async def preflight() -> Response | None:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if allowed(request.headers.get("Origin")) is None:
            return None
        answer = Response(b"", HTTPStatus.NO_CONTENT)
        answer.headers["Access-Control-Allow-Methods"] = METHODS
        answer.headers["Access-Control-Allow-Headers"] = ", ".join(cors.headers)
        answer.headers["Access-Control-Max-Age"] = MAX_AGE_S
        return answer

    @app.after_request
    async def mark(answer: Response) -> Response:
        origin = allowed(request.headers.get("Origin"))
        answer.headers.add("Vary", "Origin")
        if origin is not None:
            answer.headers["Access-Control-Allow-Origin"] = origin
            answer.headers["Access-Control-Expose-Headers"] = "Retry-After, Taskcast-Status"
            if cors.credentials:
                answer.headers["Access-Control-Allow-Credentials"] = "true"
        return answer
