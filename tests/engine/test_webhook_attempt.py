"""One try: what it sends to the byte, what every kind of answer means, and that it always ends."""

from __future__ import annotations

import gc
import gzip
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import pytest
import trio
import trustme
from standardwebhooks import Webhook as Standard
from trio.testing import MockClock, wait_all_tasks_blocked

from taskcast_trio import __version__
from taskcast_trio.core.addresses import AddressPolicy
from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.signature import verify_taskcast
from taskcast_trio.core.webhook import Webhook
from taskcast_trio.engine.webhooks import Attempt, Dialer, Sender, open_sender
from taskcast_trio.engine.webhooks.attempt import MAX_BODY
from taskcast_trio.engine.webhooks.turns import Turns
from tests.receiver import (
    MemoryNetwork,
    Received,
    Receiver,
    Script,
    Wire,
    answering,
    hanging,
    pouring,
    receiving,
    saying,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"id":"e"}'
EVERYWHERE = AddressPolicy(allow_private=True)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def attempt(
    sender: Sender,
    url: str,
    *,
    timeout_ms: int = 5000,
    secrets: tuple[str, ...] = (),
    event_type: str = "llm.delta",
    body: bytes = BODY,
) -> Attempt:
    webhook = Webhook(url=url, secrets=secrets, retry=Backoff(timeout_ms=timeout_ms))
    return await sender.attempt(webhook, event_type=event_type, delivery="0f", body=body)


@asynccontextmanager
async def sending(**options: Any) -> AsyncIterator[Sender]:
    async with open_sender(Dialer(EVERYWHERE), **options) as sender:
        yield sender


async def resolve(host: str, port: int) -> list[str]:
    await trio.lowlevel.checkpoint()
    return [host] if host[0].isdigit() else ["10.0.0.1"]


@asynccontextmanager
async def in_memory(
    receivers: dict[str, Receiver], **options: Any
) -> AsyncIterator[tuple[Sender, MemoryNetwork]]:
    """A sender on a network without sockets; receivers by their addresses."""
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(nursery, receivers)
        dialer = Dialer(EVERYWHERE, resolve=resolve, network=network)
        async with open_sender(dialer, **options) as sender:
            yield sender, network
        nursery.cancel_scope.cancel()


# What is sent


async def test_a_receiver_is_sent_these_bytes_and_no_others() -> None:
    async with receiving() as receiver, sending(clock=lambda: 1_700_000_000.9) as sender:
        ended = await attempt(sender, receiver.url("/in?a=b#c"), secrets=("s",))
    assert (ended.outcome, ended.status, ended.error) == ("delivered", 204, None)
    (request,) = receiver.requests
    assert request.line == "POST /in?a=b HTTP/1.1"
    assert request.body == BODY
    fields = dict(request.fields)
    assert len(fields) == len(request.fields)
    verify_taskcast(["s"], BODY, fields.pop("X-Taskcast-Signature"))
    assert fields.pop("webhook-signature").startswith("v1,")
    assert fields == {
        "Host": f"127.0.0.1:{receiver.port}",
        "Content-Type": "application/json",
        "X-Taskcast-Event": "llm.delta",
        "X-Taskcast-Timestamp": "1700000000",
        "X-Taskcast-Delivery": "0f",
        "webhook-id": "0f",
        "webhook-timestamp": "1700000000",
        "User-Agent": f"taskcast-trio/{__version__}",
        "Accept-Encoding": "identity",
        "Content-Length": str(len(BODY)),
    }


async def test_each_try_is_signed_anew_and_verified_by_an_independent_library() -> None:
    times = iter([time.time() - 200, time.time()])
    async with receiving() as receiver, sending(clock=lambda: next(times)) as sender:
        for _ in range(2):
            await attempt(sender, receiver.url(), secrets=(SECRET,))
    first, second = receiver.requests
    for request in (first, second):
        assert Standard(SECRET).verify(request.body, request.headers) == {"id": "e"}
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]


