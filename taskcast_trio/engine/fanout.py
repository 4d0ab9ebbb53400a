"""Fan-out: from one commit to the inbox of every local subscriber, waiting for none."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import trio

from taskcast_trio.core.errors import Draining
from taskcast_trio.storage.protocols import Audience
from taskcast_trio.storage.records import Commit

from .metrics import Metrics

_Channel: TypeAlias = tuple[trio.MemorySendChannel[Commit], trio.MemoryReceiveChannel[Commit]]

DEFAULT_INBOX_COMMITS: Final = 64
YIELD_AFTER_S: Final = 0.005


class Inbox:
    """One subscriber's bounded queue of commits.

    When it is full, or announcements may have been lost, it is cut: what is queued can still be
    taken, then :meth:`take` says so, and the cursor that owns the inbox reads its log instead.

    The owner waits in :meth:`take`, or leaves ``on_ready`` to be called when there is something to
    take (or the inbox was cut): that saves a task switch for each commit. It must not raise.
    """

    __slots__ = ("_capacity", "_channel", "_cut", "called", "counts", "on_ready")

    def __init__(self, capacity: int, *, counts: bool = True) -> None:
        self._capacity = capacity
        self.counts = counts
        """Whether its owner is a subscriber."""
        self._channel: _Channel | None = None
        """Made for the first commit, as it is most of what an idle subscriber would weigh."""
        self._cut = False
        self.on_ready: Callable[[], None] | None = None
        self.called = False
        """Whether a call of ``on_ready`` is due."""

    def put(self, commit: Commit) -> bool:
        """Queue the commit; False where that cut the inbox (or it was cut already)."""
        if self._cut:
            return False
        send, _ = self._channel or self._open()
        try:
            send.send_nowait(commit)
        except trio.WouldBlock:
            self.cut()
            return False
        return True

    def cut(self) -> None:
        self._cut = True
        if self._channel is not None:
            self._channel[0].close()

    async def take(self) -> list[Commit]:
        """Wait for commits and take all that are queued; an empty list once the inbox is cut and
        drained.

        Cancellation takes nothing.
        """
        _, receive = self._channel or self._open()
        try:
            commits = [await receive.receive()]
        except trio.EndOfChannel:
            return []
        return commits + self.take_nowait()

    @property
    def waiting(self) -> bool:
        """Whether there is something to take, or the inbox is cut."""
        if self._cut or self._channel is None:
            return self._cut
        return self._channel[1].statistics().current_buffer_used > 0

    def take_nowait(self) -> list[Commit]:
        """All that are queued."""
        commits: list[Commit] = []
        if self._channel is None:
            return commits
        _, receive = self._channel
        try:
            while True:
                commits.append(receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return commits

    def close(self) -> None:
        self.cut()
        if self._channel is not None:
            self._channel[1].close()

    def _open(self) -> _Channel:
        self._channel = trio.open_memory_channel[Commit](self._capacity)
        if self._cut:
            self._channel[0].close()
        return self._channel


class Fanout:
    """Knows the inboxes of this process: those of one task, and those that follow all."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        inbox_commits: int = DEFAULT_INBOX_COMMITS,
        audience: Audience | None = None,
    ) -> None:
        self._metrics = metrics
        self._audience = audience
        self._inbox_commits = inbox_commits
        self._by_task: defaultdict[str, dict[Inbox, None]] = defaultdict(dict)
        self._global: dict[Inbox, None] = {}
        self._uncounted: Counter[str] = Counter()
        self._closed = False
        self._due: deque[Inbox] = deque()
        self._some_due = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call the inboxes that want to be called, until cancelled.

        One task does it for all of them, and lets others run every few milliseconds.
        """
        task_status.started()
        while True:
            await self._some_due.wait()
            self._some_due = trio.Event()
            yielded = trio.current_time()
            while self._due:
                inbox = self._due.popleft()
                inbox.called = False
                if inbox.on_ready is not None:
                    inbox.on_ready()
                now = trio.current_time()
                if now - yielded > YIELD_AFTER_S:
                    await trio.lowlevel.checkpoint()
                    yielded = trio.current_time()

    def _call(self, inbox: Inbox) -> None:
        if inbox.on_ready is not None and not inbox.called:
            inbox.called = True
            self._due.append(inbox)
            self._some_due.set()

    def attach(self, task_id: str | None, *, counts: bool = True) -> Inbox:
        """A new inbox for one task, or for all of them; every later commit goes into it.

        Where it does not ``count``, its owner is no subscriber of the task.

        Raises:
            Draining: the fan-out is closed.
        """
        if self._closed:
            raise Draining("The server is shutting down: reconnect to follow on")
        inbox = Inbox(self._inbox_commits, counts=counts)
        if task_id is None:
            self._global[inbox] = None
        else:
            self._by_task[task_id][inbox] = None
            if not counts:
                self._uncounted[task_id] += 1
        if self._audience is not None:
            self._audience.attached(task_id, counts=counts)
        return inbox

    def detach(self, task_id: str | None, inbox: Inbox) -> None:
        """Forget the inbox and close it. Never waits."""
        inbox.close()
        inboxes = self._global if task_id is None else self._by_task.get(task_id, {})
        if inbox not in inboxes:
            return
        del inboxes[inbox]
        if task_id is not None and not inboxes:
            del self._by_task[task_id]
        if task_id is not None and not inbox.counts:
            self._uncounted[task_id] -= 1
            if not self._uncounted[task_id]:
                del self._uncounted[task_id]
        if self._audience is not None:
            self._audience.detached(task_id, counts=inbox.counts)

    def subscribers(self, task_id: str) -> int:
        """How many inboxes follow this task (those that follow every task do not count)."""
        return len(self._by_task.get(task_id, ())) - self._uncounted[task_id]

    def committed(self, commit: Commit) -> None:
        inboxes = self._by_task.get(commit.record.task.id)
        for each in (inboxes, self._global):
            for inbox in each or ():
                if not inbox.put(commit):
                    self._metrics.lagged.inc()
                self._call(inbox)

    def close(self) -> None:
        """Cut every inbox and take no more; their owners get ``Draining``."""
        self._closed = True
        self.interrupted()

    def interrupted(self, task_ids: Iterable[str] | None = None) -> None:
        for task_id in self._by_task if task_ids is None else task_ids:
            for inbox in self._by_task.get(task_id, ()):
                inbox.cut()
                self._call(inbox)
        for inbox in self._global:
            inbox.cut()
