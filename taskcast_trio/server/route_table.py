"""The routes of the server as data: what each takes, answers and wants of a token.

The OpenAPI document is made from this table, which is also the one place that says which scope a
route needs.
"""

from __future__ import annotations

from typing import Final

from taskcast_trio.core.model import (
    Archive,
    BlockedRequest,
    CreateTask,
    Draft,
    Event,
    Imported,
    ImportTask,
    Resolve,
    StorageRelease,
    Task,
    TaskView,
    Transition,
)

from .openapi_shapes import (
    CleanupReport,
    CleanupRequest,
    ExpectedSeq,
    Ingested,
    TaskList,
)
from .route_parts import (
    COUNT,
    FILTERS,
    FLAG,
    HISTORY_PARAMS,
    IDEMPOTENCY_KEY,
    SSE_TYPE,
    STREAM_PARAMS,
    TEXT,
    TICKET,
    WAIT,
    Answer,
    Param,
    Route,
)
from .route_table_service import ACCESS_ROUTES, SERVICE_ROUTES, WORKER_ROUTES
from .route_table_webhooks import WEBHOOK_ROUTES

__all__ = ["ROUTES", "Route", "routes"]

_STREAM_TEXT: Final = """\
First what the log holds, then what comes, without a gap and without a double. Frames:

- `event: taskcast.event`, `data:` one line of JSON (an `Envelope`, or with `wrap=false` an
  `Event`), `id:` the id of the event;
- `event: taskcast.done` with `{reason}` at the end of the task;
- `event: taskcast.gap` with `{reason, replayedFrom}` where what was before can't be continued: the
  log does not know the cursor (`unknown_cursor`) or is another one now (`log_replaced`), or cleanup
  has removed events behind the cursor (`events_expired`). What is there follows from its start.

Without any cursor each accumulate series of the replay is one event, marked `seriesSnapshot`. An
empty `types` or `levels` lets no event pass.
"""
_LINES_TEXT: Final = """\
A batch is stored whole or not at all. Pieces of text go into a series: `seriesId`, `seriesMode:
accumulate`, and the piece in `data.delta`.

With `Content-Type: application/x-ndjson` the body may be of any length: one event a line (at most 1
MiB; empty lines do not count), stored as they come. The answer says how many were `accepted`, and
the indexes of the first and the last. A bad line stops it: the error names the line and has
`accepted` beside it, and what came before stays stored. So do the end of the task, a shutdown, and
a silence of 10 s. `Idempotency-Key` does not go with it.

**Exactly once.** With a `clientId` and a `clientSeq` (0, 1, 2 ... of that publisher in the task) an
event is stored once, and in that order, however often and in whatever order it is sent. One that
was stored is answered as it is stored, also within a batch; one that is older than the last 1,000
of them is a 409 `seq_stale`. One that comes before others is held, up to a limit, until they are
there; after that, or at once with `seqMode: fast-fail`, it is a 409 `seq_gap`. Both have
`expectedSeq`. A gap within a batch is a 400.
"""
_LINES: Final = """\
{"type":"llm.delta","level":"info","data":{"delta":"The sea "}}
{"type":"llm.delta","level":"info","data":{"delta":"is wide"}}
"""
_SOCKET_TEXT: Final = """\
Each text message is one event or an array of them, stored whole or not at all, and is answered in
order: `{"ok": true, "firstIndex": 4, "lastIndex": 6}`, or with nothing stored `{"ok": false,
"error": ..., "code": ...}`, after which the connection stays open. It is closed with 1000 when the
task has ended, 1001 when the server shuts down, and 1009 after a message of more than 256 Ki
characters.
"""
_MOVE_TEXT: Final = """\
Appends a `taskcast:status` event. A move that the state machine does not have is a 409 and changes
nothing; of parallel moves to an end exactly one wins.

A task that has not ended within its `ttl` of seconds becomes `timeout`, with the error code
`ttl_expired`. The clock begins with the task; `paused` stops it, leaving that or a new `ttl` begins
it anew. A `blocked` task goes on after `resumeAfterMs`.

`blockedRequest` may have a `schema` that answers must keep: JSON Schema of draft 6 to 2020-12, at
most 16 KiB, with references inside itself only, patterns as RE2 has them, and without
`patternProperties`, `unevaluatedProperties`, `unevaluatedItems` and dynamic references.
"""
_RESOLVE_TEXT: Final = """\
The task runs again; an object becomes its result, else `{resolution: ...}` does. The first valid
answer wins: later ones are a 400 `not_blocked`. An answer that breaks the `schema` of the request
is a 400 that names the path, and the task stays blocked.
"""
_KEEPALIVE: Final = {
    "Taskcast-Keepalive": "After so many seconds of silence comes a comment; two missed are a dead "
    "connection."
}
_TASK: Final = Answer("The task as it is now.", Task)

