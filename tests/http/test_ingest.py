"""Events as NDJSON: stored as they come, however they are cut, with an exact account of the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate, cycle, pairwise
from typing import Any

import httpx
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from trio.testing import wait_all_tasks_blocked

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Limits
from taskcast_trio.core.access import OPEN
from taskcast_trio.core.errors import StoreUnavailable, TaskEnded
from taskcast_trio.core.model import Transition
from taskcast_trio.engine import Runtime, TaskEngine, open_runtime
from taskcast_trio.server import ingest
from taskcast_trio.server.auth.admission import Admissions
from taskcast_trio.server.auth.gate import CALLER
from taskcast_trio.server.auth.limits import StreamSlots
from taskcast_trio.server.hot import HotRoutes

NDJSON = {"Content-Type": "application/x-ndjson"}
NDJSON_TYPE = b"application/x-ndjson"
MIB = 1024 * 1024


def line(data: Any) -> bytes:
    return msgspec.json.encode({"type": "a", "level": "info", "data": data})


def raw_line(data: bytes) -> bytes:
    return b'{"type":"a","level":"info","data":%b}' % data


async def in_parts(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def cut(text: bytes, sizes: Iterable[int]) -> list[bytes]:
    ends = [0]
    for end in accumulate(sizes):
        ends.append(min(end, len(text)))
        if end >= len(text):
            break
    return [text[a:b] for a, b in pairwise(ends)]


async def send(server: Any, task: str, body: Any, **headers: str) -> httpx.Response:
    answer: httpx.Response = await server.client.post(
        f"/tasks/{task}/events", content=body, headers={**NDJSON, **headers}
    )
    return answer


async def stored(server: Any, task: str) -> list[Any]:
    events = (await server.client.get(f"/tasks/{task}/events/history")).json()
    return [event.get("data") for event in events]


# Directly to the application: exact chunks, and a clock that jumps


class Upload:
    """A request to ``app`` whose body comes message by message."""

    def __init__(
        self, app: HotRoutes, path: str, *messages: dict[str, Any], type_: bytes = NDJSON_TYPE
    ) -> None:
        self._app = app
        self._path = path
        self._type = type_
        self._messages = list(messages)
        self.pause_s = 0
        self.received = 0
        self.sent: list[dict[str, Any]] = []

    async def _receive(self) -> dict[str, Any]:
        await trio.sleep(self.pause_s if self.received else 0)
        if not self._messages:
            await trio.sleep_forever()
        self.received += 1
        return self._messages.pop(0)

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def run(self) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"h"), (b"content-type", self._type)],
            CALLER: OPEN,
        }
        await self._app(scope, self._receive, self._send)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = msgspec.json.decode(self.sent[1]["body"])
        return answer


class Direct:
    """A runtime with one task, and the routes without a server."""

    def __init__(self, runtime: Runtime, task: str) -> None:
        self.engine = runtime.engine
        self.task = task
        slots = StreamSlots(total=100, per_caller=100)
        admissions = Admissions(slots, clock_ms=runtime.engine.clock, grace_s=0)
        self._app = HotRoutes(nothing_else, runtime, admissions)

    def upload(self, *messages: dict[str, Any], task: str | None = None, **how: Any) -> Upload:
        return Upload(self._app, f"/tasks/{task or self.task}/events", *messages, **how)

    async def log(self) -> list[bytes]:
        """The data of each event as it is stored; nothing for none."""
        history = await self.engine.history(self.task)
        events = [event async for page in history.pages() for event in page]
        return [b"" if event.data is UNSET else bytes(event.data) for event in events]


@asynccontextmanager
async def direct(config: Config | None = None) -> AsyncIterator[Direct]:
    async with open_runtime(config) as runtime:
        yield Direct(runtime, (await runtime.engine.create()).id)


async def nothing_else(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(scope)


def body_of(*chunks: bytes) -> list[dict[str, Any]]:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    return messages


async def upload(config: Config, *chunks: bytes) -> tuple[int, dict[str, Any], list[bytes]]:
    async with direct(config) as to:
        request = to.upload(*body_of(*chunks))
        await request.run()
        return request.status, request.answer, await to.log()


async def one_by_one(config: Config, lines: Sequence[bytes]) -> list[bytes]:
    """The log after ``lines`` came as bodies of their own."""
    async with direct(config) as to:
        for each in lines:
            request = to.upload(*body_of(each), type_=b"application/json")
            await request.run()
            assert request.status == 201, request.answer
        return await to.log()


# What is stored, and what is answered


async def test_twenty_thousand_lines_in_odd_chunks_are_stored_in_order(server: Any) -> None:
    task = await server.task()
    text = b"".join(line(n) + b"\n" for n in range(20_000))
    chunks = cut(text, cycle([1, 7, 30_011, 2, 65_537, 100_003, 13]))
    answer = await send(server, task, in_parts(chunks))
    assert answer.status_code == 201
    assert answer.json() == {"accepted": 20_000, "firstIndex": 0, "lastIndex": 19_999}
    assert await stored(server, task) == list(range(20_000))


async def test_a_body_that_comes_byte_by_byte(server: Any) -> None:
    task = await server.task()
    text = b"\r\n\n" + line("ö") + b"\r\n  \t\n" + line({"a": [1]})
    answer = await send(server, task, in_parts(cut(text, cycle([1]))))
    assert answer.json() == {"accepted": 2, "firstIndex": 0, "lastIndex": 1}
    assert await stored(server, task) == ["ö", {"a": [1]}]


async def test_the_answer_has_the_indexes_of_the_log(server: Any) -> None:
    task = await server.task()
    await server.publish(task, {"type": "b", "level": "info"}, {"type": "b", "level": "info"})
    answer = await send(server, task, line(1) + b"\n" + line(2))
    assert answer.json() == {"accepted": 2, "firstIndex": 2, "lastIndex": 3}


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n \n\n"])
async def test_a_body_without_events_is_no_error_and_has_no_indexes(
    server: Any, body: bytes
) -> None:
    answer = await send(server, await server.task(), body)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 0})


@pytest.mark.parametrize(
    "media_type",
    ["application/x-ndjson", "Application/X-NDJSON", "application/x-ndjson ; charset=utf-8"],
)
async def test_the_type_is_known_with_parameters_and_in_any_case(
    server: Any, media_type: str
) -> None:
    task = await server.task()
    body = line(1) + b"\n" + line(2) + b"\n"
    answer = await send(server, task, body, **{"Content-Type": media_type})
    assert answer.json()["accepted"] == 2
    plain = await send(server, task, line(1), **{"Content-Type": "application/x-ndjsonx"})
    assert plain.json()["data"] == 1


async def test_a_body_may_be_longer_than_the_limit_of_other_bodies(start: Any) -> None:
    async with start(Config(limits=Limits(body_bytes=100, batch_events=3))) as server:
        task = await server.task()
        answer = await send(server, task, b"\n".join(line(n) for n in range(100)))
        assert (answer.status_code, answer.json()["accepted"]) == (201, 100)


async def test_followers_get_the_events_before_the_body_is_complete(server: Any) -> None:
    task = await server.task()

    async def body() -> AsyncIterator[bytes]:
        yield line(1) + b"\n"
        while await stored(server, task) != [1]:
            await trio.lowlevel.checkpoint()
        yield line(2)

    assert (await send(server, task, body())).json()["accepted"] == 2


SPECIAL = [
    line(0),
    raw_line(b'"\\ud83d\\ude00"'),
    raw_line(b'"\\ud83d"'),
    raw_line(b'"\\udc00 e123 E+400"'),
    raw_line('"ö\u2028😀"'.encode()),
    raw_line(b"[" * 100 + b"]" * 100),
    raw_line(b"[" + b",".join([b"[]"] * 200) + b"]"),
    raw_line(b"[1e10,\r 2]"),
    b"\xef\xbb\xbf" + line("bom"),
    b' \t{"type": "a", "level": "info", "other": {"x": 1e300}} ',
    raw_line(b'"' + b"x" * 3000 + b'"'),
    b"",
    b" \t",
]
BROKEN = [
    b"{",
    b"null",
    b"[" + line(1) + b"]",
    line(1) + line(2),
    raw_line(b"1e400"),
    raw_line(b"9" * 400),
    raw_line(b'"\xff"'),
    raw_line(b"[" * 128 + b"]" * 128),
    b'{"type":"a\\n","level":"info"}',
    b'{"type":"\\ud800","level":"info"}',
    b'{"type":"a","level":"loud"}',
    raw_line(b'"' + b"x" * 5000 + b'"'),
    b"x" * 5001,
    b"\x0b",
    b'{"type":"a"',
]


@given(
    lines=st.lists(st.sampled_from(SPECIAL), max_size=20),
    bad=st.none() | st.sampled_from(BROKEN),
    behind=st.lists(st.sampled_from(SPECIAL + BROKEN), max_size=3),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    ended=st.booleans(),
    sizes=st.lists(st.integers(1, 6000), min_size=1, max_size=30),
)
def test_however_a_body_is_cut_the_log_and_the_answer_are_those_of_its_lines(
    lines: list[bytes],
    bad: bytes | None,
    behind: list[bytes],
    ending: bytes,
    ended: bool,
    sizes: list[int],
) -> None:
    """Each line is judged like a body of its own; the first bad one ends it."""
    config = Config(limits=Limits(body_bytes=5000, batch_events=5))
    rest = [] if bad is None else [bad, *behind]
    text = ending.join([*lines, *rest]) + (ending if ended else b"")
    status, answer, log = trio.run(upload, config, *cut(text, [*sizes, len(text)]))

    assert log == trio.run(one_by_one, config, [each for each in lines if each.strip()])
    accepted = len(log)
    assert answer["accepted"] == accepted
    assert answer.get("lastIndex", -1) == accepted - 1
    if bad is None:
        assert status == 201
    else:
        assert status in (400, 413)
        assert answer["error"].startswith(f"line {len(lines) + 1}: ")


# What ends it


@pytest.mark.parametrize("bad", BROKEN[:-4])
@pytest.mark.parametrize("prelude", [b"", b"\n", raw_line(b'"\\ud800"') + b"\n"])
async def test_a_bad_line_is_named_and_what_came_before_stays(
    server: Any, bad: bytes, prelude: bytes
) -> None:
    task = await server.task()
    before = 1 if prelude.strip() else 0
    good = b"".join(line(n) + b"\n" for n in range(1500))
    text = prelude + good + bad + b"\n" + line("not reached") + b"\n"
    answer = await send(server, task, text)
    number = prelude.count(b"\n") + 1501
    assert answer.status_code == 400
    found = answer.json()
    assert found["error"].startswith(f"line {number}: ")
    assert found["code"] == "bad_request"
    accepted = before + 1500
    assert (found["accepted"], found["firstIndex"], found["lastIndex"]) == (
        accepted,
        0,
        accepted - 1,
    )
    assert (await stored(server, task))[before:] == list(range(1500))


async def test_a_bad_first_line_has_no_indexes(server: Any) -> None:
    answer = await send(server, await server.task(), b"?")
    assert answer.json().keys() == {"error", "code", "accepted"}


@pytest.mark.parametrize("ended", [True, False])
async def test_a_line_over_one_mebibyte_is_413_and_one_of_it_is_not(
    server: Any, ended: bool
) -> None:
    task = await server.task()
    room = MIB - len(line(""))
    fits, too_long = line("x" * room), line("x" * (room + 1))
    text = fits + b"\n" + too_long + (b"\n" if ended else b"")
    answer = await send(server, task, text)
    assert answer.status_code == 413
    assert answer.json() == {
        "error": "line 2: over the limit of 1048576 bytes",
        "code": "payload_too_large",
        "accepted": 1,
        "firstIndex": 0,
        "lastIndex": 0,
    }


async def test_an_endless_line_is_not_held_beyond_the_limit() -> None:
    async with direct() as to:
        request = to.upload(*body_of(*[b"x" * 65_536] * 100))
        await request.run()
        assert (request.status, request.answer["accepted"]) == (413, 0)
        assert request.received == 17


async def test_an_unknown_or_ended_task_is_told_before_anything_is_read() -> None:
    async with direct() as to:
        unknown = to.upload(task="none")
        await unknown.run()
        assert (unknown.status, unknown.answer["code"]) == (404, "task_not_found")
        await to.engine.transition(to.task, Transition(status="cancelled"))
        ended = to.upload()
        await ended.run()
        assert (ended.status, ended.answer["code"]) == (400, "task_ended")
        assert unknown.received == ended.received == 0


async def test_idempotency_keys_are_refused_rather_than_ignored(server: Any) -> None:
    task = await server.task()
    answer = await send(server, task, line(1), **{"Idempotency-Key": "k"})
    assert answer.status_code == 400
    assert "Idempotency-Key is not supported with NDJSON" in answer.json()["error"]
    assert await stored(server, task) == []


async def test_the_end_of_the_task_ends_it_with_what_was_accepted(server: Any) -> None:
    task = await server.task()

    async def body() -> AsyncIterator[bytes]:
        yield line(1) + b"\n" + line(2) + b"\n"
        while await stored(server, task) != [1, 2]:
            await trio.lowlevel.checkpoint()
        await server.move(task, "cancelled")
        yield line(3) + b"\n"

    answer = await send(server, task, body())
    assert answer.status_code == 400
    assert answer.json() == {
        "error": str(TaskEnded(task, "cancelled")),
        "code": "task_ended",
        "accepted": 2,
        "firstIndex": 0,
        "lastIndex": 1,
    }


async def test_trouble_of_the_store_says_what_was_accepted_and_to_try_again(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await server.task()
    publish = TaskEngine.publish
    calls = 0

    async def twice(self: TaskEngine, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoreUnavailable("The store is away")
        return await publish(self, *args, **kwargs)

    monkeypatch.setattr(TaskEngine, "publish", twice)
    monkeypatch.setattr(ingest, "GROUP_EVENTS", 10)
    answer = await send(server, task, b"\n".join(line(n) for n in range(50)))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert (answer.json()["code"], answer.json()["accepted"]) == ("store_unavailable", 20)
    assert await stored(server, task) == list(range(20))


async def test_a_disconnect_keeps_what_came_but_no_unfinished_line(server: Any) -> None:
    task = await server.task()
    head = (
        f"POST /tasks/{task}/events HTTP/1.1\r\nHost: h\r\n"
        "Content-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n"
    )
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as peer:
        await peer.send_all(head.encode() + line(1) + b"\n" + line(2) + b"\n" + line(3))
        while await stored(server, task) != [1, 2]:
            await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked(0.05)
    assert await stored(server, task) == [1, 2]


async def test_a_sender_that_stalls_gets_408_with_what_was_accepted(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "STALL_S", 0.05)
    task = await server.task()

    answer = await send_and_read(server, task, line(1) + b"\n" + line(2))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"accepted":1' in answer
    assert await stored(server, task) == [1]


async def send_and_read(server: Any, task: str, begun: bytes) -> bytes:
    """The whole answer to a body that goes no further than ``begun``."""
    head = (
        f"POST /tasks/{task}/events HTTP/1.1\r\nHost: h\r\n"
        "Content-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n"
    )
    got = b""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as peer:
        await peer.send_all(head.encode() + begun)
        while data := await peer.receive_some():
            got += data
    return got


@pytest.mark.parametrize(("pause_s", "status", "accepted"), [(9, 201, 2), (11, 408, 1)])
async def test_a_pause_of_up_to_ten_seconds_is_no_stall(
    autojump_clock: trio.testing.MockClock, pause_s: int, status: int, accepted: int
) -> None:
    async with direct() as to:
        request = to.upload(*body_of(line(1) + b"\n", line(2)))
        request.pause_s = pause_s
        await request.run()
        assert (request.status, request.answer["accepted"]) == (status, accepted)
        assert len(await to.log()) == accepted


async def test_a_drain_ends_it_at_once_with_what_was_accepted(server: Any) -> None:
    task = await server.task()
    async with trio.open_nursery() as nursery:

        async def drain() -> None:
            while await stored(server, task) != [1]:
                await trio.lowlevel.checkpoint()
            server.runtime.drain.set()

        nursery.start_soon(drain)
        answer = await send_and_read(server, task, line(1) + b"\n" + line(2))
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"code":"draining","accepted":1,' in answer


# Backpressure


async def test_nothing_more_is_received_while_events_are_being_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = trio.Event()
    publish = TaskEngine.publish

    async def slow(self: TaskEngine, *args: Any, **kwargs: Any) -> Any:
        await go_on.wait()
        return await publish(self, *args, **kwargs)

    monkeypatch.setattr(TaskEngine, "publish", slow)
    async with direct() as to, trio.open_nursery() as nursery:
        request = to.upload(*body_of(*[line(n) + b"\n" for n in range(5)]))
        nursery.start_soon(request.run)
        await wait_all_tasks_blocked()
        assert request.received == 1
        go_on.set()
    assert request.answer["accepted"] == 5


async def test_a_sender_is_held_up_by_a_slow_store(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await server.task()
    go_on = trio.Event()
    publish = TaskEngine.publish

    async def slow(self: TaskEngine, *args: Any, **kwargs: Any) -> Any:
        await go_on.wait()
        return await publish(self, *args, **kwargs)

    monkeypatch.setattr(TaskEngine, "publish", slow)
    sent_bytes = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent_bytes
        for _ in range(512):
            yield line("x" * 65_536) + b"\n"
            sent_bytes += 65_536

    async with trio.open_nursery() as nursery:

        async def send_all() -> None:
            answer = await send(server, task, body())
            assert answer.json()["accepted"] == 512

        nursery.start_soon(send_all)
        await wait_all_tasks_blocked(0.2)
        assert sent_bytes < 16 * MIB
        go_on.set()
    assert sent_bytes == 32 * MIB
