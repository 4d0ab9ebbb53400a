"""The database servers beside the one under measurement, as the tests start them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.storage.postgres.server import new_database, psql, url_of


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database; its server forgets what it was told when its machine ends."""
    name = new_database()
    try:
        yield url_of(name)
    finally:
        psql(url_of("postgres"), f"DROP DATABASE {name} WITH (FORCE)")
