"""Series: the running value equals a naive model, costs linear work, and collapses replays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.jsontext import Mask, fields_of
from taskcast_trio.core.model import Event, SeriesMode
from taskcast_trio.core.series import (
    SeriesValue,
    SeriesValues,
    accumulates,
    as_snapshot,
    collapse,
    fold,
    series_of,
)


def piece(
    index: int,
    data: bytes | None,
    *,
    mode: SeriesMode | UnsetType = "accumulate",
    field: str | UnsetType = UNSET,
    series_id: str | UnsetType = "s",
) -> Entry:
    event = Event(
        id=f"e{index}",
        task_id="t",
        index=index,
        timestamp=1000 + index,
        type=f"type.{index}",
        level="info",
        data=UNSET if data is None else Raw(data),
        series_id=series_id,
        series_mode=mode,
        series_acc_field=field,
    )
    return Entry(event, index)


def data_of(entry: Entry) -> bytes | None:
    return None if entry.event.data is UNSET else bytes(entry.event.data)


def value_of(*entries: Entry) -> Entry:
    values: SeriesValues = {}
    for entry in entries:
        fold(values, entry)
    return values["s"].entry


def joined(*pieces: bytes) -> bytes | None:
    return data_of(value_of(*(piece(index, data) for index, data in enumerate(pieces))))


# The law


def whole(value: Any) -> Any:
    """The value with surrogate halves that stand side by side made whole, in texts and keys."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {whole(key): whole(item) for key, item in value.items()}
    return value


@dataclass
class Model:
    """The contract's sentence on series, in as many lines."""

    value: Any = None
    newest: Entry | None = None

    def add(self, entry: Entry) -> None:
        event = entry.event
        if event.series_mode == "keep-all":
            return
        text = data_of(entry)
        new = None if text is None else json.loads(text)
        field = event.series_acc_field or "delta"
        both = event.series_mode == "accumulate" and all(
            isinstance(value, dict) and isinstance(value.get(field), str)
            for value in (self.value, new)
        )
        if both and new is not None:
            new = {**new, field: self.value[field] + new[field]}
        self.value, self.newest = new, entry


_texts = st.sampled_from(
    [r'"a"', r'""', r'"\ud83d"', r'"\ude00"', r'"\ud83d\ude00"', '"é\x7fud800"', r'"\"\\"']
)
_values = _texts | st.sampled_from(["1", "null", '["x"]', '{"delta":"x"}'])
_keys = st.sampled_from(['"delta"', r'"d\u0065lta"', '"text"', '"é"', r'"\ud800"', '"n"'])
_objects = st.lists(st.tuples(_keys, _values), max_size=4).map(
    lambda members: "{" + ",".join(f"{key}: {value}" for key, value in members) + "}"
)
_data = st.none() | (_objects | _objects | _values).map(str.encode)
_fields: st.SearchStrategy[str | UnsetType] = st.sampled_from([UNSET, "delta", "text", "é"])
_modes: st.SearchStrategy[SeriesMode] = st.sampled_from(
    ["accumulate", "accumulate", "accumulate", "latest", "keep-all"]
)
_steps = st.lists(st.tuples(_data, _modes, _fields, st.booleans()), max_size=12)


@given(_steps)
def test_the_running_value_is_that_of_the_naive_model(
    steps: list[tuple[bytes | None, SeriesMode, str | UnsetType, bool]],
) -> None:
    """Whatever the pieces, their fields and modes, and however often the value is read between."""
    values: SeriesValues = {}
    model = Model()
    for index, (data, mode, field, read) in enumerate(steps):
        entry = piece(index, data, mode=mode, field=field)
        returned = fold(values, entry)
        model.add(entry)
        assert (returned is None) == (mode == "keep-all")
        if read and returned is not None:
            assert returned.entry.index == index
    if model.newest is None:
        assert values == {}
        return
    value = values["s"]
    newest, got = model.newest, value.entry
    text = data_of(got)
    assert whole(None if text is None else json.loads(text)) == whole(model.value)
    assert (text is None) == (data_of(newest) is None)
    assert value.index == newest.index
    assert got.place == newest.place
    assert msgspec.structs.replace(got.event, data=newest.event.data) == newest.event


# What the law means


def test_texts_are_joined_and_all_else_is_that_of_the_newest_event() -> None:
    value = value_of(
        piece(0, b'{"delta":"ab","n":1,"old":true}'), piece(1, b'{"n":2,"delta":"cd"}')
    )
    assert data_of(value) == b'{"n":2,"delta":"abcd"}'
    assert (value.id, value.index, value.type) == ("e1", 1, "type.1")


