"""The wire shapes: one definition each for requests, answers, storage and the OpenAPI page.

Times are Unix ms. A field that is absent is ``UNSET``; JSON ``null`` is never the same as absent.
Values that are the caller's own are :class:`msgspec.Raw`, the JSON text as it came.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Status: TypeAlias = Literal[
    "pending",
    "assigned",
    "running",
    "paused",
    "blocked",
    "completed",
    "failed",
    "timeout",
    "cancelled",
]
Level: TypeAlias = Literal["debug", "info", "warn", "error"]
SeriesMode: TypeAlias = Literal["keep-all", "accumulate", "latest"]
SeqMode: TypeAlias = Literal["hold", "fast-fail"]
AssignMode: TypeAlias = Literal["external", "pull", "ws-offer", "ws-race"]
DisconnectPolicy: TypeAlias = Literal["reassign", "mark", "fail"]

MAX_SEQ: Final = 2**53 - 1
"""What every JSON reader takes for the number that it is (RFC 8259, section 6)."""
Seq: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SEQ)]

TERMINAL: Final[frozenset[str]] = frozenset({"completed", "failed", "timeout", "cancelled"})

STATUS_EVENT: Final = "taskcast:status"
BLOCKED_EVENT: Final = "taskcast:blocked"
RESOLVED_EVENT: Final = "taskcast:resolved"
AUDIT_EVENT: Final = "taskcast:audit"


class Wire(Struct, frozen=True, rename="camel", omit_defaults=True, repr_omit_defaults=True):
    """Base of every wire shape: camelCase, unknown fields dropped, absent ones left out."""


class TaskError(Wire, frozen=True, kw_only=True):
    message: str
    code: str | UnsetType = UNSET
    details: Raw | UnsetType = UNSET


class BlockedRequest(Wire, frozen=True, kw_only=True):
    """What a blocked task waits to be told; ``schema``, a JSON Schema, is held against answers."""

    type: str
    data: Raw | UnsetType = UNSET
    schema: Raw | UnsetType = UNSET


class Cleanup(Wire, frozen=True, kw_only=True):
    rules: list[Raw]


class Retry(Wire, frozen=True, kw_only=True):
    """How long a task that failed waits for its next attempt; see `core.backoff`."""

    backoff: Literal["fixed", "linear", "exponential"] | UnsetType = UNSET
    initial_delay_ms: float | UnsetType = UNSET
    max_delay_ms: float | UnsetType = UNSET


class Task(Wire, frozen=True, kw_only=True):
    """A task as it is stored and answered.

    ``fence`` grows with every assignment to a worker, and when one ends otherwise than by its
    worker: who gives it back is known to hold the task still. ``attempts`` counts those that
    failed; ``run_at`` is when a worker gets the task at the earliest.
    """

    id: str
    status: Status
    created_at: int
    updated_at: int
    type: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    ttl: int | UnsetType = UNSET
    webhooks: list[Raw] | UnsetType = UNSET
    cleanup: Cleanup | UnsetType = UNSET
    auth_config: Raw | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    assign_mode: AssignMode | UnsetType = UNSET
    cost: int | UnsetType = UNSET
    disconnect_policy: DisconnectPolicy | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: TaskError | UnsetType = UNSET
    completed_at: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    resume_at: int | UnsetType = UNSET
    blocked_request: BlockedRequest | UnsetType = UNSET
    assigned_worker: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    run_at: int | UnsetType = UNSET
    max_attempts: int | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET
    attempts: int | UnsetType = UNSET
    fence: int | UnsetType = UNSET

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def ended_at(self) -> int:
        """When a task that has ended did; imports need not say so themselves."""
        return self.updated_at if self.completed_at is UNSET else self.completed_at


class TaskView(Task, frozen=True, kw_only=True):
    """A task as reads answer it: with its audience."""

    hot: bool
    subscriber_count: int


class Event(Wire, frozen=True, kw_only=True):
    """An event as it is stored: ``index`` counts per task from 0 without gaps, ``clientSeq`` per
    publisher of the task that counts its events.
    """

    id: str
    task_id: str
    index: int
    timestamp: int
    type: str
    level: Level
    data: Raw | UnsetType = UNSET
    series_id: str | UnsetType = UNSET
    series_mode: SeriesMode | UnsetType = UNSET
    series_acc_field: str | UnsetType = UNSET
    series_snapshot: bool | UnsetType = UNSET
    client_id: str | UnsetType = UNSET
    client_seq: int | UnsetType = UNSET


class Envelope(Wire, frozen=True, kw_only=True):
    """An event as streams send it, with its place among the events that pass the subscriber's
    filter.
    """

    filtered_index: int
    raw_index: int
    event_id: str
    task_id: str
    type: str
    timestamp: int
    level: Level
    data: Raw | UnsetType = UNSET
    series_id: str | UnsetType = UNSET
    series_mode: SeriesMode | UnsetType = UNSET
    series_acc_field: str | UnsetType = UNSET
    series_snapshot: bool | UnsetType = UNSET
    client_id: str | UnsetType = UNSET
    client_seq: int | UnsetType = UNSET


class Draft(Wire, frozen=True, kw_only=True):
    """An event before the log gives it an id, an index and a time: the body of a publish.

    The events of a ``clientId`` are stored once each and in the order of their ``clientSeq``, from
    0; ``seqMode`` says what becomes of one that comes before others which are missing.
    """

    type: str
    level: Level
    data: Raw | UnsetType = UNSET
    series_id: str | UnsetType = UNSET
    series_mode: SeriesMode | UnsetType = UNSET
    series_acc_field: str | UnsetType = UNSET
    client_id: str | UnsetType = UNSET
    client_seq: Seq | UnsetType = UNSET
    seq_mode: SeqMode | UnsetType = UNSET


class CreateTask(Wire, frozen=True, kw_only=True):
    """The body of ``POST /tasks``. ``ttl`` is in seconds, ``runAt`` in Unix ms; ``priority`` is
    from -1000 to 1000, higher first; ``maxAttempts`` is how often a task may fail.
    """

    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    ttl: float | UnsetType = UNSET
    webhooks: list[Raw] | UnsetType = UNSET
    cleanup: Cleanup | UnsetType = UNSET
    auth_config: Raw | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    assign_mode: AssignMode | UnsetType = UNSET
    cost: float | UnsetType = UNSET
    disconnect_policy: DisconnectPolicy | UnsetType = UNSET
    priority: float | UnsetType = UNSET
    run_at: float | UnsetType = UNSET
    max_attempts: float | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET


class Transition(Wire, frozen=True, kw_only=True):
    """The body of ``PATCH /tasks/{id}/status``. ``ttl`` is in seconds."""

    status: Status
    result: Raw | UnsetType = UNSET
    error: TaskError | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    ttl: float | UnsetType = UNSET
    resume_after_ms: float | UnsetType = UNSET
    blocked_request: BlockedRequest | UnsetType = UNSET


class Resolve(Wire, frozen=True, kw_only=True):
    """The body of ``POST /tasks/{id}/resolve``."""

    data: Raw | UnsetType = UNSET


class StorageRelease(Wire, frozen=True, kw_only=True):
    """The body of ``POST /tasks/{id}/storage/release``."""

    expected_last_event_index: float
    inactive_since: float


class ArchivedTask(Wire, frozen=True, kw_only=True):
    """A task inside an archive; numbers may be written as floats."""

    id: str
    status: Status
    created_at: float
    updated_at: float
    type: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    ttl: float | UnsetType = UNSET
    webhooks: list[Raw] | UnsetType = UNSET
    cleanup: Cleanup | UnsetType = UNSET
    auth_config: Raw | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    assign_mode: AssignMode | UnsetType = UNSET
    cost: float | UnsetType = UNSET
    disconnect_policy: DisconnectPolicy | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: TaskError | UnsetType = UNSET
    completed_at: float | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    resume_at: float | UnsetType = UNSET
    blocked_request: BlockedRequest | UnsetType = UNSET
    assigned_worker: str | UnsetType = UNSET
    priority: float | UnsetType = UNSET
    run_at: float | UnsetType = UNSET
    max_attempts: float | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET
    attempts: float | UnsetType = UNSET
    fence: float | UnsetType = UNSET


class ArchivedEvent(Wire, frozen=True, kw_only=True):
    """An event inside an archive. ``noData`` marks one that was published without data."""

    id: str
    task_id: str
    index: float
    timestamp: float
    type: str
    level: Level
    data: Raw | UnsetType = UNSET
    no_data: bool = False
    series_id: str | UnsetType = UNSET
    series_mode: SeriesMode | UnsetType = UNSET
    series_acc_field: str | UnsetType = UNSET
    series_snapshot: bool | UnsetType = UNSET
    client_id: str | UnsetType = UNSET
    client_seq: float | UnsetType = UNSET


class ArchivedPublisher(Wire, frozen=True, kw_only=True):
    """Which event a publisher is to send next."""

    client_id: str
    expected_seq: float


class Archive(Wire, frozen=True, kw_only=True):
    """A task with its events, as export gives it; ``publishers`` where any count their events."""

    schema: Literal["taskcast.taskArchive"]
    version: Literal[1]
    exported_at: int
    task: Task
    events: list[ArchivedEvent]
    publishers: list[ArchivedPublisher] | UnsetType = UNSET


class ImportArchive(Wire, frozen=True, kw_only=True):
    """A task with its events, as import takes it."""

    schema: Literal["taskcast.taskArchive"]
    version: Literal[1]
    exported_at: float
    task: ArchivedTask
    events: list[ArchivedEvent]
    publishers: list[ArchivedPublisher] | UnsetType = UNSET


class ImportTask(Wire, frozen=True, kw_only=True):
    """The body of ``POST /tasks/import``."""

    archive: ImportArchive
    overwrite: bool = False


class Imported(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """The answer of ``POST /tasks/import``."""

    ok: bool
    task_id: str
    event_count: int
    overwritten: bool
