"""``taskcast-trio logs`` and ``tail``: the events of one task, or of every task."""

from __future__ import annotations

import re
import select
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, cast, get_args

import click

from taskcast_trio.cli.connect import Command, server_options, talk
from taskcast_trio.cli.ctrl_c import writing
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.server import Server
from taskcast_trio.core.model import Level

if TYPE_CHECKING:
    from taskcast_trio.cli.outages import Outages
    from taskcast_trio.cli.views import View
    from taskcast_trio.client import AsyncTaskcastClient

PAGE_EVENTS: Final = 1000
TICK_S: Final = 0.1
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
BACK: Final = "is back: nothing is missing"
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A time ago, or a moment, as a moment."""
    if value is None:
        return None
    try:
        if found := re.fullmatch(r"(\d{1,9})([smhd])", value, re.ASCII):
            return datetime.now(UTC) - timedelta(seconds=int(found[1]) * _UNITS[found[2]])
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            "expected 30s, 10m, 2h, 7d, or a time like 2026-01-31T12:00", ctx, param
        ) from None


def _levels(ctx: click.Context, param: click.Parameter, value: str | None) -> list[Level] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    if wrong := [name for name in names if name not in get_args(Level)]:
        raise click.BadParameter(
            f"{wrong[0]!r} is none of {', '.join(get_args(Level))}", ctx, param
        )
    return cast(list[Level], names)


def _types(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else value.split(",")


def event_options(command: Command) -> Command:
    """Add what says which events."""
    for option in (
        click.option("--levels", callback=_levels, metavar="LEVELS", help="Like warn,error."),
        click.option("--types", callback=_types, metavar="TYPES", help="Like llm.*,tool.call."),
        click.option(
            "--since", callback=_moment, metavar="TIME", help="30s, 10m, 2h, 7d, or a time."
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("task")
@click.option("--follow/--no-follow", "-f", help="Go on with what comes, until the task ends.")
@event_options
@server_options
def logs(
    task: str,
    follow: bool,
    since: datetime | None,
    types: list[str] | None,
    levels: list[Level] | None,
    server: Server,
    out: Out,
) -> None:
    """Show the events of TASK.

    On a terminal the pieces of an accumulate series are shown as the text that they are; in a pipe
    and with --json it is one event a line. A lost connection is made again, and nothing is missed.

    \b
      taskcast-trio logs TASK --follow
      taskcast-trio logs TASK --since 10m --levels warn,error
      taskcast-trio logs TASK -f --json | jq -r 'select(.type == "llm.delta") | .data.delta'
    """

    async def work(client: AsyncTaskcastClient, view: View, outages: Outages) -> None:
        from taskcast_trio.cli.event_text import event_of
        from taskcast_trio.cli.views import Reading
        from taskcast_trio.client import Gap

        if not follow:
            after: datetime | str | None = since
            while True:
                page = await client.history(
                    task, since=after, limit=PAGE_EVENTS, types=types, levels=levels
                )
                for event in page:
                    view.show(event)
                if len(page) < PAGE_EVENTS:
                    return
                after = page[-1].id
        start = since
        if start is None and not isinstance(view, Reading):
            start = _EPOCH  # every piece as it was published, and no snapshots
        reconnects = 0
        stream = client.subscribe(task, since=start, types=types, levels=levels, gaps="deliver")
        async with stream:
            outages.of(stream)
            async for item in stream:
                if isinstance(item, Gap):
                    view.forget()
                    out.note(f"gap ({item.reason}): what is there comes again")
                    continue
                if stream.reconnects != reconnects and isinstance(view, Reading):
                    reconnects = stream.reconnects
                    if reconnects != outages.told:
                        view.interrupt()
                        out.note(f"the connection was lost, and {BACK}")
                view.show(event_of(item))
            if stream.done == "deleted":
                out.note("the task was deleted")

    _watch(server, out, work, with_task=False, back=f"the connection {BACK}")


@click.command()
@click.option("--follow/--no-follow", "-f", default=True, help="Go on with what comes.  [--follow]")
@event_options
@server_options
def tail(
    follow: bool,
    since: datetime | None,
    types: list[str] | None,
    levels: list[Level] | None,
    server: Server,
    out: Out,
) -> None:
    """Show the events of every task as they come, until Ctrl-C.

    --since begins with what the logs have from then on, in the order of time: of a long past, ten
    thousand events at a time. After a lost connection what came meanwhile is read from the logs.

    \b
      taskcast-trio tail
      taskcast-trio tail --since 10m --levels warn,error
      taskcast-trio tail --json --types 'taskcast:status' | jq .data.status
    """
    if not follow and since is None:
        raise click.UsageError("--no-follow needs --since: the past from when on?")

    async def work(client: AsyncTaskcastClient, view: View, outages: Outages) -> None:
        from taskcast_trio.cli.every_task import EveryTask

        def note(text: str) -> None:
            view.interrupt()
            out.note(text)

        def begun() -> None:
            if out.is_terminal and not out.as_json:
                note(f"following every task at {server.url}: Ctrl-C ends it")

        every = EveryTask(
            client,
            types=types,
            levels=levels,
            since=since,
            show=view.show,
            note=note,
            opened=outages.of,
            begun=begun,
        )
        await (every.follow() if follow else every.past())

    _watch(server, out, work, with_task=True, back=None)


def _watch(
    server: Server,
    out: Out,
    work: Callable[[AsyncTaskcastClient, View, Outages], Awaitable[None]],
    *,
    with_task: bool,
    back: str | None,
) -> None:
    """Run what shows events, until it is done, Ctrl-C, or the reader of the output leaves."""
    import trio

    from taskcast_trio.cli.outages import Outages

    async def main(client: AsyncTaskcastClient) -> None:
        with _view(out, with_task) as view:

            def note(text: str) -> None:
                view.interrupt()
                out.note(text)

            outages = Outages(note, back=back)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_with_reader)
                if out.is_terminal:
                    nursery.start_soon(_settle, view)
                    if not out.as_json:
                        nursery.start_soon(outages.tell)
                await work(client, view, outages)
                nursery.cancel_scope.cancel()

    talk(server, main)


@contextmanager
def _view(out: Out, with_task: bool) -> Iterator[View]:
    import trio

    from taskcast_trio.cli import views

    view: View
    if out.as_json:
        view = views.JsonLines()
    elif out.is_terminal:
        view = views.Reading(out, _put, trio.current_time, with_task=with_task)
    else:
        view = views.Lines(out, with_task=with_task)
    try:
        yield view
    finally:
        view.close()


def _put(text: str) -> None:
    with writing():
        sys.stdout.write(text)
        sys.stdout.flush()


async def _settle(view: View) -> None:
    """Show in time what waits for its turn."""
    import trio

    while True:
        due = view.due()
        await trio.sleep(TICK_S if due is None else max(due - trio.current_time(), 0))
        view.settle()


async def _end_with_reader() -> None:
    """Raise as a write would when whoever reads the output has left, though nothing is written.

    Raises:
        BrokenPipeError: the output is a pipe, and nobody reads it any more.
    """
    import os

    import trio

    try:
        number = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
    except (OSError, ValueError, AttributeError):
        return  # not of a process of its own, or closed
    if not is_pipe:
        return
    while True:
        # The end that is written to is never readable; it wakes up when the other end is closed.
        await trio.lowlevel.wait_readable(number)
        poll = select.poll()
        poll.register(number, 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            raise BrokenPipeError(32, "Broken pipe")
        await trio.sleep(TICK_S)
