"""Measure the server, as ratios to H, and say which targets it meets.

H is the requests per second of a bare ASGI app on stock Hypercorn (Trio), measured anew in every
repetition, with the same generator on the same core. Repetitions are interleaved; medians count.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from taskcast_trio import __version__

from . import load, machine, servers
from .chart import draw
from .report import Report, figure, show
from .scale import AIMED_STREAMS, FULL, QUICK, Scale, rows
from .suite import BENCHMARKS, Bench, Results

WARM_UP_SECONDS = 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=list(BENCHMARKS),
        metavar="NAME",
        help=f"measure this one, may be repeated: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=FULL.seconds, metavar="S", help="of each rate of requests"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny counts, once: shows that it runs, no more"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.repetitions < 1 or options.seconds <= 0:
        parser.error("--repetitions and --seconds are above 0")
    return options


def run(names: list[str], scale: Scale, repetitions: int, console: Console) -> Report:
    """Start the servers, measure, and stop them."""
    how, rate = load.generator()
    yardstick: list[float] = []
    results: list[Results] = []
    progress = Progress(
        TextColumn("{task.description:16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with ExitStack() as stack:
        stack.enter_context(machine.on_core(machine.CLIENT))
        bare = stack.enter_context(servers.bare())
        ours = stack.enter_context(servers.ours())
        stack.enter_context(progress)
        bar = progress.add_task("warming up", total=repetitions * (1 + len(names)))
        bench = Bench(ours, rate, scale)
        if scale.full:
            rate(bare.port, "/", b"{}", WARM_UP_SECONDS)
            BENCHMARKS["single"](replace(bench, scale=replace(scale, seconds=WARM_UP_SECONDS)))
        for _ in range(repetitions):
            progress.update(bar, description="H")
            yardstick.append(rate(bare.port, "/", b"{}", scale.seconds))
            progress.advance(bar)
            round_: Results = Results()
            for name in names:
                progress.update(bar, description=name)
                found = BENCHMARKS[name](bench)
                round_.figures |= found.figures
                round_.busy |= found.busy
                round_.notes |= found.notes
                progress.advance(bar)
            results.append(round_)
    warnings = []
    if not scale.full:
        warnings.append("tiny counts, not judged by the targets")
    elif "idle" in names and scale.idle_streams < AIMED_STREAMS:
        warnings.append(
            f"the limit on open files allows {scale.idle_streams:,} of {AIMED_STREAMS:,} streams"
        )
    return Report(
        about={
            "version": __version__,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine.description(),
            "generator": how,
            "storage": "memory",
            "repetitions": repetitions,
            "seconds": scale.seconds,
            "warning": "; ".join(warnings) or None,
        },
        yardstick=tuple(yardstick),
        figures=tuple(
            figure(row, tuple(yardstick), results, judged=scale.full)
            for row in rows(scale)
            if row.benchmark in names
        ),
    )


def main() -> None:
    options = arguments()
    console = Console()
    if not console.is_terminal:
        console.width = 140
    scale, repetitions = replace(FULL, seconds=options.seconds), options.repetitions
    if options.quick:
        scale, repetitions = QUICK, 1
    scale = scale.within(machine.raise_open_files())
    names = [name for name in BENCHMARKS if not options.only or name in options.only]
    report = run(names, scale, repetitions, console)
    show(report, console)
    if options.json:
        options.json.write_text(json.dumps(report.json(), indent=2) + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(draw(report), encoding="utf-8")


if __name__ == "__main__":
    main()