def test_a_value_that_is_read_after_every_piece_goes_on_as_if_it_were_not() -> None:
    values: SeriesValues = {}
    read = []
    for index, text in enumerate((b"a", b"b", b"", b"c", b"d")):
        value = fold(values, piece(index, b'{"delta":"%b"}' % text))
        assert value is not None
        read += [data_of(value.entry), data_of(value.entry)]
    texts = [b"a", b"ab", b"ab", b"abc", b"abcd"]
    assert read == [b'{"delta":"%b"}' % text for text in texts for _ in range(2)]


def test_an_emoji_cut_into_lone_halves_becomes_whole() -> None:
    text = joined(rb'{"delta":"\ud83d"}', rb'{"delta":"\ude00"}')
    assert text == rb'{"delta":"\ud83d\ude00"}'
    assert json.loads(text) == {"delta": "😀"}


def test_a_half_that_never_finds_its_other_stays_an_escape() -> None:
    assert joined(rb'{"delta":"\ud83d"}', b'{"delta":"x"}') == rb'{"delta":"\ud83dx"}'


def test_keys_with_lone_surrogates_come_back_as_escapes() -> None:
    text = joined(b'{"delta":"a"}', rb'{"\ud800":1,"delta":"b","\ud83d\ude00":2}')
    assert text == '{"\\ud800":1,"delta":"ab","😀":2}'.encode()


def test_values_beside_the_text_keep_their_spelling() -> None:
    text = joined(b'{"delta":"a"}', rb'{"delta":"\u0062","n":18446744073709551616,"f":1.0}')
    assert text == rb'{"delta":"a\u0062","n":18446744073709551616,"f":1.0}'


def test_the_field_is_a_plain_key_and_may_change() -> None:
    value = value_of(
        piece(0, b'{"delta":"a","a.b":"1"}'),
        piece(1, b'{"delta":"b","a.b":"2"}'),
        piece(2, b'{"delta":"c","a.b":"3"}', field="a.b"),
        piece(3, b'{"delta":"d","a.b":"4"}', field="a.b"),
    )
    assert data_of(value) == b'{"delta":"d","a.b":"234"}'


def test_changing_the_field_holds_even_where_the_joined_text_could_not_be_read_again() -> None:
    """Look-alikes of every mask, joined from pieces that each left one free."""
    crowd = [bytes([number]) + b"ud800" for number in Mask._CANDIDATES]
    half = len(crowd) // 2
    first, second = (b"".join(part).replace(b"\\", b"") for part in (crowd[:half], crowd[half:]))
    entries = [
        piece(0, rb'{"delta":"\ud800%b","text":"x"}' % first),
        piece(1, rb'{"delta":"\ud800%b","text":"y"}' % second),
    ]
    value = value_of(*entries, piece(2, b'{"text":"z"}', field="text"))
    assert data_of(value) == b'{"text":"yz"}'
    again = SeriesValue(value_of(*entries))
    again.add(piece(2, b'{"delta":"z"}'))
    assert data_of(again.entry) == b'{"delta":"z"}'


@pytest.mark.parametrize(
    "data", [None, b"null", b'"text"', b"[]", b"{}", b'{"delta":1}', b'{"delta":{"delta":"x"}}']
)
def test_without_text_on_both_sides_the_new_event_alone_is_the_value(data: bytes | None) -> None:
    text = piece(0, b'{"delta":"a"}')
    assert data_of(value_of(text, piece(1, data))) == data
    assert data_of(value_of(piece(0, data), piece(1, b'{"delta":"a"}'))) == b'{"delta":"a"}'


def test_an_accumulate_event_joins_onto_a_latest_one_and_a_latest_one_replaces() -> None:
    latest = piece(0, b'{"delta":"a"}', mode="latest")
    assert data_of(value_of(latest, piece(1, b'{"delta":"b"}'))) == b'{"delta":"ab"}'
    replaced = value_of(piece(0, b'{"delta":"a"}'), piece(1, b'{"delta":"b"}', mode="latest"))
    assert data_of(replaced) == b'{"delta":"b"}'


def test_keep_all_events_leave_the_value_of_their_series_alone() -> None:
    value = value_of(
        piece(0, b'{"delta":"a"}'),
        piece(1, b'{"delta":"-"}', mode="keep-all"),
        piece(2, b'{"delta":"b"}'),
    )
    assert data_of(value) == b'{"delta":"ab"}'


