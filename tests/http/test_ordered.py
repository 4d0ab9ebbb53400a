"""Exactly-once publishing over HTTP: JSON, batches, lines, a WebSocket, and two processes."""

from __future__ import annotations

from typing import Any

import httpx
import jwt
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskcast_trio.config import Config, Secret
from taskcast_trio.config.schema import Auth, Jwt, Publish

from .conftest import Running, start_server
from .reading import opened as stream_of
from .test_publish_ws import answer_of, ask, opened, text_of
from .test_redis import config as redis_config

NDJSON = {"Content-Type": "application/x-ndjson"}
QUICK = Config(publish=Publish(seq_hold_ms=300))
PATIENT = Config(publish=Publish(seq_hold_ms=60_000))


def counted(seq: int, client_id: str = "me", **fields: Any) -> dict[str, Any]:
    return {"type": "a", "level": "info", "clientId": client_id, "clientSeq": seq, **fields}


async def post(server: Running, task: str, body: Any, **headers: str) -> httpx.Response:
    return await server.client.post(f"/tasks/{task}/events", json=body, headers=headers)


async def expected(server: Running, task: str, client_id: str = "me") -> int:
    answer = await server.client.get(f"/tasks/{task}/seq/{client_id}")
    assert answer.status_code == 200
    assert set(answer.json()) == {"clientId", "expectedSeq"}
    seq: int = answer.json()["expectedSeq"]
    return seq


async def seqs(server: Running, task: str) -> list[Any]:
    events = (await server.client.get(f"/tasks/{task}/events/history")).json()
    return [event.get("clientSeq") for event in events]


async def held(server: Running, number: int = 1) -> None:
    """Return when so many publishes wait."""
    with trio.fail_after(10):
        while server.runtime.engine._publishing._holds._count != number:
            await trio.lowlevel.checkpoint()


async def test_a_repeat_has_the_first_answer_and_everybody_sees_the_seq(server: Running) -> None:
    task = await server.task()
    first = await post(server, task, counted(0, data={"n": 1}))
    assert first.status_code == 201
    assert first.json()["clientId"] == "me"
    assert first.json()["clientSeq"] == 0
    assert "seqMode" not in first.json()
    again = await post(server, task, counted(0, data={"n": 1}))
    assert (again.status_code, again.content) == (201, first.content)
    await post(server, task, {"type": "a", "level": "info"})
    assert await seqs(server, task) == [0, None]
    async with stream_of(server, f"/tasks/{task}/events") as stream:
        envelope = (await stream.event())[1]
        assert (envelope["clientId"], envelope["clientSeq"]) == ("me", 0)
        assert "clientId" not in (await stream.event())[1]


async def test_a_batch_of_which_half_was_stored_is_answered_whole(server: Running) -> None:
    task = await server.task()
    first = (await post(server, task, [counted(0), counted(1)])).json()
    again = await post(server, task, [counted(n) for n in range(4)])
    assert again.status_code == 201
    assert again.json()[:2] == first
    assert [event["index"] for event in again.json()] == [0, 1, 2, 3]
    gap = await post(server, task, [counted(4), counted(6)])
    assert gap.status_code == 400
    assert "$[1].clientSeq" in gap.json()["error"]
    assert await expected(server, task) == 4


async def test_fast_fail_tells_what_is_expected(server: Running) -> None:
    task = await server.task()
    answer = await post(server, task, counted(3, seqMode="fast-fail"))
    assert answer.status_code == 409
    assert (answer.json()["code"], answer.json()["expectedSeq"]) == ("seq_gap", 0)
    assert await seqs(server, task) == []


async def test_a_gap_is_held_until_it_is_filled_or_its_time_is_out(start: Any) -> None:
    async with start(QUICK) as server, trio.open_nursery() as nursery:
        task = await server.task()
        answers: list[httpx.Response] = []

        async def publish(*numbers: int) -> None:
            answers.append(await post(server, task, [counted(n) for n in numbers]))

        nursery.start_soon(publish, 2)
        await held(server)
        await publish(0, 1)
        with trio.fail_after(10):
            while len(answers) < 2:
                await trio.lowlevel.checkpoint()
        assert [answer.status_code for answer in answers] == [201, 201]
        assert await seqs(server, task) == [0, 1, 2]
        late = await post(server, task, counted(7, seqMode="hold"))
        assert (late.status_code, late.json()["code"]) == (409, "seq_gap")
        assert late.json()["expectedSeq"] == 3


