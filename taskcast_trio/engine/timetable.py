"""What is due for a task, of every kind, and who is told when that is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from msgspec import UNSET

from taskcast_trio.core import assignment
from taskcast_trio.core.deadline import timers_at_change, timers_at_start
from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.core.model import Task
from taskcast_trio.storage.records import PARKED_MS, Timers

from .cleanup_plan import CLEANUP, CleanupPlan
from .webhooks.state import WEBHOOK
from .webhooks.state import timers_of as webhook_timers


class Timetable:
    """The timers that go with a step; the loops that wait for them are told of each."""

    def __init__(self, plan: CleanupPlan | None = None) -> None:
        self.plan = plan or CleanupPlan()
        self._loops: dict[str, Callable[[int], None]] = {}

    def tell(self, kind: str, notify: Callable[[int], None]) -> None:
        """Call ``notify`` with each time that a timer of this kind is set to; it must not wait."""
        self._loops[kind] = notify

    def at_start(self, task: Task, now_ms: int, *, imported: bool = False) -> dict[str, int]:
        """What is due for a task that is created, imported, or taken in from the archive. For one
        that is imported no worker is looked for.
        """
        # What an import brings is to be delivered; its timer must differ from any lease of before.
        webhooks = webhook_timers(task, due_ms=now_ms + 1 if imported else PARKED_MS)
        timers = timers_at_start(task, now_ms) | self._cleanup(task) | webhooks
        return timers if imported else timers | assignment.timers_at_start(task, now_ms)

    def at_change(
        self, before: Task, after: Task, now_ms: int, *, new_ttl: bool
    ) -> dict[str, int | None]:
        """What a transition sets and clears; ``new_ttl``: it came with one."""
        timers = timers_at_change(before, after, now_ms, new_ttl=new_ttl)
        return timers | self._cleanup(after) | assignment.timers_at_change(before, after, now_ms)

    def _cleanup(self, task: Task) -> dict[str, int]:
        due_ms = self.plan.due_of(task)
        return {} if due_ms is None else {CLEANUP: due_ms}

    def appended(self, task: Task, now_ms: int) -> None:
        """There is something new in the task's log."""
        if task.webhooks is not UNSET and task.webhooks:
            self.set({WEBHOOK: now_ms})

    def may_have_appended(self, now_ms: int) -> None:
        """A step that appends to a task's log ended so that nobody can say whether it did."""
        self.set({WEBHOOK: now_ms})

    @contextmanager
    def appending(self, now_ms: int) -> Iterator[None]:
        """Around such a step (publishing does without: it would cost it one request in 25)."""
        try:
            yield
        except (StoreUnavailable, trio.Cancelled):
            self.may_have_appended(now_ms)
            raise

    def set(self, timers: Timers) -> None:
        """These were set, or may have been."""
        for kind, due_ms in timers.items():
            notify = self._loops.get(kind)
            if notify is not None and due_ms is not None:
                notify(due_ms)

    @contextmanager
    def setting(self, timers: Timers) -> Iterator[Timers]:
        """Around a step that sets them: the loops are told however it ends."""
        try:
            yield timers
        finally:
            self.set(timers)
