"""Serving an ASGI application: sockets, accept loop, lifespan and an orderly end.

`serve` owns every task it starts. Compared with `hypercorn.trio.serve` it keeps connections apart
(see `guard`), bounds their number, ends with the application's lifespan instead of outliving it,
and drains in the order that lets streams end cleanly.
"""

from __future__ import annotations

import errno
import resource
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ssl import SSLContext
from typing import Any, Final, Literal

import structlog
import trio
from hypercorn.config import Config
from hypercorn.utils import repr_socket_addr

from taskcast_trio.server.connection import (
    Connection,
    ConnectionContext,
    ConnectionFactory,
    GuardStats,
    Limits,
    SocketStream,
    ThrottledLog,
    contained,
)
from taskcast_trio.server.guard import GuardedConnection
from taskcast_trio.server.http1 import Http1Connection
from taskcast_trio.server.http1_parser import MAX_HEAD_BYTES
from taskcast_trio.server.lifespan import Lifespan
from taskcast_trio.server.target import ASGIApp

TCP_USER_TIMEOUT_MS: Final = 30_000
KEEPALIVE_IDLE_S: Final = 30
IDLE_CHECK_S: Final = 1.0
"""How much later than it might an idle connection is ended."""
RESERVED_FDS: Final = 64
CUT_AFTER: Final = 0.9
"""Share of the grace period after which the connections left are cut, so that `serve` returns
within the period and not just after it."""

_FACTORIES: Final[dict[str, ConnectionFactory]] = {
    "httptools": Http1Connection,
    "h11": GuardedConnection,
}
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_NO_SUCH_ADDRESS: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class StartupFailedError(RuntimeError):
    """The application has answered `lifespan.startup.failed`; the text is its message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How to listen and what to bear with. Times are in seconds.

    `host` is a name or address, "" for all interfaces; every address it resolves to is bound.
    `port` 0 takes a free one. `certfile` and `keyfile` (PEM paths) turn TLS on; `http2` offers
    HTTP/2 over it. Cleartext HTTP/2 is never spoken.
    """

    host: str = "127.0.0.1"
    port: int = 3721
    backlog: int = 4096
    max_connections: int = 10_000
    """Further ones are closed at once. Lowered to what the limit of open files leaves room for."""
    write_timeout_s: float = 30.0
    """A peer that does not take 64 KiB in this time is cut."""
    header_timeout_s: float = 10.0
    body_pause_s: float = 30.0
    """How long a peer may be silent within a body. The application limits the time of the whole;
    this is not to be shorter."""
    header_bytes: int = MAX_HEAD_BYTES
    """Of a request's head; a longer one is a 431."""
    keep_alive_timeout_s: float = 75.0
    grace_s: float = 10.0
    certfile: str | None = None
    keyfile: str | None = None
    http2: bool = False
    listening: tuple[int, ...] = ()
    """Descriptors of sockets that listen already, in the place of `host` and `port`."""
    http: Literal["httptools", "h11"] = "httptools"
    """Who parses HTTP/1.1: httptools, or h11 through Hypercorn's own protocol."""

    def __post_init__(self) -> None:
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile belong together")
        if self.http2 and self.certfile is None:
            raise ValueError("http2 needs TLS: give certfile and keyfile")


