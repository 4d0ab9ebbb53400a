"""What the route table is made of: its types, and the parameters that routes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal, TypeAlias

Scope: TypeAlias = Literal[
    "task:create",
    "task:manage",
    "task:resolve",
    "event:publish",
    "event:subscribe",
    "event:history",
    "worker:manage",
    "worker:connect",
    "metrics:read",
]
Tag: TypeAlias = Literal["Tasks", "Events", "Archive", "Webhooks", "Workers", "Access", "Service"]

JSON_TYPE: Final = "application/json"
SSE_TYPE: Final = "text/event-stream"
NDJSON_TYPE: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of the query or a header; never required unless it says so."""

    name: str
    text: str
    schema: Mapping[str, Any]
    _: KW_ONLY
    where: Literal["query", "header"] = "query"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A success: ``shape`` is the type of a JSON body; without one a body of ``media`` is text.

    ``lines_shape`` is the type of the answer to a body of NDJSON.
    """

    text: str
    shape: Any = None
    _: KW_ONLY
    media: str | None = None
    lines_shape: Any = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    ``scope`` is what a token must hold, None where none is asked for. ``errors`` are the statuses
    of its own refusals; those of authentication follow from ``scope``. ``feature`` names the part
    of the configuration that switches the route on. ``listed``: is it in the OpenAPI document?
    ``lines`` is an example of the body as NDJSON, where that is taken too.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    scope: Scope | None
    summary: str
    _: KW_ONLY
    name: str
    tag: Tag
    answers: Mapping[int, Answer]
    text: str = ""
    params: tuple[Param, ...] = ()
    body: Any = None
    lines: str = ""
    errors: tuple[int, ...] = ()
    feature: Literal["workers"] | None = None
    listed: bool = True


TEXT: Final = {"type": "string"}
COUNT: Final = {"type": "integer", "minimum": 1}
MS: Final = {"type": "integer"}
FLAG: Final = {"type": "boolean", "default": False}
SERIES_FORMAT: Final = {
    "type": "string",
    "enum": ["delta", "accumulated"],
    "default": "delta",
}
ON: Final = {"type": "boolean", "default": True}

IDEMPOTENCY_KEY: Final = Param(
    "Idempotency-Key",
    "A repeat with the same key returns the first answer and stores nothing; "
    "the same key with another body is a 422.",
    {"type": "string", "minLength": 1, "maxLength": 255},
    where="header",
)
FILTERS: Final = (
    Param(
        "types",
        "Comma list of event types: exact, `llm.*` (all below `llm.`), or `*`.",
        TEXT,
    ),
    Param("levels", "Comma list of `debug`, `info`, `warn`, `error`.", TEXT),
)
INCLUDE_STATUS: Final = Param("includeStatus", "`false` leaves `taskcast:status` events out.", ON)
SINCE_ID: Final = Param("since.id", "Only what is stored after the event with this id.", TEXT)
SINCE_TIMESTAMP: Final = Param("since.timestamp", "Only events later than this, in Unix ms.", MS)
LIMIT: Final = Param("limit", "At most this many, the oldest; 0 and words mean no limit.", COUNT)
HISTORY_PARAMS: Final = (
    SINCE_ID,
    Param("since.index", "Only events with a greater `index`.", {"type": "integer"}),
    SINCE_TIMESTAMP,
    LIMIT,
    Param(
        "seriesFormat",
        "`accumulated` makes each accumulate series one event with its current value.",
        SERIES_FORMAT,
    ),
    *FILTERS,
    INCLUDE_STATUS,
)
TICKET: Final = Param(
    "ticket", "What `POST /tickets` gave, for those who can't set a header.", TEXT
)
WAIT: Final = Param(
    "wait",
    "Wait so many seconds, at most 60, for a task that does not ask yet. The answer comes as soon "
    "as it does, and a 404 at the end of the wait, or of the task. Meanwhile it counts as one of "
    "the caller's open streams, not as a subscriber of the task.",
    {"type": "number", "minimum": 0, "maximum": 60, "default": 0},
)
STREAM_PARAMS: Final = (
    Param("Last-Event-ID", "What `EventSource` sends on a reconnect.", TEXT, where="header"),
    TICKET,
    Param("last_event_id", "The same cursor for those who can't set a header, which wins.", TEXT),
    *FILTERS,
    INCLUDE_STATUS,
    Param("wrap", "`false` sends events as stored instead of envelopes.", ON),
    Param(
        "seriesFormat",
        "Live pieces of an accumulate series: as published, or as the running value.",
        SERIES_FORMAT,
    ),
    SINCE_ID,
    Param("since.index", "Skips events up to this `filteredIndex`.", {"type": "integer"}),
    SINCE_TIMESTAMP,
    Param("limit", "Cuts the replay to this many stored events, the oldest.", COUNT),
)
