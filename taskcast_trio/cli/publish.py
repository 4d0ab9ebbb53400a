"""``taskcast-trio publish``: events from arguments, or from stdin as they come."""

from __future__ import annotations

import shlex
import signal
import sys
from typing import TYPE_CHECKING, Final, cast

import click
import msgspec
from msgspec import UNSET, Raw, UnsetType

from taskcast_trio.cli.connect import server_options, talk
from taskcast_trio.cli.failures import INTERRUPTED, USAGE, Failed, printable
from taskcast_trio.cli.output import Out, is_terminal
from taskcast_trio.cli.server import Server
from taskcast_trio.core import jsontext
from taskcast_trio.core.errors import BadRequest
from taskcast_trio.core.model import CreateTask, Draft, Level, SeriesMode
from taskcast_trio.core.series import DEFAULT_FIELD

if TYPE_CHECKING:
    from taskcast_trio.cli.feed import Feed, Publishing
    from taskcast_trio.client import AsyncTaskcastClient

SIGNAL_BASE: Final = 128


@click.command(short_help="Publish events, from arguments or stdin.")
@click.argument("task", required=False)
@click.option("--new", is_flag=True, help="Make a task for it, which ends with the input.")
@click.option("--id", "new_id", metavar="ID", help="With --new: its id.")
@click.option("--task-type", metavar="TYPE", help="With --new: its type.")
@click.option("--type", "type_", metavar="TYPE", help="The type of the events.")
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warn", "error"]),
    default="info",
    help="How important they are.  [info]",
)
@click.option("--data", metavar="JSON", help="Publish one event with this, and read no stdin.")
@click.option("--no-data", is_flag=True, help="Publish one event without data.")
@click.option("--series", metavar="NAME", help="The series that the events belong to.")
@click.option("--accumulate", "mode", flag_value="accumulate", help="Their texts are one text.")
@click.option("--latest", "mode", flag_value="latest", help="Only the newest of them counts.")
@click.option(
    "--field",
    default=DEFAULT_FIELD,
    metavar="KEY",
    help=f"Where in data the texts of stdin go.  [{DEFAULT_FIELD}]",
)
@click.option("--lines", is_flag=True, help="Text of stdin: one event for each line.")
@click.option("--tee", is_flag=True, help="Write what is read from stdin to stdout, too.")
@click.option(
    "--complete/--keep-open",
    default=None,
    help="Complete the task at the end, or not.  [--complete with --new]",
)
@server_options
def publish(
    task: str | None,
    new: bool,
    new_id: str | None,
    task_type: str | None,
    type_: str | None,
    level: str,
    data: str | None,
    no_data: bool,
    series: str | None,
    mode: str | None,
    field: str,
    lines: bool,
    tee: bool,
    complete: bool | None,
    server: Server,
    out: Out,
) -> None:
    """Publish to TASK, or to a --new one: one event from --data, else what comes on stdin.

    With --type stdin is text, published as it comes: what is read at once is one piece (with
    --lines each line is one). Without --type stdin is NDJSON, one event a line, like
    {"type": "log", "data": {"line": "hello"}}.

    A --new task runs while there is input, and completes at its end. Ctrl-C and SIGTERM cancel it;
    an error of reading, or of --tee, fails it. Its id, and how to follow it, are on stderr.

    \b
      some-llm | taskcast-trio publish --new --type llm.delta --series answer --accumulate
      taskcast-trio publish TASK --type progress --series p --latest --data '{"percent": 40}'
      taskcast-trio publish TASK < events.ndjson
      tail -f app.log | taskcast-trio publish TASK --type log --lines --field line
    """
    single = data is not None or no_data
    if (task is None) != new:
        raise click.UsageError("either a TASK or --new")
    if not new and (new_id is not None or task_type is not None):
        raise click.UsageError("--id and --task-type go with --new")
    if (series is None) != (mode is None):
        raise click.UsageError("--series goes with --accumulate or --latest")
    if data is not None and no_data:
        raise click.UsageError("--data and --no-data do not go together")
    if type_ is None and (single or series is not None or lines):
        raise click.UsageError("of which --type are the events?")
    if single and (lines or tee):
        raise click.UsageError("--lines and --tee are for stdin, which --data leaves alone")
    if out.as_json and tee:
        raise click.UsageError("--tee and --json both want stdout")

    def draft(value: Raw | UnsetType) -> Draft:
        own_field = mode == "accumulate" and field != DEFAULT_FIELD
        return Draft(
            type=type_ or "",
            level=cast(Level, level),
            data=value,
            series_id=UNSET if series is None else series,
            series_mode=UNSET if mode is None else cast(SeriesMode, mode),
            series_acc_field=field if own_field else UNSET,
        )

    # Trio and the client take a moment: not for --help.
    from taskcast_trio.cli.feed import NdjsonFeed, OneEvent, TextFeed
    from taskcast_trio.cli.feed import Publishing as Session
    from taskcast_trio.cli.interruption import interruptible

    feed: Feed
    is_typed = is_terminal(sys.stdin) and not single
    if single:
        feed = OneEvent(draft(UNSET if data is None else _json(data)))
    elif type_ is None:
        if is_typed:
            raise click.UsageError("give --type and --data, or pipe events in")
        feed = NdjsonFeed(tee=tee)
    else:
        feed = TextFeed(lambda text: draft(_object(field, text)), lines=lines, tee=tee)
        if is_typed:
            out.note("reading what you type; Ctrl-D ends it")
    ends = new if complete is None else complete

    async def work(client: AsyncTaskcastClient) -> int | None:
        publishing = Session(client, task, made=new, ends=ends, counted=not single)

        def show() -> None:
            away = "; the server is away: what comes waits" if publishing.away else ""
            progress(f"publishing: {publishing.events} events{away}")

        with interruptible() as interruption:
            if new:
                await publishing.create(
                    CreateTask(
                        id=UNSET if new_id is None else new_id,
                        type=UNSET if task_type is None else task_type,
                    ),
                    interruption,
                )
                if not publishing.task_id:
                    return interruption.number
                _announce(publishing.task_id, server, out)
            is_busy = is_typed or (tee and out.is_terminal)
            with out.progress("publishing", quiet=is_busy) as progress:
                number = await publishing.run(feed, interruption, show)
        _report(publishing, number, out)
        return number

    number = talk(server, work)
    if number is not None:
        is_ctrl_c = number == signal.SIGINT
        click.get_current_context().exit(INTERRUPTED if is_ctrl_c else SIGNAL_BASE + number)


def _announce(task_id: str, server: Server, out: Out) -> None:
    follow = shlex.join(["taskcast-trio", "logs", task_id, "--follow", *server.arguments])
    click.echo(f"task {printable(task_id)}\nfollow it: {printable(follow)}", err=True)
    if out.as_json:
        out.json({"taskId": task_id})


def _report(publishing: Publishing, number: int | None, out: Out) -> None:
    if out.as_json:
        out.json(
            {
                "taskId": publishing.task_id,
                "events": publishing.events,
                "lastIndex": publishing.last_index,
                "status": publishing.status,
            }
        )
    elif not publishing.events and number is None:
        out.note("there was nothing on stdin: nothing was published")


def _object(field: str, text: str) -> Raw:
    return Raw(msgspec.json.encode({field: text}))


def _json(text: str) -> Raw:
    """The argument as it is, if it is JSON.

    Raises:
        Failed: it is none.
    """
    try:
        found: Raw = jsontext.parse(text.encode(errors="surrogateescape"), Raw)
    except BadRequest as error:
        said = printable(str(error)).removeprefix("The body is not valid JSON: ")
        raise Failed(
            f"--data is no JSON: {said}. A text has quotes of its own: "
            """--data '"text"'""",
            USAGE,
        ) from None
    return found
