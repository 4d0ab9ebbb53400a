"""What a caller may ask of a server, and what the server remembers of it."""

from __future__ import annotations

import math
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.access import OPEN, Caller
from taskcast_trio.core.errors import RateLimited, StoreUnavailable
from taskcast_trio.server.auth.limits import (
    SHARES,
    RateLimiter,
    SharedRateLimiter,
    Slot,
    StreamSlots,
    count,
    key_of,
)
from taskcast_trio.server.plain import error_answer
from taskcast_trio.storage.protocols import Peers


class Clock:
    """Stands until it is moved. An hour is a time at which rounding errors would show."""

    def __init__(self, now_s: float = 3600.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def passes(limiter: RateLimiter, key: str = "k") -> bool:
    try:
        limiter.check(key)
    except RateLimited:
        return False
    return True


# Who is who


@pytest.mark.parametrize(
    ("caller", "address", "key"),
    [
        (OPEN, "192.0.2.7", "addr:192.0.2.7"),
        (OPEN, None, "addr:"),
        (OPEN, "2001:db8:1:2:3:4:5:6", "addr:2001:db8:1:2::/64"),
        (OPEN, "fe80::1%eth0", "addr:fe80::/64"),
        (OPEN, "::ffff:192.0.2.7", "addr:192.0.2.7"),
        (OPEN, "no:address", "addr:no:address"),
        (Caller(sub="alice"), "192.0.2.7", "sub:alice"),
        (Caller(sub=""), "192.0.2.7", "addr:192.0.2.7"),
        (Caller(service="builder", sub="alice"), "192.0.2.7", "service:builder"),
    ],
)
def test_callers_are_told_apart_by_service_subject_or_address(
    caller: Caller, address: str | None, key: str
) -> None:
    assert key_of(caller, address) == key


def test_an_ipv6_customer_is_one_caller_whatever_address_it_takes() -> None:
    hosts = [f"2001:db8:1:2:{high:x}000::{low}" for high in range(16) for low in range(9)]
    assert len({key_of(OPEN, host) for host in hosts}) == 1
    assert len({key_of(OPEN, f"2001:db8:1:{net:x}::1") for net in range(100)}) == 100


# Requests


@given(
    per_second=st.integers(1, 50),
    start_s=st.floats(0, 1e6),
    steps=st.lists(
        st.tuples(st.one_of(st.just(0.0), st.floats(0, 0.2), st.floats(0, 3)), st.booleans()),
        max_size=300,
    ),
)
def test_never_more_than_the_rate_and_a_burst_pass_between_any_two_moments(
    per_second: int, start_s: float, steps: list[tuple[float, bool]]
) -> None:
    clock = Clock(start_s)
    limiter = RateLimiter(per_second, clock_s=clock)
    passed: dict[str, list[float]] = {"a": [], "b": []}
    for pause_s, other in steps:
        clock.now_s += pause_s
        key = "b" if other else "a"
        if passes(limiter, key):
            passed[key].append(clock.now_s)
    for times in passed.values():
        for first, begin in enumerate(times):
            for last in range(first, len(times)):
                allowed = per_second + per_second * (times[last] - begin)
                assert last - first + 1 <= allowed + 1e-6


@given(
    per_second=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 3), max_size=100),
)
def test_whoever_keeps_to_the_rate_is_never_refused(per_second: int, pauses: list[float]) -> None:
    clock = Clock()
    limiter = RateLimiter(per_second, clock_s=clock)
    for pause_s in pauses:
        clock.now_s += 1 / per_second + pause_s + 1e-9
        assert passes(limiter)


def test_a_burst_is_one_seconds_worth_and_comes_back_within_a_second() -> None:
    clock = Clock()
    limiter = RateLimiter(1000, clock_s=clock)
    assert sum(passes(limiter) for _ in range(3000)) == 1000
    clock.now_s += 0.25
    assert sum(passes(limiter) for _ in range(3000)) in (250, 251)
    clock.now_s += 10
    assert sum(passes(limiter) for _ in range(3000)) == 1000


def test_a_refused_request_costs_nothing() -> None:
    """Who is over the limit and goes on asking still gets what the rate gives."""
    clock = Clock()
    limiter = RateLimiter(10, clock_s=clock)
    passed = 0
    for _ in range(10_000):
        clock.now_s += 0.001
        passed += passes(limiter)
    assert 109 <= passed <= 111


