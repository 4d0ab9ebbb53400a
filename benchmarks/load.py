"""Requests per second over 16 keep-alive connections: by wrk, or by raw sockets without it."""

from __future__ import annotations

import json
import re
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable

from .connection import complete, packet

CONNECTIONS = 16

Rate = Callable[[int, str, bytes, float], float]
"""Of port, path, body and seconds: POST requests per second that were answered 2xx."""


def generator() -> tuple[str, Rate]:
    """The name and the function of the best generator at hand."""
    if shutil.which("wrk"):
        return f"wrk, 1 thread, {CONNECTIONS} connections", by_wrk
    return f"raw sockets in Python (no wrk on PATH), {CONNECTIONS} connections", by_sockets


def by_wrk(port: int, path: str, body: bytes, seconds: float) -> float:
    """Measure with wrk, which knows whole seconds only."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        # Of the escapes of JSON only those for quotes and backslashes occur: Lua has the same.
        script.write(
            'wrk.method = "POST"\n'
            'wrk.headers["Content-Type"] = "application/json"\n'
            f"wrk.body = {json.dumps(body.decode('ascii'))}\n"
        )
        script.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s"]
        done = subprocess.run(
            [*command, "-s", script.name, f"http://127.0.0.1:{port}{path}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=seconds + 30,
        )
    return requests_per_second(done.stdout)


def requests_per_second(report: str) -> float:
    """Read the report of wrk. Raises RuntimeError when it tells of failed requests."""
    failed = re.search(r"Non-2xx.*", report) or re.search(r"Socket errors.*[1-9].*", report)
    found = re.search(r"Requests/sec:\s*([\d.]+)", report)
    if failed or not found:
        raise RuntimeError(f"wrk: {failed[0] if failed else report}")
    return float(found[1])


def by_sockets(port: int, path: str, body: bytes, seconds: float) -> float:
    """Measure with non-blocking sockets, one request in flight on each.

    Raises RuntimeError on an answer other than 2xx and when the server closes a connection.
    """
    request = packet("POST", path, body)
    count = 0
    with selectors.DefaultSelector() as selector:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
        for each in sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.sendall(request)
            selector.register(each, selectors.EVENT_READ, bytearray())
        started = now = time.perf_counter()
        while now < started + seconds:
            for key, _ in selector.select(1):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = connection.recv(1 << 16)
                key.data.extend(data)
                if not data:
                    raise RuntimeError("the server closed a connection")
                if (found := complete(key.data)) is not None:
                    status, _, end = found
                    if not 200 <= status < 300:
                        raise RuntimeError(f"{status} to POST {path}")
                    del key.data[:end]
                    count += 1
                    connection.sendall(request)
            now = time.perf_counter()
        for each in sockets:
            each.close()
    return count / (now - started)
