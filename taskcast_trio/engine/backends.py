"""Which stores a configuration asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskcast_trio.config import Config
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.memory import MemoryBackend
from taskcast_trio.storage.protocols import Backend, LongTermStore, StoreRefused


@asynccontextmanager
async def open_backend(config: Config) -> AsyncIterator[Backend]:
    """The short-term store, open as long as the context.

    Raises:
        StoreRefused: the database file can't be used.
    """
    if config.storage == "sqlite":
        from taskcast_trio.storage.sqlite import open_sqlite

        async with open_sqlite(config.db_path, synchronous=config.sqlite.synchronous) as backend:
            yield backend
    else:
        yield MemoryBackend()


@asynccontextmanager
async def open_archive(config: Config) -> AsyncIterator[LongTermStore | None]:
    """The long-term store, open as long as the context; None where none is configured.

    Raises:
        StoreRefused: the database is away, or its schema is not that of this version.
    """
    url = config.postgres.url
    if url is None:
        yield None
        return
    try:
        from taskcast_trio.storage.postgres import (
            MigrationError,
            migrate,
            open_postgres,
            require_migrated,
        )
    except ModuleNotFoundError as error:
        raise StoreRefused(
            f"{error.name} is not installed: pip install 'taskcast-trio[postgres]'"
        ) from None
    try:
        opened = open_postgres(
            url.reveal(),
            max_connections=config.postgres.max_connections,
            timeout_s=config.postgres.timeout_seconds,
        )
    except ValueError as error:
        raise StoreRefused(f"postgres.url: {error}") from None
    async with opened as store:
        try:
            if config.auto_migrate:
                await migrate(store.pool)
            else:
                await require_migrated(store.pool)
        except (MigrationError, StoreUnavailable) as error:
            raise StoreRefused(f"{url}: {error}") from None
        yield store
