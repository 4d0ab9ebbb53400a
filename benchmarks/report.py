"""Medians over the repetitions, ratios to H, and their table and JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .scale import Row
from .suite import Results


@dataclass(frozen=True, slots=True)
class Figure:
    """A row with what was measured for it, over all repetitions.

    ``ratio`` is the median of the ratios to the H of the same repetition; ``met`` is None where
    there is no target, or no judging by it. ``busy`` is the median of the server's share of its
    core.
    """

    row: Row
    runs: tuple[float, ...]
    ratio: float | None
    met: bool | None
    busy: float | None
    note: str | None

    @property
    def median(self) -> float | None:
        return statistics.median(self.runs) if self.runs else None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run has to say. ``yardstick`` is H, once a repetition."""

    about: dict[str, Any]
    yardstick: tuple[float, ...]
    figures: tuple[Figure, ...]

    def json(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            **self.about,
            "H": {"median": statistics.median(self.yardstick), "runs": self.yardstick},
            "figures": [
                {
                    "name": each.row.key,
                    "title": each.row.title,
                    "unit": each.row.unit.value,
                    "median": each.median,
                    "runs": each.runs,
                    "ratioToH": each.ratio,
                    "target": each.row.target,
                    "targetIs": "at least, in H" if each.row.unit.is_rate else "at most",
                    "met": each.met,
                    "serverBusy": each.busy,
                    "note": each.note,
                }
                for each in self.figures
            ],
        }


def figure(
    row: Row, yardstick: tuple[float, ...], results: list[Results], *, judged: bool
) -> Figure:
    """Put together what the repetitions, one of ``results`` each, say of a row."""
    runs = tuple(each.figures[row.key] for each in results if row.key in each.figures)
    shares = [each.busy[row.key] for each in results if row.key in each.busy]
    note = next((each.notes[row.key] for each in results if row.key in each.notes), None)
    ratio = None
    if runs and row.unit.is_rate:
        pairs = zip(results, yardstick, strict=True)
        ratio = statistics.median(
            each.figures[row.key] / h for each, h in pairs if row.key in each.figures
        )
    met = None
    if judged and runs and row.target is not None:
        met = statistics.median(runs) <= row.target if ratio is None else ratio >= row.target
    return Figure(row, runs, ratio, met, statistics.median(shares) if shares else None, note)


def value(number: float) -> str:
    """A figure with as many digits as it deserves."""
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f}"


def target(row: Row) -> str:
    """The target of a row, in words for the table."""
    if row.target is None:
        return ""
    return f">= {row.target:g} H" if row.unit.is_rate else f"<= {row.target:g} {row.unit.value}"


def show(report: Report, console: Console) -> None:
    """Print the table: drawn on a terminal, Markdown elsewhere."""
    lines = box.ROUNDED if console.is_terminal else box.MARKDOWN
    table = Table(box=lines)
    table.add_column("figure")
    for name in ("median", "ratio to H", "target"):
        table.add_column(name, justify="right")
    table.add_column("met")
    table.add_column("server busy", justify="right")
    h = statistics.median(report.yardstick)
    table.add_row("H: bare ASGI on stock Hypercorn", f"{value(h)} requests/s", "1")
    for each in report.figures:
        row = each.row
        table.add_row(
            row.title,
            "-" if each.median is None else f"{value(each.median)} {row.unit.value}",
            "" if each.ratio is None else value(each.ratio),
            target(row),
            "" if each.met is None else "[green]yes[/]" if each.met else "[red]no[/]",
            "" if each.busy is None else f"{each.busy:.0%}",
        )
    console.print(table)
    low, high = min(report.yardstick), max(report.yardstick)
    console.print(
        f"H was {low:,.0f} to {high:,.0f} requests/s. Medians of {len(report.yardstick)}."
    )
    for name in ("machine", "generator", "warning"):
        if report.about.get(name):
            console.print(f"{name}: {report.about[name]}", highlight=False, markup=False)
    for each in report.figures:
        if each.note:
            console.print(f"{each.row.title}: {each.note}", highlight=False, markup=False)
