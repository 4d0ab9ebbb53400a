"""What is counted, for ``/metrics`` (Prometheus text format). One registry per runtime, nothing
global.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The instruments of one runtime. Names carry their unit; labels are few and bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks_created = Counter(
            "taskcast_tasks_created", "Tasks created", registry=self.registry
        )
        self.transitions = Counter(
            "taskcast_transitions", "Status changes of tasks", ["status"], registry=self.registry
        )
        self.events = Counter("taskcast_events", "Events committed", registry=self.registry)
        self.tasks = Gauge(
            "taskcast_tasks", "Tasks in the short-term store", registry=self.registry
        )
        self.subscribers = Gauge(
            "taskcast_subscribers", "Open subscriptions", ["kind"], registry=self.registry
        )
        self.lagged = Counter(
            "taskcast_subscribers_lagged",
            "Commits that met a full inbox; the subscriber reads the store instead",
            registry=self.registry,
        )
        self.gaps = Counter(
            "taskcast_gaps", "Gaps told to subscribers", ["reason"], registry=self.registry
        )
        self.deliver_seconds = Histogram(
            "taskcast_publish_to_deliver_seconds",
            "From an event's timestamp to its hand-over to a live subscriber",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self.registry,
        )
        self.requests = Counter(
            "taskcast_http_requests",
            "HTTP requests answered",
            ["method", "status"],
            registry=self.registry,
        )
        self.archived_events = Counter(
            "taskcast_archived_events", "Events written to the archive", registry=self.registry
        )
        self.archive_failures = Counter(
            "taskcast_archive_failures",
            "Times that the archive was away when something was to be written",
            registry=self.registry,
        )
        self.archive_unwritable = Counter(
            "taskcast_archive_unwritable_rows",
            "Events and tasks set aside because the archive can't hold them",
            registry=self.registry,
        )
        self.archive_lag_seconds = Gauge(
            "taskcast_archive_lag_seconds",
            "How long the oldest change has waited to be archived",
            registry=self.registry,
        )
        self.released = Counter(
            "taskcast_tasks_released",
            "Ended tasks that only the archive has since",
            registry=self.registry,
        )
        self.cleaned_tasks = Counter(
            "taskcast_cleanup_tasks", "Tasks removed by cleanup rules", registry=self.registry
        )
        self.cleaned_events = Counter(
            "taskcast_cleanup_events",
            "Events removed by cleanup rules from tasks that stayed",
            registry=self.registry,
        )
        self.webhook_tries = Counter(
            "taskcast_webhook_tries",
            "Tries to deliver an event to a webhook",
            ["outcome"],
            registry=self.registry,
        )
        self.webhook_failures = Counter(
            "taskcast_webhook_failures",
            "Tries that failed, by the reason",
            ["reason"],
            registry=self.registry,
        )
        self.webhook_dead_letters = Counter(
            "taskcast_webhook_dead_letters",
            "Events that were given up after the last try",
            registry=self.registry,
        )
        self.webhook_lag = Histogram(
            "taskcast_webhook_lag_seconds",
            "From an event's timestamp to its delivery",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 3600),
            registry=self.registry,
        )
        self.webhook_workers = Gauge(
            "taskcast_webhook_tasks", "Tasks whose webhooks are at work", registry=self.registry
        )
        self.assigned = Counter(
            "taskcast_tasks_assigned", "Tasks given to workers", registry=self.registry
        )
        self.leases_lost = Counter(
            "taskcast_leases_lost",
            "Tasks whose worker was lost",
            ["policy"],
            registry=self.registry,
        )
        self.workers = Gauge("taskcast_workers", "Workers that are known", registry=self.registry)
        # Looking a label up costs more than counting.
        self.task_subscribers = self.subscribers.labels("task")
        self.global_subscribers = self.subscribers.labels("global")
