"""What can be no worker is refused where it is made, in words, and without its secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from taskcast_trio.worker import Run, Worker

from .support import worker_of

URL = "http://localhost:3721"


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 0},
        {"capacity": 1001},
        {"mode": "push"},
        {"lease_s": 0},
        {"lease_s": float("nan")},
        {"heartbeat_s": -1},
        {"heartbeat_s": 0},
        {"grace_s": -1},
        {"drain_s": -0.5},
    ],
)
def test_what_can_be_no_worker_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        worker_of(URL, **options)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:3721",
        "ws://localhost:3721",
        "http://",
        "http://[",
        "http://:3721",
        "http://a host",
        "http://localhost:99999",
        "http://localhost:port",
        "http://localhost:3721?token=secret",
        "http://user:secret@localhost:3721",
        "http://localhost\n",
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url") as refused:
        Worker(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("token", ["", "secret\n", "sec ret", "sécret", "secret\x00"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token") as refused:
        Worker(URL, token=token)
    assert "ret" not in str(refused.value)


def test_a_worker_needs_handlers_and_one_for_each_type() -> None:
    worker = worker_of(URL)
    with pytest.raises(ValueError):
        trio.run(worker.run)

    async def nothing(run: Run) -> None: ...

    worker.task("a")(nothing)
    with pytest.raises(ValueError):
        worker.task("b", "a")(nothing)
    assert worker.task("b")(nothing) is nothing, "what was refused is not half there"


async def test_what_is_no_handler_is_refused_where_it_is_written() -> None:
    worker = worker_of(URL)

    async def pieces(run: Run) -> AsyncIterator[int]:
        yield 1

    def plain(run: Run) -> None: ...

    async def handler(run: Run) -> None: ...

    for wrong in (pieces, plain):
        with pytest.raises(TypeError, match="async def"):
            worker.task("a")(wrong)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"worker\.task\(\)"):
        worker.task(handler)  # type: ignore[arg-type]
