"""Matching of tasks and workers: rule, room, blacklist, order."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.matching import (
    Candidate,
    MatchRule,
    blacklist_of,
    fits,
    has_room,
    rank,
    with_blacklisted,
)


def match_rule(fields: dict[str, Any]) -> MatchRule:
    return msgspec.convert(fields, MatchRule)


def worker(worker_id: str, **fields: Any) -> Candidate:
    defaults: dict[str, Any] = {
        "rule": MatchRule(),
        "capacity": 10,
        "used_slots": 0,
        "weight": 50,
        "since_ms": 0,
    }
    return Candidate(worker_id=worker_id, **{**defaults, **fields})


def order(*workers: Candidate, **fields: Any) -> list[str]:
    return [w.worker_id for w in rank(workers, **{"task_type": None, **fields})]


@pytest.mark.parametrize(
    ("fields", "task_type", "tags", "expected"),
    [
        ({}, None, [], True),
        ({}, "a", ["x"], True),
        ({"taskTypes": ["a"]}, "a", [], True),
        ({"taskTypes": ["a"]}, "a.b", [], False),
        ({"taskTypes": ["a.*"]}, "a.b", [], True),
        ({"taskTypes": ["a.*"]}, "a", [], False),
        ({"taskTypes": ["*"]}, "a", [], True),
        ({"taskTypes": ["*"]}, None, [], False),
        ({"taskTypes": []}, "a", [], False),
        ({"tags": {}}, None, [], True),
        ({"tags": {"all": ["x", "y"]}}, None, ["y", "z", "x"], True),
        ({"tags": {"all": ["x", "y"]}}, None, ["x"], False),
        ({"tags": {"all": []}}, None, [], True),
        ({"tags": {"any": ["x", "y"]}}, None, ["y"], True),
        ({"tags": {"any": ["x", "y"]}}, None, ["z"], False),
        ({"tags": {"any": ["x"]}}, None, [], False),
        ({"tags": {"any": []}}, None, ["x"], False),
        ({"tags": {"none": ["x"]}}, None, ["y"], True),
        ({"tags": {"none": ["x"]}}, None, ["y", "x"], False),
        ({"tags": {"none": ["x"]}}, None, [], True),
        ({"tags": {"all": ["x"], "any": ["y", "z"], "none": ["w"]}}, None, ["x", "z"], True),
        ({"tags": {"all": ["x"], "any": ["y", "z"], "none": ["w"]}}, None, ["x", "z", "w"], False),
        ({"tags": {"all": ["x.*"]}}, None, ["x.y"], False),
        ({"taskTypes": ["a"], "tags": {"all": ["x"]}}, "a", [], False),
        ({"taskTypes": ["a"], "tags": {"all": ["x"]}}, "b", ["x"], False),
    ],
)
def test_a_task_fits_when_its_type_and_all_tag_rules_hold(
    fields: dict[str, Any], task_type: str | None, tags: list[str], expected: bool
) -> None:
    assert fits(match_rule(fields), task_type, tags) is expected


def test_a_rule_is_written_as_it_was_read() -> None:
    text = b'{"taskTypes":["a.*"],"tags":{"all":["x"],"any":[],"none":["z"]}}'
    assert msgspec.json.encode(msgspec.json.decode(text, type=MatchRule)) == text
    assert msgspec.json.encode(MatchRule()) == b"{}"


@pytest.mark.parametrize(
    ("capacity", "used", "cost", "expected"),
    [(1, 0, None, True), (1, 1, None, False), (3, 1, 2, True), (3, 2, 2, False), (2, 0, 3, False)],
)
def test_a_task_without_a_cost_takes_one_slot(
    capacity: int, used: int, cost: int | None, expected: bool
) -> None:
    assert has_room(capacity, used, cost) is expected


def test_the_heaviest_worker_is_asked_first_then_the_freest_then_the_first_to_connect() -> None:
    assert order(
        worker("light", weight=10, capacity=99),
        worker("full", weight=60, capacity=9, used_slots=7),
        worker("after", weight=60, capacity=3, since_ms=2),
        worker("early", weight=60, capacity=4, used_slots=1, since_ms=1),
    ) == ["early", "after", "full", "light"]


def test_workers_without_room_or_fit_or_in_another_state_are_not_asked() -> None:
    assert order(
        worker("small", capacity=1),
        worker("used", capacity=5, used_slots=4),
        worker("misfit", rule=match_rule({"taskTypes": ["b"]})),
        worker("untagged", rule=match_rule({"tags": {"none": ["t"]}})),
        worker("draining", status="draining"),
        worker("offline", status="offline"),
        worker("busy", capacity=5, used_slots=3, status="busy"),
        worker("idle"),
        task_type="a",
        tags=["t"],
        cost=2,
    ) == ["idle", "busy"]


def test_a_barred_worker_is_never_asked_and_one_that_declined_comes_last() -> None:
    workers = [worker("a", weight=90), worker("b", weight=50), worker("c", weight=10)]
    assert order(*workers, blacklist={"a"}) == ["b", "c"]
    assert order(*workers, declined={"a"}) == ["b", "c", "a"]
    assert order(*workers, blacklist={"b", "c"}, declined={"a"}) == ["a"]


@pytest.mark.parametrize(
    ("metadata", "barred"),
    [
        (None, set()),
        ({}, set()),
        ({"_blacklistedWorkers": ["a", 1, None, "b"]}, {"a", "b"}),
        ({"_blacklistedWorkers": "ab"}, set()),
        ({"_blacklistedWorkers": {"a": 1}}, set()),
    ],
)
def test_junk_in_the_metadata_bars_nobody(
    metadata: dict[str, Any] | None, barred: set[str]
) -> None:
    assert blacklist_of(metadata) == barred
    assert blacklist_of(with_blacklisted(metadata, "w")) == barred | {"w"}


def test_barring_a_worker_keeps_the_other_metadata_and_changes_a_copy() -> None:
    metadata = {"m": 1, "_blacklistedWorkers": ["a"]}
    changed = with_blacklisted(metadata, "b")
    assert changed == {"m": 1, "_blacklistedWorkers": ["a", "b"]}
    assert with_blacklisted(changed, "a") == changed
    assert metadata == {"m": 1, "_blacklistedWorkers": ["a"]}


tag_sets = st.frozensets(st.sampled_from("wxyz"), max_size=4)


@given(wanted=tag_sets, tags=tag_sets)
def test_any_and_none_are_opposites_and_all_implies_any(
    wanted: frozenset[str], tags: frozenset[str]
) -> None:
    """Law: a task has any of the tags or none of them, and having all of some means having one."""
    every, some, no = (
        fits(match_rule({"tags": {name: sorted(wanted)}}), None, tags)
        for name in ("all", "any", "none")
    )
    assert some is not no
    assert some or not (every and wanted)


workers_lists = st.lists(
    st.builds(
        worker,
        st.sampled_from("abcdefgh"),
        capacity=st.integers(1, 4),
        used_slots=st.integers(0, 4),
        weight=st.integers(1, 2),
        since_ms=st.integers(0, 2),
        status=st.sampled_from(["idle", "busy", "draining", "offline"]),
    ),
    unique_by=lambda w: w.worker_id,
)
ids = st.frozensets(st.sampled_from("abcdefgh"))


@given(workers=workers_lists, cost=st.integers(1, 3), barred=ids, declined=ids, data=st.data())
def test_the_order_depends_on_the_workers_only_and_leaves_no_able_one_out(
    workers: list[Candidate],
    cost: int,
    barred: frozenset[str],
    declined: frozenset[str],
    data: st.DataObject,
) -> None:
    """Law: every process ranks the same workers alike, and asks exactly those that can take it."""

    def ranked(of: list[Candidate]) -> list[str]:
        return order(*of, cost=cost, blacklist=barred, declined=declined)

    result = ranked(workers)
    assert ranked(data.draw(st.permutations(workers))) == result
    assert set(result) == {
        w.worker_id
        for w in workers
        if w.status in ("idle", "busy") and w.worker_id not in barred and w.free_slots >= cost
    }
    asked_again = [worker_id in declined for worker_id in result]
    assert asked_again == sorted(asked_again)
