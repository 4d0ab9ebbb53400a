"""``taskcast-trio cleanup``: run the cleanup rules that are due, or show what would go."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click
import msgspec
from msgspec.structs import replace

from taskcast_trio.cli.connect import server_options, talk
from taskcast_trio.cli.failures import printable
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.server import Server
from taskcast_trio.core.model import Wire

if TYPE_CHECKING:
    from taskcast_trio.client import AsyncTaskcastClient

TIMEOUT_S: Final = 120.0
"""For an answer: a run ends after less, but for the rest of the log that it is at."""

UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class _Went(Wire, frozen=True, kw_only=True):
    """What a rule has taken, or would."""

    rule: str
    target: str
    tasks: int
    events: int


class _Report(Wire, frozen=True, kw_only=True):
    dry_run: bool
    rules: list[_Went]
    task_ids: list[str]
    more: bool


def _ms(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A time as ``90s``, ``30m``, ``12h`` or ``7d``."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhd])", value, re.ASCII)
    if found is None:
        raise click.BadParameter("expected a time like 90s, 30m, 12h or 7d", ctx, param)
    return int(found[1]) * UNITS_MS[found[2]]


@click.command(short_help="Run the cleanup rules that are due.")
@click.option("--dry-run", is_flag=True, help="Show what would go; change nothing.")
@click.option(
    "--within",
    callback=_ms,
    metavar="TIME",
    help="With --dry-run: what would go until then, like 12h or 7d.",
)
@server_options
def cleanup(dry_run: bool, within: int | None, server: Server, out: Out) -> None:
    """Run the cleanup rules that are due, on the server, and show what went.

    The server does so by itself when they are due; --dry-run looks ahead. Needs the scope
    task:manage where the server asks for tokens.

    \b
      taskcast-trio cleanup --dry-run --within 7d
    """
    if within is not None and not dry_run:
        raise click.UsageError("--within goes with --dry-run")
    request = {"dryRun": dry_run, **({} if within is None else {"withinMs": within})}
    from taskcast_trio.client.composing import decoder
    from taskcast_trio.client.retries import Call
    from taskcast_trio.client.steps import Request

    asked = Request(
        "POST",
        "/tasks/cleanup",
        headers={"Content-Type": "application/json"},
        body=msgspec.json.encode(request),
        read_timeout_s=TIMEOUT_S,
    )
    # A run that was cut off has done a part of it: whoever runs it again loses nothing but the
    # report.
    run = Call(asked, decoder(_Report), "refused")

    async def work(client: AsyncTaskcastClient) -> list[_Report]:
        reports: list[_Report] = []
        with out.progress("cleaning up") as progress:
            while not reports or (reports[-1].more and not dry_run):
                reports.append(await client.ask(run))
                progress(f"cleaning up: {sum(map(_tasks, reports))} tasks so far")
        return reports

    report = _together(talk(server, work))
    if out.as_json:
        out.json(report)
    else:
        _show(report, out)


def _tasks(report: _Report) -> int:
    return sum(rule.tasks for rule in report.rules)


def _together(reports: list[_Report]) -> _Report:
    """The reports of runs one after the other as one."""
    rules: dict[tuple[str, str], _Went] = {}
    for rule in (rule for report in reports for rule in report.rules):
        key = (rule.rule, rule.target)
        known = rules.get(key, replace(rule, tasks=0, events=0))
        rules[key] = replace(
            known, tasks=known.tasks + rule.tasks, events=known.events + rule.events
        )
    ids = [id_ for report in reports for id_ in report.task_ids]
    return replace(reports[-1], rules=[*rules.values()], task_ids=ids)


def _show(report: _Report, out: Out) -> None:
    if not report.rules:
        out.say("nothing is due")
        return
    out.say("would go" if report.dry_run else "gone")
    out.table(
        ("rule", "target", "tasks", "events"),
        ((rule.rule, rule.target, rule.tasks, rule.events) for rule in report.rules),
    )
    for id_ in report.task_ids:
        out.say(printable(id_))
    if report.more or len(report.task_ids) < _tasks(report):
        out.say("... and more")
