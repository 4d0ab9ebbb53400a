"""The nine statuses: every move of the contract, and what a move does to the task and its log."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from taskcast_trio.core.errors import BadRequest, InvalidTransition, NotBlocked
from taskcast_trio.core.machine import (
    ENGINE_MOVES,
    MOVES,
    check_transition,
    resolution,
    transition,
)
from taskcast_trio.core.model import (
    TERMINAL,
    BlockedRequest,
    Draft,
    Status,
    Task,
    TaskError,
    Transition,
)

STATUSES: tuple[Status, ...] = get_args(Status)

# Copied from the wire contract, section 3.
CONTRACT = """
pending | assigned, running, paused, timeout, cancelled
assigned | running, pending, paused, timeout, cancelled
running | paused, blocked, completed, failed, timeout, cancelled
paused | running, assigned, blocked, timeout, cancelled
blocked | running, assigned, paused, cancelled, failed, timeout
completed |
failed |
timeout |
cancelled |
"""
TABLE = {
    source.strip(): {target.strip() for target in targets.split(",") if target.strip()}
    for source, _, targets in (line.partition("|") for line in CONTRACT.strip().splitlines())
}
BACK_TO_PENDING = {"assigned", "running", "paused", "blocked"}

REQUEST = BlockedRequest(type="approve", data=Raw(b'{"q":1}'))


def task_in(status: Status, **fields: Any) -> Task:
    return Task(id="t", status=status, created_at=10, updated_at=20, **fields)


def data_of(draft: Draft) -> Any:
    assert isinstance(draft.data, Raw)
    return json.loads(bytes(draft.data))


def follow(task: Task, *changes: Transition) -> Task:
    for change in changes:
        task, _ = transition(task, change, task.updated_at + 1)
    return task


# The table


def test_the_statuses_are_those_of_the_contract() -> None:
    assert set(TABLE) == set(STATUSES) == set(MOVES) == set(ENGINE_MOVES)
    assert {status for status in STATUSES if not TABLE[status]} == TERMINAL


@pytest.mark.parametrize("target", STATUSES)
@pytest.mark.parametrize("source", STATUSES)
def test_a_caller_may_ask_for_what_the_contract_lists_and_nothing_else(
    source: Status, target: Status
) -> None:
    task, change = task_in(source), Transition(status=target)
    if target in TABLE[source]:
        assert transition(task, change, 30)[0].status == target
    else:
        with pytest.raises(InvalidTransition, match=f"{source} to {target}"):
            transition(task, change, 30)


@pytest.mark.parametrize("target", STATUSES)
@pytest.mark.parametrize("source", STATUSES)
def test_the_engine_may_also_take_back_what_is_under_way(source: Status, target: Status) -> None:
    task, change = task_in(source), Transition(status=target)
    allowed = target in TABLE[source] or (
        target in ("pending", "failed") and source in BACK_TO_PENDING
    )
    if allowed:
        assert transition(task, change, 30, moves=ENGINE_MOVES)[0].status == target
    else:
        with pytest.raises(InvalidTransition):
            transition(task, change, 30, moves=ENGINE_MOVES)


def test_a_refused_move_changes_nothing() -> None:
    task = task_in("completed", completed_at=20)
    before = msgspec.json.encode(task)
    with pytest.raises(InvalidTransition):
        transition(task, Transition(status="running", result=Raw(b"{}")), 30)
    assert msgspec.json.encode(task) == before


# Times


@pytest.mark.parametrize("target", sorted(TERMINAL))
def test_a_task_that_ends_is_completed_at_its_last_update(target: Status) -> None:
    task, _ = transition(task_in("running"), Transition(status=target), 30)
    assert task.completed_at == task.updated_at == 30
    assert task.terminal


def test_a_task_that_goes_on_has_no_completion() -> None:
    task, _ = transition(task_in("pending"), Transition(status="running"), 30)
    assert task.completed_at is UNSET
    assert (task.created_at, task.updated_at) == (10, 30)


def test_time_never_goes_back_though_the_clock_does() -> None:
    task = task_in("running")
    blocked, _ = transition(task, Transition(status="blocked", resume_after_ms=5), 3)
    assert blocked.updated_at == 20
    assert blocked.resume_at == 25
    ended, _ = transition(blocked, Transition(status="failed"), 19)
    assert ended.completed_at == ended.updated_at == 20


# What is carried along


def test_result_and_error_come_with_any_status_and_stay_until_replaced_whole() -> None:
    first = Transition(status="running", result=Raw(b'{"a":1}'), error=TaskError(message="m"))
    task = follow(task_in("pending"), first, Transition(status="paused"))
    assert task.result == Raw(b'{"a":1}')
    assert task.error == TaskError(message="m")
    task = follow(
        task,
        Transition(status="running", result=Raw(b'{"b":2}')),
        Transition(status="failed", error=TaskError(message="n", code="c")),
    )
    assert task.result == Raw(b'{"b":2}')
    assert task.error == TaskError(message="n", code="c")


def test_what_a_task_was_created_with_stays() -> None:
    task = task_in(
        "pending", type="t", params=Raw(b"{}"), tags=["x"], ttl=60, assigned_worker="w", cost=2
    )
    moved = follow(task, Transition(status="running"), Transition(status="completed"))
    assert (moved.type, moved.params, moved.tags) == ("t", Raw(b"{}"), ["x"])
    assert (moved.ttl, moved.cost, moved.assigned_worker) == (60, 2, "w")


@pytest.mark.parametrize("target", sorted(TABLE["running"]))
def test_a_ttl_replaces_the_tasks_own_whatever_the_status(target: Status) -> None:
    task, _ = transition(task_in("running", ttl=60), Transition(status=target, ttl=100.0), 30)
    assert task.ttl == 100
    assert isinstance(task.ttl, int)


@pytest.mark.parametrize("target", STATUSES)
def test_reason_is_kept_only_on_paused_and_blocked(target: Status) -> None:
    for source in STATUSES:
        if target in ENGINE_MOVES[source]:
            change = Transition(status=target, reason="why")
            task, _ = transition(task_in(source), change, 30, moves=ENGINE_MOVES)
            assert task.reason == ("why" if target in ("paused", "blocked") else UNSET)


@pytest.mark.parametrize("target", STATUSES)
def test_request_and_resume_time_are_set_only_by_a_move_to_blocked(target: Status) -> None:
    for source in STATUSES:
        if target in ENGINE_MOVES[source]:
            change = Transition(status=target, blocked_request=REQUEST, resume_after_ms=500.0)
            task, _ = transition(task_in(source), change, 30, moves=ENGINE_MOVES)
            blocked = target == "blocked"
            assert task.blocked_request == (REQUEST if blocked else UNSET)
            assert task.resume_at == (530 if blocked else UNSET)


BLOCK = Transition(status="blocked", reason="why", blocked_request=REQUEST, resume_after_ms=1000)


def test_what_a_suspension_is_about_survives_between_paused_and_blocked() -> None:
    blocked = follow(task_in("running"), BLOCK)
    resume_at = blocked.resume_at
    again = follow(blocked, Transition(status="paused"), Transition(status="blocked"))
    assert (again.reason, again.blocked_request, again.resume_at) == ("why", REQUEST, resume_at)
    other = BlockedRequest(type="other")
    changed = follow(
        blocked,
        Transition(status="paused", reason="new"),
        Transition(status="blocked", blocked_request=other),
    )
    assert (changed.reason, changed.blocked_request) == ("new", other)


@pytest.mark.parametrize("moves", [MOVES, ENGINE_MOVES])
def test_what_a_suspension_is_about_goes_with_it(moves: dict[str, frozenset[str]]) -> None:
    blocked = follow(task_in("running"), BLOCK)
    for target in moves["blocked"] - {"paused"}:
        change = msgspec.convert({"status": target}, Transition)
        task, _ = transition(blocked, change, 99, moves=moves)
        assert (task.reason, task.blocked_request, task.resume_at) == (UNSET, UNSET, UNSET)


# Events


@pytest.mark.parametrize("target", sorted(TABLE["running"] | TABLE["pending"]))
def test_each_move_appends_one_status_event_with_the_current_result_and_error(
    target: Status,
) -> None:
    source: Status = "running" if target in TABLE["running"] else "pending"
    task = task_in(source, result=Raw(b'{"a": 1}'), error=TaskError(message="old", code="c"))
    _, [event] = transition(task, Transition(status=target, error=TaskError(message="m")), 30)
    assert (event.type, event.level) == ("taskcast:status", "info")
    assert event.data == Raw(
        b'{"status":"%b","result":{"a": 1},"error":{"message":"m"}}' % target.encode()
    )
    assert (event.series_id, event.series_mode, event.series_acc_field) == (UNSET, UNSET, UNSET)


def test_a_status_event_has_no_more_than_there_is() -> None:
    _, [event] = transition(task_in("pending"), Transition(status="running"), 30)
    assert data_of(event) == {"status": "running"}


def test_blocking_with_a_request_tells_of_it() -> None:
    _, events = transition(task_in("running"), BLOCK, 30)
    assert [event.type for event in events] == ["taskcast:status", "taskcast:blocked"]
    assert events[1].level == "info"
    assert events[1].data == Raw(b'{"reason":"why","request":{"type":"approve","data":{"q":1}}}')


def test_blocking_tells_of_a_request_from_before_a_pause_and_of_none_where_there_is_none() -> None:
    paused = follow(task_in("running"), BLOCK, Transition(status="paused"))
    _, events = transition(paused, Transition(status="blocked"), 99)
    assert [event.type for event in events] == ["taskcast:status", "taskcast:blocked"]
    _, events = transition(task_in("running"), Transition(status="blocked", reason="x"), 30)
    assert [event.type for event in events] == ["taskcast:status"]
    bare = Transition(status="blocked", blocked_request=BlockedRequest(type="x"))
    _, events = transition(task_in("running"), bare, 30)
    assert data_of(events[1]) == {"request": {"type": "x"}}


def test_only_straight_from_blocked_to_running_is_a_request_resolved() -> None:
    blocked = follow(task_in("running"), BLOCK)
    _, events = transition(blocked, Transition(status="running", result=Raw(b"{}")), 99)
    assert [event.type for event in events] == ["taskcast:status", "taskcast:resolved"]
    assert data_of(events[1]) == {"resolution": {}}
    _, events = transition(blocked, Transition(status="running"), 99)
    assert data_of(events[1]) == {}
    for detour in (Transition(status="paused"), Transition(status="assigned")):
        task = follow(blocked, detour)
        _, events = transition(task, Transition(status="running"), 99)
        assert [event.type for event in events] == ["taskcast:status"]
    without = follow(task_in("running"), Transition(status="blocked"))
    _, events = transition(without, Transition(status="running"), 99)
    assert [event.type for event in events] == ["taskcast:status"]


# Answers to a blocked task


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (UNSET, b"{}"),
        (Raw(b"{}"), b"{}"),
        (Raw(b'{"a":1,"a":2}'), b'{"a":1,"a":2}'),
        (Raw(b"[1]"), b"[1]"),
        (Raw(b"null"), b'{"resolution":null}'),
        (Raw(b"18446744073709551616"), b'{"resolution":18446744073709551616}'),
        (Raw(rb'"\ud800"'), rb'{"resolution":"\ud800"}'),
        (Raw(b"false"), b'{"resolution":false}'),
    ],
)
def test_an_answer_becomes_the_result_and_the_task_runs(data: Raw, result: bytes) -> None:
    blocked = follow(task_in("running", ttl=9, error=TaskError(message="m")), BLOCK)
    task, events = transition(blocked, resolution(blocked, data), 99)
    assert (task.status, task.result) == ("running", Raw(result))
    assert (task.ttl, task.error) == (9, TaskError(message="m"))
    assert events[1].data == Raw(b'{"resolution":%b}' % result)


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "blocked"])
def test_there_is_nothing_to_answer_unless_blocked(status: Status) -> None:
    with pytest.raises(NotBlocked, match=status):
        resolution(task_in(status), UNSET)


# Transitions that are wrong in themselves


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (Transition(status="running", result=Raw(b"[]")), "result"),
        (Transition(status="running", result=Raw(b"null")), "result"),
        (
            Transition(status="failed", error=TaskError(message="m", details=Raw(b'"x"'))),
            r"error\.details",
        ),
        (Transition(status="running", ttl=0), "ttl"),
        (Transition(status="running", ttl=1.5), "ttl"),
        (Transition(status="blocked", resume_after_ms=-1), "resumeAfterMs"),
        (Transition(status="running", resume_after_ms=0.5), "resumeAfterMs"),
    ],
)
def test_a_transition_that_is_wrong_whatever_the_task_is_refused_at_its_place(
    change: Transition, place: str
) -> None:
    with pytest.raises(BadRequest, match=rf"at `\$\.{place}`"):
        check_transition(change)


# The law


_changes = st.builds(
    Transition,
    status=st.sampled_from(STATUSES),
    reason=st.sampled_from([UNSET, "a"]),
    resume_after_ms=st.sampled_from([UNSET, 5]),
    blocked_request=st.sampled_from([UNSET, REQUEST]),
    result=st.sampled_from([UNSET, Raw(b"{}")]),
)


@given(st.lists(st.tuples(_changes, st.integers(0, 100)), max_size=12))
def test_along_any_path_a_task_is_consistent_and_its_time_never_goes_back(
    steps: list[tuple[Transition, int]],
) -> None:
    task = task_in("pending")
    for change, now_ms in steps:
        try:
            new, drafts = transition(task, change, now_ms, moves=ENGINE_MOVES)
        except InvalidTransition:
            assert change.status not in ENGINE_MOVES[task.status]
            continue
        assert new.updated_at == max(now_ms, task.updated_at)
        assert (new.completed_at is not UNSET) == new.terminal
        if new.status not in ("paused", "blocked"):
            assert (new.reason, new.resume_at, new.blocked_request) == (UNSET, UNSET, UNSET)
        assert drafts[0].type == "taskcast:status"
        assert data_of(drafts[0])["status"] == new.status
        assert not task.terminal
        task = new
