"""What the edge accepts as JSON, and that accepted values come back byte for byte."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.jsontext import MAX_DEPTH, Mask, fields_of, one_line, parse
from taskcast_trio.core.model import CreateTask, Draft, Resolve, Transition

MIB = 1 << 20


def draft_with(data: bytes) -> bytes:
    return b'{"type":"t","level":"info","data":%b}' % data


def through(data: bytes) -> bytes:
    """What comes back of ``data`` that was published."""
    draft = parse(draft_with(data), Draft)
    assert isinstance(draft.data, Raw)
    return bytes(draft.data)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


# Text of JSON values, spelled in every way that a sender may choose.

_characters = st.sampled_from(
    [
        *"aud8\x7f[]{},: é😀\u2028",
        *(r"\n", r"\\", r"\"", r"\/", r"\u0000", r"\u007f", r"\u0075", r"\u0061"),
        *(r"\ud83d", r"\ude00", r"\uD800", r"\uDFFF", "ud800", "\x7fud800", "#ud800"),
    ]
)
_strings = st.lists(_characters, max_size=8).map(lambda parts: '"' + "".join(parts) + '"')
_numbers = st.sampled_from(
    ["0", "-0", "1.0", "1e2", "18446744073709551616", "9007199254740993", "1.7976931348623157e308"]
)
_gap = st.sampled_from(["", " ", "\n", "\r\n", "\t "])
_scalars = _strings | _numbers | st.sampled_from(["true", "false", "null"])


def _spaced(before: str, inside: str, after: str) -> str:
    return before + inside + after


def _containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    items = st.lists(st.builds(_spaced, _gap, values, _gap), max_size=3)
    members = st.lists(
        st.builds(lambda key, gap, value: f"{key}{gap}:{value}", _strings, _gap, values), max_size=3
    )
    return items.map(lambda parts: f"[{','.join(parts)}]") | st.builds(
        lambda gap, parts: "{%s%s}" % (gap, ",".join(parts)),  # noqa: UP031
        _gap,
        members,
    )


texts = st.recursive(_scalars, _containers, max_leaves=12).map(str.encode)


@given(texts)
def test_a_raw_value_comes_back_byte_for_byte_on_one_line(text: bytes) -> None:
    assert through(text) == text.replace(b"\r", b" ").replace(b"\n", b" ")


@pytest.mark.parametrize(
    "text",
    [
        rb'{"a":1,"a":2}',
        rb'"\u0000"',
        rb"18446744073709551616",
        rb"[1.0,-0,1e2,1E+2,0.10,1e-400,5e-324,1.7976931348623157e308]",
        b"1" * 309,
        b"0." + b"1" * 5000,
        b"1" * 400 + b"e-200",
        rb'"\ud83d"',
        rb'["\ude00","\\ud800","\\\ud800","\ud83d\ude00","\ud83d\ud83d\ude00"]',
        rb'{"\ud800":"\u00e9\/\b"}',
        '"\u2028 \x7f 😀"'.encode(),
    ],
)
def test_spellings_of_the_sender_survive(text: bytes) -> None:
    assert through(text) == text


def test_line_breaks_between_tokens_become_spaces_and_nothing_else_moves() -> None:
    assert through(b'{\r\n"a" :\n[1,\r2]\t}') == b'{  "a" : [1, 2]\t}'
    assert one_line(rb'"\n"') == rb'"\n"'


@given(texts)
def test_one_line_means_the_same(text: bytes) -> None:
    assert json.loads(one_line(text)) == json.loads(text)
    assert len(one_line(text)) == len(text)


def test_raw_values_do_not_hold_on_to_the_request() -> None:
    body = bytearray(draft_with(b"[1,2]"))
    draft = parse(bytes(body), Draft)
    body[:] = b"x" * len(body)
    assert draft.data == Raw(b"[1,2]")


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"NaN"])
def test_every_place_of_a_body_is_checked_not_only_the_shape_of_it(number: bytes) -> None:
    for body in (
        b'{"unknown":%b}' % number,
        b'{"params":{"a":[%b]}}' % number,
        b'{"webhooks":[0,%b]}' % number,
        b'{"cleanup":{"rules":[%b]}}' % number,
        b'{"ttl":%b}' % number,
    ):
        with pytest.raises(BadRequest):
            parse(body, CreateTask)


# Refusals


@pytest.mark.parametrize(
    "number",
    [
        b"1e309",
        b"1E309",
        b"1e+309",
        b"-1e0309",
        b"1.0e400",
        b"0.1e310",
        b"2e308",
        b"1.7976931348623159e308",
        b"1" + b"0" * 309,
        b"-" + b"9" * 309,
        b"9" * 309 + b".5",
        b"9" * 250 + b"e59",
        b"9" * 250 + b"e+59",
        b"9" * 250 + b".0E59",
        b"1" * 400 + b"e-1",
        b"1e99999999999999999999",
    ],
)
def test_numbers_outside_the_double_range_are_refused_in_every_spelling(number: bytes) -> None:
    for text in (number, b"[1,%b]" % number, b'{"1e1":%b,"x":"\\""}' % number):
        with pytest.raises(BadRequest, match="outside the range of a double"):
            through(text)


def test_what_only_looks_like_a_huge_number_inside_a_string_is_text() -> None:
    text = rb'["1e400","\"1e400,","\\",1e100,"' + b"9" * 400 + b'"]'
    assert through(text) == text


@pytest.mark.parametrize(
    "body",
    [
        *(b"NaN", b"Infinity", b"-Infinity", b"nul", b"True", b"01", b"-", b"1.", b".5", b"+1"),
        *(b"1e", b"1e+", b"0x1", b"1_0", b"--1", b"1.2.3", b"[1,]", b"[1 2]", b"["),
        *(b'{"a":1,}', b"{a:1}", b"{'a':1}", b'{"a"}', b'{"a":1 "b":2}', b"/**/1", b"1\x0b"),
        *(b"[1]]", b"1 2", b"{} {}"),
        *(b'"', b'"\\', b'"\\"', b'"\\x"', b'"\\u12"', b'"\\u12G4"', b'"\\ud8"', b'"\\U0041"'),
        *(b'"a\nb"', b'"a\rb"', b'"a\tb"', b'"a\x00b"', b'{"\n":1}', b'["\\ud800",01]'),
    ],
)
def test_malformed_json_is_refused_also_inside_raw_values(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(body, Raw)
    with pytest.raises(BadRequest):
        through(body)


def _strict(text: bytes) -> bool:
    """Whether the standard library, held to the letter, can read ``text``."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    def finite(number: str) -> float:
        return refuse(number) if math.isinf(float(number)) else float(number)

    try:
        json.loads(text.decode(), parse_constant=refuse, parse_float=finite, parse_int=finite)
    except ValueError:
        return False
    return True


