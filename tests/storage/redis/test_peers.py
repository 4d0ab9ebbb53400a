"""Processes that share a Redis know who follows what elsewhere, what was said, and what is left."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.engine.fanout import Fanout, Inbox
from taskcast_trio.engine.metrics import Metrics
from taskcast_trio.storage.redis import RedisBackend, open_redis, peers

from .proxy import proxied
from .support import PATIENCE_S


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats that need not be waited for."""
    monkeypatch.setattr(peers, "BEAT_S", 0.05)
    monkeypatch.setattr(peers, "FLUSH_S", 0.005)
    monkeypatch.setattr(peers, "LIFE_MS", 1500)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


class Member:
    """A process as its peers see it."""

    def __init__(self, backend: RedisBackend) -> None:
        self.backend = backend
        self.peers = backend.peers
        self.fanout = Fanout(Metrics(), audience=backend.broadcast)
        self.heard: list[bytes] = []
        self.scope = trio.CancelScope()

    def follow(self, *task_ids: str) -> list[Inbox]:
        return [self.fanout.attach(task_id) for task_id in task_ids]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.peers.run(self.heard.append, task_status=task_status)

    async def sees(self, *counts: int) -> None:
        """Wait until the others have these many followers of tasks a, b, and so on."""
        task_ids = "abcdef"[: len(counts)]
        seen: list[int] = []
        with trio.fail_after(PATIENCE_S):
            while seen != list(counts):
                seen = await self.peers.audience(task_ids)
                await trio.sleep(0.01)


@asynccontextmanager
async def member(url: str, prefix: str, *, timeout_s: float = 5.0) -> AsyncIterator[Member]:
    async with open_redis(url, prefix=prefix, timeout_s=timeout_s) as backend:
        one = Member(backend)
        async with trio.open_nursery() as nursery:
            await nursery.start(one.run)
            yield one
            nursery.cancel_scope.cancel()


async def test_each_knows_how_many_follow_a_task_in_the_others(url, prefix):
    async with member(url, prefix) as one, member(url, prefix) as two, member(url, prefix) as three:
        await until(lambda: {one.peers.count, two.peers.count, three.peers.count} == {3})
        left, *_ = one.follow("a", "a", "b")
        two.follow("a", "c")
        await three.sees(3, 1, 1)
        await one.sees(1, 0, 1)
        one.fanout.detach("a", left)
        await three.sees(2, 1, 1)


async def test_many_followers_of_many_tasks_are_counted(url, prefix):
    dice = random.Random(3)
    names = [f"t{number}" for number in range(40)]
    async with member(url, prefix) as one, member(url, prefix) as two, member(url, prefix) as three:
        await until(lambda: three.peers.count == 3)
        inboxes: list[tuple[Member, str, Inbox]] = []
        for _ in range(600):
            if inboxes and dice.random() < 0.4:
                who, name, inbox = inboxes.pop(dice.randrange(len(inboxes)))
                who.fanout.detach(name, inbox)
            else:
                who, name = dice.choice((one, two)), dice.choice(names)
                inboxes.append((who, name, who.fanout.attach(name)))
            if dice.random() < 0.05:
                await trio.sleep(0.003)
        expected = [sum(name == each for _, each, _ in inboxes) for name in names]
        with trio.fail_after(PATIENCE_S):
            while await three.peers.audience(names) != expected:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_who_is_counted_is_so_in_the_others_at_once(url, prefix, monkeypatch):
    """However long changes may wait for others, and whatever is written at the same time."""
    monkeypatch.setattr(peers, "FLUSH_S", PATIENCE_S)
    async with member(url, prefix) as one, member(url, prefix) as two:
        await until(lambda: {one.peers.count, two.peers.count} == {2})

        async def come(task_id: str) -> None:
            one.follow(task_id)
            await one.peers.audience_told()
            assert await two.peers.audience([task_id]) == [1]

        with trio.fail_after(PATIENCE_S / 2):
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(come, f"t{number}")
                    await trio.sleep(0.001 * (number % 3))
            await one.peers.audience_told()


async def test_nobody_waits_to_be_counted_while_redis_is_away(server, prefix):
    async with member(server.url, prefix, timeout_s=2) as one:
        with trio.fail_after(PATIENCE_S), server.frozen():
            one.follow("a")
            await one.peers.audience_told()  # that it is away is to be found out first
            for task_id in "bcd":
                one.follow(task_id)
                began = trio.current_time()
                await one.peers.audience_told()
                assert trio.current_time() - began < 1
    async with open_redis(server.url, prefix=prefix) as backend:  # nobody takes part
        Member(backend).follow("a")
        with trio.fail_after(1):
            await backend.peers.audience_told()


