"""A server in a thread: beside programs that do not run on Trio."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from taskcast_trio import Background, background, open_runtime
from taskcast_trio.config import Auth, Config, ConfigError, Server
from taskcast_trio.config.schema import Redis
from taskcast_trio.config.secret import SecretUrl
from taskcast_trio.core.access import Caller
from taskcast_trio.server import background as module
from taskcast_trio.server.auth.custom import AuthRequest
from taskcast_trio.server.serve import ServeOptions, StartupFailedError, serve
from taskcast_trio.storage.memory import MemoryBroadcast
from taskcast_trio.storage.records import StoreRefused

from ..storage.redis.server import new_prefix, redis_url

FREE = Config(port=0)


def get(url: str, path: str) -> Any:
    return httpx.get(url + path, trust_env=False).raise_for_status().json()


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "taskcast-trio"]


def test_it_serves_while_the_context_is_open_and_on_the_port_that_it_says() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with background() as url:
        assert get(url, "/health")["ok"]
        assert not url.endswith(":0")
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert ours() == []
    with pytest.raises(httpx.ConnectError):
        get(url, "/health")


def test_several_live_side_by_side_and_share_nothing() -> None:
    with background() as one, background() as other:
        httpx.post(f"{one}/tasks", json={"id": "t"}).raise_for_status()
        assert [t["id"] for t in get(one, "/tasks")["tasks"]] == ["t"]
        assert get(other, "/tasks")["tasks"] == []


def test_without_a_with_it_is_started_and_stopped_once() -> None:
    server = Background()
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.url
    url = server.start()
    assert server.url == url
    with pytest.raises(RuntimeError, match="started before"):
        server.start()
    server.stop()
    server.stop()
    assert ours() == []


def test_a_port_that_is_taken_is_said_where_it_was_started() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError) as caught:
            background(Config(port=port)).start()
    assert caught.value.__notes__ == [f"listening on 127.0.0.1, port {port}"]
    assert ours() == []


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        (Config(port=0, storage="redis", processes=2), ConfigError, "processes"),
        (Config(port=0, storage="redis"), StoreRefused, "redis.url"),
        (Config(port=0, storage="sqlit"), StoreRefused, "sqlite"),  # type: ignore[arg-type]
        (Config(port=0, storage="sqlite", db_path="/nowhere/at/all.db"), StoreRefused, "nowhere"),
        (Config(port=0, auth=Auth(mode="custom", custom="no_such:thing")), ConfigError, "no_such"),
    ],
)
def test_what_keeps_it_from_starting_is_raised_where_it_was_started(
    config: Config, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        background(config).start()
    assert ours() == []


def test_streams_end_cleanly_when_it_is_stopped() -> None:
    read: list[str] = []
    opened = threading.Event()

    def follow(url: str) -> None:
        with httpx.stream("GET", f"{url}/tasks/t/events", timeout=60) as answer:
            opened.set()
            read.extend(answer.iter_lines())  # raises where the stream is cut

    with background() as url:
        httpx.post(f"{url}/tasks", json={"id": "t"}).raise_for_status()
        follower = threading.Thread(target=follow, args=(url,))
        follower.start()
        assert opened.wait(60)
    follower.join(60)
    assert any(line.startswith("retry:") for line in read)


def test_a_peer_that_hangs_holds_up_the_end_for_the_grace_period_only() -> None:
    config = Config(port=0, server=Server(grace_seconds=0.5))
    with background(config) as url, socket.socket() as peer:
        peer.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        peer.sendall(b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        get(url, "/health")  # it has been read
        start = time.monotonic()
    assert time.monotonic() - start < 5


def test_an_end_that_hangs_is_cut_and_a_thread_that_does_not_end_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.0)
    released = threading.Event()

    async def hang(*_: Any, **__: Any) -> None:
        await trio.to_thread.run_sync(released.wait)

    server = background(Config(port=0, server=Server(grace_seconds=0.01)))
    server.start()
    monkeypatch.setattr(module, "CUT_S", 0.01)
    assert server._token is not None
    trio.from_thread.run_sync(
        lambda: trio.lowlevel.spawn_system_task(hang), trio_token=server._token
    )
    try:
        with pytest.raises(TimeoutError, match="left behind"):
            # A system task is waited for by the run, and cancellation does not reach its thread.
            server.stop()
    finally:
        released.set()
    for thread in ours():
        thread.join(10)
    assert ours() == []


def test_a_crash_is_raised_on_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = threading.Event()

    async def run(self: Any, sink: Any, *, task_status: Any) -> None:
        task_status.started()
        await trio.to_thread.run_sync(crash.wait)
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryBroadcast, "run", run)
    server = background()
    server.start()
    crash.set()
    ours()[0].join(10)
    with pytest.raises(ZeroDivisionError):
        server.stop()


def test_whoever_is_interrupted_while_it_starts_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: Any, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    server = background()
    monkeypatch.setattr(server._ready, "wait", interrupted.__get__(server._ready))
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert ours() == []


def test_one_that_does_not_start_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_S", 0.01)
    monkeypatch.setattr(module, "open_runtime", _never_open)
    with pytest.raises(TimeoutError, match="has not started"):
        background().start()
    assert ours() == []


class _never_open:  # noqa: N801
    def __init__(self, config: Config) -> None:
        pass

    async def __aenter__(self) -> None:
        await trio.sleep_forever()

    async def __aexit__(self, *_: object) -> None:
        pass


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_ends_nothing_of_its_parent() -> None:
    with background() as url:
        server = Background()
        server.start()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                server.stop()
                code = 0 if get(url, "/health")["ok"] else 1
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert get(server.url, "/health")["ok"]
        server.stop()


def test_callers_are_found_by_a_function_of_the_program() -> None:
    async def authenticate(request: AuthRequest) -> Caller | None:
        await trio.lowlevel.checkpoint()
        return Caller(scopes=frozenset({"*"})) if request.header("x-user") else None

    config = Config(port=0, auth=Auth(mode="custom"))
    with background(config, authenticate=authenticate) as url:
        assert httpx.get(f"{url}/tasks").status_code == 401
        assert httpx.get(f"{url}/tasks", headers={"X-User": "me"}).status_code == 200


def test_what_sqlite_was_given_is_there_again(tmp_path: Path) -> None:
    config = Config(port=0, storage="sqlite", db_path=str(tmp_path / "t.db"))
    for expected in (201, 409):
        with background(config) as url:
            assert httpx.post(f"{url}/tasks", json={"id": "t"}).status_code == expected


def test_with_redis_beside_asyncio() -> None:
    """The drivers run on an asyncio loop within Trio, in the thread: the program has its own."""
    redis = Redis(url=SecretUrl(redis_url()), prefix=new_prefix())
    config = Config(port=0, storage="redis", redis=redis)

    async def main() -> int:
        server = background(config)
        url = await asyncio.to_thread(server.start)
        async with httpx.AsyncClient(base_url=url) as client:
            await client.post("/tasks", json={"id": "t"})
            answer = await client.patch("/tasks/t/status", json={"status": "running"})
        await asyncio.to_thread(server.stop)
        return answer.status_code

    assert asyncio.run(main()) == 200


@pytest.mark.parametrize("raises", [True, False])
async def test_around_an_application_it_is_up_for_its_lifespan(raises: bool) -> None:
    server = Background()

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        if not raises and scope["type"] == "lifespan":
            return
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": server.url.encode()})

    drain = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, httpx.AsyncClient() as client:
            serving = partial(serve, server.around(bare), ServeOptions(port=0), drain=drain)
            (url,) = await nursery.start(serving)
            assert (await client.get((await client.get(url)).text + "/health")).json()["ok"]
            drain.set()
    assert ours() == []


async def test_an_application_around_which_it_cannot_start_does_not_start() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        app = background(Config(port=port)).around(bare)
        with pytest.raises(StartupFailedError, match=f"listening on 127.0.0.1, port {port}"):
            await serve(app, ServeOptions(port=0), drain=trio.Event())


async def test_beside_trio(tmp_path: Path) -> None:
    async with open_runtime(FREE):
        server = background()
        url = await trio.to_thread.run_sync(server.start)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/health")).status_code == 200
        await trio.to_thread.run_sync(server.stop)


def test_a_program_that_does_not_stop_it_ends_all_the_same() -> None:
    program = (
        "import httpx, taskcast_trio\n"
        "server = taskcast_trio.Background()\n"
        "print(httpx.get(server.start() + '/health').status_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "200\n", "")
