"""A load generator on raw sockets: keep-alive requests over some connections, and SSE readers."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import trio

HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def request(path: str, body: bytes) -> bytes:
    return HEAD.format(path=path).encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def _answer(stream: trio.SocketStream, buffer: bytearray) -> bytes:
    """One response with a Content-Length, off the stream."""
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            head = bytes(buffer[:end]).lower()
            start = head.index(b"content-length:") + 15
            length = int(head[start:].split(b"\r\n", 1)[0])
            total = end + 4 + length
            if len(buffer) >= total:
                if not head.split(b" ", 2)[1].startswith(b"2"):
                    raise RuntimeError(bytes(buffer[:total]).decode())
                body = bytes(buffer[end + 4 : total])
                del buffer[:total]
                return body
        data = await stream.receive_some(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        buffer += data


@dataclass(frozen=True, slots=True)
class Target:
    """A server on loopback."""

    port: int

    async def post(self, path: str, value: object) -> dict[str, object]:
        """One request on a connection of its own."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(request(path, json.dumps(value).encode()))
            answer: dict[str, object] = json.loads(await _answer(stream, bytearray()))
            return answer

    async def rate(self, packet: bytes, *, seconds: float, connections: int = 16) -> float:
        """Requests per second of ``packet`` over keep-alive connections."""
        count = 0

        async def one() -> None:
            nonlocal count
            buffer = bytearray()
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                while True:
                    await stream.send_all(packet)
                    await _answer(stream, buffer)
                    count += 1

        started = time.perf_counter()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(connections):
                    nursery.start_soon(one)
        return count / (time.perf_counter() - started)

    async def fan_out(self, *, subscribers: int, batches: int, batch: int) -> float:
        """Deliveries per second of events published in batches to subscribers of one task."""
        task = await self.post("/tasks", {})
        path = f"/tasks/{task['id']}/events"
        expected = batches * batch
        done = trio.Event()
        ready = left = subscribers

        async def follow(opened: trio.Event) -> None:
            nonlocal ready, left
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                seen, tail = 0, b""
                async for data in stream:
                    if not seen and ready and b"retry:" in data:
                        ready -= 1
                        if not ready:
                            opened.set()
                    tail += data
                    seen += tail.count(b"event: taskcast.event")
                    tail = tail[-20:] if b"event: taskcast.event" not in tail[-20:] else b""
                    if seen >= expected:
                        break
            left -= 1
            if not left:
                done.set()

        opened = trio.Event()
        body = json.dumps([{"type": "llm.delta", "level": "info", "data": {"delta": "x"}}] * batch)
        packet = request(path, body.encode())
        async with trio.open_nursery() as nursery:
            for _ in range(subscribers):
                nursery.start_soon(follow, opened)
            await opened.wait()
            started = time.perf_counter()
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                buffer = bytearray()
                for _ in range(batches):
                    await stream.send_all(packet)
                    await _answer(stream, buffer)
            await done.wait()
        return expected * subscribers / (time.perf_counter() - started)