def test_one_caller_does_not_use_up_what_another_has() -> None:
    limiter = RateLimiter(5, clock_s=Clock())
    assert [passes(limiter, "greedy") for _ in range(10)].count(True) == 5
    assert [passes(limiter, "modest") for _ in range(5)].count(True) == 5


def test_a_refusal_says_the_limit_and_when_to_come_back() -> None:
    limiter = RateLimiter(1, clock_s=Clock())
    limiter.check("k")
    with pytest.raises(RateLimited, match="1 requests per second") as refused:
        limiter.check("k")
    answer = error_answer(refused.value)
    assert answer.status == 429
    assert (b"retry-after", b"1") in answer.headers


def test_buckets_that_are_full_again_are_forgotten() -> None:
    clock = Clock()
    limiter = RateLimiter(5, clock_s=clock)
    most = 0
    for number in range(5000):
        clock.now_s += 0.01
        limiter.check(f"caller {number}")
        most = max(most, limiter.keys)
    assert most <= 2 / 0.01 + 2
    clock.now_s += 60
    limiter.check("the last one")
    assert limiter.keys == 1


@given(st.lists(st.floats(0, 1.1), min_size=1, max_size=50))
def test_forgetting_gives_nobody_more_than_the_limit(pauses: list[float]) -> None:
    """However the sweeps fall, between two requests of one caller."""
    clock = Clock()
    limiter, reference = RateLimiter(3, clock_s=clock), -math.inf
    for number, pause_s in enumerate(pauses):
        clock.now_s += pause_s
        limiter.check(f"somebody else, {number}")
        for _ in range(4):
            now = clock.now_s * 3
            expected = max(reference, now) + 1 - now <= 3
            if expected:
                reference = max(reference, now) + 1
            assert passes(limiter) == expected


@pytest.mark.parametrize(
    ("retry_after_s", "header"), [(None, b"1"), (-3, b"1"), (0, b"1"), (1, b"1"), (7, b"7")]
)
def test_retry_after_is_in_whole_seconds_and_at_least_one(
    retry_after_s: int | None, header: bytes
) -> None:
    error = RateLimited("slow down", retry_after_s=retry_after_s)
    assert (b"retry-after", header) in error_answer(error).headers


# Requests, over all processes of a store


