"""Cleanup rules: which ended tasks lose their events or vanish, and when.

Rules only ever touch terminal tasks. They delete, so they are read strictly: an unknown key is
refused, because a misspelt ``match`` would otherwise select every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import BadRequest
from .filter import matches_type

TerminalStatus: TypeAlias = Literal["completed", "failed", "timeout", "cancelled"]
Level: TypeAlias = Literal["debug", "info", "warn", "error"]
SeriesMode: TypeAlias = Literal["keep-all", "accumulate", "latest"]
Target: TypeAlias = Literal["all", "events", "task"]
# Half of what a double holds exactly: the sum with a timestamp is exact in every store.
Millis: TypeAlias = Annotated[int, Meta(ge=0, le=2**52)]

MAX_TASK_RULES: Final = 64
"""Of one task: it is judged by each of them at every run."""

_BAD_ENUM: Final = "Invalid enum value"
_UNKNOWN_KEY: Final = "Object contains unknown field"

_TERMINAL: Final[frozenset[str]] = frozenset(get_args(TerminalStatus))


class _Part(Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    pass


class CleanupMatch(_Part, frozen=True, kw_only=True):
    """Which tasks: an absent condition always holds, an empty list never.

    ``status`` is one terminal status or a list of them; another status could never match and is
    refused.
    """

    task_types: tuple[str, ...] | UnsetType = UNSET
    status: TerminalStatus | tuple[TerminalStatus, ...] | UnsetType = UNSET


class CleanupTrigger(_Part, frozen=True, kw_only=True):
    """When: ``after_ms`` milliseconds after the task ended."""

    after_ms: Millis = 0


class CleanupEventFilter(_Part, frozen=True, kw_only=True):
    """Which events of the task: all given conditions hold; an absent one always does.

    ``older_than_ms`` is the least age in milliseconds at the time of the run. ``series_mode`` is
    one mode or a list; an event without a mode has none of them.
    """

    types: tuple[str, ...] | UnsetType = UNSET
    levels: tuple[Level, ...] | UnsetType = UNSET
    older_than_ms: Millis = 0
    series_mode: SeriesMode | tuple[SeriesMode, ...] | UnsetType = UNSET


class CleanupRule(_Part, frozen=True, kw_only=True):
    """One rule: with the target ``events`` events go; with ``task`` or ``all`` the task and all
    that belongs to it, as events can't be reached without their task.

    ``event_filter`` goes only with the target ``events``: a task cannot vanish under events that
    stay.
    """

    trigger: CleanupTrigger
    target: Target
    name: str | UnsetType = UNSET
    match: CleanupMatch | UnsetType = UNSET
    event_filter: CleanupEventFilter | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.event_filter is not UNSET and self.target != "events":
            raise ValueError("`eventFilter` needs the target `events`")


def parse_rules(raw: Any, *, place: str = "cleanup.rules") -> tuple[CleanupRule, ...]:
    """Read a list of rules from JSON, or from decoded values (``msgspec.Raw`` among them).

    Raises :class:`BadRequest` that names the faulty place below ``place``, and none of the values.
    """
    try:
        if isinstance(raw, bytes | bytearray | memoryview | str | msgspec.Raw):
            return msgspec.json.decode(raw, type=tuple[CleanupRule, ...])
        if isinstance(raw, list | tuple):
            raw = [msgspec.json.decode(r) if isinstance(r, msgspec.Raw) else r for r in raw]
        return msgspec.convert(raw, tuple[CleanupRule, ...])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        reason, _, path = str(error).partition(" - at `$")
        if reason.startswith(_BAD_ENUM):
            reason = _BAD_ENUM
        raise BadRequest(f"{place}{path.rstrip('`')}: {reason}") from error


def usable_rules(raw: Sequence[msgspec.Raw]) -> tuple[list[CleanupRule], list[str]]:
    """The rules of a task that can be read, and of each other one its place and what is wrong.

    Clients may have sent anything there: nothing of what they sent is in those texts.
    """
    rules: list[CleanupRule] = []
    faults: list[str] = []
    for number, one in enumerate(raw[:MAX_TASK_RULES]):
        try:
            rules += parse_rules([one])
        except BadRequest as error:
            text = str(error).removeprefix("cleanup.rules").removeprefix("[0]")
            if _UNKNOWN_KEY in text:
                text = text.partition(_UNKNOWN_KEY)[0] + _UNKNOWN_KEY
            faults.append(f"cleanup.rules[{number}]{text}")
    if len(raw) > MAX_TASK_RULES:
        faults.append(f"cleanup.rules[{MAX_TASK_RULES}]: too many rules")
    return rules, faults


def applies(rule: CleanupRule, task_type: str | None, status: str) -> bool:
    """Tell whether ``rule`` selects a task, due or not; without a type it fits no ``taskTypes``."""
    if status not in _TERMINAL:
        return False
    match = rule.match
    if match is UNSET:
        return True
    if match.task_types is not UNSET and (
        task_type is None or not matches_type(match.task_types, task_type)
    ):
        return False
    return match.status is UNSET or status in _names(match.status)


def due_at_ms(
    rule: CleanupRule, task_type: str | None, status: str, completed_at_ms: int
) -> int | None:
    """Return when ``rule`` is to run on the task (Unix ms), or ``None`` when it never does."""
    if not applies(rule, task_type, status):
        return None
    return completed_at_ms + rule.trigger.after_ms


def takes_event(
    rule: CleanupRule,
    *,
    type_: str,
    level: str,
    timestamp_ms: int,
    series_mode: str | None,
    now_ms: int,
) -> bool:
    """Tell whether a run of ``rule`` at ``now_ms`` removes this event of a task it selects.

    Once true it stays true as time goes on, so a run may be repeated or cut into batches.
    """
    if rule.target == "task":
        return False
    wanted = rule.event_filter
    if wanted is UNSET:
        return True
    return (
        now_ms - timestamp_ms >= wanted.older_than_ms
        and (wanted.levels is UNSET or level in wanted.levels)
        and (wanted.series_mode is UNSET or series_mode in _names(wanted.series_mode))
        and (wanted.types is UNSET or matches_type(wanted.types, type_))
    )


def settled_at_ms(rule: CleanupRule, due_ms: int, last_event_ms: int) -> int:
    """Return the time (Unix ms) from which a run of ``rule`` leaves nothing for a later one.

    With ``olderThanMs`` the youngest events may not be old enough at ``due_ms``; ``last_event_ms``
    is the timestamp of the newest event of the task.
    """
    age = 0 if rule.event_filter is UNSET else rule.event_filter.older_than_ms
    return max(due_ms, last_event_ms + age) if age else due_ms


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
