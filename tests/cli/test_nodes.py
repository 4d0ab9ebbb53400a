"""Nodes: names for servers, in a file that only its owner can read and that shows no token."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskcast_trio.cli import main
from taskcast_trio.cli.failures import USAGE, Failed
from taskcast_trio.cli.server import find_server

TOKEN = "hush-planted"


def node(runner: CliRunner, *arguments: str, stdin: str | None = None) -> Result:
    return runner.invoke(main, ["node", *arguments], input=stdin)


def done(runner: CliRunner, *arguments: str, stdin: str | None = None) -> str:
    result = node(runner, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def file_of(home: Path) -> Path:
    return home / ".config" / "taskcast" / "nodes.json"


def test_nodes_are_added_used_listed_and_removed(runner: CliRunner) -> None:
    assert "used without a name" in done(runner, "add", "prod", "https://tasks.example/base/")
    assert "used" not in done(runner, "add", "dev", "http://127.0.0.1:1")
    listed = json.loads(done(runner, "list", "--json"))
    assert listed == [
        {"name": "prod", "url": "https://tasks.example/base", "token": False, "current": True},
        {"name": "dev", "url": "http://127.0.0.1:1", "token": False, "current": False},
    ]
    done(runner, "use", "dev")
    lines = done(runner, "list").splitlines()
    assert lines[2].split() == ["*", "dev", "http://127.0.0.1:1", "no"]
    done(runner, "remove", "dev")
    assert find_server(env={}).url == "http://127.0.0.1:3721"  # the one in use is gone
    assert [each["name"] for each in json.loads(done(runner, "list", "--json"))] == ["prod"]


def test_the_file_is_its_owners_alone_and_nothing_shows_a_token(
    runner: CliRunner, clean: Path
) -> None:
    outputs = done(runner, "add", "prod", "https://tasks.example")
    outputs += done(runner, "token", "prod", stdin=f"{TOKEN}\n")
    file = file_of(clean)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert TOKEN in file.read_text()
    outputs += done(runner, "list") + done(runner, "list", "--json")
    outputs += str(find_server(env={}))
    assert TOKEN not in outputs
    assert done(runner, "token", "prod", "--show") == f"{TOKEN}\n"
    done(runner, "token", "prod", "--forget")
    assert TOKEN not in file.read_text()
    assert node(runner, "token", "prod", "--show").exit_code == 1


def test_a_file_that_others_can_read_is_said_so_and_mended_by_the_next_change(
    runner: CliRunner, clean: Path
) -> None:
    done(runner, "add", "prod", "https://tasks.example")
    file_of(clean).chmod(0o644)
    assert "others can read" in node(runner, "list").stderr
    done(runner, "use", "prod")
    assert stat.S_IMODE(file_of(clean).stat().st_mode) == 0o600


def test_a_node_that_moves_does_not_take_its_token_along(runner: CliRunner) -> None:
    done(runner, "add", "prod", "https://tasks.example")
    done(runner, "token", "prod", stdin=TOKEN)
    done(runner, "add", "prod", "https://tasks.example/")
    assert find_server(node="prod", env={}).token is not None
    done(runner, "add", "prod", "https://elsewhere.example")
    assert find_server(node="prod", env={}).token is None


def test_the_file_is_where_the_environment_says(runner: CliRunner, clean: Path) -> None:
    own, xdg = clean / "own.json", clean / "xdg"
    runner.invoke(main, ["node", "add", "a", "http://a"], env={"XDG_CONFIG_HOME": str(xdg)})
    assert (xdg / "taskcast" / "nodes.json").exists()
    env = {"XDG_CONFIG_HOME": str(xdg), "TASKCAST_NODES": str(own)}
    runner.invoke(main, ["node", "add", "b", "http://b"], env=env)
    assert own.exists()
    assert find_server(env=env).url == "http://b"
    assert find_server(env={"XDG_CONFIG_HOME": str(xdg)}).url == "http://a"


def test_nodes_added_at_the_same_time_are_all_there(clean: Path) -> None:
    names = [f"n{number}" for number in range(6)]
    command = [sys.executable, "-m", "taskcast_trio", "node", "add"]
    env = {"HOME": str(clean), "PYTHONPATH": str(Path(__file__).parents[2])}
    started = [subprocess.Popen([*command, name, f"http://{name}"], env=env) for name in names]
    assert [process.wait(60) for process in started] == [0] * len(names)
    assert sorted(json.loads(file_of(clean).read_text())["nodes"]) == names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "http://a", "http://a"], "can't be a name"),
        (["add", "-a", "http://a"], "No such option"),
        (["add", "a", "a:3721"], "is no URL"),
        (["add", "a", "http://me:hush-planted@a"], "give a token instead"),
        (["add", "a", "http://a?x=1"], "without ? and #"),
        (["use", "prd"], "did you mean prod?"),
        (["remove", "x"], "no node x"),
        (["token", "x"], "no node x"),
        (["use"], "either a NAME or --none"),
    ],
)
def test_what_can_not_be_is_one_line_and_exit_2(
    runner: CliRunner, arguments: list[str], says: str
) -> None:
    done(runner, "add", "prod", "https://tasks.example")
    result = node(runner, *arguments)
    assert result.exit_code == USAGE
    assert says in result.stderr
    assert TOKEN not in result.output


@pytest.mark.parametrize("token", ["", " \n", "two words", "a\x00b", "ümlaut"])
def test_what_can_be_no_token_is_not_kept(runner: CliRunner, token: str) -> None:
    done(runner, "add", "prod", "https://tasks.example")
    assert node(runner, "token", "prod", stdin=token).exit_code == USAGE
    assert find_server(env={}).token is None


@pytest.mark.parametrize("text", ["", "{", '{"nodes": {"a": {"url": 1, "token": "hush-planted"}}}'])
def test_a_broken_file_is_named_and_not_quoted(runner: CliRunner, clean: Path, text: str) -> None:
    file_of(clean).parent.mkdir(parents=True)
    file_of(clean).write_text(text)
    for arguments in (["node", "list"], ["node", "add", "a", "http://a"], ["ping"]):
        result = runner.invoke(main, arguments)
        assert result.exit_code == USAGE
        assert "nodes.json is not a file of nodes" in result.stderr
        assert TOKEN not in result.output
    assert file_of(clean).read_text() == text


@pytest.mark.parametrize(
    ("given", "env", "url", "token"),
    [
        ({}, {}, "http://used", "used-token"),
        ({}, {"TASKCAST_NODE": "other"}, "http://other", "other-token"),
        ({}, {"TASKCAST_NODE": "http://x"}, "http://x", None),
        ({}, {"TASKCAST_URL": "http://env", "TASKCAST_NODE": "other"}, "http://env", None),
        ({}, {"TASKCAST_TOKEN": "env-token"}, "http://used", "env-token"),
        ({"node": "other"}, {"TASKCAST_URL": "http://env"}, "http://other", "other-token"),
        ({"node": "other"}, {"TASKCAST_TOKEN": "env-token"}, "http://other", "other-token"),
        ({"node": "bare"}, {"TASKCAST_TOKEN": "env-token"}, "http://bare", "env-token"),
        ({"node": "http://x"}, {}, "http://x", None),
        ({"url": "http://x"}, {"TASKCAST_NODE": "other"}, "http://x", None),
        ({"url": "http://x"}, {"TASKCAST_TOKEN": "env-token"}, "http://x", "env-token"),
        ({"node": "other", "token": "flag-token"}, {}, "http://other", "flag-token"),
        ({"token": "flag-token"}, {"TASKCAST_TOKEN": "env-token"}, "http://used", "flag-token"),
        ({}, {"TASKCAST_URL": "", "TASKCAST_TOKEN": ""}, "http://used", "used-token"),
    ],
)
def test_what_is_nearer_says_which_server_and_whose_token(
    runner: CliRunner,
    clean: Path,
    given: dict[str, str],
    env: dict[str, str],
    url: str,
    token: str | None,
) -> None:
    for name in ("used", "other", "bare"):
        done(runner, "add", name, f"http://{name}")
        if name != "bare":
            done(runner, "token", name, stdin=f"{name}-token")
    found = find_server(**given, env=env)
    assert (found.url, found.token and found.token.reveal()) == (url, token)


def test_a_url_and_a_node_do_not_go_together(clean: Path) -> None:
    with pytest.raises(Failed, match="do not go together"):
        find_server(url="http://a", node="b", env={})


def test_a_file_that_is_a_link_stays_one(runner: CliRunner, clean: Path) -> None:
    """As of who keeps such files in one place."""
    kept = clean / "dotfiles"
    kept.mkdir()
    (kept / "nodes.json").write_text("{}")
    link = clean / ".config" / "taskcast" / "nodes.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(kept / "nodes.json")
    assert runner.invoke(main, ["node", "add", "a", "http://a"]).exit_code == 0
    assert link.is_symlink()
    assert "http://a" in (kept / "nodes.json").read_text()
    assert (kept / "nodes.json").stat().st_mode & 0o777 == 0o600
