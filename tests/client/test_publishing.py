"""Publishing in order: what goes out when, what is sent again, and what ends it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from taskcast_trio.client import (
    AsyncTaskcastClient,
    RetryPolicy,
    ServerUnavailable,
    TaskcastClient,
    draft,
    sync_run,
)
from taskcast_trio.client.ending import cause, ended
from taskcast_trio.client.outbox import (
    MAX_BATCH_BYTES,
    MAX_BATCH_EVENTS,
    MAX_WAITING,
    Outbox,
    delivered,
)
from taskcast_trio.core.errors import (
    BadRequest,
    PayloadTooLarge,
    SeqGap,
    SeqStale,
    TaskEnded,
    TaskFull,
)
from taskcast_trio.core.model import Draft

from .real_server import running_server
from .test_retries import LOST, Played, refused, reply
from .tiny_server import Handler, Peer, Request, answering, connected, serve

POLICY = RetryPolicy(tries=3)
STORED = reply(201, [])


def filled(*data: Any, client_id: str = "c", next_seq: int = 0) -> Outbox:
    outbox = Outbox(client_id, next_seq)
    for each in data:
        outbox.put(draft("n", each))
    return outbox


def seqs(drafts: list[Draft]) -> list[Any]:
    return [each.client_seq for each in drafts]


def bodies(played: Played) -> list[list[int]]:
    return [
        [event["clientSeq"] for event in json.loads(request.body or b"")] for request in played.sent
    ]


def test_events_are_numbered_from_where_the_publisher_stands() -> None:
    outbox = filled("a", "b", next_seq=7)
    batch = outbox.take()
    assert seqs(batch) == [7, 8]
    assert {(each.client_id, each.seq_mode) for each in batch} == {("c", "fast-fail")}
    assert outbox.unstored
    outbox.sent(batch, None)
    assert not outbox.unstored
    assert outbox.take() == []


def test_batches_are_bounded_by_count_and_by_size() -> None:
    outbox = filled(*range(MAX_BATCH_EVENTS + 1))
    assert seqs(outbox.take()) == list(range(MAX_BATCH_EVENTS))
    assert seqs(outbox.take()) == [MAX_BATCH_EVENTS]
    third = "x" * (MAX_BATCH_BYTES // 3)
    outbox = filled(third, third, third, "x" * 2 * MAX_BATCH_BYTES, "y")
    assert [seqs(outbox.take()) for _ in range(5)] == [[0, 1], [2], [3], [4], []]


def test_a_full_outbox_says_so_by_count_and_by_size() -> None:
    outbox = filled(*range(MAX_WAITING))
    assert outbox.full
    outbox.take()
    assert not outbox.full
    outbox = filled(*["x" * 1024 * 1024] * 4)
    assert outbox.full
    outbox.broke(ValueError())
    assert not outbox.full
    with pytest.raises(ValueError):
        outbox.check()


def test_a_batch_whose_answer_was_lost_is_sent_as_it_was() -> None:
    batch = filled(1, 2, 3).take()
    played = Played(delivered("t", batch, POLICY), LOST, refused(503, "draining"), STORED)
    assert played.raised is None
    assert played.sent[0] == played.sent[1] == played.sent[2]
    assert bodies(played)[0] == [0, 1, 2]


def test_a_gap_is_final_as_the_server_has_lost_what_it_had() -> None:
    gap = reply(409, {"error": "e", "code": "seq_gap", "expectedSeq": 1})
    raised = Played(delivered("t", filled(1, next_seq=5).take(), POLICY), gap).raised
    assert isinstance(raised, SeqGap)
    assert raised.facts == {"expectedSeq": 1}


def test_what_is_too_much_at_once_goes_in_smaller_parts() -> None:
    """A server may take fewer events at once than the client sends, a proxy a shorter body."""
    batch = filled(*range(5)).take()
    too_much, full = refused(413, "payload_too_large"), refused(413, "task_full")
    played = Played(
        delivered("t", batch, POLICY), too_much, STORED, reply(413), STORED, *[STORED] * 2
    )
    assert bodies(played) == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [2], [3], [4]]
    for answers, error in (([too_much] * 3, PayloadTooLarge), ([full], TaskFull)):
        raised = Played(delivered("t", batch, POLICY), *answers).raised
        assert isinstance(raised, error)


async def test_an_event_that_nobody_takes_is_refused_before_it_takes_others_along() -> None:
    stored = answering(201, [])
    async with connected(stored) as (server, client), client.publisher("t") as publisher:
        await publisher.emit("good")
        with pytest.raises(BadRequest, match="type"):
            await publisher.emit("b\nd")
        await publisher.emit("good")
    sent = [event for request in server.requests for event in json.loads(request.body)]
    assert [(event["type"], event["clientSeq"]) for event in sent] == [("good", 0), ("good", 1)]


def test_what_was_stored_long_ago_is_left_out() -> None:
    def stale(expected: int) -> Any:
        return reply(409, {"error": "e", "code": "seq_stale", "expectedSeq": expected})

    batch = filled(1, 2, 3).take()
    assert bodies(Played(delivered("t", batch, POLICY), stale(2), STORED)) == [[0, 1, 2], [2]]
    assert Played(delivered("t", batch, POLICY), stale(3)).raised is None
    assert isinstance(Played(delivered("t", batch, POLICY), stale(0)).raised, SeqStale)


class Log:
    """A server that holds the answers to publishes until it may give them."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go = trio.Event()
        self.came = trio.Event()

    async def __call__(self, request: Request, peer: Peer) -> None:
        events = json.loads(request.body)
        self.batches.append([event["data"] for event in events])
        self.came.set()
        await self.go.wait()
        await peer.answer(201, [])