async def test_who_leaves_while_held_is_waited_for_no_more(start: Any) -> None:
    async with start(PATIENT) as server:
        task = await server.task()
        with trio.move_on_after(10), trio.CancelScope() as leaving:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, server, task, counted(1))
                await held(server)
                leaving.cancel()
        await held(server, 0)
        assert (await post(server, task, counted(0))).status_code == 201
        assert await seqs(server, task) == [0]


async def test_a_drain_ends_the_wait_at_once(start: Any) -> None:
    async with start(PATIENT) as server, trio.open_nursery() as nursery:
        task = await server.task()

        async def publish() -> None:
            answer = await post(server, task, counted(1))
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert answer.headers["retry-after"]

        nursery.start_soon(publish)
        await held(server)
        server.runtime.drain.set()


async def test_too_many_that_wait_are_told_to_come_back(start: Any) -> None:
    limits = Publish(seq_hold_ms=60_000, held_per_task=1)
    async with start(Config(publish=limits)) as server, trio.open_nursery() as nursery:
        task = await server.task()
        nursery.start_soon(post, server, task, counted(1))
        await held(server)
        answer = await post(server, task, counted(2))
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert answer.headers["retry-after"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("event", "place"),
    [
        ({"clientId": "me"}, "clientSeq"),
        ({"clientSeq": 0}, "clientId"),
        ({"clientId": "", "clientSeq": 0}, "clientId"),
        ({"clientId": 5, "clientSeq": 0}, "clientId"),
        ({"clientId": "a\u0000", "clientSeq": 0}, "clientId"),
        ({"clientId": "x" * 256, "clientSeq": 0}, "clientId"),
        ({"clientId": "me", "clientSeq": -1}, "clientSeq"),
        ({"clientId": "me", "clientSeq": 2**53}, "clientSeq"),
        ({"clientId": "me", "clientSeq": 1.5}, "clientSeq"),
        ({"clientId": "me", "clientSeq": None}, "clientSeq"),
        ({"clientId": "me", "clientSeq": 0, "seqMode": "maybe"}, "seqMode"),
    ],
)
async def test_bad_fields_are_named(server: Running, event: dict[str, Any], place: str) -> None:
    task = await server.task()
    answer = await post(server, task, {"type": "a", "level": "info", **event})
    assert answer.status_code == 400
    assert place in answer.json()["error"]
    assert await seqs(server, task) == []


async def test_where_a_publisher_stands(server: Running) -> None:
    task = await server.task()
    assert await expected(server, task) == 0
    await post(server, task, [counted(0, "a/b %"), counted(1, "a/b %")])
    assert await expected(server, task, "a%2Fb%20%25") == 2
    assert (await server.client.get("/tasks/none/seq/me")).status_code == 404
    assert (await server.client.get(f"/tasks/{task}/seq/{'x' * 256}")).status_code == 400


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)


async def send_lines(server: Running, task: str, *events: dict[str, Any]) -> httpx.Response:
    path = f"/tasks/{task}/events"
    return await server.client.post(path, content=lines(*events), headers=NDJSON)


async def test_lines_can_simply_be_sent_again(server: Running) -> None:
    task = await server.task()
    events = [counted(n) for n in range(30)]
    first = await send_lines(server, task, *events[:20])
    assert first.json() == {"accepted": 20, "firstIndex": 0, "lastIndex": 19}
    again = await send_lines(server, task, *events)
    assert again.json() == {"accepted": 30, "firstIndex": 0, "lastIndex": 29}
    assert await seqs(server, task) == list(range(30))


async def test_lines_before_a_gap_stay_and_the_end_tells_what_is_expected(start: Any) -> None:
    async with start(QUICK) as server:
        task = await server.task()
        events = [counted(0), counted(1), counted(3), counted(4)]
        stopped = await send_lines(server, task, *events)
        assert stopped.status_code == 409
        said = stopped.json()
        assert (said["code"], said["accepted"], said["expectedSeq"]) == ("seq_gap", 2, 2)
        assert await seqs(server, task) == [0, 1]


async def test_lines_behind_a_gap_are_held_until_another_one_fills_it(start: Any) -> None:
    async with start(PATIENT) as server, trio.open_nursery() as nursery:
        task = await server.task()

        async def publish() -> None:
            answer = await send_lines(server, task, counted(0), counted(2), counted(3))
            assert answer.json()["accepted"] == 3

        nursery.start_soon(publish)
        await held(server)
        await post(server, task, counted(1))
    assert await seqs_of(server, task) == [0, 1, 2, 3]


