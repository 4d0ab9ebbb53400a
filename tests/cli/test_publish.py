"""`publish` streams stdin as it comes, and the task that it makes tells how that ended."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio
import trio.testing
from click.testing import CliRunner

from taskcast_trio.cli import main
from taskcast_trio.cli.connect import SETTLE_S
from taskcast_trio.cli.feed import Feed, Publishing
from taskcast_trio.cli.interruption import Interruption
from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.client.retries import Call, RetryPolicy
from taskcast_trio.client.steps import Reply
from taskcast_trio.core.model import CreateTask, Draft
from tests.client.fault_proxy import Fault, Plan, fault_proxy
from tests.integration.fleet import PAUSE_S, fleet

from .commands import COMMAND, command, environment, piped, terminal

T = TypeVar("T")
TASK = b'{"id":"t","status":"running","createdAt":1,"updatedAt":1,"hot":false,"subscriberCount":0}'
ANSWER = ("--type", "llm.delta", "--series", "answer", "--accumulate")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fleet(1) as (server,):
        yield server.url


@pytest.fixture
def env(url: str, tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path, TASKCAST_URL=url)


async def history(url: str, task: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{url}/tasks/{task}/events/history")
        found: list[dict[str, Any]] = answer.raise_for_status().json()
        return found


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["delta"] for event in events if event["type"] == "llm.delta"]


async def published(url: str, task: str, number: int, type_: str = "llm.delta") -> None:
    """Wait until so many events of this type are there to be read."""
    while [event["type"] for event in await history(url, task)].count(type_) < number:  # noqa: ASYNC110
        await trio.sleep(PAUSE_S)


def ends(events: list[dict[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = events[-1]["data"]
    return data


async def test_a_pipe_becomes_a_task_that_is_read_while_it_is_written(
    url: str, env: dict[str, str]
) -> None:
    async with piped("publish", "--new", *ANSWER, env=env) as publishing:
        told = (await publishing.err(b"--follow\n")).decode()
        found = re.fullmatch(r"task (\w+)\nfollow it: taskcast-trio logs \1 --follow\n", told)
        assert found is not None
        task = found[1]
        # Each piece is there before the next one is written.
        for number, text in enumerate(("The sea ", "is \N{WATER WAVE} ", "wide"), 1):
            await publishing.stdin.send_all(text.encode())
            await published(url, task, number)
        await publishing.stdin.aclose()
        assert await publishing.end() == 0
        assert publishing.said == b""
    events = await history(url, task)
    assert texts(events) == ["The sea ", "is \N{WATER WAVE} ", "wide"]
    assert {(e["seriesId"], e["seriesMode"]) for e in events if e["type"] == "llm.delta"} == {
        ("answer", "accumulate")
    }
    assert ends(events) == {"status": "completed"}


async def test_characters_are_not_cut_and_much_at_once_is_few_events(
    url: str, env: dict[str, str]
) -> None:
    text = "全角 and é, " * 20_000
    done = await command("publish", "--new", "--id", "much", *ANSWER, env=env, stdin=text.encode())
    assert done.returncode == 0, done.stderr
    pieces = texts(await history(url, "much"))
    assert "".join(pieces) == text
    assert len(pieces) < len(text.encode()) / 4096
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_a_signal_cancels_the_task_though_stdin_ends_with_it(
    url: str, env: dict[str, str], number: signal.Signals, code: int
) -> None:
    task = f"signal-{code}"
    async with piped("publish", "--new", "--id", task, *ANSWER, env=env) as publishing:
        await publishing.err(b"--follow\n")
        await publishing.stdin.send_all(b"the first half")
        await published(url, task, 1)
        # As when Ctrl-C ends a pipeline: the writer is gone at the same moment.
        publishing.process.send_signal(number)
        await publishing.stdin.aclose()
        assert await publishing.end() == code
        assert b"Traceback" not in publishing.told
    events = await history(url, task)
    assert texts(events) == ["the first half"]
    assert ends(events) == {
        "status": "cancelled",
        "error": {"message": "the publisher was interrupted", "code": "interrupted"},
    }


async def test_a_reader_of_tee_that_leaves_fails_the_task(url: str, env: dict[str, str]) -> None:
    async with piped("publish", "--new", "--id", "teed", "--tee", *ANSWER, env=env) as publishing:
        await publishing.err(b"--follow\n")
        await publishing.stdin.send_all(b"one")
        await publishing.out(b"one")
        await publishing.stdout.aclose()
        await publishing.stdin.send_all(b"two")
        assert await publishing.process.wait() == 141
    assert ends(await history(url, "teed"))["status"] == "failed"


async def test_the_task_is_left_open_where_that_is_asked_for(url: str, env: dict[str, str]) -> None:
    arguments = ("--new", "--id", "open", "--task-type", "job", "--keep-open", *ANSWER)
    done = await command("publish", *arguments, env=env, stdin=b"one")
    assert done.returncode == 0
    done = await command(
        "publish", "open", "--type", "log", "--lines", "--field", "line", env=env, stdin=b"a\nb\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = await command("publish", "open", "--complete", *ANSWER, env=env, stdin=b" two")
    assert done.returncode == 0
    events = await history(url, "open")
    assert texts(events) == ["one", " two"]
    assert [e["data"] for e in events if e["type"] == "log"] == [{"line": "a"}, {"line": "b"}]
    assert ends(events) == {"status": "completed"}


async def test_ndjson_is_published_line_by_line_up_to_a_bad_one(
    url: str, env: dict[str, str]
) -> None:
    lines = b'{"type":"a"}\n{"type":"b","level":"warn","data":{ "n": 1.0 }}\n{oops}\n{"type":"c"}'
    done = await command("publish", "--new", "--id", "lines", "--json", env=env, stdin=lines)
    assert done.returncode == 2
    assert b"line 3 of stdin is no event" in done.stderr
    assert json.loads(done.stdout) == {"taskId": "lines"}
    _, a, b, end = await history(url, "lines")
    assert [a["type"], b["type"], b["level"], b["data"]] == ["a", "b", "warn", {"n": 1.0}]
    assert end["data"]["status"] == "failed"
    assert "line 3" in end["data"]["error"]["message"]


async def test_ndjson_goes_on_as_lines_come(url: str, env: dict[str, str]) -> None:
    async with piped("publish", "--new", "--id", "live", "--json", env=env) as publishing:
        await publishing.out(b"live")
        await publishing.stdin.send_all(b'{"type":"a"}\n{"type":')
        await published(url, "live", 1, "a")
        await publishing.stdin.send_all(b'"b"}')
        await publishing.stdin.aclose()
        assert await publishing.end() == 0
        summary = json.loads(publishing.said.splitlines()[1])
    assert summary == {"taskId": "live", "events": 2, "lastIndex": 2, "status": "completed"}
    assert [event["type"] for event in (await history(url, "live"))[1:3]] == ["a", "b"]


async def test_one_event_from_arguments_leaves_stdin_alone(url: str, env: dict[str, str]) -> None:
    arguments = ("publish", "--new", "--id", "args", "--keep-open", "--type", "p", "--data")
    async with piped(*arguments, '{"n": 1.0}', "--latest", "--series", "s", env=env) as running:
        assert await running.end() == 0  # though stdin stays open
    done = await command("publish", "args", "--type", "tick", "--no-data", env=env)
    assert done.returncode == 0
    _, p, tick = await history(url, "args")
    assert (p["data"], p["seriesId"], p["seriesMode"]) == ({"n": 1.0}, "s", "latest")
    assert "data" not in tick


async def test_publishing_goes_on_when_the_server_comes_back(tmp_path: Path) -> None:
    sqlite = ("-s", "sqlite", "--db-path", str(tmp_path / "tasks.db"))
    with fleet(1, *sqlite) as (first,):
        port = first.url.rpartition(":")[2]
        env = environment(tmp_path, TASKCAST_URL=first.url)
        async with piped("publish", "--new", "--id", "t", *ANSWER, env=env) as publishing:
            await publishing.err(b"--follow\n")
            await publishing.stdin.send_all(b"before ")
            await published(first.url, "t", 1)
            first.process.kill()
            first.process.wait()
            await publishing.stdin.send_all(b"while it is away ")
            with fleet(1, *sqlite, "-p", port):
                await published(first.url, "t", 2)
                await publishing.stdin.send_all(b"after")
                await publishing.stdin.aclose()
                assert await publishing.end() == 0
                events = await history(first.url, "t")
    assert texts(events) == ["before ", "while it is away ", "after"]
    assert ends(events) == {"status": "completed"}


def breaking(seed: int) -> Plan:
    """Connections that are cut inside of a request, or before the answer comes, or bring each
    request twice.
    """
    rng = random.Random(seed)

    def plan(number: int) -> Fault:
        if number == 0:  # one request has to be answered: who has the wrong server is told at once
            return Fault(swallow=1)
        return broken(rng)

    return plan


def broken(rng: random.Random) -> Fault:
    kind = rng.randrange(3)
    if kind == 0:
        return Fault(cut_up=rng.randrange(1, 3000))
    return Fault(doubled=kind == 1, swallow=rng.randrange(1, 3))


def test_each_event_is_stored_once_and_in_order_over_connections_that_break(
    url: str, env: dict[str, str]
) -> None:
    """Also by a second command, which counts anew and takes nothing for a repeat."""
    lines = [f"line {number}" for number in range(3000)]
    fed = "".join(f"{line}\n" for line in lines).encode()
    options = ("--type", "log", "--lines", "--field", "line")
    with httpx.Client(base_url=url) as client:
        client.post("/tasks", json={"id": "cut"})
        for number in range(2):
            with fault_proxy(url, breaking(number)) as proxy:
                done = subprocess.run(
                    [*COMMAND, "publish", "cut", *options, "--json"],
                    input=fed,
                    env={**env, "TASKCAST_URL": proxy.url},
                    capture_output=True,
                    timeout=60,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                assert proxy.cuts >= 3
            told = json.loads(done.stdout)
            assert (told["events"], told["lastIndex"]) == (3000, 3000 * (number + 1) - 1)
        log = client.get("/tasks/cut/events/history").json()
    assert [event["data"]["line"] for event in log] == lines * 2
    assert [event["clientSeq"] for event in log] == [*range(3000)] * 2
    assert len({event["clientId"] for event in log}) == 2


async def test_a_task_with_as_many_publishers_as_it_may_have_takes_another_pipe(
    tmp_path: Path,
) -> None:
    """More than a thousand commands may feed one task: those beyond do not count, but send keys."""
    with fleet(1, "--publish-publishers-per-task", "1") as (server,):
        env = environment(tmp_path, TASKCAST_URL=server.url)
        async with httpx.AsyncClient() as client:
            await client.post(f"{server.url}/tasks", json={"id": "t"})
        for text in (b"one\n", b"two\nthree\n"):
            done = await command("publish", "t", "--type", "n", "--lines", env=env, stdin=text)
            assert done.returncode == 0, done.stderr
        done = await command("publish", "t", "--type", "n", "--data", "4", env=env)
        assert done.returncode == 0, done.stderr
        events = await history(server.url, "t")
    assert [event["data"] for event in events] == [
        {"delta": "one"},
        {"delta": "two"},
        {"delta": "three"},
        4,
    ]
    assert ["clientSeq" in event for event in events] == [True, False, False, False]


async def test_a_task_that_gets_full_in_the_middle_of_a_batch_has_each_event_once(
    tmp_path: Path,
) -> None:
    """The server takes the batch in parts only, and has room for the first of them twice."""
    limits = ("--limits-body-bytes", "10000", "--limits-task-bytes", "7600")
    lines = b"".join(b"%s\n" % (b"x" * size) for size in (1000, 1000, 6000, 6000))
    with fleet(1, *limits) as (server,):
        env = environment(tmp_path, TASKCAST_URL=server.url)
        async with httpx.AsyncClient() as client:
            await client.post(f"{server.url}/tasks", json={"id": "t"})
        done = await command("publish", "t", "--type", "n", "--lines", env=env, stdin=lines)
        assert done.returncode != 0
        assert b"has no room for this" in done.stderr
        events = await history(server.url, "t")
    assert [len(event["data"]["delta"]) for event in events] == [1000, 1000]


async def test_what_comes_before_an_event_that_no_server_takes_is_published(
    url: str, env: dict[str, str]
) -> None:
    lines = b'{"type":"a"}\n{"type":"b\\n"}\n{"type":"c"}\n'
    done = await command("publish", "--new", "--id", "bad", env=env, stdin=lines)
    assert done.returncode == 2
    assert b"Error: event 2: " in done.stderr
    assert [event["type"] for event in await history(url, "bad")] == [
        "taskcast:status",
        "a",
        "taskcast:status",
    ]


async def test_a_task_that_somebody_else_ended_ends_the_pipe(url: str, env: dict[str, str]) -> None:
    async with piped("publish", "--new", "--id", "ended", *ANSWER, env=env) as publishing:
        await publishing.err(b"--follow\n")
        async with httpx.AsyncClient() as client:
            await client.patch(f"{url}/tasks/ended/status", json={"status": "cancelled"})
        await publishing.stdin.send_all(b"too late")
        assert await publishing.end() == 6
    assert b"Task ended has ended (cancelled)" in publishing.told


async def test_progress_is_on_a_terminal_and_not_where_that_shows_something_else(
    url: str, env: dict[str, str]
) -> None:
    arguments = ("publish", "--new", *ANSWER)
    async with terminal(*arguments, "--id", "fed", env=env, fed=True) as screen:
        await screen.feed(b"hello")
        await screen.until("publishing: 1 events")
        await screen.feed_no_more()
        assert await screen.end() == 0
    async with terminal(*arguments, "--id", "teed2", "--tee", env=env, fed=True) as screen:
        await screen.feed(b"hello")
        await screen.until("hello")
        await screen.feed_no_more()
        assert await screen.end() == 0
        assert "publishing" not in screen.text
    async with terminal(*arguments, "--id", "typed", env=env) as screen:
        await screen.until("Ctrl-D ends it")
        await screen.until("follow it")
        screen.type("hello\n")
        await published(url, "typed", 1)
        screen.type("\x04")
        assert await screen.end() == 0
        assert "publishing" not in screen.text
    assert texts(await history(url, "typed")) == ["hello\n"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either a TASK or --new"),
        (["t", "--new"], "either a TASK or --new"),
        (["t", "--id", "x"], "go with --new"),
        (["t", "--data", "1"], "of which --type"),
        (["t", "--type", "x", "--series", "s"], "--accumulate or --latest"),
        (["t", "--type", "x", "--data", "1", "--no-data"], "do not go together"),
        (["t", "--type", "x", "--data", "1", "--tee"], "are for stdin"),
        (["t", "--type", "x", "--tee", "--json"], "both want stdout"),
        (["t", "--type", "x", "--data", "{oops"], "--data is no JSON"),
        (["t", "--type", "x", "--data", ""], "--data is no JSON"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    runner: CliRunner, arguments: list[str], says: str
) -> None:
    result = runner.invoke(main, ["publish", *arguments])
    assert result.exit_code == 2
    assert says in result.stderr


async def test_nothing_on_stdin_is_said_so(env: dict[str, str]) -> None:
    done = await command("publish", "--new", *ANSWER, env=env)
    assert done.returncode == 0
    assert b"nothing was published" in done.stderr
    assert os.linesep.encode() in done.stderr


class Mute(AsyncTaskcastClient):
    """A client of a server that takes the first calls, and answers no other."""

    def __init__(self, answers: int) -> None:
        super().__init__("http://mute.invalid")
        self._answers = answers

    async def ask(self, call: Call[T], *, retries: RetryPolicy | None = None) -> T:
        if self._answers == 0:
            await trio.sleep_forever()
        self._answers -= 1
        return call.read(Reply(200, {}, TASK, None))


@pytest.mark.parametrize("answers", [0, 1, 2])
async def test_a_signal_is_not_kept_waiting_by_a_server_that_does_not_answer(
    autojump_clock: trio.testing.MockClock, answers: int
) -> None:
    """While it makes the task, lets it run, and completes it."""

    class Nothing(Feed):
        async def receive(self) -> list[Draft]:
            raise EOFError

    interruption = Interruption()

    async def signalled() -> None:
        await trio.sleep(1)
        interruption.number = signal.SIGINT
        interruption.tell()

    with trio.fail_after(60):
        async with Mute(answers) as client, trio.open_nursery() as nursery:
            nursery.start_soon(signalled)
            publishing = Publishing(client, None, made=True, ends=True)
            await publishing.create(CreateTask(), interruption)
            assert bool(publishing.task_id) == (answers > 0)
            if answers > 0:
                assert await publishing.run(Nothing(), interruption, lambda: None) == 2
    assert trio.current_time() <= 1 + 2 * SETTLE_S
