"""Tasks in the hands of workers: what assigning one, giving it back and losing it do to it.

Every assignment has a fence, a number of the task that grows. Where the assignment ends before the
task does, or otherwise than by its worker, the fence grows too: so it is the worker's as long as it
is equal, and a store can look at that in the same step in which it writes. By how much it grows
says whether the worker has given the task back, or lost it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from .backoff import Backoff
from .errors import StaleFence, TaskCancelled, TaskcastError
from .jsontext import fields_of
from .machine import ENGINE_MOVES, builtin, transition
from .matching import BLACKLIST_KEY, DEFAULT_COST, blacklist_of, with_blacklisted
from .model import AUDIT_EVENT, Draft, Task, TaskError, Transition, Wire

DISPATCH: Final = "dispatch"
"""The kind of timer that is due where a worker is to be found for a pending task."""
LEASE: Final = "lease"
"""The kind of timer that is due where it is to be seen whether a task's worker is there still."""

WORKER_MODES: Final = frozenset({"pull", "ws-offer", "ws-race"})
LOST_KEY: Final = "_lostWorker"
"""In a task's metadata: the worker that was lost, where the policy is only to mark that."""
LOST_CODE: Final = "worker_lost"

_TAKEN: Final = 1
_GIVEN_BACK: Final = 2

_PRIORITY_STEP_MS: Final = 10**11
_MAX_PRIORITY: Final = 1000


class _Audit(Wire, frozen=True, kw_only=True):
    action: Literal["assigned", "declined", "lost", "retry"]
    worker_id: str | UnsetType = UNSET
    blacklisted: bool | UnsetType = UNSET
    policy: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    run_at: int | UnsetType = UNSET


class Queue(Struct, frozen=True):
    """Where a task waits that no worker can take: tasks of one queue fit the same workers."""

    mode: str
    type: str | None
    tags: tuple[str, ...]
    cost: int
    barred: tuple[str, ...]
    """The workers that may not have them."""

    @property
    def kind(self) -> str:
        """The kind of timer whose order is that of the queue."""
        return f"wait:{blake2b(msgspec.json.encode(self), digest_size=10).hexdigest()}"


def is_held(task: Task) -> bool:
    """Whether a worker has the task."""
    return task.assigned_worker is not UNSET and task.status != "pending" and not task.terminal


def waits(task: Task) -> bool:
    """Whether a worker is to be found for the task."""
    return task.status == "pending" and task.assign_mode in WORKER_MODES


def is_orphan(task: Task) -> bool:
    """Whether the task runs on, but its worker was told to stop: it needs another one."""
    return (
        task.status == "running"
        and task.assigned_worker is UNSET
        and task.fence is not UNSET
        and task.assign_mode in WORKER_MODES
    )


def cost_of(task: Task) -> int:
    return DEFAULT_COST if task.cost is UNSET else task.cost


def barred_from(task: Task) -> frozenset[str]:
    return blacklist_of(_blacklist(task))


def _blacklist(task: Task) -> dict[str, Any] | None:
    """The task's metadata as far as it is looked at here."""
    if task.metadata is UNSET or BLACKLIST_KEY.encode() not in bytes(task.metadata):
        return None
    listed = (fields_of(bytes(task.metadata)) or {}).get(b'"%b"' % BLACKLIST_KEY.encode())
    try:
        return {BLACKLIST_KEY: msgspec.json.decode(listed)} if listed is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _with_member(task: Task, key: str, value: Any) -> Task:
    """The task with one member of its metadata changed, and the others as the caller wrote them."""
    text = b"{}" if task.metadata is UNSET else bytes(task.metadata)
    members = fields_of(text) or {}
    members[msgspec.json.encode(key)] = msgspec.json.encode(value)
    return replace(
        task, metadata=Raw(b"{%b}" % b",".join(b"%b:%b" % each for each in members.items()))
    )


def queue_of(task: Task) -> Queue:
    return Queue(
        mode=task.assign_mode or "",
        type=None if task.type is UNSET else task.type,
        tags=() if task.tags is UNSET else tuple(sorted(set(task.tags))),
        cost=cost_of(task),
        barred=tuple(sorted(barred_from(task))),
    )


def place_of(task: Task) -> int:
    """The task's place in its queue: by priority, then by age."""
    priority = 0 if task.priority is UNSET else task.priority
    return task.created_at - (priority + _MAX_PRIORITY) * _PRIORITY_STEP_MS


def due_of(task: Task, now_ms: int) -> int:
    """When a worker is to be found for a task that waits."""
    return now_ms if task.run_at is UNSET else max(task.run_at, now_ms)


# Timers ------------------------------------------------------------------------------------------


def timers_at_start(task: Task, now_ms: int) -> dict[str, int]:
    """What is due for a task that is created, imported, or taken in again."""
    if waits(task) or is_orphan(task):
        return {DISPATCH: due_of(task, now_ms)}
    return {LEASE: now_ms} if is_held(task) else {}


def timers_at_change(before: Task, after: Task, now_ms: int) -> dict[str, int | None]:
    """What a transition sets and clears; the lease of a new assignment is the assigner's."""
    timers: dict[str, int | None] = {}
    if is_held(before) and not is_held(after):
        timers[LEASE] = None
    if after.assign_mode not in WORKER_MODES:
        return timers
    resumed = is_orphan(after) and not is_orphan(before) and before.status != "pending"
    if after.status == "pending" or resumed:
        timers[DISPATCH] = due_of(after, now_ms)
    if before.status == "pending":
        timers.setdefault(DISPATCH, None)
        timers[queue_of(before).kind] = None
    return timers


# Changes -----------------------------------------------------------------------------------------


