"""Workers over a WebSocket: what they are told, bad messages, and how they leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import jwt
import msgspec
import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from taskcast_trio.config import Auth, Config, Jwt, Secret, Workers
from taskcast_trio.config.schema import Limits, WorkerDefaults
from taskcast_trio.core.model import CreateTask

from ..waiting import until

SECRET = "a secret of the tests, of 32 bytes or more"


def config(**defaults: Any) -> Config:
    return Config(workers=Workers(enabled=True, defaults=WorkerDefaults(**defaults)))


@pytest.fixture
async def server(start: Any) -> AsyncIterator[Any]:
    async with start(config(offer_timeout_ms=500)) as running:
        yield running


class Peer:
    """A worker's end of its connection."""

    def __init__(self, socket: WebSocketConnection, stream: trio.SocketStream) -> None:
        self.socket = socket
        self.stream = stream

    async def say(self, **message: Any) -> None:
        await self.socket.send_message(msgspec.json.encode(message).decode())

    async def hear(self, wait_s: float = 5) -> dict[str, Any]:
        with trio.fail_after(wait_s):
            while True:
                told: dict[str, Any] = msgspec.json.decode(await self.socket.get_message())
                if told["type"] != "ping":
                    return told

    async def ask(self, **message: Any) -> dict[str, Any]:
        await self.say(**message)
        return await self.hear()

    async def heard_all(self) -> bool:
        """Whether it was told nothing more by now: the answer comes behind whatever it was."""
        told = await self.ask(type="nothing")
        return bool(told["code"] == "UNKNOWN_TYPE")

    async def closed(self) -> tuple[int, str]:
        with trio.fail_after(5), pytest.raises(ConnectionClosed) as caught:
            while True:
                await self.socket.get_message()
        assert caught.value.reason is not None
        return caught.value.reason.code, caught.value.reason.reason or ""

    def vanish(self) -> None:
        """End without a word."""
        self.stream.socket.close()


@asynccontextmanager
async def connected(
    server: Any, worker: str | None = None, headers: dict[str, str] | None = None, **fields: Any
) -> AsyncIterator[Peer]:
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    async with trio.open_nursery() as nursery:
        socket = await wrap_client_stream(nursery, stream, "h", "/workers/ws", extra_headers=extra)
        peer = Peer(socket, stream)
        if worker is not None:
            told = await peer.ask(type="register", workerId=worker, **fields)
            assert told == {"type": "registered", "workerId": worker}
        yield peer
        with trio.move_on_after(2):
            await socket.aclose()
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def status_of(server: Any, task: str) -> str:
    found: str = (await server.client.get(f"/tasks/{task}")).json()["status"]
    return found


async def slots_are_free(server: Any) -> bool:
    found: dict[str, Any] = (await server.client.get("/workers/w")).json()
    return bool(found["usedSlots"] == 0)


async def offered(peer: Peer, task: str, type_: str = "offer") -> None:
    told = await peer.hear()
    assert (told["type"], told["taskId"]) == (type_, task)


async def taken(server: Any, peer: Peer, **fields: Any) -> tuple[str, dict[str, str]]:
    task = await server.task(assignMode="ws-offer", **fields)
    await offered(peer, task)
    told = await peer.ask(type="accept", taskId=task)
    assert told["type"] == "assigned"
    return task, {"Taskcast-Fence": str(told["fence"])}


@pytest.mark.parametrize("status", ["cancelled", "paused", "timeout", "pending"])
async def test_a_task_that_somebody_else_ends_is_cancelled_at_its_worker_at_once(
    server: Any, status: str
) -> None:
    async with connected(server, "w", matchRule={"taskTypes": ["x"]}) as peer:
        task, fence = await taken(server, peer, type="x")
        started = trio.current_time()
        await server.move(task, status)
        told = await peer.hear()
        reason = "reassigned" if status == "pending" else status
        expected = {"type": "cancel", "taskId": task, "reason": reason, "fence": 1}
        assert told == expected
        assert trio.current_time() - started < 0.5
        event = {"type": "a", "level": "info"}
        late = await server.client.post(f"/tasks/{task}/events", json=event, headers=fence)
        code = "stale_fence" if status == "pending" else "task_cancelled"
        assert (late.status_code, late.json()["code"]) == (409, code)


