"""``taskcast-trio cleanup``: run the cleanup rules that are due, or show what would go."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import click

from taskcast_trio.cli.connect import authorization, client_options, printable, reported

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


@click.command()
@client_options
@click.option("--dry-run", is_flag=True, help="Show what would go; change nothing.")
@click.option(
    "--within",
    callback=_ms,
    metavar="TIME",
    help="With --dry-run: what would go until then, like 12h or 7d.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def cleanup(url: str, token: str | None, dry_run: bool, within: int | None, as_json: bool) -> None:
    """Run the cleanup rules that are due, on the server, and show what went.

    The server does so by itself when they are due; --dry-run looks ahead. Needs the scope
    task:manage where the server asks for tokens.

    Exit status: 0; 1 when the server is away or refuses.
    """
    if within is not None and not dry_run:
        raise click.UsageError("--within goes with --dry-run")
    request = {"dryRun": dry_run, **({} if within is None else {"withinMs": within})}
    import httpx

    base = url.rstrip("/")
    reports: list[dict[str, Any]] = []
    with (
        reported(base, TIMEOUT_S),
        httpx.Client(timeout=TIMEOUT_S, headers=authorization(token)) as client,
    ):
        while not reports or (reports[-1]["more"] and not dry_run):
            answer = client.post(f"{base}/tasks/cleanup", json=request)
            reports.append(_checked(answer.raise_for_status().json()))
    report = _together(reports)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report)


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


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not report["rules"]:
        console.print("nothing is due")
        return
    table = Table(title="would go" if report["dryRun"] else "gone", title_justify="left")
    table.add_column("rule")
    table.add_column("target")
    table.add_column("tasks", justify="right")
    table.add_column("events", justify="right")
    for rule in report["rules"]:
        table.add_row(
            escape(printable(rule["rule"])), rule["target"], str(rule["tasks"]), str(rule["events"])
        )
    console.print(table)
    tasks = sum(rule["tasks"] for rule in report["rules"])
    for id_ in report["taskIds"]:
        console.print(printable(id_), markup=False, soft_wrap=True)
    if report["more"] or len(report["taskIds"]) < tasks:
        console.print("... and more")
