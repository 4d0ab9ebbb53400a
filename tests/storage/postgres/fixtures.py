"""A database for any test: of ``TASKCAST_TEST_POSTGRES_URL`` where that is set (its role must be
allowed to create databases), else of a server that the tests start. Outages are always of the
latter.
"""

from __future__ import annotations

import pytest

from .server import LocalServer, local_server, migrated_database, new_database, url_of


@pytest.fixture(scope="session")
def postgres_server() -> LocalServer:
    """The server that outages are tried on."""
    return local_server()


@pytest.fixture
def postgres_url() -> str:
    """A migrated database."""
    return url_of(new_database(migrated_database()))
