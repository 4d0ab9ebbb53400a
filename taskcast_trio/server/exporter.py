"""Shows a server's connection counters to Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from taskcast_trio.server.connection import GuardStats


class GuardCollector(Collector):
    """Reads the counters when they are scraped."""

    def __init__(self, stats: GuardStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        yield GaugeMetricFamily(
            "taskcast_connections", "Open connections", value=stats.connections_open
        )
        for name, text, value in (
            ("accepted", "Connections accepted", stats.accepted_total),
            ("refused", "Connections closed at once, over the cap", stats.refused_total),
            ("crashed", "Connections ended by an error of their own", stats.guarded_errors_total),
            (
                "stalled",
                "Connections cut because the peer did not read",
                stats.write_timeouts_total,
            ),
        ):
            yield CounterMetricFamily(f"taskcast_connections_{name}", text, value=value)
