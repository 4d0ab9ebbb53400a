"""What is measured, one function a benchmark; each leaves the server as it found it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from . import databases, machine, servers
from .connection import Connection, Refused, packet
from .followers import following, working
from .load import Rate
from .receiver import receiving
from .scale import Scale
from .servers import Server

EVENT = {"type": "llm.delta", "level": "info", "data": {"delta": "word "}}
PIECE = {**EVENT, "seriesId": "text", "seriesMode": "accumulate"}
ONE = json.dumps(EVENT).encode()
HUNDRED = json.dumps([EVENT] * 100).encode()
PIECES = json.dumps([PIECE] * 100).encode()

# Some systems count processor time in ticks of 10 ms.
SHORTEST_SHARED_NS = 100_000_000


@dataclass(slots=True)
class Results:
    """The figures of one benchmark, once through.

    ``busy`` is the share of the time that the server's process was on its core: well below 1, and
    something else than the server was the limit. ``notes`` say why a figure is missing.
    """

    figures: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every benchmark works with."""

    server: Server
    rate: Rate
    scale: Scale


class Stopwatch:
    """Wall and processor time of a server, from its making."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._cpu = machine.cpu_ns(server.pid)
        self.started = time.monotonic_ns()

    def read(self, results: Results, key: str, count: int, ended: int | None = None) -> float:
        """Note ``count`` per second until ``ended`` (or now), and the server's share; return s."""
        cpu = machine.cpu_ns(self._server.pid)
        elapsed = (ended or time.monotonic_ns()) - self.started
        results.figures[key] = count / elapsed * 1e9
        if cpu is not None and self._cpu is not None and elapsed >= SHORTEST_SHARED_NS:
            results.busy[key] = min(1.0, (cpu - self._cpu) / elapsed)
        return elapsed / 1e9


def single(bench: Bench) -> Results:
    results = Results()
    with bench.server.task() as path:
        _rate(bench, results, "single", path, ONE, 1)
    return results


def batch(bench: Bench) -> Results:
    results = Results()
    with bench.server.task() as path:
        _rate(bench, results, "batch", path, HUNDRED, 100)
    return results


def _rate(bench: Bench, results: Results, key: str, path: str, body: bytes, events: int) -> None:
    watch = Stopwatch(bench.server)
    rate = bench.rate(bench.server.port, path, body, bench.scale.seconds)
    watch.read(results, key, 0)
    results.figures[key] = rate * events


def ndjson(bench: Bench) -> Results:
    """One connection, one body; the time runs from its first byte to the answer."""
    results = Results()
    lines = bench.scale.lines
    body = (ONE + b"\n") * lines
    with bench.server.task() as path, Connection(bench.server.port) as connection:
        request = packet("POST", path, body, "application/x-ndjson")
        watch = Stopwatch(bench.server)
        try:
            answer = json.loads(connection.exchange(request))
        except (Refused, ConnectionError) as refusal:
            results.notes["ndjson"] = f"not measured: the server answered {refusal}"
        else:
            if not isinstance(answer, dict) or answer.get("accepted") != lines:
                results.notes["ndjson"] = "not measured: the answer does not tell what it took"
            else:
                watch.read(results, "ndjson", lines)
    return results


def fan_out(bench: Bench) -> Results:
    return _fan_out(bench, "fanout", ONE, 1, bench.scale.publishes)


def fan_out_batches(bench: Bench) -> Results:
    return _fan_out(bench, "fanout-batches", HUNDRED, 100, bench.scale.batches)


def _fan_out(bench: Bench, key: str, body: bytes, batch: int, publishes: int) -> Results:
    """One publisher, each publish sent when the one before it was answered."""
    results = Results()
    crowd = bench.scale.crowd
    deliveries = crowd * publishes * batch
    with bench.server.task() as path, following(bench.server, path, crowd, deliveries) as readers:
        readers.live()
        request = packet("POST", path, body)
        with Connection(bench.server.port) as publisher:
            watch = Stopwatch(bench.server)
            for _ in range(publishes):
                publisher.exchange(request)
            watch.read(results, key, deliveries, readers.mark())
    return results


