"""Several real server processes on one store, who follows them and who publishes to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

import httptools
import httpx
import trio

PAUSE_S: Final = 0.02
"""Between two tries of a client, so that those that wait leave the processor to the others."""

_URL: Final = re.compile(r"http://[\d.]+:\d+")
_RAW_INDEX: Final = re.compile(rb'"rawIndex":(\d+)')


class Server:
    """A server process on a free port."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "taskcast_trio", "-p", "0", "--log-level", "error", *options],
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("TASKCAST_")},
        )
        self.url = ""

    def wait_until_up(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := _URL.search(line):
                self.url = found[0]
            if "/docs" in line:
                return
        raise AssertionError("it has ended")

    def drain(self) -> int:
        """End it by SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def fleet(number: int, *options: str) -> Iterator[list[Server]]:
    """So many of them, started at the same time; all are killed at the end."""
    servers: list[Server] = []
    try:
        servers += [Server(*options) for _ in range(number)]
        for server in servers:
            server.wait_until_up()
        yield servers
    finally:
        for server in servers:
            server.close()


class Follower:
    """Follows a task as a browser does: comes back after every loss, with the last id it has."""

    def __init__(self, urls: Sequence[str], task: str, *, first: int = 0) -> None:
        """``first`` is at which of the ``urls`` it begins; each time it comes back it is at the
        next. They may change meanwhile.
        """
        self.indexes: list[int] = []
        self.gaps = 0
        self.done = False
        self.connections = 0
        self._urls = urls
        self._task = task
        self._turns = count(first)
        self._last_id: bytes | None = None
        self._ended = False
        self._text = b""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Return when the task's stream is done; ``started()`` with the first answer."""
        while not self.done:
            url = self._urls[next(self._turns) % len(self._urls)]
            try:
                await self._read(url, task_status.started)
            except OSError:
                pass
            except trio.BrokenResourceError:
                pass
            if not self.done:
                await trio.sleep(PAUSE_S)

    async def _read(self, url: str, opened: Callable[[], object]) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._ended, self._text = False, b""
        parser = httptools.HttpResponseParser(self)
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            resume = b"" if self._last_id is None else b"Last-Event-ID: %b\r\n" % self._last_id
            path = f"/tasks/{self._task}/events".encode()
            await stream.send_all(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path, resume))
            while not self._ended and (data := await stream.receive_some(1 << 16)):
                parser.feed_data(data)
                if parser.get_status_code() != 200:
                    return  # it drains, or Redis is away
                if not self.connections:
                    opened()
                self.connections += 1

    def on_body(self, data: bytes) -> None:
        *blocks, self._text = (self._text + data).split(b"\n\n")
        for block in blocks:
            if block.startswith(b"event: taskcast.event\n"):
                found = _RAW_INDEX.search(block)
                assert found is not None
                self.indexes.append(int(found[1]))
                self._last_id = block.rpartition(b"\nid: ")[2]
            elif block.startswith(b"event: taskcast.gap\n"):
                self.gaps += 1
            elif block.startswith(b"event: taskcast.done\n"):
                self.done = self._ended = True

    def on_message_complete(self) -> None:
        self._ended = True


class Crowd:
    """Followers of one task, spread evenly over the servers."""

    def __init__(self, urls: Sequence[str], task: str, number: int) -> None:
        self.followers = [Follower(urls, task, first=n) for n in range(number)]

    async def start(self, nursery: trio.Nursery) -> None:
        """Return when all of them follow."""
        async with trio.open_nursery() as starting:
            for follower in self.followers:
                starting.start_soon(nursery.start, follower.run)

    async def seen(self, number: int) -> None:
        """Wait until each has so many events."""
        while any(len(follower.indexes) < number for follower in self.followers):  # noqa: ASYNC110
            await trio.sleep(PAUSE_S)

    def assert_saw_all(self, number: int) -> None:
        """Each event once, in the order of the log, and nobody was told of a gap."""
        for follower in self.followers:
            assert follower.done
            assert follower.indexes == list(range(number))
            assert follower.gaps == 0


class Publisher:
    """Sends batches, each to the next server; what gets no 201 is sent again under its key."""

    def __init__(self, urls: Sequence[str], task: str, name: str, *, size: int) -> None:
        self.sent: list[str] = []
        """What was acknowledged."""
        self.refused = 0
        self._urls = urls
        self._task = task
        self._name = name
        self._size = size
        self._turns = count(sum(map(ord, name)))
        self._numbers = count()

    async def run(self, until: Callable[[Publisher], bool]) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            while not until(self):
                number = next(self._numbers)
                texts = [f"{self._name}-{number}-{n}" for n in range(self._size)]
                await self._send(client, f"{self._name}-{number}", texts)
                self.sent += texts

    async def _send(self, client: httpx.AsyncClient, key: str, texts: list[str]) -> None:
        events = [{"type": "x", "level": "info", "data": text} for text in texts]
        while True:
            url = self._urls[next(self._turns) % len(self._urls)]
            try:
                answer = await client.post(
                    f"{url}/tasks/{self._task}/events",
                    json=events,
                    headers={"Idempotency-Key": key},
                )
            except httpx.TransportError:
                self.refused += 1  # no answer: stored, or not
            else:
                if answer.status_code == 201:
                    return
                assert answer.status_code == 503, answer.text
                self.refused += 1
            await trio.sleep(PAUSE_S)


async def patiently(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The answer, once it is no 503."""
    while (answer := await ask()).status_code == 503:  # noqa: ASYNC110
        await trio.sleep(PAUSE_S)
    return answer


async def new_task(url: str, **fields: Any) -> str:
    """A task that runs."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        task: str = (await client.post("/tasks", json=fields)).json()["id"]
        assert (await client.patch(f"/tasks/{task}/status", json={"status": "running"})).is_success
    return task


async def complete(url: str, task: str) -> int:
    """Complete the task; how many events its log then has."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        done = {"status": "completed"}
        answer = await patiently(lambda: client.patch(f"/tasks/{task}/status", json=done))
        assert answer.is_success, answer.text
        last = await patiently(lambda: client.get(f"/tasks/{task}/events/history"))
    events = last.json()
    assert [event["index"] for event in events] == list(range(len(events)))
    return len(events)


async def stored(url: str, task: str) -> list[str]:
    """What was published, in the order of the log."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        answer = await patiently(lambda: client.get(f"/tasks/{task}/events/history"))
    return [event["data"] for event in answer.json() if event["type"] == "x"]
