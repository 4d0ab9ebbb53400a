"""Turns: who gets one, who waits, and who is sent away."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from taskcast_trio.engine.webhooks import lanes as module
from taskcast_trio.engine.webhooks.lanes import HostBusy, Lanes


class Users:
    """Tasks that hold turns until they are told how their try ended."""

    def __init__(self, lanes: Lanes, nursery: trio.Nursery) -> None:
        self.lanes = lanes
        self.nursery = nursery
        self.holding: list[str] = []
        self.away: list[float] = []
        self._ends: dict[str, list[trio.Event]] = {}
        self._answered: dict[str, bool | None] = {}

    async def add(self, host: str, count: int = 1) -> None:
        for _ in range(count):
            self.nursery.start_soon(self._use, host)
            await wait_all_tasks_blocked()

    async def _use(self, host: str) -> None:
        try:
            async with self.lanes.turn(host) as turn:
                self.holding.append(host)
                end = trio.Event()
                self._ends.setdefault(host, []).append(end)
                await end.wait()
                turn.answered = self._answered[host]
                self.holding.remove(host)
        except HostBusy as busy:
            self.away.append(round(busy.wait_s, 3))

    async def end(self, host: str, *, answered: bool | None) -> None:
        """End the oldest try to this host."""
        self._answered[host] = answered
        self._ends[host].pop(0).set()
        await wait_all_tasks_blocked()


@pytest.fixture
async def nursery_() -> object:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


@pytest.fixture
def users(nursery_: trio.Nursery) -> Users:
    return Users(Lanes(8, 3), nursery_)


async def test_a_new_host_gets_one_turn_until_it_has_answered(users: Users) -> None:
    await users.add("h", 5)
    assert users.holding == ["h"]
    await users.end("h", answered=True)
    assert users.holding == ["h"] * 3, "as many as a host may have, those that waited first"
    await users.end("h", answered=True)
    assert users.holding == ["h"] * 3
    assert users.away == []


async def test_who_waits_for_a_host_that_does_not_answer_is_sent_away(
    users: Users, autojump_clock: MockClock
) -> None:
    await users.add("h", 4)
    await trio.sleep(5)
    await users.end("h", answered=False)
    assert users.holding == []
    assert users.away == [5, 10, 15], "one after the other, as long as a try takes"
    await users.add("h", 2)
    assert users.holding == ["h"]
    assert users.away[3:] == [20]
    await users.add("h", 60)
    assert max(users.away) == 30
    assert len(set(users.away[10:])) == len(users.away[10:]), "not all at once"
    await users.end("h", answered=True)
    await users.add("h", 3)
    assert users.holding == ["h"] * 3


async def test_a_host_that_answers_may_fail_now_and_then(users: Users) -> None:
    await users.add("h")
    await users.end("h", answered=True)
    for answered in (False, False, True, False, False, None):
        await users.add("h", 3)
        assert users.holding == ["h"] * 3
        await users.end("h", answered=answered)
        for _ in range(2):
            await users.end("h", answered=None)
    await users.add("h", 2)
    await users.end("h", answered=False)
    await users.end("h", answered=None)
    await users.add("h", 2)
    assert users.holding == ["h"]
    assert len(users.away) == 1


async def test_new_and_failing_hosts_leave_turns_to_those_that_answer(users: Users) -> None:
    await users.add("good")
    await users.end("good", answered=True)
    for number in range(6):
        await users.add(f"bad{number}")
        if number < 4:
            await users.end(f"bad{number}", answered=False)
    for number in range(4):
        await users.add(f"bad{number}")
    for number in range(6):
        await users.add(f"new{number}")
    await users.add("good", 4)
    standing = [name.rstrip("0123456789") for name in users.holding]
    assert standing.count("bad") == 2 + 2, "a quarter, and the two that had not failed yet"
    assert standing.count("new") == 2, "half of all with those"
    assert standing.count("good") == 2
    assert users.lanes.taken == 8


async def test_turns_go_around_among_the_hosts_that_wait(users: Users) -> None:
    for host in ("a", "b", "c"):
        await users.add(host)
        await users.end(host, answered=True)
    await users.add("a", 8)
    await users.add("b", 8)
    await users.add("c", 8)
    assert sorted(users.holding) == ["a"] * 3 + ["b"] * 3 + ["c"] * 2
    for _ in range(2):
        await users.end("a", answered=True)
    assert sorted(users.holding) == ["a"] * 2 + ["b"] * 3 + ["c"] * 3


async def test_who_leaves_while_waiting_holds_nothing(users: Users) -> None:
    await users.add("h")
    async with trio.open_nursery() as nursery:
        leaving = Users(users.lanes, nursery)
        await leaving.add("h", 3)
        nursery.cancel_scope.cancel()
    await users.add("h")
    await users.end("h", answered=True)
    assert users.holding == ["h"]
    await users.end("h", answered=True)
    assert users.lanes.taken == 0


async def test_hosts_are_forgotten(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOSTS", 10)
    await users.add("held")
    for number in range(50):
        await users.add(f"h{number}")
        await users.end(f"h{number}", answered=False)
    assert users.lanes.hosts <= 11
    await users.end("held", answered=True)
    assert users.lanes.taken == 0
