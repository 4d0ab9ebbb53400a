"""The store: every step one script, every look another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import (
    RevisionConflict,
    SeqGap,
    SeqStale,
    StaleFence,
    TaskEnded,
    TaskExists,
    TaskFull,
    TaskNotFound,
)
from taskcast_trio.core.ids import parse_event_id
from taskcast_trio.core.model import Draft, Event, Task

from ..publishers import again, publishers_of
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
    Timers,
)
from .known import version_of
from .listing import Listing
from .notes import Notes
from .rows import (
    committed,
    entry_of,
    foreign_id,
    pack,
    pack_body,
    pack_former,
    pack_publishers,
    parts_of,
    row_of,
    seqs_of,
    size_of,
    value_of,
    values_told,
)
from .scripts import script
from .steps import ended_value, fence_value, key_values, timer_values, type_value
from .timers import TaskTimers


class RedisStore(Listing, TaskTimers, Notes):
    """Tasks, logs and notes in Redis; see :class:`ShortTermStore` for every step."""

    async def create(
        self,
        task: Task,
        *,
        epoch: str,
        now_ms: int,
        idempotency: Idempotency | None = None,
        timers: Timers = NO_TIMERS,
    ) -> Commit:
        reply = await self._step(
            "create",
            task.id,
            self._publish,
            now_ms,
            *key_values(idempotency, now_ms),
            await self._next_number(),
            epoch,
            task.created_at,
            task.status,
            ended_value(task),
            type_value(task),
            pack_body(task),
            timer_values(timers),
            fence_value(task),
        )
        if reply[0] == "exists":
            raise TaskExists(task.id)
        if reply[0] != "done":
            return self._repeated(task.id, reply)
        return Commit(TaskRecord(task, revision=0, epoch=epoch, next_index=0), created=True)

    async def _next_number(self) -> int:
        counter = self._commands.on_keys(
            script("number"), 0, (self._keys.number,), time.time_ns() // 1000
        )
        number: int = await self._commands.do(counter)
        return number

    async def get(self, task_id: str) -> TaskRecord | None:
        told = await self._told("get", task_id)
        return None if told is None else told[0]

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
        held = self._known.get(task_id)
        reply = await self._step(
            "append",
            task_id,
            self._publish,
            now_ms,
            *key_values(idempotency, now_ms),
            version_of(held),
            *(("", "") if limits is None else (limits.events, limits.bytes)),
            sum(map(size_of, drafts)),
            parts_of(drafts),
            timer_values(wake) if wake else b"",
            timer_values(hasten) if hasten else b"",
            "" if fence is None else fence,
            "" if counting is None else seqs_of(drafts, counting),
            *map(row_of, drafts),
        )
        match reply[0]:
            case "gone":
                raise TaskNotFound(task_id)
            case "fenced":
                raise StaleFence(task_id)
            case "ended":
                raise TaskEnded(task_id, reply[1])
            case "gap" | "stale":
                raise _out_of_order(task_id, drafts[reply[1]], reply)
            case "known":
                record = self._record(task_id, reply[1], held)
                return Commit(record, known=_known(record, drafts, reply[2]))
            case "full" if reply[1] == "publishers":
                assert counting is not None
                most = counting.publishers
                raise TaskFull(task_id, "publishers", limit=most, stored=reply[2])
            case "full":
                assert limits is not None
                if reply[1] == "events":
                    raise TaskFull(task_id, "events", limit=limits.events, stored=reply[2])
                raise TaskFull(task_id, "bytes of data", limit=limits.bytes, stored=reply[2])
            case "done":
                _, ts, moved, told = reply
                record = self._record(task_id, told, held)
                return _commit(record, drafts, ts, moved)
        return self._repeated(task_id, reply)

    async def publishers(self, task_id: str) -> Publishers:
        told = await self._told("publishers", task_id, task_id)
        if told is None:
            raise TaskNotFound(task_id)
        record, (flat,) = told
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return Publishers(record, {client_id: int(seq) for client_id, seq in pairs})

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
        reply = await self._step(
            "transition",
            task.id,
            self._publish,
            now_ms,
            *key_values(idempotency, now_ms),
            revision,
            epoch,
            task.updated_at,
            sum(map(size_of, drafts)),
            parts_of(drafts),
            timer_values(timers),
            timer_values(hasten),
            task.status,
            ended_value(task),
            type_value(task),
            pack_body(task),
            fence_value(task),
            "" if idempotency is None else idempotency.aside,
            *map(row_of, drafts),
        )
        match reply[0]:
            case "gone":
                raise TaskNotFound(task.id)
            case "conflict":
                raise RevisionConflict(task.id)
            case "done":
                _, ts, moved, told = reply
                record = self._record(task.id, told, (epoch, revision + 1, task))
                return _commit(record, drafts, ts, moved)
        return self._repeated(task.id, reply)

    async def repeated(
        self, task_id: str, idempotency: Idempotency, *, now_ms: int
    ) -> Commit | None:
        key, fingerprint, _ = key_values(idempotency, now_ms)
        reply = await self._look("repeated", task_id, now_ms, key, fingerprint)
        return None if reply[0] == "none" else self._repeated(task_id, reply)

    async def read(self, task_id: str, *, after: int, limit: int) -> Page:
        told = await self._told("read", task_id, max(after + 1, 0), limit + 1)
        return _page(task_id, told, limit)

    async def read_places(
        self, task_id: str, *, after_place: int, after_index: int, limit: int
    ) -> Page:
        cursor = (max(after_place, -1), max(after_index, -1))
        told = await self._told("read_places", task_id, *cursor, limit + 1)
        return _page(task_id, told, limit)

    async def find(self, task_id: str, event_id: str) -> Entry | None:
        position = parse_event_id(event_id)
        told = await self._told(
            "find", task_id, event_id, "" if position is None else position.index
        )
        if told is None:
            raise TaskNotFound(task_id)
        record, (placed,) = told
        if placed is None:
            return None
        entry = entry_of(placed, task_id, record.epoch)
        return entry if entry.id == event_id else None

    async def snapshot(self, task_id: str) -> Snapshot:
        told = await self._told("snapshot", task_id)
        if told is None:
            raise TaskNotFound(task_id)
        record, (values,) = told
        return Snapshot(record, dict(value_of(value, task_id, record.epoch) for value in values))

    async def delete(self, task_id: str, *, epoch: str | None = None) -> bool:
        reply = await self._step("delete", task_id, self._publish, epoch or "")
        return bool(reply[0] == "done")

    async def trim(self, task_id: str, indexes: Sequence[int], *, epoch: str) -> int:
        wanted = pack(sorted({index for index in indexes if index >= 0}))
        values: dict[str, Entry] = {}
        while True:
            reply = await self._step("trim", task_id, epoch, wanted, values_told(values, epoch))
            if reply[0] == "done":
                count: int = reply[1]
                return count
            try:
                values = (await self.snapshot(task_id)).values
            except TaskNotFound:
                return 0

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
        record = TaskRecord(task, revision=0, epoch=epoch, next_index=len(events), imported=True)
        entries = [Entry(event, event.index) for event in events]
        replaced = await self._take_in(record, entries, timers, publishers, overwrite=overwrite)
        return Commit(record, replaced=replaced)

    async def restore(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        *,
        timers: Timers = NO_TIMERS,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> Commit:
        await self._take_in(record, entries, timers, publishers, overwrite=False)
        return Commit(record)

    async def _take_in(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        timers: Timers,
        publishers: Mapping[str, int],
        *,
        overwrite: bool,
    ) -> bool:
        task, events = record.task, [entry.event for entry in entries]
        places: list[int] = []
        foreign: list[str | int] = []
        rows = []
        for entry in entries:
            event = entry.event
            places += (event.index, entry.place, event.timestamp)
            id_ = foreign_id(event, record.epoch)
            rows.append(row_of(event, id_=id_))
            if id_ is not None:
                foreign += (id_, event.index)
        reply = await self._step(
            "import",
            task.id,
            self._publish,
            int(overwrite),
            await self._next_number(),
            record.epoch,
            record.revision,
            record.next_index,
            int(record.imported),
            pack_former(record.former),
            record.trimmed,
            record.trims,
            max([task.created_at, *(event.timestamp for event in events)]),
            sum(map(size_of, events)),
            task.status,
            ended_value(task),
            type_value(task),
            pack_body(task),
            timer_values(timers),
            pack(places),
            parts_of(events) or pack([]),
            pack(foreign),
            fence_value(task),
            pack_publishers(publishers_of(entries, publishers)),
            *rows,
        )
        if reply[0] == "exists":
            raise TaskExists(task.id)
        return bool(reply[1])

    async def release(
        self,
        task_id: str,
        *,
        epoch: str,
        revision: int,
        now_ms: int,
        unless: Sequence[str] = (),
    ) -> bool:
        reply = await self._step("release", task_id, epoch, revision, now_ms, pack(unless))
        return bool(reply[0] == "done")


def _commit(record: TaskRecord, drafts: Sequence[Draft], ts: int, moved: Sequence[int]) -> Commit:
    first = record.next_index - len(drafts)
    entries = committed(
        drafts, task_id=record.task.id, epoch=record.epoch, first=first, ts=ts, moved=moved
    )
    return Commit(record, entries)


def _out_of_order(task_id: str, draft: Draft, reply: Sequence[Any]) -> SeqGap | SeqStale:
    client_id, seq = draft.client_id, draft.client_seq
    assert client_id is not UNSET
    assert seq is not UNSET
    kind, _, expected = reply
    if kind == "stale":
        return SeqStale(task_id, client_id, seq, expected=expected)
    held = draft.seq_mode != "fast-fail"
    return SeqGap(task_id, client_id, seq, expected=expected, held=held)


def _known(
    record: TaskRecord, drafts: Sequence[Draft], told: Sequence[Sequence[Any]]
) -> dict[int, Entry]:
    """The events of the drafts that were stored before, by their number."""
    known: dict[int, Entry] = {}
    for number, index, timestamp, placed in told:
        stored = None
        if placed is not None:
            stored = entry_of(placed, record.task.id, record.epoch)
        known[number] = again(drafts[number], record, (index, timestamp), stored)
    return known


def _page(task_id: str, told: tuple[TaskRecord, list[Any]] | None, limit: int) -> Page:
    if told is None:
        raise TaskNotFound(task_id)
    record, (placed,) = told
    entries = [entry_of(one, task_id, record.epoch) for one in placed[:limit]]
    return Page(record, entries, more=len(placed) > limit)
