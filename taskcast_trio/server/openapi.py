"""``/openapi.json``: the routes as OpenAPI 3.1, with schemas from the wire structs themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from taskcast_trio.core.model import Envelope
from taskcast_trio.core.validate import MAX_CLIENT_CHARACTERS, MAX_ID_CHARACTERS

from .openapi_examples import STREAM_EXAMPLE, examples
from .openapi_shapes import Error
from .route_parts import JSON_TYPE, NDJSON_TYPE, SSE_TYPE, Answer, Param, Route
from .route_table import routes

JsonObject = dict[str, Any]

_PATH_PARAMETER = re.compile(r"\{(\w+)\}")

_PATH_TEXT: Final = {
    "task_id": "The task's id; a `/` in it is written `%2F`.",
    "worker_id": "The worker's id.",
    "client_id": "The publisher's `clientId`.",
    "number": "The webhook's place in the task's `webhooks`, from 0.",
}
_ERROR_TEXT: Final = {
    400: "The request is wrong; the error says what and where, and nothing was stored.",
    401: "The token is missing or not valid.",
    403: "The token does not allow this.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "It does not go with the present state, and nothing was changed.",
    413: "The body or the batch is over the limit.",
    422: "The `Idempotency-Key` was used for another request.",
    426: "Only a WebSocket handshake is answered here.",
    503: "Not now, or not with this store.",
}
_DESCRIPTION: Final = """\
A *task* is a unit of work. Whoever works on it appends *events* to its log, and any number of
people follow it over server-sent events: from the beginning, from now, or from where they were cut
off.

```sh
curl -X POST $URL/tasks -d '{"id": "sea"}'
curl -X PATCH $URL/tasks/sea/status -d '{"status": "running"}'
curl -X POST $URL/tasks/sea/events -d '{"type": "log", "level": "info", "data": "hi"}'
curl -N $URL/tasks/sea/events
```

