"""The stores that the contract is run against. A store joins by one entry in ``BACKENDS``."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.memory import MemoryBackend
from taskcast_trio.storage.postgres import open_postgres
from taskcast_trio.storage.postgres.connection import Connection
from taskcast_trio.storage.protocols import Backend, ShortTermStore
from taskcast_trio.storage.redis import open_redis
from taskcast_trio.storage.sqlite import open_sqlite
from taskcast_trio.storage.tiered import TieredStore

from .postgres.server import migrated_database, new_database, url_of
from .redis.server import new_prefix, redis_url
from .support import NOW, Announced


class TieredBackend:
    """A short-term store over an archive, without an archiver."""

    provider = "tiered"
    durability: Final = "volatile"
    peers: Final = None

    def __init__(self, backend: Backend, archive: LongTermStore) -> None:
        self.broadcast = backend.broadcast
        self.store: ShortTermStore = TieredStore(
            backend.store,
            archive,
            clock=lambda: NOW,
            new_epoch=lambda: "EPOCH999",
            changed=lambda: None,
        )

    def link(self) -> None:
        """It is in this process."""


OpenBackend = Callable[[], AbstractAsyncContextManager[Backend]]


@asynccontextmanager
async def open_memory() -> AsyncIterator[Backend]:
    yield MemoryBackend()


@asynccontextmanager
async def open_sqlite_file() -> AsyncIterator[Backend]:
    with tempfile.TemporaryDirectory() as directory:
        async with open_sqlite(Path(directory, "tasks.db"), synchronous="normal") as backend:
            yield backend


@asynccontextmanager
async def open_redis_prefix() -> AsyncIterator[Backend]:
    async with open_redis(redis_url(), prefix=new_prefix(), timeout_s=10) as backend:
        yield backend


@asynccontextmanager
async def open_tiered() -> AsyncIterator[Backend]:
    """Memory over an archive in PostgreSQL."""
    async with open_postgres(url_of(tiers_database())) as archive:
        await archive.pool.run(_empty)
        yield TieredBackend(MemoryBackend(), archive)


@cache
def tiers_database() -> str:
    """One for all tests, which is faster emptied than made."""
    return new_database(migrated_database())


async def _empty(connection: Connection) -> None:
    await connection.execute(
        "DELETE FROM taskcast_events; DELETE FROM taskcast_tasks; DELETE FROM taskcast_tombstones"
    )


BACKENDS: dict[str, OpenBackend] = {
    "memory": open_memory,
    "sqlite": open_sqlite_file,
    "redis": open_redis_prefix,
    "memory+postgres": open_tiered,
}


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS))
def open_backend(request: pytest.FixtureRequest) -> Any:
    """Opens an empty backend; for tests that need many of them."""
    return request.param


@pytest.fixture
async def backend(open_backend: OpenBackend) -> AsyncIterator[Backend]:
    async with open_backend() as opened:
        yield opened


@pytest.fixture
def store(backend: Backend) -> ShortTermStore:
    return backend.store


@pytest.fixture
async def announced(backend: Backend) -> AsyncIterator[Announced]:
    """Everything that is announced from now on."""
    sink = Announced()
    backend.broadcast.attached(None)
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.broadcast.run, sink)
        yield sink
        nursery.cancel_scope.cancel()
