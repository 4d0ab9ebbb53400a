"""How much is measured, and the rows of the table that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

# What a process needs besides its streams: libraries, pipes, the listener, the poller.
SPARE_FILES = 200
AIMED_STREAMS = 10_000


@dataclass(frozen=True, slots=True)
class Scale:
    """Counts of one run. The targets hold for the full scale only."""

    full: bool
    seconds: float
    lines: int
    crowd: int
    publishes: int
    batches: int
    replays: tuple[int, ...]
    latencies: tuple[tuple[int, int], ...]
    """Subscribers, and publishes measured with them."""
    pieces: tuple[int, ...]
    redis_pieces: tuple[int, int]
    idle_streams: int
    workers: int
    assignments: tuple[int, int]
    """Tasks that are created one after another, and tasks of which each waits for the one before.
    """
    hooked: tuple[int, int]
    """Tasks with a webhook, and batches of 100 events for each."""
    idle_hooks: int

    def within(self, open_files: int) -> Scale:
        """The scale that a limit on open files allows; each stream takes one on either side."""
        allowed = max(1, open_files - SPARE_FILES)
        return replace(self, idle_streams=min(self.idle_streams, allowed))


FULL = Scale(
    full=True,
    seconds=2,
    lines=100_000,
    crowd=1_000,
    publishes=200,
    batches=20,
    replays=(20_000, 100_000),
    latencies=((1, 1_000), (100, 500), (1_000, 200)),
    pieces=(5_000, 10_000, 20_000),
    redis_pieces=(5_000, 40_000),
    idle_streams=AIMED_STREAMS,
    workers=50,
    assignments=(3_000, 500),
    hooked=(16, 10),
    idle_hooks=10_000,
)
QUICK = Scale(
    full=False,
    seconds=0.2,
    lines=100,
    crowd=5,
    publishes=4,
    batches=2,
    replays=(200, 400),
    latencies=((1, 5), (5, 5)),
    pieces=(100, 200, 400),
    redis_pieces=(100, 400),
    idle_streams=20,
    workers=3,
    assignments=(10, 5),
    hooked=(2, 1),
    idle_hooks=100,
)


class Unit(Enum):
    """What a figure is in. Rates are set against H and larger is better; the rest the reverse."""

    REQUESTS = "requests/s"
    EVENTS = "events/s"
    DELIVERIES = "deliveries/s"
    ASSIGNMENTS = "assignments/s"
    SECONDS = "s"
    MS = "ms"
    KIB = "KiB"
    MIB = "MiB"
    TIMES = "times"

    @property
    def is_rate(self) -> bool:
        return self.value.endswith("/s")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: ``key`` is its name in the JSON file, ``benchmark`` what ``--only`` takes.

    ``target`` is a multiple of H for a rate, a figure not to be passed for the rest.
    """

    benchmark: str
    key: str
    title: str
    unit: Unit
    target: float | None = None


