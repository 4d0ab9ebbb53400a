"""Requests that have the right shape and are wrong all the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from taskcast_trio.core import validate
from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.model import CreateTask, Draft, StorageRelease

CONTROL = ["\x00", "\x01", "\t", "\n", "\r", "\x1f", "\x7f", "\x80", "\x85", "\x9f"]


@pytest.mark.parametrize(
    "text", ["a", "a/b", "..", "%2F", " ", "é😀", '"\\', "?#&=", "\u2028", "x" * 1024, "😀" * 1024]
)
def test_an_id_may_hold_any_printable_character(text: str) -> None:
    validate.task_id(text)


@pytest.mark.parametrize("char", CONTROL)
def test_a_control_character_in_an_id_is_named_with_its_place(char: str) -> None:
    for text in (char, f"a{char}", f"{char}b", f"a{char}b"):
        with pytest.raises(BadRequest, match=rf"U\+{ord(char):04X} - at `\$\.id`"):
            validate.task_id(text)


@pytest.mark.parametrize("text", ["", "x" * 1025])
def test_an_empty_or_too_long_id_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(BadRequest, match=r"at `\$\.archive\.task\.id`"):
        validate.task_id(text, "archive.task.id")


@pytest.mark.parametrize("text", ["a", "a b", "x" * 255, "~!{}", "8e03978e-40d5-43dd-bc93"])
def test_an_idempotency_key_is_printable_ascii(text: str) -> None:
    assert validate.idempotency_key(text) == text


@pytest.mark.parametrize("text", ["", "x" * 256, "é", "a\x00", "a\tb", "\x7f", "😀"])
def test_another_idempotency_key_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Idempotency-Key"):
        validate.idempotency_key(text)


def test_the_fields_of_a_new_task_are_those_of_the_request_with_whole_numbers() -> None:
    request = CreateTask(id="a", params=Raw(b"{}"), ttl=100.0, cost=3.0, tags=["x", "x"])
    fields = validate.new_task(request)
    assert set(fields) == set(CreateTask.__struct_fields__)
    given_fields = {name: value for name, value in fields.items() if value is not UNSET}
    assert given_fields == {
        "id": "a",
        "params": Raw(b"{}"),
        "ttl": 100,
        "cost": 3,
        "tags": ["x", "x"],
    }
    assert isinstance(fields["ttl"], int)
    assert isinstance(fields["cost"], int)


@pytest.mark.parametrize(
    ("request_", "place"),
    [
        (CreateTask(id=""), "id"),
        (CreateTask(id="\n"), "id"),
        (CreateTask(params=Raw(b"[]")), "params"),
        (CreateTask(metadata=Raw(b"null")), "metadata"),
        (CreateTask(auth_config=Raw(b'"x"')), "authConfig"),
        (CreateTask(ttl=0), "ttl"),
        (CreateTask(ttl=-0.0), "ttl"),
        (CreateTask(ttl=-1), "ttl"),
        (CreateTask(ttl=1.5), "ttl"),
        (CreateTask(ttl=5e-324), "ttl"),
        (CreateTask(cost=0.999), "cost"),
    ],
)
def test_a_wrong_field_of_a_new_task_is_named(request_: CreateTask, place: str) -> None:
    with pytest.raises(BadRequest, match=rf"at `\$\.{place}`"):
        validate.new_task(request_)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_whole_numbers_above_zero_and_only_those_are_taken(number: float) -> None:
    if 0 < number < 2**53 and number.is_integer():
        assert validate.new_task(CreateTask(ttl=number))["ttl"] == number
    else:
        with pytest.raises(BadRequest):
            validate.new_task(CreateTask(ttl=number))


@pytest.mark.parametrize(
    "event",
    [
        Draft(type="", level="info"),
        Draft(type="llm.delta", level="info", series_id="", series_mode="latest"),
        Draft(type="é \u2028", level="info", series_id="a/b é"),
        Draft(type="taskcast:status", level="debug"),
        Draft(type="x", level="info", series_acc_field="a\nb"),
    ],
)
def test_an_event_may_have_any_printable_type_and_series(event: Draft) -> None:
    validate.draft(event, 0)


@pytest.mark.parametrize("char", CONTROL)
def test_a_control_character_in_an_event_is_named_with_its_place(char: str) -> None:
    place = rf"U\+{ord(char):04X} - at `\$\[3\]\."
    for text in (char, f"a{char}", f"é{char}b"):
        with pytest.raises(BadRequest, match=place + "type`"):
            validate.draft(Draft(type=text, level="info"), 3)
        with pytest.raises(BadRequest, match=place + "seriesId`"):
            validate.draft(Draft(type="x", level="info", series_id=text), 3)


@pytest.mark.parametrize(("index", "since"), [(-1, 0), (0, 0), (5, 1.7e12), (-1.0, 1e300)])
def test_a_storage_release_wants_whole_numbers(index: float, since: float) -> None:
    validate.storage_release(StorageRelease(expected_last_event_index=index, inactive_since=since))


@pytest.mark.parametrize(
    ("index", "since", "place"),
    [
        (-2, 0, "expectedLastEventIndex"),
        (0.5, 0, "expectedLastEventIndex"),
        (-0.5, 0, "expectedLastEventIndex"),
        (0, -1, "inactiveSince"),
        (0, 0.5, "inactiveSince"),
    ],
)
def test_a_wrong_number_of_a_storage_release_is_named(
    index: float, since: float, place: str
) -> None:
    request = StorageRelease(expected_last_event_index=index, inactive_since=since)
    with pytest.raises(BadRequest, match=rf"at `\$\.{place}`"):
        validate.storage_release(request)
