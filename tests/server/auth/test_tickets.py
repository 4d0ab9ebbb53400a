"""A ticket opens streams, for a while, and reaches no more than the token that made it."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from hashlib import sha256

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.access import NOBODY, OPEN, Caller
from taskcast_trio.core.errors import BadRequest, Forbidden, TokenExpired, Unauthorized
from taskcast_trio.core.jsontext import parse
from taskcast_trio.server.auth.tickets import Ticket, TicketRequest, Tickets
from taskcast_trio.storage.memory import MemoryStore

NOW = 1_700_000_000_000
SUBSCRIBE = frozenset({"event:subscribe"})


class Clock:
    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def tickets(store: MemoryStore, clock: Clock) -> Tickets:
    return Tickets(store, clock_ms=clock)


def caller(**fields) -> Caller:
    return Caller(**{"scopes": SUBSCRIBE, "sub": "alice"} | fields)


def request(body: str) -> TicketRequest:
    """The request as it comes over the wire."""
    parsed: TicketRequest = parse(body.encode(), TicketRequest)
    return parsed


async def refused(tickets: Tickets, text: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        await tickets.redeem(text)
    assert caught.value.code == "unauthorized"
    return str(caught.value)


# What a ticket is


async def test_a_ticket_is_32_random_bytes_behind_a_prefix(tickets):
    ticket = await tickets.issue(caller(), TicketRequest())
    assert re.fullmatch(r"tkt_[A-Za-z0-9_-]{43}", ticket.ticket)
    assert len(urlsafe_b64decode(ticket.ticket.removeprefix("tkt_") + "=")) == 32
    other = await tickets.issue(caller(), TicketRequest())
    assert other.ticket != ticket.ticket


async def test_the_randomness_is_the_one_that_was_given(store, clock):
    tickets = Tickets(store, clock_ms=clock, random_bytes=lambda count: b"\xff" * count)
    assert (await tickets.issue(caller(), TicketRequest())).ticket == "tkt_" + "_" * 42 + "8"


async def test_the_answer_on_the_wire_is_the_ticket_and_its_expiry_in_seconds(tickets):
    ticket = await tickets.issue(caller(), TicketRequest())
    answer = msgspec.json.decode(msgspec.json.encode(ticket))
    assert answer == {"ticket": ticket.ticket, "expiresAt": NOW // 1000 + 60}


def test_a_ticket_is_not_shown_where_it_is_logged():
    assert "tkt_secret" not in repr(Ticket(ticket="tkt_secret", expires_at=1))


async def test_the_store_sees_only_the_hash_of_a_ticket(tickets, store):
    """A dump of the store opens nothing."""
    texts = [
        (await tickets.issue(caller(), TicketRequest(single_use=once))).ticket
        for once in (False, True)
    ]
    dump = repr(store._notes)
    for text in texts:
        assert sha256(text.encode()).hexdigest() in dump
        assert text.removeprefix("tkt_") not in dump


async def test_any_process_of_the_store_takes_the_ticket(tickets, store, clock):
    ticket = await tickets.issue(caller(), TicketRequest())
    elsewhere = Tickets(store, clock_ms=clock)
    assert (await elsewhere.redeem(ticket.ticket)).sub == "alice"


# For how long


@pytest.mark.parametrize(
    ("body", "life_ms", "expires_at"),
    [
        ("{}", 60_000, 60),
        ('{"ttlSeconds": 1}', 1000, 1),
        ('{"ttlSeconds": 300}', 300_000, 300),
        ('{"ttlSeconds": 3e2}', 300_000, 300),
        ('{"ttlSeconds": 1.5}', 1500, 2),
        ('{"ttlSeconds": 0.0001}', 1, 1),
    ],
)
async def test_a_ticket_opens_until_its_time_is_over(tickets, clock, body, life_ms, expires_at):
    ticket = await tickets.issue(caller(), request(body))
    assert ticket.expires_at == NOW // 1000 + expires_at
    clock.ms = NOW + life_ms - 1
    await tickets.redeem(ticket.ticket)
    clock.ms = NOW + life_ms
    await refused(tickets, ticket.ticket)


@pytest.mark.parametrize("ttl", ["0", "-1", "-0.0", "300.001", "301", "1e300"])
async def test_a_ttl_out_of_range_is_a_bad_request_that_names_it(tickets, store, ttl):
    with pytest.raises(BadRequest, match=r"`\$\.ttlSeconds`"):
        await tickets.issue(caller(), request(f'{{"ttlSeconds": {ttl}}}'))
    assert not store._notes


@pytest.mark.parametrize("ttl", [float("nan"), float("inf")])
async def test_a_ttl_that_is_no_number_of_json_is_refused_too(tickets, ttl):
    with pytest.raises(BadRequest):
        await tickets.issue(caller(), TicketRequest(ttl_seconds=ttl))


@pytest.mark.parametrize(
    "body",
    [
        '{"ttlSeconds": "60"}',
        '{"ttlSeconds": null}',
        '{"ttlSeconds": true}',
        '{"taskIds": "a"}',
        '{"taskIds": null}',
        '{"taskIds": [1]}',
        '{"taskIds": {}}',
        '{"singleUse": 1}',
        '{"singleUse": null}',
    ],
)
def test_a_body_of_another_shape_is_a_bad_request_that_names_the_place(body):
    with pytest.raises(BadRequest, match=r"`\$\.(ttlSeconds|taskIds|singleUse)"):
        request(body)


@pytest.mark.parametrize(("leeway_s", "life_ms"), [(0.0, 10_500), (2.0, 12_500)])
async def test_a_ticket_opens_no_longer_than_the_token_that_made_it(
    store, clock, leeway_s, life_ms
):
    """A revocation is kept until then: a longer ticket would come back to life."""
    tickets = Tickets(store, clock_ms=clock, leeway_s=leeway_s)
    maker = caller(expires_at=NOW / 1000 + 10.5)
    ticket = await tickets.issue(maker, TicketRequest())
    assert ticket.expires_at == -(-(NOW + life_ms) // 1000)
    clock.ms = NOW + life_ms - 1
    assert (await tickets.redeem(ticket.ticket)).expires_at == maker.expires_at
    clock.ms = NOW + life_ms
    await refused(tickets, ticket.ticket)


async def test_a_token_that_expired_meanwhile_makes_no_ticket(tickets, store):
    with pytest.raises(TokenExpired):
        await tickets.issue(caller(expires_at=NOW / 1000), TicketRequest())
    assert not store._notes


async def test_a_token_that_lives_longer_does_not_lengthen_a_ticket(tickets):
    for expires_at in (NOW / 1000 + 3600, 1e300, float("inf")):
        ticket = await tickets.issue(caller(expires_at=expires_at), TicketRequest())
        assert ticket.expires_at == NOW // 1000 + 60
        assert (await tickets.redeem(ticket.ticket)).expires_at == expires_at


# What it reaches


async def test_a_ticket_may_subscribe_and_nothing_else(tickets):
    maker = caller(scopes=frozenset({"*"}))
    got = await tickets.redeem((await tickets.issue(maker, TicketRequest())).ticket)
    assert got.scopes == SUBSCRIBE
    for scope in ("task:create", "task:manage", "event:publish", "event:history", "*"):
        assert not got.has(scope)


async def test_who_may_not_subscribe_gets_no_ticket(tickets, store):
    for maker in (NOBODY, caller(scopes=frozenset({"event:publish", "task:manage"}))):
        with pytest.raises(Forbidden, match="event:subscribe"):
            await tickets.issue(maker, TicketRequest())
    assert not store._notes


async def test_the_rest_of_the_caller_is_that_of_the_maker(tickets):
    maker = caller(
        sub="ol\u00e9 \ud800",
        jti="j-1",
        worker_id="w",
        service="billing",
        claims={
            "team": ["red", 1, None, True],
            "big": 2**200,
            "half": 0.1,
            "cut": "\udfff",
            "": {},
        },
        issued_at=NOW / 1000 - 0.123,
        expires_at=NOW / 1000 + 3600.25,
        task_ids=frozenset({"a", "b \u2028"}),
    )
    for once in (False, True):
        ticket = await tickets.issue(maker, TicketRequest(single_use=once))
        assert await tickets.redeem(ticket.ticket) == maker


async def test_a_server_that_asks_for_nothing_gives_open_tickets(tickets):
    got = await tickets.redeem((await tickets.issue(OPEN, TicketRequest())).ticket)
    assert got.open
    assert got.task_ids is None
    limited = await tickets.issue(OPEN, TicketRequest(task_ids=["a"]))
    assert (await tickets.redeem(limited.ticket)).task_ids == {"a"}
    ticket = await tickets.issue(caller(), TicketRequest())
    assert not (await tickets.redeem(ticket.ticket)).open


@pytest.mark.parametrize("limit", [None, frozenset(), frozenset({"a", "b"})])
@pytest.mark.parametrize("body", ["{}", '{"taskIds": "*"}'])
async def test_without_task_ids_the_limit_is_that_of_the_maker(tickets, limit, body):
    ticket = await tickets.issue(caller(task_ids=limit), request(body))
    assert (await tickets.redeem(ticket.ticket)).task_ids == limit


async def test_the_tasks_of_a_ticket_are_those_that_were_asked_for(tickets):
    for limit in (None, frozenset({"a", "b", "c"})):
        for wanted in (["a", "b"], ["a", "a"], []):
            ticket = await tickets.issue(caller(task_ids=limit), TicketRequest(task_ids=wanted))
            assert (await tickets.redeem(ticket.ticket)).task_ids == set(wanted)


async def test_a_task_beyond_the_maker_is_forbidden_whether_it_is_there_or_not(tickets, store):
    for wanted in (["other"], ["a", "other"], ["*"]):
        with pytest.raises(Forbidden) as caught:
            await tickets.issue(caller(task_ids=frozenset({"a"})), TicketRequest(task_ids=wanted))
        assert "other" not in str(caught.value)
    assert not store._notes


@pytest.mark.parametrize(
    ("task_ids", "place"),
    [
        ([""], r"taskIds\[0\]"),
        (["a", "x" * 1025], r"taskIds\[1\]"),
        (["a", "b", "c\n"], r"taskIds\[2\]"),
        (["a"] * 101, "taskIds"),
    ],
)
async def test_ids_that_no_task_can_have_are_a_bad_request_that_names_the_place(
    tickets, task_ids, place
):
    for maker in (caller(), caller(task_ids=frozenset({"a"})), OPEN):
        with pytest.raises(BadRequest, match=rf"`\$\.{place}`"):
            await tickets.issue(maker, TicketRequest(task_ids=task_ids))


async def test_a_hundred_ids_are_fine_and_so_is_a_long_one_but_not_a_hundred_of_these(tickets):
    for wanted in ([f"{number:026}" for number in range(100)], ["x" * 1024]):
        ticket = await tickets.issue(caller(), TicketRequest(task_ids=wanted))
        assert (await tickets.redeem(ticket.ticket)).task_ids == set(wanted)
    wanted = [f"{number:01024}" for number in range(100)]
    with pytest.raises(BadRequest, match="name fewer tasks"):
        await tickets.issue(caller(), TicketRequest(task_ids=wanted))


IDS = st.sampled_from(["a", "b", "c", "*", "ab"])
SCOPES = st.frozensets(st.sampled_from(["event:subscribe", "task:manage", "*", "event:publish"]))
CALLERS = st.builds(
    Caller,
    scopes=SCOPES,
    task_ids=st.none() | st.frozensets(IDS),
    sub=st.none() | st.text(max_size=3),
    jti=st.none() | st.text(max_size=3),
    expires_at=st.none() | st.floats(NOW / 1000 - 100, NOW / 1000 + 400),
    claims=st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3)),
)
REQUESTS = st.builds(
    TicketRequest,
    task_ids=st.just(msgspec.UNSET) | st.just("*") | st.lists(IDS, max_size=3),
    ttl_seconds=st.floats(0.001, 300),
    single_use=st.booleans(),
)


@given(maker=CALLERS, wanted=REQUESTS, later_ms=st.integers(0, 400_000))
def test_a_ticket_never_reaches_more_than_its_maker(maker, wanted, later_ms):
    """No scope, no task and no moment that the maker does not have."""

    async def compare() -> None:
        clock = Clock()
        tickets = Tickets(MemoryStore(), clock_ms=clock)
        try:
            ticket = await tickets.issue(maker, wanted)
        except (Forbidden, TokenExpired):
            return
        clock.ms += later_ms
        try:
            got = await tickets.redeem(ticket.ticket)
        except Unauthorized:
            return
        for scope in ("event:subscribe", "event:publish", "task:manage", "anything"):
            assert maker.has(scope) or not got.has(scope)
        for task_id in ("a", "b", "c", "*", "ab", "unheard of"):
            assert maker.reaches(task_id) or not got.reaches(task_id)
            if isinstance(wanted.task_ids, list):
                assert task_id in wanted.task_ids or not got.reaches(task_id)
        assert (got.sub, got.jti, got.claims) == (maker.sub, maker.jti, maker.claims)
        assert got.expires_at == maker.expires_at
        assert later_ms < 300_000
        assert maker.expires_at is None or clock.ms < maker.expires_at * 1000

    trio.run(compare)


# How often


async def test_a_ticket_opens_again_and_again(tickets):
    """``EventSource`` reconnects to the URL that it has."""
    ticket = await tickets.issue(caller(), TicketRequest())
    for _ in range(5):
        assert (await tickets.redeem(ticket.ticket)).sub == "alice"


async def test_a_ticket_for_one_use_opens_once(tickets):
    ticket = await tickets.issue(caller(), request('{"singleUse": true}'))
    assert (await tickets.redeem(ticket.ticket)).sub == "alice"
    await refused(tickets, ticket.ticket)


async def test_of_concurrent_uses_of_a_ticket_for_one_exactly_one_wins(tickets):
    ticket = await tickets.issue(caller(), TicketRequest(single_use=True))
    outcomes: list[bool] = []

    async def redeem() -> None:
        try:
            await tickets.redeem(ticket.ticket)
        except Unauthorized:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(redeem)
    assert sorted(outcomes) == [False] * 19 + [True]


# What is none


async def test_every_ticket_that_is_none_gets_one_answer(tickets, clock):
    """Nobody learns whether a ticket was ever there."""
    once = await tickets.issue(caller(), TicketRequest(single_use=True))
    await tickets.redeem(once.ticket)
    short = await tickets.issue(caller(), TicketRequest(ttl_seconds=1))
    good = await tickets.issue(caller(), TicketRequest(ttl_seconds=100))
    clock.ms += 1000
    bad = [
        once.ticket,
        short.ticket,
        "tkt_" + "A" * 43,
        good.ticket.removeprefix("tkt_"),
        good.ticket.upper(),
        good.ticket + "=",
        good.ticket + "\n",
        " " + good.ticket,
        good.ticket[:-1],
        "",
        "tkt_",
        "tkt_" + "\u00e9" * 43,
        "tkt_" + "\ud800" * 43,
        "tkt_" + "A" * 100_000,
        sha256(good.ticket.encode()).hexdigest(),
    ]
    assert {await refused(tickets, text) for text in bad} == {"The ticket is not valid (any more)"}
    await tickets.redeem(good.ticket)


async def test_each_bit_of_a_ticket_counts(tickets):
    ticket = (await tickets.issue(caller(), TicketRequest())).ticket
    for place in range(4, len(ticket)):
        for other in "A", "_":
            if ticket[place] != other:
                await refused(tickets, ticket[:place] + other + ticket[place + 1 :])


async def test_text_that_can_be_no_ticket_never_reaches_the_store(clock):
    class Untouchable:
        def __getattr__(self, name: str):
            raise AssertionError(f"the store was asked: {name}")

    await refused(Tickets(Untouchable(), clock_ms=clock), "tkt_short")
