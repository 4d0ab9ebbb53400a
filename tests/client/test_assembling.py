"""The text of each series is what the server would say it is, and each piece costs what it is."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from taskcast_trio.client import Gap, Texts, TextTooLong
from taskcast_trio.core.model import Envelope, SeriesMode


def event(
    data: Any,
    series: str | None = "s",
    mode: SeriesMode | None = "accumulate",
    *,
    snapshot: bool = False,
    field: str | None = None,
) -> Envelope:
    return Envelope(
        filtered_index=0,
        raw_index=0,
        event_id="e",
        task_id="t",
        type="d",
        timestamp=0,
        level="info",
        data=UNSET if data is UNSET else Raw(json.dumps(data).encode()),
        series_id=series or UNSET,
        series_mode=mode or UNSET,
        series_acc_field=field or UNSET,
        series_snapshot=True if snapshot else UNSET,
    )


def piece(text: str, **options: Any) -> Envelope:
    return event({"delta": text}, **options)


def test_pieces_are_joined_each_to_its_series() -> None:
    texts = Texts()
    for series, text in [("a", "1"), ("b", "x"), ("a", "2"), ("b", "y")]:
        update = texts.take(piece(text, series=series))
        assert update is not None
        assert (update.series, update.added, update.replaced) == (series, text, False)
    assert dict(texts.all) == {"a": "12", "b": "xy"}
    assert texts["a"] == "12"


def test_what_is_of_no_series_is_passed_over() -> None:
    texts = Texts()
    assert texts.take(piece("x", series=None)) is None
    assert texts.take(piece("x", mode="keep-all")) is None
    assert texts.take(piece("x", mode=None)) is None
    assert texts.all == {}


def test_another_field_and_data_that_is_a_text() -> None:
    texts = Texts()
    texts.take(event({"chunk": "a", "delta": "no"}, field="chunk"))
    texts.take(event({"chunk": "b"}, field="chunk"))
    texts.take(event("50 %", series="p", mode="latest"))
    assert dict(texts.all) == {"s": "ab", "p": "50 %"}


def test_a_piece_that_is_no_text_begins_anew() -> None:
    texts = Texts()
    texts.take(piece("old"))
    update = texts.take(event({"delta": 7}))
    assert update is not None
    assert (update.text, update.replaced) == ("", True)
    texts.take(piece("new"))
    assert texts["s"] == "new"
    assert texts.take(event(UNSET)) is not None


def test_a_snapshot_adds_only_what_is_new() -> None:
    texts = Texts()
    texts.take(piece("Hel"))
    update = texts.take(piece("Hello", snapshot=True))
    assert update is not None
    assert (update.added, update.replaced, update.text) == ("lo", False, "Hello")
    update = texts.take(piece("Other", snapshot=True))
    assert update is not None
    assert (update.added, update.replaced) == ("Other", True)


def test_after_a_gap_a_text_begins_anew() -> None:
    texts = Texts()
    texts.take(piece("before"))
    assert texts.take(Gap(reason="log_replaced", replayed_from=0)) is None
    assert texts.all == {}
    first = texts.take(piece("a"))
    second = texts.take(piece("b"))
    assert first is not None
    assert second is not None
    assert (first.replaced, second.replaced, second.text) == (True, False, "ab")


def test_an_update_keeps_the_text_as_of_its_event() -> None:
    texts = Texts()
    updates = [texts.take(piece(text)) for text in ("a", "b", "c")]
    assert [update.text for update in updates if update is not None] == ["a", "ab", "abc"]


def test_running_values_add_what_is_new() -> None:
    texts = Texts(accumulated=True)
    added = [texts.take(piece(text)) for text in ("a", "ab", "abc")]
    assert [update.added for update in added if update is not None] == ["a", "b", "c"]


whole_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(whole_text, st.data())
def test_an_emoji_that_was_cut_in_half_is_whole(text: str, data: st.DataObject) -> None:
    units = text.encode("utf-16-le")
    places = sorted(data.draw(st.sets(st.integers(0, len(units) // 2), max_size=8)))
    cuts = [0, *places, len(units) // 2]
    texts = Texts()
    printed = ""
    for start, end in pairwise(cuts):
        part = units[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")
        update = texts.take(piece(part))
        assert update is not None
        printed += update.added
    printed.encode()  # no halves
    assert printed == texts["s"] == text


def test_half_an_emoji_for_good_is_no_text_that_cannot_be_printed() -> None:
    texts = Texts()
    texts.take(piece("a\ud83d"))
    texts.take(piece("b"))
    assert texts["s"] == "a\ufffdb"


def test_more_than_the_caller_takes_is_refused() -> None:
    texts = Texts(max_length=10)
    texts.take(piece("123456", series="a"))
    texts.take(piece("12", series="b", mode="latest"))
    texts.take(piece("1234", series="b", mode="latest"))
    with pytest.raises(TextTooLong):
        texts.take(piece("1", series="a"))


def test_a_piece_costs_what_it_is_however_long_the_text() -> None:
    """50,000 pieces; were the text joined for each, it would take minutes."""
    texts = Texts()
    began = time.perf_counter()
    for _ in range(50_000):
        texts.take(piece("x" * 20))
    assert time.perf_counter() - began < 20
    assert len(texts["s"]) == 1_000_000
