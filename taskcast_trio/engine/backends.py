"""Which store a configuration asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskcast_trio.config import Config
from taskcast_trio.storage.memory import MemoryBackend
from taskcast_trio.storage.protocols import Backend


@asynccontextmanager
async def open_backend(config: Config) -> AsyncIterator[Backend]:
    """The store, open as long as the context.

    Raises:
        StoreRefused: the database file can't be used.
    """
    if config.storage == "sqlite":
        from taskcast_trio.storage.sqlite import open_sqlite

        async with open_sqlite(config.db_path, synchronous=config.sqlite.synchronous) as backend:
            yield backend
    else:
        yield MemoryBackend()
