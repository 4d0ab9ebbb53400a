"""Migrations: numbered SQL files, each run once, in order, and recorded with its checksum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import asyncpg  # type: ignore[import-untyped]

from .connection import Connection
from .pool import Pool

TIMEOUT_S: Final = 600.0
"""For all of them: a large table of the original is rewritten once."""

_LOCK: Final = 0x7461736B63617374
"""``taskcast``: who migrates holds this advisory lock."""


class MigrationError(Exception):
    """The schema is not what this version needs, or can't be made so; one line for a person."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. ``name`` is that of the file without its suffix, ``checksum`` the SHA-256 of it."""

    number: int
    name: str
    checksum: str
    sql: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """A migration that a database has had, as it says itself; ``at`` is ISO 8601, UTC."""

    number: int
    name: str
    checksum: str
    at: str


def _folder() -> Traversable:
    shipped = files("taskcast_trio") / "migrations" / "postgres"
    if shipped.is_dir():
        return shipped
    return Path(__file__).parents[3] / "migrations" / "postgres"


def known_migrations(folder: Traversable | None = None) -> tuple[Migration, ...]:
    """The migrations of this version, by number.

    Raises:
        MigrationError: two have one number, or there are none.
    """
    folder = folder or _folder()
    found = []
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name.endswith(".sql"):
            content = file.read_bytes()
            name = file.name.removesuffix(".sql")
            number = int(name.partition("_")[0])
            found.append(Migration(number, name, sha256(content).hexdigest(), content.decode()))
    found.sort(key=lambda migration: migration.number)
    if not found or len({migration.number for migration in found}) < len(found):
        raise MigrationError("this installation is damaged: its migrations are not there")
    return tuple(found)


def pending(known: Sequence[Migration], recorded: Iterable[Recorded]) -> list[Migration]:
    """What is still to be run.

    Raises:
        MigrationError: a recorded migration is not known or was changed since, or one was left out
            before it.
    """
    done = {record.number: record for record in recorded}
    ours = {migration.number: migration for migration in known}
    for number, record in sorted(done.items()):
        migration = ours.get(number)
        if migration is None:
            raise MigrationError(
                f"the database has had migration {record.name}, which this version does not know: "
                "a newer one was here"
            )
        if migration.checksum != record.checksum:
            raise MigrationError(
                f"migration {record.name} has changed since the database had it "
                f"(SHA-256 {record.checksum[:12]} then, {migration.checksum[:12]} now)"
            )
    left = [migration for migration in known if migration.number not in done]
    if left and done and left[0].number < max(done):
        raise MigrationError(f"the database lacks migration {left[0].name}, but has later ones")
    return left


async def recorded(pool: Pool) -> list[Recorded]:
    """What the database has had, by number.

    Raises:
        StoreUnavailable: it is away.
    """
    return await pool.run(_recorded)


async def _recorded(connection: Connection) -> list[Recorded]:
    if await connection.fetchval("SELECT to_regclass('taskcast_migrations')") is None:
        return []
    rows = await connection.fetch(
        "SELECT number, name, checksum,"
        """ to_char(applied_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS at"""
        " FROM taskcast_migrations ORDER BY number"
    )
    return [Recorded(row["number"], row["name"], row["checksum"], row["at"]) for row in rows]


async def require_migrated(pool: Pool) -> None:
    """Refuse a database that has not had exactly the migrations of this version.

    Raises:
        MigrationError: which one is missing, unknown or changed.
        StoreUnavailable: the database is away.
    """
    left = pending(known_migrations(), await recorded(pool))
    if left:
        names = ", ".join(migration.name for migration in left)
        raise MigrationError(
            f"the database lacks {names}: run `taskcast-trio migrate`, or start with --auto-migrate"
        )


async def migrate(
    pool: Pool, known: Sequence[Migration] | None = None, *, timeout_s: float = TIMEOUT_S
) -> list[Migration]:
    """Run what is pending, each in a transaction of its own, and return it.

    Only one caller at a time does so in a database: another waits, and finds less to do. Cancelling
    leaves whole migrations, each done or not.

    Raises:
        MigrationError: one failed (those before it stay), or :func:`pending` refuses.
        StoreUnavailable: the database is away, or ``timeout_s`` was not enough.
    """
    migrations = known_migrations() if known is None else known

    async def work(connection: Connection) -> list[Migration]:
        return await _migrate(connection, migrations)

    return await pool.run(work, timeout_s=timeout_s, apart=True)


async def _migrate(connection: Connection, known: Sequence[Migration]) -> list[Migration]:
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise MigrationError(f"the database must have the encoding UTF8, not {encoding}")
    # Of the session, which ends with this work: it spans the transactions.
    await connection.execute(f"SELECT pg_advisory_lock({_LOCK})")
    left = pending(known, await _recorded(connection))
    for migration in left:
        try:
            await _apply(connection, migration)
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            raise MigrationError(
                f"migration {migration.name} failed: {error.args[0]} (SQLSTATE {error.sqlstate})"
            ) from None
    return left


async def _apply(connection: Connection, migration: Migration) -> None:
    await connection.execute("BEGIN")
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS taskcast_migrations (number INTEGER PRIMARY KEY,"
        " name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL)"
    )
    await connection.execute(migration.sql)
    await connection.execute(
        "INSERT INTO taskcast_migrations VALUES ($1, $2, $3, clock_timestamp())",
        migration.number,
        migration.name,
        migration.checksum,
    )
    await connection.execute("COMMIT")
