"""Event filters: patterns, levels and status events, as the wire contract has them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.filter import EventFilter, compile_types, matches_type

TYPES = ["llm", "llm.delta", "llm.delta.chunk", "llmx.delta", "tool.call", "*", "llm.*", ""]
STATUS = "taskcast:status"

PATTERNS = [
    (["llm.*"], ["llm.delta", "llm.delta.chunk", "llm.*"]),
    (["llm"], ["llm"]),
    (["*"], [*TYPES, STATUS]),
    (["llm.delta"], ["llm.delta"]),
    (["llm.delta.*"], ["llm.delta.chunk"]),
    (["tool.call", "llm"], ["llm", "tool.call"]),
    (["llm*"], []),
    (["*.call"], []),
    ([".*"], []),
    (["nothing"], []),
    ([STATUS], [STATUS]),
    (["taskcast:*"], []),
    (["llm.*", "llm.delta"], ["llm.delta", "llm.delta.chunk", "llm.*"]),
    ([" llm"], []),
    (["llm.* "], []),
    ([""], [""]),
    ([], []),
]


@pytest.mark.parametrize(("patterns", "expected"), PATTERNS)
def test_a_pattern_is_exact_or_a_dotted_prefix_or_a_star(
    patterns: list[str], expected: list[str]
) -> None:
    """The table of the contract kit; both ways of matching answer it."""
    compiled = compile_types(patterns)
    assert [t for t in [*TYPES, STATUS] if matches_type(patterns, t)] == expected
    assert [t for t in [*TYPES, STATUS] if compiled(t)] == expected


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (None, None),
        ("", ()),
        (",", ()),
        (",a,", ("a",)),
        ("a,b", ("a", "b")),
        (" a, b", (" a", " b")),
        ("a,,a", ("a", "a")),
    ],
)
def test_a_comma_list_drops_empty_parts_and_keeps_blanks(
    types: str | None, expected: tuple[str, ...] | None
) -> None:
    assert EventFilter.from_query(types, None, None).types == expected
    assert EventFilter.from_query(None, types, None).levels == expected


def test_an_empty_parameter_matches_nothing_on_a_task_stream() -> None:
    for wanted in (
        EventFilter.from_query("", None, None),
        EventFilter.from_query(",", None, None),
        EventFilter.from_query(None, "", None),
    ):
        assert not any(wanted.matches(t, "info") for t in [*TYPES, STATUS])


def test_an_empty_parameter_counts_as_absent_on_the_stream_of_all_tasks() -> None:
    wanted = EventFilter.from_query("", "", None, empty_is_absent=True)
    assert wanted == EventFilter()
    assert wanted.passes_all


@pytest.mark.parametrize(
    ("levels", "passing"),
    [
        ("debug", ["debug"]),
        ("warn,error", ["warn", "error"]),
        ("debug,info,warn,error", ["debug", "info", "warn", "error"]),
        ("bogus", []),
        ("bogus,warn", ["warn"]),
        ("ERROR", []),
        (None, ["debug", "info", "warn", "error"]),
    ],
)
def test_levels_are_exact_words(levels: str | None, passing: list[str]) -> None:
    wanted = EventFilter.from_query(None, levels, None)
    assert [w for w in ("debug", "info", "warn", "error") if wanted.matches("a", w)] == passing


@pytest.mark.parametrize("word", ["true", "0", "", "no", "FALSE", " false", None])
def test_no_other_word_than_false_switches_status_events_off(word: str | None) -> None:
    assert EventFilter.from_query(None, None, word).matches(STATUS, "info")


def test_false_drops_status_events_and_no_other_built_in_event() -> None:
    wanted = EventFilter.from_query(STATUS + ",taskcast:blocked,a", None, "false")
    assert not wanted.matches(STATUS, "info")
    assert wanted.matches("taskcast:blocked", "info")
    assert wanted.matches("a", "info")
    everything_else = EventFilter.from_query("*", None, "false")
    assert not everything_else.matches(STATUS, "info")
    assert not everything_else.passes_all


def test_a_filter_that_can_refuse_nothing_says_so() -> None:
    assert EventFilter().passes_all
    assert EventFilter(types=("a", "*")).passes_all
    assert not EventFilter(types=("a",)).passes_all
    assert not EventFilter(levels=("info",)).passes_all
    assert not EventFilter(include_status=False).passes_all


def test_a_filter_reads_and_writes_camel_case_and_never_shows_its_compiled_form() -> None:
    wanted = msgspec.json.decode(b'{"types":["a.*"],"includeStatus":false}', type=EventFilter)
    assert wanted.matches("a.b", "info")
    assert msgspec.json.encode(wanted) == b'{"types":["a.*"],"includeStatus":false}'
    assert wanted == EventFilter(types=("a.*",), include_status=False)
    assert hash(wanted) == hash(EventFilter(types=("a.*",), include_status=False))


names = st.text(alphabet="ab.*: ", max_size=5)


@given(
    types=st.none() | st.lists(names, max_size=4).map(tuple),
    levels=st.none() | st.lists(st.sampled_from(["info", "warn"]), max_size=2).map(tuple),
    include_status=st.booleans(),
    type_=names | st.just(STATUS),
    level=st.sampled_from(["info", "warn"]),
)
def test_the_compiled_filter_agrees_with_its_definition(
    types: tuple[str, ...] | None,
    levels: tuple[str, ...] | None,
    include_status: bool,
    type_: str,
    level: str,
) -> None:
    """Law: an event passes exactly when types, levels and the status switch each let it pass."""

    def covers(pattern: str) -> bool:
        if pattern == "*":
            return True
        stem, star, _ = pattern.rpartition(".*")
        if star and pattern == stem + ".*":
            return type_[: len(stem) + 1] == stem + "."
        return pattern == type_

    expected = (
        (types is None or any(map(covers, types)))
        and (levels is None or level in levels)
        and (include_status or type_ != STATUS)
    )
    wanted = EventFilter(types, levels, include_status)
    assert wanted.matches(type_, level) is expected
    assert expected or not wanted.passes_all


@given(left=st.lists(names, max_size=3), right=st.lists(names, max_size=3), type_=names)
def test_more_patterns_match_the_union(left: list[str], right: list[str], type_: str) -> None:
    """Law: a list of patterns matches what any part of it matches, in whatever order."""
    either = matches_type(left, type_) or matches_type(right, type_)
    assert matches_type([*left, *right], type_) is either
    assert compile_types([*right, *left])(type_) is either