async def seqs_of(server: Running, task: str) -> list[Any]:
    history = await server.runtime.engine.history(task)
    return [event.client_seq async for page in history.pages() for event in page]


async def test_a_socket_answers_repeats_holds_gaps_and_tells_what_is_expected(start: Any) -> None:
    async with start(QUICK) as server:
        task = await server.task()
        async with opened(server, task) as socket:
            batch = text_of([counted(0), counted(1)])
            for _ in range(2):
                assert await ask(socket, batch) == {"ok": True, "firstIndex": 0, "lastIndex": 1}
            await socket.send_message(text_of(counted(3)))
            await held(server)
            await socket.send_message(text_of(counted(4)))  # comes while the other one is held
            await post(server, task, counted(2))
            assert await answer_of(socket) == {"ok": True, "firstIndex": 3, "lastIndex": 3}
            assert await answer_of(socket) == {"ok": True, "firstIndex": 4, "lastIndex": 4}
            refusal = await ask(socket, text_of(counted(9)))
            assert (refusal["code"], refusal["expectedSeq"]) == ("seq_gap", 5)
            assert await ask(socket, text_of(counted(5))) == {
                "ok": True,
                "firstIndex": 5,
                "lastIndex": 5,
            }


async def test_the_indexes_of_what_came_in_another_order_are_a_range(server: Running) -> None:
    events = [counted(2), counted(0), counted(1)]
    task = await server.task()
    async with opened(server, task) as socket:
        answer = await ask(socket, text_of(events))
        assert answer == {"ok": True, "firstIndex": 0, "lastIndex": 2}
    answered = await send_lines(server, task, counted(1), counted(0), counted(3), counted(2))
    assert answered.json() == {"accepted": 4, "firstIndex": 0, "lastIndex": 3}
    assert await seqs(server, task) == [0, 1, 2, 3]


async def test_a_socket_that_closes_while_held_is_waited_for_no_more(start: Any) -> None:
    async with start(PATIENT) as server:
        task = await server.task()
        async with opened(server, task) as socket:
            await socket.send_message(text_of(counted(1)))
            await held(server)
        await held(server, 0)
        await post(server, task, counted(0))
        assert await seqs(server, task) == [0]


SECRET = "a secret of these tests, long enough for HS256"


async def test_who_may_publish_may_ask_and_a_wait_ends_with_the_token(start: Any) -> None:
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET)), stream_expiry_grace_seconds=0)
    config = Config(
        auth=auth,
        admin_api=True,
        admin_token=Secret("the admin token of these tests"),
        publish=Publish(seq_hold_ms=60_000),
    )

    def bearer(**claims: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {jwt.encode({'scope': ['*'], **claims}, SECRET)}"}

    async with start(config) as server, trio.open_nursery() as nursery:
        server.client.headers.update(bearer())
        task = await server.task()
        reader = bearer(scope=["event:subscribe"])
        for headers, status in ((bearer(scope=["event:publish"]), 200), (reader, 403)):
            answer = await server.client.get(f"/tasks/{task}/seq/me", headers=headers)
            assert answer.status_code == status

        async def publish() -> None:
            answer = await post(server, task, counted(1), **bearer(sub="eve"))
            assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")

        nursery.start_soon(publish)
        await held(server)
        body = {"adminToken": "the admin token of these tests", "sub": "eve"}
        assert (await server.client.post("/admin/revoke", json=body)).status_code == 204


async def test_a_gap_is_filled_through_another_process() -> None:
    config = redis_config(publish=Publish(seq_hold_ms=60_000))
    async with start_server(config) as one, start_server(config) as other:
        task = await one.task()
        answers: list[httpx.Response] = []

        async def publish(server: Running, *numbers: int) -> None:
            answers.append(await post(server, task, [counted(n) for n in numbers]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, one, 3)
            nursery.start_soon(publish, other, 2)
            await held(one)
            await held(other)
            with trio.fail_after(3):  # sooner than any backstop
                await publish(other, 0, 1)
                while len(answers) < 3:
                    await trio.lowlevel.checkpoint()
        assert all(answer.status_code == 201 for answer in answers)
        assert await seqs(one, task) == [0, 1, 2, 3]
        assert await expected(other, task) == 4
        again = await post(other, task, [counted(n) for n in range(5)])
        assert [event["index"] for event in again.json()] == [0, 1, 2, 3, 4]
        await wait_all_tasks_blocked(0.01)
        assert one.runtime.engine.fanout.subscribers(task) == 0
