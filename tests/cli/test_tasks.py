"""`tasks` lists, inspects, cancels and deletes, at a terminal and in a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from taskcast_trio.cli import main, tasks
from tests.integration.fleet import fleet

from .commands import environment, terminal

LONG = "x" * 100


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with fleet(1) as (started,):
        yield started.url


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch, clean: Path) -> Iterator[str]:
    """A server with three tasks, which are gone after the test."""
    monkeypatch.setenv("TASKCAST_URL", server)
    with httpx.Client(base_url=server) as client:
        client.post("/tasks", json={"id": "one", "type": "llm.chat", "params": {"é": [1]}})
        client.post("/tasks", json={"id": "two", "type": "render"})
        client.post("/tasks", json={"id": "three", "type": "\x1b[2J" + LONG})
        client.patch("/tasks/two/status", json={"status": "running"})
        event = {"type": "log", "level": "info"}
        client.post("/tasks/two/events", json=[{**event, "data": n} for n in range(7)])
        error = {"status": "failed", "error": {"message": "out of\x07 paint"}}
        client.patch("/tasks/two/status", json=error)
        yield server
        for task in client.get("/tasks").json()["tasks"]:
            client.delete(f"/tasks/{task['id']}")


def ran(runner: CliRunner, *arguments: str, status: int = 0) -> Result:
    result = runner.invoke(main, ["tasks", *arguments])
    assert result.exit_code == status, result.output
    return result


def test_a_list_in_a_pipe_is_whole(runner: CliRunner, url: str) -> None:
    head, one, two, three = ran(runner, "list").stdout.splitlines()
    assert head.split() == ["id", "status", "type", "created", "updated", "error"]
    assert one.startswith("one ")
    assert two.endswith("out of\\x07 paint")
    assert three.startswith("three ")
    assert "\\x1b[2J" + LONG in three


def test_a_list_for_programs_is_a_task_a_line(runner: CliRunner, url: str) -> None:
    found = [json.loads(line) for line in ran(runner, "list", "--json").stdout.splitlines()]
    assert [(task["id"], task["status"]) for task in found] == [
        ("one", "pending"),
        ("two", "failed"),
        ("three", "pending"),
    ]
    assert found[0]["params"] == {"é": [1]}


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--status", "failed,running"], ["two"]),
        (["--type", "llm.chat"], ["one"]),
        (["--limit", "2"], ["two", "three"]),
        (["--limit", "2", "--all"], ["one", "two", "three"]),
    ],
)
def test_some_of_them(
    runner: CliRunner,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    ids: list[str],
) -> None:
    monkeypatch.setattr(tasks, "PAGE", 2)  # they come in pages
    lines = ran(runner, "list", "--json", *arguments).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids


def test_what_is_not_shown_is_said(runner: CliRunner, url: str) -> None:
    assert "the newest 1 of 3" in ran(runner, "list", "--limit", "1").stderr
    none = ran(runner, "list", "--status", "blocked")
    assert (none.stdout, none.stderr) == ("", "no tasks like that\n")
    assert "is none of pending" in ran(runner, "list", "--status", "done", status=2).stderr


@pytest.mark.parametrize("flags", [[], ["--no-color"]])
async def test_a_table_fits_the_terminal(url: str, tmp_path: Path, flags: list[str]) -> None:
    env = environment(tmp_path, TASKCAST_URL=url)
    async with terminal("tasks", "list", *flags, env=env, columns=60) as screen:
        assert await screen.end() == 0
    table = screen.text[screen.text.index("id ") :]  # behind what was there while it was read
    lines = [line.rstrip() for line in table.splitlines()]
    assert len(lines) == 4
    assert max(map(len, lines)) <= 60
    assert lines[3].startswith("three ")  # ids are what is needed next
    assert "…" in lines[3]
    assert ("\x1b[31m" in screen.raw) == (not flags)  # failed is red


def test_inspect_shows_the_task_and_its_last_events(runner: CliRunner, url: str) -> None:
    text = ran(runner, "inspect", "two").stdout
    assert "out of\\u0007 paint" in text
    head, _, events = text.partition("the last 5 events:\n")
    assert [line.split()[-1] for line in events.splitlines()[:4]] == ["3", "4", "5", "6"]
    assert '{"é": [1]}' in ran(runner, "inspect", "one").stdout
    assert "no events yet" in ran(runner, "inspect", "one").stdout
    found = json.loads(ran(runner, "inspect", "two", "--json").stdout)
    assert found["task"]["error"] == {"message": "out of\x07 paint"}
    assert [event["index"] for event in found["events"]] == [4, 5, 6, 7, 8]
    del head


def test_cancel_ends_each_task_it_can(runner: CliRunner, url: str) -> None:
    result = ran(runner, "cancel", "two", "one", "gone", "--reason", "too slow", status=6)
    assert result.stdout == "one cancelled\n"
    assert "Task two cannot go from failed to cancelled" in result.stderr
    assert "no task gone" in result.stderr
    one = httpx.get(f"{url}/tasks/one").json()
    assert (one["status"], one["error"]) == (
        "cancelled",
        {"message": "too slow", "code": "cancelled"},
    )


def test_delete_asks_or_is_told_yes(runner: CliRunner, url: str) -> None:
    assert "--yes" in ran(runner, "delete", "one", status=2).stderr
    assert httpx.get(f"{url}/tasks/one").status_code == 200
    result = ran(runner, "delete", "one", "two", "--yes", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"taskId": "one", "deleted": True},
        {"taskId": "two", "deleted": True},
    ]
    assert httpx.get(f"{url}/tasks/one").status_code == 404
    assert "no task one" in ran(runner, "delete", "one", "--yes", status=5).stderr


@pytest.mark.parametrize(("answer", "status", "left"), [("n", 1, 200), ("y", 0, 404)])
async def test_a_person_is_asked_before_a_task_is_deleted(
    url: str, tmp_path: Path, answer: str, status: int, left: int
) -> None:
    env = environment(tmp_path, TASKCAST_URL=url)
    async with terminal("tasks", "delete", "one", env=env, columns=200) as screen:
        await screen.until(f"Delete one and all events at {url}?")
        screen.type(f"{answer}\n")
        assert await screen.end() == status
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/tasks/one")).status_code == left


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (60, ["id", "status", "type", "error"]),
        (90, ["id", "status", "type", "created", "error"]),
        (120, ["id", "status", "type", "created", "updated", "error"]),
    ],
)
async def test_a_narrow_terminal_leaves_out_times_and_cuts_no_status(
    url: str, tmp_path: Path, columns: int, shown: list[str]
) -> None:
    env = environment(tmp_path, TASKCAST_URL=url)
    async with terminal("tasks", "list", env=env, columns=columns) as screen:
        assert await screen.end() == 0
    table = screen.text[screen.text.index("id ") :].splitlines()
    assert table[0].split() == shown
    assert table[1].split()[:3] == ["one", "pending", "llm.chat"]
    assert "out of" in table[2]


def publish(url: str, data: str) -> None:
    httpx.patch(f"{url}/tasks/one/status", json={"status": "running"})
    event = {"type": "log", "level": "info", "data": data}
    httpx.post(f"{url}/tasks/one/events", json=event).raise_for_status()


async def test_inspect_does_not_flood_a_terminal(url: str, tmp_path: Path) -> None:
    publish(url, "long " * 10_000)
    env = environment(tmp_path, TASKCAST_URL=url)
    async with terminal("tasks", "inspect", "one", env=env) as screen:
        assert await screen.end() == 0
    assert "long long" in screen.text
    assert "…" in screen.text
    assert len(screen.text) < 2000


async def test_json_moves_no_terminal(url: str, tmp_path: Path) -> None:
    publish(url, "a\u009b2Jb\u202ec\x7f")
    env = environment(tmp_path, TASKCAST_URL=url)
    for call in (["tasks", "inspect", "one"], ["logs", "one"]):
        async with terminal(*call, "--json", env=env) as screen:
            assert await screen.end() == 0
        assert r"a\u009b2Jb\u202ec\u007f" in screen.raw
