"""The runtime: opens the store, owns every background task in one nursery, and surfaces their
crashes.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from msgspec import UNSET, UnsetType

from taskcast_trio.config import Config
from taskcast_trio.core.cleanup import parse_rules
from taskcast_trio.core.model import AssignMode
from taskcast_trio.storage.long_term import LongTermStore
from taskcast_trio.storage.protocols import Backend
from taskcast_trio.storage.records import Commit, CountLimits, LogLimits

from .archiver import Archiver
from .backends import open_stores
from .bulletin import Bulletin
from .cleaner import Cleaner
from .cleanup_plan import CLEANUP, CleanupPlan
from .engine import TaskEngine, wall_clock_ms
from .fanout import Fanout
from .metrics import Metrics
from .ordered import Holds
from .scheduler import Scheduler
from .timetable import Timetable
from .webhooks import Dialer, Webhooks
from .webhooks.opened import open_webhooks
from .webhooks.state import WEBHOOK
from .workers import Workers

ARCHIVE_FLUSH_S: Final = 5.0
"""How long the end may take to archive what is not yet."""
WEBHOOKS_LEFT: Final = "webhooks"
"""The topic on which a process that drains tells the others to deliver what it has left."""
WEBHOOKS_S: Final = 3.0
"""How long the tries that run then may take to end."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a server needs, for as long as ``open_runtime`` is open.

    Setting ``drain`` begins the shutdown: readiness fails, subscriptions end, new work is refused.
    """

    config: Config
    engine: TaskEngine
    backend: Backend
    metrics: Metrics
    bulletin: Bulletin
    drain: trio.Event
    started_ms: int
    scheduler: Scheduler
    cleaner: Cleaner
    webhooks: Webhooks
    workers: Workers | None = None
    archive: LongTermStore | None = None
    archiver: Archiver | None = None


@asynccontextmanager
async def open_runtime(
    config: Config | None = None,
    *,
    clock: Callable[[], int] = wall_clock_ms,
    noise: Callable[[int], int] = secrets.randbits,
    jitter: Callable[[], float] = random.random,
    dialer: Dialer | None = None,
) -> AsyncIterator[Runtime]:
    """Open a runtime; leaving the context ends its background tasks and closes its store.

    ``clock`` gives Unix ms, ``noise(n)`` n random bits, ``jitter`` a number in [0, 1) for each wait
    before a retry. ``dialer`` connects to receivers of webhooks in place of one that goes by the
    configuration. A crash of a background task cancels the
    body and is raised from here, in an ExceptionGroup; the body's own exception is raised as it is.
    Cancelling the body is the ordinary way to end it early.
    """
    config = config or Config()
    metrics = Metrics()
    async with (
        open_stores(config) as stores,
        open_webhooks(config, stores.backend, metrics, clock, jitter, dialer) as webhooks,
    ):
        backend, archive = stores.backend, stores.archive
        fanout = Fanout(
            metrics, inbox_commits=config.fanout.channel_batches, audience=backend.broadcast
        )
        timetable = Timetable(CleanupPlan(parse_rules(config.cleanup.rules)))
        archiver = None
        if archive is not None:
            archiver = Archiver(
                backend.store,
                archive,
                metrics,
                clock=clock,
                retention_ms=_retention_ms(config),
                due_of=timetable.plan.due_of,
            )
        engine = TaskEngine(
            backend.store,
            fanout,
            metrics,
            clock=clock,
            noise=noise,
            log_limits=LogLimits(config.limits.task_events, config.limits.task_bytes),
            archive=archive,
            changed=archiver.changed if archiver else lambda: None,
            peers=backend.peers,
            timetable=timetable,
            assign_mode=_assign_mode(config),
            counting=CountLimits(config.publish.publishers_per_task),
            holds=Holds(
                fanout,
                hold_s=config.publish.seq_hold_ms / 1000,
                per_task=config.publish.held_per_task,
                total=config.publish.held,
            ),
        )
        scheduler = Scheduler(
            engine.store,
            backend.store,
            clock=clock,
            timetable=timetable,
            changes=engine.changes,
            shared=backend.peers is not None,
        )
        cleaner = Cleaner(
            engine.store,
            backend.store,
            timetable.plan,
            metrics,
            clock=clock,
            archive=archive,
            changed=archiver.changed if archiver else lambda: None,
            owes=webhooks.owes,
        )
        timetable.tell(CLEANUP, cleaner.notify)
        timetable.tell(WEBHOOK, webhooks.notify)
        bulletin = Bulletin(backend.peers)
        workers = None
        if config.workers.enabled:
            workers = Workers(
                config.workers.defaults,
                engine,
                backend,
                bulletin,
                metrics,
                most_workers=config.limits.workers,
                noise=noise,
            )
        drain = trio.Event()
        raised: Exception | None = None
        async with trio.open_nursery(strict_exception_groups=True) as services:
            await services.start(fanout.run, name="fan-out")
            sink = _Sinks(fanout, webhooks, workers)
            await services.start(backend.broadcast.run, sink, name="broadcast listener")
            if backend.peers is not None:
                await services.start(backend.peers.run, bulletin.heard, name="peers")
            bulletin.listen(WEBHOOKS_LEFT, lambda _: webhooks.notify(clock()))
            services.start_soon(_close_on_drain, drain, fanout, webhooks, workers, name="drain")
            tell_others = partial(bulletin.tell, WEBHOOKS_LEFT, b"")
            await services.start(webhooks.run, tell_others, name="webhooks")
            if archiver is not None:
                await services.start(archiver.run, name="archiver")
            await services.start(cleaner.run, name="cleaner")
            await services.start(scheduler.run, name="scheduler")
            if workers is not None:
                await services.start(workers.run, name="workers")
            try:
                yield Runtime(
                    config,
                    engine,
                    backend,
                    metrics,
                    bulletin,
                    drain,
                    clock(),
                    scheduler,
                    cleaner,
                    webhooks,
                    workers,
                    archive,
                    archiver,
                )
            except Exception as error:
                raised = error
            finally:
                with trio.move_on_after(WEBHOOKS_S, shield=True):
                    await webhooks.finish()
                if archiver is not None:
                    with trio.move_on_after(ARCHIVE_FLUSH_S, shield=True):
                        await archiver.finish()
            services.cancel_scope.cancel()
        if raised is not None:
            raise raised


def _retention_ms(config: Config) -> int | None:
    lifecycle = config.storage_lifecycle
    if not lifecycle.hot_retention_enabled:
        return None
    return int(lifecycle.hot_retention_terminal_seconds * 1000)


def _assign_mode(config: Config) -> AssignMode | UnsetType:
    """Of tasks that do not say; ``external`` is what they are without a word."""
    mode = config.workers.defaults.assign_mode
    return mode if config.workers.enabled and mode != "external" else UNSET


async def _close_on_drain(
    drain: trio.Event, fanout: Fanout, webhooks: Webhooks, workers: Workers | None
) -> None:
    await drain.wait()
    fanout.close()
    webhooks.close()
    if workers is not None:
        workers.close()


class _Sinks:
    """Hands what was committed to those who follow it."""

    def __init__(self, fanout: Fanout, webhooks: Webhooks, workers: Workers | None) -> None:
        self._fanout = fanout
        self._webhooks = webhooks
        self._workers = workers

    def committed(self, commit: Commit) -> None:
        self._fanout.committed(commit)
        self._webhooks.committed(commit)
        if self._workers is not None:
            self._workers.committed(commit)

    def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
        self._fanout.interrupted(task_ids)
        self._webhooks.interrupted(task_ids)
        if self._workers is not None:
            self._workers.interrupted(task_ids)


@asynccontextmanager
async def open_engine(config: Config | None = None) -> AsyncIterator[TaskEngine]:
    """A task engine without HTTP, open as long as the context."""
    async with open_runtime(config) as runtime:
        yield runtime.engine