@given(texts, st.integers(0, 200), st.binary(max_size=2), st.integers(0, 3))
def test_accepts_exactly_what_a_strict_reader_reads(
    text: bytes, at: int, insert: bytes, drop: int
) -> None:
    at %= len(text) + 1
    body = b"[" + text[:at] + insert + text[at + drop :] + b"]"
    try:
        parse(body, Raw)
    except BadRequest:
        assert not _strict(body)
    else:
        assert _strict(body)


@pytest.mark.parametrize("body", [b"", b"  \r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf "])
def test_an_empty_body_is_told_as_such(body: bytes) -> None:
    with pytest.raises(BadRequest, match="no body"):
        parse(body, CreateTask)


def test_a_byte_order_mark_is_accepted_once() -> None:
    task = parse(b'\xef\xbb\xbf{"id":"a"}', CreateTask)
    assert task.id == "a"
    with pytest.raises(BadRequest):
        parse(b"\xef\xbb\xbf\xef\xbb\xbf{}", CreateTask)


@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
)
def test_bytes_that_are_no_utf8_are_refused_with_their_offset(bad: bytes) -> None:
    body = draft_with(b'"%b"' % bad)
    with pytest.raises(BadRequest, match=f"offset {body.index(bad)}"):
        parse(body, Draft)


@pytest.mark.parametrize("body", [b"[", b"1", b'"x"', b"null", b"true"])
def test_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(body, CreateTask)


def test_messages_name_the_place() -> None:
    with pytest.raises(BadRequest, match=r"\$\.tags\[1\]"):
        parse(b'{"tags":["a",null]}', CreateTask)
    with pytest.raises(BadRequest, match=r"\$\[1\]\.level"):
        parse(b'[{"type":"a","level":"info"},{"type":"a","level":"loud"}]', list[Draft])


