"""The command line says what it will do, refuses what it cannot, and shows no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from taskcast_trio import __version__
from taskcast_trio.cli import main
from taskcast_trio.cli import run as run_module
from taskcast_trio.cli.output import Out
from taskcast_trio.config import Loaded
from taskcast_trio.config.keys import KEYS

PLANTED = "hush-planted"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Loaded]:
    """What `start` would have run, instead of running it."""
    runs: list[Loaded] = []

    def note(loaded: Loaded, out: Out) -> int:
        runs.append(loaded)
        return 0

    monkeypatch.setattr(run_module, "run", note)
    return runs


@pytest.mark.parametrize(
    "args",
    [
        ["-p", "4000"],
        ["--port", "4000"],
        ["start", "-p", "4000"],
        ["-c", "own.yaml"],
        ["--config", "own.yaml", "--verbose"],
    ],
)
def test_no_command_means_start(runner: CliRunner, started: list[Loaded], args: list[str]) -> None:
    Path("own.yaml").write_text("port: 4000")
    assert runner.invoke(main, args).exit_code == 0
    assert [loaded.config.port for loaded in started] == [4000]


def test_no_argument_at_all_means_start(runner: CliRunner, started: list[Loaded]) -> None:
    assert runner.invoke(main, []).exit_code == 0
    assert len(started) == 1


def test_version_and_help_are_of_the_group(runner: CliRunner, started: list[Loaded]) -> None:
    assert runner.invoke(main, ["--version"]).output == f"taskcast-trio, version {__version__}\n"
    text = runner.invoke(main, ["--help"]).output
    assert "start" in text
    assert "ping" in text
    assert not started


def test_an_unknown_command_is_not_a_start(runner: CliRunner, started: list[Loaded]) -> None:
    assert runner.invoke(main, ["strat"]).exit_code == 2
    assert not started


def test_every_key_that_one_text_can_give_is_a_flag(
    runner: CliRunner, started: list[Loaded]
) -> None:
    text = runner.invoke(main, ["start", "--help"]).output
    main_part, generated = text.split("Configuration options")
    for path, key in KEYS.items():
        assert (key.flag in text) == (path not in {"trustedServices", "cleanup.rules"}), path
    assert "--config" in main_part
    assert "--sse-retry-ms" in generated
    args = ["--sse-retry-ms", "7", "--no-http2", "--admin-api", "-v"]
    args += ["--cors-origins", "http://a,http://b"]
    assert runner.invoke(main, args).exit_code == 0
    config = started[0].config
    assert (config.sse.retry_ms, config.admin_api, config.log_level) == (7, True, "debug")
    assert (config.cors.origins, config.server.http2) == (("http://a", "http://b"), False)
    assert started[0].sources["server.http2"] == "--server-http2"


def test_log_level_says_more_than_verbose(runner: CliRunner, started: list[Loaded]) -> None:
    runner.invoke(main, ["-v", "--log-level", "error"])
    assert started[0].config.log_level == "error"


@pytest.mark.parametrize("command", [[], ["start"]])
def test_json_is_of_what_it_says_and_of_its_logs(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    runs: list[tuple[str, Out]] = []

    def note(loaded: Loaded, out: Out) -> int:
        runs.append((loaded.config.log_format, out))
        return 0

    monkeypatch.setattr(run_module, "run", note)
    for args in ([], ["--json"], ["--no-color"], ["--json", "--log-format", "text"]):
        assert runner.invoke(main, [*command, *args]).exit_code == 0
    assert runs == [
        ("auto", Out()),
        ("json", Out(as_json=True)),
        ("auto", Out(no_color=True)),
        ("text", Out(as_json=True)),
    ]


def test_check_config_as_json_is_what_config_show_prints(runner: CliRunner) -> None:
    Path("taskcast.config.yaml").write_text(f"port: 4000\nadminToken: {PLANTED}\n")
    shown = json.loads(runner.invoke(main, ["config", "show", "--json"]).stdout)
    result = runner.invoke(main, ["--check-config", "--json"])
    assert PLANTED not in result.output
    checked = json.loads(result.stdout)
    assert (checked["values"].pop("logFormat"), shown["values"].pop("logFormat")) == (
        "json",
        "auto",
    )
    assert checked["sources"].pop("logFormat") == "--log-format"
    assert checked == shown


def test_check_config_shows_values_and_sources_and_no_secret(
    runner: CliRunner, started: list[Loaded]
) -> None:
    Path("taskcast.config.yaml").write_text(
        f"port: 4000\nadminToken: {PLANTED}\nsentry: {{dsn: {PLANTED}}}\n"
        f"trustedServices: [{{name: a, key: {PLANTED}}}]\n"
    )
    result = runner.invoke(
        main,
        ["--check-config", "--sse-retry-ms", "7"],
        env={"TASKCAST_JWT_SECRET": PLANTED, "TASKCAST_LOG_LEVEL": "warn"},
    )
    assert result.exit_code == 0
    assert not started
    assert PLANTED not in result.output
    assert result.stdout.splitlines()[-1] == "OK"
    lines = {line.split()[0]: line.split(maxsplit=2) for line in result.stdout.splitlines()[1:-1]}
    file = str(Path.cwd() / "taskcast.config.yaml")
    assert lines["port"] == ["port", "4000", file]
    assert lines["logLevel"][1:] == ["warn", "environment variable TASKCAST_LOG_LEVEL"]
    assert lines["sse.retryMs"][1:] == ["7", "--sse-retry-ms"]
    assert lines["host"][1:] == ["127.0.0.1", "default"]
    assert lines["auth.jwt.secret"][1] == "********"
    assert lines["adminToken"][1] == "********"
    assert "sentry has no effect" in result.stderr


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["-p", "x"], "--port: port: expected a whole number from 0 to 65535"),
        (["-c", "gone.yaml"], "gone.yaml: there is no such file"),
        (["-c", "bad.yaml"], 'prt: unknown key (did you mean "port"?)'),
        (["-c", "unset.yaml"], "port: environment variable NOT_SET is not set"),
        (["-s", "redis"], "--storage: storage: redis needs its URL: redis.url, --redis-url or "),
        (["--processes", "2"], "processes: needs storage redis"),
        (["-s", "floppy"], "--storage: storage: expected one of memory, redis, sqlite"),
        (["--log-level", "loud"], "logLevel: expected one of debug, info, warn, error"),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check-config"]])
def test_a_wrong_configuration_is_one_line_and_exit_2(
    runner: CliRunner, started: list[Loaded], args: list[str], reason: str, check: list[str]
) -> None:
    Path("bad.yaml").write_text("prt: 1")
    Path("unset.yaml").write_text("port: ${NOT_SET}")
    result = runner.invoke(main, args + check)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ")
    assert reason in result.stderr
    assert not started


def test_the_module_is_the_command(clean: Path) -> None:
    command = [sys.executable, "-m", "taskcast_trio", "--check-config"]
    root = str(Path(run_module.__file__).parents[2])
    done = subprocess.run(command, env={"PYTHONPATH": root}, capture_output=True, check=False)
    assert (done.returncode, done.stdout.split()[-1], done.stderr) == (0, b"OK", b"")
