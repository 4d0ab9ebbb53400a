"""The ``taskcast-trio`` command itself: a group whose default command is ``start``."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from click.exceptions import Exit

from taskcast_trio import __version__
from taskcast_trio.cli.cleanup import cleanup
from taskcast_trio.cli.completion import completion
from taskcast_trio.cli.config import config
from taskcast_trio.cli.doctor import doctor
from taskcast_trio.cli.failures import CLOSED_PIPE, EXIT_STATUSES, INTERRUPTED, Failed
from taskcast_trio.cli.logs import logs, tail
from taskcast_trio.cli.migrate import migrate
from taskcast_trio.cli.node import node
from taskcast_trio.cli.ping import ping
from taskcast_trio.cli.publish import publish
from taskcast_trio.cli.server import PRECEDENCE
from taskcast_trio.cli.start import start
from taskcast_trio.cli.tasks import tasks
from taskcast_trio.cli.webhooks import webhooks

_OWN_OPTIONS: Final = ("--help", "-h", "--version")
_OF_COMMANDS: Final = ("--node", "--url", "--token", "--json", "--no-color")
_OF_START: Final = ("--json", "--no-color")


class DefaultGroup(click.Group):
    """A group that takes no command, or options at once, to mean ``start``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else "-"
        name = first.partition("=")[0]
        means_start = name in _OF_START and not self.commands.keys() & set(args)
        if name in _OF_COMMANDS and not means_start and not ctx.resilient_parsing:
            told = f"{name} goes behind the command, like taskcast-trio ping {name}"
            raise click.UsageError(told, ctx)
        if first.startswith("-") and first not in _OWN_OPTIONS and not ctx.resilient_parsing:
            args = ["start", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        return list(self.commands)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """As a group does, which also prints what --help and --version say."""
        _never_refuse_to_print()
        with _ends_quietly():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C and a reader that has left end it without a word.

        Raises:
            Failed: the system does not let it, as where the disk of the output is full.
        """
        with _ends_quietly():
            found = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()
        return found


@contextmanager
def _ends_quietly() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Exit(INTERRUPTED) from None
    except OSError as error:
        _forget_stdout()
        if error.errno == errno.EPIPE:
            raise Exit(CLOSED_PIPE) from None
        place = f"{error.filename}: " if error.filename else ""
        raise Failed(f"{place}{error.strerror or error}") from error


def _never_refuse_to_print() -> None:
    """Print what the terminal's encoding lacks as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Let what is left in the buffer go nowhere: Python would complain of it at its end."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


@click.group(
    cls=DefaultGroup,
    epilog=f"{PRECEDENCE}\n{EXIT_STATUSES}",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="taskcast-trio")
def main() -> None:
    """Follow long jobs: tasks whose events any number of people replay and stream.

    Without a command it runs `start`, whose options work here too: see `start --help`.

    \b
      taskcast-trio                                    # a server
      some-llm | taskcast-trio publish --new --type llm.delta --series answer --accumulate
      taskcast-trio logs TASK --follow
      taskcast-trio tail
    """


for _command in (
    start,
    migrate,
    config,
    ping,
    doctor,
    publish,
    logs,
    tail,
    tasks,
    webhooks,
    cleanup,
    node,
    completion,
):
    main.add_command(_command)
