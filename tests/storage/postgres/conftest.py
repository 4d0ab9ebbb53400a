from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.postgres import open_postgres

from .server import LocalServer, new_database, url_of

PATIENCE_S = 30.0


@pytest.fixture(scope="session")
def server(postgres_server: LocalServer) -> LocalServer:
    return postgres_server


@pytest.fixture
def empty_url() -> str:
    """An empty database."""
    return url_of(new_database())


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[LongTermStore]:
    with trio.fail_after(PATIENCE_S):
        async with open_postgres(url, max_connections=3, timeout_s=10) as store:
            yield store
