"""What a worker meets, beside the errors of ``core.errors``."""

from __future__ import annotations

from typing import Final

from taskcast_trio.core import errors
from taskcast_trio.core.errors import TaskcastError

LOST: Final = (
    errors.StaleFence,
    errors.TaskCancelled,
    errors.TaskEnded,
    errors.TaskNotFound,
)
"""Answers that say that the task is not this worker's any more."""


def loss(error: TaskcastError) -> str:
    """Why it is not, of such an answer: in the words in which the server tells of it by itself."""
    match error:
        case errors.StaleFence():
            return "reassigned"
        case errors.TaskNotFound():
            return "deleted"
    return str(error.facts.get("status", "ended"))


def not_here(refusal: TaskcastError, url: str) -> TaskcastError:
    """What a worker that comes to ``url`` is refused with; a bare 404 says what it lacks."""
    if type(refusal) is not errors.NotFound:
        return refusal
    told = errors.NotFound(
        f"There is no workers API at {url}: the server runs without --workers-api"
        " (workers.enabled), or is elsewhere"
    )
    told.body = refusal.body
    return told


class TaskLost(TaskcastError):
    """The task is not this worker's any more: what is done for it is done for nobody."""

    status = 409
    code = "task_lost"

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(f"Task {task_id} is not this worker's any more: {reason}")
        self.reason = reason


class WorkerRefused(TaskcastError):
    """The server does not take this worker; ``code`` says why."""

    status = 403
    code = "worker_refused"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        # A constant of the class elsewhere in the tree; here each answer brings its own.
        self.code = code  # type: ignore[misc]


class WorkerReplaced(TaskcastError):
    """Another worker has taken this one's id, or it was deleted: coming back would fight that."""

    status = 409
    code = "worker_replaced"

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Decline(Exception):
    """To be raised by a handler: give the task back, for another worker or a later try.

    With ``blacklist`` this worker does not get it again.
    """

    def __init__(self, *, blacklist: bool = False) -> None:
        super().__init__("given back")
        self.blacklist = blacklist