async def test_a_deleted_task_is_cancelled_too_and_what_the_worker_ends_itself_is_not(
    server: Any,
) -> None:
    async with connected(server, "w") as peer:
        task, fence = await taken(server, peer)
        await server.client.delete(f"/tasks/{task}")
        assert (await peer.hear())["reason"] == "deleted"
        task, fence = await taken(server, peer)
        for status in ("running", "completed"):
            answer = await server.client.patch(
                f"/tasks/{task}/status", json={"status": status}, headers=fence
            )
            assert answer.json()["assignedWorker"] == "w"
        assert await peer.heard_all()
        await until(lambda: slots_are_free(server))


async def test_no_cancel_for_an_open_offer_nor_for_a_lost_race(server: Any) -> None:
    async with connected(server, "a") as a, connected(server, "b") as b:
        task = await server.task(assignMode="ws-race")
        await offered(a, task, "available")
        await offered(b, task, "available")
        assert (await a.ask(type="claim", taskId=task))["success"] is True
        lost = await b.ask(type="claim", taskId=task)
        assert lost == {"type": "claimed", "taskId": task, "success": False}
        await server.move(task, "cancelled")
        assert (await a.hear())["type"] == "cancel"
        assert await b.heard_all()
    async with connected(server, "c", capacity=1) as c:
        task = await server.task(assignMode="ws-offer")
        await offered(c, task)
        await server.move(task, "cancelled")
        told = await c.ask(type="accept", taskId=task)
        assert (told["type"], told["code"]) == ("error", "not_pending")


async def test_an_offer_that_nobody_accepts_moves_to_the_next_one(server: Any) -> None:
    async with (
        connected(server, "a", weight=90) as a,
        connected(server, "b", weight=10) as b,
    ):
        task = await server.task(assignMode="ws-offer")
        await offered(a, task)
        started = trio.current_time()
        await offered(b, task)
        assert 0.3 < trio.current_time() - started < 2
        assert (await b.ask(type="accept", taskId=task))["type"] == "assigned"
        assert (await a.ask(type="accept", taskId=task))["code"] == "not_pending"


async def test_an_offer_reserves_nothing_and_capacity_is_never_exceeded(server: Any) -> None:
    async with connected(server, "w", capacity=3) as peer:
        tasks = [await server.task(cost=2), await server.task(), await server.task()]
        answers = [await peer.ask(type="claim", taskId=task) for task in tasks]
        assert [told["success"] for told in answers] == [True, True, False]
        found = (await server.client.get("/workers/w")).json()
        assert (found["usedSlots"], found["status"]) == (3, "busy")


async def test_what_waited_goes_out_a_second_after_a_worker_comes_and_at_once_when_a_slot_frees(
    server: Any,
) -> None:
    tasks = [await server.task(assignMode="ws-offer") for _ in range(3)]
    async with connected(server, "w", capacity=1) as peer:
        started = trio.current_time()
        for expected in tasks:
            await offered(peer, expected)
            waited = trio.current_time() - started
            assert (0.8 if expected == tasks[0] else 0) <= waited < 2.5
            await peer.ask(type="accept", taskId=expected)
            started = trio.current_time()
            await server.move(expected, "cancelled")
            assert (await peer.hear())["type"] == "cancel"


async def is_offline(server: Any) -> bool:
    found: dict[str, Any] = (await server.client.get("/workers/w")).json()
    return found.get("status") == "offline"


async def test_who_says_that_it_leaves_is_gone_at_once_and_who_does_not_is_offline(
    start: Any,
) -> None:
    async with start(config()) as server:
        async with connected(server, "w") as peer:
            await taken(server, peer)
            peer.vanish()
            await until(lambda: is_offline(server))
        async with connected(server, "v") as peer:
            await taken(server, peer)
            await peer.socket.aclose()

            async def is_gone() -> bool:
                answer = await server.client.get("/workers/v")
                return bool(answer.status_code == 404)

            await until(is_gone)


async def test_a_worker_that_comes_back_in_time_keeps_what_it_names(start: Any) -> None:
    async with start(config()) as server:
        async with connected(server, "w") as peer:
            kept, fence = await taken(server, peer)
            lost, _ = await taken(server, peer)
            peer.vanish()
            await until(lambda: is_offline(server))
        holding = [{"taskId": kept, "fence": int(fence["Taskcast-Fence"])}]
        async with connected(server, "w", tasks=holding, capacity=1):
            assert await status_of(server, lost) == "pending"
            answer = await server.client.patch(
                f"/tasks/{kept}/status", json={"status": "running"}, headers=fence
            )
            assert answer.status_code == 200


