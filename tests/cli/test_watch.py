"""`logs` and `tail` show each event once and in order, whatever happens to the connection, and end
without a word.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.integration.fleet import fleet

from .commands import COMMAND, PATIENCE_S, command, environment, piped, terminal

FAST = ("--sse-retry-ms", "300")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fleet(1, *FAST) as (server,):
        yield server.url


@pytest.fixture
def env(url: str, tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path, TASKCAST_URL=url)


class Publisher:
    """Makes tasks and publishes to them over HTTP."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=PATIENCE_S)

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def create(self, task: str) -> None:
        (await self._http.post("/tasks", json={"id": task})).raise_for_status()
        await self.move(task, "running")

    async def move(self, task: str, status: str) -> None:
        path = f"/tasks/{task}/status"
        (await self._http.patch(path, json={"status": status})).raise_for_status()

    async def publish(self, task: str, *data: Any, **fields: Any) -> None:
        common = {"type": "n", "level": "info", **fields}
        events = [{**common, "data": each} for each in data]
        (await self._http.post(f"/tasks/{task}/events", json=events)).raise_for_status()

    async def say(self, task: str, *texts: str, series: str = "answer") -> None:
        fields = {"type": "llm.delta", "seriesId": series, "seriesMode": "accumulate"}
        await self.publish(task, *({"delta": text} for text in texts), **fields)

    async def history(self, task: str) -> list[dict[str, Any]]:
        answer = await self._http.get(f"/tasks/{task}/events/history")
        found: list[dict[str, Any]] = answer.json()
        return found


def events(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def numbers(found: list[dict[str, Any]], task: str = "t") -> list[int]:
    return [event["data"] for event in found if event["type"] == "n" and event["taskId"] == task]


async def test_a_log_in_a_pipe_is_an_event_a_line(url: str, env: dict[str, str]) -> None:
    async with Publisher(url) as publisher:
        await publisher.create("past")
        await publisher.say("past", "one ", "two")
        await publisher.publish("past", {"a": "\x1b"}, level="warn")
        for follow in ("--no-follow", "--follow"):
            if follow == "--follow":
                await publisher.move("past", "completed")
            done = await command("logs", "past", follow, "--json", env=env)
            assert (done.returncode, done.stderr) == (0, b"")
            # Every piece, as it is in the log.
            assert events(done.stdout) == await publisher.history("past")
        done = await command("logs", "past", env=env)
    lines = done.stdout.decode().splitlines()
    assert b"\x1b" not in done.stdout
    assert [line.split(" ", 1)[1] for line in lines] == [
        "info  taskcast:status  running",
        'info  llm.delta [answer]  {"delta":"one "}',
        'info  llm.delta [answer]  {"delta":"two"}',
        'warn  n  {"a":"\\u001b"}',
        "info  taskcast:status  completed",
    ]


async def test_some_of_the_events(url: str, env: dict[str, str]) -> None:
    async with Publisher(url) as publisher:
        await publisher.create("some")
        await publisher.publish("some", 1, type="a.x")
        await publisher.publish("some", 2, type="b", level="warn")
        await publisher.publish("some", 3, type="a.y", level="warn")
        await publisher.move("some", "completed")

    async def found(*options: str) -> list[Any]:
        done = await command("logs", "some", "--json", *options, env=env)
        assert done.returncode == 0, done.stderr
        return [event["data"] for event in events(done.stdout)]

    assert await found("--types", "a.*") == [1, 3]
    assert await found("--follow", "--levels", "warn,error") == [2, 3]
    for follow in ("--follow", "--no-follow"):
        narrow = ("--types", "a.*", "--levels", "warn", "--since", "1h")
        assert await found(follow, *narrow) == [3]
    assert await found("--since", "2100-01-01") == []
    done = await command("logs", "some", "--levels", "loud", env=env)
    assert done.returncode == 2
    assert b"'loud' is none of debug, info, warn, error" in done.stderr
    done = await command("logs", "some", "--since", "soon", env=env)
    assert done.returncode == 2
    assert b"expected 30s, 10m, 2h, 7d, or a time" in done.stderr


@pytest.mark.parametrize("flags", [[], ["--no-color"]])
async def test_a_person_reads_the_answer_as_it_is_written(
    url: str, env: dict[str, str], flags: list[str]
) -> None:
    task = f"answer{len(flags)}"
    async with Publisher(url) as publisher:
        await publisher.create(task)
        await publisher.say(task, "The ", "sea ")
        async with terminal("logs", task, "--follow", *flags, env=env) as screen:
            await screen.until("llm.delta answer:\nThe sea ")
            await publisher.say(task, "is ")
            await screen.until("The sea is ")
            await publisher.publish(task, "between")
            await publisher.say(task, "wide", "\x1b[2J.")
            await screen.until("wide\\x1b[2J.")
            await publisher.move(task, "completed")
            assert await screen.end() == 0
    lines = [line.split(" ", 1)[-1] for line in screen.text.splitlines()]
    assert [line.rstrip() for line in screen.text.splitlines()][2] == "The sea is"
    assert lines[3:] == [
        "info  n  between",
        "info  llm.delta answer goes on:",
        "wide\\x1b[2J.",
        "info  taskcast:status  completed",
    ]
    assert ("\x1b[" in screen.raw) == (not flags)


async def test_ctrl_c_ends_the_line_and_says_nothing(url: str, env: dict[str, str]) -> None:
    async with Publisher(url) as publisher:
        await publisher.create("long")
        await publisher.say("long", "half a sentence")
        async with terminal("logs", "long", "-f", env=env) as screen:
            await screen.until("half a sentence")
            screen.interrupt()
            assert await screen.end() == 130
        assert screen.text.endswith("half a sentence\n")
    async with piped("tail", "--json", "--since", "1h", env=env) as tailing:
        await tailing.out(b'"long"')
        tailing.process.send_signal(signal.SIGINT)
        assert await tailing.end() == 130
        assert tailing.told == b""


@pytest.mark.parametrize("what", [["logs", "idle", "-f"], ["tail", "--since", "1h"]])
async def test_it_ends_with_its_reader_though_nothing_more_comes(
    url: str, env: dict[str, str], what: list[str]
) -> None:
    async with Publisher(url) as publisher:
        with suppress(httpx.HTTPStatusError):  # it is there from the first of these tests
            await publisher.create("idle")
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "-", *COMMAND, *what],
            env=env,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 141
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == b""


