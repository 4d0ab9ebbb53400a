"""Bytes to and from one peer, with a deadline on every wait."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Any, Final

import trio

from taskcast_trio.server.connection import SocketStream

MAX_RECV: Final = 64 * 1024
WRITE_CHUNK: Final = 64 * 1024
FINISH_S: Final = 1.0
YIELD_AFTER_S: Final = 0.005
"""How long one connection may keep the others from running."""


class Disconnected(Exception):
    """The peer has gone, or was cut because it did not read."""


class SlowWriter(Disconnected):
    """The peer was cut because it did not read."""


class Wire:
    """A plain TCP connection, read and written directly where that needs no waiting."""

    secure = False

    def __init__(self, stream: trio.SocketStream, write_timeout_s: float) -> None:
        # Trio's socket would add a checkpoint to each operation, which is most of its cost.
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._write_timeout_s = write_timeout_s
        self._yielded = trio.current_time()

    @property
    def raw(self) -> Any:
        return self._socket

    def release(self) -> SocketStream:
        """The connection as a Trio stream, for another owner; this object is spent."""
        return trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))

    async def read(self) -> bytes:
        """What has come, b"" at the end of it. Cancellation loses nothing."""
        while self._socket.fileno() != -1:
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except (OSError, trio.ClosedResourceError):
                return b""
            self._yielded = trio.current_time()
            try:
                return self._socket.recv(MAX_RECV)
            except BlockingIOError:
                continue
            except OSError:
                return b""
        return b""

    def write_nowait(self, data: bytes) -> int:
        """Send what can be sent at once; how many bytes that was."""
        try:
            return self._socket.send(data)
        except OSError:
            return 0  # what waits for the peer will learn why

    async def write(self, data: bytes) -> None:
        """Send all of it.

        A chunk that has begun is finished, also when the caller is cancelled, as half of one would
        ruin the framing; but no chunk takes longer than the write timeout.

        Raises:
            Disconnected: the peer has gone.
            SlowWriter: it took nothing for the write timeout.
        """
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise Disconnected from None
        if sent < len(data):
            await self._write_rest(memoryview(data)[sent:])
        now = trio.current_time()
        if now - self._yielded > YIELD_AFTER_S:
            self._yielded = now
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    async def _write_rest(self, rest: memoryview) -> None:
        while rest:
            deadline = trio.current_time() + self._write_timeout_s
            with trio.CancelScope(deadline=deadline, shield=True) as scope:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except (OSError, trio.ClosedResourceError):
                    raise Disconnected from None
            if scope.cancelled_caught:
                raise SlowWriter
            try:
                rest = rest[self._socket.send(rest[:WRITE_CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Disconnected from None

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """Say that this was all: closing does."""
        await trio.lowlevel.checkpoint_if_cancelled()

    def close(self) -> None:
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def abort(self) -> None:
        """Close with a reset: unsent data of a peer that does not read is dropped at once."""
        if self._socket.fileno() != -1:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()


class TlsWire:
    """The same over TLS; the handshake is done."""

    secure = True

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], write_timeout_s: float) -> None:
        self._stream = stream
        self._write_timeout_s = write_timeout_s

    @property
    def raw(self) -> Any:
        return self._stream.transport_stream.socket

    def release(self) -> SocketStream:
        return self._stream

    async def read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(MAX_RECV))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def write_nowait(self, data: bytes) -> int:
        return 0  # encryption may have to wait for the peer

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            deadline = trio.current_time() + self._write_timeout_s
            with trio.CancelScope(deadline=deadline, shield=True) as scope:
                try:
                    await self._stream.send_all(rest[:WRITE_CHUNK])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise Disconnected from None
            if scope.cancelled_caught:
                raise SlowWriter
            rest = rest[WRITE_CHUNK:]
        await trio.lowlevel.checkpoint_if_cancelled()

    async def end(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self._stream.transport_stream.send_eof()

    async def finish(self) -> None:
        """Say that this was all (RFC 9112, section 9.8), if the peer takes it at once."""
        with trio.move_on_after(FINISH_S), suppress(trio.BrokenResourceError):
            await self._stream.aclose()

    def close(self) -> None:
        self._stream.transport_stream.socket.close()

    def abort(self) -> None:
        raw = self.raw
        if raw.fileno() != -1:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()
