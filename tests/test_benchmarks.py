"""The benchmarks run end to end, and what they write can be read; never how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chart import draw
from benchmarks.connection import complete
from benchmarks.load import requests_per_second
from benchmarks.report import Figure, Report, figure
from benchmarks.scale import FULL, Row, Unit, rows
from benchmarks.suite import Results

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"


def run(directory: Path, *names: str) -> tuple[str, dict[str, Any], ElementTree.Element]:
    """Run the named benchmarks at tiny counts, without wrk; return the table, JSON and chart."""
    written, drawn = directory / "figures.json", directory / "figures.svg"
    files = ["--json", str(written), "--svg", str(drawn)]
    only = [word for name in names for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *only, *files],
        cwd=ROOT,
        env={**os.environ, "PATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(written.read_text(encoding="utf-8"))
    return done.stdout, report, ElementTree.fromstring(drawn.read_text(encoding="utf-8"))


def test_the_command_measures_each_row_and_writes_table_json_and_chart(tmp_path: Path) -> None:
    names = (
        "single",
        "ndjson",
        "fanout",
        "fanout-batches",
        "replay",
        "latency",
        "accumulate",
        "idle",
        "sqlite",
        "redis",
        "workers",
        "webhooks",
    )
    table, report, chart = run(tmp_path, *names)
    assert report["H"]["median"] > 0
    assert "raw sockets" in report["generator"]
    assert "not judged" in report["warning"]
    measured = {each["name"]: each for each in report["figures"]}
    assert {"single", "fanout", "replay-200", "latency-5-p99", "connects", "workers-pull"} <= set(
        measured
    )
    assert all(each["median"] is not None for each in measured.values())
    assert measured["single"]["ratioToH"] > 0
    assert measured["connects"]["ratioToH"] is None
    assert {each["met"] for each in measured.values()} == {None}
    words = [text.text for text in chart.iter(f"{SVG}text")]
    for each in measured.values():
        assert each["title"] in table
        assert each["title"] in words


def test_only_what_is_named_is_measured(tmp_path: Path) -> None:
    _, report, _ = run(tmp_path, "batch")
    assert [(each["name"], each["median"] is None) for each in report["figures"]] == [
        ("batch", False)
    ]


def one(row: Row, *runs: tuple[float, float]) -> Figure:
    """A figure from pairs of H and what was measured beside it."""
    results = [Results(figures={row.key: measured}) for _, measured in runs]
    return figure(row, tuple(h for h, _ in runs), results, judged=True)


def test_a_ratio_is_taken_to_the_h_of_the_same_repetition() -> None:
    row = Row("single", "single", "single publish", Unit.REQUESTS, 4.5)
    found = one(row, (1000, 5000), (100, 400), (2000, 9000))
    assert found.median == 5000
    assert found.ratio == 4.5
    assert found.met is True
    assert one(row, (1000, 4499)).met is False


def test_a_time_is_judged_by_not_passing_its_target() -> None:
    row = Row("latency", "p50", "last delivery", Unit.MS, 2.2)
    assert (one(row, (1000, 2.2)).met, one(row, (1000, 2.3)).met) == (True, False)
    assert one(row, (1000, 2.2)).ratio is None


def test_a_figure_that_is_missing_is_neither_met_nor_missed_and_tells_why() -> None:
    row = Row("ndjson", "ndjson", "NDJSON ingest", Unit.EVENTS, 45)
    found = figure(row, (1000,), [Results(notes={"ndjson": "not measured"})], judged=True)
    assert (found.median, found.ratio, found.met) == (None, None, None)
    assert found.note == "not measured"


def test_the_chart_says_in_words_what_was_missed() -> None:
    row = Row("fanout", "fanout", "fan-out to <1,000>", Unit.DELIVERIES, 17)
    about = {"machine": "a & b", "generator": "wrk"}
    chart = ElementTree.fromstring(draw(Report(about, (1000,), (one(row, (1000, 8000)),))))
    words = [text.text for text in chart.iter(f"{SVG}text")]
    assert "fan-out to <1,000>" in words
    assert "8.00 H (missed >= 17 H)" in words


def test_fewer_idle_streams_than_aimed_at_are_not_judged_by_the_time_of_all() -> None:
    targets = {row.key: row.target for row in rows(FULL.within(1024))}
    assert targets["connects"] is None
    assert targets["idle-memory"] == 15
    assert {row.key: row.target for row in rows(FULL.within(65536))}["connects"] == 3.0


def test_a_report_of_wrk_gives_its_rate_and_failed_requests_are_an_error() -> None:
    report = "Running 2s test\n  5 requests in 2.00s\nRequests/sec:  13049.25\n"
    assert requests_per_second(report) == 13049.25
    for failure in (
        "  Non-2xx or 3xx responses: 3\n",
        "  Socket errors: connect 0, read 2, write 0, timeout 0\n",
    ):
        with pytest.raises(RuntimeError, match=failure.strip()):
            requests_per_second(failure + report)


def test_an_answer_is_complete_when_its_whole_body_is_there() -> None:
    answer = b"HTTP/1.1 201 \r\nServer: x\r\nContent-Length: 2\r\n\r\n{}"
    assert complete(answer[:20]) is None
    assert complete(answer[:-1]) is None
    assert complete(answer + b"HTTP/1.1 201") == (201, len(answer) - 2, len(answer))
    assert complete(b"HTTP/1.1 204 \r\nServer: x\r\n\r\n") == (204, 28, 28)
