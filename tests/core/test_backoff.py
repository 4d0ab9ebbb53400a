"""Retry schedules and Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.backoff import RETRY_AFTER_LIMIT_MS, Backoff, retry_after_ms

# The example date of RFC 9110, 5.6.7.
DATE_S = 784111777
DATES = [
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sunday, 06-Nov-94 08:49:37 GMT",
    "Sun Nov  6 08:49:37 1994",
]


def backoff(**fields: Any) -> Backoff:
    return msgspec.convert(fields, Backoff)


def test_the_defaults_are_those_of_webhooks() -> None:
    assert backoff() == Backoff("exponential", 3, 1000, 30_000, 5000)


def test_the_wire_names_are_those_of_the_retry_object() -> None:
    text = b'{"backoff":"linear","retries":0,"initialDelayMs":5,"maxDelayMs":7,"timeoutMs":9}'
    assert msgspec.json.encode(msgspec.json.decode(text, type=Backoff)) == text


@pytest.mark.parametrize(
    "fields",
    [
        {"backoff": "random"},
        {"retries": -1},
        {"initialDelayMs": -1},
        {"maxDelayMs": -1},
        {"timeoutMs": 0},
        {"retries": None},
        {"retries": "3"},
    ],
)
def test_a_senseless_schedule_is_refused_with_its_place(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{next(iter(fields))}"):
        backoff(**fields)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("fixed", [1000, 1000, 1000, 1000, 1000, 1000, 1000]),
        ("linear", [1000, 2000, 3000, 4000, 5000, 6000, 7000]),
        ("exponential", [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]),
    ],
)
def test_waits_follow_the_schedule_up_to_the_maximum(kind: str, expected: list[int]) -> None:
    schedule = backoff(backoff=kind)
    assert [schedule.delay_ms(n, jitter=0) for n in range(1, 8)] == expected


def test_an_initial_wait_above_the_maximum_is_cut_too() -> None:
    assert backoff(initialDelayMs=9, maxDelayMs=4).delay_ms(1, jitter=0) == 4


def test_jitter_takes_up_to_a_fifth_off() -> None:
    schedule = Backoff("fixed")
    assert schedule.delay_ms(1, jitter=0.5) == 900
    assert schedule.delay_ms(1, jitter=0.9999) == 801


@pytest.mark.parametrize(("attempt", "jitter"), [(0, 0.0), (-1, 0.0), (1, 1.0), (1, -0.1)])
def test_a_wait_for_no_retry_or_a_draw_out_of_range_is_refused(attempt: int, jitter: float) -> None:
    with pytest.raises(ValueError, match="attempt"):
        Backoff().delay_ms(attempt, jitter=jitter)


def test_retries_count_the_tries_after_the_first() -> None:
    assert [Backoff(retries=2).may_retry(failed) for failed in (1, 2, 3)] == [True, True, False]
    assert not Backoff(retries=0).may_retry(1)


schedules = st.builds(
    Backoff,
    kind=st.sampled_from(["fixed", "linear", "exponential"]),
    initial_delay_ms=st.integers(0, 2**53 - 1),
    max_delay_ms=st.integers(0, 2**53 - 1),
)
attempts = st.integers(1, 10**9)
jitters = st.floats(0, 1, exclude_max=True)


@given(schedules, attempts, attempts)
def test_without_jitter_waits_never_shrink(schedule: Backoff, one: int, other: int) -> None:
    """Law: monotone in the attempt, and never above the maximum."""
    first, second = sorted((one, other))
    earlier, later = schedule.delay_ms(first, jitter=0), schedule.delay_ms(second, jitter=0)
    assert 0 <= earlier <= later <= schedule.max_delay_ms


@given(schedules, attempts, jitters)
def test_jitter_stays_within_a_fifth_below_the_schedule(
    schedule: Backoff, attempt: int, jitter: float
) -> None:
    """Law: never above the schedule (so never above the maximum), never below 80 % of it."""
    planned = schedule.delay_ms(attempt, jitter=0)
    waited = schedule.delay_ms(attempt, jitter=jitter)
    assert planned * 4 <= waited * 5 + 5
    assert waited <= planned <= schedule.max_delay_ms


@pytest.mark.parametrize("date", DATES)
def test_all_three_forms_of_an_http_date_are_read(date: str) -> None:
    assert retry_after_ms(date, DATE_S - 90) == 90_000
    assert retry_after_ms(date, DATE_S - 1.5) == 1500
    assert retry_after_ms(date, DATE_S) == 0
    assert retry_after_ms(date, DATE_S + 90) == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("120", 120_000),
        (" 120\t", 120_000),
        ("007", 7000),
        ("86400", RETRY_AFTER_LIMIT_MS),
        ("86401", RETRY_AFTER_LIMIT_MS),
        ("9" * 5000, RETRY_AFTER_LIMIT_MS),
        ("0" * 5000 + "1", 1000),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_LIMIT_MS),
        ("Sun, 06 Nov 1994 08:49:60 GMT", 22_000),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("١٢", None),
        ("1, 2", None),
        ("soon", None),
        ("1994-11-06T08:49:37Z", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 06 Nov 1994 08:49:37 +0000", None),
        ("sun, 06 nov 1994 08:49:37 gmt", None),
        ("Sun, 6 Nov 1994 08:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 24:00:00 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
    ],
)
def test_seconds_and_dates_are_read_strictly_and_never_beyond_the_limit(
    value: str, expected: int | None
) -> None:
    assert retry_after_ms(value, DATE_S) == expected


def test_the_limit_is_the_callers() -> None:
    assert retry_after_ms("120", 0, limit_ms=5000) == 5000
    assert retry_after_ms(DATES[0], DATE_S - 9, limit_ms=5000) == 5000


@pytest.mark.parametrize(
    ("now", "date", "expected"),
    [
        (datetime(2099, 12, 31, 23, 59, 50, tzinfo=UTC), "Friday, 01-Jan-00 00:00:00 GMT", 10_000),
        (datetime(2030, 1, 1, tzinfo=UTC), "Wednesday, 01-Jan-81 00:00:00 GMT", 0),
        (datetime(2030, 1, 1, tzinfo=UTC), "Tuesday, 01-Jan-80 00:00:00 GMT", 1000),
    ],
)
def test_a_year_of_two_digits_is_never_more_than_fifty_years_ahead(
    now: datetime, date: str, expected: int
) -> None:
    """RFC 9110, 5.6.7."""
    assert retry_after_ms(date, now.timestamp(), limit_ms=max(expected, 1000)) == expected


@given(now_s=st.integers(0, 4_000_000_000), wait_s=st.integers(0, 86_400))
def test_a_date_means_the_same_as_the_seconds_until_then(now_s: int, wait_s: int) -> None:
    """Law: both forms of the header ask for one wait."""
    date = format_datetime(datetime.fromtimestamp(now_s + wait_s, UTC), usegmt=True)
    assert retry_after_ms(date, now_s) == retry_after_ms(str(wait_s), now_s) == wait_s * 1000


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"))
def test_no_text_crashes_the_reader_or_exceeds_the_limit(value: str) -> None:
    wait = retry_after_ms(value, DATE_S)
    assert wait is None or 0 <= wait <= RETRY_AFTER_LIMIT_MS
