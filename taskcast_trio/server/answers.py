"""Answers: JSON of the wire shapes, and the one shape of errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from quart import Response

from taskcast_trio.core.errors import TaskcastError

JSON_TYPE = "application/json"


def json(value: Any, status: int = HTTPStatus.OK) -> Response:
    return json_text(msgspec.json.encode(value), status)


def json_text(text: bytes, status: int = HTTPStatus.OK) -> Response:
    return Response(text, status, content_type=JSON_TYPE)


def error(status: int, message: str, code: str) -> Response:
    answer = json({"error": message, "code": code}, status)
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        answer.headers["Retry-After"] = "1"
    return answer


def from_error(raised: TaskcastError) -> Response:
    return error(raised.status, str(raised), raised.code)


def not_found() -> Response:
    return Response("404 Not Found", HTTPStatus.NOT_FOUND, content_type="text/plain; charset=UTF-8")
