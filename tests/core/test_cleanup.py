"""Cleanup rules: what they select, when they are due, and how faulty ones are refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.cleanup import (
    CleanupRule,
    applies,
    due_at_ms,
    parse_rules,
    settled_at_ms,
    takes_event,
)
from taskcast_trio.core.errors import BadRequest

STATUSES = [
    "pending",
    "assigned",
    "running",
    "paused",
    "blocked",
    "completed",
    "failed",
    "timeout",
    "cancelled",
]
TERMINAL = ["completed", "failed", "timeout", "cancelled"]


def rule(**fields: Any) -> CleanupRule:
    (parsed,) = parse_rules([{"trigger": {}, "target": "all", **fields}])
    return parsed


def takes(of: CleanupRule, **changed: Any) -> bool:
    event: dict[str, Any] = {
        "type_": "llm.delta",
        "level": "debug",
        "timestamp_ms": 1000,
        "series_mode": "accumulate",
        "now_ms": 5000,
    }
    return takes_event(of, **{**event, **changed})


def test_every_field_is_read_from_json_bytes_raw_parts_and_plain_values() -> None:
    text = (
        b'{"trigger":{"afterMs":1000},"target":"events","name":"r1",'
        b'"match":{"taskTypes":["llm.*"],"status":["failed"]},'
        b'"eventFilter":{"types":["a"],"levels":["debug"],"olderThanMs":5,"seriesMode":"latest"}}'
    )
    (parsed,) = parse_rules(b"[" + text + b"]")
    assert msgspec.json.encode(parsed) == text
    assert parse_rules([msgspec.Raw(text)]) == (parsed,)
    assert parse_rules([msgspec.json.decode(text)]) == (parsed,)
    assert parse_rules([]) == ()


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"[", "cleanup.rules: "),
        (b"\xff", "cleanup.rules: "),
        ("[" * 100_000, "cleanup.rules"),
        ([msgspec.Raw(b"{")], "cleanup.rules: "),
        ({}, "cleanup.rules: "),
        (None, "cleanup.rules: "),
        ([1], "cleanup.rules[0]: "),
        ([{"target": "all"}], "cleanup.rules[0]: Object missing required field `trigger`"),
        ([{"trigger": {}}], "cleanup.rules[0]: Object missing required field `target`"),
        ([{"trigger": {}, "target": "none"}], "cleanup.rules[0].target: "),
        ([{"trigger": {"afterMs": -1}, "target": "all"}], "cleanup.rules[0].trigger.afterMs: "),
        ([{"trigger": {"afterMs": None}, "target": "all"}], "cleanup.rules[0].trigger.afterMs: "),
        ([{"trigger": {"afterMs": 2**53}, "target": "all"}], "cleanup.rules[0].trigger.afterMs: "),
    ],
)
def test_a_faulty_rule_is_refused_with_its_place(raw: Any, place: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_rules(raw)
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"macth": {"status": ["failed"]}}, "r[0]: Object contains unknown field `macth`"),
        ({"trigger": {"afterMS": 1}}, "r[0].trigger: Object contains unknown field `afterMS`"),
        ({"match": {"status": ["failed", "running"]}}, "r[0].match.status[1]: "),
        ({"eventFilter": {"levels": ["debug"]}}, "r[0]: `eventFilter` needs the target `events`"),
    ],
)
def test_a_rule_that_would_delete_more_than_meant_is_refused(
    fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_rules([{"trigger": {}, "target": "all", **fields}], place="r")
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize("status", STATUSES)
def test_only_ended_tasks_are_ever_selected_and_no_match_means_all_of_them(status: str) -> None:
    for task_type in (None, "", "llm.chat"):
        assert applies(rule(), task_type, status) is (status in TERMINAL)
        assert applies(rule(match={}), task_type, status) is (status in TERMINAL)


@pytest.mark.parametrize(
    ("match", "task_type", "status", "expected"),
    [
        ({"taskTypes": ["llm.*"]}, "llm.chat", "failed", True),
        ({"taskTypes": ["llm.*"]}, "llm", "failed", False),
        ({"taskTypes": ["llm.*", "llm"]}, "llm", "failed", True),
        ({"taskTypes": ["*"]}, "x", "failed", True),
        ({"taskTypes": ["*"]}, None, "failed", False),
        ({"taskTypes": []}, "x", "failed", False),
        ({"status": ["failed", "timeout"]}, None, "timeout", True),
        ({"status": ["failed", "timeout"]}, None, "completed", False),
        ({"status": "failed"}, None, "failed", True),
        ({"status": "failed"}, None, "completed", False),
        ({"status": []}, None, "completed", False),
        ({"taskTypes": ["a"], "status": ["failed"]}, "a", "failed", True),
        ({"taskTypes": ["a"], "status": ["failed"]}, "a", "completed", False),
        ({"taskTypes": ["a"], "status": ["failed"]}, "b", "failed", False),
    ],
)
def test_all_conditions_of_match_must_hold(
    match: dict[str, Any], task_type: str | None, status: str, expected: bool
) -> None:
    assert applies(rule(match=match), task_type, status) is expected


def test_a_rule_is_due_after_ms_from_the_end_of_the_task() -> None:
    assert due_at_ms(rule(trigger={"afterMs": 500}), None, "failed", 1000) == 1500
    assert due_at_ms(rule(), None, "failed", 1000) == 1000
    assert due_at_ms(rule(), None, "running", 1000) is None


@pytest.mark.parametrize(
    ("event_filter", "expected"),
    [
        (None, True),
        ({}, True),
        ({"types": ["llm.*"]}, True),
        ({"types": ["llm"]}, False),
        ({"types": []}, False),
        ({"levels": ["debug", "info"]}, True),
        ({"levels": ["warn"]}, False),
        ({"olderThanMs": 4000}, True),
        ({"olderThanMs": 4001}, False),
        ({"seriesMode": "accumulate"}, True),
        ({"seriesMode": ["latest", "accumulate"]}, True),
        ({"seriesMode": "latest"}, False),
        ({"types": ["llm.*"], "levels": ["warn"]}, False),
    ],
)
def test_all_conditions_of_an_event_filter_must_hold(
    event_filter: dict[str, Any] | None, expected: bool
) -> None:
    fields = {} if event_filter is None else {"eventFilter": event_filter}
    assert takes(rule(target="events", **fields)) is expected


def test_the_target_decides_whether_events_go_at_all() -> None:
    assert takes(rule(target="all"))
    assert not takes(rule(target="task"))


def test_an_event_outside_any_series_has_no_series_mode() -> None:
    of_series = rule(target="events", eventFilter={"seriesMode": ["keep-all", "latest"]})
    assert not takes(of_series, series_mode=None)


times = st.integers(min_value=0, max_value=2**45)
spans = st.integers(min_value=0, max_value=2**40)


@given(times, spans, times, spans, spans)
def test_what_a_run_removes_any_later_run_removes(
    timestamp: int, age: int, now: int, later: int, completed: int
) -> None:
    """Law: selection only grows with time, and nothing is left once the rule is settled."""
    aged = rule(target="events", eventFilter={"olderThanMs": age})
    if takes(aged, timestamp_ms=timestamp, now_ms=now):
        assert takes(aged, timestamp_ms=timestamp, now_ms=now + later)
    settled = settled_at_ms(aged, completed, timestamp)
    assert settled >= completed
    assert age == 0 or takes(aged, timestamp_ms=timestamp, now_ms=settled)
