"""One line per request, safe to read and free of secrets, whatever the request holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from structlog.testing import capture_logs

from taskcast_trio.logs import merge_request_fields
from taskcast_trio.server.access import AccessLog, loggable_path


def scope_of(raw_path: bytes = b"/tasks/a", **fields: Any) -> dict[str, Any]:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "raw_path": raw_path,
        "query_string": b"token=secret",
        "root_path": "",
        "headers": [(b"host", b"x")],
        "client": ("192.0.2.1", 1234),
    }
    return scope | fields


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"abc", "more_body": True})
    await send({"type": "http.response.body", "body": b"de"})


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs(processors=[merge_request_fields]) as captured:
        yield captured


async def call(scope: dict[str, Any], app: Any = answer) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        await trio.lowlevel.checkpoint()

    await AccessLog(app, structlog.get_logger())(scope, trio.sleep_forever, send)
    return sent


async def test_a_request_is_one_line_with_its_outcome(lines: list[Any]) -> None:
    sent = await call(scope_of())
    (line,) = lines
    assert line.pop("duration_ms") >= 0
    assert len(line.pop("request_id")) == 32
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "path": "/tasks/a",
        "task_id": "a",
        "status": 201,
        "bytes": 5,
        "client": "192.0.2.1",
    }
    assert sent[0]["headers"] == []


@pytest.mark.parametrize(
    ("raw_path", "logged"),
    [
        (b"/a%0d%0ab", "/a%0d%0ab"),
        (b"/a\r\n\x1b[2Jb", "/a%0D%0A%1B[2Jb"),
        (b"/\xe2\x80\xae", "/%E2%80%AE"),
        (b"http://user:secret@x/a", "/a"),
        (b"/" + b"a" * 65_536, "/" + "a" * 511),
        (b"/" + b"\xff" * 65_536, "/" + "%FF" * 170 + "%"),
    ],
)
def test_no_path_forges_lines_reaches_the_terminal_or_carries_secrets(
    raw_path: bytes, logged: str
) -> None:
    """T46."""
    assert loggable_path(scope_of(raw_path)) == logged


async def test_the_query_is_never_logged(lines: list[Any]) -> None:
    await call(scope_of())
    assert "secret" not in str(lines)


@pytest.mark.parametrize(
    ("value", "kept"), [(b"abc-1._X", True), (b"a b", False), (b"a\n", False), (b"a" * 129, False)]
)
async def test_a_request_id_is_taken_over_only_if_it_is_a_plain_token(
    lines: list[Any], value: bytes, kept: bool
) -> None:
    await call(scope_of(headers=[(b"x-request-id", value)]))
    assert (lines[0]["request_id"] == value.decode()) is kept


async def test_lines_of_the_application_carry_the_request_id_and_later_ones_do_not(
    lines: list[Any],
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.lowlevel.checkpoint()
        structlog.get_logger().info("inside")

    await call(scope_of(headers=[(b"x-request-id", b"r1")]), app)
    structlog.get_logger().info("outside")
    assert [line.get("request_id") for line in lines] == ["r1", "r1", None]


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/metrics", "/api/health"])
async def test_probes_are_logged_at_debug_level(lines: list[Any], path: str) -> None:
    root = "/api" if path.startswith("/api") else ""
    await call(scope_of(path.encode(), root_path=root))
    assert lines[0]["log_level"] == "debug"


async def test_a_stream_is_logged_when_it_ends_with_its_duration(lines: list[Any]) -> None:
    end = trio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await end.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, scope_of(), stream)
        await trio.testing.wait_all_tasks_blocked()
        assert lines == []
        end.set()
    assert lines[0]["status"] == 200


async def test_a_crash_is_logged_as_500_and_goes_on(lines: list[Any]) -> None:
    async def crash(scope: Any, receive: Any, send: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("secret")

    with pytest.raises(ValueError, match="secret"):
        await call(scope_of(), crash)
    assert lines[0]["status"] == 500
    assert "secret" not in str(lines)


async def test_a_cancelled_request_is_logged_without_a_status(lines: list[Any]) -> None:
    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, scope_of(), wait)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert lines[0]["status"] is None


async def test_websockets_and_lifespan(lines: list[Any]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "abc"})

    await call(scope_of(type="websocket"), app)
    await call({"type": "lifespan"}, app)
    (line,) = lines
    assert (line["method"], line["status"], line["bytes"]) == ("GET", 101, 3)
