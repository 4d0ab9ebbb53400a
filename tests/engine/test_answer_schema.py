"""Schemas for answers: what they hold, what of them is refused, and what they may cost."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from typing import Any

import pytest
from jsonschema import (
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
from msgspec import UNSET, Raw

from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.model import BlockedRequest
from taskcast_trio.engine import answer_schema
from taskcast_trio.engine.answer_schema import check_answer, check_request

DIALECTS = {
    "https://json-schema.org/draft/2020-12/schema": Draft202012Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "http://json-schema.org/draft-07/schema#": Draft7Validator,
    "http://json-schema.org/draft-06/schema#": Draft6Validator,
}
LONGEST_S = 2.0
"""For what takes about 0.1 s at worst; the machine may be busy."""


def asking(schema: Any) -> BlockedRequest:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return BlockedRequest(type="t", schema=Raw(text.encode()))


def refusal_of(schema: Any) -> str:
    with pytest.raises(BadRequest) as raised:
        check_request(asking(schema), "$.blockedRequest")
    return str(raised.value)


def answered(schema: Any, data: Any) -> str:
    """ "" or why the answer is refused."""
    request = asking(schema)
    check_request(request, "$.blockedRequest")
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    try:
        check_answer(request, Raw(text))
    except BadRequest as refused:
        return str(refused)
    return ""


FORM = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "count": {"type": "integer", "minimum": 3},
        "code": {"type": "string", "pattern": "^[a-f]+$"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True},
        "a b": {"$ref": "#/$defs/named"},
    },
    "$defs": {"named": {"type": "object", "required": ["name"]}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"ok": True}, None),
        ({"ok": True, "count": 3.0, "code": "abc", "tags": ["a", 1], "a b": {"name": 1}}, None),
        ({"ok": 1}, "$.data.ok"),
        ({}, "$.data"),
        ([], "$.data"),
        ("yes", "$.data"),
        ({"ok": True, "count": 2}, "$.data.count"),
        ({"ok": True, "code": "abcx"}, "$.data.code"),
        ({"ok": True, "tags": ["a", "c"]}, "$.data.tags[1]"),
        ({"ok": True, "tags": ["a", "a"]}, "$.data.tags"),
        ({"ok": True, "a b": {}}, '$.data["a b"]'),
        ({"ok": True, "more": 1}, "$.data"),
        (b'{"ok":true,"code":"\\ud800"}', "$.data.code"),
    ],
)
def test_an_answer_is_refused_with_the_path_that_failed(data, place):
    refused = answered(FORM, data)
    assert refused.endswith(f" - at `{place}`") if place else refused == ""


def test_a_refusal_says_what_is_wanted_and_nothing_of_the_answer():
    secret = "a secret of the answer"
    for data in ({"ok": secret}, {"ok": True, "code": secret}, {"ok": True, secret: 1}):
        assert secret not in answered(FORM, data)
    assert answered(FORM, {}) == 'Expected "required": ["ok"] - at `$.data`'
    assert answered(FORM, {"ok": 1}) == 'Expected "type": "boolean" - at `$.data.ok`'


def test_an_answer_without_data_is_an_empty_object():
    check_answer(asking({"type": "object"}), UNSET)
    with pytest.raises(BadRequest, match=r"string.*`\$\.data`"):
        check_answer(asking({"type": "string"}), UNSET)


def test_without_a_schema_every_answer_is_taken():
    check_answer(BlockedRequest(type="t"), Raw(b"1"))
    check_answer(UNSET, Raw(b"1"))
    check_request(UNSET, "$")


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), ({"a": [1]}, {"a": [1.0]})])
def test_unique_items_are_compared_as_json_has_it(one, other):
    assert answered({"uniqueItems": True}, [one, other])


@pytest.mark.parametrize("items", [[1, True], [0, False], [[1], [True]], ["1", 1], [[], {}]])
def test_what_is_not_equal_in_json_is_unique(items):
    assert not answered({"uniqueItems": True}, items)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ({"exclusiveMinimum": 3}, 3),
        ({"const": {"a": 1}}, {"a": 1.0}),
        ({"items": [{"type": "string"}]}, [1]),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}}, "aa"),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}),
        ({"contains": {"type": "null"}}, [1]),
        ({"propertyNames": {"pattern": "^a"}}, {"b": 1}),
        ({"definitions": {"a": {"type": "string"}}, "allOf": [{"$ref": "#/definitions/a"}]}, 1),
        ({"oneOf": [{"type": "number"}, {"minimum": 2}]}, 3),
        ({"not": {"type": "string"}}, 3),
    ],
)
def test_each_dialect_says_what_the_library_says(dialect, schema, data):
    schema = {"$schema": dialect, **schema}
    library = DIALECTS[dialect]
    try:
        library.check_schema(schema)
    except Exception:
        assert refusal_of(schema)
    else:
        assert (answered(schema, data) == "") == library(schema).is_valid(data)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ("5", ""),
        ("null", ""),
        ('"object"', ""),
        ("[]", ""),
        ({"type": "person"}, ".type"),
        ({"properties": {"a": {"minimum": "x"}}}, ".properties.a.minimum"),
        ({"items": {"required": "a"}}, ".items.required"),
        ({"$schema": "https://example.com/my-dialect"}, ".$schema"),
        ({"$schema": 7}, ".$schema"),
        ({"items": {"$schema": "http://json-schema.org/draft-07/schema#"}}, '.items["$schema"]'),
        ({"items": {"$id": "https://example.com/"}}, '.items["$id"]'),
        ({"$ref": "https://example.com/schema"}, '["$ref"]'),
        ({"items": {"$ref": "other.json#/a"}}, '.items["$ref"]'),
        ({"$ref": "#/nowhere"}, '["$ref"]'),
        ({"$ref": "#nobody"}, '["$ref"]'),
        ({"$ref": "#/a", "a": None}, '["$ref"]'),
        ({"$ref": "#/a", "a": {"minimum": "x"}}, '["$ref"]'),
        ({"$ref": "#/a", "a": {"multipleOf": 0}}, '["$ref"]'),
        ({"$ref": "#/enum/0", "enum": [{"type": "person"}]}, '["$ref"]'),
        ({"$ref": "#/required", "required": ["a"]}, '["$ref"]'),
        ({"const": {"$ref": "file:///etc/passwd"}}, '.const["$ref"]'),
        ({"const": {"$ref": "file:///etc/passwd"}, "$ref": "#/const"}, '["$ref"]'),
        ({"pattern": "("}, ".pattern"),
        ({"pattern": "(?=a)"}, ".pattern"),
        ({"pattern": "(a)\\1"}, ".pattern"),
        ({"pattern": "a{1000}{1000}"}, ".pattern"),
        ('{"pattern": "\\ud800"}', ".pattern"),
        ({"patternProperties": {"(a+)+$": {}}}, ".patternProperties"),
        ({"unevaluatedProperties": False}, ".unevaluatedProperties"),
        ({"unevaluatedItems": False}, ".unevaluatedItems"),
        ({"$dynamicRef": "#a"}, '["$dynamicRef"]'),
    ],
)
def test_a_schema_that_can_not_be_held_is_refused_with_the_place(schema, place):
    assert refusal_of(schema).endswith(f" - at `$.blockedRequest.schema{place}`")


def test_a_type_that_is_none_is_refused_with_those_that_are():
    for refused in (refusal_of({"type": "person"}), refusal_of({"items": {"type": "person"}})):
        assert '"boolean", "integer", "null", "number", "object", "string"' in refused


def test_size_is_bounded():
    assert "16384 bytes" in refusal_of({"description": "x" * 17_000})
    assert "65536 bytes" in answered({}, "x" * 70_000)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every try to reach something, instead of a network."""
    tries: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        tries.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tries


