"""What workers say of themselves, and whether it can be so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import UNSET, Raw, Struct, UnsetType

from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.matching import MatchRule
from taskcast_trio.core.model import Wire
from taskcast_trio.core.validate import task_id as check_id

DEFAULT_CAPACITY: Final = 10
DEFAULT_WEIGHT: Final = 50.0
MAX_CAPACITY: Final = 1_000_000
MAX_WEIGHT: Final = 1e9
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_TASKS_TOLD: Final = 1000


class Holding(Wire, frozen=True, kw_only=True):
    """A task that a worker believes to have."""

    task_id: str
    fence: int


class Registration(Wire, frozen=True, kw_only=True):
    """What a worker says of itself when it comes. Without an id it gets one; ``capacity`` is how
    many slots it has (10), ``weight`` (50) puts it before others. ``tasks`` are those that it has
    still from before: others that it had are given to other workers at once; where it does not say,
    after a while.
    """

    worker_id: str | UnsetType = UNSET
    match_rule: MatchRule = MatchRule()
    capacity: float = float(DEFAULT_CAPACITY)
    weight: float = DEFAULT_WEIGHT
    metadata: Raw | UnsetType = UNSET
    tasks: tuple[Holding, ...] | UnsetType = UNSET


class Cancel(Wire, frozen=True, kw_only=True):
    """A task that a worker is to stop."""

    task_id: str
    reason: str


class Change(Struct, frozen=True, kw_only=True):
    """What an update says; what it does not is UNSET."""

    weight: float | UnsetType = UNSET
    capacity: int | UnsetType = UNSET
    rule: MatchRule | UnsetType = UNSET


def checked(asked: Registration) -> Registration:
    """The registration, if it can be one; else BadRequest."""
    if asked.worker_id is not UNSET:
        check_id(asked.worker_id, "workerId")
    if not is_capacity(asked.capacity):
        raise BadRequest(f"Expected a whole number from 1 to {MAX_CAPACITY} - at `$.capacity`")
    if not is_weight(asked.weight):
        raise BadRequest(f"Expected a number from 0 to {MAX_WEIGHT:g} - at `$.weight`")
    if asked.tasks is not UNSET:
        check_tasks(asked.tasks)
    if asked.metadata is not UNSET:
        if bytes(asked.metadata)[:1] != b"{":
            raise BadRequest("Expected `object` - at `$.metadata`")
        if len(bytes(asked.metadata)) > MAX_METADATA_BYTES:
            raise BadRequest(f"Expected at most {MAX_METADATA_BYTES} bytes - at `$.metadata`")
    return asked


def check_tasks(tasks: Sequence[Holding]) -> None:
    """Refuse (BadRequest) more than anybody has."""
    if len(tasks) > MAX_TASKS_TOLD:
        raise BadRequest(f"Expected at most {MAX_TASKS_TOLD} tasks - at `$.tasks`")


def is_capacity(value: float) -> bool:
    return 1 <= value <= MAX_CAPACITY and value == value // 1


def is_weight(value: float) -> bool:
    return 0 <= value <= MAX_WEIGHT
