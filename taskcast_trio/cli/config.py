"""``taskcast-trio config``: the server's configuration as `start` would have it here."""

from __future__ import annotations

from pathlib import Path

import click

from taskcast_trio.cli.connect import output_options
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.start import load
from taskcast_trio.config.show import rows, tree


@click.group()
def config() -> None:
    """Look at the configuration of a server."""


@config.command("show", short_help="Print what `start` would use here.")
@click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file, as of `start`.",
)
@click.option(
    "--redacted/--reveal",
    default=True,
    help="Hide secrets, which is the default, or print them as they are.",
)
@output_options
def show(config_path: Path | None, redacted: bool, out: Out) -> None:
    """Print what `start` would use here: each value and where it is from.

    \b
      taskcast-trio config show
      taskcast-trio config show -c prod.yaml --json | jq .values.port
    """
    loaded = load(config_path, {})
    for line in loaded.warnings:
        out.note(f"warning: {line}")
    if out.as_json:
        out.json(tree(loaded, reveal=not redacted))
        return
    out.say(f"file: {loaded.file or 'none'}")
    out.table(("key", "value", "source"), rows(loaded, reveal=not redacted), fold=True)