def rows(scale: Scale) -> list[Row]:
    """Every row of the table at a scale, in order."""
    crowd, idle = f"{scale.crowd:,}", f"{scale.idle_streams:,}"
    low, *_, high = scale.pieces
    replayed = scale.replays[-1]
    found = [
        Row("single", "single", "single publish", Unit.REQUESTS, 4.5),
        Row("batch", "batch", "publish in batches of 100", Unit.EVENTS, 30),
        Row("ndjson", "ndjson", f"NDJSON ingest, {scale.lines:,} lines", Unit.EVENTS, 45),
        Row("fanout", "fanout", f"fan-out to {crowd}, one by one", Unit.DELIVERIES, 17),
        Row(
            "fanout-batches",
            "fanout-batches",
            f"fan-out to {crowd}, batches of 100",
            Unit.DELIVERIES,
            400,
        ),
    ]
    found += [
        Row("replay", f"replay-{count}", f"SSE replay of {count:,} events", Unit.EVENTS, 150)
        for count in scale.replays
    ]
    for count, _ in scale.latencies:
        title = f"last delivery to {count:,} subscriber{'s' * (count > 1)}"
        p50, p99 = (2.2, 5.0) if count == 100 else (None, None)
        found += [
            Row("latency", f"latency-{count}-p50", f"{title}, p50", Unit.MS, p50),
            Row("latency", f"latency-{count}-p99", f"{title}, p99", Unit.MS, p99),
        ]
    found += [
        Row("accumulate", f"accumulate-{count}", f"accumulate, {count:,} pieces", Unit.EVENTS)
        for count in scale.pieces
    ]
    whole = scale.idle_streams == AIMED_STREAMS
    return [
        *found,
        Row(
            "accumulate",
            "accumulate-growth",
            f"time per piece, {high:,} to {low:,} pieces",
            Unit.TIMES,
            1.5,
        ),
        Row("idle", "connects", f"{idle} connects", Unit.SECONDS, 3.0 if whole else None),
        Row("idle", "idle-memory", f"memory per idle stream, of {idle}", Unit.KIB, 15),
        Row("sqlite", "sqlite-single", "sqlite: single publish", Unit.REQUESTS),
        Row("sqlite", "sqlite-batch", "sqlite: publish in batches of 100", Unit.EVENTS),
        Row(
            "sqlite",
            "sqlite-normal-single",
            "sqlite, synchronous normal: single publish",
            Unit.REQUESTS,
        ),
        Row("sqlite", "sqlite-replay", f"sqlite: SSE replay of {replayed:,} events", Unit.EVENTS),
        Row("sqlite", "sqlite-replay-memory", "sqlite: memory that replay takes", Unit.MIB),
        Row("postgres", "postgres-single", "memory + PostgreSQL: single publish", Unit.REQUESTS),
        Row(
            "postgres",
            "postgres-batch",
            "memory + PostgreSQL: publish in batches of 100",
            Unit.EVENTS,
        ),
        Row("postgres", "postgres-archived", "PostgreSQL: published and archived", Unit.EVENTS),
        Row(
            "postgres",
            "postgres-replay",
            f"PostgreSQL: SSE replay of {replayed:,} archived events",
            Unit.EVENTS,
        ),
        Row("postgres", "postgres-replay-memory", "PostgreSQL: memory that replay takes", Unit.MIB),
        Row("redis", "redis-single", "redis: single publish", Unit.REQUESTS, 1.8),
        Row("redis", "redis-batch", "redis: publish in batches of 100", Unit.EVENTS, 6.5),
        *(
            Row(
                "redis",
                f"redis-accumulate-{count}",
                f"redis: accumulate, {count:,} pieces in batches of 100",
                Unit.EVENTS,
                7,
            )
            for count in scale.redis_pieces
        ),
        Row(
            "redis",
            "redis-accumulate-growth",
            "redis: time per piece, {1:,} to {0:,} pieces".format(*scale.redis_pieces),
            Unit.TIMES,
            1.5,
        ),
        Row("redis", "redis-latency-p50", "redis: publish to delivery by another, p50", Unit.MS),
        Row("redis", "redis-latency-p99", "redis: publish to delivery by another, p99", Unit.MS),
        Row("redis", "redis-memory", "redis: its memory for 1,000 events", Unit.KIB),
        Row("webhooks", "webhooks", "webhooks to one host", Unit.DELIVERIES),
        Row("webhooks", "webhooks-sqlite", "sqlite: webhooks to one host", Unit.DELIVERIES),
        Row("webhooks", "webhooks-idle", "memory per idle webhook", Unit.KIB),
        *_of_workers(scale.workers),
    ]


def _of_workers(count: int) -> list[Row]:
    found = []
    for mode, how in (("websocket", "over WebSockets"), ("pull", "that pull")):
        crew = f"{count} workers {how}"
        found += [
            Row("workers", f"workers-{mode}", f"{crew}: tasks done", Unit.ASSIGNMENTS),
            Row("workers", f"workers-{mode}-p50", f"{crew}: create to handler, p50", Unit.MS),
            Row("workers", f"workers-{mode}-p99", f"{crew}: create to handler, p99", Unit.MS),
        ]
    return found
