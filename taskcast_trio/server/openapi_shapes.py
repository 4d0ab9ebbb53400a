"""The shapes of answers that are no part of the core: the service itself, errors, cleanup.

With ``core.model`` and ``core.views`` they are everything that ``/openapi.json`` describes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from taskcast_trio.core.model import Wire
from taskcast_trio.core.views import (
    Adapter,
    Adapters,
    AuthInfo,
    DeadLetter,
    Deliveries,
    ExpectedSeq,
    Health,
    HealthDetail,
    MatchRule,
    Readiness,
    Redeliver,
    StorageInfo,
    TagRule,
    TaskList,
    WebhookList,
    WebhookTry,
    WebhookView,
    Worker,
    WorkerChange,
    WorkerList,
)
from taskcast_trio.engine.workers.asked import Cancel, Holding

__all__ = [
    "About",
    "Adapter",
    "Adapters",
    "AuthInfo",
    "CleanedByRule",
    "CleanupReport",
    "CleanupRequest",
    "DeadLetter",
    "Decline",
    "Deliveries",
    "Done",
    "Error",
    "ExpectedSeq",
    "Health",
    "HealthDetail",
    "Heartbeat",
    "HeartbeatRequest",
    "Ingested",
    "Links",
    "MatchRule",
    "Readiness",
    "Redeliver",
    "StorageInfo",
    "TagRule",
    "TaskList",
    "WebhookList",
    "WebhookTry",
    "WebhookView",
    "Worker",
    "WorkerChange",
    "WorkerList",
]


class Error(Wire, frozen=True, kw_only=True):
    """Every refusal: ``error`` is for people, ``code`` for programs. ``expectedSeq`` is with
    ``seq_gap`` and ``seq_stale``.
    """

    error: str
    code: str | UnsetType = UNSET
    expected_seq: int | UnsetType = UNSET


class Links(Wire, frozen=True, kw_only=True):
    health: str
    health_ready: str
    health_detail: str
    openapi: str
    docs: str


class About(Wire, frozen=True, kw_only=True):
    """What runs here, and where to go on."""

    name: str
    version: str
    api_version: str
    links: Links


class HeartbeatRequest(Wire, frozen=True, kw_only=True):
    """The body of ``POST /workers/{worker_id}/heartbeat``: the tasks that the worker has, and their
    fences. Each that it has not any more is in the answer; one that it does not name is lost.
    """

    tasks: tuple[Holding, ...] | UnsetType = UNSET


class Heartbeat(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """``cancel`` are the tasks to stop; ``intervalMs`` is how often to come again."""

    ok: bool
    cancel: list[Cancel]
    interval_ms: int


class Decline(Wire, frozen=True, kw_only=True):
    """The body of ``POST /workers/tasks/{task_id}/decline``."""

    worker_id: str
    blacklist: bool | UnsetType = UNSET


class Ingested(Wire, frozen=True, kw_only=True):
    """What became of a body of NDJSON; the indexes of its first and last event, where there are
    any.
    """

    accepted: int
    first_index: int | UnsetType = UNSET
    last_index: int | UnsetType = UNSET


class CleanupRequest(Wire, frozen=True, kw_only=True):
    """The body of ``POST /tasks/cleanup``. ``withinMs`` looks ahead, with ``dryRun`` only."""

    dry_run: bool = False
    within_ms: Annotated[int, Meta(ge=0, le=2**45)] = 0


class CleanedByRule(Wire, frozen=True, kw_only=True):
    """What one rule took: ``rule`` is its name, or its place in the configuration; the rules of
    tasks share one line.
    """

    rule: str
    target: Literal["all", "events", "task"]
    tasks: int
    events: int


class CleanupReport(Wire, frozen=True, kw_only=True):
    """``taskIds`` are the first of those tasks; ``more`` says that there is more to do."""

    dry_run: bool
    rules: list[CleanedByRule]
    task_ids: list[str]
    more: bool


class Done(Wire, frozen=True, kw_only=True):
    ok: bool