@pytest.mark.parametrize(("text", "value"), [(b"60", 60), (b"1.0", 1), (b"1e2", 100), (b"3E0", 3)])
def test_whole_numbers_may_be_spelled_as_floats(text: bytes, value: int) -> None:
    task = parse(b'{"ttl":%b,"cost":%b}' % (text, text), CreateTask)
    assert (task.ttl, task.cost) == (value, value)


@pytest.mark.parametrize("bad", [b"true", b"false", b"null", b'"60"', b"[]", b"{}"])
def test_what_is_no_number_is_no_ttl(bad: bytes) -> None:
    with pytest.raises(BadRequest, match=r"\$\.ttl"):
        parse(b'{"ttl":%b}' % bad, CreateTask)


# Depth


def test_the_limit_of_depth_is_128_and_holds_for_the_whole_body() -> None:
    assert MAX_DEPTH == 128
    assert parse(nested(128), Raw) == Raw(nested(128))
    with pytest.raises(BadRequest, match="deeper than 128"):
        parse(nested(129), Raw)
    assert through(nested(127)) == nested(127)
    with pytest.raises(BadRequest, match="deeper than 128"):
        through(nested(128))


def test_brackets_count_by_depth_not_by_number_and_not_inside_strings() -> None:
    flat = b"[" + b",".join([b"[]"] * 1000) + b"]"
    assert through(flat) == flat
    for text in (b'"%b"' % (b"[" * 1000), b'["\\"%b","\\\\"]' % (b"{" * 1000)):
        assert through(text) == text
    with pytest.raises(BadRequest, match="deeper"):
        through(b'["\\\\",' + nested(127) + b"]")


@pytest.mark.parametrize("length", [65_533, 65_534, 65_535, 65_536, 65_537, 200_000])
def test_strings_of_any_length_hide_what_is_in_them_and_nothing_else(length: int) -> None:
    text = b'["%b",1e100]' % (b"[" * length)
    assert through(text) == text
    for hidden in (b"1e999", nested(128)):
        with pytest.raises(BadRequest, match=r"nests deeper|range of a double"):
            through(b'["%b",%b]' % (b"a" * length, hidden))


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


@given(texts, st.integers(0, 4))
def test_depth_is_that_of_the_value(text: bytes, limit: int) -> None:
    class Pairs(list[Any]):
        """The members of an object, equal keys included."""

    value = json.loads(text, object_pairs_hook=lambda pairs: Pairs([v for _, v in pairs]))
    if _depth(value) > limit:
        with pytest.raises(BadRequest, match="nests deeper"):
            parse(text, Raw, max_depth=limit)
    else:
        parse(text, Raw, max_depth=limit)


def test_a_limit_beyond_what_the_decoder_can_take_is_still_a_bad_request() -> None:
    with pytest.raises(BadRequest):
        parse(nested(200_000), Raw, max_depth=1_000_000)


# Lone surrogates


@pytest.mark.parametrize(
    ("body", "type_", "place"),
    [
        (rb'{"id":"\ud800"}', CreateTask, "id"),
        (rb'{"tags":["a","\udfff"]}', CreateTask, r"tags\[1\]"),
        (rb'{"type":"x\uD83D","level":"info"}', Draft, "type"),
        (rb'{"type":"x","level":"info","seriesId":"\\\ud83d"}', Draft, "seriesId"),
        (rb'{"status":"failed","error":{"message":"\ude00"}}', Transition, r"error\.message"),
        (rb'{"status":"blocked","blockedRequest":{"type":"\ude00"}}', Transition, "blockedRequest"),
    ],
)
def test_lone_surrogates_are_refused_in_plain_text_naming_the_place(
    body: bytes, type_: type, place: str
) -> None:
    with pytest.raises(BadRequest, match=rf"lone surrogate.*\$\.{place}"):
        parse(body, type_)


def test_plain_text_beside_raw_lone_surrogates_is_left_alone() -> None:
    body = rb'{"status":"paused","reason":"\\ud800 \ud83d\ude00","result":{"a":"\ud83d"}}'
    change = parse(body, Transition)
    assert change.reason == "\\ud800 😀"
    assert change.result == Raw(rb'{"a":"\ud83d"}')


@pytest.mark.parametrize("look_alike", [r"\u007fud800", "\x7f" + r"\u0075d800", "\x7fud800"])
def test_plain_text_that_looks_like_a_masked_escape_is_taken_as_it_is(look_alike: str) -> None:
    body = r'{"status":"paused","reason":"%s","result":{"a":"\ud83d"}}' % look_alike  # noqa: UP031
    change = parse(body.encode(), Transition)
    assert change.reason == "\x7fud800"
    assert change.result == Raw(rb'{"a":"\ud83d"}')


