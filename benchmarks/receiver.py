"""A receiver of webhooks that does nothing but count, in a thread of its own."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Receiver:
    """How many deliveries have come; the URL to send them to."""

    def __init__(self) -> None:
        self.received = 0
        self.url = ""


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._begun = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._begun += data
        while (head := self._begun.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self._begun, 0, head + 2)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._begun) < end:
                return
            self._begun = self._begun[end:]
            self._receiver.received += 1
            self._transport.write(ANSWER)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """One on a free port of loopback."""
    receiver = Receiver()
    loop: asyncio.AbstractEventLoop | None = None
    listening, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(receiver), "127.0.0.1", 0)
        async with server:
            receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            listening.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    listening.wait()
    try:
        yield receiver
    finally:
        assert loop is not None
        loop.call_soon_threadsafe(ended.set)
        thread.join()
