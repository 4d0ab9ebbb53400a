"""Real server processes on one real Redis are one server, whatever becomes of their connections, of
Redis and of themselves: each subscriber gets each event once, in order.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from ..storage.redis.proxy import proxied
from ..storage.redis.server import LocalServer, new_prefix, running
from .fleet import Crowd, Publisher, Server, complete, fleet, new_task, stored

PATIENCE_S = 120
EVENTS = 10_000
SUBSCRIBERS = 50
PUBLISHERS = 6
KILL_EVERY_S = 0.2
KILLS = 15
RESTARTS = 10
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")

# httpx leaves the generator of a body that could not be sent to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def redis() -> Iterator[LocalServer]:
    """With an append-only file, synced before an answer: all that it has acknowledged survives."""
    with running(*DURABLE) as server:
        yield server


@pytest.fixture(scope="module")
def servers(redis: LocalServer) -> Iterator[list[Server]]:
    with fleet(3, "--redis-url", redis.url, "--redis-prefix", new_prefix()) as started:
        yield started


@pytest.fixture(params=[2, 3])
def urls(servers: list[Server], request: pytest.FixtureRequest) -> list[str]:
    """Of two of the processes, and of all three."""
    return [server.url for server in servers[: request.param]]


class Run:
    """A task that is followed and published to through all of some servers."""

    def __init__(self, urls: list[str], task: str, *, subscribers: int, size: int) -> None:
        self.urls = urls
        self.task = task
        self.crowd = Crowd(urls, task, subscribers)
        self.publishers = [
            Publisher(urls, task, f"p{name}", size=size) for name in range(PUBLISHERS)
        ]

    @property
    def acknowledged(self) -> int:
        return sum(len(publisher.sent) for publisher in self.publishers)

    @property
    def refused(self) -> int:
        return sum(publisher.refused for publisher in self.publishers)

    async def publish(self, until: Callable[[Publisher], bool]) -> None:
        async with trio.open_nursery() as nursery:
            for publisher in self.publishers:
                nursery.start_soon(publisher.run, until)


@asynccontextmanager
async def followed(
    urls: list[str], *, subscribers: int = SUBSCRIBERS, size: int = 20
) -> AsyncIterator[Run]:
    """Ends when the task has, and every subscriber has seen all of it, once and in order."""
    with trio.fail_after(PATIENCE_S):
        run = Run(urls, await new_task(urls[0]), subscribers=subscribers, size=size)
        async with trio.open_nursery() as nursery:
            await run.crowd.start(nursery)
            yield run
            total = await complete(urls[-1], run.task)
        run.crowd.assert_saw_all(total)
        sent = [text for publisher in run.publishers for text in publisher.sent]
        log = await stored(urls[0], run.task)
        assert len(log) == total - 2  # those of the status are not of the publishers
        assert sorted(log) == sorted(sent), "each acknowledged event is stored once, and no other"


def each(number: int) -> Callable[[Publisher], bool]:
    """Until so many events have been published in all."""
    return lambda publisher: len(publisher.sent) >= number / PUBLISHERS


async def test_everybody_sees_all_that_is_published_through_all_once_and_in_order(
    urls: list[str],
) -> None:
    async with followed(urls) as run:
        await run.publish(each(EVENTS))
        assert run.acknowledged >= EVENTS
    assert run.refused == 0
    assert {follower.connections > 0 for follower in run.crowd.followers} == {True}


async def test_the_same_while_connections_to_redis_are_killed_again_and_again(
    urls: list[str], redis: LocalServer
) -> None:
    killed = {"normal": 0, "pubsub": 0}
    done = trio.Event()

    async def kill() -> None:
        with redis.client() as client:
            for _ in range(KILLS):
                await trio.sleep(KILL_EVERY_S)
                for kind in killed:
                    killed[kind] += client.client_kill_filter(_type=kind, skipme=True)
        done.set()

    async with followed(urls) as run, trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        await run.publish(
            lambda publisher: done.is_set() and len(publisher.sent) >= EVENTS / PUBLISHERS
        )
    # Who listens comes back more and more slowly, who sends at once.
    assert killed["normal"] > KILLS
    assert killed["pubsub"] > KILLS / 4


async def test_the_same_while_redis_is_killed_and_started_again(
    servers: list[Server], redis: LocalServer
) -> None:
    urls = [server.url for server in servers]
    done = trio.Event()
    async with followed(urls, size=5) as run, trio.open_nursery() as nursery:

        async def restart() -> None:
            for _ in range(RESTARTS):
                before = run.acknowledged
                while run.acknowledged < before + 50:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(redis.stop, signal.SIGKILL)
                refused = run.refused
                while run.refused == refused:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(redis.start)
            done.set()

        nursery.start_soon(restart)
        await run.publish(lambda _: done.is_set())


async def test_of_racing_transitions_one_wins_and_all_others_are_told_so(
    servers: list[Server],
) -> None:
    tasks = 170
    statuses: dict[str, list[tuple[int, str]]] = {}
    wanted = ("completed", "failed", "cancelled")

    async def race(clients: list[httpx.AsyncClient], number: int) -> None:
        task = (await clients[number % 3].post("/tasks", json={})).json()["id"]
        answer = await clients[number % 2].patch(
            f"/tasks/{task}/status", json={"status": "running"}
        )
        assert answer.is_success
        outcomes = statuses[task] = []

        async def move(client: httpx.AsyncClient, status: str) -> None:
            answer = await client.patch(f"/tasks/{task}/status", json={"status": status})
            outcomes.append((answer.status_code, status))

        async with trio.open_nursery() as nursery:
            for client, status in zip(clients, wanted, strict=True):
                nursery.start_soon(move, client, status)
        (winner,) = [status for code, status in outcomes if code == 200]
        assert sorted(code for code, _ in outcomes) == [200, 409, 409]
        for client in clients:
            assert (await client.get(f"/tasks/{task}")).json()["status"] == winner
            history: Any = (await client.get(f"/tasks/{task}/events/history")).json()
            moves = [event["data"]["status"] for event in history]
            assert moves == ["running", winner]

    async def some(numbers: range) -> None:
        clients = [httpx.AsyncClient(base_url=server.url, timeout=30) for server in servers]
        for number in numbers:
            await race(clients, number)
        for client in clients:
            await client.aclose()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for first in range(4):
                nursery.start_soon(some, range(first, tasks, 4))
    assert len(statuses) == tasks


async def test_who_does_not_read_holds_up_nobody(servers: list[Server]) -> None:
    """It is sent what the buffers of its connection hold; all others get all, also beside it."""
    urls = [server.url for server in servers]
    large, count = "x" * 50_000, 300
    async with followed(urls, subscribers=6) as run:
        host, _, port = urls[0].removeprefix("http://").partition(":")
        socket = trio.socket.socket()
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        with socket:
            await socket.connect((host, int(port)))
            path = f"/tasks/{run.task}/events"
            await socket.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            async with httpx.AsyncClient(timeout=30) as client:
                for number in range(count):
                    event = {"type": "x", "level": "info", "data": f"{large}{number}"}
                    assert (await client.post(urls[number % 3] + path, json=event)).is_success
                    run.publishers[0].sent.append(event["data"])
                await run.crowd.seen(count + 1)
            # It is the same stream still, from its beginning.
            first = b""
            while b"taskcast.event" not in first:
                first += await socket.recv(4096)
            assert b'"rawIndex":0,' in first


async def test_a_rolling_restart_loses_nothing(redis: LocalServer) -> None:
    """One after the other is replaced, while it is followed and published to."""
    options = ("--redis-url", redis.url, "--redis-prefix", new_prefix())
    with fleet(2, *options) as old, fleet(2, *options) as new:
        urls = [server.url for server in old]
        async with followed(urls, subscribers=20) as run, trio.open_nursery() as nursery:
            done = trio.Event()

            async def replace() -> None:
                for number in range(2):
                    before = run.acknowledged
                    while run.acknowledged < before + 1000:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    urls.append(new[number].url)
                    urls.remove(old[number].url)
                    assert await trio.to_thread.run_sync(old[number].drain) == 0
                before = run.acknowledged
                while run.acknowledged < before + 1000:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                done.set()

            nursery.start_soon(replace)
            await run.publish(lambda _: done.is_set())


async def test_each_tenth_reply_of_redis_is_lost_and_no_event_is(redis: LocalServer) -> None:
    async with proxied(redis.port) as proxy:
        options = ("--redis-url", proxy.url, "--redis-prefix", new_prefix())
        async with started(2, *options) as servers:
            async with followed([each.url for each in servers], subscribers=10, size=1) as run:
                proxy.drop_every = 10
                await run.publish(each(1500))
                proxy.drop_every = 0
            assert proxy.dropped > 100


async def test_a_deaf_listener_is_found_out_and_nobody_waits_for_long(redis: LocalServer) -> None:
    """Announcements stop, the commands go on: nothing tells of it but what does not come."""
    async with proxied(redis.port) as proxy:
        options = ("--redis-url", proxy.url, "--redis-prefix", new_prefix())
        async with (
            started(2, *options) as servers,
            followed([each.url for each in servers], subscribers=10) as run,
        ):
            await run.publish(each(200))
            await run.crowd.seen(200)
            proxy.swallows = lambda link: link.listens
            await run.publish(each(400))
            with trio.fail_after(60):
                await run.crowd.seen(400)
            proxy.swallows = lambda link: False


@asynccontextmanager
async def started(number: int, *options: str) -> AsyncIterator[list[Server]]:
    """As :func:`fleet`, where what they connect to runs in this process."""
    manager = fleet(number, *options)
    servers = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield servers
    finally:
        manager.__exit__(None, None, None)