async def test_the_first_event_waits_for_nothing_and_the_others_make_up_a_batch() -> None:
    log = Log()
    async with connected(log) as (_, client), client.publisher("t") as publisher:
        await publisher.emit("n", 0)
        await log.came.wait()
        assert log.batches == [[0]]
        for number in range(1, 10):
            await publisher.emit("n", number)
        log.go.set()
        await publisher.flush()
        assert log.batches == [[0], list(range(1, 10))]


async def test_who_emits_faster_than_the_server_takes_waits() -> None:
    log = Log()
    async with connected(log) as (_, client), client.publisher("t") as publisher:
        emitted = 0

        async def emit() -> None:
            nonlocal emitted
            for number in range(2 * MAX_WAITING):
                await publisher.emit("n", number)
                emitted += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(emit)
            await log.came.wait()
            while emitted < MAX_WAITING:
                await trio.testing.wait_all_tasks_blocked()
            assert emitted <= MAX_WAITING + MAX_BATCH_EVENTS
            log.go.set()
    assert [event for batch in log.batches for event in batch] == list(range(2 * MAX_WAITING))


async def test_what_ends_the_sending_is_raised_by_the_next_call() -> None:
    ended_task = answering(400, {"error": "over", "code": "task_ended"})
    async with connected(ended_task) as (server, client):
        with pytest.raises(TaskEnded, match="over"):
            async with client.publisher("t") as publisher:
                await publisher.emit("n")
                while True:
                    await publisher.emit("n")
        assert len(server.requests) == 1


async def test_leaving_in_order_raises_what_could_not_be_stored() -> None:
    away = answering(503, {"error": "e", "code": "draining"})
    async with connected(away) as (_, client):
        with pytest.raises(Exception, match="e") as caught:
            async with client.publisher("t", retries=RetryPolicy(tries=1)) as publisher:
                await publisher.emit("n")
        assert caught.value.status == 503  # type: ignore[attr-defined]


async def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    async with connected(answering(201, [])) as (_, client):
        with pytest.raises(KeyError):
            async with client.publisher("t") as publisher:
                await publisher.emit("n")
                raise KeyError("mine")


async def test_a_server_that_answers_nothing_holds_up_no_cancelled_body_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The end of the task is tried for a while, shielded; then the cancellation goes on."""

    async def never(request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH" and b"running" in request.content:
            return httpx.Response(200, json=TASK)
        await trio.sleep_forever()
        raise AssertionError

    http = httpx.AsyncClient(transport=httpx.MockTransport(never))
    client = AsyncTaskcastClient("http://server", http=http)
    notes: list[str] = []
    with trio.move_on_after(5) as scope:
        try:
            async with client.run("t") as run:
                await run.emit("n")
                await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            notes = cancelled.__notes__
            raise
    assert scope.cancelled_caught
    assert "The end of task t could not be told: TimeoutError: not within 10 s" in notes
    assert "Of what was emitted to task t the last 1 may be lost" in notes
    assert 15 <= trio.current_time() <= 26


def test_no_thread_of_a_publisher_goes_on_after_it_was_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither does it send: what was emitted is given up when its owner has gone."""
    monkeypatch.setattr(sync_run, "END_S", 0.05)

    def away(request: httpx.Request) -> httpx.Response:
        tried.set()
        raise httpx.ConnectError("refused")

    tried = threading.Event()
    patient = RetryPolicy(tries=1000, first_pause_s=60, max_pause_s=60)
    client = TaskcastClient("http://server", http=httpx.Client(transport=httpx.MockTransport(away)))
    with pytest.raises(KeyError) as caught, client.publisher("t", retries=patient) as publisher:
        publisher.emit("n")
        assert tried.wait(10)
        raise KeyError("mine")
    assert caught.value.__notes__[0].startswith(
        "Of what was emitted to task t the last 1 may be lost"
    )
    assert not [each for each in threading.enumerate() if each.name == "publish to t"]


