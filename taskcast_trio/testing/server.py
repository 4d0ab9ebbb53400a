"""A real server for tests, and the client that fits a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import msgspec

from taskcast_trio.client import AsyncTaskcastClient, TaskcastClient
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


@contextmanager
def sync_client(url: str) -> Iterator[TaskcastClient]:
    """A client for a test without an event loop."""
    with httpx.Client(trust_env=False) as http:
        yield TaskcastClient(url, http=http)


def async_client(url: str) -> AsyncTaskcastClient:
    """A client for an async test, that leaves nothing to be closed.

    Connections have to be closed on the event loop that they were opened on, which a fixture does
    not know: this one closes each after its call.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return AsyncTaskcastClient(url, http=httpx.AsyncClient(limits=limits, trust_env=False))