def test_nothing_is_ever_fetched(no_network, monkeypatch):
    for schema in (
        {"$ref": "http://127.0.0.1:1/x"},
        {"$id": "http://127.0.0.1:1/x", "$ref": "y"},
        {"items": {"$ref": "file:///etc/passwd"}},
    ):
        assert refusal_of(schema)
    # And were one to slip through, the answer is refused, and nothing asked.
    monkeypatch.setattr(answer_schema, "_check_part", lambda *args, **kwargs: None)
    assert "$.data" in answered({"$ref": "http://127.0.0.1:1/unseen"}, 1)
    assert no_network == []


def _bomb() -> dict[str, Any]:
    parts: dict[str, Any] = {"0": {"type": "object"}}
    for number in range(1, 60):
        parts[str(number)] = {"allOf": [{"$ref": f"#/$defs/{number - 1}"}] * 2}
    return {"$defs": parts, "$ref": "#/$defs/59"}


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ({"$ref": "#"}, 1),
        ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, 1),
        (_bomb(), {}),
        ({"allOf": [{"type": "string"}] * 200}, [1] * 20_000),
        ({"allOf": [{"items": {}}] * 200}, [1] * 20_000),
        ({"allOf": [{"type": "string"}] * 200}, [["a" * 60_000]]),
        ({"allOf": [{"pattern": f"(a?){{300}}b{n}"} for n in range(200)]}, "a" * 60_000),
        ({"allOf": [{"enum": [[n] * 40]} for n in range(30)]}, [0] * 20_000),
    ],
    ids=["loop", "two-loops", "bomb", "types", "items", "repr", "patterns", "enums"],
)
def test_a_schema_that_would_take_long_is_given_up(schema, data):
    began = time.perf_counter()
    assert answered(schema, data) == (
        "The schema takes too long to be held against this answer - at `$.data`"
    )
    assert time.perf_counter() - began < LONGEST_S


def test_a_pattern_that_is_catastrophic_elsewhere_takes_no_time():
    began = time.perf_counter()
    assert answered({"pattern": "^(a+)+$"}, "a" * 60_000 + "b")
    assert not answered({"pattern": "^(a|aa)+$"}, "a" * 60_000)
    assert time.perf_counter() - began < LONGEST_S


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("part", ["{}", "true", '{"not":{"not":{}}}', '{"type":["string"]}'])
def test_a_schema_of_very_many_parts_is_given_up_in_time(dialect, part):
    parts = ",".join([part] * ((16_000 - len(dialect)) // (len(part) + 1)))
    began = time.perf_counter()
    try:
        check_request(asking(f'{{"$schema":"{dialect}","allOf":[{parts}]}}'), "$.blockedRequest")
    except BadRequest as refused:
        said = str(refused)
    else:
        said = "too many parts"  # or not too many: what counts is the time
    assert "too many parts" in said
    assert time.perf_counter() - began < LONGEST_S


def test_a_large_form_and_its_answer_are_taken():
    fields = {f"field {number}": {"type": "string", "maxLength": 99} for number in range(250)}
    form = {"properties": fields, "required": list(fields)[:100], "additionalProperties": False}
    assert not answered(form, dict.fromkeys(fields, "x" * 99))
    rows = {"type": "array", "items": {"properties": {"n": {"type": "integer"}}, "required": ["n"]}}
    assert not answered(rows, [{"n": number} for number in range(1000)])
    assert answered(rows, [{"n": 1}] * 500 + [{"n": "x"}]).endswith("`$.data[500].n`")