TASK_ROUTES: Final = (
    Route(
        "POST",
        "/tasks",
        "task:create",
        "Create a task",
        name="createTask",
        tag="Tasks",
        text="Every field is optional; without an id the task gets a ULID. `ttl` is in seconds.",
        params=(IDEMPOTENCY_KEY,),
        body=CreateTask,
        answers={201: Answer("The task, pending.", Task)},
        errors=(400, 409, 413, 422),
    ),
    Route(
        "GET",
        "/tasks",
        "event:subscribe",
        "List tasks",
        name="listTasks",
        tag="Tasks",
        text="In order of creation.",
        params=(
            Param("status", "Comma list of statuses.", TEXT),
            Param("type", "One exact type.", TEXT),
            Param("after", "The id of the last task of the page before.", TEXT),
            Param("limit", "At most this many; all without it.", COUNT),
        ),
        answers={200: Answer("The tasks.", TaskList)},
        errors=(400,),
    ),
    Route(
        "GET",
        "/tasks/{task_id}",
        "event:subscribe",
        "Read a task",
        name="getTask",
        tag="Tasks",
        text=(
            "`hot` and `subscriberCount` tell of its audience. `DELETE` on the same path removes "
            "the task and its events for good (204; scope `task:manage`) and ends its streams with "
            "the reason `deleted`."
        ),
        answers={200: Answer("The task and its audience.", TaskView)},
        errors=(404,),
    ),
    Route(
        "DELETE",
        "/tasks/{task_id}",
        "task:manage",
        "Delete a task",
        name="deleteTask",
        tag="Tasks",
        answers={204: Answer("Nothing is left of it.")},
        errors=(404,),
        # The contract's document has only GET at this path, and checks of compatibility compare the
        # methods of a known path exactly; the text of GET tells of DELETE instead.
        listed=False,
    ),
    Route(
        "PATCH",
        "/tasks/{task_id}/status",
        "task:manage",
        "Move a task to another status",
        name="transitionTask",
        tag="Tasks",
        text=_MOVE_TEXT,
        params=(IDEMPOTENCY_KEY,),
        body=Transition,
        answers={200: _TASK},
        errors=(400, 404, 409, 413, 422),
    ),
    Route(
        "POST",
        "/tasks/{task_id}/resolve",
        "task:resolve",
        "Answer a blocked task",
        name="resolveTask",
        tag="Tasks",
        text=_RESOLVE_TEXT,
        body=Resolve,
        answers={200: _TASK},
        errors=(400, 404, 409, 413),
    ),
    Route(
        "GET",
        "/tasks/{task_id}/request",
        "task:resolve",
        "Read what a blocked task asks",
        name="getBlockedRequest",
        tag="Tasks",
        params=(WAIT,),
        answers={200: Answer("What it waits to be told.", BlockedRequest)},
        errors=(400, 404),
    ),
)

