"""A database for every test: of ``TASKCAST_TEST_POSTGRES_URL`` where that is set (its role must be
allowed to create databases), else of a server that the tests start. Outages are always of the
latter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from taskcast_trio.storage.postgres import migrate, open_postgres
from taskcast_trio.storage.protocols import LongTermStore

from .server import LocalServer, local_server, new_database, url_of

PATIENCE_S = 30.0


@pytest.fixture(scope="session")
def server() -> LocalServer:
    """The server that outages are tried on."""
    return local_server()


@pytest.fixture
def empty_url() -> str:
    """An empty database."""
    return url_of(new_database())


@pytest.fixture(scope="session")
def template() -> str:
    """A migrated database to copy."""
    name = new_database()

    async def main() -> None:
        async with open_postgres(url_of(name)) as store:
            await migrate(store.pool)

    trio.run(main)
    return name


@pytest.fixture
def url(template: str) -> str:
    """A migrated database."""
    return url_of(new_database(template))


@pytest.fixture
async def store(url: str) -> AsyncIterator[LongTermStore]:
    with trio.fail_after(PATIENCE_S):
        async with open_postgres(url, max_connections=3, timeout_s=10) as store:
            yield store
