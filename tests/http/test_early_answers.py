"""An answer that comes before its request is complete, and a message that never fits."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypercorn.protocol.ws_stream import FrameTooLargeError
from wsproto.events import TextMessage

from taskcast_trio.server.protocols import CappedBuffer


@pytest.mark.parametrize("target", ["GET /health", "POST /tasks/none/events"])
async def test_an_answer_before_the_body_was_read_ends_with_the_connection(
    server: Any, target: str
) -> None:
    """More pieces of a body are waiting than the application's queue holds."""
    head = f"{target} HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-ndjson\r\n"
    for _ in range(20):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as peer:
            text = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 30
            await peer.send_all(text)
            got = b""
            with trio.fail_after(30):
                while data := await peer.receive_some():
                    got += data
        assert got.count(b"HTTP/1.1 ") == 1


async def test_an_answer_that_ends_the_connection_says_so(server: Any) -> None:
    """Else a pool of connections sends its next request into nothing (RFC 9112, section 9.6)."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as peer:
        # Refused by its method, before the body is looked at.
        await peer.send_all(b"PUT /tasks HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n")
        with trio.fail_after(30):
            got = b"".join([data async for data in peer])
    assert got.startswith(b"HTTP/1.1 404")
    assert b"connection: close" in got.lower()


def test_nothing_is_kept_of_a_message_that_is_too_large_nor_of_what_follows() -> None:
    buffer = CappedBuffer(10)
    buffer.extend(TextMessage(data="x" * 10, message_finished=False))
    for text in ("y", "z" * 100, ""):
        with pytest.raises(FrameTooLargeError):
            buffer.extend(TextMessage(data=text))
        assert buffer.value is None
