"""The order of publishers within one request: repeats fall together, gaps cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.model import Draft
from taskcast_trio.core.sequence import distinct, runs


def counted(seq: int, client_id: str = "me") -> Draft:
    return Draft(type="x", level="info", client_id=client_id, client_seq=seq)


PLAIN = Draft(type="x", level="info")


def seqs(drafts: Sequence[Draft]) -> list[object]:
    return [draft.client_seq for draft in drafts if draft is not PLAIN]


@pytest.mark.parametrize(
    ("given_", "pieces"),
    [
        ([], []),
        ([7], [[7]]),
        ([0, 1, 2], [[0, 1, 2]]),
        ([0, 0, 1, 0], [[0, 0, 1, 0]]),
        ([1, 0, 2], [[1, 0, 2]]),
        ([5, 3, 4, 6], [[5], [3, 4], [6]]),
        ([0, 2, 3, 9], [[0], [2, 3], [9]]),
    ],
)
def test_a_gap_begins_another_piece(given_, pieces):
    assert [seqs(piece) for piece in runs([counted(seq) for seq in given_])] == pieces


def test_each_publisher_has_an_order_of_its_own_and_plain_events_have_none():
    drafts = [counted(0), PLAIN, counted(7, "you"), counted(1), PLAIN, counted(8, "you")]
    assert runs(drafts) == [drafts]
    assert distinct(drafts) == (drafts, list(range(6)))


def test_what_comes_twice_is_one_event_and_plain_events_are_never_the_same():
    unlike, places = distinct([counted(0), PLAIN, counted(0), PLAIN, counted(1), counted(0)])
    assert unlike == [counted(0), PLAIN, PLAIN, counted(1)]
    assert places == [0, 1, 0, 2, 3, 0]


def test_the_events_of_each_publisher_are_put_in_its_order():
    drafts = [counted(2), counted(8, "you"), PLAIN, counted(0), counted(2), counted(7, "you")]
    unlike, places = distinct([*drafts, counted(1)])
    ordered = [counted(0), counted(7, "you"), PLAIN, counted(1), counted(8, "you"), counted(2)]
    assert unlike == ordered
    assert places == [5, 4, 2, 0, 5, 1, 3]


def test_a_gap_is_told_where_it_is():
    with pytest.raises(BadRequest, match=r"\$\[1\]\.clientSeq"):
        distinct([PLAIN, counted(5), counted(3)])
    with pytest.raises(BadRequest, match=r"\$\[3\]\.clientSeq"):
        distinct([counted(0), PLAIN, counted(0, "you"), counted(2)])


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")) | st.none(), max_size=12))
def test_pieces_are_the_whole_and_have_no_gap(script):
    drafts = [PLAIN if each is None else counted(*each) for each in script]
    pieces = runs(drafts)
    assert [draft for piece in pieces for draft in piece] == drafts
    for piece in pieces:
        unlike, places = distinct(piece)
        assert [unlike[place] for place in places] == list(piece)
        counted_ones = [draft for draft in unlike if draft is not PLAIN]
        assert len(set(map(repr, counted_ones))) == len(counted_ones)
        for name in "ab":
            told = seqs([draft for draft in counted_ones if draft.client_id == name])
            assert told == sorted(told)  # type: ignore[type-var]
