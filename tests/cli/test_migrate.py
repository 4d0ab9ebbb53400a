"""`migrate` brings a database up to date, says what it would do, and names what is wrong."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskcast_trio.cli import main
from tests.storage.postgres.server import new_database, psql, url_of

NAMES = ["0001_initial", "0002_logs", "0003_publishers"]


@pytest.fixture
def url() -> str:
    return url_of(new_database())


def lines(result: Result) -> list[str]:
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_it_runs_what_is_pending_and_says_so(runner: CliRunner, url: str) -> None:
    def run(*arguments: str) -> list[str]:
        return lines(runner.invoke(main, ["migrate", "--postgres-url", url, *arguments]))

    assert run("--status") == [f"{name}  pending" for name in NAMES]
    assert run("--dry-run") == [f"{name}  would be run" for name in NAMES]
    assert psql(url, "SELECT to_regclass('taskcast_tasks') IS NULL") == "t", "a dry run"
    assert run() == [f"{name}  done" for name in NAMES]
    assert run() == run("--dry-run") == ["nothing to do: the database is up to date"]
    told = json.loads(run("--status", "--json")[0])
    assert [each["name"] for each in told] == NAMES
    status = run("--status")
    assert [line.split("  ")[0] for line in status] == NAMES
    assert all(line.endswith("Z") for line in status)


def test_the_url_comes_from_the_environment_or_a_file_too(
    runner: CliRunner, url: str, clean: Path
) -> None:
    env = {"TASKCAST_POSTGRES_URL": url}
    assert len(lines(runner.invoke(main, ["migrate", "--status"], env=env))) == len(NAMES)
    file = clean / "x.yaml"
    file.write_text(f"postgres:\n  url: '{url}'\n")
    assert len(lines(runner.invoke(main, ["migrate", "--status", "-c", str(file)]))) == len(NAMES)


def failed(result: Result, status: int) -> str:
    """Return the one line of a failed call."""
    assert (result.exit_code, result.stdout) == (status, "")
    [line] = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("arguments", [[], ["--status"], ["--dry-run"]])
def test_a_database_that_is_away_is_one_line_without_the_password(
    runner: CliRunner, arguments: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as freed:
        place = f"127.0.0.1:{freed.getsockname()[1]}/db"
    url = f"postgresql://u:hush-hush@{place}"
    line = failed(runner.invoke(main, ["migrate", "--postgres-url", url, *arguments]), 1)
    assert (
        line == f"Error: postgresql://********@{place}: PostgreSQL is away: ConnectionRefusedError"
    )


@pytest.mark.parametrize("arguments", [[], ["--status"], ["--dry-run"]])
def test_a_database_with_another_past_is_one_line(
    runner: CliRunner, url: str, arguments: list[str]
) -> None:
    command = ["migrate", "--postgres-url", url]
    runner.invoke(main, command)
    psql(url, "UPDATE taskcast_migrations SET checksum = 'other' WHERE number = 2")
    line = failed(runner.invoke(main, [*command, *arguments]), 1)
    assert "migration 0002_logs has changed since the database had it" in line


def test_a_wrong_configuration_is_one_line(runner: CliRunner) -> None:
    line = failed(runner.invoke(main, ["migrate"]), 2)
    assert line.startswith("Error: which database? --postgres-url")
    wrong = ["migrate", "--postgres-url", "mysql://u:hush-hush@h/db"]
    line = failed(runner.invoke(main, wrong), 2)
    assert line == "Error: postgres.url: mysql://********@h/db does not begin with postgresql://"
    line = failed(runner.invoke(main, ["migrate", "-c", "nowhere.yaml"]), 2)
    assert "nowhere.yaml" in line
