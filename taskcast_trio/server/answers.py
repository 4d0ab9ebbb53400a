"""Answers: JSON of the wire shapes, and the one shape of errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from quart import Response

from taskcast_trio.core.errors import TaskcastError

from .plain import error_answer

JSON_TYPE = "application/json"


def json(value: Any, status: int = HTTPStatus.OK) -> Response:
    return json_text(msgspec.json.encode(value), status)


def json_text(text: bytes, status: int = HTTPStatus.OK) -> Response:
    return Response(text, status, content_type=JSON_TYPE)


def error(status: int, message: str, code: str) -> Response:
    return json({"error": message, "code": code}, status)


def from_error(raised: TaskcastError) -> Response:
    answer = error_answer(raised)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)


def not_found() -> Response:
    return Response("404 Not Found", HTTPStatus.NOT_FOUND, content_type="text/plain; charset=UTF-8")