async def test_who_leaves_is_gone_at_once(url, prefix):
    async with member(url, prefix) as one:
        async with member(url, prefix) as other:
            other.follow("a")
            await until(lambda: one.peers.count == 2)
            await one.sees(1)
        await until(lambda: one.peers.count == 1)
        assert await one.peers.audience(["a"]) == [0]


async def test_who_dies_is_forgotten_in_a_while_with_its_followers(url, prefix, monkeypatch):
    async with member(url, prefix) as one, member(url, prefix) as other:
        other.follow("a")
        await until(lambda: one.peers.count == 2)
        await one.sees(1)

        async def silent(self: object) -> None:
            """A process that was killed says nothing."""

        monkeypatch.setattr(peers.RedisPeers, "_leave", silent)
        other.scope.cancel()
        await until(lambda: one.peers.count == 1)
        assert await one.peers.audience(["a"]) == [0]


async def test_a_redis_that_lost_everything_is_told_again(server, prefix):
    async with member(server.url, prefix) as one, member(server.url, prefix) as other:
        other.follow("a", "b")
        await one.sees(1, 1)
        await one.peers.tell(b"before")
        await until(lambda: one.heard == other.heard == [b"before"])
        with server.client() as client:
            client.flushall()
        for number in range(20):  # more than there were before
            await one.peers.tell(b"%d" % number)
        await one.sees(1, 1)
        await until(lambda: one.peers.count == other.peers.count == 2)
        expected = [b"before", *(b"%d" % number for number in range(20))]
        await until(lambda: one.heard == other.heard == expected)


async def test_every_message_is_heard_once_and_in_order_though_connections_are_cut(server, prefix):
    """Also those that are told while the listener is cut off, and those whose reply is lost."""
    async with (
        proxied(server.port) as proxy,
        member(proxy.url, prefix) as one,
        member(proxy.url, prefix) as other,
    ):
        told: list[bytes] = []
        proxy.drop_every = 7
        for number in range(200):
            if number % 10 == 0:
                proxy.cut()
            try:
                await one.peers.tell(b"%d" % number)
            except StoreUnavailable:
                continue
            told.append(b"%d" % number)
        proxy.drop_every = 0
        assert len(told) > 150
        assert proxy.dropped > 10
        await until(lambda: one.heard[-1:] == other.heard[-1:] == told[-1:])
        assert one.heard == other.heard
        assert [message for message in one.heard if message in told] == told
        assert len(set(one.heard)) == len(one.heard)


async def test_who_comes_later_does_not_hear_what_was_said_before(url, prefix):
    async with member(url, prefix) as one:
        await one.peers.tell(b"old")
        await until(lambda: one.heard == [b"old"])
        async with member(url, prefix) as other:
            await one.peers.tell(b"new")
            await until(lambda: other.heard == [b"new"])


async def test_who_started_during_an_outage_does_not_hear_what_was_said_before(server, prefix):
    async with member(server.url, prefix) as one, proxied(server.port) as proxy:
        await one.peers.tell(b"old")
        async with open_redis(proxy.url, prefix=prefix, timeout_s=0.5) as backend:
            late = Member(backend)
            proxy.refuses = True
            proxy.cut()
            async with trio.open_nursery() as nursery:
                await nursery.start(late.run)
                proxy.refuses = False
                await until(lambda: one.peers.count == 2)
                await one.peers.tell(b"new")
                await until(lambda: late.heard[-1:] == [b"new"])
                assert late.heard == [b"new"]
                nursery.cancel_scope.cancel()


async def test_racing_takers_get_what_a_second_allows_and_no_more(url, prefix):
    """Counted from outside: between any two moments, what their windows allow."""
    per_second, grants = 50, []

    async def take(one: Member) -> None:
        for _ in range(60):
            before = trio.current_time()
            granted = await one.peers.take_tokens("k", want=3, per_second=per_second)
            grants.append((before, trio.current_time(), granted))
            await trio.sleep(0.02)

    async with (
        member(url, prefix) as one,
        member(url, prefix) as two,
        trio.open_nursery() as nursery,
    ):
        for each in (one, two) * 4:
            nursery.start_soon(take, each)
    assert {granted for *_, granted in grants} <= {0, 1, 2, 3}
    began = min(before for before, *_ in grants)
    ended = max(after for _, after, _ in grants)
    total = sum(granted for *_, granted in grants)
    windows = int(ended - began) + 1
    assert total <= windows * per_second
    assert total >= per_second * max(windows - 1, 1), "what a second allows can be had"
    first = [granted for before, after, granted in grants if after < began + 0.9]
    assert sum(first) == per_second


async def test_keys_have_a_limit_each(url, prefix):
    async with member(url, prefix) as one:
        assert await one.peers.take_tokens("a", want=9, per_second=5) == 5
        assert await one.peers.take_tokens("a", want=9, per_second=5) == 0
        assert await one.peers.take_tokens("b", want=2, per_second=5) == 2
