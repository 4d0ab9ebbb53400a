"""The readers of the event streams: one plain process that counts what arrives.

    python -m benchmarks.readers PORT PATH STREAMS STEP

It does as little for an event as can be, or it would be the reader that is measured. On standard
output it tells, each in ns of the system-wide monotonic clock: a line ``OPENED LIVE`` (the first
connect, and when the last stream had begun), then a line each time another STEP events have
arrived over all streams. It ends when standard input does; a stream that ends sooner is an error.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
import time

MARK = b"event: taskcast.event\n"
KEEP = len(MARK) - 1
BUFFER = 1 << 18
# Connects under way at a time: fewer than any backlog, or a connect would wait for a retry.
WINDOW = 100
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Stream:
    """One subscription. ``tail`` is the end of what was read: a mark may be cut in two."""

    __slots__ = ("begun", "socket", "tail")

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        # Ten thousand closed connections in TIME_WAIT would use up the ports of the next run.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.socket.sendall(request)
        self.socket.setblocking(False)
        self.tail: bytes | bytearray = bytes(KEEP)
        self.begun = False


def read(port: int, path: str, streams: int, step: int) -> None:
    """Open the streams and count, until standard input ends."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
    )
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
    buffer = bytearray(KEEP + BUFFER)
    room = memoryview(buffer)[KEEP:]
    opened = begun = events = 0
    following = step
    started = time.monotonic_ns()
    while True:
        while opened < streams and opened - begun < WINDOW:
            stream = Stream(port, request)
            selector.register(stream.socket, selectors.EVENT_READ, stream)
            opened += 1
        for key, _ in selector.select():
            if key.data is None:
                return
            stream = key.data
            size = stream.socket.recv_into(room)
            if not size:
                raise SystemExit("the server ended a stream")
            buffer[:KEEP] = stream.tail
            if not stream.begun:
                if not buffer.startswith(b"HTTP/1.1 200 ", KEEP):
                    raise SystemExit(f"no stream: {bytes(room[: min(size, 300)])!r}")
                stream.begun = True
                begun += 1
                if begun == streams:
                    tell(f"{started} {time.monotonic_ns()}")
            events += buffer.count(MARK, 0, KEEP + size)
            stream.tail = buffer[size : size + KEEP]
            while events >= following:
                tell(f"{time.monotonic_ns()}")
                following += step


def tell(line: str) -> None:
    """Write a line past any buffer."""
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


if __name__ == "__main__":
    read(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