@pytest.mark.parametrize("data", [b'{"delta":', b"{", b'{"\xff":1}', b'{"delta":"b"} x'])
def test_data_that_a_program_misspelt_is_no_text_and_no_failure_halfway(data: bytes) -> None:
    """The engine also takes drafts directly; a store folds them in when they are stored already."""
    value = value_of(piece(0, b'{"delta":"a"}'), piece(1, data), piece(2, b'{"delta":"c"}'))
    assert data_of(value) == b'{"delta":"c"}'


@pytest.mark.parametrize(
    ("series_id", "mode"), [(UNSET, "accumulate"), ("", "latest"), ("s", UNSET), (UNSET, UNSET)]
)
def test_half_a_series_is_none(series_id: str | UnsetType, mode: SeriesMode | UnsetType) -> None:
    entry = piece(0, b'{"delta":"a"}', series_id=series_id, mode=mode)
    values: SeriesValues = {}
    assert series_of(entry.event) is None
    assert not accumulates(entry.event)
    assert fold(values, entry) is None
    assert values == {}


def test_twenty_thousand_pieces_are_each_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work, counted in bytes read, is linear; so is what is kept."""
    read = 0

    def counted(text: bytes) -> dict[bytes, bytes] | None:
        nonlocal read
        read += len(text)
        return fields_of(text)

    monkeypatch.setattr("taskcast_trio.core.series.fields_of", counted)
    entries = [piece(index, b'{"delta":"%05d"}' % index) for index in range(20_000)]
    values: SeriesValues = {}
    for entry in entries:
        fold(values, entry)
    text = data_of(values["s"].entry)
    assert text == b'{"delta":"%b"}' % b"".join(b"%05d" % index for index in range(20_000))
    assert read <= 2 * sum(len(data_of(entry) or b"") for entry in entries)
    assert values["s"].pieces == [], "what was joined once stays joined"


def test_a_value_stays_what_it_was_while_the_series_goes_on() -> None:
    """Values are joined late, for readers that are slow; each still has its own text."""
    values: SeriesValues = {}
    views = []
    for index in range(50):
        fold(values, piece(index, b'{"delta":"%d,"}' % index))
        views.append(values["s"].entry)
    expected = [
        b'{"delta":"%b"}' % b"".join(b"%d," % n for n in range(index + 1)) for index in range(50)
    ]
    assert [data_of(view) for view in reversed(views)] == list(reversed(expected))
    assert [data_of(view) for view in views] == expected
    fold(values, piece(50, b'{"delta":"end"}'))
    assert data_of(values["s"].entry) == expected[-1][:-2] + b'end"}'


def test_a_stream_sends_the_running_value_and_not_its_newest_piece() -> None:
    values: SeriesValues = {}
    fold(values, piece(0, b'{"delta":"ab"}'))
    fold(values, piece(1, b'{"delta":"cd"}'))
    assert b'"data":{"delta":"abcd"}' in values["s"].entry.frame(0)
    assert b'"data":{"delta":"abcd"}' in values["s"].entry.bare_frame()


# Snapshots


def test_a_snapshot_is_the_value_with_a_mark() -> None:
    value = value_of(piece(0, b'{"delta":"a"}'), piece(1, b'{"delta":"b"}'))
    snapshot = as_snapshot(value)
    assert snapshot.event == msgspec.structs.replace(value.event, series_snapshot=True)
    assert (snapshot.index, snapshot.place) == (value.index, value.place)


def test_collapse_puts_each_accumulate_series_where_its_first_piece_is() -> None:
    log = [
        piece(0, b"0", series_id=UNSET, mode=UNSET),
        piece(1, b'{"delta":"a"}'),
        piece(2, b'{"delta":"x"}', series_id="other"),
        piece(3, b'{"delta":"-"}', mode="keep-all"),
        piece(4, b'{"delta":"b"}'),
        piece(5, b"1", series_id="last", mode="latest"),
    ]
    values: SeriesValues = {}
    for entry in log:
        fold(values, entry)
    taken = {name: value.entry for name, value in values.items()}
    seen: set[str] = set()
    got = [*collapse(log[:3], taken, seen), *collapse(log[3:], taken, seen)]
    assert [(entry.index, data_of(entry), entry.event.series_snapshot) for entry in got] == [
        (0, b"0", UNSET),
        (4, b'{"delta":"ab"}', True),
        (2, b'{"delta":"x"}', True),
        (3, b'{"delta":"-"}', UNSET),
        (5, b"1", UNSET),
    ]
