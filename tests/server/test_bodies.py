"""How long the body of a request may take, on every way to read one."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Server
from taskcast_trio.core.errors import PayloadTooLarge, RequestTimeout
from taskcast_trio.engine import open_runtime
from taskcast_trio.server.app import create_app
from taskcast_trio.server.bodies import read_body
from taskcast_trio.server.requests import IMPORT_TIMEOUT_S


def http_scope(path: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"h"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "extensions": {},
        **fields,
    }


def trickle(pause_s: float) -> Any:
    """A body of spaces that never ends."""

    async def receive() -> dict[str, Any]:
        await trio.sleep(pause_s)
        return {"type": "http.request", "body": b" ", "more_body": True}

    return receive


async def status_of(app: Any, path: str, receive: Any) -> int:
    statuses: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(http_scope(path), receive, send)
    (status,) = statuses
    return status


@pytest.mark.parametrize("timeout_s", [3.0, 1000.0])
@pytest.mark.parametrize(("path", "at_least_s"), [("/tasks", 0), ("/tasks/import", 600)])
async def test_a_body_has_the_configured_time_and_no_more(
    path: str, at_least_s: float, timeout_s: float, autojump_clock: Any
) -> None:
    """An import, which is long, has its own patience where that is more."""
    assert IMPORT_TIMEOUT_S == 600
    config = Config(server=Server(body_timeout_seconds=timeout_s))
    async with open_runtime(config) as runtime:
        begun_s = trio.current_time()
        assert await status_of(create_app(runtime), path, trickle(timeout_s / 10)) == 408
        assert trio.current_time() - begun_s == pytest.approx(max(timeout_s, at_least_s))


@pytest.mark.parametrize("pause_s", [0.3, 1000.0])
async def test_reading_ends_in_time_whether_or_not_something_comes(
    pause_s: float, autojump_clock: Any
) -> None:
    begun_s = trio.current_time()
    with pytest.raises(RequestTimeout):
        await read_body(http_scope("/"), trickle(pause_s), 1000, timeout_s=2.0)
    assert trio.current_time() - begun_s == pytest.approx(2.0)


async def test_a_body_over_the_limit_is_left_unread_as_soon_as_that_is_known(
    autojump_clock: Any,
) -> None:
    begun_s = trio.current_time()
    with pytest.raises(PayloadTooLarge):
        await read_body(http_scope("/"), trickle(0.1), 4, timeout_s=100.0)
    assert trio.current_time() - begun_s == pytest.approx(0.5)
