"""A real server for tests, and the client that fits a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.config import Config


@dataclass(frozen=True, slots=True)
class TestServer:
    """A server that listens, with an empty store of its own."""

    __test__ = False  # pytest: no class of tests

    url: str
    config: Config


def async_client(url: str, **options: Any) -> AsyncTaskcastClient:
    """A client that is closed after each call, so that it needs no closing of its own.

    Whoever closes it would have to do so on the event loop that it was used on, which a fixture
    does not know.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    http = httpx.AsyncClient(limits=limits, trust_env=False)
    return AsyncTaskcastClient(url, http=http, **options)
