"""However bytes are cut, mutated, delayed or cut off: the same requests, and nothing left behind.

`FUZZ_INPUTS` in the environment sets how many mutated inputs are sent; 5,000 where it is absent.
"""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from taskcast_trio.core.errors import TaskcastError
from taskcast_trio.server.bodies import PeerGone, read_body
from taskcast_trio.server.guard import GuardedConnection
from taskcast_trio.server.http1 import Http1Connection
from taskcast_trio.server.http1_parser import RequestParser
from taskcast_trio.server.plain import Answer, error_answer
from taskcast_trio.server.target import TargetGuard
from taskcast_trio.server.wire import Disconnected, Wire

from .conftest import ProbeApp

Serving = Callable[..., AbstractAsyncContextManager[Any]]
PATIENCE_S = 60.0
only_httptools = pytest.mark.parametrize(
    "http", [Http1Connection], ids=["httptools"], indirect=True
)
FUZZ_INPUTS = int(os.environ.get("FUZZ_INPUTS", "5000"))
SEED = 20_240_607


def get(path: bytes = b"/", *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"GET " + path + b" HTTP/" + version, b"Host: x", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    lines = [b"POST /echo HTTP/" + version, b"Host: x", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def sized(body: bytes) -> bytes:
    return post(b"Content-Length: %d" % len(body), body=body)


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    body = b"".join(parts) + b"0\r\n" + trailer + b"\r\n"
    return post(b"Transfer-Encoding: chunked", body=body)


UPGRADE = (b"Connection: Upgrade", b"Upgrade: h2c")
WEBSOCKET = get(
    b"/ws",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)

ALIKE: dict[str, bytes] = {
    "get": get(),
    "get-query": get(b"/a?b=c&d"),
    "get-escapes": get(b"/%C3%A9%2F%00"),
    "get-fragment": get(b"/#f"),
    "get-absolute": get(b"http://x/a"),
    "get-many-fields": get(b"/", *(b"X-%d: %d" % (n, n) for n in range(60))),
    "get-long-field": get(b"/", b"X: " + b"y" * 8000),
    "get-bytes": get(b"/", b"X: \xe9\xff"),
    "get-empty-field": get(b"/", b"X:"),
    "get-with-body": get(b"/echo", b"Content-Length: 2") + b"hi",
    "get-close": get(b"/", b"Connection: close"),
    "get-close-list": get(b"/", b"Connection: foo, close"),
    "get-expect-unknown": get(b"/", b"Expect: tea"),
    "get-http10": get(version=b"1.0"),
    "head": get().replace(b"GET", b"HEAD"),
    "head-http10": get(version=b"1.0").replace(b"GET", b"HEAD"),
    "options-star": get(b"*").replace(b"GET", b"OPTIONS"),
    "delete": get().replace(b"GET", b"DELETE"),
    "put": sized(b"hi").replace(b"POST", b"PUT"),
    "patch": sized(b"hi").replace(b"POST", b"PATCH"),
    "post": sized(b"hello"),
    "post-empty": sized(b""),
    "post-no-length": post(),
    "post-binary": sized(bytes(range(256))),
    "post-large": sized(b"x" * 100_000),
    "post-close": post(b"Content-Length: 2", b"Connection: close", body=b"hi"),
    "post-http10": post(b"Content-Length: 2", body=b"hi", version=b"1.0"),
    "post-leading-zeros": post(b"Content-Length: 0002", body=b"hi"),
    "post-padded-length": post(b"Content-Length:  2\t", body=b"hi"),
    "post-early": sized(b"").replace(b"/echo", b"/early"),
    "chunked": chunked(b"hello", b" ", b"world"),
    "chunked-empty": chunked(),
    "chunked-tiny": chunked(*(b"%c" % (65 + n % 26) for n in range(2000))),
    "chunked-upper": chunked(b"x" * 0xABC).replace(b"abc\r\n", b"ABC\r\n", 1),
    "chunked-extension": chunked(b"hello").replace(b"5\r\n", b'5;a=b;c="d"\r\n'),
    "chunked-trailer": chunked(b"hello", trailer=b"X-Sum: 1\r\nX-B: 2\r\n"),
    "chunked-any-case": chunked(b"hi").replace(b"chunked", b"CHUNKED"),
    "upgrade-ignored": get(b"/", *UPGRADE),
    "upgrade-with-body": post(*UPGRADE, b"Content-Length: 2", body=b"hi"),
    "upgrade-chunked": post(*UPGRADE, b"Transfer-Encoding: chunked", body=b"2\r\nhi\r\n0\r\n\r\n"),
    "crash": get(b"/crash"),
    "no-host-http10": b"GET / HTTP/1.0\r\n\r\n",
    "pipelined": get() + sized(b"a") + chunked(b"b") + get(b"/early") + sized(b"c"),
    "pipelined-close": get() + get(b"/", b"Connection: close"),
    "pipelined-then-bad": sized(b"a") + b"nonsense\r\n\r\n",
    "bad-line": b"nonsense\r\n\r\n",
    "bad-target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-relative": get(b"a"),
    "bad-name": get(b"/", b"X Y: a"),
    "bad-value": get(b"/", b"X: a\x00"),
    "bad-length": post(b"Content-Length: x"),
    "two-lengths": post(b"Content-Length: 1", b"Content-Length: 2"),
    "length-and-chunked": chunked(b"hi").replace(b"Host: x", b"Host: x\r\nContent-Length: 1"),
    "coding-gzip": post(b"Transfer-Encoding: gzip"),
    "no-host": b"GET / HTTP/1.1\r\n\r\n",
    "two-hosts": get(b"/", b"Host: y"),
    "space-before-colon": get(b"/", b"X : a"),
    "bad-chunk": post(b"Transfer-Encoding: chunked", body=b"zz\r\n"),
    "bad-chunk-end": post(b"Transfer-Encoding: chunked", body=b"1\r\nab\r\n"),
    "http2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version-2": get(version=b"2.0"),
    "version-0.9": get(version=b"0.9"),
    "endless-head": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}

Outcome = tuple[tuple[tuple[int, bytes], ...], bool]
OK: Outcome = (((200, b"ok"),), True)
REFUSED: Outcome = (((400, b""),), False)
DIFFERENT: dict[str, tuple[bytes, Outcome, Outcome]] = {
    # Where httptools refuses what two servers in a row might read in two ways.
    "bare-lf": (b"GET / HTTP/1.1\nHost: x\n\n", REFUSED, OK),
    "fold": (get(b"/", b"X: a\r\n b"), REFUSED, OK),
    "equal-lengths": (
        post(b"Content-Length: 0", b"Content-Length: 0"),
        REFUSED,
        (((200, b""),), True),
    ),
    "chunked-http10": (
        chunked(b"hi").replace(b"HTTP/1.1", b"HTTP/1.0"),
        REFUSED,
        (((200, b"hi"),), False),
    ),
    "method-unknown": (get().replace(b"GET", b"BREW"), REFUSED, OK),
    "method-lower-case": (get().replace(b"GET", b"get"), REFUSED, OK),
    "version-1.2": (get(version=b"1.2"), REFUSED, (((505, b""),), False)),
    "two-codings": (
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        REFUSED,
        (((501, b""),), False),
    ),
    # Where it is the one to understand more of RFC 9112.
    "empty-line-before": (b"\r\n" + get(), OK, REFUSED),
    "keep-alive-http10": (
        get(b"/", b"Connection: keep-alive", version=b"1.0"),
        OK,
        (((200, b"ok"),), False),
    ),
}


# How bytes are cut

Reading = tuple[list[tuple[object, ...]], int | None, bytes | None]


def reading(pieces: list[bytes]) -> Reading:
    parser = RequestParser()
    for piece in pieces:
        parser.feed(piece)
    requests: list[tuple[object, ...]] = [
        (
            request.method,
            request.target,
            request.version,
            tuple(request.headers),
            request.keep_alive,
            request.expects_continue,
            request.upgrade,
            b"".join(request.body),
            request.complete,
        )
        for request in parser.requests
    ]
    return requests, None if parser.error is None else parser.error.status, parser.behind


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


CORPUS = {
    **{name: sent for name, sent in ALIKE.items() if len(sent) < 20_000},
    **{name: sent for name, (sent, _, _) in DIFFERENT.items()},
    "websocket": WEBSOCKET + b"\x81\x00",
}


@pytest.mark.parametrize("name", CORPUS)
def test_byte_by_byte_is_read_as_in_one_piece(name: str) -> None:
    sent = CORPUS[name] + get(b"/next")
    assert reading([sent[at : at + 1] for at in range(len(sent))]) == reading([sent])


@settings(max_examples=300)
@given(data=st.data())
def test_cut_anywhere_is_read_as_in_one_piece(data: st.DataObject) -> None:
    """Of any few messages in a row."""
    names = data.draw(st.lists(st.sampled_from(sorted(CORPUS)), min_size=1, max_size=4))
    sent = b"".join(map(CORPUS.__getitem__, names))
    places = data.draw(st.lists(st.integers(0, len(sent)), max_size=12))
    assert reading(cut(sent, places)) == reading([sent])


# Mutations

SPICE = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\x00",
    b"\xff",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"CONNECT ",
    b"99999999999999999999",
    b"x" * 40_000,
    get(b"/next"),
]
SEEDS = [sent for name, sent in CORPUS.items() if name not in ("crash", "websocket")]
SEEDS += [get(b"/sse"), get(b"/deaf")]
SOUND = [sent for sent in SEEDS if reading([sent])[1] is None]


def mutated(dice: random.Random, *extra: bytes) -> bytes:
    sound = dice.choices(SOUND, k=dice.randint(0, 3))
    data = bytearray(b"".join([*sound, *extra, dice.choice(SEEDS)]))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                data[at:at] = dice.choice(SPICE)
            case 2:
                del data[at : at + dice.choice((1, 1, 2, 8, 64))]
            case 3:
                data[at:at] = data[at : at + dice.randrange(64)]
            case 4:
                del data[at:]
            case 5:
                end = dice.randrange(len(data) + 1)
                data[at:at] = data[end : end + 100]
    return bytes(data) or b"\r\n"


def test_mutated_inputs_are_read_alike_however_cut() -> None:
    dice = random.Random(SEED)
    for _ in range(FUZZ_INPUTS):
        sent = mutated(dice)
        if len(sent) < 30_000:  # behind which what is too large is noticed earlier or later
            places = [dice.randrange(len(sent) + 1) for _ in range(dice.randrange(8))]
            requests, status, behind = reading([sent])
            again, status_again, behind_again = reading(cut(sent, places))
            assert (again, behind_again) == (requests, behind), (sent, places)
            # Of two faults in a row, either may be named.
            assert (status_again is None) is (status is None), (sent, places)


def h11_reading(sent: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Method, target and body of each complete request, as h11 reads them."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    connection.receive_data(sent)
    request, body = None, b""
    with suppress(h11.RemoteProtocolError, h11.LocalProtocolError):
        while True:
            event = connection.next_event()
            match event:
                case h11.Request():
                    request, body = event, b""
                case h11.Data():
                    body += bytes(event.data)
                case h11.EndOfMessage():
                    assert request is not None
                    yield bytes(request.method), bytes(request.target), body
                    answer = h11.Response(status_code=404, headers=[("content-length", "0")])
                    connection.send(answer)
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                case _:
                    return


def test_no_mutated_input_holds_a_request_that_another_parser_does_not_see() -> None:
    """What is smuggled past a proxy is a request that only one of two parsers sees."""
    dice = random.Random(SEED + 1)
    for _ in range(FUZZ_INPUTS):
        sent = mutated(dice).lstrip(b"\r\n")  # h11 allows no empty line before a request
        ours = [
            (str(method).encode(), target, body)
            for method, target, _, _, _, _, _, body, complete in reading([sent])[0]
            if complete
        ]
        theirs = list(h11_reading(sent))
        both = min(len(ours), len(theirs))
        assert ours[:both] == theirs[:both], sent


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def living_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


async def fuzz(server: Any, count: int, make: Callable[[], bytes]) -> None:
    """Send `count` inputs, each on its own connection, which then says FIN."""
    await server.assert_healthy()
    await server.until(lambda: server.stats.connections_open == 0)
    tasks, files = tasks_living(), open_files()
    for start in range(0, count, 100):
        clients: list[socket.socket] = []
        goal = server.stats.accepted_total + min(100, count - start)
        while server.stats.accepted_total + len(clients) < goal:
            client = socket.create_connection(("127.0.0.1", server.port))
            client.setblocking(False)
            client.send(make())
            client.shutdown(socket.SHUT_WR)
            clients.append(client)
        await server.until(lambda goal=goal: server.stats.accepted_total == goal)
        await server.until(lambda: server.stats.connections_open == 0)
        for client in clients:
            client.close()
        await server.assert_healthy()
        await server.until(lambda: server.stats.connections_open == 0)
    assert server.app.live == 0
    await server.until(lambda: tasks_living() == tasks)
    assert open_files() <= files


@only_httptools
async def test_mutated_inputs_neither_end_the_server_nor_leak(serving: Serving) -> None:
    """T32: what a connection raises would be contained; here nothing is raised at all."""
    dice = random.Random(SEED + 2)
    async with serving(close_grace_s=0.02) as server:
        server.app.release.set()
        await fuzz(server, FUZZ_INPUTS, lambda: mutated(dice))
        assert server.stats.guarded_errors_total == 0
        assert server.stats.app_errors_total == 0


async def test_mutated_websocket_handshakes_neither_end_the_server_nor_leak(
    serving: Serving,
) -> None:
    """T32: what Hypercorn and wsproto raise is contained."""
    dice = random.Random(SEED + 3)
    frames = b"\x81\x85\x00\x00\x00\x00hello\x89\x80\x00\x00\x00\x00"
    async with serving(close_grace_s=0.02) as server:
        server.app.release.set()
        await fuzz(server, FUZZ_INPUTS // 5, lambda: mutated(dice, WEBSOCKET, frames))


# Both paths


async def outcome(server: Any, sent: bytes) -> Outcome:
    """The answers, bodies of refusals left out, and whether the connection goes on."""
    peer = await server.connect()
    answers: list[tuple[int, bytes]] = []
    with suppress(trio.BrokenResourceError):
        await peer.send(sent)
    while (answer := await read_answer(peer, bodiless=sent.startswith(b"HEAD"))) is not None:
        answers.append(answer)
        if peer.received == b"" and len(answers) >= requests_in(sent):
            break
    with suppress(trio.BrokenResourceError):
        await peer.send(get(b"/early"))
    follower = await read_answer(peer)
    await peer.stream.aclose()
    return tuple(answers), follower is not None and follower[0] == 413


def requests_in(sent: bytes) -> int:
    """Each gets an answer, the first malformed one included."""
    return max(1, len(re.findall(rb"(?i)HTTP/\d\.\d\r?\n|nonsense", sent)))


async def read_answer(peer: Any, *, bodiless: bool = False) -> tuple[int, bytes] | None:
    with trio.fail_after(PATIENCE_S):
        while True:
            parser = h11.Connection(h11.CLIENT)
            method = "HEAD" if bodiless else "GET"
            parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
            parser.send(h11.EndOfMessage())
            if peer.received:  # to h11 nothing would be the end
                parser.receive_data(bytes(peer.received))
            status, body = 0, b""
            while (event := parser.next_event()) is not h11.NEED_DATA:
                match event:
                    case h11.Response():
                        status = event.status_code
                    case h11.Data():
                        body += bytes(event.data)
                    case h11.EndOfMessage():
                        peer.received[:] = parser.trailing_data[0]
                        return status, b"" if status in (400, 431, 500, 501, 505) else body
            try:
                data = await peer.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            peer.received += data


async def outcomes(serving: Serving, path: Any, corpus: dict[str, bytes]) -> dict[str, Outcome]:
    app = TargetGuard(ProbeApp())
    async with serving(app=app, connection=path, close_grace_s=0.05) as server:
        return {name: await outcome(server, sent) for name, sent in corpus.items()}


async def test_both_paths_answer_alike(serving: Serving, http: Any) -> None:
    """The same status, body and end of connection, by httptools as by Hypercorn on h11."""
    other = GuardedConnection if http is Http1Connection else Http1Connection
    assert await outcomes(serving, http, ALIKE) == await outcomes(serving, other, ALIKE)


async def test_where_both_paths_differ_is_known(serving: Serving, http: Any) -> None:
    corpus = {name: sent for name, (sent, _, _) in DIFFERENT.items()}
    column = 1 if http is Http1Connection else 2
    expected = {name: row[column] for name, row in DIFFERENT.items()}
    assert await outcomes(serving, http, corpus) == expected


# Peers that dawdle, stop or leave


def limited(limit: int, timeout_s: float = 10.0) -> Any:
    """Takes bodies of at most ``limit`` bytes within ``timeout_s``, as the routes do."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        try:
            body = await read_body(scope, receive, limit, timeout_s=timeout_s)
        except TaskcastError as error:
            await error_answer(error).send(scope, send)
        except PeerGone:
            pass
        else:
            await Answer(200, b"ok" if scope["path"] == "/" else b"%d" % len(body)).send(
                scope, send
            )

    return app


STRANGE = {
    "at-limit": (200, sized(b"x" * 1000)),
    "over-limit": (413, sized(b"x" * 1001)),
    "over-limit-chunked": (413, chunked(b"x" * 600, b"x" * 600)),
    "declared-1-gb": (413, post(b"Content-Length: 1000000000", b"Expect: 100-continue")),
    "declared-2-to-the-64": (413, post(b"Content-Length: 9999999999999999999")),
    "chunk-of-1-gb": (413, post(b"Transfer-Encoding: chunked", body=b"3b9aca00\r\n" + b"x" * 5000)),
    "no-length": (200, post()),
    "tiny-chunks": (413, chunked(*[b"x"] * 5000)),
}


@pytest.mark.parametrize(("status", "sent"), STRANGE.values(), ids=STRANGE.keys())
async def test_giant_and_strange_bodies(serving: Serving, status: int, sent: bytes) -> None:
    """T40."""
    async with serving(app=limited(1000), close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(sent)
        answer = await read_answer(peer)
        assert answer is not None
        assert answer[0] == status
        await peer.stream.aclose()
        await server.until(lambda: server.stats.connections_open == 0)
        await server.assert_healthy()


async def test_an_endless_body_is_refused_while_it_is_sent(serving: Serving) -> None:
    """T40: what is sent behind the refusal is not kept."""
    async with serving(app=limited(1000), close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(post(b"Transfer-Encoding: chunked"))
        piece = b"8000\r\n" + bytes(0x8000) + b"\r\n"
        sent = 0
        with trio.fail_after(PATIENCE_S), suppress(trio.BrokenResourceError):
            while sent < 2**30:
                await peer.stream.send_all(piece)
                sent += len(piece)
        assert sent < 2**30
        await server.until(lambda: server.stats.connections_open == 0)


async def test_a_body_that_trickles_is_cut_by_the_route(serving: Serving) -> None:
    """T36: its whole time is limited, not only the pause between two bytes."""
    async with serving(app=limited(1000, timeout_s=0.2), close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(post(b"Content-Length: 900"))
        answered = trio.Event()

        async def trickle() -> None:
            with suppress(trio.BrokenResourceError):
                while not answered.is_set():
                    await peer.stream.send_all(b"x")
                    await trio.testing.wait_all_tasks_blocked(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            answer = await read_answer(peer)
            answered.set()
        assert answer is not None
        assert answer[0] == 408
        await server.until(lambda: server.stats.connections_open == 0)


async def test_a_body_of_which_nothing_comes_is_cut_by_the_route(serving: Serving) -> None:
    """T36: also before its first byte, where h11 alone would wait for ever."""
    async with serving(app=limited(1000, timeout_s=0.05), close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(post(b"Content-Length: 900"))
        answer = await read_answer(peer)
        assert answer is not None
        assert answer[0] == 408
        assert b"request_timeout" in answer[1], "the route says so, not the connection"


@only_httptools
async def test_silent_bodies_are_cut_and_leave_nothing(serving: Serving) -> None:
    """T36, in numbers."""
    async with serving(close_grace_s=0.05, body_pause_s=0.2) as server:
        tasks = tasks_living()
        peers = [await server.connect() for _ in range(100)]
        for peer in peers:
            await peer.send(post(b"Content-Length: 9", body=b"abc"))
        await server.until(lambda: server.app.live == 100)
        for peer in peers:
            assert (await peer.read_to_end()).startswith(b"HTTP/1.1 408 ")
        await server.until(lambda: server.stats.connections_open == 0)
        assert server.app.live == 0
        await server.until(lambda: tasks_living() == tasks)


ENDINGS = ["FIN", "RST", "FIN-unread"]


def leave(peer: Any, how: str) -> None:
    if how == "RST":
        peer.reset()
    elif how == "FIN-unread":  # half open: it neither reads nor closes
        with suppress(OSError):  # cut by the server before
            peer.socket.shutdown(socket.SHUT_WR)
    else:
        peer.socket.close()


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize(
    "sent",
    [
        get(b"/sse"),
        get(b"/deaf"),
        get(b"/big"),
        post(b"Content-Length: 9", body=b"abc"),
        post(b"Transfer-Encoding: chunked", body=b"9\r\nabc"),
        post(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\nX: "),
        b"GET / HT",
    ],
    ids=["stream", "deaf", "big", "body", "chunk", "trailer", "head"],
)
async def test_peers_that_leave_in_the_middle_leave_nothing(
    serving: Serving, how: str, sent: bytes
) -> None:
    """T33, T34: also where they keep their own end open, and read nothing."""
    async with serving(close_grace_s=0.05, write_timeout_s=0.2) as server:
        tasks = tasks_living()
        peers = [await server.connect(receive_buffer=4096) for _ in range(20)]
        for peer in peers:
            await peer.send(sent)
        begun = 20 if b"\r\n" in sent else 0
        await server.until(lambda: server.stats.connections_open == 20)
        await server.until(lambda: server.app.live == begun)
        await trio.testing.wait_all_tasks_blocked()
        for peer in peers:
            leave(peer, how)
        await server.until(lambda: server.stats.connections_open == 0)
        assert server.app.live == 0
        await server.until(lambda: tasks_living() == tasks)
        assert server.stats.guarded_errors_total == server.stats.app_errors_total == 0
        await server.assert_healthy()


async def test_1000_connections_dropped_at_random_while_streaming_leave_nothing(
    serving: Serving,
) -> None:
    """T33: each at its own moment, in its own way, some while others still connect."""
    dice = random.Random(SEED)

    async def drop(server: Any, count: int) -> None:
        open_peers = []
        for _ in range(count):
            peer = await server.connect(receive_buffer=dice.choice((None, 4096)))
            path = dice.choice((b"/sse", b"/big", b"/deaf"))
            await peer.send(get(path) + dice.choice((b"", b"G", get(b"/next"))))
            open_peers.append(peer)
            for _ in range(dice.randrange(4)):
                await trio.lowlevel.checkpoint()
            while open_peers and dice.random() < 0.45:
                leave(open_peers.pop(dice.randrange(len(open_peers))), dice.choice(ENDINGS))
        for peer in open_peers:
            leave(peer, dice.choice(ENDINGS))
        await server.until(lambda: server.stats.connections_open == 0)
        assert server.app.live == 0

    async with serving(close_grace_s=0.05, write_timeout_s=0.2) as server:
        tasks = tasks_living()
        await drop(server, 100)  # what the first of them load stays
        await server.until(lambda: tasks_living() == tasks)
        server.forget_peers()
        files, objects = open_files(), living_objects()
        await drop(server, 1000)
        await server.until(lambda: tasks_living() == tasks)
        server.forget_peers()
        assert open_files() <= files
        assert living_objects() < objects + 500  # far less than one for each connection
        assert server.stats.accepted_total == 1100
        assert server.stats.guarded_errors_total == server.stats.app_errors_total == 0


CLIENT = """
import socket, sys
peer = socket.socket()
peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
peer.connect(("127.0.0.1", int(sys.argv[1])))
peer.sendall(b"GET /big HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
while peer.recv(65536):
    pass
"""


def start_client(port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-ISc", CLIENT, str(port)])


async def test_a_stopped_client_is_cut_and_harms_no_one(serving: Serving) -> None:
    """T35: the kernel still acknowledges for it, but nobody reads."""
    async with serving(write_timeout_s=0.3) as server:
        client = start_client(server.port)
        try:
            await server.until(lambda: server.app.chunks > 3)
            assert server.stats.write_timeouts_total == 0
            client.send_signal(signal.SIGSTOP)
            await server.assert_healthy()
            await server.until(lambda: server.stats.write_timeouts_total == 1)
            await server.until(lambda: server.app.live == 0)
            await server.until(lambda: server.stats.connections_open == 0)
        finally:
            client.kill()
            client.wait()


async def test_reading_from_a_connection_that_was_cut_is_its_end() -> None:
    """For every reader: a closed descriptor must not reach the event loop, which keeps it."""
    for _ in range(2):
        ours, theirs = trio.socket.socketpair()
        with theirs:
            wire = Wire(trio.SocketStream(ours), write_timeout_s=1.0)
            wire.abort()
            assert await wire.read() == b""
            with pytest.raises(Disconnected):
                await wire.write(b"x")
