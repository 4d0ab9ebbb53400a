"""Reading streams as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import h11
import trio


class OpenStream:
    """A stream read block by block off its own socket: leaving it is a real disconnect."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket
        self._parser = h11.Connection(h11.CLIENT)
        self._text = ""

    async def open(self, path: str, headers: Mapping[str, str]) -> None:
        fields = [("Host", "127.0.0.1"), *headers.items()]
        get = h11.Request(method="GET", target=path, headers=fields)
        await self._socket.send_all(self._parser.send(get) or b"")
        await self._socket.send_all(self._parser.send(h11.EndOfMessage()) or b"")
        answer = await self._event()
        assert isinstance(answer, h11.Response)
        assert answer.status_code == 200

    async def _event(self) -> Any:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            self._parser.receive_data(await self._socket.receive_some(65536))
        return event

    async def block(self) -> str:
        """The next block; an error at the end of the stream."""
        while "\n\n" not in self._text:
            event = await self._event()
            assert isinstance(event, h11.Data), "the stream has ended"
            self._text += bytes(event.data).decode()
        block, self._text = self._text.split("\n\n", 1)
        return block

    async def event(self) -> tuple[str, Any, str | None]:
        """The name, data and id of the next block with data."""
        fields: dict[str, str] = {}
        while "data" not in fields:
            lines = (await self.block()).split("\n")
            fields = dict(line.split(": ", 1) for line in lines if ": " in line[1:])
        return fields["event"], json.loads(fields["data"]), fields.get("id")

    async def rest(self) -> str:
        """All that comes up to the clean end of the stream."""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            self._text += bytes(event.data).decode()
        return self._text


@asynccontextmanager
async def opened(
    server: Any, path: str, headers: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[OpenStream]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as socket:
        stream = OpenStream(socket)
        await stream.open(path, headers)
        yield stream
