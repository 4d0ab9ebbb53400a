"""Connections that cannot hurt one another: Hypercorn's protocols behind our own guard.

Hypercorn 0.18 on Trio lets an exception of one connection end the server, shields writes without a
limit, keeps a paused connection for ever, speaks cleartext HTTP/2 and inflates WebSocket messages
without bound. Nothing is patched here: `GuardedConnection` takes the place of Hypercorn's
`TCPServer` and drives subclasses of its protocol classes.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

import h11
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState, TaskGroup
from hypercorn.utils import parse_socket_addr

from taskcast_trio.server.connection import ConnectionContext, SocketStream
from taskcast_trio.server.protocols import (
    AppTasks,
    GuardedH2Protocol,
    GuardedH11Protocol,
    ReadGate,
)

MAX_RECV: Final = 64 * 1024
WRITE_CHUNK: Final = 64 * 1024
READ_AHEAD: Final = 64 * 1024


class GuardedConnection:
    """A connection served by Hypercorn's protocols, bounded in time on every side.

    Reading: the TLS handshake, a request head and an idle wait each have a limit. While a request
    is being answered, pipelined input is read ahead up to 64 KiB, so that a disconnect is seen.
    Writing: chunks of at most 64 KiB are shielded from cancellation, as half a chunk would ruin the
    framing, but not for longer than `write_timeout_s`; then the connection is reset and its
    handlers are cancelled. Closing: handlers learn of it by `http.disconnect` and are cancelled
    after `close_grace_s`; for the same time unread input is discarded, so that an early answer is
    not lost to a reset (RFC 9112 9.6).

    `run` lets exceptions out; containing them is the server's part.
    """

    def __init__(
        self, stream: SocketStream, context: ConnectionContext, *, begun: bytes = b""
    ) -> None:
        """``begun`` has been read off the stream before."""
        self._stream = stream
        self._context = context
        self._limits = context.limits
        self._transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._protocol: GuardedH11Protocol | GuardedH2Protocol | None = None
        self._tasks: AppTasks | None = None
        self._scope = trio.CancelScope()
        self._read_scope = trio.CancelScope()
        self._send_lock = trio.Lock()
        self._ahead = bytearray(begun)
        self._idle = True
        self._closing = False
        # A new connection owes its first request head at once.
        self._head_begun = True
        self._wait_scope = trio.CancelScope(
            deadline=trio.current_time() + self._limits.header_timeout_s
        )

    async def run(self) -> None:
        """Serve until either side closes. Cancelling it cuts; the stream is closed in any case."""
        try:
            with self._scope:
                await self._run()
        finally:
            self._transport.socket.close()

    async def _run(self) -> None:
        if isinstance(self._stream, trio.SSLStream):
            try:
                with trio.fail_after(self._limits.handshake_timeout_s):
                    await self._stream.do_handshake()
            except (trio.BrokenResourceError, trio.TooSlowError):
                return
        try:
            client = self._transport.socket.getpeername()
            server = self._transport.socket.getsockname()
        except OSError:  # the peer has gone already
            return
        async with trio.open_nursery() as nursery:
            self._tasks = AppTasks(nursery, self._context, self._watch)
            protocol = self._make_protocol(self._tasks, client, server)
            self._protocol = protocol
            await protocol.initiate()
            await self._read(protocol)
            nursery.cancel_scope.deadline = trio.current_time() + self._limits.close_grace_s
            await self._close(protocol)

    def _make_protocol(
        self, tasks: AppTasks, client: Any, server: Any
    ) -> GuardedH11Protocol | GuardedH2Protocol:
        family = self._transport.socket.family
        tls = isinstance(self._stream, trio.SSLStream)
        alpn = None
        if isinstance(self._stream, trio.SSLStream):
            alpn = self._stream.selected_alpn_protocol()
        kind = GuardedH2Protocol if alpn == "h2" else GuardedH11Protocol
        protocol = kind(
            cast(Any, self._context.app),
            self._context.config,
            cast(Any, self._context.worker),
            cast(TaskGroup, tasks),
            ConnectionState(self._context.state),
            tls,
            parse_socket_addr(family, client),
            parse_socket_addr(family, server),
            self._on_event,
        )
        if isinstance(protocol, GuardedH11Protocol):
            protocol.can_read = cast(Any, ReadGate(self._watch))
        return protocol

    # Ending

    def begin_drain(self) -> None:
        if self._protocol is None:
            self._scope.cancel()
        elif self._idle:
            self._end()

    def end_if_idle(self, now: float) -> float:
        return math.inf  # Hypercorn's protocol has a timeout for it

    def abort(self) -> None:
        self._scope.cancel()
        raw = self._transport.socket
        if raw.fileno() != -1:
            # Reset: unsent data of a peer that does not read would stay in the kernel for minutes.
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()

    def _end(self) -> None:
        """Stop reading and writing; the reading task then takes leave of the peer."""
        self._closing = True
        self._read_scope.cancel()

    async def _close(self, protocol: GuardedH11Protocol | GuardedH2Protocol) -> None:
        """Take leave of the peer and the handlers. The caller bounds the time."""
        unread = isinstance(protocol, GuardedH11Protocol) and protocol.connection.their_state in (
            h11.SEND_BODY,
            h11.ERROR,
        )
        if not self._closing:  # the peer ended it: handlers may still answer
            await protocol.handle(Closed())
            return
        async with self._send_lock:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if unread or self._stream is self._transport:
                    await self._transport.send_eof()
                else:
                    await self._stream.aclose()
        await protocol.handle(Closed())
        if unread:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await self._transport.receive_some(MAX_RECV):
                    pass

    # Reading

    async def _read(self, protocol: GuardedH11Protocol | GuardedH2Protocol) -> None:
        with self._read_scope:
            while (data := await self._receive()) is not None:
                await protocol.handle(RawData(data))
                if not data:
                    break

    async def _receive(self) -> bytes | None:
        """Return the next input, b"" at its end, None when the peer is too slow or gone."""
        if self._ahead:
            data = bytes(self._ahead)
            self._ahead.clear()
        else:
            with trio.CancelScope(deadline=self._wait_scope.deadline) as self._wait_scope:
                try:
                    data = bytes(await self._stream.receive_some(MAX_RECV))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return None
            if self._wait_scope.cancelled_caught:
                self._closing = True
                return None
        if self._idle and not self._head_begun:
            self._head_begun = True
            self._wait_scope.deadline = trio.current_time() + self._limits.header_timeout_s
        return data

    async def _watch(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Run `wait` in the reading task, reading ahead meanwhile to notice a disconnect."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_ahead)
            await wait()
            nursery.cancel_scope.cancel()

    async def _read_ahead(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while len(self._ahead) < READ_AHEAD:
                data = await self._stream.receive_some(MAX_RECV)
                if not data:
                    break
                self._ahead += data
            else:
                return
        self._read_scope.cancel()

    # What the protocol asks for

    async def _on_event(self, event: Event) -> None:
        match event:
            case RawData():
                await self._write(event.data)
            case Closed():
                self._end()
            case Updated():
                self._set_idle(event.idle)

    def _set_idle(self, idle: bool) -> None:
        # No checkpoint here: a pipelined request may be waiting to be parsed.
        self._idle = idle
        self._head_begun = idle and self._has_input()
        limit_s = math.inf
        if idle:
            limits = self._limits
            limit_s = limits.header_timeout_s if self._head_begun else limits.keep_alive_timeout_s
        self._wait_scope.deadline = trio.current_time() + limit_s
        if idle and self._context.draining:
            self._end()

    def _has_input(self) -> bool:
        """Whether part of the next request has come already, while this one was answered."""
        protocol = self._protocol
        return bool(self._ahead) or (
            isinstance(protocol, GuardedH11Protocol) and bool(protocol.connection.trailing_data[0])
        )

    async def _write(self, data: bytes) -> None:
        if not data:  # as h11 ends a message whose length it has declared
            return
        if self._tasks is not None:
            self._tasks.yielded = True
        async with self._send_lock:
            if not self._closing:
                await self._send_bounded(data)
                await trio.lowlevel.checkpoint_if_cancelled()
                return
        await trio.sleep_forever()  # nobody listens: until the grace of the close is over

    async def _send_bounded(self, data: bytes) -> None:
        with trio.CancelScope(shield=True) as scope, memoryview(data) as view:
            for start in range(0, len(view), WRITE_CHUNK):
                scope.deadline = trio.current_time() + self._limits.write_timeout_s
                try:
                    await self._stream.send_all(view[start : start + WRITE_CHUNK])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.abort()
                    return
        if scope.cancelled_caught:
            self._context.stats.write_timeouts_total += 1
            self.abort()