@pytest.mark.parametrize(
    "event_type",
    [
        "a\r\nX-Evil: 1",
        "a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "\r",
        "\n",
        "a\nb",
        "\x00",
        "\x7f\x1b[31m",
        "ü",
        "日本語",
        "\u2028\u0085",
        "😀",
        "a b\t",
        "",
        "x" * 8192,
        "\r\n" * 4096,
        "😀" * 2048,
    ],
)
async def test_no_event_type_can_inject_a_header(event_type: str) -> None:
    async with receiving() as receiver, sending() as sender:
        ended = await attempt(sender, receiver.url(), event_type=event_type)
    assert ended.outcome == "delivered"
    (request,) = receiver.requests
    assert [name for name, _ in request.fields] == [
        "Host",
        "Content-Type",
        "X-Taskcast-Event",
        "X-Taskcast-Timestamp",
        "X-Taskcast-Delivery",
        "User-Agent",
        "Accept-Encoding",
        "Content-Length",
    ]
    value = unquote(request.headers["x-taskcast-event"])
    assert value == event_type or (value[-1] == "…" and event_type.startswith(value[:-1]))
    assert request.body == BODY


async def test_a_connection_serves_many_tries_and_is_closed_with_the_sender() -> None:
    async with receiving(answering(200, b"thanks", Set_Cookie="a=b")) as receiver:
        async with sending() as sender:
            for _ in range(5):
                assert (await attempt(sender, receiver.url())).outcome == "delivered"
            assert receiver.open == 1
        while receiver.open:
            await trio.lowlevel.checkpoint()
    assert receiver.connections == 1
    assert all("cookie" not in request.headers for request in receiver.requests)


# What answers mean


@pytest.mark.parametrize(
    ("status", "outcome", "error"),
    [
        (200, "delivered", None),
        (201, "delivered", None),
        (202, "delivered", None),
        (204, "delivered", None),
        (299, "delivered", None),
        (300, "failed", "redirect"),
        (302, "failed", "redirect"),
        (304, "failed", "redirect"),
        (400, "failed", "status"),
        (401, "failed", "status"),
        (404, "failed", "status"),
        (410, "gone", "status"),
        (429, "failed", "status"),
        (500, "failed", "status"),
        (503, "failed", "status"),
        (599, "failed", "status"),
        (999, "failed", "status"),
    ],
)
async def test_the_status_decides(status: int, outcome: str, error: str | None) -> None:
    async with receiving(answering(status)) as receiver, sending() as sender:
        ended = await attempt(sender, receiver.url())
    assert (ended.outcome, ended.status, ended.error) == (outcome, status, error)
    assert ended.retry_after_ms is None


@pytest.mark.parametrize(
    ("status", "value", "wait_ms"),
    [
        (429, "7", 7000),
        (503, "0", 0),
        (503, "Tue, 14 Nov 2023 22:13:50 GMT", 30_000),
        (429, "Tue, 14 Nov 2023 22:13:10 GMT", 0),
        (429, "999999999", 3_600_000),
        (429, "9" * 20_000, 3_600_000),
        (429, "soon", None),
        (429, "-1", None),
        (429, "", None),
        (429, "1\r\nRetry-After: 2", None),
        (500, "7", None),
        (200, "7", None),
        (302, "7", None),
    ],
)
async def test_a_wait_is_heard_from_429_and_503_and_bounded(
    status: int, value: str, wait_ms: int | None
) -> None:
    async with (
        receiving(answering(status, Retry_After=value)) as receiver,
        sending(clock=lambda: 1_700_000_000.0) as sender,
    ):
        assert (await attempt(sender, receiver.url())).retry_after_ms == wait_ms


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (saying(), "closed"),
        (saying(reset=True), "closed"),
        (saying(b"HTTP/1.1 200"), "closed"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Le"), "closed"),
        (saying(b"hello\r\n\r\n"), "protocol"),
        (saying(b"\x00" * 100 + b"\r\n\r\n"), "protocol"),
        (saying(b"HTTP/1.1 000 x\r\n\r\n"), "protocol"),
        (saying(b"HTTP/2 200 OK\r\n\r\n"), "protocol"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "protocol"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), "protocol"),
        (saying(b"HTTP/1.1 200 OK\r\nA" + b"a" * 200_000), "protocol"),
        (saying(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 40_000), "protocol"),
    ],
)
async def test_an_answer_that_is_none_is_a_failure_with_a_word_for_it(
    script: Script, error: str
) -> None:
    async with receiving(script) as receiver, sending() as sender:
        ended = await attempt(sender, receiver.url())
        assert (ended.outcome, ended.status, ended.error) == ("failed", None, error)
        receiver.scripts.append(answering(204))
        assert (await attempt(sender, receiver.url())).outcome == "delivered"


