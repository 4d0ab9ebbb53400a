"""No packet, no pace and no peer of one connection harms another one or outstays its time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from taskcast_trio.server.connection import GuardStats, ThrottledLog, contained
from taskcast_trio.server.guard import GuardedConnection

Serving = Callable[..., AbstractAsyncContextManager[Any]]
PATIENCE_S = 60.0


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def handshake(*extra: bytes, connection: bytes = b"Upgrade") -> bytes:
    lines = [
        b"GET /ws HTTP/1.1",
        b"Host: x",
        b"Upgrade: websocket",
        b"Connection: " + connection,
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
        *extra,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def upgrade_h2c(settings: bytes) -> bytes:
    return (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: " + settings + b"\r\n\r\n"
    )


KILLERS = {
    "ws-connection-not-ascii": handshake(connection=b"Upgrade, \xff"),
    "ws-protocol-not-ascii": handshake(b"Sec-WebSocket-Protocol: \xe9"),
    "ws-extensions-not-ascii": handshake(b"Sec-WebSocket-Extensions: \xff"),
    "ws-bytes-behind-handshake": handshake() + b"\x00",
    "ws-frame-behind-handshake": handshake() + b"\x81\x85\x00\x00\x00\x00hello",
    "ws-bad-version": handshake(b"Sec-WebSocket-Version: 99"),
    "h2c-bad-base64": upgrade_h2c(b"%%%"),
    "h2c-short-settings": upgrade_h2c(b"AAA"),
    "h2c-empty-settings": upgrade_h2c(b""),
    "h2-preface-in-clear": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "host-not-utf8": b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    "header-not-ascii": b"GET / HTTP/1.1\r\nHost: x\r\nX-\xff: \xff\r\n\r\n",
    "not-http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "nul-bytes": bytes(512),
    "empty-path": b"GET ?x HTTP/1.1\r\nHost: x\r\n\r\n",
    "open-bracket": b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\nabc",
    "bad-chunk": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bad-chunk-while-answering": (
        b"POST /big HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
    "two-lengths": (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
    ),
    "huge-head": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
    "cut-body": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
    "crash-in-app": b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n",
    "crash-behind-pipelined": b"GET /crash-late HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n",
}


@pytest.mark.parametrize("packet", KILLERS.values(), ids=KILLERS.keys())
async def test_no_single_packet_ends_the_server(serving: Serving, packet: bytes) -> None:
    """T31: after each of them the bystander and the next connection are served."""
    async with serving(close_grace_s=0.05) as server:
        bystander = await server.connect()
        assert await bystander.get() == b"ok"
        attacker = await server.connect()
        await attacker.send(packet)
        await attacker.finish()
        await attacker.read_to_end()
        assert await bystander.get() == b"ok"
        await server.assert_healthy()
        await server.until(lambda: server.app.live == 0)


@pytest.mark.parametrize(
    "name", ["ws-bytes-behind-handshake", "ws-extensions-not-ascii", "h2c-bad-base64", "nul-bytes"]
)
async def test_no_single_packet_ends_the_server_over_tls(serving: Serving, name: str) -> None:
    """T31 over TLS."""
    async with serving(tls=True) as server:
        attacker = await server.connect()
        await attacker.send(KILLERS[name])
        await attacker.finish()
        await attacker.read_to_end()
        await server.assert_healthy()


async def test_plain_http_to_a_tls_port_ends_only_itself(serving: Serving) -> None:
    async with serving(tls=True) as server:
        plain = await server.connect(plain=True)
        await plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await plain.read_to_end()
        await server.assert_healthy()
        assert server.stats.guarded_errors_total == 0


async def test_an_application_that_only_sends_never_holds_up_the_server(serving: Serving) -> None:
    """The body of a HEAD answer is dropped without a checkpoint by Hypercorn."""
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(b"HEAD /big HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.read_until(b"\r\n\r\n")
        await server.assert_healthy()
        peer.reset()
        await server.until(lambda: server.app.live == 0)


async def test_a_refused_body_stops_the_answer_that_was_due(serving: Serving) -> None:
    """After the parser's 400 the handler's own answer goes nowhere: it must not spin until cut."""
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(KILLERS["bad-chunk-while-answering"])
        assert (await peer.read_to_end()).startswith(b"HTTP/1.1 400 ")
        await peer.stream.aclose()
        await server.until(lambda: server.app.live == 0)
        assert server.app.chunks < 2


async def test_an_exception_of_one_connection_is_counted_and_logged_without_its_text(
    serving: Serving,
) -> None:
    """Whatever a protocol raises, groups included, ends that connection alone."""
    bad = [True]

    class Failing(GuardedConnection):
        async def run(self) -> None:
            if bad.pop() if bad else False:
                await trio.lowlevel.checkpoint()
                raise ExceptionGroup("nested", [ExceptionGroup("", [KeyError("secret payload")])])
            await super().run()

    async with serving(connection=Failing) as server:
        first = await server.connect()
        await server.until(lambda: server.stats.guarded_errors_total == 1)
        await server.assert_healthy()
        await first.stream.aclose()
    (event, fields), *_ = server.logs
    assert event == "connection failed"
    assert fields["error"] == ["KeyError"]
    assert "secret" not in str(server.logs)


async def test_a_crash_of_the_application_is_a_500_and_never_quotes_the_payload(
    serving: Serving,
) -> None:
    async with serving() as server:
        peer = await server.connect()
        await peer.send(b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.read_answer(500)
        late = await server.connect()
        await late.send(b"GET /crash-late HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not (await late.read_to_end()).endswith(b"0\r\n\r\n")
        assert server.stats.app_errors_total == 2
    assert "secret" not in str(server.logs)


def test_contained_lets_cancellation_and_interrupts_through() -> None:
    seen: list[BaseException] = []
    with pytest.RaisesGroup(KeyboardInterrupt), contained(seen.append):
        raise BaseExceptionGroup("", [KeyboardInterrupt(), ValueError(), OSError()])
    assert isinstance(seen[0], ExceptionGroup)
    with pytest.raises(KeyboardInterrupt), contained(seen.append):
        raise KeyboardInterrupt


async def test_a_flood_of_errors_is_one_log_line_per_interval(autojump_clock: Any) -> None:
    lines: list[dict[str, object]] = []

    class Logger:
        def error(self, event: str, **fields: object) -> None:
            lines.append({"event": event, **fields})

    log = ThrottledLog(Logger(), interval_s=1.0)
    for _ in range(100):
        log.error("a")
    log.error("b")
    await trio.sleep(1)
    log.error("a")
    assert [(line["event"], line["left_out"]) for line in lines] == [("a", 0), ("b", 0), ("a", 99)]


# HTTP/2


async def test_cleartext_http2_is_never_spoken(serving: Serving) -> None:
    """Neither by upgrade (answered as HTTP/1.1) nor by prior knowledge (505)."""
    async with serving() as server:
        peer = await server.connect()
        await peer.send(upgrade_h2c(b"AAMAAABkAAQAAP__"))
        assert await peer.read_answer(200) == b"ok"
        prior = await server.connect()
        await prior.send(KILLERS["h2-preface-in-clear"])
        assert (await prior.read_to_end()).startswith(b"HTTP/1.1 505 ")


@asynccontextmanager
async def h2_peer(server: Any) -> AsyncIterator[tuple[Any, h2.connection.H2Connection]]:
    peer = await server.connect()
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    client.initiate_connection()
    await peer.send(client.data_to_send())
    yield peer, client
    await peer.stream.aclose()


async def h2_events(peer: Any, client: h2.connection.H2Connection, wanted: type) -> Any:
    with trio.fail_after(PATIENCE_S):
        while True:
            for event in client.receive_data(await peer.stream.receive_some(65536)):
                if isinstance(event, wanted):
                    return event


H2_HEADERS = {b":method": b"GET", b":path": b"/", b":scheme": b"https", b":authority": b"x"}


@pytest.mark.parametrize(
    "fields",
    [
        {**H2_HEADERS, b":path": b"/\xff"},
        {**H2_HEADERS, b":method": b"G\xc9T"},
        {b":method": b"CONNECT", b":authority": b"x:1"},
    ],
    ids=["path-not-ascii", "method-not-ascii", "connect-without-path"],
)
async def test_a_malformed_http2_request_is_reset_and_its_connection_lives(
    serving: Serving, fields: dict[bytes, bytes]
) -> None:
    """T31 for HTTP/2 over TLS."""
    async with (
        serving(tls=True, http2=True, alpn="h2") as server,
        h2_peer(server) as (peer, client),
    ):
        client.send_headers(1, list(fields.items()), end_stream=True)
        await peer.send(client.data_to_send())
        reset = await h2_events(peer, client, h2.events.StreamReset)
        assert reset.stream_id == 1
        client.send_headers(3, list(H2_HEADERS.items()), end_stream=True)
        await peer.send(client.data_to_send())
        assert (await h2_events(peer, client, h2.events.DataReceived)).data == b"ok"
        assert server.stats.guarded_errors_total == 0


async def test_http2_is_not_offered_unless_asked_for(serving: Serving) -> None:
    async with serving(tls=True, alpn="h2") as server:
        peer = await server.connect()
        assert peer.stream.selected_alpn_protocol() is None
        assert await peer.get() == b"ok"


# WebSocket


async def test_websocket_extensions_are_never_negotiated_and_messages_pass(
    serving: Serving,
) -> None:
    """Without permessage-deflate a small frame cannot inflate into a large message."""
    async with serving() as server:
        peer = await server.connect()
        client = WSConnection(ConnectionType.CLIENT)
        offer = Request(host="x", target="/ws", extensions=[PerMessageDeflate()])
        await peer.send(client.send(offer))
        client.receive_data(await peer.read_until(b"\r\n\r\n"))
        (accepted,) = client.events()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.extensions == []
        await peer.send(client.send(TextMessage(data="hello")))
        await peer.read_until(b"hello")
        await peer.stream.aclose()
        await server.until(lambda: server.app.live == 0)


async def test_a_websocket_handler_that_never_receives_is_reaped(serving: Serving) -> None:
    """H5: its inbox is full, so that nobody can tell it of the close."""
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        client = WSConnection(ConnectionType.CLIENT)
        await peer.send(client.send(Request(host="x", target="/deaf")))
        client.receive_data(await peer.read_until(b"\r\n\r\n"))
        list(client.events())
        await peer.send(b"".join(client.send(TextMessage(data="x")) for _ in range(50)))
        await peer.stream.aclose()
        await server.until(lambda: server.stats.connections_open == 0)
        assert server.app.live == 0


# Leaks and pace


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_pipelined_byte_and_a_disconnect_leak_nothing(serving: Serving, how: str) -> None:
    """T33, on streams that say nothing more: the disconnect itself must be noticed."""
    async with serving() as server:
        await server.assert_healthy()
        await server.until(lambda: server.stats.connections_open == 0)
        baseline = tasks_living()
        peers = [await server.connect() for _ in range(50)]
        for peer in peers:
            await peer.send(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\nG")
        for peer in peers:
            await peer.read_until(b"hello")
        assert server.app.live == 50
        for peer in peers:
            if how == "RST":
                peer.reset()
            else:
                await peer.stream.aclose()
        await server.until(lambda: server.stats.connections_open == 0)
        assert server.app.live == 0
        await server.until(lambda: tasks_living() == baseline)


async def test_a_handler_that_ignores_the_disconnect_is_cancelled_after_the_grace(
    serving: Serving,
) -> None:
    async with serving(close_grace_s=0.05) as server:
        peer = await server.connect()
        await peer.send(b"GET /deaf HTTP/1.1\r\nHost: x\r\n\r\nG")
        await peer.read_until(b"\r\n\r\n1\r\nx\r\n")
        peer.reset()
        await server.until(lambda: server.stats.connections_open == 0)
        assert server.app.live == 0


async def test_pipelined_requests_are_answered_in_order(serving: Serving) -> None:
    """Reading ahead loses nothing, whether the second request comes early or in pieces."""
    async with serving() as server:
        peer = await server.connect()
        await peer.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nPOST /echo HTTP/1.1\r\nHost")
        await server.until(lambda: server.app.live == 1)
        body = bytes(range(256)) * 1024
        async with trio.open_nursery() as nursery:
            rest = b": x\r\nContent-Length: %d\r\n\r\n" % len(body)
            nursery.start_soon(peer.send, rest + body)
            server.app.release.set()
            assert await peer.read_answer() == b"slow"
            assert await peer.read_answer() == body
        assert await peer.get() == b"ok"


async def test_stalled_readers_are_cut_and_a_healthy_one_is_not(serving: Serving) -> None:
    """T34: each stalled connection ends after the write timeout, others never wait for it."""
    async with serving(write_timeout_s=1.0) as server:
        stalled = [await server.connect(receive_buffer=4096) for _ in range(5)]
        for peer in stalled:
            await peer.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.until(lambda: server.app.live == 5)
        healthy = await server.connect()
        served = 0
        with trio.fail_after(PATIENCE_S):
            while server.stats.write_timeouts_total < 5:
                assert await healthy.get() == b"ok"
                served += 1
        assert served > 5
        await server.until(lambda: server.app.live == 0)
        assert await healthy.get() == b"ok"
        await server.until(lambda: server.stats.connections_open == 1)


async def test_a_slow_but_steady_reader_is_not_cut(serving: Serving) -> None:
    """The deadline is per chunk of 64 KiB: a large message may take longer than one deadline."""
    async with serving(write_timeout_s=1.5) as server:
        peer = await server.connect(receive_buffer=4096)
        await peer.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        start, taken = trio.current_time(), 0
        with trio.fail_after(PATIENCE_S):
            while trio.current_time() - start < 3:
                taken += len(await peer.stream.receive_some(4096))
        assert server.stats.write_timeouts_total == 0
        assert server.app.live == 1
        peer.reset()


async def test_a_request_head_that_does_not_end_is_cut(serving: Serving) -> None:
    """Slowloris: first, later or pipelined head, silent or trickling."""
    async with serving(header_timeout_s=1.0, keep_alive_timeout_s=60) as server:
        silent = await server.connect()
        trickling = await server.connect()
        used = await server.connect()
        assert await used.get() == b"ok"
        await used.send(b"GET / HT")
        early = await server.connect()
        await early.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        await server.until(lambda: server.app.live == 1)
        server.app.release.set()
        assert await early.read_answer() == b"slow"
        start = trio.current_time()

        async def trickle() -> None:
            await trickling.send(b"GET / HTTP/1.1\r\n")
            try:
                while True:
                    await trickling.stream.send_all(b"X: y\r\n")
                    await trio.testing.wait_all_tasks_blocked(0.02)
            except trio.BrokenResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            for peer in (silent, used, early, trickling):
                assert await peer.read_to_end() == b""
        assert trio.current_time() - start < 30
        await server.until(lambda: server.stats.connections_open == 0)


async def test_the_head_timeout_spares_bodies_streams_and_idle_connections(
    serving: Serving,
) -> None:
    async with serving(header_timeout_s=0.5, keep_alive_timeout_s=60) as server:
        idle, stream, upload = [await server.connect() for _ in range(3)]
        await stream.send(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n")
        await upload.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        assert await idle.get() == b"ok"
        witness = await server.connect()
        assert await witness.read_to_end() == b""  # a whole head timeout has passed
        await upload.send(b"cd")
        assert await upload.read_answer() == b"abcd"
        assert await idle.get() == b"ok"
        await server.until(lambda: server.app.live == 1)


async def test_an_idle_connection_is_closed_after_the_keep_alive_timeout(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose request is being answered is not idle, however long that takes."""
    monkeypatch.setattr("taskcast_trio.server.serve.IDLE_CHECK_S", 0.01)
    async with serving(keep_alive_timeout_s=0.5) as server:
        busy = await server.connect()
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.until(lambda: server.app.live == 1)
        for _ in range(3):  # one after the other: each has its own time
            peer = await server.connect()
            assert await peer.get() == b"ok"
            assert await peer.read_to_end() == b""
        server.app.release.set()
        assert await busy.read_answer() == b"slow"


async def test_an_early_answer_survives_the_body_that_follows_it(serving: Serving) -> None:
    """RFC 9112 9.6: a close with unread input would be a reset, and the 413 would be lost."""
    async with serving() as server:
        peer = await server.connect()
        size = 4 * 1024 * 1024
        await peer.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        await peer.send(bytes(size))
        assert await peer.read_answer(413) == b"too large"
        await peer.stream.aclose()
        await server.until(lambda: server.stats.connections_open == 0)


def test_stats_start_at_zero() -> None:
    assert GuardStats() == GuardStats(0, 0, 0, 0, 0, 0)