class Bank:
    """What peers grant: so much in each second, from the first who asks in it."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.away = False
        self._windows: dict[str, tuple[float, int]] = {}

    async def take_tokens(self, key: str, *, want: int, per_second: int) -> int:
        self.asked.append(want)
        await trio.sleep(0.001)
        if self.away:
            raise StoreUnavailable("away")
        began, used = self._windows.get(key, (-math.inf, 0))
        if trio.current_time() >= began + 1:
            began, used = trio.current_time(), 0
        granted = max(min(want, per_second - used), 0)
        self._windows[key] = (began, used + granted)
        return granted


def shared(per_second: int, bank: Bank, name: str = "requests") -> SharedRateLimiter:
    return SharedRateLimiter(name, per_second, cast(Peers, bank))


async def goes(limiter: SharedRateLimiter, key: str = "k") -> bool:
    try:
        await count(limiter, key)
    except RateLimited:
        return False
    return True


async def how_many_pass(limiters: list[SharedRateLimiter], seconds: float, rate: int) -> int:
    """Each is asked ``rate`` times a second, all at once."""
    passed = 0

    async def ask(limiter: SharedRateLimiter) -> None:
        nonlocal passed
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            if await goes(limiter):
                passed += 1
            await trio.sleep(1 / rate)

    async with trio.open_nursery() as nursery:
        for limiter in limiters:
            nursery.start_soon(ask, limiter)
    return passed


async def test_processes_together_let_through_what_a_second_allows(autojump_clock) -> None:
    bank = Bank()
    limiters = [shared(100, bank) for _ in range(3)]
    passed = await how_many_pass(limiters, 0.9, rate=200)
    assert passed == 100
    await trio.sleep(2)
    seconds = 10
    passed = await how_many_pass(limiters, seconds, rate=200)
    share = 100 // SHARES
    assert 100 * (seconds - 1) <= passed <= (100 + 3 * share) * (seconds + 1)


async def test_one_process_can_have_all_of_a_second(autojump_clock) -> None:
    bank = Bank()
    one, _ = shared(40, bank), shared(40, bank)
    assert [await goes(one) for _ in range(60)].count(True) == 40


async def test_who_asks_at_once_takes_no_more_than_it_needs(autojump_clock) -> None:
    """What is left can be had in another process."""
    bank = Bank()
    one, other = shared(100, bank), shared(100, bank)
    passed = 0

    async def ask(limiter: SharedRateLimiter) -> None:
        nonlocal passed
        if await goes(limiter):
            passed += 1

    for limiter in (one, other):
        async with trio.open_nursery() as nursery:
            for _ in range(45):
                nursery.start_soon(ask, limiter)
    assert passed == 90


async def test_who_waits_for_another_and_is_cancelled_leaves_the_others(autojump_clock) -> None:
    limiter = shared(100, Bank())
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(goes, limiter)
            scope.cancel()
            await goes(limiter)
        with trio.move_on_after(0.0005):
            await goes(limiter)
    assert await goes(limiter)


async def test_a_flood_that_is_refused_does_not_reach_the_store(autojump_clock) -> None:
    bank = Bank()
    limiter = shared(10, bank)
    assert await how_many_pass([limiter] * 50, 0.9, rate=100) == 10
    assert len(bank.asked) < 10 + SHARES


async def test_few_requests_ask_the_store(autojump_clock) -> None:
    bank = Bank()
    limiter = shared(1000, bank)
    for _ in range(500):
        assert await goes(limiter)
    assert bank.asked == [50] * 10


async def test_what_was_granted_is_no_good_a_second_later(autojump_clock) -> None:
    limiter = shared(100, Bank())
    assert await goes(limiter)
    assert limiter.check("k")
    await trio.sleep(1.01)
    assert not limiter.check("k")


async def test_limits_of_two_names_and_of_two_callers_are_not_one(autojump_clock) -> None:
    bank = Bank()
    requests, tickets = shared(2, bank), shared(2, bank, "tickets")
    assert [await goes(requests, "a") for _ in range(3)] == [True, True, False]
    assert [await goes(requests, "b") for _ in range(3)] == [True, True, False]
    assert [await goes(tickets, "a") for _ in range(3)] == [True, True, False]


async def test_while_the_store_is_away_requests_pass_to_be_told_so(autojump_clock) -> None:
    bank = Bank()
    limiter = shared(10, bank)
    bank.away = True
    assert [await goes(limiter) for _ in range(30)].count(True) == 30
    bank.away = False
    await trio.sleep(2)
    assert [await goes(limiter) for _ in range(30)].count(True) == 10


async def test_callers_that_went_away_are_forgotten(autojump_clock) -> None:
    limiter = shared(100, Bank())
    for number in range(50):
        assert await goes(limiter, f"caller {number}")
        await trio.sleep(0.1)
    assert len(limiter._held) < 25


# Streams


@given(
    total=st.integers(1, 8),
    per_caller=st.integers(1, 8),
    steps=st.lists(st.one_of(st.sampled_from("abc"), st.integers(0, 20)), max_size=80),
)
def test_streams_stay_within_both_limits_and_their_counts_return_to_zero(
    total: int, per_caller: int, steps: list[str | int]
) -> None:
    """Against a list of what is open; a number closes the slot that was given out as that one."""
    slots = StreamSlots(total, per_caller)
    given_out: list[tuple[str, Slot]] = []
    closed: set[int] = set()

    def is_open() -> list[str]:
        return [key for number, (key, _) in enumerate(given_out) if number not in closed]

    for step in steps:
        if isinstance(step, int):
            if step < len(given_out):
                given_out[step][1].close()
                closed.add(step)
        elif len(is_open()) < total and is_open().count(step) < per_caller:
            given_out.append((step, slots.open(step)))
        else:
            with pytest.raises(RateLimited):
                slots.open(step)
        assert slots.open_streams == len(is_open())
        assert slots.keys == len(set(is_open()))

    for _, slot in given_out:
        slot.close()
        slot.close()
    assert (slots.open_streams, slots.keys) == (0, 0)


def test_a_refused_stream_is_told_which_limit_it_met() -> None:
    slots = StreamSlots(total=3, per_caller=2)
    first = slots.open("a")
    slots.open("a")
    with pytest.raises(RateLimited, match="2 open streams of one caller") as refused:
        slots.open("a")
    assert refused.value.retry_after_s is not None
    slots.open("b")
    with pytest.raises(RateLimited, match="3 open streams on this server"):
        slots.open("c")
    first.close()
    slots.open("c")
