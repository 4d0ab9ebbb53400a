"""One example of each body and answer of the OpenAPI document, by its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from taskcast_trio.core import model
from taskcast_trio.engine.workers.asked import Registration

from . import openapi_shapes as shapes
from .auth.tickets import Ticket, TicketRequest

_TASK_ID: Final = "01JZ3V5M8Q4T7W9Y2B6D0F1H3K"
_EVENT_ID: Final = "01JZ3V5PA7C9E2G4J6M8P0R1T3"
_CREATED_MS: Final = 1751882400000

_TASK: Final = {
    "id": _TASK_ID,
    "status": "running",
    "createdAt": _CREATED_MS,
    "updatedAt": _CREATED_MS + 250,
    "type": "llm.chat",
    "params": {"prompt": "Tell me of the sea"},
}
_DRAFT: Final = {
    "type": "llm.delta",
    "level": "info",
    "data": {"delta": "The sea "},
    "seriesId": "answer",
    "seriesMode": "accumulate",
}
_EVENT: Final = {
    "id": _EVENT_ID,
    "taskId": _TASK_ID,
    "index": 1,
    "timestamp": _CREATED_MS + 400,
    **_DRAFT,
}
_ARCHIVED_EVENT: Final = {**_EVENT, "index": 0}
_ARCHIVE: Final = {
    "schema": "taskcast.taskArchive",
    "version": 1,
    "exportedAt": _CREATED_MS + 60_000,
    "task": _TASK,
    "events": [_ARCHIVED_EVENT],
}
_REQUEST: Final = {
    "type": "approval",
    "data": {"question": "Send it?"},
    "schema": {
        "type": "object",
        "properties": {"approved": {"type": "boolean"}},
        "required": ["approved"],
    },
}
_VIEW: Final = {**_TASK, "hot": True, "subscriberCount": 3}
_ABOUT: Final = {"name": "taskcast-trio", "version": "1.0.0", "apiVersion": "v1"}
_ADAPTER: Final = {"provider": "memory", "status": "ok"}
_WORKER: Final = {
    "id": "worker-1",
    "status": "idle",
    "matchRule": {"taskTypes": ["llm.*"]},
    "capacity": 10,
    "usedSlots": 0,
    "weight": 50,
    "connectionMode": "websocket",
    "connectedAt": _CREATED_MS,
    "lastHeartbeatAt": _CREATED_MS + 30_000,
}
_HOLDING: Final = {"taskId": _TASK_ID, "fence": 1}
_TRY: Final = {
    "at": _CREATED_MS + 30_000,
    "index": 41,
    "eventId": _EVENT_ID,
    "type": "llm.delta",
    "attempt": 2,
    "outcome": "failed",
    "durationMs": 12,
    "status": 503,
    "error": "status",
}
_LETTER: Final = {
    "at": _CREATED_MS + 20_000,
    "index": 17,
    "eventId": _EVENT_ID,
    "type": "llm.delta",
    "attempts": 4,
    "error": "timeout",
}
_WEBHOOK: Final = {
    "number": 0,
    "status": "retrying",
    "host": "hooks.example",
    "url": "https://hooks.example/in",
    "cursor": 40,
    "pending": 1,
    "delivered": 40,
    "deadLetters": 1,
    "droppedDeadLetters": 0,
    "failedTries": 2,
    "nextTryAt": _CREATED_MS + 32_000,
    "lastTry": _TRY,
}

EXAMPLES: Final[tuple[tuple[Any, Mapping[str, object]], ...]] = (
    (model.CreateTask, {"task": {"type": "llm.chat", "params": {"prompt": "Tell me of the sea"}}}),
    (model.Task, {"task": _TASK}),
    (model.TaskView, {"task": _VIEW}),
    (TicketRequest, {"ticket": {"taskIds": [_TASK_ID], "ttlSeconds": 60}}),
    (
        Ticket,
        {
            "ticket": {
                "ticket": "tkt_zJ0gk3v0m2Yk0Xb8a5o1m1cXw5c0m3n0q9o7r6s5t4u",
                "expiresAt": _CREATED_MS // 1000 + 60,
            }
        },
    ),
    (shapes.TaskList, {"tasks": {"tasks": [_VIEW]}}),
    (
        model.Transition,
        {
            "start": {"status": "running"},
            "complete": {"status": "completed", "result": {"tokens": 1280}},
            "fail": {"status": "failed", "error": {"message": "The model is away", "code": "down"}},
            "ask": {
                "status": "blocked",
                "reason": "needs a person",
                "blockedRequest": _REQUEST,
                "resumeAfterMs": 600_000,
            },
        },
    ),
    (model.Resolve, {"answer": {"data": {"approved": True}}}),
    (model.BlockedRequest, {"request": _REQUEST}),
    (
        model.Draft | list[model.Draft],
        {
            "one": _DRAFT,
            "batch": [_DRAFT, _DRAFT],
            "counted": {**_DRAFT, "clientId": "writer-1", "clientSeq": 0},
        },
    ),
    (model.Event | list[model.Event], {"one": _EVENT, "batch": [_EVENT]}),
    (list[model.Event], {"events": [_EVENT]}),
    (model.Archive, {"archive": _ARCHIVE}),
    (model.ImportTask, {"import": {"archive": _ARCHIVE, "overwrite": False}}),
    (
        model.Imported,
        {"imported": {"ok": True, "taskId": _TASK_ID, "eventCount": 1, "overwritten": False}},
    ),
    (
        model.StorageRelease,
        {"release": {"expectedLastEventIndex": 41, "inactiveSince": _CREATED_MS}},
    ),
    (
        shapes.About,
        {
            "about": {
                **_ABOUT,
                "links": {
                    "health": "/health",
                    "healthReady": "/health/ready",
                    "healthDetail": "/health/detail",
                    "openapi": "/openapi.json",
                    "docs": "/docs",
                },
            }
        },
    ),
    (shapes.Health, {"health": {"ok": True, **_ABOUT}}),
    (shapes.Readiness, {"ready": {"ok": True, "dependencies": {}}}),
    (
        shapes.HealthDetail,
        {
            "detail": {
                "ok": True,
                **_ABOUT,
                "uptime": 3600,
                "auth": {"mode": "none"},
                "adapters": {"broadcast": _ADAPTER, "shortTermStore": _ADAPTER},
                "dependencies": {},
                "storage": {
                    "releaseReady": False,
                    "requiredStorageProtocolVersion": 2,
                    "activeWriterCount": 1,
                    "incompatibleWriterIds": [],
                },
            }
        },
    ),
    (shapes.Worker, {"worker": _WORKER}),
    (shapes.WorkerList, {"workers": {"workers": [_WORKER]}}),
    (
        Registration,
        {
            "register": {
                "workerId": "worker-1",
                "matchRule": {"taskTypes": ["llm.*"]},
                "capacity": 10,
                "metadata": {"host": "gpu-3"},
                "tasks": [_HOLDING],
            }
        },
    ),
    (shapes.HeartbeatRequest, {"heartbeat": {"tasks": [_HOLDING]}}),
    (
        shapes.Heartbeat,
        {
            "heartbeat": {
                "ok": True,
                "cancel": [{"taskId": _TASK_ID, "reason": "cancelled"}],
                "intervalMs": 30_000,
            }
        },
    ),
    (shapes.WorkerChange, {"drain": {"status": "draining"}}),
    (shapes.Decline, {"decline": {"workerId": "worker-1", "blacklist": True}}),
    (shapes.Ingested, {"ingested": {"accepted": 2000, "firstIndex": 1, "lastIndex": 2000}}),
    (shapes.ExpectedSeq, {"publisher": {"clientId": "writer-1", "expectedSeq": 42}}),
    (shapes.CleanupRequest, {"look": {"dryRun": True, "withinMs": 86_400_000}}),
    (
        shapes.CleanupReport,
        {
            "report": {
                "dryRun": True,
                "rules": [{"rule": "old answers", "target": "all", "tasks": 1, "events": 2048}],
                "taskIds": [_TASK_ID],
                "more": False,
            }
        },
    ),
    (shapes.WebhookList, {"webhooks": {"webhooks": [_WEBHOOK]}}),
    (
        shapes.Deliveries,
        {"deliveries": {"deliveries": [_TRY], "deadLetters": [_LETTER]}},
    ),
    (shapes.Redeliver, {"deadLetters": {}, "from": {"fromIndex": 40}}),
    (shapes.Done, {"done": {"ok": True}}),
    (shapes.Error, {"error": {"error": f"Task not found: {_TASK_ID}", "code": "task_not_found"}}),
)

STREAM_EXAMPLE: Final = (
    "retry: 2000\n\n"
    "event: taskcast.event\n"
    f'data: {{"filteredIndex":0,"rawIndex":1,"eventId":"{_EVENT_ID}","taskId":"{_TASK_ID}",'
    '"type":"llm.delta","timestamp":1751882400400,"level":"info","data":{"delta":"The sea "},'
    '"seriesId":"answer","seriesMode":"accumulate"}\n'
    f"id: {_EVENT_ID}\n\n"
    'event: taskcast.done\ndata: {"reason":"completed"}\n\n'
)


def examples(shape: Any) -> Mapping[str, object]:
    """The named examples of ``shape``; none for a shape that explains itself."""
    return next((found for known, found in EXAMPLES if known == shape), {})
