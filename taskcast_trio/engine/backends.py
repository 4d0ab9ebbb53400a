"""Which stores a configuration asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import get_args

import structlog

from taskcast_trio.config import Config
from taskcast_trio.config.schema import Storage
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.memory import MemoryBackend
from taskcast_trio.storage.protocols import Backend
from taskcast_trio.storage.records import StoreRefused

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stores:
    """The short-term store with its broadcast, and the archive where one is configured."""

    backend: Backend
    archive: LongTermStore | None


@asynccontextmanager
async def open_stores(config: Config) -> AsyncIterator[Stores]:
    """The stores, open as long as the context; all of them have answered once.

    Raises:
        StoreRefused: one can't be used as it is configured.
    """
    async with AsyncExitStack() as stack:
        try:
            yield await _open(config, stack)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            extra = _EXTRAS[error.name]
            raise StoreRefused(
                f"{error.name} is not installed: it comes with the extra {extra}, as in"
                f" pip install 'taskcast-trio[{extra}]', or '.[{extra}]' in a clone"
            ) from None


_EXTRAS = {"asyncpg": "postgres", "redis": "redis", "trio_asyncio": "all"}


async def _open(config: Config, stack: AsyncExitStack) -> Stores:
    bridge = None
    if config.storage == "redis" or config.postgres.url is not None:
        from taskcast_trio.storage.bridge import open_bridge

        bridge = await stack.enter_async_context(open_bridge())
    backend: Backend = MemoryBackend()
    if config.storage == "sqlite":
        from taskcast_trio.storage.sqlite import open_sqlite

        backend = await stack.enter_async_context(
            open_sqlite(config.db_path, synchronous=config.sqlite.synchronous)
        )
    elif config.storage == "redis":
        from taskcast_trio.storage.redis import open_redis

        if config.redis.url is None:
            raise StoreRefused("storage redis needs redis.url")
        backend = await stack.enter_async_context(
            open_redis(
                config.redis.url.reveal(),
                prefix=config.redis.prefix,
                bridge=bridge,
                timeout_s=config.redis.timeout_seconds,
                connections=config.redis.max_connections,
            )
        )
        _look_at_durability(backend, config)
    elif config.storage != "memory":
        # A configuration made in code is held against its types by nobody else.
        raise StoreRefused(f"storage: expected one of {', '.join(get_args(Storage))}")
    url = config.postgres.url
    if url is None:
        return Stores(backend, None)

    from taskcast_trio.storage.postgres import (
        MigrationError,
        migrate,
        open_postgres,
        require_migrated,
    )

    try:
        archive = await stack.enter_async_context(
            open_postgres(
                url.reveal(),
                max_connections=config.postgres.max_connections,
                timeout_s=config.postgres.timeout_seconds,
                bridge=bridge,
            )
        )
        if config.auto_migrate:
            await migrate(archive.pool)
        else:
            await require_migrated(archive.pool)
    except ValueError as error:
        raise StoreRefused(f"postgres.url: {error}") from None
    except (MigrationError, StoreUnavailable) as error:
        raise StoreRefused(f"{url}: {error}") from None
    return Stores(backend, archive)


def _look_at_durability(backend: Backend, config: Config) -> None:
    if backend.durability == "durable":
        return
    what = (
        "has no append-only file: what it acknowledged is lost when it ends (appendonly yes)"
        if backend.durability == "volatile"
        else "does not tell whether it writes an append-only file"
    )
    if config.require_durable:
        raise StoreRefused(f"requireDurable: Redis {what}")
    log.warning("redis_durability", durability=backend.durability, detail=f"Redis {what}")
