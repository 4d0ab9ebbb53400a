"""How a run begins and ends its task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from taskcast_trio.core.model import CreateTask, Task, TaskError

from . import calls
from .outbox import PATIENCE, Outbox
from .retries import Call, RetryPolicy

END_S: Final = 10.0
"""How long (s) a run may take to tell the end of its task after a failure or a cancellation."""
MAX_MESSAGE: Final = 2000
LEFT: Final = "It is not entered, or was left"


@dataclass(frozen=True)
class Plan:
    """The task of a run: one that is there, or one to create."""

    task_id: str | None
    create: Call[Task] | None
    fence: int | None = None
    client_id: str | None = None
    retries: RetryPolicy = PATIENCE


def run(
    task: str | Task | CreateTask | None = None,
    *,
    type: str | None = None,
    params: Any = None,
    metadata: Any = None,
    ttl: int | None = None,
    tags: Iterable[str] | None = None,
    webhooks: Iterable[Any] | None = None,
    fence: int | None = None,
    retries: RetryPolicy = PATIENCE,
) -> Plan:
    """Work on a task: of this id, or a new one, described as for :meth:`create`; enter the result.

    Entering moves the task to ``running``, creating it first where it is new. Leaving completes it
    with the ``result`` that was set; after an exception it is ``failed``, with the exception's type
    as ``code`` and its message; after cancellation, and Ctrl-C, ``cancelled``. What was emitted is
    stored before.

    Args:
        fence: of the worker that has the task.
        retries: how long to try to send a batch of events; some minutes, without.
    """
    if isinstance(task, str | Task):
        if any(each is not None for each in (type, params, metadata, ttl, tags, webhooks)):
            raise TypeError("run() takes a task or what a new one is made of, not both")
        return Plan(task if isinstance(task, str) else task.id, None, fence, None, retries)
    wanted = calls.create(
        task,
        type=type,
        params=params,
        metadata=metadata,
        ttl=ttl,
        tags=None if tags is None else list(tags),
        webhooks=webhooks,
    )
    return Plan(None, wanted, fence, None, retries)


def publisher(
    task_id: str,
    *,
    client_id: str | None = None,
    fence: int | None = None,
    retries: RetryPolicy = PATIENCE,
) -> Plan:
    """Publish to a task that somebody else begins and ends; enter the result.

    Args:
        client_id: go on as this publisher, where it stopped; a new one without. Two may not publish
            under one id at the same time.
        fence, retries: as of :meth:`run`.
    """
    return Plan(task_id, None, fence, client_id, retries)


def running(task_id: str, fence: int | None = None) -> Call[Task]:
    return calls.transition(task_id, "running", fence=fence)


def cause(exc: BaseException) -> BaseException:
    """What went wrong: of a group, its first real error."""
    while isinstance(exc, BaseExceptionGroup):
        errors = exc.split(Exception)[0]
        exc = (errors or exc).exceptions[0]
    return exc


def completed(task_id: str, result: Any, fence: int | None = None) -> Call[Task]:
    return calls.transition(task_id, "completed", result=result, fence=fence)


def ended(task_id: str, exc: BaseException, fence: int | None = None) -> Call[Task]:
    """What a task becomes whose run was left with an exception: failed by an error, cancelled by
    what is none, as cancellation and Ctrl-C.
    """
    exc = cause(exc)
    if not isinstance(exc, Exception):
        return calls.transition(task_id, "cancelled", reason=type(exc).__name__, fence=fence)
    message = str(exc)[:MAX_MESSAGE].encode(errors="replace").decode()
    error = TaskError(code=type(exc).__name__, message=message)
    return calls.transition(task_id, "failed", error=error, fence=fence)


def note_lost(failure: BaseException, task_id: str, outbox: Outbox) -> None:
    """Note on the exception of a body that not all that it emitted was stored, if so."""
    count, reason = outbox.unstored, outbox.failure
    if count and reason is not failure:
        why = "" if reason is None else f": {type(reason).__name__}: {reason}"
        failure.add_note(f"Of what was emitted to task {task_id} the last {count} may be lost{why}")


def untold(task_id: str, failure: BaseException) -> str:
    """The note on the exception of a run that could not be told."""
    return f"The end of task {task_id} could not be told: {type(failure).__name__}: {failure}"
