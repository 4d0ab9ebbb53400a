"""Several processes on one port are one server: to those who call it, and to who starts and stops
it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from click.testing import CliRunner

from taskcast_trio.cli import main

from ..storage.redis.server import free_port, new_prefix, redis_url

PATIENCE_S = 45
ROOT = Path(__file__).parents[2]


def children_of(parent: int) -> set[int]:
    """The process ids of those that it has started and that have not ended."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(ppid) == parent and state != "Z":
            found.add(int(stat.parent.name))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.02)


class Service:
    """A parent with its children."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.banner = ""
        self.url = ""
        self.said: list[str] = []
        self._children: set[int] = set()

    @property
    def children(self) -> set[int]:
        found = children_of(self.process.pid)
        self._children |= found
        return found

    async def read_banner(self) -> None:
        stream: Any = self.process.stdout
        while "/docs\n" not in self.banner:
            part = await stream.receive_some()
            assert part, f"it has ended: {self.said}"
            self.banner += part.decode()
        self.url = next(line.split()[1] for line in self.banner.splitlines() if "listening" in line)

    async def read_log(self) -> None:
        stream: Any = self.process.stderr
        text = b""
        async for part in stream:
            *lines, text = (text + part).split(b"\n")
            self.said += [line.decode() for line in lines]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Those of that name in the log."""
        lines = [json.loads(line) for line in self.said if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def kill_all(self) -> None:
        for pid in (self.process.pid, *self.children, *self._children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Over a connection of its own."""
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as client:
            return await client.request(method, path, **options)


@asynccontextmanager
async def launched(
    *options: str,
    url: str | None = None,
    program: tuple[str, ...] = ("-m", "taskcast_trio"),
    cwd: Path | None = None,
) -> AsyncIterator[Service]:
    """A parent that starts; it and its children are killed at the end."""
    command = [sys.executable, *program, "-p", "0", "--processes", "2"]
    store = ["--redis-url", url or redis_url(), "--redis-prefix", new_prefix()]
    process = await trio.lowlevel.open_process(
        [*command, *store, *options],
        stdout=PIPE,
        stderr=PIPE,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "PATH": os.environ["PATH"]},
    )
    service = Service(process)
    try:
        with trio.fail_after(PATIENCE_S):
            async with process.stdout, process.stderr, trio.open_nursery() as nursery:  # type: ignore[union-attr]
                nursery.start_soon(service.read_log)
                yield service
                service.kill_all()
    finally:
        print(*service.said, sep="\n")  # pytest shows it with a failure
        service.kill_all()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


@asynccontextmanager
async def serving(*options: str, **how: Any) -> AsyncIterator[Service]:
    async with launched(*options, **how) as service:
        await service.read_banner()
        assert len(service.children) == 2
        yield service


@asynccontextmanager
async def a_stream_on_each(service: Service) -> AsyncIterator[list[httpx.Response]]:
    """Streams of one task, one at each child."""
    task = (await service.request("POST", "/tasks", json={})).json()["id"]
    one, other = service.children
    async with httpx.AsyncClient(base_url=service.url, timeout=PATIENCE_S) as client:
        path = f"/tasks/{task}/events"
        with frozen(one):
            first = await client.send(client.build_request("GET", path), stream=True)
        with frozen(other):
            second = await client.send(client.build_request("GET", path), stream=True)
        try:
            yield [first, second]
        finally:
            for stream in (first, second):
                await stream.aclose()


async def end_cleanly(streams: list[httpx.Response]) -> None:
    """Read them to the end of their bodies, which httpx raises an error for if it is cut."""
    for stream in streams:
        text = "".join([part async for part in stream.aiter_text()])
        assert text.rstrip().splitlines()[-1].startswith("retry: ")


async def test_two_processes_serve_under_one_banner_and_drain_with_0():
    async with serving() as service:
        assert service.banner.count("taskcast-trio") == 1
        assert "processes  2" in service.banner
        for child in service.children:  # whoever is left answers
            with frozen(child):
                assert (await service.request("POST", "/tasks", json={})).status_code == 201
        writers = 0
        while writers != 2:  # each sees the other within a second
            detail = (await service.request("GET", "/health/detail")).json()
            writers = detail["storage"]["activeWriterCount"]
        children = service.children
        async with a_stream_on_each(service) as streams:
            service.process.send_signal(signal.SIGTERM)
            await end_cleanly(streams)
        assert await service.process.wait() == 0
        assert not any(map(lives, children))
        await until(lambda: len(service.events("stopped")) == 2)
        assert [line["drained"] for line in service.events("stopped")] == [True, True]


async def test_the_command_runs_the_same_code_wherever_it_is_started(tmp_path: Path):
    """As the installed command does, children pass over what lies in the working directory."""
    script = tmp_path / "taskcast-trio"
    script.write_text("from taskcast_trio.cli import main\nmain()\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "trio.py").write_text("raise SystemExit('not this one')")
    async with serving(program=(str(script),), cwd=elsewhere) as service:
        assert (await service.request("GET", "/health")).status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0


async def test_a_signal_to_all_processes_of_the_service_is_one_signal():
    """As service managers send it: to the children, who are told by their parent too."""
    async with serving() as service, a_stream_on_each(service) as streams:
        for pid in (*service.children, service.process.pid):
            os.kill(pid, signal.SIGTERM)
        await end_cleanly(streams)
        assert await service.process.wait() == 0


async def test_a_child_that_is_killed_is_started_again_and_no_connect_is_refused():
    async with serving() as service:
        answered, cut = 0, 0
        done = trio.Event()

        async def call() -> None:
            nonlocal answered, cut
            while not done.is_set():
                try:
                    answer = await service.request("GET", "/health")
                except httpx.ConnectError as error:
                    raise AssertionError("a connect was refused") from error
                except httpx.TransportError:
                    cut += 1  # the child had it
                else:
                    assert answer.is_success
                    answered += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            before = service.children
            for victims in ([min(before)], sorted(before)):  # one of them, then all
                gone = service.children & set(victims) or service.children
                for pid in gone:
                    os.kill(pid, signal.SIGKILL)
                await until(lambda gone=gone: len(service.children - gone) == 2)
                new = service.children
                seen = answered
                await until(lambda seen=seen: answered > seen + 5)
                for pid in new:  # each of them serves, as the other one stands still
                    with frozen(pid):
                        assert (await service.request("GET", "/health")).is_success
            done.set()
        assert cut <= 3
        ended = service.events("process_ended")
        assert {line["status"] for line in ended} == {-signal.SIGKILL}
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0


async def test_when_the_parent_is_killed_the_children_drain_and_end():
    async with serving() as service, a_stream_on_each(service) as streams:
        children = service.children
        service.process.send_signal(signal.SIGKILL)
        await end_cleanly(streams)
        await until(lambda: not any(map(lives, children)))
        assert [line["drained"] for line in service.events("stopped")] == [True, True]
        port = int(service.url.rsplit(":", 1)[1])
        socket.create_server(("127.0.0.1", port)).close()


async def test_a_second_signal_ends_all_at_once():
    patience = ("--server-grace-seconds", "600", "--server-body-timeout-seconds", "600")
    async with serving(*patience) as service:
        children, port = service.children, int(service.url.rsplit(":", 1)[1])
        unfinished = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(unfinished)
            # Answered by the same child or the other one: it has read what came before.
            for child in children:
                with frozen(child):
                    assert (await service.request("GET", "/health")).is_success
            service.process.send_signal(signal.SIGTERM)
            await until(lambda: len(service.events("draining")) == 2)
            assert service.process.returncode is None
            service.process.send_signal(signal.SIGTERM)
            assert await service.process.wait() == 1
            await until(lambda: not any(map(lives, children)))


async def test_without_redis_it_says_so_in_one_line():
    async with launched(url="redis://u:hush-hush@127.0.0.1:1/0") as service:
        assert await service.process.wait() == 1
        await until(lambda: service.said)
        await trio.testing.wait_all_tasks_blocked(0.1)
        (line,) = service.said
        assert line.startswith("Error: Redis at 127.0.0.1:1 can't be reached")
        assert "hush" not in line


async def test_with_a_port_in_use_it_says_so_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with launched("-p", str(port)) as service:
            assert await service.process.wait() == 1
            await until(lambda: service.said and service.said[-1].startswith("Error"))
            *before, last = service.said
            assert last == f"Error: port {port} on 127.0.0.1 is in use; choose another with --port"
            assert all("redis_durability" in line for line in before), "the one warning"


async def test_a_signal_while_it_starts_ends_it_with_0():
    async with launched() as service:
        await until(lambda: service.children)
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0
        assert service.banner == ""


@pytest.mark.parametrize("storage", ["memory", "sqlite"])
def test_a_store_of_one_process_is_refused_in_one_line(runner: CliRunner, storage: str) -> None:
    result = runner.invoke(main, ["-s", storage, "--processes", "2", "-p", str(free_port())])
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert "processes" in line
    assert "redis" in line
