"""Webhooks as values: which definitions can be used and how, and what each delivery says."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from standardwebhooks import Webhook as Standard
from standardwebhooks import WebhookVerificationError

from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import Event
from taskcast_trio.core.signature import verify_taskcast
from taskcast_trio.core.webhook import (
    MAX_EVENT_HEADER,
    RETRY_AFTER_LIMIT_MS,
    Unusable,
    Webhook,
    body_of,
    delivery_id,
    event_header,
    headers_for,
    heeds_retry_after,
    next_try_ms,
    outcome_of,
    parse,
    read,
)

URL = "https://hooks.example/in?key=SeCrEt"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_YSBrZXkgb2YgdGhlIHRpbWUgYmVmb3Jl"
BODY = b'{"id":"e"}'


def raw(value: Any) -> Raw:
    return Raw(value if isinstance(value, bytes) else json.dumps(value).encode())


def parsed(**fields: Any) -> Webhook:
    return parse(raw({"url": URL, **fields}), Backoff())


def refusal(value: Any) -> str:
    found = read(raw(value), Backoff(), place="webhooks[0]")
    assert isinstance(found, Unusable)
    with pytest.raises(BadRequest) as caught:
        parse(raw(value), Backoff(), place="webhooks[1]")
    assert str(caught.value) == found.reason.replace("webhooks[0]", "webhooks[1]")
    return found.reason


# Definitions


def test_a_url_alone_has_the_defaults_of_the_contract() -> None:
    assert parsed() == Webhook(url=URL, secrets=(), filter=EventFilter(), wrap=False)
    assert parsed().retry == Backoff(
        kind="exponential",
        retries=3,
        initial_delay_ms=1000,
        max_delay_ms=30_000,
        timeout_ms=5000,
    )


def test_every_member_of_a_definition_counts_and_others_are_passed_over() -> None:
    assert parsed(
        secret=["new", SECRET],
        filter={"types": ["llm.*"], "levels": ["error"], "includeStatus": False, "since": {}},
        wrap=True,
        retry={
            "retries": 0,
            "backoff": "linear",
            "initialDelayMs": 5e2,
            "maxDelayMs": 0,
            "timeoutMs": 60_000,
        },
        colour="red",
    ) == Webhook(
        url=URL,
        secrets=("new", SECRET),
        filter=EventFilter(("llm.*",), ("error",), False),
        wrap=True,
        retry=Backoff("linear", 0, 500, 0, 60_000),
    )


def test_what_a_retry_does_not_say_is_as_configured() -> None:
    default = Backoff("fixed", 9, 1, 2, 120_000)
    assert parse(raw({"url": URL}), default).retry == default
    changed = parse(raw({"url": URL, "retry": {"retries": 1}}), default).retry
    assert changed == Backoff("fixed", 1, 1, 2, 120_000)


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "HTTPS://Hooks.Example:8443/x?y#z",
        "http://127.0.0.1:9/",
        "http://[2001:db8::1]:80/",
        "http://bücher.example/ü",
        "http://h_1.example./",
        "http://h:/",
        "http://h/{a}|'b'?<c>",
    ],
)
def test_a_url_of_http_is_usable(url: str) -> None:
    assert parse(raw({"url": url}), Backoff()).url == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "of http or https"),
        ("hooks.example/x", "of http or https"),
        ("//hooks.example/x", "of http or https"),
        ("ftp://hooks.example/", "of http or https"),
        ("file:///etc/passwd", "of http or https"),
        ("unix:///run/x.sock", "of http or https"),
        ("http+unix://%2Frun%2Fx/", "of http or https"),
        ("gopher://127.0.0.1:6379/_x", "of http or https"),
        ("javascript:alert(1)", "of http or https"),
        ("http:hooks.example", "of http or https"),
        ("http:/hooks.example", "of http or https"),
        ("http://", "with a host"),
        ("http:///x", "with a host"),
        ("http://:80/", "with a host"),
        ("http://?x", "with a host"),
        ("http://user@hooks.example/", "without user and password"),
        ("http://hooks.example@127.0.0.1/", "without user and password"),
        ("http://u:p@hooks.example/", "without user and password"),
        ("http://@hooks.example/", "without user and password"),
        ("http://hooks.example:0/", "port from 1 to 65535"),
        ("http://hooks.example:65536/", "port from 1 to 65535"),
        ("http://hooks.example:-1/", "valid host and port"),
        ("http://hooks.example:8a/", "valid host and port"),
        ("http://hooks.example:80:80/", "valid host and port"),
        ("http://hooks.example:٨/", "valid host and port"),
        ("http://[::1/", "valid host and port"),
        ("http://[::1]x/", "valid host and port"),
        ("http://[]/", "valid host"),
        ("http://[127.0.0.1]/", "valid host"),
        ("http://[fe80::1%25eth0]/", "valid host"),
        ("http://[fe80::1%eth0]/", "valid host"),
        ("http://%6c%6f/", "valid host"),
        ("http://a,b/", "valid host"),
        ("http://hooks.example\\@127.0.0.1/", "without blanks"),
        ("http://127.0.0.1\\.hooks.example/", "without blanks"),
        (" http://hooks.example/", "without blanks"),
        ("http://hooks.example/a b", "without blanks"),
        ("http://hooks.example/\r\nX: y", "without blanks"),
        ("http://hooks.example/\x00", "without blanks"),
        ("http://hooks.example\t/", "without blanks"),
        ("http://hooks.example/" + "x" * 8192, "at most 8192 characters"),
    ],
)
def test_any_other_url_is_refused_and_not_shown(url: str, reason: str) -> None:
    found = refusal({"url": url})
    assert reason in found
    assert found.endswith(" - at `$.webhooks[0].url`")
    assert "hooks.example" not in found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "Object missing required field `url` - at `$.webhooks[0]`"),
        ("x", "Expected `object`, got `str` - at `$.webhooks[0]`"),
        (None, "Expected `object`, got `null` - at `$.webhooks[0]`"),
        ([], "Expected `object`, got `array` - at `$.webhooks[0]`"),
        ({"url": 1}, "Expected `str`, got `int` - at `$.webhooks[0].url`"),
        (b'{"url":"http://a/\\ud800"}', "The webhook can't be read - at `$.webhooks[0]`"),
        ({"url": URL, "wrap": "no"}, "Expected `bool`, got `str` - at `$.webhooks[0].wrap`"),
        ({"url": URL, "filter": 1}, "Expected `object`, got `int` - at `$.webhooks[0].filter`"),
        (
            {"url": URL, "filter": {"types": "a"}},
            "Expected `array | null`, got `str` - at `$.webhooks[0].filter.types`",
        ),
        ({"url": URL, "retry": None}, "Expected `object`, got `null` - at `$.webhooks[0].retry`"),
    ],
)
def test_a_definition_of_another_shape_is_refused_with_its_place(value: Any, reason: str) -> None:
    assert refusal(value) == reason


@pytest.mark.parametrize(
    ("retry", "reason"),
    [
        (
            {"retries": -1},
            "Expected a whole number from 0 to 100 - at `$.webhooks[0].retry.retries`",
        ),
        ({"retries": 1.5}, "from 0 to 100"),
        ({"retries": 101}, "from 0 to 100"),
        ({"retries": "3"}, "Expected `float`, got `str` - at `$.webhooks[0].retry.retries`"),
        ({"retries": True}, "Expected `float`, got `bool`"),
        ({"initialDelayMs": -1}, "from 0 to 86400000 - at `$.webhooks[0].retry.initialDelayMs`"),
        ({"maxDelayMs": 86_400_001}, "from 0 to 86400000 - at `$.webhooks[0].retry.maxDelayMs`"),
        ({"timeoutMs": 0}, "from 1 to 60000 - at `$.webhooks[0].retry.timeoutMs`"),
        ({"timeoutMs": 60_001}, "from 1 to 60000"),
        ({"timeoutMs": 1e308}, "from 1 to 60000"),
        ({"backoff": "none"}, "Expected fixed, linear or exponential"),
        ({"backoff": 1}, "Expected `str`, got `int`"),
    ],
)
def test_a_schedule_that_nobody_could_keep_is_refused(retry: Any, reason: str) -> None:
    assert reason in refusal({"url": URL, "retry": retry})


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("", "A webhook secret must not be empty"),
        ([], "Expected 1 to 4 secrets"),
        (["a"] * 5, "Expected 1 to 4 secrets"),
        (["a", ""], "A webhook secret must not be empty"),
        ("whsec_SeCrEt!", "A webhook secret behind whsec_ must be base64"),
        (None, "Expected `str | array`, got `null`"),
        (7, "Expected `str | array`, got `int`"),
    ],
)
def test_a_secret_that_can_not_sign_is_refused_and_not_shown(secret: Any, reason: str) -> None:
    found = refusal({"url": URL, "secret": secret})
    assert found == f"{reason} - at `$.webhooks[0].secret`"


def test_a_webhook_shows_its_host_alone() -> None:
    assert repr(parsed(secret=SECRET)) == "<Webhook to hooks.example>"
    assert parse(raw({"url": "http://HOOKS.example.:80/"}), Backoff()).host == "hooks.example"


# Deliveries


def test_a_receiver_with_the_standard_library_accepts_either_secret_during_a_rotation() -> None:
    now = int(time.time())
    headers = headers_for(
        [SECRET, OTHER], event_type="a", delivery="0f", timestamp_s=now, body=BODY
    )
    for secret in (SECRET, OTHER):
        assert Standard(secret).verify(BODY, headers) == {"id": "e"}
    with pytest.raises(WebhookVerificationError):
        Standard(SECRET).verify(BODY + b" ", headers)


def test_the_headers_of_a_try_are_these_and_no_more() -> None:
    headers = headers_for(
        ["s"], event_type="taskcast:status", delivery="0f", timestamp_s=1_700_000_000, body=BODY
    )
    signed = {name: headers.pop(name) for name in ("X-Taskcast-Signature", "webhook-signature")}
    assert headers == {
        "Content-Type": "application/json",
        "X-Taskcast-Event": "taskcast:status",
        "X-Taskcast-Timestamp": "1700000000",
        "X-Taskcast-Delivery": "0f",
        "webhook-id": "0f",
        "webhook-timestamp": "1700000000",
    }
    verify_taskcast(["s"], BODY, signed["X-Taskcast-Signature"])
    assert signed["webhook-signature"].startswith("v1,")


def test_without_a_secret_nothing_claims_to_be_signed() -> None:
    headers = headers_for((), event_type="a", delivery="0f", timestamp_s=1, body=BODY)
    assert list(headers) == [
        "Content-Type",
        "X-Taskcast-Event",
        "X-Taskcast-Timestamp",
        "X-Taskcast-Delivery",
    ]


def test_a_delivery_has_one_id_and_no_other_delivery_has_it() -> None:
    ids = {
        delivery_id(task, number, event)
        for task in ("t", "t1", "", "é\r\n")
        for number in (0, 1, 11)
        for event in ("e", "1e", "a.b")
    }
    assert len(ids) == 36
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)
    # Receivers remember it: it may never change between versions.
    assert delivery_id("t", 0, "e") == "abde88b112d798142230db5f0e7366ea"


@pytest.mark.parametrize(
    ("type_", "header"),
    [
        ("llm.delta", "llm.delta"),
        ("taskcast:status", "taskcast:status"),
        ("100%", "100%25"),
        ("a b", "a%20b"),
        ("a\r\nX-Evil: 1", "a%0D%0AX-Evil:%201"),
        ("\x00", "%00"),
        ("ü", "%C3%BC"),
        ("日本", "%E6%97%A5%E6%9C%AC"),
        ("\x7f", "%7F"),
        ("", ""),
    ],
)
def test_an_event_type_is_percent_encoded_where_it_is_not_visible_ascii(
    type_: str, header: str
) -> None:
    assert event_header(type_) == header


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_a_type_as_header_can_be_decoded_and_never_leaves_visible_ascii(type_: str) -> None:
    """Law: percent-decoding gives the type back."""
    header = event_header(type_)
    assert unquote(header) == type_
    assert all(0x21 <= ord(char) <= 0x7E for char in header)


@pytest.mark.parametrize("char", ["x", "\n", "ü", "😀", "%"])
def test_a_long_type_is_cut_between_characters_and_says_so(char: str) -> None:
    header = event_header(char * 8192)
    assert MAX_EVENT_HEADER - 12 < len(header) <= MAX_EVENT_HEADER
    shown = unquote(header)
    assert shown == char * (len(shown) - 1) + "…"


def test_a_type_of_just_the_longest_length_is_whole() -> None:
    assert event_header("x" * MAX_EVENT_HEADER) == "x" * MAX_EVENT_HEADER


def test_the_body_is_the_stored_event_or_its_envelope() -> None:
    event = Event(
        id="e\r\n7",
        task_id="t",
        index=7,
        timestamp=5,
        type="a",
        level="info",
        data=Raw(b'{ "x":\n1}'),
    )
    entry = Entry(event, 7)
    assert body_of(parsed(), entry, 3) == (
        b'{"id":"e\\r\\n7","taskId":"t","index":7,"timestamp":5,"type":"a","level":"info",'
        b'"data":{ "x": 1}}'
    )
    assert body_of(parsed(wrap=True), entry, 3) == (
        b'{"filteredIndex":3,"rawIndex":7,"eventId":"e\\r\\n7","taskId":"t","type":"a",'
        b'"timestamp":5,"level":"info","data":{ "x": 1}}'
    )


# Answers and the schedule


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        (range(200, 300), "delivered"),
        ([410], "gone"),
        ([101, *range(300, 410), *range(411, 600), 999], "failed"),
    ],
)
def test_only_2xx_is_delivered_and_only_410_ends_it(statuses: list[int], outcome: str) -> None:
    assert {outcome_of(status) for status in statuses} == {outcome}


def test_only_429_and_503_may_say_when_to_come_back() -> None:
    assert [status for status in range(100, 600) if heeds_retry_after(status)] == [429, 503]


def test_the_tries_of_the_contract_come_after_1_2_and_4_seconds() -> None:
    waits = [next_try_ms(Backoff(), failed, jitter=0) for failed in range(1, 5)]
    assert waits == [1000, 2000, 4000, None]


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        (None, 1000),
        (0, 1000),
        (999, 1000),
        (7000, 7000),
        (RETRY_AFTER_LIMIT_MS + 1, RETRY_AFTER_LIMIT_MS),
    ],
)
def test_a_receiver_can_only_lengthen_the_wait_and_not_beyond_an_hour(
    asked: int | None, wait: int
) -> None:
    assert next_try_ms(Backoff(), 1, jitter=0, retry_after_ms=asked) == wait


def test_asking_for_a_wait_gives_no_try_more() -> None:
    assert next_try_ms(Backoff(retries=0), 1, jitter=0, retry_after_ms=5) is None