async def serve(
    app: ASGIApp,
    options: ServeOptions,
    *,
    drain: trio.Event,
    stats: GuardStats | None = None,
    connection: ConnectionFactory | None = None,
    logger: Any = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `drain` is set, then let what is in flight finish, and return.

    `task_status.started` is called with the URLs listened on once connections are accepted and the
    application's startup is complete. `drain` is set by its owner; the application's endless
    streams are to watch the same event. From then on nothing is accepted, idle connections are
    closed, requests in flight are answered; what is left shortly before `grace_s` is over is cut.
    `lifespan.shutdown` comes last and has 5 s.

    Cancelling it cuts every connection at once. All sockets are closed when it ends.

    Args:
        app: an ASGI 3 application. One without lifespan support is served without.
        options: see `ServeOptions`.
        drain: starts the orderly end.
        stats: counters to keep; pass one to export them.
        connection: makes the protocol side of an accepted stream, in place of `options.http`.
        logger: a structlog logger.

    Raises:
        OSError: the address cannot be resolved or bound, or the certificate cannot be read; before
            `started`.
        StartupFailedError: the application refused to start.
        ExceptionGroup: the application's lifespan task crashed; the connections are cut.
    """
    config = _hypercorn_config(options)
    tls = config.create_ssl_context()
    log = structlog.get_logger(__name__) if logger is None else logger
    context = ConnectionContext(
        app=app,
        limits=Limits(
            write_timeout_s=options.write_timeout_s,
            header_timeout_s=options.header_timeout_s,
            body_pause_s=options.body_pause_s,
            max_head_bytes=options.header_bytes,
            keep_alive_timeout_s=options.keep_alive_timeout_s,
        ),
        stats=GuardStats() if stats is None else stats,
        log=ThrottledLog(log),
        config=config,
    )
    sockets = await open_sockets(options)
    try:
        lifespan = Lifespan(app, context.state, log)
        server = _Server(
            context,
            connection or _FACTORIES[options.http],
            tls,
            _connection_cap(options.max_connections),
        )
        async with trio.open_nursery() as nursery:
            await lifespan.start_up(nursery)
            if lifespan.failure is None:
                scheme = "http" if tls is None else "https"
                task_status.started(
                    [f"{scheme}://{repr_socket_addr(s.family, s.getsockname())}" for s in sockets]
                )
                await server.run(sockets, drain, options.grace_s)
                await lifespan.shut_down()
            nursery.cancel_scope.cancel()
    finally:
        for listening in sockets:
            listening.close()
    if lifespan.failure is not None:
        raise StartupFailedError(lifespan.failure)


async def run_until_signal(drain: trio.Event) -> None:
    """Set `drain` at the first SIGTERM or SIGINT and return at the next, for an immediate exit.

    The caller cancels what is left when this returns. If `drain` is set by other means, the first
    signal counts as the next one. Cancelling it restores the signal handlers.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if drain.is_set():
                return
            drain.set()


async def open_sockets(options: ServeOptions) -> list[trio.socket.SocketType]:
    """Bind and listen on every address of `options.host`, or take what listens already. The caller
    closes the sockets.

    Raises:
        OSError: no address can be bound, or one is taken or forbidden; none is left open.
    """
    if options.listening:
        return [
            trio.socket.from_stdlib_socket(socket.socket(fileno=fd)) for fd in options.listening
        ]
    found = await trio.socket.getaddrinfo(
        options.host or None, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    infos = list(dict.fromkeys(found))
    sockets: list[trio.socket.SocketType] = []
    absent: OSError | None = None
    port = options.port
    try:
        for family, kind, proto, _, address in infos:
            try:
                listening = trio.socket.socket(family, kind, proto)
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                absent = error
                continue
            sockets.append(listening)
            _set_options(listening, v6_only=len(infos) > 1)
            try:
                await listening.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                absent = error
                sockets.pop().close()
                continue
            listening.listen(options.backlog)
            port = listening.getsockname()[1]
        if not sockets and absent is not None:
            raise absent
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def _set_options(listening: trio.socket.SocketType, *, v6_only: bool) -> None:
    """Set what accepted sockets inherit from the listening one."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if listening.family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6_only))
    for name, value in (
        ("TCP_USER_TIMEOUT", TCP_USER_TIMEOUT_MS),
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
    ):
        if (option := getattr(socket, name, None)) is not None:  # not on every system
            listening.setsockopt(socket.IPPROTO_TCP, option, value)


def _hypercorn_config(options: ServeOptions) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.certfile = options.certfile
    config.keyfile = options.keyfile
    config.alpn_protocols = ["h2", "http/1.1"] if options.http2 else ["http/1.1"]
    config.h11_max_incomplete_size = options.header_bytes
    # Here each field weighs 32 bytes more than it is long (RFC 9113, section 6.5.2).
    config.h2_max_header_list_size = 2 * options.header_bytes
    config.websocket_max_message_size = 256 * 1024
    # Reaching this number would end every stream of an HTTP/2 connection.
    config.keep_alive_max_requests = 1_000_000
    return config


def _connection_cap(wanted: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - RESERVED_FDS))


class _Server:
    """Accepts connections, keeps them apart, and ends them."""

    def __init__(
        self,
        context: ConnectionContext,
        connection: ConnectionFactory,
        tls: SSLContext | None,
        max_connections: int,
    ) -> None:
        self._context = context
        self._make = connection
        self._tls = tls
        self._max_connections = max_connections
        self._open: set[Connection] = set()
        self._emptied = trio.Event()

    async def run(
        self,
        sockets: Sequence[trio.socket.SocketType],
        drain: trio.Event,
        grace_s: float,
    ) -> None:
        async with trio.open_nursery() as connections:
            self._context = replace(self._context, spawn=connections.start_soon)
            try:
                async with trio.open_nursery() as acceptors:
                    for listening in sockets:
                        listener = trio.SocketListener(listening)
                        acceptors.start_soon(self._accept, listener, connections)
                    acceptors.start_soon(self._end_idle)
                    await drain.wait()
                    acceptors.cancel_scope.cancel()
                for listening in sockets:
                    listening.close()
                await self._drain(grace_s * CUT_AFTER)
            finally:
                # Also on cancellation, which alone does not reach a shielded write.
                for connection in self._open:
                    connection.abort()

    async def _drain(self, patience_s: float) -> None:
        await self._context.worker.terminated.set()
        self._emptied = trio.Event()
        for connection in self._open:
            connection.begin_drain()
        if self._open:
            with trio.move_on_after(patience_s):
                await self._emptied.wait()

    async def _accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        stats, log = self._context.stats, self._context.log
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                log.error("cannot accept connections", error)
                await trio.sleep(0.1)
                continue
            if len(self._open) >= self._max_connections:
                stats.refused_total += 1
                log.error("connection refused: too many open", limit=self._max_connections)
                stream.socket.close()
                continue
            connection = self._make(self._wrap(stream), self._context)
            self._open.add(connection)
            stats.accepted_total += 1
            stats.connections_open += 1
            connections.start_soon(self._handle, connection)

    async def _end_idle(self) -> None:
        """One task for all: a deadline of its own, set and lifted for each request, would cost a
        connection an eighth of the requests it serves.
        """
        patience_s = self._context.limits.keep_alive_timeout_s
        while True:
            now = trio.current_time()
            # Who begins to wait later has as much time.
            due = [now + patience_s, *(each.end_if_idle(now) for each in self._open)]
            await trio.sleep(max(min(due) - now, IDLE_CHECK_S))

    def _wrap(self, stream: trio.SocketStream) -> SocketStream:
        if self._tls is None:
            return stream
        return trio.SSLStream(stream, self._tls, server_side=True)

    async def _handle(self, connection: Connection) -> None:
        try:
            with contained(self._report):
                await connection.run()
        finally:
            connection.abort()  # a connection that has failed may have left its socket open
            self._open.discard(connection)
            self._context.stats.connections_open -= 1
            if not self._open:
                self._emptied.set()

    def _report(self, error: BaseException) -> None:
        self._context.stats.guarded_errors_total += 1
        self._context.log.error("connection failed", error)
