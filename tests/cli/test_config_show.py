"""`config show` says what `start` would use, and prints secrets only where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from taskcast_trio.cli import main

from .commands import environment, terminal

PLANTED = "hush-planted-hush-planted-hush-planted"


@pytest.fixture(autouse=True)
def file(clean: Path) -> None:
    Path("taskcast.config.yaml").write_text(
        f"port: 4000\nadminToken: {PLANTED}\npostgres: {{url: 'postgresql://me:{PLANTED}@h/d'}}\n"
        f"trustedServices: [{{name: a, key: {PLANTED}}}]\n"
    )


@pytest.mark.parametrize("flags", [[], ["--redacted"]])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_secrets_are_hidden(runner: CliRunner, flags: list[str], form: list[str]) -> None:
    result = runner.invoke(main, ["config", "show", *flags, *form])
    assert result.exit_code == 0, result.output
    assert PLANTED not in result.output
    assert "********" in result.stdout
    assert "4000" in result.stdout


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_reveal_prints_them_all(runner: CliRunner, form: list[str]) -> None:
    result = runner.invoke(main, ["config", "show", "--reveal", *form])
    assert result.stdout.count(PLANTED) == 3


def test_json_is_a_tree_with_the_sources(runner: CliRunner) -> None:
    result = runner.invoke(main, ["config", "show", "--json"], env={"TASKCAST_LOG_LEVEL": "warn"})
    shown = json.loads(result.stdout)
    file = str(Path.cwd() / "taskcast.config.yaml")
    assert shown["file"] == file
    assert shown["values"]["port"] == 4000
    assert shown["sources"]["port"] == file
    assert shown["sources"]["logLevel"] == "environment variable TASKCAST_LOG_LEVEL"


def test_a_wrong_configuration_is_one_line_and_exit_2(runner: CliRunner) -> None:
    Path("bad.yaml").write_text("prt: 1")
    result = runner.invoke(main, ["config", "show", "-c", "bad.yaml"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'prt: unknown key (did you mean "port"?)' in result.stderr


async def test_no_value_is_cut_at_a_narrow_terminal(clean: Path) -> None:
    env = environment(clean, TASKCAST_REDIS_PREFIX="0123456789" * 8)
    async with terminal("config", "show", env=env, columns=60) as screen:
        assert await screen.end() == 0
    table = screen.text[screen.text.index("key ") :]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 60
    assert table.count("9") >= 8
