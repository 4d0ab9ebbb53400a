"""Stdin is cut between characters, between lines, and into events, wherever its chunks end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from msgspec import UNSET

from taskcast_trio.cli.failures import Failed
from taskcast_trio.cli.stdin import MAX_LINE_BYTES, EventLines, TextLines, Texts, receive_some

TEXT = "é 全 👩 \ufffd end"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_text_is_whole_wherever_it_is_cut(size: int) -> None:
    data, texts = TEXT.encode(), Texts()
    pieces = [texts.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert "".join(text for piece in [*pieces, texts.feed(b"")] for text in piece) == TEXT
    assert all(text for piece in pieces for text in piece)


def test_a_character_waits_for_its_rest_and_no_longer_than_the_end() -> None:
    texts = Texts()
    assert texts.feed(b"a\xc3") == ["a"]
    assert texts.feed(b"\xa9\xff") == ["é\ufffd"]
    assert texts.feed(b"\xf0\x9f") == []
    assert texts.feed(b"") == ["\ufffd"]


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_lines_are_whole_and_the_last_one_needs_no_end(size: int) -> None:
    data, lines = "één\r\n\ntwo\nlast".encode(), TextLines()
    found = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
    assert [*found, *lines.feed(b"")] == ["één", "", "two", "last"]
    assert lines.feed(b"") == []


def test_a_line_without_end_is_not_held_for_ever() -> None:
    lines = TextLines()
    with pytest.raises(Failed, match="over 1048576 bytes"):
        for _ in range(MAX_LINE_BYTES // 65_536 + 1):
            lines.feed(b"x" * 65_536)


def test_events_are_one_a_line_with_their_data_as_it_was() -> None:
    lines = EventLines()
    head = list(lines.feed(b'\n{"type": "a"}\n  \n{"type":"b","lev'))
    rest = list(lines.feed(b'el":"warn","data":{ "n": 1.0 },"seriesId":"s","seriesMode":"latest"}'))
    last = list(lines.feed(b""))
    assert rest == []
    a, b = [*head, *last]
    assert (a.type, a.level, a.data) == ("a", "info", UNSET)
    assert (b.type, b.level, bytes(b.data), b.series_id) == ("b", "warn", b'{ "n": 1.0 }', "s")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"type": 1}', r"\$.type"),
        (b'{"data": 1}', "missing required field `type`"),
        (b'{"type": "a", "level": "loud"}', "level"),
        (b'{"type": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_what_was_before_it_came(line: bytes, says: str) -> None:
    events = EventLines().feed(b'{"type":"a"}\n\n' + line + b'\n{"type":"b"}\n')
    assert next(iter(events)).type == "a"
    with pytest.raises(Failed, match=rf"line 3 of stdin is no event: .*{says}"):
        next(iter(events))


async def test_what_is_there_is_read_at_once_and_together() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"one")
        assert await receive_some(reading) == b"one"
        os.write(writing, b"two ")
        os.write(writing, b"three")
        assert await receive_some(reading) == b"two three"
        assert os.get_blocking(reading)  # as every process that shares it expects
        os.close(writing)
        assert await receive_some(reading) == b""
    finally:
        os.close(reading)


async def test_waiting_for_input_can_be_cancelled_and_loses_nothing() -> None:
    reading, writing = os.pipe()
    try:
        with trio.move_on_after(0):
            await receive_some(reading)
        os.write(writing, b"kept")
        assert await receive_some(reading) == b"kept"
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_file_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"text")
    number = os.open(file, os.O_RDONLY)
    try:
        assert await receive_some(number) == b"text"
        assert await receive_some(number) == b""
    finally:
        os.close(number)
