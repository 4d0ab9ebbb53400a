"""Hypercorn's protocols with their faults mended, as subclasses: nothing is patched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import h2.errors
import h2.events
import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer, WSStream
from hypercorn.typing import H11SendableEvent
from wsproto.connection import ConnectionState
from wsproto.events import Message as WSMessage
from wsproto.frame_protocol import CloseReason

from taskcast_trio.server.connection import ConnectionContext, Watch, contained
from taskcast_trio.server.target import ASGIApp, Message, Receive


def _require_names() -> None:
    """Fail at import, not in the middle of a request, when Hypercorn's internals have moved."""
    wanted: dict[type, tuple[str, ...]] = {
        H11Protocol: (
            "_check_protocol",
            "_create_stream",
            "_send_error_response",
            "_send_h11_event",
        ),
        H2Protocol: ("_create_stream", "_flush"),
        WSStream: ("app_send",),
    }
    missing = [
        f"{cls.__name__}.{name}"
        for cls, names in wanted.items()
        for name in names
        if not hasattr(cls, name)
    ]
    if "can_read" not in H11Protocol.__init__.__code__.co_names:
        missing.append("H11Protocol.can_read")
    if missing:
        raise ImportError(
            f"taskcast-trio needs hypercorn 0.18: the installed one lacks {', '.join(missing)}"
        )


_require_names()


class AppTasks:
    """The `hypercorn.typing.TaskGroup` of one connection, on a nursery that keeps its verdict."""

    def __init__(self, nursery: trio.Nursery, context: ConnectionContext, watch: Watch) -> None:
        self._nursery = nursery
        self._context = context
        self._watch = watch
        self.yielded = False
        """Whether a write has let other tasks run since the last send began."""

    def spawn(self, func: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._nursery.start_soon(func, *args)

    async def spawn_app(
        self,
        app: ASGIApp,
        config: Config,
        scope: Message,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Message], Awaitable[None]]:
        to_app, inbox = trio.open_memory_channel[Message](config.max_app_queue_size)
        disconnect: Message = {}

        async def put(message: Message) -> None:
            if message["type"].endswith(".disconnect"):
                # Never waits: an answer that completes early puts it from the application's own
                # task, which would wait for room that only itself can make.
                disconnect.update(message)
                to_app.close()
                return
            # Broken or closed: the application has ended, or was told so, and input is moot.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                try:
                    to_app.send_nowait(message)
                except trio.WouldBlock:
                    await self._watch(partial(wait_for_room, message))

        async def wait_for_room(message: Message) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await to_app.send(message)

        async def receive() -> Message:
            try:
                return await inbox.receive()
            except trio.EndOfChannel:
                return disconnect

        self._nursery.start_soon(self._run, app, scope, inbox, receive, send)
        return put

    async def _run(
        self,
        app: ASGIApp,
        scope: Message,
        inbox: trio.MemoryReceiveChannel[Message],
        receive: Receive,
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        async def send_and_yield(message: Message) -> None:
            # Hypercorn drops what a closed stream or a HEAD request sends without a checkpoint; an
            # application that does nothing but send would then hold up the whole server.
            self.yielded = False
            await send(message)
            if not self.yielded:
                await trio.lowlevel.checkpoint()

        with contained(self._report):
            async with inbox:
                await app(scope, receive, send_and_yield)
        await send(None)

    def _report(self, error: BaseException) -> None:
        self._context.stats.app_errors_total += 1
        self._context.log.error("asgi application failed", error)


class ReadGate:
    """The event a paused HTTP/1.1 parser waits on; while it waits, the peer is still watched."""

    def __init__(self, watch: Watch) -> None:
        self._event = trio.Event()
        self._watch = watch

    async def clear(self) -> None:
        self._event = trio.Event()

    async def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._watch(self._event.wait)

    def is_set(self) -> bool:
        return self._event.is_set()


class CappedBuffer(WebsocketBuffer):
    """Keeps nothing of a message that is too large, however much comes of it or behind it."""

    def extend(self, event: WSMessage[Any]) -> None:
        if self.length + len(event.data) > self.max_length:
            self.value = None
            self.length = self.max_length + 1
            raise FrameTooLargeError
        super().extend(event)


class GuardedH11Protocol(H11Protocol):
    """HTTP/1.1 and WebSocket without cleartext HTTP/2 and without permessage-deflate."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Never leave HTTP/1.1: RFC 9113 3.1 has dropped the h2c upgrade."""

    async def _create_stream(self, request: h11.Request) -> None:
        headers = list(request.headers)
        if request.http_version not in (b"1.0", b"1.1"):  # the HTTP/2 preface parses as `PRI * 2.0`
            await self._refuse(505)
            return
        for name, value in headers:
            is_token = name == b"connection" or name.startswith(b"sec-websocket-")
            if is_token and not value.isascii():  # wsproto decodes these without a net
                await self._refuse(400)
                return
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=request.target,
                headers=_without_extensions(headers),
                http_version=request.http_version,
            )
        )
        if isinstance(self.stream, WSStream):
            self.stream.buffer = CappedBuffer(self.config.websocket_max_message_size)
            _tell_closes(self.stream)
            if self.stream.closed:  # a bad handshake, which was answered
                await self.send(Closed())

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        if isinstance(event, h11.Response) and self.connection.their_state is h11.SEND_BODY:
            # The connection ends with an answer that comes before the body is complete.
            event = h11.Response(
                status_code=event.status_code,
                headers=[*event.headers, (b"connection", b"close")],
            )
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            # The reading task has refused the request that this answers, and its close cancels us.
            await trio.sleep_forever()
        else:
            await self.send(RawData(data=data))

    async def _send_error_response(self, status_code: int) -> None:
        # As one write: no handler's answer can come between its parts and spoil h11's state.
        headers = [
            (b"content-length", b"0"),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        head = self.connection.send(h11.Response(status_code=status_code, headers=headers))
        end = self.connection.send(h11.EndOfMessage())
        await self.send(RawData(data=(head or b"") + (end or b"")))

    async def _refuse(self, status: int) -> None:
        await self._send_error_response(status)
        await self.send(Closed())


class GuardedH2Protocol(H2Protocol):
    """HTTP/2 over TLS that resets a malformed request instead of failing on it."""

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        fields = dict(request.headers)
        if not all(fields.get(name, b"\xff").isascii() for name in (b":method", b":path")):
            self.connection.reset_stream(
                request.stream_id, error_code=h2.errors.ErrorCodes.PROTOCOL_ERROR
            )
            await self._flush()
            return
        request.headers = _without_extensions(request.headers)
        await super()._create_stream(request)
        stream = self.streams.get(request.stream_id)
        if isinstance(stream, WSStream):
            stream.buffer = CappedBuffer(self.config.websocket_max_message_size)
            _tell_closes(stream)


def _tell_closes(stream: WSStream) -> None:
    """Let the application see whether its peer said goodbye: Hypercorn tells it of a connection
    that broke (1006), whatever came before.
    """
    put = stream.app_put
    if put is None:
        return

    async def tell(message: Message) -> None:
        connection = getattr(stream, "connection", None)  # there once it is accepted
        said = connection is not None and connection.state is ConnectionState.CLOSED
        if said and message["type"] == "websocket.disconnect":
            message = {**message, "code": CloseReason.NORMAL_CLOSURE.value}
        await put(message)

    stream.app_put = tell


def _without_extensions(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Drop the offer of WebSocket extensions: none may then be accepted (RFC 6455 9.1)."""
    return [item for item in headers if item[0] != b"sec-websocket-extensions"]
