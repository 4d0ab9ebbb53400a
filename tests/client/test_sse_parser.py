"""The SSE parser keeps to the WHATWG standard, however the bytes are cut, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.client.sse import EventTooLarge, ServerSentEvent, SSEParser


def parse(*chunks: bytes, parser: SSEParser | None = None) -> list[ServerSentEvent]:
    parser = parser or SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def message(data: str, *, event: str = "message", id: str = "") -> ServerSentEvent:
    return ServerSentEvent(event, data, id)


def by_the_book(stream: bytes) -> tuple[list[ServerSentEvent], int | None]:
    """The standard's algorithm, written down word by word over the whole stream."""
    text = stream.decode(errors="replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events, retry = [], None
    data = event_type = last_id = ""
    for line in lines:
        if line == "":
            if data:
                events.append(ServerSentEvent(event_type or "message", data[:-1], last_id))
            data = event_type = ""
            continue
        if line.startswith(":"):
            continue
        field, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id":
            if "\0" not in value:
                last_id = value
        elif field == "retry" and value and set(value) <= set("0123456789"):
            retry = int(value)
    return events, retry


def encode(event: ServerSentEvent, line_end: bytes) -> bytes:
    lines = [f"event: {event.event}", *(f"data: {line}" for line in event.data.split("\n"))]
    lines += [f"id: {event.id}", "", ""]
    return line_end.join(line.encode() for line in lines)


@st.composite
def cut(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=20)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


def pieces() -> st.SearchStrategy[bytes]:
    """What event streams are made of, put together with more or less sense."""
    words = [b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"\n", b"\n\n", b"\r", b"\r\n"]
    words += [b"\0", b"7", b"x", "é".encode(), "\U0001f600".encode(), b"\xf0\x9f", b"\xff", b"\xef"]
    words += [b"\xef\xbb\xbf", b"data: a\n\n", b"id: 1\ndata: b\r\rdata\n", "\x85\u2028".encode()]
    return st.lists(st.sampled_from(words) | st.binary(max_size=3), max_size=30).map(b"".join)


@given(st.data())
def test_any_chunking_gives_what_the_standard_says(data: st.DataObject) -> None:
    stream = data.draw(pieces())
    chunks = data.draw(cut(stream))
    parser = SSEParser()
    events, retry = by_the_book(stream)
    assert parse(*chunks, parser=parser) == events
    assert parser.retry_ms == retry


lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
events_to_send = st.builds(
    ServerSentEvent,
    event=lines.filter(bool),
    data=st.lists(lines, min_size=1, max_size=3).map("\n".join),
    id=lines.filter(lambda text: "\0" not in text),
)


@given(st.data())
def test_what_an_encoder_wrote_comes_back(data: st.DataObject) -> None:
    events = data.draw(st.lists(events_to_send, max_size=5))
    line_end = data.draw(st.sampled_from([b"\n", b"\r", b"\r\n"]))
    stream = b"".join(encode(event, line_end) for event in events)
    assert parse(*data.draw(cut(stream))) == events


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_an_event_is_dispatched_at_its_blank_line_and_not_a_byte_later(line_end: bytes) -> None:
    """A lone CR ends a line: waiting for the LF that may follow would hold the event back."""
    stream = line_end.join([b"data: a", b"", b""])
    cuts = stream[: -len(line_end)], stream[-len(line_end) :][:1]
    parser = SSEParser()
    assert parse(cuts[0], parser=parser) == []
    assert parse(cuts[1], parser=parser) == [message("a")]
    assert parse(stream[sum(map(len, cuts)) :] + stream, parser=parser) == [message("a")]


def test_the_examples_of_the_standard() -> None:
    """WHATWG HTML, 9.2.6, the blocks after "the following event stream"."""
    assert parse(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [message("YHOO\n+2\n10")]
    stream = b": test stream\n\ndata: first event\nid: 1\n\n"
    stream += b"data:second event\nid\n\ndata:  third event\n\n"
    assert parse(stream) == [
        message("first event", id="1"),
        message("second event"),
        message(" third event"),
    ]
    assert parse(b"data\n\ndata\ndata\n\ndata:") == [message(""), message("\n")]
    assert parse(b"data:test\n\ndata: test\n\n") == [message("test"), message("test")]


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    mark = b"\xef\xbb\xbf"
    assert parse(mark[:1], mark[1:2], mark[2:] + b"data: a\n\n") == [message("a")]
    assert parse(b"data: " + mark + b"a\n\n") == [message("\ufeffa")]
    assert parse(mark + mark + b"data: a\n\n") == []


def test_an_event_that_the_end_cuts_off_is_not_dispatched_and_its_id_does_not_count() -> None:
    parser = SSEParser()
    assert parse(b"id: 1\ndata: a\n\nid: 2\ndata: b\n", parser=parser) == [message("a", id="1")]
    assert parser.last_event_id == "1"


def test_an_id_alone_moves_the_last_event_id_without_an_event() -> None:
    parser = SSEParser()
    assert parse(b"id: 7\n\n", parser=parser) == []
    assert parser.last_event_id == "7"


def test_an_id_with_nul_is_ignored() -> None:
    assert parse(b"id: 1\nid: 2\0\ndata: a\n\n") == [message("a", id="1")]


@pytest.mark.parametrize(
    ("value", "retry_ms"),
    [
        (b"2000", 2000),
        (b"0", 0),
        (b"007", 7),
        (b"1.5", None),
        (b"-1", None),
        (b"", None),
        ("٣".encode(), None),
        (b"9" * 5000, 10**15 - 1),
        (b"0" * 5000 + b"5", 5),
    ],
)
def test_retry_takes_ascii_digits_only(value: bytes, retry_ms: int | None) -> None:
    parser = SSEParser()
    parse(b"retry: " + value + b"\n\n", parser=parser)
    assert parser.retry_ms == retry_ms


@pytest.mark.parametrize("endless", [b"x", b"data: x\n", b"data\n", b"event: x\n", b"x\n"])
def test_an_event_without_end_raises_before_it_fills_the_memory(endless: bytes) -> None:
    parser = SSEParser(max_event_size=1000)
    fed = 0
    with pytest.raises(EventTooLarge):
        while fed < 10_000:
            fed += len(endless)
            parse(endless, parser=parser)
    assert 1000 / 4 < fed <= 2000
    with pytest.raises(EventTooLarge):
        parse(b"\n\ndata: y\n\n", parser=parser)


def test_events_before_one_that_is_too_large_are_delivered() -> None:
    events = SSEParser(max_event_size=10).feed(b"data: a\n\ndata: 0123456789\n\n")
    assert next(events) == message("a")
    with pytest.raises(EventTooLarge):
        next(events)


def test_a_stream_may_live_on_comments_for_ever() -> None:
    parser = SSEParser(max_event_size=100)
    assert parse(*[b": keepalive\n"] * 1000, b"data: a\n\n", parser=parser) == [message("a")]


def test_an_event_of_exactly_the_limit_passes() -> None:
    block = b"data: abc\n\n"
    assert parse(block, parser=SSEParser(max_event_size=len(block) - 1)) == [message("abc")]