Times are Unix milliseconds; ids are ULIDs unless given. Every `GET` answers `HEAD` too.
"""
_TAGS: Final = {
    "Tasks": "Long-lived units of work and their state machine.",
    "Events": "The append-only log of a task: publish, read, follow.",
    "Archive": "Tasks with their events, as documents.",
    "Webhooks": "What becomes of deliveries to other systems.",
    "Workers": "Who takes the tasks.",
    "Access": "Rights to lend and to take back.",
    "Service": "The server itself. These routes ask for no token, but for the metrics.",
}

_UNIX_MS: Final = {"description": "Unix time in ms."}
_OBJECT: Final = {"type": "object"}
_WHOLE: Final = {"type": "integer", "exclusiveMinimum": 0}
_FROM_0: Final = {"type": "integer", "minimum": 0}
_RULES: Final[Mapping[str, JsonObject]] = {
    "params": _OBJECT,
    "metadata": _OBJECT,
    "authConfig": _OBJECT,
    "details": _OBJECT,
    "result": {"type": ["object", "array"]},
    "Transition.result": _OBJECT,
    "ttl": {**_WHOLE, "description": "Seconds."},
    "cost": _WHOLE,
    "resumeAfterMs": _WHOLE,
    "createdAt": _UNIX_MS,
    "updatedAt": _UNIX_MS,
    "completedAt": _UNIX_MS,
    "resumeAt": _UNIX_MS,
    "timestamp": _UNIX_MS,
    "exportedAt": _UNIX_MS,
    "inactiveSince": {**_FROM_0, **_UNIX_MS},
    "expectedLastEventIndex": {"type": "integer", "minimum": -1},
    "index": _FROM_0,
    "clientId": {"minLength": 1, "maxLength": MAX_CLIENT_CHARACTERS},
    "clientSeq": _FROM_0,
    "expectedSeq": _FROM_0,
    "CreateTask.id": {"minLength": 1, "maxLength": MAX_ID_CHARACTERS},
    "data": {"description": "Any JSON; it comes back as it was sent."},
    "seriesAccField": {"description": "The key in `data` whose text accumulates, else `delta`."},
    "at": _UNIX_MS,
    "nextTryAt": _UNIX_MS,
    "fromIndex": _FROM_0,
    "seriesSnapshot": {"description": "This event stands for all pieces of its series so far."},
    "ttlSeconds": {"exclusiveMinimum": 0, "maximum": 300, "default": 60},
    "expiresAt": {"description": "Unix time in seconds."},
    "uptime": {"description": "Whole seconds."},
}
"""What the contract asks beyond the types, by `field` or, before that, by `Shape.field`."""


def document(*, workers: bool, version: str) -> dict[str, object]:
    """The document of a server of this ``version``, with the worker routes where they are on.

    Equal arguments give the same object, which is not to be changed.
    """
    return _document(workers, version)


@lru_cache(maxsize=8)
def _document(workers: bool, version: str) -> dict[str, object]:
    listed = [route for route in routes(workers=workers) if route.listed]
    schemas, components = _schemas(listed)
    paths: dict[str, JsonObject] = {}
    for route in listed:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    tags = {route.tag for route in listed}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "taskcast-trio",
            "summary": "Long-lived tasks whose events people follow live",
            "description": _DESCRIPTION,
            "version": version,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        # Relative to the place of this document, so that it holds under any prefix.
        "servers": [{"url": "."}],
        "tags": [
            {"name": name, "description": text} for name, text in _TAGS.items() if name in tags
        ],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Error": _error("Any other refusal, such as a 503 while shutting down.")},
            "securitySchemes": {
                "Bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "Where authentication is on; each route names its scope.",
                }
            },
        },
    }


def _shapes(listed: Iterable[Route]) -> list[Any]:
    found: list[Any] = [Error, Envelope]
    for route in listed:
        found.append(route.body)
        for answer in route.answers.values():
            found += [answer.shape, answer.lines_shape]
    return [shape for shape in dict.fromkeys(found) if shape is not None]


def _schemas(listed: Iterable[Route]) -> tuple[list[tuple[Any, JsonObject]], JsonObject]:
    """The schema of each shape, and the components that they refer to."""
    shapes = _shapes(listed)
    schemas, components = msgspec.json.schema_components(
        shapes, ref_template="#/components/schemas/{name}"
    )
    for name, component in components.items():
        for field, schema in component.get("properties", {}).items():
            schema.update(_RULES.get(f"{name}.{field}", _RULES.get(field, {})))
            for each in (schema, *schema.get("anyOf", ())):
                if "enum" in each:
                    # Implied by the values, but viewers and generators of clients look for it.
                    each["type"] = "string" if isinstance(each["enum"][0], str) else "integer"
    return list(zip(shapes, schemas, strict=True)), dict(sorted(components.items()))


def _operation(route: Route, schemas: list[tuple[Any, JsonObject]]) -> JsonObject:
    in_path = [
        Param(name, _PATH_TEXT[name], {"type": "string"}, required=True)
        for name in _PATH_PARAMETER.findall(route.path)
    ]
    parameters = [_parameter(param, "path") for param in in_path]
    parameters += [_parameter(param, param.where) for param in route.params]
    refusals = {*route.errors} if route.scope is None else {401, 403, *route.errors}
    answers = {status: _answer(answer, schemas) for status, answer in route.answers.items()}
    answers |= {status: _error(_ERROR_TEXT[status]) for status in refusals - answers.keys()}
    operation: JsonObject = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": {
            **{str(status): answers[status] for status in sorted(answers)},
            "default": {"$ref": "#/components/responses/Error"},
        },
        "security": [] if route.scope is None else [{"Bearer": [route.scope]}],
    }
    if route.text:
        operation["description"] = route.text
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = _json(route.body, schemas)
        if route.lines:
            content[NDJSON_TYPE] = {"schema": {"type": "string"}, "example": route.lines}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(param: Param, where: str) -> JsonObject:
    return {
        "name": param.name,
        "in": where,
        "required": param.required,
        "description": param.text,
        "schema": dict(param.schema),
    }


def _answer(answer: Answer, schemas: list[tuple[Any, JsonObject]]) -> JsonObject:
    found: JsonObject = {"description": answer.text}
    if answer.shape is not None:
        found["content"] = _json(answer.shape, schemas)
        if answer.lines_shape is not None:
            _join(found["content"][JSON_TYPE], _json(answer.lines_shape, schemas)[JSON_TYPE])
    elif answer.media is not None:
        text: JsonObject = {"schema": {"type": "string"}}
        if answer.media == SSE_TYPE:
            text["example"] = STREAM_EXAMPLE
        found["content"] = {answer.media: text}
    if answer.headers:
        found["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in answer.headers.items()
        }
    return found


def _json(shape: Any, schemas: list[tuple[Any, JsonObject]]) -> JsonObject:
    media: JsonObject = {"schema": next(schema for known, schema in schemas if known == shape)}
    named = examples(shape)
    if named:
        media["examples"] = {name: {"value": value} for name, value in named.items()}
    return {JSON_TYPE: media}


def _join(media: JsonObject, other: JsonObject) -> None:
    """Let ``media`` be ``other`` too."""
    media["schema"] = {"anyOf": [media["schema"], other["schema"]]}
    media["examples"] = {**media.get("examples", {}), **other.get("examples", {})}


def _error(text: str) -> JsonObject:
    return {
        "description": text,
        "content": {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