EVENT_ROUTES: Final = (
    Route(
        "POST",
        "/tasks/{task_id}/events",
        "event:publish",
        "Publish one event or a batch",
        name="publishEvents",
        tag="Events",
        text=_LINES_TEXT,
        params=(IDEMPOTENCY_KEY,),
        body=Draft | list[Draft],
        lines=_LINES,
        answers={
            201: Answer(
                "As stored; an array for an array. For NDJSON, how many were stored.",
                Event | list[Event],
                lines_shape=Ingested,
            )
        },
        errors=(400, 404, 408, 409, 413, 422),
    ),
    Route(
        "GET",
        "/tasks/{task_id}/seq/{client_id}",
        "event:publish",
        "Read where a publisher stands",
        name="expectedSeq",
        tag="Events",
        text="For a publisher that does not know any more what it has sent; 0 for one that is new.",
        answers={200: Answer("Which event it is to send next.", ExpectedSeq)},
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/tasks/{task_id}/events/ws",
        "event:publish",
        "Publish over a WebSocket",
        name="publishSocket",
        tag="Events",
        text=_SOCKET_TEXT,
        answers={101: Answer("The connection is a WebSocket now.")},
        errors=(400, 404, 426, 503),
    ),
    Route(
        "GET",
        "/tasks/{task_id}/events",
        "event:subscribe",
        "Follow a task",
        name="followTask",
        tag="Events",
        text=_STREAM_TEXT,
        params=STREAM_PARAMS,
        answers={
            200: Answer("The stream.", media=SSE_TYPE, headers=_KEEPALIVE),
            204: Answer(
                "The task has ended and nothing is left after the cursor: stop reconnecting.",
                headers={"Taskcast-Status": "The status in which the task ended."},
            ),
        },
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/tasks/{task_id}/events/history",
        "event:history",
        "Read the log of a task",
        name="getHistory",
        tag="Events",
        text="`since.id` beats `since.index` beats `since.timestamp`.",
        params=HISTORY_PARAMS,
        answers={200: Answer("The events in stored order.", list[Event])},
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/events",
        "event:subscribe",
        "Follow all tasks",
        name="followAll",
        tag="Events",
        text=(
            "Envelopes of the tasks created from now on, `filteredIndex` always 0. It never ends "
            "by itself, and sends no `taskcast.done`."
        ),
        params=(
            *FILTERS,
            TICKET,
            Param("existing", "`true` also follows the tasks that were there before.", FLAG),
        ),
        answers={200: Answer("The stream.", media=SSE_TYPE, headers=_KEEPALIVE)},
        errors=(400,),
    ),
)

ARCHIVE_ROUTES: Final = (
    Route(
        "GET",
        "/tasks/{task_id}/archive",
        "event:history",
        "Export a task with its events",
        name="exportTask",
        tag="Archive",
        text="Each accumulate or latest series is one event with its value.",
        answers={200: Answer("The archive.", Archive)},
        errors=(404,),
    ),
    Route(
        "POST",
        "/tasks/cleanup",
        "task:manage",
        "Clean up what is due",
        name="cleanUp",
        tag="Tasks",
        text=(
            "Runs the cleanup rules that are due, as the server does by itself, and tells what "
            "went; with `dryRun` what would go, now or `withinMs` from now, and nothing is "
            "changed. A run ends after a while: repeat it as long as there is `more`. The events "
            "of a task that goes whole are those that it has had."
        ),
        body=CleanupRequest,
        answers={200: Answer("By rule, what goes.", CleanupReport)},
        errors=(400, 413),
    ),
    Route(
        "POST",
        "/tasks/import",
        "task:manage",
        "Import a task with its events",
        name="importTask",
        tag="Archive",
        text="Replaces a task with the same id only with `overwrite: true`.",
        body=ImportTask,
        answers={200: Answer("What was stored.", Imported)},
        errors=(400, 409, 413),
    ),
    Route(
        "POST",
        "/tasks/{task_id}/storage/release",
        "task:manage",
        "Move an idle task's events to the colder tier",
        name="releaseStorage",
        tag="Archive",
        text="503 `storage_release_unsupported` while the store has no colder tier.",
        body=StorageRelease,
        answers={204: Answer("Released.")},
        errors=(400, 404, 409, 413, 503),
    ),
)

ROUTES: Final[tuple[Route, ...]] = (
    *TASK_ROUTES,
    *EVENT_ROUTES,
    *ARCHIVE_ROUTES,
    *WEBHOOK_ROUTES,
    *WORKER_ROUTES,
    *ACCESS_ROUTES,
    *SERVICE_ROUTES,
)


def routes(*, workers: bool) -> tuple[Route, ...]:
    """The routes that a server with these features has."""
    return tuple(route for route in ROUTES if workers or route.feature != "workers")