def test_a_reader_that_leaves_early_ends_a_list_too(url: str, env: dict[str, str]) -> None:
    script = '"$@" | true; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, "-", sys.executable, "-m", "taskcast_trio", "config", "show"],
        env=env,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, b"")


async def test_a_server_that_is_killed_and_comes_back_costs_no_event_and_brings_none_twice(
    tmp_path: Path,
) -> None:
    sqlite = ("-s", "sqlite", "--db-path", str(tmp_path / "tasks.db"), *FAST)
    with fleet(1, *sqlite) as (server,):
        url, port = server.url, server.url.rpartition(":")[2]
        env = environment(tmp_path, TASKCAST_URL=url)
        async with (
            Publisher(url) as publisher,
            piped("tail", "--json", env=env) as tail,
        ):
            await publisher.create("quiet")
            await publisher.create("probe")
            await _until_followed(publisher, tail)
            await publisher.create("t")
            await publisher.publish("t", *range(5))
            async with piped("logs", "t", "--follow", "--json", env=env) as logs:
                await tail.out(b'"data":4')
                await logs.out(b'"data":4')
                server.process.kill()
                server.process.wait()
                with fleet(1, *sqlite, "-p", port):
                    async with Publisher(url) as publisher:
                        # Before they are back, and after.
                        await publisher.publish("t", *range(5, 10))
                        await publisher.publish("quiet", 0)
                        await publisher.create("new")
                        await publisher.publish("new", 0, 1)
                        await logs.out(b'"data":9')
                        await tail.out(b'"taskId":"new","index":2')
                        await publisher.publish("t", *range(10, 15))
                        await publisher.publish("new", 2)
                        await publisher.move("t", "completed")
                        assert await logs.end() == 0
                        await tail.out(b'"status":"completed"')
                        tail.process.send_signal(signal.SIGINT)
                        assert await tail.end() == 130
                        whole = await publisher.history("t")
    assert events(logs.said) == whole
    assert b"the connection was lost" in tail.told
    seen = [event for event in events(tail.said) if event["taskId"] == "t"]
    assert seen == whole
    assert numbers(events(tail.said), "quiet") == [0]
    assert numbers(events(tail.said), "new") == [0, 1, 2]


async def _until_followed(publisher: Publisher, tail: Any) -> None:
    """Publish until it is seen: `tail` does not say when it has begun."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_publish_on, publisher, "probe")
        await tail.out(b"probe")
        nursery.cancel_scope.cancel()


async def test_tail_shows_every_task_from_a_time_on(url: str, env: dict[str, str]) -> None:
    async with Publisher(url) as publisher:
        await publisher.create("early")
        await publisher.publish("early", 1)
        async with terminal("tail", "--since", "1h", env=env, columns=200) as screen:
            await screen.until("early info  n  1")
            await publisher.create("late")
            await publisher.say("late", "an answer")
            await screen.until("late info  llm.delta answer:\nan answer")
            screen.interrupt()
            assert await screen.end() == 130
        done = await command("tail", "--no-follow", "--since", "1h", "--json", env=env)
        assert done.returncode == 0
        found = events(done.stdout)
        for task in ("early", "late"):
            assert [e for e in found if e["taskId"] == task] == await publisher.history(task)
    done = await command("tail", "--no-follow", env=env)
    assert done.returncode == 2


async def test_tail_says_at_a_terminal_that_it_follows(url: str, env: dict[str, str]) -> None:
    """Where nothing happens, else, it could as well hang."""
    async with Publisher(url) as publisher:
        async with terminal("tail", env=env, columns=200) as screen:
            await screen.until(f"following every task at {url}: Ctrl-C ends it\n")
            await publisher.create("said")
            await screen.until("said info  taskcast:status  running")
            screen.interrupt()
            assert await screen.end() == 130
        async with terminal("tail", "--json", env=env, columns=200) as screen:
            await publisher.create("quiet")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_publish_on, publisher, "quiet")
                await screen.until("quiet")
                nursery.cancel_scope.cancel()
            assert "following" not in screen.text


async def _publish_on(publisher: Publisher, task: str) -> None:
    while True:
        await publisher.publish(task, "p")
        await trio.sleep(0.05)
