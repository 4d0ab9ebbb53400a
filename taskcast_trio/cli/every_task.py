"""The events of every task, each once, also when the connection is lost between.

The server's stream of all tasks knows no cursor. So this keeps one for each task, and after a lost
connection reads what came meanwhile from the logs, before it goes on with what is live.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

import trio
from msgspec import UNSET

from taskcast_trio.cli.event_text import ends_task, event_of
from taskcast_trio.client import AsyncTaskcastClient, Gap, Subscription
from taskcast_trio.core.errors import BadRequest, TaskcastError, TaskNotFound
from taskcast_trio.core.model import Event, Level, Task

PATIENCE_S: Final = 300.0
PAUSE_S: Final = 1.0
PAGE_TASKS: Final = 500
PAGE_EVENTS: Final = 1000
MAX_CURSORS: Final = 50_000
SORTED_EVENTS: Final = 10_000
SORTED_BYTES: Final = 8 * 1024 * 1024
"""As much of what the logs of several tasks have is put in the order of time at once."""


@dataclass(slots=True)
class _Cursor:
    """The last event of a task that was shown."""

    index: int
    timestamp: int
    ended: bool = False


@dataclass(slots=True)
class _Part:
    """How far the log of a task has been read."""

    task_id: str
    floor: int
    """Events up to this index were shown before."""
    since: str | int | datetime
    newest: Event | None = None
    reached_ms: int = 0
    """The latest time so far: an event that the log has behind it is not shown before it."""


class EveryTask:
    """Follows every task; ``show`` gets each event, ``note`` a line for a person, ``opened`` the
    stream, and ``begun`` is called when the past is over and nothing that comes is missed.
    """

    def __init__(
        self,
        client: AsyncTaskcastClient,
        *,
        types: Sequence[str] | None,
        levels: Sequence[Level] | None,
        since: datetime | None,
        show: Callable[[Event], None],
        note: Callable[[str], None],
        opened: Callable[[Subscription[Any]], None] = lambda _: None,
        begun: Callable[[], None] = lambda: None,
        max_cursors: int = MAX_CURSORS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._types = types
        self._levels = levels
        self._since = since
        self._show = show
        self._note = note
        self._begun = begun
        self._opened = opened
        self._max_cursors = max_cursors
        self._clock = clock
        self._cursors: OrderedDict[str, _Cursor] = OrderedDict()
        """Those longest silent first."""
        self._from_ms = clock() * 1000 if since is None else since.timestamp() * 1000
        """From when on the events of tasks without a cursor are to be shown; by the server's clock,
        as far as that is known.
        """
        self._skew_known = since is not None
        self._part: _Part | None = None
        """What was being read when the server went away."""
        self._past: list[tuple[int, Event]] = []
        """What was read of the logs, and is to be shown in the order of time."""
        self._past_bytes = 0

    async def past(self) -> None:
        """Show what the logs have from ``since`` on."""
        await self._catch_up()

    async def follow(self) -> None:
        """Show the past, if there is a ``since``, and then what comes, until cancelled.

        Raises:
            TaskcastError: the server refuses, or is away for too long.
        """
        stream = self._client.subscribe_all(
            types=self._types, levels=self._levels, existing=True, gaps="deliver"
        )
        async with stream:
            self._opened(stream)
            if self._since is not None:
                await self._catch_up()
            self._begun()
            async for item in stream:
                if isinstance(item, Gap):
                    self._note("the connection was lost: reading what came meanwhile")
                    await self._catch_up_patiently()
                    continue
                event = event_of(item)
                self._learn_skew(event)
                known = self._cursors.get(event.task_id)
                # A task that was made anew under its id counts from 0 again.
                if known and event.index <= known.index and event.timestamp <= known.timestamp:
                    continue
                self._show(event)
                self._keep(event)

    def _learn_skew(self, event: Event) -> None:
        """The first live event tells how far the server's clock is from this one."""
        if not self._skew_known:
            self._skew_known = True
            self._from_ms += event.timestamp - self._clock() * 1000

    def _keep(self, event: Event) -> None:
        self._cursors[event.task_id] = _Cursor(event.index, event.timestamp, ends_task(event))
        self._cursors.move_to_end(event.task_id)
        if len(self._cursors) > self._max_cursors:
            _, oldest = self._cursors.popitem(last=False)
            self._from_ms = max(self._from_ms, oldest.timestamp)

    async def _catch_up_patiently(self) -> None:
        """As :meth:`_catch_up`, also where the server goes away again; goes on where it stood."""
        deadline = trio.current_time() + PATIENCE_S
        while True:
            try:
                await self._catch_up()
            except TaskcastError as error:
                if not error.retryable or trio.current_time() > deadline:
                    raise
            else:
                return
            await trio.sleep(PAUSE_S)

    async def _catch_up(self) -> None:
        """Read what came meanwhile, and show it in the order of time, as far as that is bounded."""
        try:
            await self._read_all()
        except TaskcastError:
            self._show_past()
            raise
        self._show_past()

    async def _read_all(self) -> None:
        async with aclosing(self._tasks()) as tasks:
            async for task in tasks:
                known = self._cursors.get(task.id)
                if known is not None and task.created_at > known.timestamp:
                    known = None
                    self._cursors.pop(task.id)
                over = task.terminal and task.ended_at < self._from_ms
                if not (over if known is None else known.ended):
                    await self._read(task, known)

    async def _tasks(self) -> AsyncGenerator[Task, None]:
        after: str | None = None
        while True:
            try:
                page = await self._client.list(after=after, limit=PAGE_TASKS)
            except BadRequest:
                if after is None:
                    raise
                # The last one of the page before was deleted: begin again, cursors know the rest.
                after = None
                continue
            for task in page:
                yield task
            if len(page) < PAGE_TASKS:
                return
            after = page[-1].id

    async def _read(self, task: Task, known: _Cursor | None) -> None:
        """Take what the log has behind the cursor, in stored order.

        The cursor moves at the end only: the newest event of a `latest` series stands before older
        ones.
        """
        part = self._part
        if part is None or part.task_id != task.id:
            since: str | int | datetime = datetime.fromtimestamp(self._from_ms / 1000, UTC)
            floor = -1
            if known is not None:
                since = floor = known.index
            self._part = part = _Part(task.id, floor, since)
        while True:
            try:
                page = await self._client.history(
                    task.id,
                    since=part.since,
                    limit=PAGE_EVENTS,
                    types=self._types,
                    levels=self._levels,
                )
            except TaskNotFound:
                page = []
            for event in page:
                if event.index <= part.floor:
                    continue
                self._take(part, event)
                if part.newest is None or event.index > part.newest.index:
                    part.newest = event
            if len(page) < PAGE_EVENTS:
                break
            part.since = page[-1].id
        self._part = None
        if part.newest is not None:
            self._keep(part.newest)

    def _take(self, part: _Part, event: Event) -> None:
        part.reached_ms = max(part.reached_ms, event.timestamp)
        self._past.append((part.reached_ms, event))
        self._past_bytes += 0 if event.data is UNSET else len(bytes(event.data))
        if len(self._past) >= SORTED_EVENTS or self._past_bytes >= SORTED_BYTES:
            self._show_past()

    def _show_past(self) -> None:
        self._past.sort(key=itemgetter(0))
        for _, event in self._past:
            self._show(event)
        self._past.clear()
        self._past_bytes = 0
