"""Publishing over a WebSocket: answers in order, errors that cost nothing, and a clean end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Limits
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.engine import TaskEngine, open_runtime
from taskcast_trio.server.app import create_app

EVENT = {"type": "a", "level": "info"}


def text_of(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def frame(text: str) -> bytes:
    """A text frame as a client sends it, with a mask of zeros (RFC 6455, section 5.2)."""
    size = len(text)
    length = b"\xff" + size.to_bytes(8) if size > 0xFFFF else b"\xfe" + size.to_bytes(2)
    return b"\x81" + length + bytes(4) + text.encode()


CLOSE_FRAME = b"\x88\x80" + bytes(4)


@asynccontextmanager
async def raw_socket(server: Any, task: str) -> AsyncIterator[trio.SocketStream]:
    """A connection after the handshake, with little room for what it does not read."""
    socket = trio.socket.socket()
    socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 8192)
    async with trio.SocketStream(socket) as peer:
        await socket.connect(("127.0.0.1", server.port))
        fields = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
        head = f"GET /tasks/{task}/events/ws HTTP/1.1\r\nHost: h\r\n{fields}\r\n"
        await peer.send_all(head.encode())
        assert (await peer.receive_some()).startswith(b"HTTP/1.1 101")
        yield peer


@asynccontextmanager
async def opened(server: Any, task: str) -> AsyncIterator[WebSocketConnection]:
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    # The client leaves a stream open that the server has closed.
    async with stream, trio.open_nursery() as nursery:
        socket = await wrap_client_stream(nursery, stream, "h", f"/tasks/{task}/events/ws")
        yield socket
        await socket.aclose()


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


async def ask(socket: WebSocketConnection, message: str | bytes) -> dict[str, Any]:
    await socket.send_message(message)
    return await answer_of(socket)


async def answer_of(socket: WebSocketConnection) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(await socket.get_message())
    return answer


async def close_of(socket: WebSocketConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        await socket.get_message()
    assert caught.value.reason is not None
    return caught.value.reason.code, caught.value.reason.reason or ""


async def stored(server: Any, task: str) -> list[Any]:
    events = (await server.client.get(f"/tasks/{task}/events/history")).json()
    return [event.get("data") for event in events]


async def test_one_event_or_an_array_in_each_message_and_its_indexes_in_the_answer(
    server: Any,
) -> None:
    task = await server.task()
    async with opened(server, task) as socket:
        assert await ask(socket, text_of({**EVENT, "data": 1})) == {
            "ok": True,
            "firstIndex": 0,
            "lastIndex": 0,
        }
        batch = [{**EVENT, "data": n} for n in (2, 3, 4)]
        assert await ask(socket, text_of(batch)) == {"ok": True, "firstIndex": 1, "lastIndex": 3}
        assert await ask(socket, "[]") == {"ok": True}
    assert await stored(server, task) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('{"type":', "not valid JSON"),
        ("", "no body"),
        (text_of([EVENT, {"type": "a"}]), "$[1]"),
        (text_of({**EVENT, "level": "loud"}), "expected debug, info, warn, error"),
        ('{"type":"a\\n","level":"info"}', "U+000A"),
        (text_of({**EVENT, "data": "x" * 1000}), "limit of 1000 bytes"),
        (text_of([EVENT] * 11), "at most 10 events"),
        (text_of(EVENT).encode(), "text message"),
    ],
)
async def test_a_bad_message_stores_nothing_and_the_next_one_is_taken(
    start: Any, message: str | bytes, text: str
) -> None:
    async with start(Config(limits=Limits(body_bytes=1000, batch_events=10))) as server:
        task = await server.task()
        async with opened(server, task) as socket:
            refusal = await ask(socket, message)
            assert (refusal["ok"], text in refusal["error"]) == (False, True), refusal
            assert refusal["code"] in ("bad_request", "payload_too_large")
            assert (await ask(socket, text_of({**EVENT, "data": 1})))["lastIndex"] == 0
        assert await stored(server, task) == [1]


async def test_a_thousand_messages_sent_ahead_are_answered_in_order(server: Any) -> None:
    task = await server.task()
    async with opened(server, task) as socket, trio.open_nursery() as nursery:

        async def send_all() -> None:
            for n in range(1000):
                bad = n % 100 == 50
                await socket.send_message("?" if bad else text_of({**EVENT, "data": n}))

        nursery.start_soon(send_all)
        answers = [await answer_of(socket) for _ in range(1000)]
    assert [n for n, answer in enumerate(answers) if not answer["ok"]] == list(range(50, 1000, 100))
    assert [a["firstIndex"] for a in answers if a["ok"]] == list(range(990))
    assert await stored(server, task) == [n for n in range(1000) if n % 100 != 50]


async def test_what_was_sent_before_a_close_is_stored_though_no_answer_is_read(
    server: Any,
) -> None:
    task = await server.task()
    async with opened(server, task) as socket:
        for n in range(50):
            await socket.send_message(text_of({**EVENT, "data": n}))
    while len(found := await stored(server, task)) < 50:
        await trio.lowlevel.checkpoint()
    assert found == list(range(50))


async def test_an_unknown_or_ended_task_is_told_in_place_of_the_handshake(
    server: Any,
) -> None:
    task = await server.task()
    await server.move(task, "cancelled")
    for name, status, code in (("none", 404, "task_not_found"), (task, 400, "task_ended")):
        answer = await server.client.get(f"/tasks/{name}/events/ws", headers=HANDSHAKE)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_draining_server_refuses_the_handshake() -> None:
    async with open_runtime() as runtime:
        app = create_app(runtime)
        task = await runtime.engine.create()
        runtime.drain.set()
        sent = await handshake(app, f"/tasks/{task.id}/events/ws")
        assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 503)
        assert (b"retry-after", b"1") in sent[0]["headers"]
        plain = await handshake(app, f"/tasks/{task.id}/events/ws", extensions={})
        assert (plain[0]["type"], plain[0]["code"]) == ("websocket.close", 1008)


async def handshake(app: Any, path: str, **fields: Any) -> list[dict[str, Any]]:
    """What ``app`` sends in answer to a handshake alone."""
    sent: list[dict[str, Any]] = []
    messages = [{"type": "websocket.connect"}]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return messages.pop()

    scope = {
        "type": "websocket",
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"h")],
        "extensions": {"websocket.http.response": {}},
        **fields,
    }
    await app.asgi_app(scope, receive, send)
    return sent


async def test_other_paths_are_no_sockets(server: Any) -> None:
    task = await server.task()
    for path in (f"{task}/events/wss", f"{task}/events/ws/x", f"{task}/ws", "/events/ws"):
        async with httpx.AsyncClient(base_url=server.url) as client:
            answer = await client.get(f"/tasks/{path}", headers=HANDSHAKE)
            assert answer.status_code == 404


async def test_an_encoded_slash_belongs_to_the_id(server: Any) -> None:
    await server.task(id="a/b")
    async with opened(server, "a%2Fb") as socket:
        assert (await ask(socket, text_of(EVENT)))["ok"]


async def test_a_request_without_a_handshake_is_told_to_upgrade(server: Any) -> None:
    task = await server.task()
    answer = await server.client.get(f"/tasks/{task}/events/ws")
    assert (answer.status_code, answer.headers["Upgrade"]) == (426, "websocket")
    assert answer.json()["code"] == "upgrade_required"
    assert (await server.client.post(f"/tasks/{task}/events/ws")).status_code == 404


@pytest.mark.parametrize("end", ["cancelled", "deleted"])
async def test_the_end_of_the_task_is_answered_and_closes(server: Any, end: str) -> None:
    task = await server.task()
    async with opened(server, task) as socket:
        assert (await ask(socket, text_of(EVENT)))["ok"]
        if end == "deleted":
            await server.client.delete(f"/tasks/{task}")
        else:
            await server.move(task, end)
        refusal = await ask(socket, text_of(EVENT))
        assert refusal["code"] == ("task_not_found" if end == "deleted" else "task_ended")
        assert await close_of(socket) == (1000, "the task has ended")


async def test_the_end_of_the_task_reaches_a_peer_that_has_sent_ahead(server: Any) -> None:
    """A close over unread input must not become a reset that eats the answers."""
    task = await server.task()
    async with raw_socket(server, task) as peer:
        await server.move(task, "cancelled")
        await peer.send_all(frame(text_of({**EVENT, "data": "x" * 10_000})) * 300 + CLOSE_FRAME)
        got = b""
        while data := await peer.receive_some():
            got += data
    assert b'"code":"task_ended"' in got
    assert got.count(b'"ok"') == 1
    assert got.endswith((1000).to_bytes(2) + b"the task has ended")


async def test_a_drain_closes_after_the_message_in_work(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await server.task()
    working, go_on = trio.Event(), trio.Event()
    publish = TaskEngine.publish

    async def slow(self: TaskEngine, *args: Any, **kwargs: Any) -> Any:
        working.set()
        await go_on.wait()
        return await publish(self, *args, **kwargs)

    async with opened(server, task) as idle, opened(server, task) as busy:
        with monkeypatch.context() as patch:
            patch.setattr(TaskEngine, "publish", slow)
            await busy.send_message(text_of(EVENT))
            await working.wait()
        server.runtime.drain.set()
        assert (await close_of(idle))[0] == 1001
        go_on.set()
        assert await answer_of(busy) == {"ok": True, "firstIndex": 0, "lastIndex": 0}
        assert (await close_of(busy))[0] == 1001


async def test_trouble_of_the_store_is_an_answer_like_any_other(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await server.task()

    async def away(*args: Any, **kwargs: Any) -> Sequence[Any]:
        raise StoreUnavailable("The store is away")

    async with opened(server, task) as socket:
        with monkeypatch.context() as patch:
            patch.setattr(TaskEngine, "publish", away)
            refusal = await ask(socket, text_of(EVENT))
        assert refusal == {"ok": False, "error": "The store is away", "code": "store_unavailable"}
        assert (await ask(socket, text_of(EVENT)))["ok"]


async def test_a_frame_over_the_limit_of_the_server_closes_with_1009(server: Any) -> None:
    task = await server.task()
    async with opened(server, task) as socket:
        await socket.send_message(text_of({**EVENT, "data": "x" * 300 * 1024}))
        assert (await close_of(socket))[0] == 1009
    assert await stored(server, task) == []


class Watched:
    """An app that counts its open WebSockets and the text that they have received."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.open = 0
        self.received_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def count() -> Any:
            message = await receive()
            self.received_bytes += len(message.get("text") or "")
            return message

        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        self.open += 1
        try:
            await self._app(scope, count, send)
        finally:
            self.open -= 1


async def test_a_peer_that_reads_no_answers_is_no_longer_read_and_leaves_nothing_behind(
    start: Any,
) -> None:
    watched: list[Watched] = []

    def watch(app: Any) -> Watched:
        watched.append(Watched(app))
        return watched[0]

    async with start(mount=watch) as server:
        task = await server.task()
        async with raw_socket(server, task) as peer:
            # The answer repeats what is wrong, so that it is as long as the message.
            message = frame(text_of({"type": "a", "level": "x" * 100 * 1024}))
            sent_bytes = 0

            async def send_for_ever() -> None:
                nonlocal sent_bytes
                while True:
                    rest = message[sent_bytes % len(message) :]
                    sent_bytes += await peer.socket.send(rest)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_for_ever)
                await wait_all_tasks_blocked(0.2)
                assert watched[0].open == 1
                assert watched[0].received_bytes < 16 * 1024 * 1024
                assert sent_bytes < 32 * 1024 * 1024
                nursery.cancel_scope.cancel()
        while watched[0].open:
            await trio.lowlevel.checkpoint()
