"""What assigning a task does to it, and what ends that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from taskcast_trio.core import assignment
from taskcast_trio.core.assignment import (
    DISPATCH,
    LEASE,
    assign,
    bar,
    barred_from,
    change,
    declined,
    lost,
    place_of,
    queue_of,
    refusal,
    settled,
    timers_at_change,
    timers_at_start,
)
from taskcast_trio.core.model import Retry, Task, Transition

NOW = 1_700_000_000_000


def task(status: Any = "pending", **fields: Any) -> Task:
    return Task(id="t", status=status, created_at=NOW, updated_at=NOW, **fields)


def held(status: Any = "running", **fields: Any) -> Task:
    fields = {"assigned_worker": "w", "fence": 3, "assign_mode": "pull", "cost": 1} | fields
    return task(status, **fields)


def said(drafts: Any) -> list[Any]:
    return [msgspec.json.decode(bytes(draft.data)) for draft in drafts]


def test_an_assignment_has_an_audit_event_and_no_status_event() -> None:
    after, drafts = assign(task(), "w", NOW + 5)
    assert (after.status, after.assigned_worker, after.cost) == ("assigned", "w", 1)
    assert (after.fence, after.updated_at) == (1, NOW + 5)
    assert said(drafts) == [{"action": "assigned", "workerId": "w"}]
    assert drafts[0].type == "taskcast:audit"


@pytest.mark.parametrize(
    ("status", "by_holder", "stays", "fence"),
    [
        ("running", False, True, 3),
        ("blocked", False, True, 3),
        ("paused", True, True, 3),
        ("paused", False, False, 4),
        ("pending", True, False, 5),
        ("completed", True, False, 3),
        ("completed", False, False, 4),
        ("cancelled", False, False, 4),
        ("timeout", False, False, 4),
    ],
)
def test_what_ends_an_assignment_and_when_the_fence_grows(
    status: Any, by_holder: bool, stays: bool, fence: int
) -> None:
    after = settled(held(), replace(held(), status=status), by_holder=by_holder)
    assert (after.assigned_worker is not UNSET, after.fence) == (stays, fence)


def test_a_task_that_no_worker_has_is_left_alone() -> None:
    ended = task("completed")
    assert settled(task("running"), ended, by_holder=False) is ended


@pytest.mark.parametrize(
    ("status", "code"),
    [("cancelled", "task_cancelled"), ("paused", "task_cancelled"), ("assigned", "stale_fence")],
)
def test_a_stale_fence_says_whether_the_work_is_to_stop(status: Any, code: str) -> None:
    assert refusal(task(status)).code == code


def test_a_failure_with_attempts_left_is_pending_again_after_a_while() -> None:
    failed = Transition(status="failed")
    tried = held(max_attempts=3, retry=Retry(backoff="linear", initial_delay_ms=500))
    after, drafts = change(tried, failed, NOW)
    assert (after.status, after.attempts, after.run_at) == ("pending", 1, NOW + 500)
    assert said(drafts) == [
        {"status": "pending"},
        {"action": "retry", "workerId": "w", "attempt": 1, "runAt": NOW + 500},
    ]
    after, _ = change(replace(tried, attempts=1), failed, NOW)
    assert (after.status, after.attempts, after.run_at) == ("pending", 2, NOW + 1000)
    after, _ = change(replace(tried, attempts=2), failed, NOW)
    assert (after.status, after.attempts) == ("failed", 3)


def test_a_failure_without_more_attempts_asked_for_is_one() -> None:
    after, drafts = change(held(), Transition(status="failed"), NOW)
    assert (after.status, after.attempts) == ("failed", UNSET)
    assert said(drafts) == [{"status": "failed"}]


def test_a_decline_takes_the_task_back_and_bars_the_worker_where_it_asks_for_that() -> None:
    before = held(metadata=Raw(b'{"k": 1e400,"l":"\\ud800"}'))
    after, drafts = declined(before, "w", blacklist=False, now_ms=NOW)
    assert (after.status, after.assigned_worker, after.metadata) == (
        "pending",
        UNSET,
        before.metadata,
    )
    after, drafts = declined(before, "w", blacklist=True, now_ms=NOW)
    assert after.metadata == Raw(b'{"k":1e400,"l":"\\ud800","_blacklistedWorkers":["w"]}')
    assert said(drafts)[1] == {"action": "declined", "workerId": "w", "blacklisted": True}
    assert bar(after, "w") is after
    assert barred_from(bar(after, "v")) == {"w", "v"}


@pytest.mark.parametrize(
    "metadata",
    [b'{"_blacklistedWorkers": 5}', b'{"_blacklistedWorkers":[5,null]}', b'{"a":"\\ud800"}'],
)
def test_metadata_that_is_no_list_bars_nobody(metadata: bytes) -> None:
    assert barred_from(task(metadata=Raw(metadata))) == frozenset()


@pytest.mark.parametrize("status", ["assigned", "running", "blocked", "paused"])
@pytest.mark.parametrize(
    ("policy", "becomes"), [("reassign", "pending"), ("fail", "failed"), ("mark", None)]
)
def test_what_becomes_of_a_task_whose_worker_is_lost(
    status: Any, policy: str, becomes: str | None
) -> None:
    after, drafts = lost(held(status), policy, NOW)
    assert after.status == (becomes or status)
    told = {"action": "lost", "workerId": "w", "policy": policy}
    assert told in said(drafts)
    if becomes is None:
        assert (after.assigned_worker, after.metadata) == ("w", Raw(b'{"_lostWorker":"w"}'))
    else:
        assert (after.assigned_worker, after.fence) == (UNSET, 4)


@pytest.mark.parametrize("policy", ["reassign", "fail"])
def test_a_lost_worker_costs_an_attempt(policy: str) -> None:
    after, _ = lost(held(max_attempts=2), policy, NOW)
    assert (after.status, after.attempts) == ("pending", 1)
    after, _ = lost(held(max_attempts=2, attempts=1), policy, NOW)
    assert after.status == "failed"
    assert after.error is not UNSET
    assert after.error.code == "worker_lost"


def test_when_workers_are_looked_for() -> None:
    assert timers_at_start(task(), NOW) == {}
    assert timers_at_start(task(assign_mode="external"), NOW) == {}
    assert timers_at_start(task(assign_mode="pull"), NOW) == {DISPATCH: NOW}
    later = task(assign_mode="ws-offer", run_at=NOW + 9)
    assert timers_at_start(later, NOW) == {DISPATCH: NOW + 9}
    assert timers_at_start(held(), NOW) == {LEASE: NOW}


def test_a_task_leaves_its_queue_in_the_step_that_changes_it() -> None:
    before = task(assign_mode="pull", type="a")
    kind = queue_of(before).kind
    cleared = {DISPATCH: None, kind: None}
    for after in (assign(before, "w", NOW)[0], replace(before, status="cancelled")):
        assert timers_at_change(before, after, NOW) == cleared
    barred = bar(before, "w")
    assert timers_at_change(before, barred, NOW) == {DISPATCH: NOW, kind: None}
    assert queue_of(barred).kind != kind
    assert timers_at_change(held(), replace(held(), status="completed"), NOW) == {LEASE: None}


def test_a_task_that_was_paused_under_its_worker_finds_another_one_when_it_runs_again() -> None:
    paused = settled(held(), replace(held(), status="paused"), by_holder=False)
    resumed = replace(paused, status="running")
    assert assignment.is_orphan(resumed)
    assert timers_at_change(paused, resumed, NOW) == {DISPATCH: NOW}
    again, drafts = assignment.unassigned(resumed, NOW)
    assert (again.status, said(drafts)) == ("pending", [{"status": "pending"}])


def test_who_waits_by_priority_and_then_by_age() -> None:
    def waiting(at: int, **fields: Any) -> Task:
        return Task(id="t", status="pending", created_at=at, updated_at=at, **fields)

    in_order = [
        waiting(NOW + 10**9, priority=1000),
        waiting(NOW, priority=1),
        waiting(NOW - 1),
        waiting(NOW, priority=0),
        waiting(NOW + 1),
        waiting(NOW - 10**10, priority=-1),
        waiting(NOW, priority=-1000),
    ]
    places = [place_of(each) for each in in_order]
    assert places == sorted(places)
    assert all(-(2**53) < place <= NOW for place in places)
