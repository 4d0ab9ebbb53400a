"""A server with workers in the process of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ..http.conftest import start_server
from .support import config


@pytest.fixture
async def server() -> AsyncIterator[Any]:
    defaults = {"heartbeat_timeout_ms": 2000, "disconnect_grace_ms": 600, "offer_timeout_ms": 1000}
    async with start_server(config(**defaults)) as running:
        yield running


@pytest.fixture(params=["websocket", "pull"])
def mode(request: pytest.FixtureRequest) -> str:
    """Both ways to hear of tasks: what one promises, the other does too."""
    found: str = request.param
    return found
