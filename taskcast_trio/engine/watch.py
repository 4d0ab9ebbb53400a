"""A watch: learns that a task has changed, without following its log."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import trio

from taskcast_trio.storage.records import TaskRecord

from .fanout import Fanout


class Watch:
    """Entered as a context, before the task is read; counts as no subscriber."""

    def __init__(self, task_id: str, fanout: Fanout) -> None:
        self._task_id = task_id
        self._fanout = fanout

    def __enter__(self) -> Self:
        """Raises Draining where the engine shuts down."""
        self._inbox = self._fanout.attach(self._task_id, counts=False)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._fanout.detach(self._task_id, self._inbox)

    async def changed(self, known: TaskRecord) -> None:
        """Wait until the task itself is another one than ``known``, or may be; events alone do not
        count. Cancellation loses nothing.

        Raises:
            Draining: the engine shuts down.
        """
        inbox, changed = self._inbox, trio.Event()

        def look() -> None:
            commits = inbox.take_nowait()
            news = any(
                commit.deleted
                or commit.record.epoch != known.epoch
                or commit.record.revision > known.revision
                for commit in commits
            )
            if news or inbox.waiting:  # there is more, or it was cut
                changed.set()

        inbox.on_ready = look
        try:
            if inbox.waiting:
                look()
            await changed.wait()
        finally:
            inbox.on_ready = None
        if inbox.waiting:  # it was cut
            self._inbox = self._fanout.attach(self._task_id, counts=False)
            self._fanout.detach(self._task_id, inbox)
