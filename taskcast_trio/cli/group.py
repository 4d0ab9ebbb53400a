"""The ``taskcast-trio`` command itself: a group whose default command is ``start``."""

from __future__ import annotations

from typing import Final

import click

from taskcast_trio import __version__
from taskcast_trio.cli.cleanup import cleanup
from taskcast_trio.cli.migrate import migrate
from taskcast_trio.cli.ping import ping
from taskcast_trio.cli.start import start
from taskcast_trio.cli.webhooks import webhooks

_OWN_OPTIONS: Final = ("--help", "--version")


class DefaultGroup(click.Group):
    """A group that takes no command, or options at once, to mean ``start``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else "-"
        if first.startswith("-") and first not in _OWN_OPTIONS and not ctx.resilient_parsing:
            args = ["start", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup)
@click.version_option(__version__, prog_name="taskcast-trio")
def main() -> None:
    """Follow long jobs: tasks whose events any number of people replay and stream.

    Without a command it runs `start`, whose options work here too: see `start --help`.
    """


main.add_command(start)
main.add_command(migrate)
main.add_command(ping)
main.add_command(cleanup)
main.add_command(webhooks)
