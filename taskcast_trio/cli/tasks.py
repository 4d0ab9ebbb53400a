"""``taskcast-trio tasks``: look at tasks, end them, remove them."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import click
import msgspec
from msgspec import UNSET

from taskcast_trio.cli.connect import server_options, talk
from taskcast_trio.cli.failures import OK, USAGE, Failed, failure_of, printable
from taskcast_trio.cli.output import STATUS_STYLES, Out, is_terminal, moment
from taskcast_trio.cli.server import Server
from taskcast_trio.core.model import Event, Status, Task, TaskError

if TYPE_CHECKING:
    from taskcast_trio.client import AsyncTaskcastClient

PAGE: Final = 500
DEFAULT_LIMIT: Final = 100
LAST_EVENTS: Final = 5
SUMMARY_CHARS: Final = 300
"""As much of the data of an event is shown at a terminal."""
_TIMES: Final = frozenset({"createdAt", "updatedAt", "completedAt", "resumeAt", "runAt"})


@click.group()
def tasks() -> None:
    """Look at tasks, end them, remove them.

    \b
      taskcast-trio tasks list --status running,blocked
      taskcast-trio tasks inspect TASK
      taskcast-trio tasks cancel TASK --reason 'too slow'
    """


def _statuses(ctx: click.Context, param: click.Parameter, value: str | None) -> list[Status] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    if wrong := [name for name in names if name not in get_args(Status)]:
        raise click.BadParameter(
            f"{wrong[0]!r} is none of {', '.join(get_args(Status))}", ctx, param
        )
    return cast(list[Status], names)


@tasks.command("list")
@click.option("--status", callback=_statuses, metavar="STATUSES", help="Like running,blocked.")
@click.option("--type", "type_", metavar="TYPE", help="Only those of exactly this type.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMIT,
    metavar="N",
    help=f"The newest N.  [{DEFAULT_LIMIT}]",
)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@server_options
def list_(
    status: list[Status] | None,
    type_: str | None,
    limit: int,
    all_: bool,
    server: Server,
    out: Out,
) -> None:
    """List tasks, the newest last. With --json one task a line."""

    async def read(client: AsyncTaskcastClient) -> tuple[deque[Task], int]:
        newest: deque[Task] = deque(maxlen=None if all_ else limit)
        number, after = 0, None
        with out.progress("listing tasks") as progress:
            while True:
                page = await client.list(status=status, type=type_, after=after, limit=PAGE)
                newest.extend(page)
                number += len(page)
                if len(page) < PAGE:
                    return newest, number
                after = page[-1].id
                progress(f"listing tasks: {number}")

    found, number = talk(server, read)
    if out.as_json:
        for task in found:
            out.json(task)
        return
    if not found:
        out.note("no tasks" + (" like that" if status or type_ else " yet"))
        return
    out.table(
        ("id", "status", "type", "created", "updated", "error"),
        (
            (
                task.id,
                task.status,
                task.type,
                moment(task.created_at),
                moment(task.updated_at),
                UNSET if task.error is UNSET else task.error.message,
            )
            for task in found
        ),
        less=("updated", "created"),
    )
    if number > len(found):
        out.note(f"the newest {len(found)} of {number}: --all, or --limit N, shows more")


@tasks.command("inspect")
@click.argument("task")
@server_options
def inspect(task: str, server: Server, out: Out) -> None:
    """Show all that is known of TASK, and its last events."""
    from taskcast_trio.core.errors import Forbidden

    async def read(client: AsyncTaskcastClient) -> tuple[Task, list[Event] | None]:
        found = await client.get(task)
        try:
            return found, list(await _last_events(client, task))
        except Forbidden:  # that takes another scope
            return found, None

    found, events = talk(server, read)
    if out.as_json:
        out.json({"task": found, "events": events})
        return
    for name, value in _fields(found):
        text = out.styled(value, fg=STATUS_STYLES.get(value)) if name == "status" else value
        out.say(f"{name:<17}{text}")
    if events:
        from taskcast_trio.cli.event_text import line_of

        out.say(f"\nthe last {len(events)} events:" if len(events) > 1 else "\nthe last event:")
        limit = SUMMARY_CHARS if out.is_terminal else None
        for event in events:
            out.say(line_of(event, out, with_task=False, limit=limit))
    elif events is not None:
        out.say("\nno events yet")


async def _last_events(client: AsyncTaskcastClient, task: str) -> deque[Event]:
    """The end of the log; a page of it at a time is held."""
    last: deque[Event] = deque(maxlen=LAST_EVENTS)
    after: str | None = None
    while True:
        page = await client.history(task, since=after, limit=PAGE)
        last.extend(page)
        if len(page) < PAGE:
            return last
        after = page[-1].id


def _fields(task: Task) -> Iterator[tuple[str, str]]:
    """The fields that are there, by their names on the wire."""
    for name, value in json.loads(msgspec.json.encode(task)).items():
        if name in _TIMES:
            yield name, f"{moment(value)}  ({value})"
        elif isinstance(value, str):
            yield name, printable(value)
        else:
            yield name, printable(json.dumps(value, ensure_ascii=False))


@tasks.command("cancel", short_help="Cancel TASKS.")
@click.argument("tasks", nargs=-1, required=True)
@click.option("--reason", metavar="TEXT", help="Why; it becomes the error of the task.")
@server_options
def cancel(tasks: tuple[str, ...], reason: str | None, server: Server, out: Out) -> None:
    """Cancel TASKS: they end, their followers and workers are told."""
    error = None if reason is None else TaskError(message=reason, code="cancelled")

    async def end(client: AsyncTaskcastClient, task: str) -> None:
        await client.transition(task, "cancelled", error=error)

    _for_each(tasks, end, "cancelled", server, out)


@tasks.command("delete")
@click.argument("tasks", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@server_options
def delete(tasks: tuple[str, ...], yes: bool, server: Server, out: Out) -> None:
    """Remove TASKS and their events for good."""
    if not yes:
        if not is_terminal(sys.stdin):
            raise Failed("there is nobody to ask: --yes deletes without", USAGE)
        named = printable(tasks[0]) if len(tasks) == 1 else f"{len(tasks)} tasks"
        click.confirm(f"Delete {named} and all events at {server.url}?", abort=True, err=True)

    async def remove(client: AsyncTaskcastClient, task: str) -> None:
        await client.delete(task)

    _for_each(tasks, remove, "deleted", server, out)


def _for_each(
    tasks: Sequence[str],
    act: Callable[[AsyncTaskcastClient, str], Awaitable[Any]],
    done: str,
    server: Server,
    out: Out,
) -> None:
    """Do it to each task; a failure does not keep it from the others, but is the exit status."""
    from taskcast_trio.cli.failures import NO_SERVER
    from taskcast_trio.core.errors import TaskcastError

    async def work(client: AsyncTaskcastClient) -> int:
        status = OK
        with out.progress(f"{len(tasks)} tasks") as progress:
            for number, task in enumerate(tasks, 1):
                try:
                    await act(client, task)
                except TaskcastError as error:
                    failure = failure_of(error, server)
                    assert failure is not None
                    if failure.exit_code == NO_SERVER:
                        raise  # nor will it be there for the next one
                    failure.show()
                    status = status or failure.exit_code
                else:
                    told = {"taskId": task, done: True}
                    out.json(told) if out.as_json else out.say(f"{printable(task)} {done}")
                progress(f"{number} of {len(tasks)} tasks")
        return status

    click.get_current_context().exit(talk(server, work))
