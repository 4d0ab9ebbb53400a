"""The database servers beside the one under measurement, as the tests start them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.storage.postgres.server import new_database, psql, url_of
from tests.storage.redis.server import LocalServer, running


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database; its server forgets what it was told when its machine ends."""
    name = new_database()
    try:
        yield url_of(name)
    finally:
        psql(url_of("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def redis() -> Iterator[LocalServer]:
    """An empty one that writes an append-only file, synced every second; on the core of who starts
    it.
    """
    with running("--appendonly", "yes") as server:
        yield server


def memory_kib(server: LocalServer, task_id: str) -> float:
    """What the keys of a task take in it."""
    with server.client() as client:
        names = client.keys(f"*:{task_id}*")
        sizes: list[int] = [client.memory_usage(name, samples=0) for name in names]
    return sum(sizes) / 1024
