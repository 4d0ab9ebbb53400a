"""A blocking keep-alive connection with as little of HTTP/1.1 as the measurements need."""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any, Self

TIMEOUT_SECONDS = 60


class Refused(RuntimeError):
    """An answer other than 2xx. ``status`` is its code."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body[:300].decode(errors='replace')}")
        self.status = status


def packet(
    method: str, path: str, body: bytes = b"", content_type: str = "application/json"
) -> bytes:
    """The bytes of one request."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def complete(buffer: bytes | bytearray) -> tuple[int, int, int] | None:
    """Status, and where the body begins and ends, of the answer in ``buffer``, once it is whole.

    Raises ValueError for an answer that tells no Content-Length, which none of those awaited does.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    status = int(buffer[9:12])
    start = end + 4
    if status == 204:
        return status, start, start
    head = buffer[:start].lower()
    at = head.index(b"\r\ncontent-length:") + 17
    length = int(head[at : head.index(b"\r\n", at)])
    return (status, start, start + length) if len(buffer) >= start + length else None


class Connection:
    """One connection to a server on loopback; a context manager that closes it.

    Every wait is bounded by 60 s and ends in TimeoutError.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> bytes:
        """Send one request; return the body of its answer.

        Raises Refused for an answer other than 2xx, also one that comes before the whole request
        was taken; ConnectionError when the server closes without one.
        """
        try:
            self._socket.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            return self._answer()
        return self._answer()

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Make and exchange one request."""
        return self.exchange(packet(method, path, body))

    def json(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        """Make and exchange one request; return its answer, a JSON object."""
        answer: dict[str, Any] = json.loads(self.request(method, path, body))
        return answer

    def _answer(self) -> bytes:
        while (found := complete(self._buffer)) is None:
            data = self._socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._buffer += data
        status, start, end = found
        body = bytes(self._buffer[start:end])
        del self._buffer[:end]
        if not 200 <= status < 300:
            raise Refused(status, body)
        return body
