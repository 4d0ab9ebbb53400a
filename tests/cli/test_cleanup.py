"""`cleanup` asks the server, and prints its answer for people or for programs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from taskcast_trio.cli import main


@contextmanager
def answering(*answers: str, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on a free port that gives each request the next answer, and notes the requests."""
    left = list(answers)
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            token = self.headers["Authorization"]
            asked = {"path": self.path, "token": token, "body": json.loads(body or b"null")}
            requests.append(asked)
            text = left.pop(0).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


RULES = [
    {"rule": "chatter", "target": "events", "tasks": 2, "events": 40},
    {"rule": "[red]old[/red]\x1b[2J", "target": "all", "tasks": 1, "events": 7},
]


def report(**changed: object) -> str:
    return json.dumps(
        {"dryRun": True, "rules": RULES, "taskIds": ["t\n1", "t2"], "more": False, **changed}
    )


def test_a_dry_run_shows_what_would_go(runner: CliRunner) -> None:
    with answering(report(more=True)) as (url, requests):
        result = runner.invoke(main, ["cleanup", "--dry-run", "--within", "12h", "--url", url])
    assert result.exit_code == 0, result.output
    body = {"dryRun": True, "withinMs": 43_200_000}
    assert requests == [{"path": "/tasks/cleanup", "token": None, "body": body}]
    assert "would go" in result.stdout
    assert "chatter" in result.stdout
    assert "[red]old[/red]\\x1b[2J" in result.stdout
    assert "t\\n1\nt2\n... and more\n" in result.stdout


def test_a_run_says_what_is_gone_or_that_nothing_is_due(runner: CliRunner) -> None:
    with answering(report(dryRun=False, taskIds=["a", "b", "c"])) as (url, requests):
        result = runner.invoke(main, ["cleanup", "--url", url, "--token", "hush"])
    assert result.stdout.lstrip().startswith("gone")
    assert result.stdout.endswith("a\nb\nc\n")
    assert requests[0]["token"] == "Bearer hush"
    with answering(report(dryRun=False, rules=[], taskIds=[])) as (url, _):
        assert runner.invoke(main, ["cleanup", "--url", url]).stdout == "nothing is due\n"


def test_a_run_is_repeated_as_long_as_there_is_more(runner: CliRunner) -> None:
    runs = (report(dryRun=False, more=True), report(dryRun=False, rules=RULES[:1], taskIds=["x"]))
    with answering(*runs) as (url, requests):
        result = runner.invoke(main, ["cleanup", "--json", "--url", url])
    assert [request["body"] for request in requests] == [{"dryRun": False}] * 2
    together = json.loads(result.stdout)
    assert [(rule["tasks"], rule["events"]) for rule in together["rules"]] == [(4, 80), (1, 7)]
    assert together["taskIds"] == ["t\n1", "t2", "x"]
    assert together["more"] is False


def test_json_is_the_report(runner: CliRunner) -> None:
    with answering(report()) as (url, _):
        result = runner.invoke(main, ["cleanup", "--dry-run", "--json", "--url", url])
    assert json.loads(result.stdout) == json.loads(report())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--within", "1d"], "--within goes with --dry-run"),
        (["--dry-run", "--within", "soon"], "expected a time like 90s, 30m, 12h or 7d"),
        (["--dry-run", "--within", "-1d"], "expected a time like"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    runner: CliRunner, arguments: list[str], line: str
) -> None:
    result = runner.invoke(main, ["cleanup", *arguments])
    assert result.exit_code == 2
    assert line in result.output


@pytest.mark.parametrize(
    ("answer", "status", "line", "exit_code"),
    [
        ('{"error":"no \\u001b way"}', 403, "the token does not allow this: no \\x1b way", 4),
        ("{}", 200, "not as a Taskcast server", 3),
        ('{"rules": 1}', 200, "not as a Taskcast server", 3),
    ],
)
def test_a_refusal_and_nonsense_are_one_line(
    runner: CliRunner, answer: str, status: int, line: str, exit_code: int
) -> None:
    with answering(answer, status=status) as (url, _):
        result = runner.invoke(main, ["cleanup", "--url", url])
    assert result.exit_code == exit_code
    assert line in result.output
    assert "Traceback" not in result.output
