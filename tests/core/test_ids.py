"""Identifiers have the shape of ULIDs, sort by time and index, and say where an event stands."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.ids import (
    ID_LENGTH,
    MAX_INDEX,
    MAX_TIME_MS,
    Position,
    event_id,
    new_epoch,
    parse_event_id,
    ulid,
)

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

times = st.integers(0, MAX_TIME_MS)
indexes = st.integers(0, MAX_INDEX)
noises = st.integers(0, 2**128)


def number(text: str) -> int:
    value = 0
    for char in text:
        value = value * 32 + CROCKFORD.index(char)
    return value


@given(times, noises)
def test_a_ulid_reads_as_its_time_and_80_bits_of_noise(time_ms: int, noise: int) -> None:
    text = ulid(time_ms, noise)
    assert ULID.fullmatch(text)
    assert number(text) == time_ms << 80 | noise % 2**80


def test_a_ulid_of_the_specification() -> None:
    assert ulid(1469918176385, 0)[:10] == "01ARYZ6S41"
    assert ulid(MAX_TIME_MS, 2**80 - 1) == "7" + "Z" * 25


@given(times, noises, indexes)
def test_an_event_id_carries_its_epoch_and_index(time_ms: int, noise: int, index: int) -> None:
    epoch = new_epoch(noise)
    text = event_id(time_ms, epoch, index)
    assert len(epoch) == 8
    assert len(text) == ID_LENGTH
    assert ULID.fullmatch(text)
    assert parse_event_id(text) == Position(epoch, index)
    assert number(text) >> 80 == time_ms


@given(noises, st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=2))
def test_ids_of_a_log_grow_with_time_and_within_one_millisecond(
    noise: int, steps: list[tuple[int, int]]
) -> None:
    """Their order as text is that of the log, as long as its time never goes back."""
    epoch, now_ms, index, ids = new_epoch(noise), 1_700_000_000_000, 0, []
    for later_ms, further in steps:
        now_ms, index = now_ms + later_ms, index + further
        ids.append(event_id(now_ms, epoch, index))
    assert ids == sorted(set(ids))


@given(noises, noises)
def test_logs_of_different_epochs_share_no_id(one: int, other: int) -> None:
    same = one % 2**40 == other % 2**40
    assert (new_epoch(one) == new_epoch(other)) == same
    assert (event_id(5, new_epoch(one), 0) == event_id(5, new_epoch(other), 0)) == same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "e0",
        ulid(1, 1)[:-1],
        ulid(1, 1) + "0",
        ulid(1, 1).lower()[:-1] + "a",
        ulid(1, 1)[:-1] + "I",
        ulid(1, 1)[:-1] + "L",
        ulid(1, 1)[:-1] + "O",
        ulid(1, 1)[:-1] + "U",
        ulid(1, 1)[:-1] + "é",
        ulid(1, 1)[:-1] + "٣",
        ulid(1, 1)[:-1] + "\n",
        "😀" * 26,
    ],
)
def test_text_of_another_shape_has_no_position(text: str) -> None:
    assert parse_event_id(text) is None


@given(st.text(max_size=30))
def test_any_text_has_a_position_of_this_log_only_with_its_epoch(text: str) -> None:
    position = parse_event_id(text)
    if position is not None:
        assert position.epoch == text[10:18]
        assert 0 <= position.index <= MAX_INDEX
