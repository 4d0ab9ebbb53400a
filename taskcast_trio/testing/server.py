"""A real server for tests, and the client that fits a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.config import Config
from taskcast_trio.server.background import background


@dataclass(frozen=True, slots=True)
class TestServer:
    """A server that listens, with an empty store of its own."""

    __test__ = False  # pytest: no class of tests

    url: str
    config: Config


@contextmanager
def serving(config: Config) -> Iterator[TestServer]:
    """A server as configured, but on 127.0.0.1 and a free port, for as long as the context."""
    config = msgspec.structs.replace(config, host="127.0.0.1", port=0)
    with background(config) as url:
        yield TestServer(url, config)


def async_client(url: str, **options: Any) -> AsyncTaskcastClient:
    """A client that is closed after each call, so that it needs no closing of its own.

    Whoever closes it would have to do so on the event loop that it was used on, which a fixture
    does not know.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    http = httpx.AsyncClient(limits=limits, trust_env=False)
    return AsyncTaskcastClient(url, http=http, **options)
