"""Entries: what an event becomes in its log, and the exact bytes that streams send of it."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from taskcast_trio.core.entry import Entry, commit, sse_id
from taskcast_trio.core.ids import Position, parse_event_id
from taskcast_trio.core.model import Draft, Envelope, Event, Task


def event_with(**fields: object) -> Event:
    whole: dict[str, object] = {
        "id": "e7",
        "task_id": "t",
        "index": 7,
        "timestamp": 1_700_000_000_000,
        "type": "llm.delta",
        "level": "info",
        **fields,
    }
    return Event(**whole)  # type: ignore[arg-type]


FULL = event_with(
    data=Raw(rb'{"delta":"\ud83d"}'),
    series_id="s",
    series_mode="accumulate",
    series_acc_field="delta",
    series_snapshot=True,
)


def test_the_frame_of_an_envelope_to_the_byte() -> None:
    assert Entry(FULL, 7).frame(3) == (
        b"event: taskcast.event\n"
        b'data: {"filteredIndex":3,"rawIndex":7,"eventId":"e7","taskId":"t","type":"llm.delta",'
        b'"timestamp":1700000000000,"level":"info","data":{"delta":"\\ud83d"},"seriesId":"s",'
        b'"seriesMode":"accumulate","seriesAccField":"delta","seriesSnapshot":true}\n'
        b"id: e7\n"
        b"\n"
    )


def test_the_frame_of_a_stored_event_to_the_byte() -> None:
    assert Entry(FULL, 7).bare_frame() == (
        b"event: taskcast.event\n"
        b'data: {"id":"e7","taskId":"t","index":7,"timestamp":1700000000000,"type":"llm.delta",'
        b'"level":"info","data":{"delta":"\\ud83d"},"seriesId":"s","seriesMode":"accumulate",'
        b'"seriesAccField":"delta","seriesSnapshot":true}\n'
        b"id: e7\n"
        b"\n"
    )


def test_what_the_event_has_not_is_not_in_the_frame_and_null_is_not_absent() -> None:
    bare = Entry(event_with(), 7)
    assert b'"level":"info"}\nid: e7\n\n' in bare.frame(0)
    assert bare.bare_frame().endswith(b'"level":"info"}\nid: e7\n\n')
    assert b'"data":null}' in Entry(event_with(data=Raw(b"null")), 7).frame(0)


def test_the_filtered_index_is_each_subscribers_own_and_the_rest_is_shared() -> None:
    entry = Entry(FULL, 7)
    frames = [entry.frame(number) for number in (0, 9, 10, 123_456_789_012)]
    tails = {frame.partition(b',"rawIndex"')[2] for frame in frames}
    assert len(tails) == 1
    heads = [frame.partition(b',"rawIndex"')[0] for frame in frames]
    assert heads == [
        b'event: taskcast.event\ndata: {"filteredIndex":%d' % number
        for number in (0, 9, 10, 123_456_789_012)
    ]


def parse_frame(frame: bytes) -> tuple[dict[str, str], str]:
    """The fields of the one event in ``frame``, by the letter of the WHATWG parser, and its id."""
    fields: dict[str, str] = {}
    text = frame.decode().replace("\r\n", "\n").replace("\r", "\n")
    block, end, rest = text.partition("\n\n")
    assert (end, rest) == ("\n\n", "")
    for line in block.split("\n"):
        name, colon, value = line.partition(":")
        assert colon
        assert name not in fields
        fields[name] = value.removeprefix(" ")
    assert list(fields) == ["event", "data", "id"]
    return fields, fields["id"]


_texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\n", "\r\n\r\n", "\x00", "a\ndata: x\n\n", "id: 1", " lead", "é\u2028\u2029😀", ":", ""]
)


@given(_texts, _texts, _texts, _texts, _texts)
def test_no_text_of_an_imported_event_breaks_a_frame(
    id_: str, task_id: str, type_: str, series_id: str, text: str
) -> None:
    data = Raw(msgspec.json.encode({text: text}))
    event = event_with(id=id_, task_id=task_id, type=type_, series_id=series_id, data=data)
    entry = Entry(event, 7)
    fields, shown = parse_frame(entry.frame(0))
    envelope = msgspec.json.decode(fields["data"], type=Envelope)
    assert (envelope.event_id, envelope.task_id) == (id_, task_id)
    assert (envelope.type, envelope.series_id) == (type_, series_id)
    assert json.loads(fields["data"])["data"] == {text: text}
    assert shown == id_.translate({10: " ", 13: " ", 0: " "})
    fields, shown = parse_frame(entry.bare_frame())
    assert msgspec.json.decode(fields["data"], type=Event).id == id_


@pytest.mark.parametrize("data", [b"{\n}", b"[1,\r\n2]", b"[\r]"])
def test_data_that_a_program_spread_over_lines_still_makes_one_line(data: bytes) -> None:
    """HTTP bodies are put on one line when they come in; the engine also takes drafts directly."""
    entry = Entry(event_with(data=Raw(data)), 7)
    for frame in (entry.frame(0), entry.bare_frame()):
        fields, _ = parse_frame(frame)
        assert json.loads(fields["data"])["data"] == json.loads(data)


def test_an_id_line_holds_no_line_break_and_no_nul() -> None:
    """NUL would make the parser ignore the field, a line break would end it (WHATWG HTML 9.2.6)."""
    assert sse_id("a\nb\rc\x00d é/") == "a b c d é/".encode()


def test_commit_gives_a_draft_its_place_in_the_log() -> None:
    draft = Draft(type="a", level="warn", data=Raw(b"1"), series_id="s", series_mode="latest")
    entry = commit(draft, task_id="t", epoch="0000000E", index=5, place=2, now_ms=99)
    assert (entry.index, entry.place, entry.type, entry.level) == (5, 2, "a", "warn")
    assert parse_event_id(entry.id) == Position("0000000E", 5)
    assert entry.event == Event(
        id=entry.id,
        task_id="t",
        index=5,
        timestamp=99,
        type="a",
        level="warn",
        data=Raw(b"1"),
        series_id="s",
        series_mode="latest",
    )
    bare = commit(
        Draft(type="", level="info"), task_id="t", epoch="0000000E", index=6, place=6, now_ms=99
    )
    assert bare.event.data is UNSET
    assert bare.id > entry.id


def test_an_entry_shows_no_payload() -> None:
    entry = Entry(event_with(data=Raw(b'"secret"')), 7)
    assert repr(entry) == "<Entry t[7] llm.delta>"


def test_a_printed_shape_has_what_is_there_alone() -> None:
    task = Task(id="t", status="running", created_at=1, updated_at=2, tags=["a"])
    assert repr(task) == "Task(id='t', status='running', created_at=1, updated_at=2, tags=['a'])"