@pytest.mark.parametrize(
    "script",
    [
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", reset=True),
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"),
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        saying(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"),
        saying(b"HTTP/1.0 200 OK\r\n\r\n"),
        saying(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    ],
)
async def test_a_delivery_that_was_acknowledged_stays_so_whatever_becomes_of_the_body(
    script: Script,
) -> None:
    async with receiving(script) as receiver, sending() as sender:
        ended = await attempt(sender, receiver.url())
    assert (ended.outcome, ended.status, ended.error) == ("delivered", 200, None)


async def test_a_switch_of_protocols_is_a_failure() -> None:
    switch = b"HTTP/1.1 101 x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    async with receiving(saying(switch)) as receiver, sending() as sender:
        ended = await attempt(sender, receiver.url())
    # Nobody asked for one: it is as good as no answer.
    assert (ended.outcome, ended.status, ended.error) == ("failed", None, "protocol")


async def test_nobody_listens() -> None:
    async with receiving() as receiver:
        url = receiver.url()
    async with sending() as sender:
        ended = await attempt(sender, url)
    assert (ended.outcome, ended.status, ended.error) == ("failed", None, "connect")


# TLS


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("name", "trusted", "error"),
    [
        ("hooks.example", True, None),
        ("other.example", True, "tls"),
        ("127.0.0.1", True, "tls"),
        ("hooks.example", False, "tls"),
    ],
)
async def test_a_certificate_is_checked_against_the_name_and_not_the_address(
    authority: trustme.CA, name: str, trusted: bool, error: str | None
) -> None:
    trust = ssl.create_default_context()
    if trusted:
        authority.configure_trust(trust)

    async def loopback(host: str, port: int) -> list[str]:
        await trio.lowlevel.checkpoint()
        return ["127.0.0.1"]

    dialer = Dialer(EVERYWHERE, resolve=loopback)
    async with (
        receiving(tls=server_context(authority, name)) as receiver,
        open_sender(dialer, ssl_context=trust) as sender,
    ):
        ended = await attempt(sender, receiver.url(host="hooks.example"))
    assert ended.error == error
    assert len(receiver.requests) == (error is None)


async def test_a_handshake_that_stalls_ends_in_time() -> None:
    async with receiving() as receiver, sending() as sender:  # it waits for a request in clear
        url = receiver.url().replace("http:", "https:")
        with trio.fail_after(5):
            ended = await attempt(sender, url, timeout_ms=150)
    assert (ended.outcome, ended.error) == ("failed", "timeout")
    gc.collect()  # a socket that was left open would be told of now
    assert 150 <= ended.duration_ms < 2000


# Every try ends: exact times on the clock that jumps


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (hanging, None),
        (pouring(b"", b"H", 0.5), None),
        (pouring(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", 0.5), None),
        (pouring(b"HTTP/1.1 200 OK\r\n", b"a", 0.5), None),
        (pouring(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), None),
        (pouring(b"", b"HTTP/1.1 102 x\r\nA: b\r\n\r\n", 0.5), None),
        (pouring(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x", 0.5), 200),
        (pouring(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.5), 200),
        (pouring(b"HTTP/1.1 500 x\r\n\r\n", b"x", 0.5), 500),
        (pouring(b"HTTP/1.1 410 x\r\n\r\n", b"x", 0.5), 410),
        (pouring(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.5), 200),
        (
            pouring(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n", 0.5),
            200,
        ),
    ],
)
async def test_a_receiver_that_drips_has_the_whole_timeout_and_no_more(
    script: Script, status: int | None, autojump_clock: MockClock
) -> None:
    receiver = Receiver([script])
    async with in_memory({"10.0.0.1": receiver}) as (sender, _):
        ended = await attempt(sender, "http://10.0.0.1/")
    outcome = {None: "failed", 200: "delivered", 410: "gone", 500: "failed"}[status]
    assert (ended.outcome, ended.status, ended.duration_ms) == (outcome, status, 5000)
    assert ended.error == {None: "timeout", 200: None}.get(status, "status")
    assert trio.current_time() == 5
    assert receiver.open == 0


async def test_a_body_that_is_not_taken_ends_in_time(autojump_clock: MockClock) -> None:
    class Deaf(Receiver):
        async def serve(self, stream: trio.abc.Stream, tls: ssl.SSLContext | None = None) -> None:
            await trio.sleep_forever()

    async with in_memory({"10.0.0.1": Deaf([])}) as (sender, _):
        ended = await attempt(sender, "http://10.0.0.1/", timeout_ms=700)
    assert (ended.error, ended.duration_ms, trio.current_time()) == ("timeout", 700, 0.7)


async def test_a_resolver_that_hangs_is_within_the_timeout(autojump_clock: MockClock) -> None:
    async def dead(host: str, port: int) -> list[str]:
        await trio.sleep_forever()
        raise AssertionError

    async with open_sender(Dialer(EVERYWHERE, resolve=dead)) as sender:
        ended = await attempt(sender, "http://hooks.example/")
    assert (ended.error, ended.duration_ms) == ("timeout", 5000)


async def test_a_cancelled_try_leaves_no_connection_and_no_turn(autojump_clock: MockClock) -> None:
    receiver = Receiver([hanging, answering(204)])
    async with in_memory({"10.0.0.1": receiver}, concurrency=1, per_host=1) as (sender, _):
        with trio.move_on_after(1):
            await attempt(sender, "http://10.0.0.1/")
        assert (await attempt(sender, "http://10.0.0.1/")).outcome == "delivered"
    assert trio.current_time() == 1
    assert receiver.connections == 2


# Every try is small


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
    ],
)
async def test_of_an_endless_body_64_kib_are_read(start: bytes) -> None:
    sent = 0
    piece = b"x" * 16_384

    async def pour(_: Received, wire: Wire) -> bool:
        nonlocal sent
        await wire.send(start)
        while True:
            await wire.send(piece)
            sent += len(piece)

    receiver = Receiver([pour])
    async with in_memory({"10.0.0.1": receiver}) as (sender, _):
        ended = await attempt(sender, "http://10.0.0.1/")
    assert (ended.outcome, ended.status) == ("delivered", 200)
    assert sent <= MAX_BODY + 2 * len(piece)


@asynccontextmanager
async def little_memory(limit: int) -> AsyncIterator[None]:
    gc.collect()
    tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < limit


async def test_a_bomb_stays_as_it_came() -> None:
    bomb = gzip.compress(bytes(40_000_000))
    assert len(bomb) < MAX_BODY
    answer = answering(200, bomb, Content_Encoding="gzip")
    async with receiving(answering(204), answer) as receiver, sending() as sender:
        await attempt(sender, receiver.url())  # what is made once is not the bomb's
        async with little_memory(2_000_000):
            ended = await attempt(sender, receiver.url())
    assert (ended.outcome, ended.status) == ("delivered", 200)


@pytest.mark.parametrize(
    "script",
    [
        pouring(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", b"x" * 65_536),
        pouring(CHUNKED, b"1\r\nx\r\n" * 9000),
        pouring(b"HTTP/1.1 200 OK\r\n", b"A: " + b"b" * 4000 + b"\r\n"),
        pouring(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 65_536),
        pouring(b"", b"HTTP/1.1 100 x\r\nA: b\r\n\r\n" * 1000),
    ],
)
async def test_many_hostile_answers_at_once_take_little_memory_and_end(script: Script) -> None:
    async with receiving(answering(204), script) as receiver, sending() as sender:
        await attempt(sender, receiver.url())
        async with little_memory(20_000_000), trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(_in_time, sender, receiver.url())


async def _in_time(sender: Sender, url: str) -> None:
    ended = await attempt(sender, url, timeout_ms=500)
    assert ended.duration_ms < 3000


# Turns


async def test_a_thousand_webhooks_of_a_dead_host_do_not_delay_a_live_one(
    autojump_clock: MockClock,
) -> None:
    dead, live = Receiver([hanging]), Receiver([answering(204)])
    done: list[float] = []

    async def deliver(sender: Sender) -> None:
        assert (await attempt(sender, "http://10.0.0.2/")).outcome == "delivered"
        done.append(trio.current_time())

    receivers = {"10.0.0.1": dead, "10.0.0.2": live}
    async with (
        in_memory(receivers, concurrency=16, per_host=4) as (sender, _),
        trio.open_nursery() as nursery,
    ):
        for _ in range(1000):
            nursery.start_soon(attempt, sender, "http://10.0.0.1/")
        await wait_all_tasks_blocked()
        for _ in range(100):
            nursery.start_soon(deliver, sender)
        await trio.sleep(1)
        assert done == [0.0] * 100
        nursery.cancel_scope.cancel()
    assert (dead.most_open, live.most_open) == (4, 4)


async def test_the_timeout_begins_with_the_turn(autojump_clock: MockClock) -> None:
    receiver = Receiver([hanging])
    ended: list[tuple[float, int]] = []
    async with in_memory({"10.0.0.1": receiver}, concurrency=8, per_host=1) as (sender, _):

        async def one() -> None:
            found = await attempt(sender, "http://10.0.0.1/", timeout_ms=1000)
            ended.append((trio.current_time(), found.duration_ms))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
    assert ended == [(1, 1000), (2, 1000), (3, 1000)]


async def test_turns_are_bounded_overall_and_by_host_and_leave_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(5, 2)
    now: dict[str, int] = {}
    most: dict[str, int] = {}

    async def one(host: str) -> None:
        async with turns.turn(host):
            now[host] = now.get(host, 0) + 1
            most[host] = max(most.get(host, 0), now[host])
            most["all"] = max(most.get("all", 0), sum(now.values()))
            await trio.sleep(1)
            now[host] -= 1

    with trio.move_on_after(3.5):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, f"h{number % 4}")
    assert most.pop("all") == 5
    assert max(most.values()) == 2
    assert (turns.taken, turns.hosts) == (0, 0)


async def test_who_is_cancelled_between_its_host_s_turn_and_the_last_holds_none(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(1, 1)
    got: list[float] = []

    async def next_of_b() -> None:
        await trio.sleep(0.5)
        async with turns.turn("b"):
            got.append(trio.current_time())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, turns.turn("a"):
            nursery.start_soon(next_of_b)
            with trio.move_on_after(1):
                async with turns.turn("b"):
                    raise AssertionError
            await trio.sleep(1)
            assert (turns.taken, turns.hosts) == (1, 2)
    assert got == [2]
    assert (turns.taken, turns.hosts) == (0, 0)
