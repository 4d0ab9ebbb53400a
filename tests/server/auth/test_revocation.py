"""A revoked token is refused by every process of the store, for as long as it could be shown."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from taskcast_trio.core.access import NOBODY, OPEN, Caller
from taskcast_trio.core.errors import BadRequest, TokenRevoked
from taskcast_trio.core.jsontext import parse
from taskcast_trio.server.auth.revocation import Revocations, Revoked, RevokeRequest, concerns
from taskcast_trio.server.auth.tickets import TicketRequest, Tickets
from taskcast_trio.storage.memory import MemoryStore

NOW = 1_700_000_000_000
NOW_S = NOW // 1000
YEAR_MS = 365 * 24 * 60 * 60 * 1000


class Clock:
    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


class CountingStore(MemoryStore):
    reads = 0

    async def note(self, key: str, *, now_ms: int) -> bytes | None:
        self.reads += 1
        return await super().note(key, now_ms=now_ms)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def revocations(store: CountingStore, clock: Clock) -> Revocations:
    return Revocations(store, clock_ms=clock)


async def passes(revocations: Revocations, caller: Caller) -> bool:
    try:
        await revocations.check(caller)
    except TokenRevoked:
        return False
    return True


def request(body: str) -> RevokeRequest:
    """The request as it comes over the wire."""
    parsed: RevokeRequest = parse(body.encode(), RevokeRequest)
    return parsed


# One token


async def test_a_revoked_token_is_a_401_with_a_code_of_its_own(revocations):
    await revocations.revoke(RevokeRequest(jti="j"))
    with pytest.raises(TokenRevoked) as caught:
        await revocations.check(Caller(jti="j"))
    assert (caught.value.status, caught.value.code) == (401, "token_revoked")


async def test_a_token_is_refused_by_its_jti_whenever_it_was_issued(revocations):
    await revocations.revoke(request('{"jti": "j"}'))
    for issued_at in (None, 0, NOW_S - 1, NOW_S + 10_000):
        assert not await passes(revocations, Caller(jti="j", issued_at=issued_at))
        assert not await passes(revocations, Caller(jti="j", sub="s", issued_at=issued_at))
    assert await passes(revocations, Caller(jti="other"))
    assert await passes(revocations, Caller(jti="J"))


async def test_a_jti_and_a_sub_of_one_name_are_two_things(revocations):
    await revocations.revoke(RevokeRequest(jti="x"))
    assert await passes(revocations, Caller(sub="x"))
    await revocations.revoke(RevokeRequest(sub="y"))
    assert await passes(revocations, Caller(jti="y"))


# A subject


@pytest.mark.parametrize(
    ("issued_at", "passing"),
    [
        (None, False),
        (0, False),
        (NOW_S - 1, False),
        (NOW_S, False),
        (NOW_S - 0.001, False),
        (NOW_S + 0.002, True),
        (NOW_S + 1, True),
        (float("nan"), False),
    ],
)
async def test_of_a_revoked_subject_only_a_token_issued_later_passes(
    revocations, clock, issued_at, passing
):
    await revocations.revoke(request('{"sub": "alice"}'))
    clock.ms += 60_000
    assert await passes(revocations, Caller(sub="alice", issued_at=issued_at)) is passing
    assert await passes(revocations, Caller(sub="alice", jti="j", issued_at=issued_at)) is passing
    assert await passes(revocations, Caller(sub="bob", issued_at=issued_at))


async def test_revoking_a_subject_again_reaches_the_tokens_issued_since(revocations, clock):
    await revocations.revoke(RevokeRequest(sub="alice"))
    since = Caller(sub="alice", issued_at=NOW_S + 5)
    assert await passes(revocations, since)
    clock.ms += 10_000
    await revocations.revoke(RevokeRequest(sub="alice"))
    assert not await passes(revocations, since)


async def test_a_clock_behind_does_not_let_revoked_tokens_in_again(store, clock):
    await Revocations(store, clock_ms=clock).revoke(RevokeRequest(sub="alice"))
    behind = Revocations(store, clock_ms=lambda: NOW - 10_000)
    await behind.revoke(RevokeRequest(sub="alice"))
    assert not await passes(behind, Caller(sub="alice", issued_at=NOW_S - 5))


# Who shares it, and who is not concerned


async def test_a_revocation_holds_in_every_process_of_the_store(revocations, store, clock):
    elsewhere = Revocations(store, clock_ms=clock)
    await revocations.revoke(RevokeRequest(jti="j"))
    await revocations.revoke(RevokeRequest(sub="alice"))
    assert not await passes(elsewhere, Caller(jti="j"))
    assert not await passes(elsewhere, Caller(sub="alice"))


@pytest.mark.parametrize("revoked", [RevokeRequest(jti="j"), RevokeRequest(sub="alice")])
async def test_a_ticket_of_a_revoked_token_is_revoked_with_it(revocations, store, clock, revoked):
    tickets = Tickets(store, clock_ms=clock)
    scopes = frozenset({"event:subscribe"})
    maker = Caller(scopes=scopes, sub="alice", jti="j", issued_at=NOW_S - 10)
    ticket = (await tickets.issue(maker, TicketRequest())).ticket
    assert await passes(revocations, await tickets.redeem(ticket))
    await revocations.revoke(revoked)
    assert not await passes(revocations, await tickets.redeem(ticket))


async def test_services_are_not_concerned_and_cost_nothing(revocations, store):
    await revocations.revoke(RevokeRequest(sub="billing"))
    await revocations.revoke(RevokeRequest(jti="billing"))
    store.reads = 0
    service = Caller(service="billing", sub="billing", jti="billing")
    assert await passes(revocations, service)
    assert store.reads == 0


async def test_a_check_costs_one_read_for_each_name_that_a_token_has(revocations, store):
    for caller, reads in (
        (NOBODY, 0),
        (OPEN, 0),
        (Caller(jti="j"), 1),
        (Caller(sub="s"), 1),
        (Caller(jti="j", sub="s"), 2),
    ):
        store.reads = 0
        assert await passes(revocations, caller)
        assert store.reads == reads


async def test_the_keys_of_the_store_hold_no_name_of_a_caller(revocations, store):
    await revocations.revoke(RevokeRequest(sub="alice@example.org", admin_token="hunter2"))
    await revocations.revoke(RevokeRequest(jti="token-of-alice", admin_token="hunter2"))
    dump = repr(store._notes)
    assert "alice" not in dump
    assert "hunter2" not in dump


@pytest.mark.parametrize("name", ["", "\ud800", "\u00e9", "a" * 100_000, "\x00", "*", "a:b"])
async def test_any_text_is_a_name_and_only_itself(revocations, name):
    assert await passes(revocations, Caller(jti=name, sub=name))
    await revocations.revoke(RevokeRequest(jti=name))
    assert not await passes(revocations, Caller(jti=name))
    assert await passes(revocations, Caller(jti=name + "x"))


# For how long


async def test_without_an_expiry_a_revocation_is_kept_for_ever(revocations, clock):
    await revocations.revoke(RevokeRequest(jti="j"))
    clock.ms += 1000 * YEAR_MS
    await revocations.revoke(RevokeRequest(jti="other"))
    assert not await passes(revocations, Caller(jti="j"))


@pytest.mark.parametrize(("leeway_s", "kept_ms"), [(0.0, 10_500), (30.0, 40_500)])
async def test_a_revocation_is_kept_until_the_last_moment_a_token_is_accepted(
    store, clock, leeway_s, kept_ms
):
    revocations = Revocations(store, clock_ms=clock, leeway_s=leeway_s)
    await revocations.revoke(request(f'{{"jti": "j", "expiresAt": {NOW_S + 10.5}}}'))
    clock.ms = NOW + kept_ms - 1
    assert not await passes(revocations, Caller(jti="j"))
    clock.ms = NOW + kept_ms
    await revocations.revoke(RevokeRequest(jti="other"))
    assert len(store._notes) == 1, "it takes no room any more"


EXPIRIES = st.none() | st.integers(NOW_S + 1, NOW_S + 100)


@given(expiries=st.lists(EXPIRIES, min_size=1, max_size=4), later_s=st.integers(0, 120))
def test_a_revocation_only_adds_to_those_before_it(expiries, later_s):
    """A second one with an earlier end does not cut the first one short."""

    async def compare() -> None:
        clock = Clock()
        revocations = Revocations(MemoryStore(), clock_ms=clock)
        for end in expiries:
            wanted = RevokeRequest(jti="j")
            if end is not None:
                wanted = RevokeRequest(jti="j", expires_at=end)
            await revocations.revoke(wanted)
        clock.ms += later_s * 1000
        revoked = any(end is None or NOW_S + later_s < end for end in expiries)
        assert await passes(revocations, Caller(jti="j")) is not revoked

    trio.run(compare)


async def test_concurrent_revocations_of_one_subject_keep_the_longest(revocations, clock):
    async with trio.open_nursery() as nursery:
        for end in range(1, 20):
            wanted = RevokeRequest(sub="alice", expires_at=NOW_S + end * 7 % 20 + 1)
            nursery.start_soon(revocations.revoke, wanted)
    clock.ms = NOW + 19_999
    assert not await passes(revocations, Caller(sub="alice"))


# What is no revocation


@pytest.mark.parametrize(
    "body", ["{}", '{"jti": "a", "sub": "b"}', '{"jti": "a", "sub": "a"}', '{"expiresAt": 1e10}']
)
async def test_exactly_one_of_jti_and_sub_is_needed(revocations, store, body):
    with pytest.raises(BadRequest, match="exactly one of `jti` and `sub`"):
        await revocations.revoke(request(body))
    assert not store._notes


@pytest.mark.parametrize(
    "expires_at", [NOW_S, NOW_S - 1, 0, -1, 253_402_300_800, 1e300, float("nan"), float("inf")]
)
async def test_an_expiry_that_has_passed_or_never_comes_is_a_bad_request(
    revocations, store, expires_at
):
    with pytest.raises(BadRequest, match=r"`\$\.expiresAt`"):
        await revocations.revoke(RevokeRequest(jti="j", expires_at=expires_at))
    assert not store._notes


@pytest.mark.parametrize(
    "body",
    ['{"jti": null}', '{"jti": 1}', '{"sub": ["a"]}', '{"jti": "j", "expiresAt": "never"}'],
)
def test_a_body_of_another_shape_is_a_bad_request_that_names_the_place(body):
    with pytest.raises(BadRequest, match=r"`\$\.(jti|sub|expiresAt)`"):
        request(body)


@pytest.mark.parametrize("token", ['"t"', "null", "1", "[]", '{"a": [1]}'])
def test_an_admin_token_of_any_type_is_read_so_that_the_route_can_refuse_it(token):
    assert request(f'{{"jti": "j", "adminToken": {token}}}').jti == "j"


def test_the_admin_token_is_not_shown_where_a_request_is_logged():
    assert "hunter2" not in repr(RevokeRequest(admin_token="hunter2", sub="alice"))


# Whose streams end


@pytest.mark.parametrize(
    ("caller", "by_jti", "by_sub"),
    [
        (Caller(jti="j", sub="alice"), True, True),
        (Caller(jti="j"), True, False),
        (Caller(sub="alice"), False, True),
        (Caller(jti="alice", sub="j"), False, False),
        (Caller(jti="j", sub="alice", service="billing"), False, False),
        (NOBODY, False, False),
        (OPEN, False, False),
    ],
)
def test_a_revocation_concerns_the_callers_that_it_names(caller, by_jti, by_sub):
    assert concerns(Revoked(at_ms=0, jti="j"), caller) is by_jti
    assert concerns(Revoked(at_ms=0, sub="alice"), caller) is by_sub


@given(
    caller=st.builds(
        Caller,
        jti=st.none() | st.sampled_from("ab"),
        sub=st.none() | st.sampled_from("ab"),
        service=st.none() | st.just("s"),
        issued_at=st.none() | st.integers(NOW_S - 5, NOW_S + 5),
    ),
    revoked=st.builds(RevokeRequest, jti=st.sampled_from("ab"))
    | st.builds(RevokeRequest, sub=st.sampled_from("ab")),
)
def test_the_streams_that_end_are_those_that_could_not_be_opened_again(caller, revoked):
    async def compare() -> None:
        revocations = Revocations(MemoryStore(), clock_ms=Clock())
        told = await revocations.revoke(revoked)
        assert await passes(revocations, caller) is not concerns(told, caller)

    trio.run(compare)
