"""What holds for every command: its options, its help, its exit statuses, its completion."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from taskcast_trio.cli import failures, main

ROOT = Path(__file__).parents[2]
LOCAL = {"start", "migrate", "config show", "completion"}
"""They talk to no server; so does all of `node`."""


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands())


def test_the_commands_are_there() -> None:
    assert COMMANDS.keys() == {
        *LOCAL,
        "ping",
        "doctor",
        "publish",
        "logs",
        "tail",
        "webhooks",
        "cleanup",
        *(f"tasks {name}" for name in ("list", "inspect", "cancel", "delete")),
        *(f"node {name}" for name in ("add", "remove", "use", "list", "token")),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_options_that_all_have(name: str) -> None:
    options = {option for param in COMMANDS[name].params for option in param.opts}
    assert {"--json", "--no-color"} <= options
    talks = name not in LOCAL and not name.startswith("node ")
    assert ({"--node", "--url", "--token"} <= options) == talks


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_says_what_it_does_in_a_line_that_fits(runner: CliRunner, name: str) -> None:
    result = runner.invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert not COMMANDS[name].get_short_help_str(60).endswith("...")
    if name != "start":
        assert max(map(len, result.stdout.splitlines())) <= 100


def test_the_exit_statuses_are_in_the_help_and_on_the_page(runner: CliRunner) -> None:
    names = ("OK", "FAILED", "USAGE", "NO_SERVER", "DENIED", "NOT_FOUND", "CONFLICT")
    ends = ("HUNG_UP", "INTERRUPTED", "CLOSED_PIPE", "TERMINATED")
    statuses = {getattr(failures, name) for name in (*names, *ends)}
    text = runner.invoke(main, ["--help"]).stdout
    assert {int(n) for n in re.findall(r"^ +(\d+)  +\w", text, re.MULTILINE)} == statuses
    page = (ROOT / "docs" / "cli.md").read_text()
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == statuses


def test_help_takes_no_server_stack() -> None:
    code = (
        "import sys; from taskcast_trio.cli import main\n"
        "assert not {'trio', 'httpx', 'quart', 'rich'} & sys.modules.keys(), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(runner: CliRunner, shell: str) -> None:
    result = runner.invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_TASKCAST_TRIO_COMPLETE" in result.stdout
    assert "taskcast-trio" in result.stdout


def completed(clean: Path, *words: str) -> list[str]:
    """What bash is offered for the last of these words."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from taskcast_trio.cli import main; main(prog_name='taskcast-trio')",
        ],
        env={
            "PYTHONPATH": str(ROOT),
            "HOME": str(clean),
            "_TASKCAST_TRIO_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("taskcast-trio", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_completion_knows_commands_options_and_nodes(runner: CliRunner, clean: Path) -> None:
    runner.invoke(main, ["node", "add", "prod", "http://prod"])
    runner.invoke(main, ["node", "add", "dev", "http://dev"])
    assert completed(clean, "ta") == ["tail", "tasks"]
    assert completed(clean, "tasks", "ins") == ["inspect"]
    assert "--follow" in completed(clean, "logs", "--fo")
    assert completed(clean, "ping", "--node", "p") == ["prod"]
    (clean / ".config" / "taskcast" / "nodes.json").write_text("{")
    assert "prod" not in completed(clean, "ping", "--node", "p")


def test_the_script_of_bash_is_one_that_bash_takes(runner: CliRunner, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(runner.invoke(main, ["completion", "bash"]).stdout)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("redirection", "status", "says"),
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("> /dev/full", 1, "Error: No space left on device\n"),
        ("| true", 141, ""),
    ],
)
@pytest.mark.parametrize("what", ["config show", "config show --json", "node list"])
def test_an_output_that_takes_nothing_is_no_traceback(
    clean: Path, redirection: str, status: int, says: str, what: str
) -> None:
    nodes = clean / ".config" / "taskcast" / "nodes.json"
    nodes.parent.mkdir(parents=True)
    nodes.write_text('{"nodes": {"a": {"url": "http://a"}}}')
    nodes.chmod(0o600)
    script = f"{sys.executable} -m taskcast_trio {what} {redirection}; exit ${{PIPESTATUS[0]}}"
    env = {"PYTHONPATH": str(ROOT), "HOME": str(clean), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, says)


@pytest.mark.parametrize("what", ["--version", "--help", "start --help", "tasks list --help"])
@pytest.mark.parametrize(
    ("redirection", "status", "says"),
    [("> /dev/full", 1, "Error: No space left on device\n"), (">&-", 0, "")],
)
def test_help_that_nothing_takes_is_no_traceback(
    clean: Path, what: str, redirection: str, status: int, says: str
) -> None:
    script = f"{sys.executable} -m taskcast_trio {what} {redirection}"
    env = {"PYTHONPATH": str(ROOT), "HOME": str(clean), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, says)


@pytest.mark.parametrize("arguments", [["-h"], ["tasks", "-h"], ["logs", "-h"], ["start", "-h"]])
def test_h_is_help_too(runner: CliRunner, arguments: list[str]) -> None:
    result = runner.invoke(main, arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {' '.join(arguments[:-1])}".rstrip())


@pytest.mark.parametrize("option", ["--url", "--node=a", "--token", "--json", "--no-color"])
def test_an_option_before_the_command_is_said_to_go_behind_it(
    runner: CliRunner, option: str
) -> None:
    result = runner.invoke(main, [option, "ping", "x"])
    assert result.exit_code == 2
    name = option.partition("=")[0]
    assert f"{name} goes behind the command, like taskcast-trio ping {name}" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["config", "show"], ["node", "list"], ["--check-config"], ["migrate", "--help"]]
)
def test_who_has_no_home_is_none_the_worse(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """As in a container, for a user that the system does not know."""

    def nowhere(key: object) -> object:
        raise KeyError(key)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nowhere)
    result = runner.invoke(main, arguments)
    assert result.exit_code == 0, result.output
