"""The store: steps go to the writer, looks to the readers, or to what is remembered."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import trio

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import TaskNotFound
from taskcast_trio.core.model import Draft, Event, Task

from ..records import (
    NO_PUBLISHERS,
    NO_TIMERS,
    Commit,
    CountLimits,
    Idempotency,
    LogLimits,
    Page,
    Publishers,
    Snapshot,
    TaskRecord,
    Timer,
    Timers,
)
from . import queries, steps, timer_steps, trim_steps
from .batch import Batch
from .queries import Tasks
from .readers import Readers
from .values import LogValues, ValuesCache
from .writer import Writer


class SqliteStore:
    """Tasks, logs and notes in one database file; see :class:`ShortTermStore` for every step.

    A look never goes back behind another look or step that its caller has seen: what is remembered
    is used only as of the last batch that was announced, while no other runs.
    """

    def __init__(
        self,
        writer_connection: sqlite3.Connection,
        reader_connections: list[sqlite3.Connection],
        announce: Callable[[Commit], None],
    ) -> None:
        self._announce = announce
        self._tasks = Tasks()
        self._values = ValuesCache()
        self._readers = Readers(reader_connections)
        self.writer = Writer(
            writer_connection, self._tasks, committed=self._committed, lost=self._values.clear
        )

    def _committed(self, batch: Batch) -> None:
        for commit in batch.unsaid:
            self._values.take(commit)
        for commit in batch.commits:
            self._values.take(commit)
            self._announce(commit)

    async def create(
        self,
        task: Task,
        *,
        epoch: str,
        now_ms: int,
        idempotency: Idempotency | None = None,
        timers: Timers = NO_TIMERS,
    ) -> Commit:
        return await self.writer.do(
            lambda batch: steps.create(batch, task, epoch, now_ms, idempotency, timers)
        )

    async def get(self, task_id: str) -> TaskRecord | None:
        head = self.writer.head(task_id)
        if head is not None:
            await trio.lowlevel.checkpoint()
            return head.record
        return await self._readers.look(partial(queries.get, tasks=self._tasks, task_id=task_id))

    async def list_tasks(
        self,
        *,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[TaskRecord]:
        query = partial(
            queries.list_tasks, statuses=statuses, type_=type_, after=after, limit=limit
        )
        return await self._readers.look(query)

    async def append(
        self,
        task_id: str,
        drafts: Sequence[Draft],
        *,
        now_ms: int,
        idempotency: Idempotency | None = None,
        limits: LogLimits | None = None,
        wake: Mapping[str, int] = NO_TIMERS,
        hasten: Mapping[str, int] = NO_TIMERS,
        fence: int | None = None,
        counting: CountLimits | None = None,
    ) -> Commit:
        return await self.writer.do(
            lambda batch: steps.append(
                batch, task_id, drafts, now_ms, idempotency, limits, wake, hasten, fence, counting
            )
        )

    async def publishers(self, task_id: str) -> Publishers:
        head = self.writer.head(task_id)
        if head is not None and head.publishers is not None:
            await trio.lowlevel.checkpoint()
            return Publishers(head.record, head.publishers)
        return await self._readers.look(
            lambda connection: queries.publishers(connection, self._tasks, task_id)
        )

    async def transition(
        self,
        task: Task,
        drafts: Sequence[Draft],
        *,
        revision: int,
        epoch: str,
        now_ms: int,
        idempotency: Idempotency | None = None,
        timers: Timers = NO_TIMERS,
        hasten: Mapping[str, int] = NO_TIMERS,
    ) -> Commit:
        return await self.writer.do(
            lambda batch: steps.transition(
                batch, task, drafts, revision, epoch, now_ms, idempotency, timers, hasten
            )
        )

    async def repeated(
        self, task_id: str, idempotency: Idempotency, *, now_ms: int
    ) -> Commit | None:
        return await self._readers.look(
            lambda connection: queries.repeated(
                connection, self._tasks, task_id, idempotency, now_ms
            )
        )

    async def read(self, task_id: str, *, after: int, limit: int) -> Page:
        return await self._readers.look(
            lambda connection: queries.read(
                connection, self._tasks, task_id, after=after, limit=limit
            )
        )

    async def read_places(
        self, task_id: str, *, after_place: int, after_index: int, limit: int
    ) -> Page:
        return await self._readers.look(
            lambda connection: queries.read_places(
                connection,
                self._tasks,
                task_id,
                after_place=after_place,
                after_index=after_index,
                limit=limit,
            )
        )

    async def find(self, task_id: str, event_id: str) -> Entry | None:
        return await self._readers.look(
            lambda connection: queries.find(connection, self._tasks, task_id, event_id)
        )

    async def snapshot(self, task_id: str) -> Snapshot:
        if self._values.get(task_id) is not None:
            await self.writer.settled()
            known = self._values.get(task_id)
            if known is not None:
                return known.snapshot()
        with self._values.loading(task_id) as put_by:
            record, values, size = await self._readers.look(
                partial(queries.series_values, tasks=self._tasks, task_id=task_id)
            )
            loaded = LogValues(record, values, size)
            snapshot = loaded.snapshot()
            self._values.install(loaded, put_by)
        return snapshot

    async def delete(self, task_id: str, *, epoch: str | None = None) -> bool:
        return await self.writer.do(lambda batch: steps.delete(batch, task_id, epoch))

    async def trim(self, task_id: str, indexes: Sequence[int], *, epoch: str) -> int:
        values: list[Entry] | None = None
        while True:
            trim = partial(
                trim_steps.trim, task_id=task_id, indexes=indexes, epoch=epoch, values=values
            )
            count = await self.writer.do(trim)
            if count is not None:
                return count
            # It has ended, so these are final. They are joined here: the writer is another thread.
            try:
                running = (await self.snapshot(task_id)).values
            except TaskNotFound:
                return 0
            values = [Entry(entry.event, entry.place) for entry in running.values()]

    async def import_task(
        self,
        task: Task,
        events: Sequence[Event],
        *,
        epoch: str,
        overwrite: bool,
        timers: Timers = NO_TIMERS,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> Commit:
        return await self.writer.do(
            lambda batch: steps.import_task(
                batch, task, events, epoch, overwrite, timers, publishers
            )
        )

    async def restore(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        *,
        timers: Timers = NO_TIMERS,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> Commit:
        return await self.writer.do(
            lambda batch: steps.restore(batch, record, entries, timers, publishers)
        )

    async def release(
        self,
        task_id: str,
        *,
        epoch: str,
        revision: int,
        now_ms: int,
        unless: Sequence[str] = (),
    ) -> bool:
        return await self.writer.do(
            lambda batch: steps.release(batch, task_id, epoch, revision, now_ms, unless)
        )

    async def count(self) -> int:
        return await self._readers.look(queries.count)

    async def put_note(
        self, key: str, value: bytes, *, expires_ms: int | None, now_ms: int
    ) -> None:
        await self.writer.do(lambda batch: steps.put_note(batch, key, value, expires_ms, now_ms))

    async def note(self, key: str, *, now_ms: int) -> bytes | None:
        return await self._readers.look(partial(queries.note, key=key, now_ms=now_ms))

    async def take_note(self, key: str, *, now_ms: int) -> bytes | None:
        return await self.writer.do(lambda batch: steps.take_note(batch, key, now_ms))

    async def drop_note(self, key: str) -> bool:
        return await self.writer.do(lambda batch: steps.drop_note(batch, key))

    async def rows(self, table: str) -> dict[str, bytes]:
        return await self._readers.look(partial(queries.rows, table=table))

    async def row(self, table: str, key: str) -> bytes | None:
        return await self._readers.look(partial(queries.row, table=table, key=key))

    async def swap_row(
        self,
        table: str,
        key: str,
        value: bytes | None,
        *,
        known: bytes | None,
        most: int | None = None,
    ) -> bytes | None:
        return await self.writer.do(
            lambda batch: steps.swap_row(batch, table, key, value, known, most)
        )

    async def take_due(self, kind: str, *, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
        return await self.writer.do(
            lambda batch: timer_steps.take_due(batch, kind, now_ms, lease_ms, limit)
        )

    async def next_due(self, kind: str) -> int | None:
        return await self._readers.look(partial(queries.next_due, kind=kind))

    async def list_due(self, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
        return await self._readers.look(
            partial(queries.list_due, kind=kind, now_ms=now_ms, limit=limit)
        )

    async def set_timer(
        self,
        task_id: str,
        kind: str,
        due_ms: int | None,
        *,
        if_due: int | None = None,
        if_next: int | None = None,
    ) -> bool:
        return await self.writer.do(
            lambda batch: timer_steps.set_timer(batch, task_id, kind, due_ms, if_due, if_next)
        )

    async def put_task_note(
        self,
        task_id: str,
        name: str,
        value: bytes | None,
        *,
        epoch: str,
        timers: Timers = NO_TIMERS,
        if_due: Mapping[str, int] = NO_TIMERS,
    ) -> bool:
        return await self.writer.do(
            lambda batch: timer_steps.put_task_note(
                batch, task_id, name, value, epoch, timers, if_due
            )
        )

    async def task_note(self, task_id: str, name: str) -> bytes | None:
        return await self._readers.look(partial(queries.task_note, task_id=task_id, name=name))

    async def task_notes(self, task_id: str) -> dict[str, bytes]:
        return await self._readers.look(partial(queries.task_notes, task_id=task_id))
