"""The shapes of answers that are no part of the core: service, lists, errors, workers.

With ``core.model`` they are everything that ``/openapi.json`` describes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, UnsetType

from taskcast_trio.core.model import TaskView, Wire
from taskcast_trio.engine.workers.asked import Cancel, Holding

WorkerStatus: TypeAlias = Literal["idle", "busy", "draining", "offline"]
WebhookStatus: TypeAlias = Literal["active", "retrying", "disabled", "archived"]


class Error(Wire, frozen=True, kw_only=True):
    """Every refusal: ``error`` is for people, ``code`` for programs. ``expectedSeq`` is with
    ``seq_gap`` and ``seq_stale``.
    """

    error: str
    code: str | UnsetType = UNSET
    expected_seq: int | UnsetType = UNSET


class TaskList(Wire, frozen=True, kw_only=True):
    tasks: list[TaskView]


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


class Health(Wire, frozen=True, kw_only=True):
    ok: bool
    name: str
    version: str
    api_version: str


class Readiness(Wire, frozen=True, kw_only=True):
    """Whether new work is taken."""

    ok: bool
    dependencies: dict[str, Any]
    draining: bool | UnsetType = UNSET


class Adapter(Wire, frozen=True, kw_only=True):
    provider: str
    status: str


class Adapters(Wire, frozen=True, kw_only=True):
    broadcast: Adapter
    short_term_store: Adapter
    long_term_store: Adapter | UnsetType = UNSET


class AuthInfo(Wire, frozen=True, kw_only=True):
    mode: str


class StorageInfo(Wire, frozen=True, kw_only=True):
    release_ready: bool
    required_storage_protocol_version: int
    active_writer_count: int
    incompatible_writer_ids: list[str]


class HealthDetail(Wire, frozen=True, kw_only=True):
    """``uptime`` is in whole seconds."""

    ok: bool
    name: str
    version: str
    api_version: str
    uptime: int
    auth: AuthInfo
    adapters: Adapters
    dependencies: dict[str, Any]
    storage: StorageInfo


class TagRule(Wire, frozen=True, kw_only=True):
    all: list[str] | UnsetType = UNSET
    any: list[str] | UnsetType = UNSET
    none: list[str] | UnsetType = UNSET


class MatchRule(Wire, frozen=True, kw_only=True):
    """Which tasks a worker takes."""

    task_types: list[str] | UnsetType = UNSET
    tags: TagRule | UnsetType = UNSET


class Worker(Wire, frozen=True, kw_only=True):
    id: str
    status: WorkerStatus
    match_rule: MatchRule
    capacity: int
    used_slots: int
    weight: float
    connection_mode: Literal["pull", "websocket"]
    connected_at: int
    last_heartbeat_at: int
    metadata: Raw | UnsetType = UNSET


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


class WorkerList(Wire, frozen=True, kw_only=True):
    workers: list[Worker]


class WorkerChange(Wire, frozen=True, kw_only=True):
    """The body of ``PATCH /workers/{worker_id}/status``."""

    status: Literal["draining", "idle"]


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


class ExpectedSeq(Wire, frozen=True, kw_only=True):
    """The ``clientSeq`` of the event that a publisher is to send next."""

    client_id: str
    expected_seq: int


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


class WebhookTry(Wire, frozen=True, kw_only=True):
    """One try to deliver an event; ``attempt`` 1 is its first one. ``error`` is a word."""

    at: int
    index: int
    event_id: str
    type: str
    attempt: int
    outcome: Literal["delivered", "gone", "failed"]
    duration_ms: int
    status: int | UnsetType = UNSET
    error: str | UnsetType = UNSET


class DeadLetter(Wire, frozen=True, kw_only=True):
    """An event that was given up after its last try."""

    at: int
    index: int
    event_id: str
    type: str
    attempts: int
    status: int | UnsetType = UNSET
    error: str | UnsetType = UNSET


class WebhookView(Wire, frozen=True, kw_only=True):
    """How far a webhook is. Events up to index ``cursor`` are behind it; ``pending`` counts the
    indexes after that. The ``url`` is for who may manage the task.

    ``archived``: only the archive has the task, and nothing is known of its deliveries.
    """

    number: int
    status: WebhookStatus
    reason: str | UnsetType = UNSET
    host: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    cursor: int | UnsetType = UNSET
    pending: int | UnsetType = UNSET
    delivered: int | UnsetType = UNSET
    dead_letters: int | UnsetType = UNSET
    dropped_dead_letters: int | UnsetType = UNSET
    failed_tries: int | UnsetType = UNSET
    next_try_at: int | UnsetType = UNSET
    last_try: WebhookTry | UnsetType = UNSET


class WebhookList(Wire, frozen=True, kw_only=True):
    webhooks: list[WebhookView]


class Deliveries(Wire, frozen=True, kw_only=True):
    """The last tries of a webhook, the newest first, and the dead letters that it has."""

    deliveries: list[WebhookTry]
    dead_letters: list[DeadLetter]


class Redeliver(Wire, frozen=True, kw_only=True):
    """The body of ``POST .../redeliver``; without ``fromIndex`` the dead letters are meant."""

    from_index: int | UnsetType = UNSET


class Done(Wire, frozen=True, kw_only=True):
    ok: bool
