"""The server starts whole or not at all, bounds what it takes in, and ends in order and in time."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from taskcast_trio.server import serve as serve_module
from taskcast_trio.server.guard import GuardedConnection
from taskcast_trio.server.serve import (
    ServeOptions,
    StartupFailedError,
    open_sockets,
    run_until_signal,
    serve,
)

Serving = Callable[..., AbstractAsyncContextManager[Any]]
PATIENCE_S = 60.0


# Drain


async def test_drain_ends_streams_cleanly_answers_requests_and_cuts_the_stalled(
    serving: Serving,
) -> None:
    """T49: 20 streams get their last chunk, the request in flight its answer, in the grace."""
    async with serving(grace_s=4.0) as server:
        streams = [await server.connect() for _ in range(20)]
        for peer in streams:
            await peer.send(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n")
            await peer.read_until(b"hello")
        slow = await server.connect()
        await slow.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        stalled = await server.connect(receive_buffer=4096)
        await stalled.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        idle = await server.connect()
        assert await idle.get() == b"ok"
        await server.until(lambda: server.app.live == 22)

        begun = trio.current_time()
        server.drain.set()
        assert await idle.read_to_end() == b""
        with pytest.raises(OSError):
            await server.connect()
        server.app.release.set()
        assert await slow.read_answer() == b"slow"
        for peer in streams:
            assert (await peer.read_to_end()).endswith(b"bye\n\n\r\n0\r\n\r\n")
        await server.finished.wait()
        assert trio.current_time() - begun < 4.0
        assert server.app.live == 0


async def test_drain_without_stalled_peers_does_not_wait_for_the_grace(serving: Serving) -> None:
    async with serving(grace_s=60.0) as server:
        peer = await server.connect()
        await peer.send(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.read_until(b"hello")
        half_head = await server.connect()
        await half_head.send(b"GET / HT")
        await server.until(lambda: server.stats.connections_open == 2)
        begun = trio.current_time()
        server.drain.set()
        with trio.fail_after(PATIENCE_S):
            await server.finished.wait()
        assert trio.current_time() - begun < 30
        # The peer has not even read its last chunk yet.
        assert (await peer.read_to_end()).endswith(b"0\r\n\r\n")


async def test_drain_over_tls_closes_idle_connections_and_silent_handshakes(
    serving: Serving,
) -> None:
    async with serving(tls=True, grace_s=60.0) as server:
        idle = await server.connect()
        assert await idle.get() == b"ok"
        await server.connect(plain=True)
        await server.until(lambda: server.stats.connections_open == 2)
        server.drain.set()
        assert await idle.read_to_end() == b""
        with trio.fail_after(PATIENCE_S):
            await server.finished.wait()


async def test_cancelling_serve_cuts_even_a_shielded_write(serving: Serving) -> None:
    """A second signal does not wait for peers that do not read."""
    with trio.CancelScope() as scope:
        async with serving(write_timeout_s=60.0) as server:
            stalled = await server.connect(receive_buffer=4096)
            await stalled.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            await server.until(lambda: server.app.live == 1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            begun = trio.current_time()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert trio.current_time() - begun < 30
    assert server.app.live == 0


# Limits


async def test_connections_over_the_cap_are_closed_at_once(serving: Serving) -> None:
    async with serving(max_connections=2) as server:
        first, second = [await server.connect() for _ in range(2)]
        assert await first.get() == b"ok"
        assert await second.get() == b"ok"
        third = await server.connect()
        assert await third.read_to_end() == b""
        assert server.stats.refused_total == 1
        await first.stream.aclose()
        await server.until(lambda: server.stats.connections_open == 1)
        await server.assert_healthy()
        assert server.stats.accepted_total == 3


def test_the_cap_leaves_files_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert serve_module._connection_cap(10_000) == 192
    assert serve_module._connection_cap(100) == 100
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert serve_module._connection_cap(10_000) == 10_000


async def test_running_out_of_files_is_survived(serving: Serving, monkeypatch: Any) -> None:
    """H14: accepting goes on when files are free again, and the log is not flooded."""
    accept = trio.SocketListener.accept
    failures = iter([errno.EMFILE, errno.ENFILE])

    async def failing(self: trio.SocketListener) -> trio.SocketStream:
        stream = await accept(self)
        if (number := next(failures, None)) is not None:
            stream.socket.close()
            raise OSError(number, os.strerror(number))
        return stream

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with serving() as server:
        for _ in range(2):
            peer = await server.connect()
            assert await peer.read_to_end() == b""
        await server.assert_healthy()
    assert [event for event, _ in server.logs] == ["cannot accept connections"]


async def test_vanished_peers_are_noticed_by_the_kernel(serving: Serving) -> None:
    """H4: accepted sockets inherit TCP_USER_TIMEOUT and keep-alive, and do not delay."""
    seen: list[tuple[int, ...]] = []

    def inspecting(stream: Any, context: Any) -> Any:
        wanted = (
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        )
        seen.append(tuple(stream.getsockopt(*option) for option in wanted))
        return GuardedConnection(stream, context)

    async with serving(connection=inspecting) as server:
        await server.assert_healthy()
    assert seen == [(30_000, 1, 1)]


# Start


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    await trio.lowlevel.checkpoint()
    raise RuntimeError("no lifespan here")


async def test_a_taken_port_is_a_plain_os_error() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    options = ServeOptions(port=taken.getsockname()[1])
    with taken, trio.fail_after(PATIENCE_S), pytest.raises(OSError) as caught:
        await serve(nothing, options, drain=trio.Event())
    assert caught.value.errno == errno.EADDRINUSE


async def test_an_unknown_host_is_an_os_error() -> None:
    with trio.fail_after(PATIENCE_S), pytest.raises(OSError):
        await serve(nothing, ServeOptions(host="256.256.256.256"), drain=trio.Event())


async def test_a_missing_certificate_is_an_os_error(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.pem")
    options = ServeOptions(port=0, certfile=absent, keyfile=absent)
    with pytest.raises(OSError):
        await serve(nothing, options, drain=trio.Event())


async def test_all_addresses_of_a_host_share_one_free_port() -> None:
    sockets = await open_sockets(ServeOptions(host="", port=0))
    try:
        assert len({listening.getsockname()[1] for listening in sockets}) == 1
    finally:
        for listening in sockets:
            listening.close()


@pytest.mark.parametrize("fields", [{"certfile": "c"}, {"keyfile": "k"}, {"http2": True}])
def test_half_a_tls_configuration_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="certfile and keyfile"):
        ServeOptions(**fields)


# Lifespan


async def test_shutdown_of_the_application_comes_after_its_last_request(serving: Serving) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.read_until(b"hello")
    assert server.app.lifespan == ["startup live=0", "shutdown live=0"]


async def test_an_application_that_refuses_to_start_is_not_served() -> None:
    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with trio.fail_after(PATIENCE_S), pytest.raises(StartupFailedError, match="no database"):
        await serve(refusing, ServeOptions(port=0), drain=trio.Event())


async def test_a_crash_in_the_lifespan_task_ends_the_server(serving: Serving) -> None:
    """H17, T50: never a server that answers while its background is dead."""
    crash = trio.Event()

    async def crashing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await crash.wait()
            raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serving(app=crashing) as server:
            await server.connect()
            crash.set()
            with trio.fail_after(PATIENCE_S):
                await trio.sleep_forever()


async def test_an_application_without_lifespan_is_served(serving: Serving) -> None:
    async def plain(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving(app=plain) as server:
        await server.assert_healthy()


async def test_requests_see_the_state_of_the_lifespan(serving: Serving) -> None:
    async def stateful(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["answer"] = b"ok"
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = scope["state"]["answer"]
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with serving(app=stateful) as server:
        await server.assert_healthy()


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains_and_the_second_ends_the_wait(number: int) -> None:
    drain, ended = trio.Event(), trio.Event()

    async def watch() -> None:
        await run_until_signal(drain)
        ended.set()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(os.getpid(), number)
            await drain.wait()
            assert not ended.is_set()
            os.kill(os.getpid(), number)
            await ended.wait()
