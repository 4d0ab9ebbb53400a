"""When a task's clock begins, stops and goes on; what its deadline and its waking up do."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from taskcast_trio.core import machine
from taskcast_trio.core.deadline import (
    DEADLINE,
    MAX_MS,
    WAKE,
    expiry,
    timers_at_change,
    timers_at_start,
    waking,
)
from taskcast_trio.core.model import TERMINAL, Status, Task, TaskError, Transition

NOW = 1_000_000


def task_in(status: Status, **fields: Any) -> Task:
    return Task(id="t", status=status, created_at=10, updated_at=20, **fields)


def changed(before: Task, status: Status, now_ms: int = NOW, **fields: Any) -> dict[str, Any]:
    change = Transition(status=status, **fields)
    after, _ = machine.transition(before, change, now_ms)
    return timers_at_change(before, after, now_ms, new_ttl=change.ttl is not UNSET)


@pytest.mark.parametrize("status", ["pending", "assigned", "running", "blocked"])
def test_the_clock_of_a_task_begins_with_it(status):
    assert timers_at_start(task_in(status, ttl=5), NOW) == {DEADLINE: NOW + 5000}


@pytest.mark.parametrize("status", ["paused", *sorted(TERMINAL)])
def test_a_task_that_is_paused_or_has_ended_begins_without_a_clock(status):
    assert timers_at_start(task_in(status, ttl=5), NOW) == {}


def test_a_task_without_ttl_has_no_deadline():
    assert timers_at_start(task_in("running"), NOW) == {}
    assert changed(task_in("paused"), "running") == {}
    assert changed(task_in("running"), "completed") == {}


def test_a_blocked_task_begins_with_its_waking_up_even_where_that_is_past():
    assert timers_at_start(task_in("blocked", resume_at=7), NOW) == {WAKE: 7}
    assert timers_at_start(task_in("paused", resume_at=7), NOW) == {}
    assert timers_at_start(task_in("blocked", resume_at=-7), NOW) == {WAKE: 0}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("pending", "running"),
        ("pending", "assigned"),
        ("assigned", "pending"),
        ("running", "blocked"),
        ("blocked", "running"),
        ("blocked", "assigned"),
    ],
)
def test_most_moves_leave_the_clock_alone(source, target):
    assert changed(task_in(source, ttl=5), target) == {}


@pytest.mark.parametrize("source", ["pending", "assigned", "running", "blocked"])
def test_paused_stops_the_clock_also_with_a_new_ttl(source):
    assert changed(task_in(source, ttl=5), "paused") == {DEADLINE: None}
    assert changed(task_in(source, ttl=5), "paused", ttl=9) == {DEADLINE: None}


@pytest.mark.parametrize("target", ["running", "assigned", "blocked"])
def test_leaving_paused_begins_the_full_ttl(target):
    assert changed(task_in("paused", ttl=5), target) == {DEADLINE: NOW + 5000}
    assert changed(task_in("paused", ttl=5), target, ttl=9) == {DEADLINE: NOW + 9000}


@pytest.mark.parametrize(("source", "target"), [("pending", "running"), ("running", "blocked")])
def test_a_ttl_in_a_transition_begins_the_clock_anew(source, target):
    assert changed(task_in(source, ttl=5), target, ttl=9) == {DEADLINE: NOW + 9000}
    assert changed(task_in(source), target, ttl=9) == {DEADLINE: NOW + 9000}


@pytest.mark.parametrize("target", ["completed", "failed", "timeout", "cancelled"])
def test_the_end_clears_every_timer(target):
    assert changed(task_in("running", ttl=5), target) == {DEADLINE: None}
    if target != "completed":
        blocked = task_in("blocked", ttl=5, resume_at=NOW)
        assert changed(blocked, target) == {DEADLINE: None, WAKE: None}


def test_waking_up_is_set_with_blocked_and_cleared_with_the_next_status():
    before = task_in("running")
    after, _ = machine.transition(before, Transition(status="blocked", resume_after_ms=300), NOW)
    assert timers_at_change(before, after, NOW, new_ttl=False) == {WAKE: NOW + 300}
    assert changed(after, "running") == {WAKE: None}


def test_who_is_paused_while_blocked_wakes_at_the_same_time_once_blocked_again():
    blocked = task_in("blocked", resume_at=NOW + 50)
    assert changed(blocked, "paused") == {WAKE: None}
    paused, _ = machine.transition(blocked, Transition(status="paused"), NOW)
    assert changed(paused, "blocked") == {WAKE: NOW + 50}
    assert changed(paused, "blocked", NOW + 1, resume_after_ms=5) == {WAKE: NOW + 6}


def test_the_largest_ttl_is_a_time_that_every_store_can_hold():
    assert timers_at_start(task_in("running", ttl=machine.MAX_WHOLE), NOW) == {DEADLINE: MAX_MS}


def test_a_deadline_ends_the_task_and_says_why():
    change = expiry(task_in("running", ttl=5))
    assert change is not None
    assert change.status == "timeout"
    assert isinstance(change.error, TaskError)
    assert change.error.code == "ttl_expired"
    assert "5 s" in change.error.message


@pytest.mark.parametrize("status", ["paused", *sorted(TERMINAL)])
def test_a_deadline_does_nothing_to_a_task_whose_clock_stands(status):
    assert expiry(task_in(status, ttl=5)) is None


def test_only_a_blocked_task_wakes_up_and_only_at_its_time():
    assert waking(task_in("blocked", resume_at=NOW), NOW) == Transition(status="running")
    assert waking(task_in("blocked", resume_at=NOW + 1), NOW) is None
    assert waking(task_in("blocked"), NOW) is None
    assert waking(task_in("running"), NOW) is None
    assert waking(task_in("paused", resume_at=NOW), NOW) is None