def test_a_look_alike_that_the_mask_itself_would_make_is_not_taken_for_one() -> None:
    crowd = b"".join(bytes([c]) + b"ud800 " for c in [0x7F, *range(0x23, 0x30)])
    text = b'["%b","0ud80\\ud800"]' % crowd
    assert through(text) == text


_bodies = st.lists(
    _characters | st.sampled_from(["\\", '"', r"\ud8", r"\\\ud800"]), max_size=20
).map(lambda parts: "".join(parts).encode())


@given(_bodies)
def test_a_mask_hides_every_lone_surrogate_moves_no_byte_and_can_be_undone(body: bytes) -> None:
    mask = Mask.of(body)
    if mask is None:
        return
    masked = mask.apply(body)
    assert len(masked) == len(body)
    assert Mask.of(masked) is None
    assert mask.undo(masked) == body


@given(_strings)
def test_a_mask_is_there_exactly_for_text_with_a_lone_surrogate(text: str) -> None:
    lone = any("\ud800" <= char <= "\udfff" for char in json.loads(text))
    assert (Mask.of(text.encode()) is not None) == lone


def test_running_out_of_masks_is_a_bad_request() -> None:
    body = b'["\\ud800' + b"".join(bytes([c]) + b"ud800" for c in Mask._CANDIDATES) + b'"]'
    with pytest.raises(BadRequest, match="look-alikes"):
        parse(body, Raw)


# Members of an object


@given(texts)
def test_the_members_of_an_object_are_their_own_texts_and_the_last_of_equal_keys_wins(
    text: bytes,
) -> None:
    members = fields_of(text)
    value = json.loads(text)
    if not isinstance(value, dict):
        assert members is None
        return
    assert members is not None
    assert {json.loads(key): json.loads(member) for key, member in members.items()} == value
    assert all(member in text for member in members.values())


def test_equal_keys_in_different_spellings_are_one() -> None:
    members = fields_of(rb'{"d":1,"\u0064":2,"\ud800":"\ud83d"}')
    assert members == {b'"d"': b"2", rb'"\ud800"': rb'"\ud83d"'}


# Hostile bodies: were anything quadratic, each of these would take minutes.


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 129 + b'"' + b'\\"' * (MIB // 2), id="escaped quotes, unterminated"),
        pytest.param(b"[" * 129 + b'"' * MIB, id="quotes"),
        pytest.param(b"[" * 129 + b'"' + b"\\" * (MIB + 1), id="backslashes, unterminated"),
        pytest.param(b"\\" * MIB, id="backslashes"),
        pytest.param(b"\\ud800" + b"\\" * MIB, id="backslashes after a surrogate"),
        pytest.param(b"1" * MIB, id="digits"),
        pytest.param(b"1e" * (MIB // 2), id="exponents"),
        pytest.param(b"1." * (MIB // 2), id="points"),
        pytest.param(b"1e" + b"0" * MIB + b"999", id="exponent of zeros"),
        pytest.param(b"[" * MIB, id="brackets"),
        pytest.param(b'{"a":' * (MIB // 5), id="objects"),
        pytest.param(b'"' + b"\\ud800" * (MIB // 6), id="surrogates, unterminated"),
        pytest.param(b'{"id":"' + b"\\ud800" * (MIB // 6) + b'"}', id="surrogates in text"),
    ],
)
def test_hostile_bodies_of_a_mebibyte_are_refused_in_one_pass(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(body, CreateTask)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"0." + b"1" * MIB, id="digits"),
        pytest.param(b'"' + b"\\\\" * (MIB // 2) + b'"', id="backslashes"),
        pytest.param(b'"' + b"\\ud800" * (MIB // 6) + b'"', id="surrogates"),
        pytest.param(b"[" + b"[]," * (MIB // 3) + b"1e100]", id="flat brackets"),
    ],
)
def test_odd_but_legal_values_of_a_mebibyte_come_back_whole(text: bytes) -> None:
    answer = parse(b'{"data":%b}' % text, Resolve)
    assert answer.data == Raw(text)


def test_a_parsed_value_can_be_sent_on() -> None:
    draft = parse(draft_with(rb'{"a":"\ud83d"}'), Draft)
    assert msgspec.json.encode(draft) == rb'{"type":"t","level":"info","data":{"a":"\ud83d"}}'
