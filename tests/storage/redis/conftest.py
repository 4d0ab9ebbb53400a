"""A Redis for every test: see :mod:`.server`. Outages are always of one that the tests started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .server import LocalServer, new_prefix, redis_url, running


@pytest.fixture
def url() -> str:
    return redis_url()


@pytest.fixture
def prefix() -> str:
    """One that no other test has."""
    return new_prefix()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server that outages are tried on; without an append-only file."""
    with running() as server:
        yield server
