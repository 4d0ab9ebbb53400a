"""``taskcast-trio start``: load the configuration, then serve until a signal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from taskcast_trio.cli.nodes import home
from taskcast_trio.cli.options import StartCommand, flags_of, generated, prominent
from taskcast_trio.cli.output import Out, write_json
from taskcast_trio.config import ConfigError, Loaded, load_config, require_available
from taskcast_trio.config.show import rows, tree


class WrongConfig(click.ClickException):
    """A configuration that cannot be used: one line, exit status 2."""

    exit_code = 2


def load(path: Path | None, flags: Mapping[str, object]) -> Loaded:
    """The configuration that is in force here.

    Raises:
        WrongConfig: it can't be used.
    """
    try:
        return load_config(path=path, flags=flags, env=os.environ, cwd=Path.cwd(), home=home())
    except ConfigError as error:
        raise WrongConfig(str(error)) from None


@click.command(cls=StartCommand)
@click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file, YAML or JSON. Without it: taskcast.config.yaml, .yml or .json here, "
    "then in ~/.taskcast.",
)
@click.option("--verbose", "-v", is_flag=True, help="The same as --log-level debug.")
@click.option(
    "--check-config", is_flag=True, help="Print the effective configuration and its sources; exit."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Say where it listens as a line of JSON, and log as --log-format json does.",
)
@click.option("--no-color", is_flag=True, help="No colours in logs; NO_COLOR says so too.")
@click.pass_context
def start(
    ctx: click.Context,
    /,
    config_path: Path | None,
    verbose: bool,
    check_config: bool,
    as_json: bool,
    no_color: bool,
    **_: object,
) -> None:
    """Start the server (the default command).

    A flag comes before an environment variable, that before the file, that before the default.
    Secrets are better given by environment or file: command lines are visible to other users.
    Exit status: 0 after SIGTERM or SIGINT, 1 on a failure while running, 2 on a wrong
    configuration.
    """
    flags = flags_of(ctx, ctx.command.params)
    if verbose and flags["logLevel"] is None:
        flags["logLevel"] = "debug"
    if as_json and flags["logFormat"] is None:
        flags["logFormat"] = "json"
    loaded = load(config_path, flags)
    try:
        require_available(loaded.config)
        if loaded.config.auth.mode != "none":
            from taskcast_trio.server.auth.methods import methods

            methods(loaded.config, lambda: 0)
    except ConfigError as error:
        raise WrongConfig(str(error)) from None
    if check_config:
        show(loaded, as_json=as_json)
        return
    # Trio, Quart and the stores take half a second: not for --help or --check-config.
    from taskcast_trio.cli.run import run

    sys.exit(run(loaded, Out(as_json, no_color)))


def show(loaded: Loaded, *, as_json: bool) -> None:
    """Print every value with its source, secrets hidden, and OK."""
    for line in loaded.warnings:
        click.echo(f"warning: {line}", err=True)
    if as_json:
        write_json(tree(loaded))
        return
    table = list(rows(loaded))
    keys, values = (max(len(row[n]) for row in table) for n in (0, 1))
    click.echo(f"file: {loaded.file or 'none'}")
    for key, value, source in table:
        click.echo(f"{key:<{keys}}  {value:<{min(values, 40)}}  {source}")
    click.echo("OK")


start.params[:0] = [
    prominent("port", "-p", help="Port to listen on; 0 takes a free one.  [3721]"),
    prominent("host", help="Address to listen on.  [127.0.0.1 while auth is none, else all]"),
    prominent("storage", "-s", help="memory, redis or sqlite.  [memory]"),
    prominent("redis.url", help="URL of --storage redis; alone it selects that."),
    prominent("processes", help="Server processes on the one port, with redis.  [1]"),
    prominent("dbPath", help="File of --storage sqlite.  [./taskcast.db]"),
    prominent("logLevel", help="debug, info, warn or error.  [info]"),
    prominent("logFormat", help="json, text or auto: text on a terminal, else JSON.  [auto]"),
]
start.params.extend(generated())