def refusal(task: Task) -> TaskcastError:
    """What a request is told that came with another fence than the task's."""
    if task.terminal or task.status == "paused":
        return TaskCancelled(task.id, task.status)
    return StaleFence(task.id)


def assign(task: Task, worker_id: str, now_ms: int) -> tuple[Task, list[Draft]]:
    """Give a pending task to a worker. It has no status event, as existing clients know it."""
    fence = 0 if task.fence is UNSET else task.fence
    assigned = replace(
        task,
        status="assigned",
        assigned_worker=worker_id,
        cost=cost_of(task),
        fence=fence + 1,
        updated_at=max(now_ms, task.updated_at),
    )
    return assigned, [_audit(_Audit(action="assigned", worker_id=worker_id))]


def settled(before: Task, after: Task, *, by_holder: bool) -> Task:
    """``after``, without the assignment that ``before`` had where the change ends it."""
    if before.assigned_worker is UNSET:
        return after
    paused = after.status == "paused" and not by_holder
    if not (after.terminal or after.status == "pending" or paused):
        return after
    fence = after.fence
    if fence is not UNSET and not by_holder:
        fence += _TAKEN
    elif fence is not UNSET and not after.terminal:
        fence += _GIVEN_BACK
    return replace(after, assigned_worker=UNSET, fence=fence)


def is_ended_by_holder(task: Task, fence: int) -> bool:
    """Whether the worker that had the task by ``fence``, and has it no more, ended that itself."""
    given_back = task.status == "pending" and task.fence == fence + _GIVEN_BACK
    return given_back or task.fence == fence


def change(task: Task, asked: Transition, now_ms: int) -> tuple[Task, list[Draft]]:
    """What a caller's transition makes of the task: a failure with attempts left becomes a retry.

    Raises:
        InvalidTransition: there is no way from its status to the one asked for.
    """
    if asked.status == "failed" and task.max_attempts is not UNSET:
        failed, drafts = transition(task, asked, now_ms)
        tried = _tries(task)
        if tried >= task.max_attempts:
            return replace(failed, attempts=tried), drafts
        return _retried(task, asked, tried, now_ms)
    return transition(task, asked, now_ms)


def _tries(task: Task) -> int:
    return 1 if task.attempts is UNSET else task.attempts + 1


def _retried(task: Task, asked: Transition, tried: int, now_ms: int) -> tuple[Task, list[Draft]]:
    again = replace(asked, status="pending", reason=UNSET, resume_after_ms=UNSET)
    after, drafts = transition(task, again, now_ms, moves=ENGINE_MOVES)
    run_at = now_ms + _schedule(task).delay_ms(tried, jitter=0)
    told = _Audit(action="retry", worker_id=task.assigned_worker, attempt=tried, run_at=run_at)
    return replace(after, attempts=tried, run_at=run_at), [*drafts, _audit(told)]


def _schedule(task: Task) -> Backoff:
    retry = task.retry
    if retry is UNSET:
        return Backoff()
    given = {
        "kind": retry.backoff,
        "initial_delay_ms": retry.initial_delay_ms,
        "max_delay_ms": retry.max_delay_ms,
    }
    return replace(
        Backoff(),
        **{
            name: value if isinstance(value, str) else int(value)
            for name, value in given.items()
            if value is not UNSET
        },
    )


def declined(
    task: Task, worker_id: str, *, blacklist: bool, now_ms: int
) -> tuple[Task, list[Draft]]:
    """Take back what its worker declines."""
    again = Transition(status="pending")
    after, drafts = transition(task, again, now_ms, moves=ENGINE_MOVES)
    after = settled(task, after, by_holder=True)
    told = _Audit(action="declined", worker_id=worker_id, blacklisted=blacklist)
    if blacklist:
        after = bar(after, worker_id)
    return after, [*drafts, _audit(told)]


def bar(task: Task, worker_id: str) -> Task:
    """The task, which this worker is not asked for any more."""
    known = _blacklist(task)
    if worker_id in blacklist_of(known):
        return task
    return _with_member(task, BLACKLIST_KEY, with_blacklisted(known, worker_id)[BLACKLIST_KEY])


def unassigned(task: Task, now_ms: int) -> tuple[Task, list[Draft]]:
    """Take a task back that its worker never got, or that is to get another one."""
    after, drafts = transition(task, Transition(status="pending"), now_ms, moves=ENGINE_MOVES)
    return settled(task, after, by_holder=False), drafts


def lost(task: Task, policy: str, now_ms: int) -> tuple[Task, list[Draft]]:
    """What becomes of a task whose worker was lost."""
    worker_id = task.assigned_worker
    told = _audit(_Audit(action="lost", worker_id=worker_id, policy=policy))
    if policy == "mark":
        marked = _with_member(task, LOST_KEY, worker_id)
        return replace(marked, updated_at=max(now_ms, task.updated_at)), [told]
    error = TaskError(message=f"The worker {worker_id} was lost", code=LOST_CODE)
    tried, most = _tries(task), task.max_attempts
    if most is not UNSET and tried < most:
        asked = Transition(status="failed", error=error if policy == "fail" else UNSET)
        after, drafts = _retried(task, asked, tried, now_ms)
    elif policy == "fail" or most is not UNSET:
        asked = Transition(status="failed", error=error)
        after, drafts = transition(task, asked, now_ms, moves=ENGINE_MOVES)
        if most is not UNSET:
            after = replace(after, attempts=tried)
    else:
        after, drafts = unassigned(task, now_ms)
        return after, [*drafts, told]
    return settled(task, after, by_holder=False), [*drafts, told]


def _audit(told: _Audit) -> Draft:
    return builtin(AUDIT_EVENT, told)