async def test_the_same_id_on_another_connection_replaces_the_first(server: Any) -> None:
    async with connected(server, "w") as old, connected(server, "w", capacity=7) as new:
        assert await old.closed() == (1000, "replaced")
        assert (await server.client.get("/workers/w")).json()["capacity"] == 7
        task = await server.task(assignMode="ws-offer")
        await offered(new, task)


async def test_a_worker_that_is_deleted_is_disconnected(server: Any) -> None:
    async with connected(server, "w") as peer:
        assert (await server.client.delete("/workers/w")).status_code == 204
        assert await peer.closed() == (1000, "deleted")
        assert (await server.client.get("/workers/w")).status_code == 404


async def test_who_is_silent_for_too_long_is_cut(start: Any) -> None:
    async with start(config(heartbeat_interval_ms=100, heartbeat_timeout_ms=400)) as server:
        async with connected(server, "w") as peer:
            assert (await peer.closed())[0] == 1008
            assert (await server.client.get("/workers/w")).json()["status"] == "offline"
        async with connected(server) as peer:
            assert (await peer.closed())[0] == 1008, "a connection that never registers"


async def test_a_worker_that_does_not_read_is_cut_and_costs_the_others_nothing(
    start: Any,
) -> None:
    async with start(config()) as server, connected(server, "w") as peer:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        fields = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
        await stream.send_all(f"GET /workers/ws HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
        async with stream, trio.open_nursery() as nursery:

            async def shout() -> None:
                # A text frame with a mask of zeros (RFC 6455, section 5.2).
                message = b'{"type":"%b"}' % (b"x" * 60)
                frame = b"\x81" + bytes([0x80 | len(message)]) + bytes(4) + message
                try:
                    while True:
                        await stream.send_all(frame * 100)
                except trio.BrokenResourceError:
                    cut.set()

            cut = trio.Event()
            nursery.start_soon(shout)
            for _ in range(5):
                await taken(server, peer)
            with trio.fail_after(15):
                await cut.wait()


async def test_a_worker_that_reads_slowly_is_not_cut_by_what_it_may_claim(start: Any) -> None:
    async with start(config()) as server, connected(server, "w") as peer:
        peer.stream.setsockopt(SOL_SOCKET, SO_RCVBUF, 512 * 1024)
        params = Raw(b'"%b"' % (b"x" * 20_000))
        for number in range(1000):
            await server.runtime.engine.create(
                CreateTask(id=f"t{number}", assign_mode="ws-race", params=Raw(b'{"p":%b}' % params))
            )
        await wait_all_tasks_blocked(0.01)
        claimed = await peer.ask(type="claim", taskId="t999")
        while claimed["type"] == "available":
            claimed = await peer.hear()
        assert claimed["success"] is True


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
BAD: list[tuple[str | bytes, str]] = [
    ("{bad", "INVALID_JSON"),
    ("", "INVALID_JSON"),
    ("[" * 100_000, "INVALID_JSON"),
    ('{"type":"nope"}', "UNKNOWN_TYPE"),
    ('{"type":{"a":1}}', "UNKNOWN_TYPE"),
    ("null", "UNKNOWN_TYPE"),
    ('{"type":"accept"}', "NOT_REGISTERED"),
    ('{"type":"register","capacity":0}', "bad_request"),
    ('{"type":"register","capacity":-1}', "bad_request"),
    ('{"type":"register","capacity":"9"}', "bad_request"),
    ('{"type":"register","workerId":""}', "bad_request"),
    ('{"type":"register","matchRule":[]}', "bad_request"),
    (b"\x00\x01", "INVALID_MESSAGE"),
]
REGISTERED = [
    ('{"type":"register"}', "ALREADY_REGISTERED"),
    ('{"type":"accept","taskId":5}', "INVALID_MESSAGE"),
    ('{"type":"decline"}', "INVALID_MESSAGE"),
    ('{"type":"claim","taskId":null}', "INVALID_MESSAGE"),
    ('{"type":"accept","taskId":"none"}', "task_not_found"),
    ('{"type":"accept","taskId":"\\ud800"}', "task_not_found"),
    ('{"type":"pong","tasks":5}', "INVALID_MESSAGE"),
    ('{"type":"pong","tasks":[{"taskId":"t"}]}', "INVALID_MESSAGE"),
]


async def test_bad_messages_get_an_error_with_a_code_and_the_connection_stays(
    server: Any,
) -> None:
    async with connected(server) as peer:
        for message, code in BAD:
            await peer.socket.send_message(message)
            told = await peer.hear()
            assert (told["type"], told["code"]) == ("error", code), message
        assert (await peer.ask(type="register"))["type"] == "registered"
        for message, code in REGISTERED:
            await peer.socket.send_message(message)
            told = await peer.hear()
            assert (told["type"], told["code"]) == ("error", code), message
        for update in (
            {"weight": "9"},
            {"weight": 1e400},
            {"capacity": 0},
            {"capacity": True},
            {"matchRule": 5},
        ):
            await peer.say(type="update", **update)
        await taken(server, peer)


async def test_a_message_that_is_too_large_ends_its_own_connection_only(server: Any) -> None:
    async with connected(server, "w") as peer, connected(server, "other") as other:
        await other.socket.send_message("x" * 300_000)
        assert (await other.closed())[0] == 1009
        await peer.say(type="update", weight=99)
        await taken(server, peer)


async def test_a_thousand_messages_and_a_close_are_reaped(server: Any) -> None:
    async with connected(server, "w") as peer:
        for _ in range(1000):
            await peer.say(type="pong")
        await peer.say(type="drain")
        peer.vanish()
    await until(lambda: not server.runtime.workers.dispatcher.sessions)


async def test_declined_is_told_when_it_is_so_and_before_the_task_comes_back(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignments = server.runtime.workers.assignments
    decline, begun, go_on = assignments.decline, trio.Event(), trio.Event()

    async def late(*args: Any, **kwargs: Any) -> bool:
        begun.set()
        await go_on.wait()
        had_it: bool = await decline(*args, **kwargs)
        return had_it

    monkeypatch.setattr(assignments, "decline", late)
    async with connected(server, "w") as peer:
        task, _ = await taken(server, peer)
        await peer.say(type="decline", taskId=task)
        await begun.wait()
        record = await server.runtime.engine.record(task)
        session = server.runtime.workers.dispatcher.sessions["w"]
        session.offer(record.task, 1, server.runtime.engine.clock() + 500)
        go_on.set()
        assert await peer.hear() == {"type": "declined", "taskId": task}
        assert await status_of(server, task) == "pending"
        assert (await server.client.get("/workers/w")).json()["usedSlots"] == 0
        await offered(peer, task)


async def test_the_drain_tells_workers_to_come_back(server: Any) -> None:
    async with connected(server, "w") as peer:
        await taken(server, peer)
        server.runtime.drain.set()
        assert (await peer.closed())[0] == 1001


async def test_a_token_is_for_its_own_worker_and_ends_its_connection(start: Any) -> None:
    auth = Auth(mode="jwt", jwt=Jwt(secret=Secret(SECRET)), stream_expiry_grace_seconds=0.001)
    async with start(Config(auth=auth, workers=Workers(enabled=True))) as server:

        def bearer(**claims: Any) -> dict[str, str]:
            token = jwt.encode({"scope": ["worker:connect"], **claims}, SECRET, "HS256")
            return {"Authorization": f"Bearer {token}"}

        now_s = server.runtime.engine.clock() / 1000
        async with connected(server, headers=bearer(workerId="w", exp=now_s + 2)) as peer:
            told = await peer.ask(type="register", workerId="v")
            assert (told["type"], told["code"]) == ("error", "forbidden")
            assert (await peer.ask(type="register"))["workerId"] == "w"
            async with connected(server, headers=bearer(sub="bob")) as other:
                told = await other.ask(type="register", workerId="w")
                assert (told["type"], told["code"]) == ("error", "forbidden")
            assert await peer.closed() == (1008, "token_expired")


async def test_a_worker_too_many_is_refused_and_its_connection_stays(start: Any) -> None:
    full = Config(workers=Workers(enabled=True), limits=Limits(workers=1))
    async with start(full) as server, connected(server, "w"), connected(server) as other:
        told = await other.ask(type="register", workerId="other")
        assert (told["type"], told["code"]) == ("error", "rate_limited")
        assert (await server.client.delete("/workers/w")).status_code == 204
        told = await other.ask(type="register", workerId="other")
        assert told == {"type": "registered", "workerId": "other"}


async def test_a_task_that_was_claimed_without_room_is_told_again_when_there_is_room(
    start: Any,
) -> None:
    async with start(config()) as server, connected(server, "w", capacity=1) as peer:
        race = await server.task(assignMode="ws-race")
        await offered(peer, race, "available")
        task, _ = await taken(server, peer)
        told = await peer.ask(type="claim", taskId=race)
        assert told == {"type": "claimed", "taskId": race, "success": False}
        await server.move(task, "cancelled")
        assert (await peer.hear())["type"] == "cancel"
        await offered(peer, race, "available")
        assert (await peer.ask(type="claim", taskId=race))["success"] is True