TASK = {"id": "t", "status": "running", "createdAt": 1, "updatedAt": 2}


async def test_an_end_that_cannot_be_told_is_a_note_on_the_error() -> None:
    script: list[Handler] = [
        answering(200, TASK),
        answering(404, {"error": "gone", "code": "task_not_found"}),
    ]
    async with connected(*script) as (_, client):
        with pytest.raises(ValueError, match="mine") as caught:
            async with client.run("t"):
                raise ValueError("mine")
    assert "gone" in "".join(caught.value.__notes__)


def test_the_end_of_a_run_is_not_tried_for_longer_than_it_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However patient the client is otherwise: somebody may have pressed Ctrl-C."""
    monkeypatch.setattr(sync_run, "END_S", 0.05)

    def answer(request: httpx.Request) -> httpx.Response:
        if b"running" in request.content:
            return httpx.Response(200, json=TASK)
        raise httpx.ReadTimeout("silence")

    http = httpx.Client(transport=httpx.MockTransport(answer))
    patient = RetryPolicy(tries=1000, first_pause_s=60, max_pause_s=60)
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        TaskcastClient("http://server", http=http, retries=patient).run("t"),
    ):
        raise KeyboardInterrupt
    assert caught.value.__notes__ == [
        "The end of task t could not be told: "
        "ServerUnavailable: No answer from http://server: silence"
    ]


async def test_a_run_that_is_cancelled_while_it_begins_is_told_so() -> None:
    async def slow(request: Request, peer: Peer) -> None:
        came.set()
        await trio.sleep_forever()

    came = trio.Event()
    async with (
        serve(slow, answering(200, TASK)) as server,
        AsyncTaskcastClient(server.url) as client,
        trio.open_nursery() as nursery,
    ):

        async def begin() -> None:
            async with client.run("t"):
                raise AssertionError("it did not begin")

        nursery.start_soon(begin)
        await came.wait()
        nursery.cancel_scope.cancel()
    statuses = [json.loads(request.body)["status"] for request in server.requests]
    assert statuses == ["running", "cancelled"]


async def test_a_task_that_is_named_cannot_be_described() -> None:
    async with connected(answering(200, TASK)) as (_, client):
        with pytest.raises(TypeError):
            client.run("t", type="x")


def test_the_end_says_what_went_wrong() -> None:
    def told(exc: BaseException) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ended("t", exc).request.body or b"")
        return found

    assert told(ValueError("no")) == {
        "status": "failed",
        "error": {"code": "ValueError", "message": "no"},
    }
    group = ExceptionGroup("some", [ExceptionGroup("in", [KeyError("k")]), ValueError("v")])
    assert isinstance(cause(group), KeyError)
    assert told(KeyboardInterrupt()) == {"status": "cancelled", "reason": "KeyboardInterrupt"}
    mixed = BaseExceptionGroup("some", [KeyboardInterrupt(), ValueError("v")])
    assert told(mixed)["error"]["code"] == "ValueError"
    assert told(ValueError("x" * 5000 + "\ud83d"))["error"]["message"] == "x" * 2000


async def test_no_server_ends_the_patience_of_a_publisher() -> None:
    async with serve(answering(201)) as server:
        url = server.url
    quick = RetryPolicy(tries=3, first_pause_s=0.001)
    async with AsyncTaskcastClient(url) as client:
        with pytest.raises(ServerUnavailable):
            async with client.publisher("t", retries=quick) as publisher:
                await publisher.emit("n")


async def _cancelled_by_asyncio(url: str) -> str:
    async with AsyncTaskcastClient(url) as client:
        began = asyncio.Event()
        ids = []

        async def work() -> None:
            async with client.run(type="work") as run:
                ids.append(run.id)
                await run.emit("before")
                began.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [event.type for event in await client.history(ids[0], types=["before"])]
        return (await client.get(ids[0])).status


def test_what_asyncio_itself_cancels_is_cancelled_too() -> None:
    """Not a scope of anyio, but ``Task.cancel``, as timeouts and task groups of asyncio do."""
    with running_server() as url, asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(_cancelled_by_asyncio(url)) == "cancelled"
