"""The long-term store in PostgreSQL. Importing this imports asyncpg and trio-asyncio, which patches
asyncio: do so only where PostgreSQL is configured.
"""

from __future__ import annotations

from .migrations import MigrationError, migrate, pending, require_migrated
from .store import PostgresStore, open_postgres

__all__ = [
    "MigrationError",
    "PostgresStore",
    "migrate",
    "open_postgres",
    "pending",
    "require_migrated",
]
