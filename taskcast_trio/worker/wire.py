"""What a worker and the server tell each other."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.matching import MatchRule
from taskcast_trio.core.model import Wire


class Holding(Wire, frozen=True, kw_only=True):
    """A task that the worker has."""

    task_id: str
    fence: int


class Registration(Wire, frozen=True, kw_only=True):
    """What a worker says of itself, over HTTP (where ``type`` says nothing) or a WebSocket."""

    type: Literal["register"]
    capacity: int
    weight: float
    match_rule: MatchRule
    worker_id: str | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    tasks: list[Holding] | UnsetType = UNSET


class Registered(Wire, frozen=True, kw_only=True):
    """The answer over HTTP, as far as it is read."""

    id: str


class Pulse(Wire, frozen=True, kw_only=True):
    """The body of a heartbeat."""

    tasks: list[Holding] | UnsetType


class Cancel(Wire, frozen=True, kw_only=True):
    """A task that is to be stopped."""

    task_id: str
    reason: str


class Heard(Wire, frozen=True, kw_only=True):
    """The answer to a heartbeat."""

    cancel: list[Cancel]
    interval_ms: int


class Summary(Wire, frozen=True, kw_only=True):
    """A task that is offered, as far as it is read: the whole one comes when it is begun."""

    type: str | UnsetType = UNSET
    cost: int = 1


class Told(Wire, frozen=True, kw_only=True):
    """A message of the server over a WebSocket."""

    type: str
    worker_id: str = ""
    task_id: str = ""
    task: Summary = Summary()
    fence: int | UnsetType = UNSET
    reason: str = ""
    success: bool = False
    message: str = ""
    code: str = ""


class Say(Wire, frozen=True, kw_only=True):
    """A message of the worker over a WebSocket."""

    type: Literal["accept", "claim", "decline", "drain", "pong"]
    task_id: str | UnsetType = UNSET
    blacklist: bool | UnsetType = UNSET
    tasks: list[Holding] | UnsetType = UNSET
