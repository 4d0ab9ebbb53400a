"""``taskcast-trio migrate``: bring the schema of the long-term store up to this version."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from taskcast_trio.cli.connect import output_options
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.start import WrongConfig, load
from taskcast_trio.config import SecretUrl

TIMEOUT_S: Final = 10.0
"""For an answer of the database; migrations themselves may take long."""

URL_SCHEMES: Final = ("postgresql://", "postgres://")
UP_TO_DATE: Final = "nothing to do: the database is up to date"


@click.command(short_help="Create or upgrade the tables in PostgreSQL.")
@click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file, as of `start`.",
)
@click.option(
    "--postgres-url",
    metavar="URL",
    help="The database, or TASKCAST_POSTGRES_URL, or postgres.url of the configuration.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run; change nothing.")
@click.option("--status", is_flag=True, help="List the migrations and when each was run.")
@output_options
def migrate(
    config_path: Path | None, postgres_url: str | None, dry_run: bool, status: bool, out: Out
) -> None:
    """Create or upgrade the tables of the long-term store in PostgreSQL.

    Safe to repeat, and to run from several places at once. Tables of the original Taskcast are
    taken over with what is in them. A URL with a password is better given by environment or file:
    command lines are visible to other users.

    Exit status: 0; 1 when the database is away or can't be migrated; 2 on a wrong configuration.
    """
    url = _url(config_path, postgres_url)
    # Trio and the driver take a moment: not for --help, and the driver may not be there.
    import trio

    from taskcast_trio.core.errors import StoreUnavailable

    try:
        from taskcast_trio.storage.postgres import MigrationError, migrations, open_postgres
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed: it comes with the extra postgres, as in"
            " pip install 'taskcast-trio[postgres]', or '.[postgres]' in a clone"
        ) from None

    async def main() -> None:
        async with open_postgres(url.reveal(), max_connections=1, timeout_s=TIMEOUT_S) as store:
            known = migrations.known_migrations()
            if not status and not dry_run:
                done = await migrations.migrate(store.pool, known)
                _say(out, [(migration.name, "done") for migration in done], UP_TO_DATE)
                return
            records = await migrations.recorded(store.pool)
            left = migrations.pending(known, records)
            if status:
                rows = [(record.name, str(record.at)) for record in records]
                _say(out, [*rows, *((migration.name, "pending") for migration in left)])
            else:
                _say(out, [(migration.name, "would be run") for migration in left], UP_TO_DATE)

    try:
        trio.run(main)
    except (MigrationError, StoreUnavailable) as error:
        raise click.ClickException(f"{url}: {error}") from None


def _url(config_path: Path | None, flag: str | None) -> SecretUrl:
    loaded = load(config_path, {"postgres.url": flag})
    url = loaded.config.postgres.url
    if url is None:
        raise WrongConfig("which database? --postgres-url, TASKCAST_POSTGRES_URL or postgres.url")
    if not url.reveal().startswith(URL_SCHEMES):
        raise WrongConfig(f"postgres.url: {url} does not begin with {URL_SCHEMES[0]}")
    return url


def _say(out: Out, rows: list[tuple[str, str]], without: str | None = None) -> None:
    if out.as_json:
        out.json([{"name": name, "state": state} for name, state in rows])
        return
    for name, state in rows:
        out.say(f"{name}  {state}")
    if not rows and without is not None:
        out.say(without)
