"""Publish and fan-out figures of the memory store, as ratios to H.

H is the requests per second of a bare ASGI app on stock Hypercorn (Trio), measured in the same run
with the same generator; repetitions are interleaved, medians are quoted.

    python -m benchmarks [--repetitions 3] [--seconds 2]
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from .load import Target, request

EVENT = {"type": "llm.delta", "level": "info", "data": {"delta": "word "}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(*command: str, port: int) -> Iterator[Target]:
    """A server process, up when the body runs, drained when it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"{command} did not start") from None
                trio.run(trio.sleep, 0.02)
        yield Target(port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


async def measure(bare: Target, ours: Target, seconds: float) -> dict[str, float]:
    task = await ours.post("/tasks", {})
    path = f"/tasks/{task['id']}/events"
    single = request(path, json.dumps(EVENT).encode())
    batch = request(path, json.dumps([EVENT] * 100).encode())
    return {
        "H": await bare.rate(request("/", b"{}"), seconds=seconds),
        "single publish, requests/s": await ours.rate(single, seconds=seconds),
        "batch of 100, events/s": 100 * await ours.rate(batch, seconds=seconds),
        "fan-out to 100, one by one, deliveries/s": await ours.fan_out(
            subscribers=100, batches=100, batch=1
        ),
        "fan-out to 100, batches of 100, deliveries/s": await ours.fan_out(
            subscribers=100, batches=20, batch=100
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    bare_port, our_port = free_port(), free_port()
    runs: list[dict[str, float]] = []
    with (
        server("benchmarks.bare", str(bare_port), port=bare_port) as bare,
        server("taskcast_trio", "start", "-p", str(our_port), port=our_port) as ours,
    ):
        for _ in range(options.repetitions):
            runs.append(trio.run(measure, bare, ours, options.seconds))
    for name in runs[0]:
        median = statistics.median(run[name] for run in runs)
        ratio = statistics.median(run[name] / run["H"] for run in runs)
        print(f"{name:48} {median:12,.0f} {ratio:8.2f} H")


if __name__ == "__main__":
    main()
