"""Any request target is either understood or refused with a reason; none is a server error."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any
from urllib.parse import quote

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from quart import Response
from quart_trio import QuartTrio

from taskcast_trio.server.target import (
    BadTarget,
    TargetGuard,
    check_host,
    decode_path,
    escape_segment,
    origin_form,
    path_id,
)

Serving = Callable[..., AbstractAsyncContextManager[Any]]


def make_app() -> TargetGuard:
    """A real Quart app: `/tasks/<id>` answers with the id, `/echo` with its query."""
    app = QuartTrio(__name__)
    app.url_map.merge_slashes = False

    @app.get("/tasks/<segment>")
    async def task(segment: str) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(json.dumps({"id": path_id(segment)}), mimetype="application/json")

    return TargetGuard(app)


async def ask(server: Any, target: bytes, *headers: bytes, host: bytes = b"Host: x") -> Any:
    """Return status and JSON (or raw) body of a GET for `target`, sent as it is."""
    peer = await server.connect()
    lines = [b"GET " + target + b" HTTP/1.1", host, b"Connection: close", *headers, b"", b""]
    await peer.send(b"\r\n".join(lines))
    head, _, body = (await peer.read_to_end()).partition(b"\r\n\r\n")
    await peer.stream.aclose()
    status = int(head.split()[1])
    is_json = b"application/json" in head
    return status, json.loads(body) if is_json else body


BAD_TARGETS = {
    "empty-path": b"?x=1",
    "relative": b"tasks/a",
    "open-bracket": b"http://[",
    "closed-bracket": b"http://]/tasks/a",
    "no-authority": b"http:///tasks/a",
    "userinfo": b"http://user:pass@x/tasks/a",
    "bad-port": b"http://x:99999/tasks/a",
    "other-scheme": b"ftp://x/tasks/a",
    "star": b"*",
    "two-slashes": b"//",
    "empty-first-segment": b"//tasks/a",
    "absolute-empty-first-segment": b"http://x//tasks/a",
    "short-escape": b"/tasks/%",
    "half-escape": b"/tasks/%4",
    "no-hex": b"/tasks/%zz",
    "not-utf8": b"/tasks/%ff",
    "overlong-utf8": b"/tasks/%c0%af",
    "surrogate": b"/tasks/%ed%a0%80",
    "nul": b"/tasks/%00",
    "newline": b"/tasks/a%0d%0aSet-Cookie:x",
    "escape": b"/tasks/%1b[2J",
    "c1-control": b"/tasks/%c2%85",
}


@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
async def test_a_malformed_target_is_a_400_that_says_why(serving: Serving, target: bytes) -> None:
    """T48."""
    async with serving(app=make_app()) as server:
        status, body = await ask(server, target)
    assert status == 400
    assert set(body) == {"error", "code"}
    assert body["error"].startswith(("bad request target", "bad Host header", "Malformed request"))


@pytest.mark.parametrize(
    ("target", "task_id"),
    [
        (b"/tasks/a", "a"),
        (b"/tasks/a%2Fb", "a/b"),
        (b"/tasks/a%2fb", "a/b"),
        (b"/tasks/a%252Fb", "a%2Fb"),
        (b"/tasks/100%25", "100%"),
        (b"/tasks/..%2F", "../"),
        (b"/tasks/..", ".."),
        (b"/tasks/%2e%2e", ".."),
        (b"/tasks/%2E%2E%2f%2e%2e%2fetc%2fpasswd", "../../etc/passwd"),
        (b"/tasks/a;b=c", "a;b=c"),
        (b"/tasks/a+b%20c", "a+b c"),
        (b"/tasks/%F0%9F%9A%80", "\N{ROCKET}"),
        (b"/tasks/a%3Fb%23c", "a?b#c"),
        (b"/tasks/a?%ff=%", "a"),
        (b"http://other/tasks/a%2Fb?q", "a/b"),
        (b"HTTPS://other:1/tasks/a", "a"),
        (b"/tasks/" + quote("\N{ROCKET}" * 1024).encode(), "\N{ROCKET}" * 1024),
    ],
)
async def test_an_id_reaches_its_handler_whole(
    serving: Serving, target: bytes, task_id: str
) -> None:
    """Whatever an id holds, it is one segment; the longest legal one fits."""
    async with serving(app=make_app()) as server:
        assert await ask(server, target) == (200, {"id": task_id})


@pytest.mark.parametrize(
    "target", [b"/", b"/tasks//a", b"/tasks/", b"/tasks/a/", b"/tasks/a/../b", b"http://x"]
)
async def test_unknown_paths_are_404_and_never_normalised_into_known_ones(
    serving: Serving, target: bytes
) -> None:
    async with serving(app=make_app()) as server:
        status, _ = await ask(server, target)
    assert status == 404


async def test_an_overlong_target_is_a_414(serving: Serving) -> None:
    async with serving(app=make_app()) as server:
        status, body = await ask(server, b"/tasks/" + b"a" * 17_000)
        assert status == 414
        assert "too long" in body["error"]
        assert (await ask(server, b"/tasks/a?" + b"a" * 17_000))[0] == 414


@pytest.mark.parametrize(
    "host",
    [
        b"Host: x\r\nHost: y",
        b"Host: a b",
        b"Host: " + b"a" * 64 + b".example",
        b"Host: a..b",
        b"Host: .",
        b"Host: user@x",
        b"Host: x/y",
        b"Host: x:port",
        b"Host: x:99999",
        b"Host: [::1",
        b"Host: [::1]x",
        b"Host: \xff",
        b"X-No-Host: x",
    ],
)
async def test_a_bad_host_is_a_400(serving: Serving, host: bytes) -> None:
    """By the guard, or by the parser in front of it; never by a crash behind it."""
    async with serving(app=make_app()) as server:
        status, _ = await ask(server, b"/tasks/a", host=host)
    assert status == 400


@pytest.mark.parametrize(
    "host", ["x", "x:80", "a.example.", "127.0.0.1:3721", "[::1]", "[::1]:1", "a_b", "", "x:"]
)
async def test_a_good_host_is_served(serving: Serving, host: str) -> None:
    async with serving(app=make_app()) as server:
        status, _ = await ask(server, b"/tasks/a", host=f"Host: {host}".encode())
    assert status == 200


async def test_length_and_chunked_together_are_refused_and_the_connection_ends(
    serving: Serving,
) -> None:
    """RFC 9112 6.3: a smuggled second request is never looked at."""
    async with serving(app=make_app()) as server:
        peer = await server.connect()
        await peer.send(
            b"GET /tasks/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            b"GET /tasks/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        answer = await peer.read_to_end()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == 1
    assert b"smuggled" not in answer


async def call(scope: dict[str, Any], **options: Any) -> tuple[dict[str, Any] | None, list[Any]]:
    """Run the guard on `scope`; return the scope the application saw and what was sent."""
    seen: list[dict[str, Any]] = []
    sent: list[Any] = []

    async def app(inner: Any, receive: Any, send: Any) -> None:
        seen.append(inner)
        await trio.lowlevel.checkpoint()

    async def send(message: Any) -> None:
        sent.append(message)
        await trio.lowlevel.checkpoint()

    await TargetGuard(app, **options)(scope, trio.sleep_forever, send)
    return (seen[0] if seen else None), sent


def http_scope(raw_path: bytes | None, path: str, **fields: Any) -> dict[str, Any]:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": raw_path,
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"x")],
    }
    return scope | fields


async def test_an_absolute_target_replaces_the_host() -> None:
    """RFC 9112 3.2.2: the Host header beside an absolute URI is ignored."""
    seen, _ = await call(http_scope(b"http://y:1/a%2Fb", "http://y:1/a/b"))
    assert seen is not None
    assert seen["headers"] == [(b"host", b"y:1")]
    assert (seen["path"], seen["raw_path"]) == ("/a%2Fb", b"/a%2Fb")


@pytest.mark.parametrize(
    ("raw_path", "path", "root_path", "expected"),
    [
        (b"/api/tasks/a%2Fb", "/api/tasks/a/b", "/api", ("/api/tasks/a%2Fb", "/api")),
        (b"/api/tasks/a%2Fb", "/tasks/a/b", "", ("/tasks/a%2Fb", "")),
        (b"/a%20b/tasks/x%2Fy", "/a b/tasks/x/y", "/a b", ("/a b/tasks/x%2Fy", "/a b")),
        (b"/50%25/tasks/x", "/50%/tasks/x", "/50%", ("/50%25/tasks/x", "/50%25")),
        (b"/api", "/", "", ("/", "")),
        (None, "/tasks/100%", "", ("/tasks/100%25", "")),
    ],
    ids=["root_path", "stripped", "space", "percent", "bare-mount", "no-raw-path"],
)
async def test_a_mount_prefix_keeps_working(
    raw_path: bytes | None, path: str, root_path: str, expected: tuple[str, str]
) -> None:
    """Whether the outer router leaves the prefix on the path or cuts it off."""
    seen, _ = await call(http_scope(raw_path, path, root_path=root_path))
    assert seen is not None
    assert (seen["path"], seen["root_path"]) == expected


async def test_an_empty_segment_behind_the_mount_prefix_is_refused() -> None:
    seen, sent = await call(http_scope(b"/api//tasks/a", "/api//tasks/a", root_path="/api"))
    assert seen is None
    assert sent[0]["status"] == 400


async def test_a_mounted_quart_app_finds_its_routes() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        await trio.lowlevel.checkpoint()

    scope = http_scope(b"/api/tasks/a%2Fb", "/api/tasks/a/b", root_path="/api")
    await make_app()(scope | {"scheme": "http"}, trio.sleep_forever, send)
    assert json.loads(sent[1]["body"]) == {"id": "a/b"}


async def test_a_websocket_handshake_is_checked_too() -> None:
    fields = {"type": "websocket", "extensions": {"websocket.http.response": {}}}
    seen, sent = await call(http_scope(b"/%zz", "/%zz") | fields)
    assert seen is None
    assert sent[0]["type"] == "websocket.http.response.start"
    assert sent[0]["status"] == 400
    seen, sent = await call(http_scope(b"/%zz", "/%zz") | fields | {"extensions": {}})
    assert seen is None
    assert sent[0]["type"] == "websocket.close"


async def test_server_wide_options_reach_the_application() -> None:
    seen, _ = await call(http_scope(b"*", "*", method="OPTIONS"))
    assert seen is not None
    assert seen["path"] == "*"


async def test_two_hosts_are_refused_whatever_the_parser_in_front_lets_through() -> None:
    seen, sent = await call(http_scope(b"/", "/", headers=[(b"host", b"x"), (b"Host", b"x")]))
    assert seen is None
    assert sent[0]["status"] == 400


async def test_a_query_beyond_ascii_is_refused() -> None:
    """HTTP/2 lets such bytes through, and frameworks decode them strictly."""
    seen, sent = await call(http_scope(b"/", "/", query_string=b"\xff"))
    assert seen is None
    assert sent[0]["status"] == 400


async def test_lifespan_passes_untouched() -> None:
    scope = {"type": "lifespan"}
    seen, _ = await call(scope)
    assert seen is scope


@given(st.text())
def test_path_id_undoes_the_escape(text: str) -> None:
    escaped = escape_segment(text)
    assert "/" not in escaped
    assert path_id(escaped) == text


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"])), min_size=1))
def test_every_list_of_ids_survives_the_path(ids: list[str]) -> None:
    raw = "".join("/" + quote(text, safe="") for text in ids).encode()
    assert [path_id(part) for part in decode_path(raw).split("/")[1:]] == ids


@given(st.binary(max_size=40))
def test_no_bytes_make_the_checks_fail_otherwise_than_by_refusal(data: bytes) -> None:
    for check in (decode_path, check_host, lambda raw: check_host(origin_form(raw)[1] or b"")):
        with suppress(BadTarget):
            check(data)


@pytest.mark.parametrize(
    "host", [b"localhost", b"127.0.0.1:8", b"app.example:65535", b"[::1]:54321", b"a.b.c.d.e.f"]
)
async def test_an_ordinary_request_is_handed_on_as_it_came(host: bytes) -> None:
    """Nothing is copied for it: that is a sixth of what a publish costs."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(scope)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/tasks/a/events",
        "raw_path": b"/tasks/a/events",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", host), (b"content-length", b"2")],
    }
    to_memory, from_memory = trio.open_memory_channel[Any](0)
    await TargetGuard(app)(scope, from_memory.receive, to_memory.send)
    assert seen[0] is scope
