"""``taskcast-trio cleanup``: run the cleanup rules that are due, or show what would go."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from taskcast_trio.cli.connect import (
    authorization,
    checked,
    explained,
    server_options,
    shape_expected,
)
from taskcast_trio.cli.failures import printable
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.server import Server

TIMEOUT_S: Final = 120.0
"""For an answer: a run ends after less, but for the rest of the log that it is at."""

UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


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
    import httpx

    reports: list[dict[str, Any]] = []
    with (
        explained(server),
        out.progress("cleaning up") as progress,
        httpx.Client(timeout=TIMEOUT_S, headers=authorization(server)) as client,
    ):
        while not reports or (reports[-1]["more"] and not dry_run):
            answer = client.post(f"{server.url}/tasks/cleanup", json=request)
            checked(answer)
            with shape_expected(server):
                reports.append(_checked(answer.json()))
            progress(f"cleaning up: {sum(map(_tasks, reports))} tasks so far")
    report = _together(reports)
    if out.as_json:
        out.json(report)
    else:
        _show(report, out)


def _tasks(report: dict[str, Any]) -> int:
    return sum(int(rule["tasks"]) for rule in report["rules"])


def _checked(report: Any) -> dict[str, Any]:
    """The report, if it is one; else KeyError or TypeError."""
    rules = [
        {name: rule[name] for name in ("rule", "target", "tasks", "events")}
        for rule in report["rules"]
    ]
    return {
        "dryRun": bool(report["dryRun"]),
        "rules": rules,
        "taskIds": [str(id_) for id_ in report["taskIds"]],
        "more": bool(report["more"]),
    }


def _together(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The reports of runs one after the other as one."""
    rules: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        for rule in report["rules"]:
            known = rules.setdefault(
                (rule["rule"], rule["target"]), {**rule, "tasks": 0, "events": 0}
            )
            known["tasks"] += rule["tasks"]
            known["events"] += rule["events"]
    ids = [id_ for report in reports for id_ in report["taskIds"]]
    return {**reports[-1], "rules": [*rules.values()], "taskIds": ids}


def _show(report: dict[str, Any], out: Out) -> None:
    if not report["rules"]:
        out.say("nothing is due")
        return
    out.say("would go" if report["dryRun"] else "gone")
    out.table(
        ("rule", "target", "tasks", "events"),
        (
            [rule[name] for name in ("rule", "target", "tasks", "events")]
            for rule in report["rules"]
        ),
    )
    for id_ in report["taskIds"]:
        out.say(printable(id_))
    if report["more"] or len(report["taskIds"]) < _tasks(report):
        out.say("... and more")
