"""The memory store: the reference of what a store does, and the fastest one.

Every step runs without a checkpoint inside, so nothing can come between its parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import (
    KeyReused,
    RevisionConflict,
    StaleFence,
    TaskEnded,
    TaskExists,
    TaskNotFound,
    no_page_after,
)
from taskcast_trio.core.model import Draft, Event, Task

from .memory_log import Log
from .memory_notes import MemoryNotes
from .memory_timers import MemoryTimers
from .protocols import CommitSink
from .publishers import publishers_of
from .records import (
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


class MemoryBroadcast:
    """Hands commits to the one sink of this process, inside the step that made them."""

    def __init__(self) -> None:
        self._sink: CommitSink | None = None

    async def run(
        self, sink: CommitSink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._sink = sink
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self._sink = None

    def attached(self, task_id: str | None, *, counts: bool = True) -> None:
        """Everything is announced, whoever follows."""

    def detached(self, task_id: str | None, *, counts: bool = True) -> None:
        pass

    def announce(self, commit: Commit) -> None:
        if self._sink is not None:
            self._sink.committed(commit)


class MemoryStore(MemoryNotes):
    """Tasks and logs in this process's memory; see :class:`ShortTermStore` for every step."""

    def __init__(self, announce: Callable[[Commit], None] = lambda commit: None) -> None:
        super().__init__()
        self._announce = announce
        self._logs: dict[str, Log] = {}
        self._order: list[int] = []
        self._by_number: dict[int, str] = {}
        self._next_number = 0
        self._timers = MemoryTimers()

    def _log(self, task_id: str) -> Log:
        log = self._logs.get(task_id)
        if log is None:
            raise TaskNotFound(task_id)
        return log

    def _add(self, record: TaskRecord) -> Log:
        number = self._next_number
        self._next_number += 1
        log = Log(record, number)
        self._logs[record.task.id] = log
        self._order.append(number)
        self._by_number[number] = record.task.id
        return log

    def _drop(self, log: Log) -> None:
        del self._logs[log.record.task.id]
        del self._by_number[log.number]
        self._timers.forget(log.record.task.id)
        # The order keeps numbers of dropped tasks until half of it is theirs: a drop costs O(1) on
        # average.
        if len(self._order) > 2 * len(self._by_number) + 64:
            self._order = list(self._by_number)

    @staticmethod
    def _repeated(log: Log, idempotency: Idempotency, now_ms: int) -> Commit | None:
        answers = log.answers
        while answers:
            expires_ms = next(iter(answers.values()))[0]
            if expires_ms > now_ms:
                break
            answers.popitem(last=False)
        known = answers.get(idempotency.key)
        if known is None or known[0] <= now_ms:
            return None
        _, first, answer = known
        if first.fingerprint != idempotency.fingerprint:
            raise KeyReused(log.record.task.id)
        # How far the log is trimmed is told as of now: who goes on from the answer reads it so.
        now = log.record
        record = replace(answer.record, trimmed=now.trimmed, trims=now.trims)
        return Commit(record, answer.entries, repeated=True, aside=first.aside)

    def _finish(
        self, log: Log, commit: Commit, idempotency: Idempotency | None, now_ms: int
    ) -> Commit:
        if idempotency is not None:
            log.answers[idempotency.key] = (now_ms + idempotency.ttl_ms, idempotency, commit)
        self._announce(commit)
        return commit

    async def create(
        self,
        task: Task,
        *,
        epoch: str,
        now_ms: int,
        idempotency: Idempotency | None = None,
        timers: Timers = NO_TIMERS,
    ) -> Commit:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task.id)
        if log is not None:
            answer = self._repeated(log, idempotency, now_ms) if idempotency else None
            if answer is None:
                raise TaskExists(task.id)
            return answer
        record = TaskRecord(task, revision=0, epoch=epoch, next_index=0)
        log = self._add(record)
        self._timers.set(task.id, timers)
        return self._finish(log, Commit(record, created=True), idempotency, now_ms)

    async def get(self, task_id: str) -> TaskRecord | None:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        return log.record if log else None

    async def list_tasks(
        self,
        *,
        statuses: frozenset[str] | None = None,
        type_: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[TaskRecord]:
        await trio.lowlevel.checkpoint()
        start = 0
        if after is not None:
            log = self._logs.get(after)
            if log is None:
                raise no_page_after(after)
            start = bisect_right(self._order, log.number)
        found: list[TaskRecord] = []
        for position in range(start, len(self._order)):
            if limit is not None and len(found) >= limit:
                break
            task_id = self._by_number.get(self._order[position])
            if task_id is None:
                continue
            record = self._logs[task_id].record
            if statuses is not None and record.task.status not in statuses:
                continue
            if type_ is not None and record.task.type != type_:
                continue
            found.append(record)
        return found

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
        await trio.lowlevel.checkpoint()
        log = self._log(task_id)
        if idempotency:
            answer = self._repeated(log, idempotency, now_ms)
            if answer is not None:
                return answer
        record = log.record
        if counting is not None and (known := log.known(drafts)):
            return Commit(record, known=known)
        if fence is not None and record.task.fence != fence:
            raise StaleFence(task_id)
        if record.task.terminal:
            raise TaskEnded(task_id, record.task.status)
        if counting is not None:
            log.require_order(drafts, counting)
        if limits is not None:
            log.require_room(drafts, limits)
        entries = log.append(drafts, now_ms)
        if counting is not None:
            log.count(entries, counting)
        log.record = replace(record, next_index=len(log.by_index))
        if wake:
            self._timers.wake(task_id, wake)
        if hasten:
            self._timers.hasten(task_id, hasten)
        return self._finish(log, Commit(log.record, entries), idempotency, now_ms)

    async def publishers(self, task_id: str) -> Publishers:
        await trio.lowlevel.checkpoint()
        log = self._log(task_id)
        return Publishers(log.record, {id_: each.expected for id_, each in log.publishers.items()})

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
        await trio.lowlevel.checkpoint()
        log = self._log(task.id)
        if idempotency:
            answer = self._repeated(log, idempotency, now_ms)
            if answer is not None:
                return answer
        record = log.record
        if (record.revision, record.epoch) != (revision, epoch):
            raise RevisionConflict(task.id)
        entries = log.append(drafts, max(now_ms, task.updated_at))
        log.record = replace(record, task=task, revision=revision + 1, next_index=len(log.by_index))
        self._timers.set(task.id, timers)
        self._timers.hasten(task.id, hasten)
        return self._finish(log, Commit(log.record, entries), idempotency, now_ms)

    async def repeated(
        self, task_id: str, idempotency: Idempotency, *, now_ms: int
    ) -> Commit | None:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        return self._repeated(log, idempotency, now_ms) if log else None

    async def read(self, task_id: str, *, after: int, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        log = self._log(task_id)
        entries: list[Entry] = []
        index = max(after + 1, log.first)
        while index < len(log.by_index) and len(entries) < limit:
            entry = log.by_index[index]
            if entry is not None:
                entries.append(entry)
            index += 1
        return Page(log.record, entries, more=index < len(log.by_index))

    async def read_places(
        self, task_id: str, *, after_place: int, after_index: int, limit: int
    ) -> Page:
        await trio.lowlevel.checkpoint()
        log = self._log(task_id)
        entries: list[Entry] = []
        for entry in log.behind(max(after_place, -1), max(after_index, log.first - 1)):
            if len(entries) >= limit:
                return Page(log.record, entries, more=True)
            if entry.index > after_index:
                entries.append(entry)
        return Page(log.record, entries, more=False)

    async def find(self, task_id: str, event_id: str) -> Entry | None:
        await trio.lowlevel.checkpoint()
        return self._log(task_id).find(event_id)

    async def snapshot(self, task_id: str) -> Snapshot:
        await trio.lowlevel.checkpoint()
        log = self._log(task_id)
        return Snapshot(log.record, {series: value.entry for series, value in log.values.items()})

    async def delete(self, task_id: str, *, epoch: str | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        if log is None or epoch not in (None, log.record.epoch):
            return False
        self._drop(log)
        self._announce(Commit(log.record, deleted=True))
        return True

    async def trim(self, task_id: str, indexes: Sequence[int], *, epoch: str) -> int:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        if log is None or log.record.epoch != epoch or not log.record.task.terminal:
            return 0
        return log.trim(indexes)

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
        await trio.lowlevel.checkpoint()
        old = self._logs.get(task.id)
        if old is not None and not overwrite:
            raise TaskExists(task.id)
        record = TaskRecord(task, revision=0, epoch=epoch, next_index=len(events), imported=True)
        if old is None:
            log = self._add(record)
        else:
            log = self._logs[task.id] = Log(record, old.number)
            self._timers.forget(task.id)
        self._timers.set(task.id, timers)
        entries = [Entry(event, event.index) for event in events]
        for entry in entries:
            log.foreign[entry.id] = entry.index
            log.keep(entry)
            log.timestamp = max(log.timestamp, entry.event.timestamp)
        log.publishers = publishers_of(entries, publishers)
        imported = Commit(record, replaced=old is not None)
        self._announce(imported)
        return imported

    async def restore(
        self,
        record: TaskRecord,
        entries: Sequence[Entry],
        *,
        timers: Timers = NO_TIMERS,
        publishers: Mapping[str, int] = NO_PUBLISHERS,
    ) -> Commit:
        await trio.lowlevel.checkpoint()
        if record.task.id in self._logs:
            raise TaskExists(record.task.id)
        log = self._add(record)
        log.restore(entries)
        log.publishers = publishers_of(entries, publishers)
        self._timers.set(record.task.id, timers)
        commit = Commit(record)
        self._announce(commit)
        return commit

    async def release(
        self,
        task_id: str,
        *,
        epoch: str,
        revision: int,
        now_ms: int,
        unless: Sequence[str] = (),
    ) -> bool:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        if log is None or not log.record.task.terminal:
            return False
        if (log.record.revision, log.record.epoch) != (revision, epoch):
            return False
        if any(expires_ms > now_ms for expires_ms, _, _ in log.answers.values()):
            return False
        if any(self._timers.due(task_id, kind) is not None for kind in unless):
            return False
        self._drop(log)
        return True

    async def take_due(self, kind: str, *, now_ms: int, lease_ms: int, limit: int) -> list[Timer]:
        await trio.lowlevel.checkpoint()
        return self._timers.take_due(kind, now_ms=now_ms, lease_ms=lease_ms, limit=limit)

    async def next_due(self, kind: str) -> int | None:
        await trio.lowlevel.checkpoint()
        return self._timers.next_due(kind)

    async def list_due(self, kind: str, *, now_ms: int, limit: int) -> list[Timer]:
        await trio.lowlevel.checkpoint()
        return self._timers.list_due(kind, now_ms=now_ms, limit=limit)

    async def set_timer(
        self,
        task_id: str,
        kind: str,
        due_ms: int | None,
        *,
        if_due: int | None = None,
        if_next: int | None = None,
    ) -> bool:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        if log is None or if_next not in (None, log.record.next_index):
            return False
        if if_due is not None and self._timers.due(task_id, kind) != if_due:
            return False
        self._timers.set(task_id, {kind: due_ms})
        return True

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
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        if log is None or log.record.epoch != epoch:
            return False
        if any(self._timers.due(task_id, kind) != due_ms for kind, due_ms in if_due.items()):
            return False
        if value is None:
            log.notes.pop(name, None)
        else:
            log.notes[name] = value
        self._timers.set(task_id, timers)
        return True

    async def task_note(self, task_id: str, name: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        return None if log is None else log.notes.get(name)

    async def task_notes(self, task_id: str) -> dict[str, bytes]:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(task_id)
        return {} if log is None else dict(log.notes)

    async def count(self) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._logs)


class MemoryBackend:
    """A memory store and the broadcast it announces to."""

    provider = "memory"
    durability: Final = "volatile"
    peers: Final = None

    def __init__(self) -> None:
        self.broadcast = MemoryBroadcast()
        self.store = MemoryStore(self.broadcast.announce)

    def link(self) -> None:
        """It is in this process."""
