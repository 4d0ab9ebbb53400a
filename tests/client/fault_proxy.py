"""A TCP proxy that breaks connections as it is told: cut at any byte, delayed, silent, doubled."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

import trio

CHUNK = 16 * 1024


@dataclass(frozen=True)
class Fault:
    """What happens to a connection; nothing, without.

    ``cut_up`` and ``cut_down`` are the bytes that pass from the client, and from the server, before
    both sides are reset. ``swallow`` is how many answers pass from the server: in the place of the
    next the connection is reset. ``doubled``: the server gets all of the client's bytes once more,
    on another connection. ``silent_after`` so many bytes from the server nothing passes any more,
    and nobody is told.
    """

    cut_up: int | None = None
    cut_down: int | None = None
    swallow: int | None = None
    doubled: bool = False
    delay_s: float = 0.0
    silent_after: int | None = None


NO_FAULT = Fault()
Plan: TypeAlias = Callable[[int], Fault]
"""The fault of each connection, by its number from 0."""


class _Cut(Exception):
    """The connection is to be reset."""


@dataclass
class FaultProxy:
    url: str
    upstream: tuple[str, int]
    plan: Plan
    connections: int = 0
    cuts: int = 0
    doubles: int = 0

    async def handle(self, client: trio.SocketStream) -> None:
        fault = self.plan(self.connections)
        self.connections += 1
        async with client:
            try:
                server = await trio.open_tcp_stream(*self.upstream)
            except OSError:
                return
            async with server:
                copy = await trio.open_tcp_stream(*self.upstream) if fault.doubled else None
                self.doubles += fault.doubled
                try:
                    await self._pass(client, server, copy, fault)
                except* _Cut:
                    self.cuts += 1
                    _reset(client)
                    _reset(server)
                except* (OSError, trio.BrokenResourceError):
                    pass
                finally:
                    if copy is not None:
                        with trio.move_on_after(1, shield=True):
                            await copy.aclose()

    async def _pass(
        self,
        client: trio.SocketStream,
        server: trio.SocketStream,
        copy: trio.SocketStream | None,
        fault: Fault,
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._up, client, server, copy, fault)
            if copy is not None:
                nursery.start_soon(_drain, copy)
            await self._down(client, server, fault)
            nursery.cancel_scope.cancel()

    async def _up(
        self,
        client: trio.SocketStream,
        server: trio.SocketStream,
        copy: trio.SocketStream | None,
        fault: Fault,
    ) -> None:
        passed = 0
        while data := await client.receive_some(CHUNK):
            cut = fault.cut_up is not None and passed + len(data) >= fault.cut_up
            if cut and fault.cut_up is not None:
                data = data[: fault.cut_up - passed]
            passed += len(data)
            if copy is not None:
                with suppress(trio.BrokenResourceError):
                    await copy.send_all(data)
            await server.send_all(data)
            if cut:
                raise _Cut
            await trio.sleep(fault.delay_s)
        with suppress(trio.BrokenResourceError):
            await server.send_eof()

    async def _down(
        self, client: trio.SocketStream, server: trio.SocketStream, fault: Fault
    ) -> None:
        passed = answers = 0
        while data := await server.receive_some(CHUNK):
            answers += data.count(b"HTTP/1.1 ")
            if fault.swallow is not None and answers > fault.swallow:
                raise _Cut
            if fault.silent_after is not None and passed + len(data) > fault.silent_after:
                await client.send_all(data[: fault.silent_after - passed])
                await trio.sleep_forever()
            cut = fault.cut_down is not None and passed + len(data) >= fault.cut_down
            if cut and fault.cut_down is not None:
                data = data[: fault.cut_down - passed]
            passed += len(data)
            await client.send_all(data)
            if cut:
                raise _Cut
            await trio.sleep(fault.delay_s)


async def _drain(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(CHUNK):
            pass


def _reset(stream: trio.SocketStream) -> None:
    """Make the close of the connection a RST: what was sent and not read is lost."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def fault_proxy(url: str, plan: Plan) -> Iterator[FaultProxy]:
    """A running proxy of the server at ``url``, in a thread with an event loop of its own."""
    started: list[tuple[FaultProxy, trio.lowlevel.TrioToken, trio.CancelScope]] = []
    ready = threading.Event()

    async def serve() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        parts = urlsplit(url)
        upstream = (parts.hostname or "", parts.port or 80)
        proxy = FaultProxy(f"http://127.0.0.1:{port}", upstream, plan)
        with trio.CancelScope() as scope:
            started.append((proxy, trio.lowlevel.current_trio_token(), scope))
            ready.set()
            await trio.serve_listeners(proxy.handle, listeners)

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    ready.wait(10)
    proxy, token, scope = started[0]
    try:
        yield proxy
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join(10)


def until(cuts: int, choose: Callable[[random.Random], Fault], seed: int) -> Plan:
    """A plan with this many connections that break, and whole ones after."""
    rng = random.Random(seed)

    def plan(number: int) -> Fault:
        return choose(rng) if number < cuts else NO_FAULT

    return plan
