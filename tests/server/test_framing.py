"""Both ways to speak HTTP/1.1 agree with the peer on where each message ends, or close."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing

from taskcast_trio.server.http1 import Http1Connection
from taskcast_trio.server.target import TargetGuard

from .conftest import ProbeApp

Serving = Callable[..., AbstractAsyncContextManager[Any]]
PATIENCE_S = 60.0
only_httptools = pytest.mark.parametrize(
    "http", [Http1Connection], ids=["httptools"], indirect=True
)
CHUNKED = b"Transfer-Encoding: chunked"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def get(path: bytes = b"/", *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"GET " + path + b" HTTP/" + version, b"Host: x", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    lines = [b"POST /echo HTTP/" + version, b"Host: x", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def answers_in(received: bytes) -> int:
    return len(re.findall(rb"HTTP/1\.1 \d{3} ", received))


class Witness:
    """Echoes bodies and remembers the paths it was asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._probe = ProbeApp()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
        await self._probe(scope, receive, send)


# Smuggling

AMBIGUOUS = {
    "length-and-chunked": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
    "chunked-and-length": post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two-lengths": post(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED)),
    "length-list-that-differs": post(b"Content-Length: 0, %d" % len(SMUGGLED)),
    "length-plus": post(b"Content-Length: +0"),
    "length-minus": post(b"Content-Length: -1"),
    "length-hex": post(b"Content-Length: 0x0"),
    "length-empty": post(b"Content-Length:"),
    "length-inner-space": post(b"Content-Length: 0 0"),
    "length-not-ascii": post(b"Content-Length: \xb2"),
    "length-of-99-digits": post(b"Content-Length: " + b"9" * 99),
    "coding-twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "coding-list": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "coding-empty": post(b"Transfer-Encoding:", body=b"0\r\n\r\n"),
    "coding-control": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "coding-name-space": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "fold-before-first": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "bare-cr-in-value": get(b"/", b"X: a\rContent-Length: 5"),
    "bare-cr-everywhere": b"GET / HTTP/1.1\rHost: x\r\r",
    "nul-in-value": get(b"/", b"X: a\x00b"),
    "nul-in-target": get(b"/\x00"),
    "space-in-name": get(b"/", b"X Y: a"),
    "empty-name": get(b"/", b": a"),
    "no-colon": get(b"/", b"Content-Length"),
    "no-host": b"GET / HTTP/1.1\r\n\r\n",
    "two-hosts": get(b"/", b"Host: y"),
    "chunk-size-sign": post(CHUNKED, body=b"-1\r\na\r\n0\r\n\r\n"),
    "chunk-size-0x": post(CHUNKED, body=b"0x1\r\na\r\n0\r\n\r\n"),
    "chunk-size-missing": post(CHUNKED, body=b"\r\na\r\n0\r\n\r\n"),
    "chunk-size-huge": post(CHUNKED, body=b"f" * 33 + b"\r\na\r\n0\r\n\r\n"),
    "chunk-data-longer": post(CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n"),
    "chunk-data-unended": post(CHUNKED, body=b"1\r\na0\r\n\r\n"),
    "trailer-without-colon": post(CHUNKED, body=b"0\r\nX\r\n\r\n"),
}
ONLY_STRICT = {
    # h11 takes these in one way only, too, but a proxy in front may take them in another.
    "repeated-equal-length": post(b"Content-Length: 0", b"Content-Length: 0"),
    "length-list": post(b"Content-Length: 0, 0"),
    "fold": get(b"/", b"X: a\r\n b"),
    "fold-of-length": post(b"Content-Length:\r\n 0"),
    "bare-lf": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare-lf-in-value": get(b"/", b"X: a\nY: b"),
    "chunk-bare-lf": post(CHUNKED, body=b"0\n\n"),
    "chunked-of-http10": post(
        CHUNKED, b"Connection: keep-alive", body=b"0\r\n\r\n", version=b"1.0"
    ),
    "chunk-extension-nul": post(CHUNKED, body=b"1;\x00\r\na\r\n0\r\n\r\n"),
    "trailer-length": post(CHUNKED, body=b"0\r\nContent-Length: 5\r\n\r\n"),
}


async def assert_refused(serving: Serving, sent: bytes, **options: Any) -> None:
    witness = Witness()
    async with serving(app=TargetGuard(witness), close_grace_s=0.05, **options) as server:
        peer = await server.connect()
        await peer.send(sent + SMUGGLED)
        answer = await peer.read_to_end()
        status = int(answer.split(b" ", 2)[1])
        assert answer.startswith(b"HTTP/1.1 ")
        assert status in (400, 501)
        assert answers_in(answer) == 1
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert "/smuggled" not in witness.paths
        await server.assert_healthy()


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_ambiguous_framing_is_refused_and_closed(serving: Serving, sent: bytes) -> None:
    """RFC 9112, sections 2.2, 5.2 and 6.3: one answer, no second request, no connection left."""
    await assert_refused(serving, sent)


@only_httptools
@pytest.mark.parametrize("sent", ONLY_STRICT.values(), ids=ONLY_STRICT.keys())
async def test_what_proxies_read_in_two_ways_is_refused_by_httptools(
    serving: Serving, sent: bytes
) -> None:
    await assert_refused(serving, sent)


@pytest.mark.parametrize(
    "opening",
    [
        b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: nothing\r\n",
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_of_an_ignored_upgrade_reaches_the_application(
    serving: Serving, opening: bytes, chunked: bool
) -> None:
    """As Java's own client sends its first request; read otherwise, a body is a request."""
    witness = Witness()
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if chunked else SMUGGLED
    framing = CHUNKED if chunked else b"Content-Length: %d" % len(SMUGGLED)
    async with serving(app=witness) as server:
        peer = await server.connect()
        await peer.send(opening + framing + b"\r\n\r\n" + body)
        assert await peer.read_answer() == SMUGGLED
        assert await peer.get("/next") == b"ok"
        assert witness.paths == ["/echo", "/next"]


async def test_the_body_of_a_connect_is_no_request(serving: Serving) -> None:
    witness = Witness()
    async with serving(app=TargetGuard(witness), close_grace_s=0.05) as server:
        peer = await server.connect()
        length = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
        await peer.send(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n" + length + SMUGGLED)
        assert (await peer.read_to_end()).count(b"HTTP/1.1 4") == 1
        assert witness.paths == []


# What is legal

LEGAL = {
    "trailing-space": post(b"Content-Length: 2 ", body=b"hi"),
    "leading-zero": post(b"Content-Length: 02", body=b"hi"),
    "chunked": post(CHUNKED, body=b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"),
    "extension-and-trailer": post(CHUNKED, body=b"2;a=b\r\nhi\r\n0\r\nX: y\r\n\r\n"),
}


@pytest.mark.parametrize("sent", LEGAL.values(), ids=LEGAL.keys())
async def test_a_legal_body_is_read_to_its_end_and_no_further(
    serving: Serving, sent: bytes
) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(sent + get())
        assert await peer.read_answer() == b"hi"
        assert await peer.read_answer() == b"ok"


@only_httptools
async def test_an_empty_line_before_a_request_is_skipped_by_httptools(serving: Serving) -> None:
    """RFC 9112, section 2.2. h11 refuses it."""
    async with serving() as server:
        peer = await server.connect()
        await peer.send(get() + b"\r\n" + get())
        assert await peer.read_answer() == b"ok"
        assert await peer.read_answer() == b"ok"


async def test_absolute_form_replaces_the_host_and_is_reduced_to_its_path(
    serving: Serving,
) -> None:
    """RFC 9112, section 3.2.2."""
    witness = Witness()
    async with serving(app=TargetGuard(witness)) as server:
        peer = await server.connect()
        for target in (b"http://x:1/a/b?c", b"HTTP://x", b"https://x/"):
            await peer.send(get(target))
            await peer.read_answer()
        assert witness.paths == ["/a/b", "/", "/"]


async def test_pipelined_requests_of_every_kind_are_answered_in_order(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        sent = [
            (get(), b"ok"),
            (post(b"Content-Length: 3", body=b"one"), b"one"),
            (post(CHUNKED, body=b"3\r\ntwo\r\n0\r\n\r\n"), b"two"),
            (post(b"Content-Length: 0"), b""),
            (get(b"/early"), b"too large"),
            (post(b"Content-Length: 5", body=b"three"), b"three"),
        ] * 50
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, b"".join(request for request, _ in sent))
            for request, body in sent:
                status = 413 if b"/early" in request else 200
                assert await peer.read_answer(status) == body


async def test_requests_before_a_malformed_one_are_answered(serving: Serving) -> None:
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(get() + post(b"Content-Length: 2", body=b"hi") + b"nonsense\r\n\r\n")
        assert await peer.read_answer() == b"ok"
        assert await peer.read_answer() == b"hi"
        assert (await peer.read_to_end()).startswith(b"HTTP/1.1 400 ")


@only_httptools
async def test_requests_before_a_fin_are_answered(serving: Serving) -> None:
    """A half-open peer that has asked gets what it asked for, and then a close.

    Hypercorn takes a FIN for the end of everything.
    """
    async with serving() as server:
        peer = await server.connect()
        await peer.send(get() + get())
        await peer.finish()
        answers = await peer.read_to_end()
        assert answers.count(b"HTTP/1.1 200 ") == 2


# Versions and methods


async def test_http10_closes_unless_it_asks_otherwise(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(get(version=b"1.0"))
        answer = await peer.read_to_end()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"ok")
        assert b"\r\nconnection: close\r\n" in answer.lower()


@only_httptools
async def test_http10_keep_alive_is_granted_by_httptools(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        for _ in range(2):
            await peer.send(get(b"/", b"Connection: keep-alive", version=b"1.0"))
            head = await peer.read_until(b"\r\n\r\n")
            assert b"\r\nconnection: keep-alive\r\n" in head
            assert await peer.read_until(b"ok") == b"ok"


async def test_a_stream_to_http10_is_delimited_by_its_close(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(get(b"/sse", version=b"1.0"))
        await peer.read_until(b"hello\n\n")
        server.drain.set()
        assert await peer.read_to_end() == b": bye\n\n"


async def test_a_stream_to_http10_has_no_transfer_coding_and_closes(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(get(b"/sse", b"Connection: keep-alive", version=b"1.0"))
        head = await peer.read_until(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert b"\r\nconnection: close\r\n" in head.lower()
        server.drain.set()
        assert await peer.read_to_end() == b": hello\n\n: bye\n\n"


async def test_head_has_the_fields_of_get_and_no_body(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + get())
        head = await peer.read_until(b"\r\n\r\n")
        assert b"\r\ncontent-length: 2\r\n" in head
        assert await peer.read_answer() == b"ok"


async def test_head_of_a_stream_ends_with_its_head(serving: Serving) -> None:
    async with serving() as server:
        server.drain.set()
    async with serving() as server:
        peer = await server.connect()
        await peer.send(b"HEAD /sse HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.read_until(b"\r\n\r\n")
        server.drain.set()
        assert await peer.read_to_end() == b""


# Expect: 100-continue

EXPECT = b"Expect: 100-continue"


async def test_100_continue_comes_when_the_application_wants_the_body(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(post(EXPECT, b"Content-Length: 2"))
        assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await peer.send(b"hi")
        assert await peer.read_answer() == b"hi"
        assert await peer.get() == b"ok"


@only_httptools
async def test_100_continue_is_left_out_where_the_answer_is_known(serving: Serving) -> None:
    """The peer learns of the 413 without sending its body, and the connection closes.

    Hypercorn always sends 100, which RFC 9110, section 10.1.1, allows.
    """
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(
            b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n" + EXPECT + b"\r\n\r\n"
        )
        answer = await peer.read_to_end()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()


@only_httptools
async def test_100_continue_is_left_out_where_the_body_has_come(serving: Serving) -> None:
    """RFC 9110, section 10.1.1; nor is it sent to HTTP/1.0, nor for an empty body."""
    async with serving() as server:
        peer = await server.connect()
        await peer.send(post(EXPECT, b"Content-Length: 2", body=b"hi"))
        assert await peer.read_answer() == b"hi"
        await peer.send(post(EXPECT, b"Content-Length: 0"))
        assert await peer.read_answer() == b""
        await peer.send(post(EXPECT, b"Content-Length: 2", version=b"1.0"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await peer.send(b"hi")
        assert await peer.read_answer() == b"hi"


# Limits


@only_httptools
@pytest.mark.parametrize("path", [b"/", b"/" + b"x" * 40_000])
async def test_a_head_that_is_too_large_is_refused(serving: Serving, path: bytes) -> None:
    """Also where it comes in one piece (H11)."""
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(get(path, b"X: " + b"x" * 40_000))
        assert (await peer.read_to_end()).startswith(b"HTTP/1.1 431 ")
        await server.assert_healthy()


async def test_a_head_without_end_is_refused(serving: Serving) -> None:
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        with trio.fail_after(PATIENCE_S):
            try:
                while True:
                    await peer.stream.send_all(bytes(b"x" * 65536))
            except trio.BrokenResourceError:
                pass
        await server.until(lambda: server.stats.connections_open == 0)


@pytest.mark.parametrize("limit", [2048, 100_000])
async def test_the_length_of_a_head_is_as_configured(serving: Serving, limit: int) -> None:
    async with serving(close_grace_s=0.05, header_bytes=limit) as server:
        peer = await server.connect()
        await peer.send(get(b"/", b"Connection: close", b"X: " + b"x" * (limit - 500)))
        assert (await peer.read_to_end()).startswith(b"HTTP/1.1 200 ")
        for part in (b"", b"Host: x\r\nX: "):
            peer = await server.connect()
            await peer.send(b"GET /" + (b" HTTP/1.1\r\n" if part else b"") + part)
            await peer.send(b"x" * (limit + 500))
            assert (await peer.read_to_end()).startswith(b"HTTP/1.1 431 ")
        await server.until(lambda: server.stats.connections_open == 0)


async def test_a_trailer_without_end_is_refused(serving: Serving) -> None:
    """T40: it belongs to no body, so that no limit of a body covers it."""
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(post(CHUNKED, body=b"1\r\na\r\n0\r\nX: "))
        with trio.fail_after(PATIENCE_S):
            try:
                while True:
                    await peer.stream.send_all(bytes(b"x" * 65536))
            except trio.BrokenResourceError:
                pass
        await server.until(lambda: server.app.live == 0)


@only_httptools
async def test_a_body_that_does_not_come_is_a_408(serving: Serving) -> None:
    """T36; on h11 the application's own limit does this."""
    async with serving(close_grace_s=0.05, body_pause_s=0.05) as server:
        peer = await server.connect()
        await peer.send(post(b"Content-Length: 9", body=b"abc"))
        assert (await peer.read_to_end()).startswith(b"HTTP/1.1 408 ")
        assert server.app.live == 0


# Answers


def answering(
    headers: list[tuple[bytes, bytes]], *bodies: bytes, status: int = 200
) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        if scope["path"] == "/":
            headers_ok = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": headers_ok})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


INJECTIONS = {
    "crlf": (b"x-echo", b"a\r\nset-cookie: evil"),
    "crlf-body": (b"x-echo", b"a\r\n\r\n<evil>"),
    "lf": (b"x-echo", b"a\nset-cookie: evil"),
    "cr": (b"x-echo", b"a\rset-cookie: evil"),
    "nul": (b"x-echo", b"a\x00b"),
    "name-crlf": (b"x-echo\r\nset-cookie", b"evil"),
    "name-colon": (b"set-cookie: evil\r\nx", b"a"),
    "name-space": (b"x echo", b"a"),
    "name-empty": (b"", b"a"),
}


@pytest.mark.parametrize("field", INJECTIONS.values(), ids=INJECTIONS.keys())
async def test_a_header_field_that_would_change_the_message_is_never_sent(
    serving: Serving, field: tuple[bytes, bytes]
) -> None:
    """T30: the application's answer becomes a 500."""
    async with serving(app=answering([field], b"x"), close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(get(b"/inject"))
        answer = await peer.read_to_end()
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"evil" not in answer
        await server.assert_healthy()


async def test_a_stream_is_chunked_once_whatever_the_application_says(serving: Serving) -> None:
    """ASGI HTTP specification: a Transfer-Encoding of the application is ignored."""
    app = answering([(b"transfer-encoding", b"chunked")], b"ab", b"", b"c" * 17)
    async with serving(app=app) as server:
        peer = await server.connect()
        await peer.send(get(b"/stream"))
        head = await peer.read_until(b"\r\n\r\n")
        assert head.lower().count(b"transfer-encoding") == 1
        assert await peer.read_until(b"0\r\n\r\n") == (
            b"2\r\nab\r\n11\r\n" + b"c" * 17 + b"\r\n0\r\n\r\n"
        )
        assert await peer.get() == b"ok"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_ends_with_its_head(serving: Serving, status: int) -> None:
    async with serving(app=answering([], status=status)) as server:
        peer = await server.connect()
        await peer.send(get(b"/nothing") + get())
        head = await peer.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"transfer-encoding" not in head
        assert await peer.read_answer() == b"ok"


@pytest.mark.parametrize("length", [b"1", b"9"], ids=["too-short", "too-long"])
async def test_an_answer_of_another_length_than_declared_never_reaches_the_next(
    serving: Serving, length: bytes
) -> None:
    """Else its rest would be read as the answer to the next request."""
    app = answering([(b"content-length", length)], b"abc", b"def")
    async with serving(app=app, close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(get(b"/lying") + get())
        answer = await peer.read_to_end()
        assert answers_in(answer) <= 1  # none, where nothing had been sent yet
        await server.assert_healthy()


OUT_OF_PLACE: dict[str, tuple[dict[str, Any], ...]] = {
    "body-first": ({"type": "http.response.body", "body": b"evil"},),
    "unknown": ({"type": "http.response.evil"},),
    "start-twice": (
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.start", "status": 299},
        {"type": "http.response.body", "body": b"evil"},
    ),
    "body-behind-the-end": (
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.body", "body": b"a"},
        {"type": "http.response.body", "body": b"evil"},
    ),
}


@pytest.mark.parametrize("messages", OUT_OF_PLACE.values(), ids=OUT_OF_PLACE.keys())
async def test_messages_out_of_place_never_reach_the_peer(
    serving: Serving, messages: tuple[dict[str, Any], ...]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        for message in messages:
            await send(message)

    async with serving(app=app, close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(get(b"/", b"Connection: close"))
        answer = await peer.read_to_end()
        assert answers_in(answer) == 1
        assert b"evil" not in answer
        assert b"299" not in answer


async def test_a_body_may_be_read_while_the_answer_streams(serving: Serving) -> None:
    """Watching the peer and reading its body are both reading; they must not collide."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            body = message["body"].upper()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"ended"})

    async with serving(app=app) as server:
        peer = await server.connect()
        await peer.send(post(b"Content-Length: 4"))
        await peer.read_until(b"begun\r\n")
        await peer.send(b"ab")
        await peer.read_until(b"AB\r\n")
        await peer.send(b"cd")
        await peer.read_until(b"CD\r\n")
        await peer.read_until(b"ended\r\n0\r\n\r\n")


async def test_a_malformed_body_has_one_answer(serving: Serving) -> None:
    """Also where the application answers after it was told of the disconnect."""
    begun = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})

    async with serving(app=app, close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(post(CHUNKED))
        await begun.wait()
        await peer.send(b"zz\r\n")
        answer = await peer.read_to_end()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answers_in(answer) == 1


# WebSocket behind other requests


@pytest.mark.parametrize("cut", [0, 20, -1, None])
async def test_a_websocket_may_follow_other_requests(serving: Serving, cut: int | None) -> None:
    """However its handshake is cut: in one segment with the request before it, or behind it."""
    handshake = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    before = post(b"Content-Length: 2", body=b"hi")
    async with serving(header_timeout_s=1.0, close_grace_s=0.05) as server:
        peer = await server.connect()
        early = handshake[:cut] if cut is not None else handshake
        await peer.send(before + early)
        assert await peer.read_answer() == b"hi"
        await peer.send(handshake[len(early) :])
        assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await peer.send(b"\x81\x85\x00\x00\x00\x00hello")
        assert await peer.read_until(b"hello") == b"\x81\x05hello"
        await peer.stream.aclose()
        await server.until(lambda: server.app.live == 0)


@only_httptools
async def test_requests_sent_ahead_are_read_as_far_as_the_limit_and_no_further(
    serving: Serving,
) -> None:
    """However many of them are answered, and though the application listens for a disconnect."""
    ahead = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            await receive()
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        ahead.append(len(scope["extensions"]["taskcast.link"]._inbox.parser.requests))
        await send({"type": "taskcast.answer", "status": 200, "headers": [], "body": b""})

    async with serving(app=listening) as server, trio.open_nursery() as nursery:
        peer = await server.connect()
        nursery.start_soon(peer.send, get() * 100_000)
        for _ in range(30):
            await peer.read_until(b"\r\n\r\n")
        assert max(ahead) * len(get()) <= 2 * 64 * 1024
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("field", [b"Sec-WebSocket-Version: 12", b"Upgrade: websocket"])
async def test_a_bad_websocket_handshake_is_answered_and_closed(
    serving: Serving, field: bytes
) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(get(b"/", b"Connection: Upgrade", b"Upgrade: websocket", field))
        answer = await peer.read_to_end()
        assert answer.startswith(b"HTTP/1.1 4")
        await server.until(lambda: server.stats.connections_open == 0)
