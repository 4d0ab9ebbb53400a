"""The state machine: nine statuses, and what a transition does to the task and its log."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .errors import BadRequest, InvalidTransition, NotBlocked
from .model import (
    BLOCKED_EVENT,
    RESOLVED_EVENT,
    STATUS_EVENT,
    TERMINAL,
    BlockedRequest,
    Draft,
    Status,
    Task,
    TaskError,
    Transition,
    Wire,
)

MOVES: Final[dict[str, frozenset[str]]] = {
    "pending": frozenset({"assigned", "running", "paused", "timeout", "cancelled"}),
    "assigned": frozenset({"running", "pending", "paused", "timeout", "cancelled"}),
    "running": frozenset({"paused", "blocked", "completed", "failed", "timeout", "cancelled"}),
    "paused": frozenset({"running", "assigned", "blocked", "timeout", "cancelled"}),
    "blocked": frozenset({"running", "assigned", "paused", "cancelled", "failed", "timeout"}),
    **dict.fromkeys(TERMINAL, frozenset()),
}
"""What a caller may ask for."""

ENGINE_MOVES: Final[dict[str, frozenset[str]]] = {
    source: targets | {"pending", "failed"}
    if source in ("assigned", "running", "paused", "blocked")
    else targets
    for source, targets in MOVES.items()
}
"""What the engine may do by itself: also take a task back to pending, or fail it, in every status
in which a worker may have it (a lost lease, a retry).
"""

MAX_WHOLE: Final = 2**53 - 1
"""Above it a double, which numbers on the wire are, skips whole numbers."""

_SUSPENDED: Final = ("paused", "blocked")


class _StatusData(Wire, frozen=True, kw_only=True):
    status: Status
    result: Raw | UnsetType = UNSET
    error: TaskError | UnsetType = UNSET


class _BlockedData(Wire, frozen=True, kw_only=True):
    reason: str | UnsetType = UNSET
    request: BlockedRequest


class _ResolvedData(Wire, frozen=True, kw_only=True):
    resolution: Raw | UnsetType = UNSET


def builtin(type_: str, data: Wire) -> Draft:
    return Draft(type=type_, level="info", data=Raw(msgspec.json.encode(data)))


def whole(value: float | UnsetType, name: str) -> int | UnsetType:
    """A whole number above 0, as the wire writes them (``60``, ``1e2``, ``3.0``).

    Raises:
        BadRequest: it is none.
    """
    if value is UNSET:
        return UNSET
    if not 0 < value <= MAX_WHOLE or value != value // 1:
        raise BadRequest(f"Expected a whole number from 1 to {MAX_WHOLE} - at `$.{name}`")
    return int(value)


def whole_between(value: float | UnsetType, least: int, most: int, name: str) -> int | UnsetType:
    """A whole number from ``least`` to ``most``.

    Raises:
        BadRequest: it is none.
    """
    if value is UNSET:
        return UNSET
    if not least <= value <= most or value != value // 1:
        raise BadRequest(f"Expected a whole number from {least} to {most} - at `$.{name}`")
    return int(value)


def expect_object(value: Raw | UnsetType, name: str) -> None:
    """Refuse (BadRequest) a raw value that is no JSON object."""
    if value is not UNSET and bytes(value)[:1] != b"{":
        raise BadRequest(f"Expected `object` - at `$.{name}`")


def check_transition(change: Transition) -> None:
    """Refuse (BadRequest) a transition that is wrong whatever the task."""
    expect_object(change.result, "result")
    if change.error is not UNSET:
        expect_object(change.error.details, "error.details")
    whole(change.ttl, "ttl")
    whole(change.resume_after_ms, "resumeAfterMs")


def transition(
    task: Task, change: Transition, now_ms: int, *, moves: dict[str, frozenset[str]] = MOVES
) -> tuple[Task, list[Draft]]:
    """The task after ``change`` at ``now_ms``, and the built-in events that the change appends.

    ``change`` has passed :func:`check_transition`, or is the engine's own.

    Raises:
        InvalidTransition: ``moves`` has no way from the task's status to the one asked for.
    """
    source, target = task.status, change.status
    if target not in moves[source]:
        raise InvalidTransition(task.id, source, target, moves[source])
    now_ms = max(now_ms, task.updated_at)
    fields: dict[str, Any] = {"status": target, "updated_at": now_ms}
    if change.result is not UNSET:
        fields["result"] = change.result
    if change.error is not UNSET:
        fields["error"] = change.error
    if change.ttl is not UNSET:
        fields["ttl"] = whole(change.ttl, "ttl")
    if target in TERMINAL:
        fields["completed_at"] = now_ms
    if target not in _SUSPENDED:
        fields.update(reason=UNSET, resume_at=UNSET, blocked_request=UNSET)
    elif change.reason is not UNSET:
        fields["reason"] = change.reason
    if target == "blocked":
        if change.blocked_request is not UNSET:
            fields["blocked_request"] = change.blocked_request
        wait_ms = whole(change.resume_after_ms, "resumeAfterMs")
        if wait_ms is not UNSET:
            fields["resume_at"] = now_ms + wait_ms
    new = msgspec.structs.replace(task, **fields)

    drafts = [builtin(STATUS_EVENT, _StatusData(status=target, result=new.result, error=new.error))]
    if target == "blocked" and new.blocked_request is not UNSET:
        drafts.append(
            builtin(BLOCKED_EVENT, _BlockedData(reason=new.reason, request=new.blocked_request))
        )
    if source == "blocked" and target == "running" and task.blocked_request is not UNSET:
        drafts.append(builtin(RESOLVED_EVENT, _ResolvedData(resolution=change.result)))
    return new, drafts


def resolution(task: Task, data: Raw | UnsetType) -> Transition:
    """The transition that answers a blocked task with ``data``: an object or array becomes the
    result, the rest is wrapped.

    Raises:
        NotBlocked: there is nothing to answer.
    """
    if task.status != "blocked":
        raise NotBlocked(task.id, task.status)
    if data is UNSET:
        return Transition(status="running", result=Raw(b"{}"))
    text = bytes(data)
    if text[:1] in (b"{", b"["):
        return Transition(status="running", result=data)
    return Transition(status="running", result=Raw(b'{"resolution":%b}' % text))