def replay(bench: Bench) -> Results:
    """One reader that starts at index 0, from its connect to the last event."""
    results = Results()
    for count in bench.scale.replays:
        with bench.server.task() as path:
            request = packet("POST", path, HUNDRED)
            with Connection(bench.server.port) as publisher:
                for _ in range(count // 100):
                    publisher.exchange(request)
            bench.server.settle()
            watch = Stopwatch(bench.server)
            with following(bench.server, path, 1, count) as readers:
                # The interpreter that reads starts first; that is no part of the replay.
                watch.started, _ = readers.live()
                watch.read(results, f"replay-{count}", count, readers.mark())
    return results


def latency(bench: Bench) -> Results:
    """From the first byte of a publish until the last subscriber has it; one publish at a time."""
    results = Results()
    for crowd, publishes in bench.scale.latencies:
        times_ms = []
        with bench.server.task() as path, following(bench.server, path, crowd, crowd) as readers:
            readers.live()
            request = packet("POST", path, ONE)
            with Connection(bench.server.port) as publisher:
                for _ in range(publishes):
                    started = time.monotonic_ns()
                    publisher.exchange(request)
                    times_ms.append((readers.mark() - started) / 1e6)
        _centiles(results, f"latency-{crowd}", times_ms)
    return results


def _centiles(results: Results, key: str, times_ms: list[float]) -> None:
    centiles = statistics.quantiles(times_ms, n=100, method="inclusive")
    results.figures[f"{key}-p50"] = centiles[49]
    results.figures[f"{key}-p99"] = centiles[98]


def accumulate(bench: Bench) -> Results:
    """Pieces of one text, in batches of 100, until a live subscriber has the last of them."""
    results = Results()
    _accumulate(bench, results, "accumulate", bench.scale.pieces)
    return results


def _accumulate(bench: Bench, results: Results, key: str, pieces: tuple[int, ...]) -> None:
    seconds_each = []
    for count in pieces:
        with bench.server.task() as path, following(bench.server, path, 1, count) as readers:
            readers.live()
            bench.server.settle()  # what comes before it listens would be in a snapshot
            request = packet("POST", path, PIECES)
            with Connection(bench.server.port) as publisher:
                watch = Stopwatch(bench.server)
                for _ in range(count // 100):
                    publisher.exchange(request)
                seconds = watch.read(results, f"{key}-{count}", count, readers.mark())
            seconds_each.append(seconds / count)
    results.figures[f"{key}-growth"] = seconds_each[-1] / seconds_each[0]


def idle(bench: Bench) -> Results:
    """Streams of one task without events, on a server of their own.

    A process that has already run the others holds freed memory, which the streams would fill
    unseen.
    """
    results = Results()
    streams = bench.scale.idle_streams
    with _fresh() as server, server.task() as path:
        before = machine.resident_kib(server.pid)
        watch = Stopwatch(server)
        with following(server, path, streams, 1) as readers:
            watch.started, live = readers.live()
            results.figures["connects"] = watch.read(results, "connects", streams, live)
            server.settle()
            after = machine.resident_kib(server.pid)
        if before is None or after is None:
            results.notes["idle-memory"] = "not measured: needs /proc"
        else:
            results.figures["idle-memory"] = (after - before) / streams
    return results


def webhooks(bench: Bench) -> Results:
    """Deliveries of several tasks to one receiver, which shares the client's core; and what a
    webhook weighs that waits.
    """
    results = Results()
    tasks, batches = bench.scale.hooked
    for key, storage in (("webhooks", "memory"), ("webhooks-sqlite", "sqlite")):
        with servers.ours(storage) as server, receiving() as receiver:
            paths = _hooked(server, tasks, {"url": receiver.url, "secret": "secret"})
            watch = Stopwatch(server)
            for _ in range(batches):
                for path in paths:
                    _publish_all(server, path, 100)
            while receiver.received < tasks * batches * 100:
                time.sleep(0.01)
            watch.read(results, key, receiver.received)
    with _fresh() as server:
        sizes = []
        for hook in (None, {"url": "http://127.0.0.1:9/", "filter": {"types": ["never"]}}):
            before = machine.resident_kib(server.pid)
            with Connection(server.port) as publisher:
                for path in _hooked(server, bench.scale.idle_hooks, hook):
                    publisher.exchange(packet("POST", path, ONE))
            server.settle()
            after = machine.resident_kib(server.pid)
            if before is None or after is None:
                results.notes["webhooks-idle"] = "not measured: needs /proc"
                return results
            sizes.append((after - before) / bench.scale.idle_hooks)
        results.figures["webhooks-idle"] = sizes[1] - sizes[0]
    return results


def _hooked(server: Server, count: int, hook: dict[str, Any] | None) -> list[str]:
    """The paths of the events of so many new tasks, each with this webhook."""
    body = json.dumps({"webhooks": [] if hook is None else [hook]}).encode()
    with Connection(server.port) as connection:
        created = [connection.json("POST", "/tasks", body) for _ in range(count)]
    return [f"/tasks/{task['id']}/events" for task in created]


def sqlite(bench: Bench) -> Results:
    """Publishes that are answered after their fsync, and a replay off the file.

    The replay's memory is what the server grows by while one reader takes all of a log.
    """
    results = Results()
    count = bench.scale.replays[-1]
    with servers.ours("sqlite") as server:
        durable = replace(bench, server=server)
        with server.task() as path:
            _rate(durable, results, "sqlite-single", path, ONE, 1)
        with server.task() as path:
            _rate(durable, results, "sqlite-batch", path, HUNDRED, 100)
    with servers.ours("sqlite", "--sqlite-synchronous", "normal") as server, server.task() as path:
        _rate(replace(bench, server=server), results, "sqlite-normal-single", path, ONE, 1)
    with servers.ours("sqlite") as server, server.task() as path:
        _publish_all(server, path, count)
        _replay_all(server, results, "sqlite-replay", path, count)
    return results


def postgres(bench: Bench) -> Results:
    """Publishes to memory while an archive is written behind them, how fast that is, and a replay
    of a log that only the archive has.
    """
    results = Results()
    count = bench.scale.replays[-1]
    with databases.postgres() as url:
        options = ("--postgres-url", url, "--auto-migrate")
        with servers.ours("memory", *options) as server:
            archived = replace(bench, server=server)
            with server.task() as path:
                _rate(archived, results, "postgres-single", path, ONE, 1)
            with server.task() as path:
                _rate(archived, results, "postgres-batch", path, HUNDRED, 100)
        with servers.ours("memory", *options) as server, Connection(server.port) as connection:
            task = connection.json("POST", "/tasks", b"{}")
            path = f"/tasks/{task['id']}/events"
            watch = Stopwatch(server)
            _publish_all(server, path, count)
            while server.metric("taskcast_archived_events_total") < count:
                time.sleep(0.01)
            watch.read(results, "postgres-archived", count)
        with servers.ours("memory", *options) as server:
            _replay_all(server, results, "postgres-replay", path, count)
    return results


def redis(bench: Bench) -> Results:
    """Publishes that Redis has taken, and the way from one process over Redis to a subscriber at
    another.

    Redis shares the client's core: what it needs is missing there, not at the server.
    """
    results = Results()
    events = bench.scale.replays[0]
    with databases.redis() as store:
        options = ("--redis-url", store.url)
        with servers.ours("redis", *options) as server:
            stored = replace(bench, server=server)
            with server.task() as path:
                _rate(stored, results, "redis-single", path, ONE, 1)
            with server.task() as path:
                _rate(stored, results, "redis-batch", path, HUNDRED, 100)
            _accumulate(stored, results, "redis-accumulate", bench.scale.redis_pieces)
            with server.task() as path:
                _publish_all(server, path, events)
                taken = databases.memory_kib(store, path.split("/")[2])
                results.figures["redis-memory"] = taken / events * 1000
        with servers.ours("redis", *options) as one, servers.ours("redis", *options) as other:
            publishes = bench.scale.latencies[0][1]
            times_ms = []
            with one.task() as path, following(other, path, 1, 1) as readers:
                readers.live()
                request = packet("POST", path, ONE)
                with Connection(one.port) as publisher:
                    for _ in range(publishes):
                        started = time.monotonic_ns()
                        publisher.exchange(request)
                        times_ms.append((readers.mark() - started) / 1e6)
            _centiles(results, "redis-latency", times_ms)
    for row in ("redis-single", "redis-batch"):
        results.notes[row] = "Redis, with an append-only file, shares the client's core"
    results.notes["redis-latency-p50"] = "both servers on one core, Redis and the client on another"
    return results


def workers(bench: Bench) -> Results:
    """Tasks through the workers of the library, which share the client's core, and the time from
    the first byte of a create until its handler starts, one at a time.
    """
    results = Results()
    many, few = bench.scale.assignments
    for mode, assign_mode in (("websocket", "ws-offer"), ("pull", "pull")):
        request = packet("POST", "/tasks", json.dumps({"assignMode": assign_mode}).encode())
        with (
            servers.ours("memory", "--workers-api") as server,
            working(server, mode, bench.scale.workers) as crew,
            Connection(server.port) as creator,
        ):
            crew.live()
            server.settle()
            times_ms = []
            for _ in range(few):
                started = time.monotonic_ns()
                creator.exchange(request)
                times_ms.append((crew.mark() - started) / 1e6)
            _centiles(results, f"workers-{mode}", times_ms)
            watch = Stopwatch(server)
            for _ in range(many):
                creator.exchange(request)
            for _ in range(many):
                last = crew.mark()
            watch.read(results, f"workers-{mode}", many, last)
    return results


def _publish_all(server: Server, path: str, count: int) -> None:
    request = packet("POST", path, HUNDRED)
    with Connection(server.port) as publisher:
        for _ in range(count // 100):
            publisher.exchange(request)


def _replay_all(server: Server, results: Results, key: str, path: str, count: int) -> None:
    """A whole log for one reader, and what the server grows by meanwhile."""
    server.settle()
    before = machine.resident_kib(server.pid)
    watch = Stopwatch(server)
    with following(server, path, 1, count) as readers:
        watch.started, _ = readers.live()
        watch.read(results, key, count, readers.mark())
    after = machine.resident_kib(server.pid)
    if before is None or after is None:
        results.notes[f"{key}-memory"] = "not measured: needs /proc"
    else:
        results.figures[f"{key}-memory"] = (after - before) / 1024


@contextmanager
def _fresh() -> Iterator[Server]:
    with servers.ours() as server:
        # What the first stream and the first request load stays for all of them.
        with server.task() as path, following(server, path, 1, 1) as readers:
            readers.live()
        yield server


BENCHMARKS: dict[str, Callable[[Bench], Results]] = {
    "single": single,
    "batch": batch,
    "ndjson": ndjson,
    "fanout": fan_out,
    "fanout-batches": fan_out_batches,
    "replay": replay,
    "latency": latency,
    "accumulate": accumulate,
    "idle": idle,
    "sqlite": sqlite,
    "postgres": postgres,
    "redis": redis,
    "workers": workers,
    "webhooks": webhooks,
}
