"""What is due for a task by itself: its deadline, and its waking up.

``ttl`` (seconds) is a deadline for the execution. Its clock begins with the task and goes on while
the task is blocked; ``paused`` stops it, and leaving that begins the full ttl anew, as a ttl in a
transition does. Nothing remembers when the clock began: the time of the deadline is set by what
begins it, and left alone by every other change.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET

from .model import Task, TaskError, Transition

DEADLINE: Final = "deadline"
"""The kind of timer that is due where the ttl of a task has passed."""
WAKE: Final = "wake"
"""The kind of timer that is due where a blocked task goes on by itself."""

MAX_MS: Final = 2**53 - 1
"""As late as every store can hold exactly."""

EXPIRED_CODE: Final = "ttl_expired"


def timers_at_start(task: Task, now_ms: int) -> dict[str, int]:
    """What is due for a task that is created, imported, or taken in again."""
    timers: dict[str, int] = {}
    if task.ttl is not UNSET and not task.terminal and task.status != "paused":
        timers[DEADLINE] = _deadline(task.ttl, now_ms)
    wake_ms = _wake(task)
    if wake_ms is not None:
        timers[WAKE] = wake_ms
    return timers


def timers_at_change(
    before: Task, after: Task, now_ms: int, *, new_ttl: bool
) -> dict[str, int | None]:
    """What a transition sets and clears; ``new_ttl``: it came with one."""
    timers: dict[str, int | None] = {}
    if after.ttl is not UNSET:
        if after.terminal or after.status == "paused":
            timers[DEADLINE] = None
        elif new_ttl or before.status == "paused":
            timers[DEADLINE] = _deadline(after.ttl, now_ms)
    wake_ms = _wake(after)
    if wake_ms != _wake(before):
        timers[WAKE] = wake_ms
    return timers


def expiry(task: Task) -> Transition | None:
    """What the deadline does to the task; None where it has none (any more)."""
    if task.ttl is UNSET or task.terminal or task.status == "paused":
        return None
    message = f"The task did not end within its ttl of {task.ttl} s"
    return Transition(status="timeout", error=TaskError(message=message, code=EXPIRED_CODE))


def waking(task: Task, now_ms: int) -> Transition | None:
    """How a blocked task goes on; None where it does not, or not yet."""
    wake_ms = _wake(task)
    if wake_ms is None or wake_ms > now_ms:
        return None
    return Transition(status="running")


def _deadline(ttl_s: int, now_ms: int) -> int:
    return min(now_ms + ttl_s * 1000, MAX_MS)


def _wake(task: Task) -> int | None:
    if task.status != "blocked" or task.resume_at is UNSET:
        return None
    return min(max(task.resume_at, 0), MAX_MS)
