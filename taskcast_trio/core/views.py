"""The shapes of answers about what stands beside tasks and events: the server, workers, webhooks,
tickets.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Raw, UnsetType

from .model import TaskView, Wire

WorkerStatus: TypeAlias = Literal["idle", "busy", "draining", "offline"]
WebhookStatus: TypeAlias = Literal["active", "retrying", "disabled", "archived"]


class ExpectedSeq(Wire, frozen=True, kw_only=True):
    """The ``clientSeq`` of the event that a publisher is to send next."""

    client_id: str
    expected_seq: int


class TaskList(Wire, frozen=True, kw_only=True):
    tasks: list[TaskView]


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


class WorkerList(Wire, frozen=True, kw_only=True):
    workers: list[Worker]


class WorkerChange(Wire, frozen=True, kw_only=True):
    """The body of ``PATCH /workers/{worker_id}/status``."""

    status: Literal["draining", "idle"]


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


class TicketRequest(Wire, frozen=True, kw_only=True):
    """What a ticket is to reach, for how many seconds, and whether it opens one stream only.

    Without ``taskIds``, or with ``"*"``, it reaches what its maker reaches.
    """

    task_ids: list[str] | Literal["*"] | UnsetType = UNSET
    ttl_seconds: float | UnsetType = UNSET
    single_use: bool = False


class Ticket(Wire, frozen=True, kw_only=True):
    """A ticket, and when it expires, in Unix seconds rounded up."""

    ticket: str
    expires_at: int

    def __repr__(self) -> str:
        return f"Ticket(ticket=<hidden>, expires_at={self.expires_at})"
