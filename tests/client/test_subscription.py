"""A subscription hands out each event once and in order, whatever happens to its connections."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import trio

from taskcast_trio.client import (
    AsyncTaskcastClient,
    EventsLost,
    EventTooLarge,
    Gap,
    ResponseError,
    ServerUnavailable,
)
from taskcast_trio.client.subscription import MAX_BACKOFF_S, Received, Subscription
from taskcast_trio.core.errors import Draining, TaskNotFound, Unauthorized
from taskcast_trio.core.model import Envelope

from .tiny_server import (
    RETRY_AT_ONCE,
    Handler,
    Peer,
    Request,
    answering,
    connected,
    done,
    envelope,
    event_id,
    gap,
    streaming,
)

EVENTS = [envelope(index) for index in range(5)]


def raw_index(item: Received) -> int:
    assert isinstance(item, Envelope)
    return item.raw_index


async def indexes(stream: Subscription[Any]) -> list[int | str]:
    """The raw indexes of what comes until the end, ``gap`` for a gap."""
    return [item.raw_index if isinstance(item, Envelope) else "gap" async for item in stream]


async def test_it_brings_the_events_and_ends_with_the_task() -> None:
    data = {"text": "é\n\u2028", "half": "\ud83d"}
    blocks = (
        envelope(0, data=data, seriesSnapshot=True),
        b": keepalive\n\n",
        b"event: new\ndata: 1\n\n",
    )
    script = streaming(*blocks, envelope(1), done("failed"), envelope(2))
    async with connected(script) as (server, client), client.subscribe("t") as stream:
        assert stream.done is None
        items = [item async for item in stream]
        assert [raw_index(item) for item in items] == [0, 1]
        assert isinstance(items[0], Envelope)
        assert items[0].series_snapshot is True
        assert json.loads(bytes(items[0].data)) == data  # type: ignore[arg-type]
        assert stream.done == "failed"
        assert stream.last_event_id == event_id(1)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    (request,) = server.requests
    assert (request.method, request.target) == ("GET", "/tasks/t/events")
    assert request.headers["accept"] == "text/event-stream"
    assert request.cursor is None


async def test_the_filter_goes_into_the_query() -> None:
    async with connected(streaming(done())) as (server, client):
        options = client.subscribe(
            "t",
            types=["llm.*", "a"],
            levels=["warn", "error"],
            include_status=False,
            series_format="accumulated",
            last_event_id="A-7",
        )
        async with options as stream:
            assert await indexes(stream) == []
    (request,) = server.requests
    assert dict(httpx.URL(request.target).params) == {
        "types": "llm.*,a",
        "levels": "warn,error",
        "includeStatus": "false",
        "seriesFormat": "accumulated",
    }
    assert request.cursor == "A-7"


def cutting_log(count: int, seed: int) -> Handler:
    """A log that honours the cursor, and cuts each connection at a random byte."""
    rng = random.Random(seed)

    async def handler(request: Request, peer: Peer) -> None:
        after = -1 if request.cursor is None else int(request.cursor.removeprefix("A-"))
        blocks = [envelope(index, data={"n": index}) for index in range(after + 1, count)]
        rest = b"".join([RETRY_AT_ONCE, *blocks, done()])
        # At least one whole event: after a connection that brought nothing, the client pauses.
        whole = len(RETRY_AT_ONCE) + len(blocks[0]) if blocks else len(rest)
        cut = min(rng.randrange(whole, whole + 2000), len(rest))
        await peer.stream()
        step = rng.randrange(1, 400)
        for start in range(0, cut, step):
            await peer.send(rest[start : min(start + step, cut)])
        if cut == len(rest):
            await peer.end()

    return handler


@pytest.mark.parametrize("seed", range(5))
async def test_each_event_comes_once_and_in_order_however_often_the_connection_is_cut(
    seed: int,
) -> None:
    async with (
        connected(cutting_log(200, seed)) as (server, client),
        client.subscribe("t") as stream,
    ):
        assert await indexes(stream) == list(range(200))
        assert (stream.done, stream.reconnects) == ("completed", len(server.requests) - 1)
    assert stream.reconnects > 10


@pytest.mark.parametrize("reset", [False, True])
async def test_a_half_received_event_comes_whole_after_the_reconnect(reset: bool) -> None:
    async def half(request: Request, peer: Peer) -> None:
        await peer.stream(RETRY_AT_ONCE, EVENTS[0])
        await received.wait()
        await peer.send(EVENTS[1][:-1])
        if reset:
            peer.reset()

    received = trio.Event()
    script = half, streaming(EVENTS[1], done())
    async with connected(*script) as (server, client), client.subscribe("t") as stream:
        first = await anext(stream)
        received.set()
        assert [raw_index(first), *await indexes(stream)] == [0, 1]
    assert [request.cursor for request in server.requests] == [None, event_id(0)]


async def test_the_cursor_is_that_of_the_last_event_handed_out_not_of_the_last_received() -> None:
    """What a caller stores with its own state must not run ahead of it."""
    async with (
        connected(streaming(*EVENTS, done())) as (_, client),
        client.subscribe("t", last_event_id="A-before") as stream,
    ):
        assert stream.last_event_id == "A-before"
        for index in range(3):
            await anext(stream)
            assert stream.last_event_id == event_id(index)


async def test_a_stream_that_ends_without_done_is_a_lost_connection() -> None:
    script = streaming(EVENTS[0]), streaming(EVENTS[1], done())
    async with connected(*script) as (_, client), client.subscribe("t") as stream:
        assert await indexes(stream) == [0, 1]


async def test_duplicates_are_dropped_when_a_server_starts_over() -> None:
    script = streaming(*EVENTS[:3], cut=True), streaming(*EVENTS, done())
    async with connected(*script) as (_, client), client.subscribe("t") as stream:
        assert await indexes(stream) == [0, 1, 2, 3, 4]


def latest(index: int, series: str = "progress") -> bytes:
    return envelope(index, seriesId=series, seriesMode="latest")


async def test_a_latest_event_ahead_of_its_turn_takes_none_along_at_a_cut() -> None:
    """In a replay it stands where its series began; its index is no promise about those below."""
    first = streaming(EVENTS[0], latest(4), EVENTS[1], cut=True)
    second = streaming(EVENTS[2], EVENTS[3], latest(4), envelope(5), done())
    async with connected(first, second) as (server, client), client.subscribe("t") as stream:
        assert await indexes(stream) == [0, 4, 1, 2, 3, 5]
    assert server.requests[1].cursor == event_id(1)


async def test_a_latest_event_that_replaced_one_seen_before_the_cut_is_handed_out() -> None:
    script = (
        streaming(latest(3), latest(4, "b"), cut=True),
        streaming(latest(5), latest(4, "b"), done()),
    )
    async with connected(*script) as (_, client), client.subscribe("t") as stream:
        assert await indexes(stream) == [3, 4, 5]


async def test_what_a_snapshot_still_to_come_holds_is_not_lost_at_a_cut() -> None:
    """An event without an id of its own moves no cursor: it comes again, and is dropped then."""

    def without_id(block: bytes) -> bytes:
        return b"".join(
            line for line in block.splitlines(keepends=True) if not line.startswith(b"id:")
        )

    first = streaming(EVENTS[0], without_id(EVENTS[2]), without_id(EVENTS[3]), cut=True)
    second = streaming(*EVENTS[1:], done())
    async with connected(first, second) as (server, client), client.subscribe("t") as stream:
        assert await indexes(stream) == [0, 2, 3, 1, 4]
    assert server.requests[1].cursor == event_id(0)


async def test_it_remembers_only_latest_events_that_may_come_again() -> None:
    """A log may hold any number of ``latest`` series; those behind the cursor are forgotten."""
    many = [latest(index, f"series {index}") for index in range(100)]
    script = streaming(*many, envelope(50), envelope(100), latest(101), done())
    async with connected(script) as (_, client), client.subscribe("t") as stream:
        assert await indexes(stream) == [*range(100), 50, 100, 101]
        assert stream._following.cursor.latest == {"progress": event_id(101)}


async def test_after_a_gap_everything_may_come_again() -> None:
    first = streaming(EVENTS[0], EVENTS[1], latest(2), cut=True)
    anew = [envelope(0, epoch="B"), envelope(1, epoch="B"), latest(2)]
    second = streaming(gap(), *anew, cut=True)
    third = streaming(envelope(3, epoch="B"), done())
    async with (
        connected(first, second, third) as (server, client),
        client.subscribe("t", gaps="deliver") as stream,
    ):
        assert await indexes(stream) == [0, 1, 2, "gap", 0, 1, 2, 3]
        assert list(stream.gaps) == [Gap(reason="unknown_cursor", replayed_from=0)]
    assert [r.cursor for r in server.requests] == [None, event_id(1), event_id(1, "B")]


async def test_after_a_gap_there_is_no_cursor_until_the_next_event() -> None:
    async with (
        connected(streaming(gap(), *EVENTS)) as (_, client),
        client.subscribe("t", last_event_id="old", gaps="deliver") as stream,
    ):
        assert isinstance(await anext(stream), Gap)
        assert stream.last_event_id is None
        await anext(stream)
        assert stream.last_event_id == event_id(0)


REASONS = ["unknown_cursor", "log_replaced", "events_expired", "of a later server"]


@pytest.mark.parametrize("reason", REASONS)
async def test_what_cannot_be_continued_is_raised_and_a_new_iteration_goes_on(reason: str) -> None:
    first = streaming(*EVENTS[:2], cut=True)
    second = streaming(gap(2, reason), envelope(2, epoch="B"), envelope(3, epoch="B"), done())
    async with connected(first, second) as (server, client), client.subscribe("t") as stream:
        with pytest.raises(EventsLost, match="Task t ") as lost:
            await indexes(stream)
        assert (lost.value.reason, lost.value.replayed_from) == (reason, 2)
        assert (lost.value.last_event_id, lost.value.task_id) == (event_id(1), "t")
        assert (stream.last_event_id, stream.done) == (None, None)
        assert await indexes(stream) == [2, 3]
        assert (stream.done, stream.last_event_id) == ("completed", event_id(3, "B"))
        assert list(stream.gaps) == [Gap(reason=reason, replayed_from=2)]
    assert len(server.requests) == 2, "it goes on over the connection that it has"


async def test_a_stale_cursor_is_raised_before_any_event() -> None:
    async with (
        connected(streaming(gap(), *EVENTS, done())) as (_, client),
        client.subscribe("t", last_event_id="old") as stream,
    ):
        with pytest.raises(EventsLost) as lost:
            await anext(stream)
        assert lost.value.last_event_id == "old"
        assert await indexes(stream) == [0, 1, 2, 3, 4]


async def test_a_cut_behind_a_loss_does_not_bring_back_the_cursor_that_was_lost() -> None:
    script = streaming(gap(), cut=True), streaming(*EVENTS, done())
    async with (
        connected(*script) as (server, client),
        client.subscribe("t", last_event_id="old") as stream,
    ):
        with pytest.raises(EventsLost):
            await anext(stream)
        assert await indexes(stream) == [0, 1, 2, 3, 4]
    assert [request.cursor for request in server.requests] == ["old", None]


async def test_204_says_that_the_task_has_ended_and_nothing_follows() -> None:
    script = streaming(EVENTS[0], cut=True), answering(204, Taskcast_Status="cancelled")
    async with connected(*script) as (_, client):
        async with client.subscribe("t") as stream:
            assert await indexes(stream) == [0]
            assert stream.done == "cancelled"
        async with client.subscribe("t", last_event_id=stream.last_event_id) as again:
            assert again.done == "cancelled"
            assert await indexes(again) == []


@pytest.mark.parametrize(("status", "expected"), [(404, TaskNotFound), (401, Unauthorized)])
async def test_a_refusal_while_reconnecting_is_raised(status: int, expected: type) -> None:
    script = streaming(EVENTS[0], cut=True), answering(status, {"error": "e"})
    async with connected(*script) as (_, client), client.subscribe("t") as stream:
        assert raw_index(await anext(stream)) == 0
        with pytest.raises(expected):
            await anext(stream)
        assert stream.done is None


async def test_what_is_only_for_now_is_raised_at_first_and_ridden_out_later() -> None:
    draining = answering(503, {"error": "e", "code": "draining"})
    async with connected(draining) as (_, client):
        with pytest.raises(Draining):
            async with client.subscribe("t"):
                pass
    script = streaming(EVENTS[0], cut=True), draining, streaming(EVENTS[1], done())
    async with connected(*script) as (_, client), client.subscribe("t") as stream:
        assert await indexes(stream) == [0, 1]
        assert stream.reconnects == 1


async def test_silence_longer_than_a_stall_is_a_lost_connection() -> None:
    async def stalls(request: Request, peer: Peer) -> None:
        await peer.stream(RETRY_AT_ONCE, EVENTS[0])
        await peer.closed()
        noticed.set()

    noticed = trio.Event()
    script = stalls, streaming(EVENTS[1], done())
    async with connected(*script) as (_, client):
        async with client.subscribe("t", stall_s=0.05) as stream:
            assert await indexes(stream) == [0, 1]
        await noticed.wait()


async def test_cancelling_a_step_closes_the_connection_and_loses_nothing() -> None:
    async def silent(request: Request, peer: Peer) -> None:
        await peer.stream(RETRY_AT_ONCE, EVENTS[0], EVENTS[1][:20])
        await peer.closed()
        closed.set()

    closed = trio.Event()
    script = silent, streaming(EVENTS[1], done())
    async with connected(*script) as (server, client), client.subscribe("t") as stream:
        assert raw_index(await anext(stream)) == 0
        async with trio.open_nursery() as nursery:
            step = trio.CancelScope()

            async def next_step() -> None:
                with step:
                    await anext(stream)

            nursery.start_soon(next_step)
            await trio.testing.wait_all_tasks_blocked()
            step.cancel()
        assert step.cancelled_caught
        await closed.wait()
        assert await indexes(stream) == [1]
    assert server.requests[1].cursor == event_id(0)


@pytest.mark.parametrize("blocks", [EVENTS, EVENTS * 2000, []])
async def test_leaving_early_closes_the_connection(blocks: list[bytes]) -> None:
    """Also with more on the way than anybody has read, and also when all of it is cancelled."""

    async def endless(request: Request, peer: Peer) -> None:
        await peer.stream(RETRY_AT_ONCE)
        try:
            await peer.send(b"".join(blocks) or b": nothing\n\n")
        except trio.BrokenResourceError:
            pass
        else:
            await peer.closed()
        closed.set()

    for cancelled in (False, True):
        closed = trio.Event()
        async with connected(endless) as (_, client):
            with trio.CancelScope() as scope:
                async with client.subscribe("t") as stream:
                    if blocks:
                        await anext(stream)
                    if cancelled:
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
            await closed.wait()


async def test_an_answer_that_is_no_event_stream_is_refused_without_reading_it() -> None:
    async def page(request: Request, peer: Peer) -> None:
        await peer.answer(200, b"<html>" * 100, Content_Type="text/html")

    async with connected(page) as (_, client):
        with pytest.raises(ResponseError, match="text/html"):
            async with client.subscribe("t"):
                pass


@pytest.mark.parametrize(
    "bad",
    [
        b"event: taskcast.event\ndata: {\n\n",
        b'event: taskcast.event\ndata: {"rawIndex":1}\n\n',
        b"event: taskcast.gap\ndata: null\n\n",
        b"event: taskcast.done\ndata: completed\n\n",
    ],
)
async def test_an_event_that_cannot_be_read_is_raised_after_those_before_it(bad: bytes) -> None:
    async with (
        connected(streaming(EVENTS[0] + bad)) as (_, client),
        client.subscribe("t") as stream,
    ):
        assert raw_index(await anext(stream)) == 0
        with pytest.raises(ResponseError, match="can't be read"):
            await anext(stream)


async def test_an_event_over_the_size_is_raised_and_not_held() -> None:
    big = envelope(1, data="x" * 5000)
    async with (
        connected(streaming(EVENTS[0], big)) as (_, client),
        client.subscribe("t", max_event_size=1000) as stream,
    ):
        assert raw_index(await anext(stream)) == 0
        with pytest.raises(EventTooLarge):
            await anext(stream)


# From here on in memory, on the virtual clock.

Answer = Callable[[httpx.Request], httpx.Response]


async def broken(*blocks: bytes) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block
    raise httpx.ReadError("cut")


def connection(*blocks: bytes) -> httpx.Response:
    headers = {"Content-Type": "text/event-stream"}
    return httpx.Response(200, headers=headers, content=broken(*blocks))


class Attempts:
    """Answers one request after the other, and notes when they came."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.times: list[float] = []
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if self.answers else httpx.ConnectError("refused")
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def pauses(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    def subscribe(self, patience_s: float) -> Subscription[Envelope]:
        client = AsyncTaskcastClient("http://server", http=self.http)
        return client.subscribe("t", patience_s=patience_s)


async def test_it_waits_as_long_as_the_server_asks_then_longer_each_time_it_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = [httpx.ConnectError("refused")] * 6
    first = connection(b"retry: 1000\n\n", EVENTS[0])
    attempts = Attempts(first, *failures, connection(EVENTS[1]), connection(done()))
    async with attempts.subscribe(patience_s=1000) as stream:
        assert await indexes(stream) == [0, 1]
    expected = [1, 1, 2, 4, 8, 16, MAX_BACKOFF_S, 1]
    assert len(attempts.pauses) == len(expected)
    for pause, least in zip(attempts.pauses, expected, strict=True):
        assert least <= pause <= 1.5 * least


@pytest.mark.parametrize("retry", [b"0", b"9" * 5000])
async def test_no_retry_time_makes_it_spin_or_sleep_for_ever(
    retry: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Connections that bring nothing but a retry time are failures, too."""
    attempts = Attempts(*[connection(b"retry: " + retry + b"\n\n") for _ in range(30)])
    with trio.move_on_after(300):
        async with attempts.subscribe(patience_s=1000) as stream:
            await indexes(stream)
    assert 300 / (1.5 * MAX_BACKOFF_S) - 1 <= len(attempts.times) <= 20
    assert max(attempts.pauses) <= 1.5 * MAX_BACKOFF_S


async def test_a_server_that_stays_away_ends_its_patience(
    autojump_clock: trio.testing.MockClock,
) -> None:
    attempts = Attempts(connection(EVENTS[0]))
    async with attempts.subscribe(patience_s=60) as stream:
        assert raw_index(await anext(stream)) == 0
        lost_at = trio.current_time()
        with pytest.raises(ServerUnavailable):
            await anext(stream)
        assert 60 < trio.current_time() - lost_at <= 60 + 1.5 * MAX_BACKOFF_S


async def test_many_readers_do_not_come_back_at_the_same_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    attempts = [Attempts(connection(EVENTS[0]), connection(done())) for _ in range(20)]

    async def follow(each: Attempts) -> None:
        async with each.subscribe(patience_s=60) as stream:
            await indexes(stream)

    async with trio.open_nursery() as nursery:
        for each in attempts:
            nursery.start_soon(follow, each)
    pauses = [each.pauses[0] for each in attempts]
    assert len(set(pauses)) > 10
    assert max(pauses) - min(pauses) > 0.1


async def silent(*blocks: bytes) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block
    await trio.sleep_forever()


def quiet(*blocks: bytes) -> httpx.Response:
    """A connection that stays open and brings nothing more."""
    headers = {"Content-Type": "text/event-stream"}
    return httpx.Response(200, headers=headers, content=silent(*blocks))


@pytest.mark.parametrize("step_s", [0.5, 5])
async def test_steps_that_are_given_up_early_come_to_every_event_all_the_same(
    step_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Also where each is shorter than the pause before the next connection: the pauses go on where
    a step left them, and no server is asked more often for it.
    """
    retry = b"retry: 2000\n\n"
    attempts = Attempts(quiet(retry, EVENTS[0]), quiet(retry), quiet(EVENTS[1], done()))
    seen: list[int] = []
    async with attempts.subscribe(patience_s=60) as stream:
        while stream.done is None and trio.current_time() < 100:
            with trio.move_on_after(step_s):
                async for item in stream:
                    seen.append(raw_index(item))
    assert seen == [0, 1]
    if step_s < 2:
        assert min(attempts.pauses) >= 2
    else:
        assert attempts.pauses[0] == step_s  # it was up for longer than a pause


def farewell(code: str = "token_expired") -> bytes:
    return f'event: taskcast.error\ndata: {{"code":"{code}"}}\n\n'.encode()


async def test_who_can_renew_a_token_comes_back_at_once_and_only_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = b"retry: 5000\n\n"
    first = connection(slow, EVENTS[0], farewell())
    attempts = Attempts(first, connection(slow, farewell()), connection(EVENTS[1], done()))
    async with attempts.subscribe(patience_s=60) as stream:
        assert await indexes(stream) == [0, 1]
    at_once, later = attempts.pauses
    assert at_once == 0
    assert later >= 5


async def test_a_server_that_says_when_is_not_asked_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    body = {"error": "e", "code": "rate_limited"}
    limited = httpx.Response(429, headers={"Retry-After": "20"}, json=body)
    first = connection(b"retry: 1\n\n", EVENTS[0])
    attempts = Attempts(first, limited, connection(EVENTS[1], done()))
    async with attempts.subscribe(patience_s=60) as stream:
        assert await indexes(stream) == [0, 1]
    assert 20 <= attempts.pauses[1] <= 30


@pytest.mark.parametrize(
    ("said", "stalls"),
    [
        (None, (30, 60, 3)),
        ("15", (30, 30, 3)),
        ("0.75", (1.5, 1.5, 3)),
        ("0.01", (1, 1, 3)),
        ("600", (1200, 1200, 3)),
        ("soon", (30, 60, 3)),
        ("nan", (30, 60, 3)),
        ("inf", (30, 60, 3)),
        ("-1", (30, 60, 3)),
    ],
)
async def test_two_keepalives_that_do_not_come_are_a_lost_connection(
    said: str | None, stalls: tuple[float, ...]
) -> None:
    """Of the server's period, which the head says; else as a server has it that is not configured.
    What the caller says goes before.
    """
    requests = []

    async def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = connection(done())
        answer.headers.update({} if said is None else {"Taskcast-Keepalive": said})
        return answer

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    client = AsyncTaskcastClient("http://server", http=http)
    for stream in (client.subscribe("t"), client.subscribe_all(), client.subscribe("t", stall_s=3)):
        async with stream:
            assert await indexes(stream) == []
    assert tuple(each.extensions["timeout"]["read"] for each in requests) == stalls


async def test_following_all_tasks_tells_what_a_lost_connection_costs() -> None:
    """There is no cursor over all: the same indexes are of other tasks, and a hole is told."""
    script = (
        streaming(EVENTS[0], envelope(0, taskId="u"), cut=True),
        streaming(envelope(0, taskId="v"), done()),
    )
    async with (
        connected(*script) as (server, client),
        client.subscribe_all(types=["note"], gaps="deliver") as all_,
    ):
        assert await indexes(all_) == [0, 0, "gap", 0]
        assert list(all_.gaps) == [Gap(reason="reconnected", replayed_from=-1)]
    assert [request.cursor for request in server.requests] == [None, None]
    assert {request.target for request in server.requests} == {"/events?types=note&existing=true"}


async def test_following_all_tasks_raises_what_a_lost_connection_costs() -> None:
    script = streaming(EVENTS[0], cut=True), streaming(envelope(0, taskId="v"), done())
    async with connected(*script) as (server, client), client.subscribe_all() as all_:
        assert raw_index(await anext(all_)) == 0
        with pytest.raises(EventsLost, match="any task") as lost:
            await anext(all_)
        assert (lost.value.reason, lost.value.task_id) == ("reconnected", None)
        assert await indexes(all_) == [0]
    assert len(server.requests) == 2


async def test_a_place_in_time_is_asked_for_until_there_is_a_cursor() -> None:
    since = datetime.fromtimestamp(1.5, UTC)
    script = streaming(cut=True), streaming(EVENTS[0], cut=True), streaming(EVENTS[1], done())
    async with connected(*script) as (server, client), client.subscribe("t", since=since) as stream:
        assert await indexes(stream) == [0, 1]
    queries = [dict(httpx.URL(request.target).params) for request in server.requests]
    assert queries == [{"since.timestamp": "1500"}, {"since.timestamp": "1500"}, {}]
    assert server.requests[2].cursor == event_id(0)
