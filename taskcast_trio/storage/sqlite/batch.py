"""The steps of one transaction: what they have come to so far, and what is still to be written.

Steps see each other's work here, before the tables have it. Events, counts, timers and answers to
idempotency keys are gathered and written together at the end, so many small publishes cost a few
statements. Nothing of a batch is visible outside until it has been committed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import KeyReused

from ..publishers import Publisher
from ..records import Commit, CountLimits, Idempotency, TaskRecord, Timers
from . import queries
from .queries import Head, Tasks
from .rows import EVENT_COLUMNS, Row, entry_of, is_foreign, pack_entries, row_of

_ADD_EVENT: Final = (
    f"INSERT OR REPLACE INTO events (log, {EVENT_COLUMNS})"
    f" VALUES (?{', ?' * (EVENT_COLUMNS.count(',') + 1)})"
)
_ADD_ANSWER: Final = (
    "INSERT OR REPLACE INTO answers"
    " (log, key, expires_ms, revision, next_index, fingerprint, entries, aside)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_SET_COUNTS: Final = (
    "UPDATE logs SET next_index = ?, timestamp = ?, events = ?, bytes = ?, keys_until = ?,"
    " trimmed = ?, trims = ? WHERE log = ?"
)
_DROP_EXPIRED_ANSWERS: Final = (
    "DELETE FROM answers WHERE rowid IN"
    " (SELECT rowid FROM answers WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?)"
)
_SET_TIMER: Final = "INSERT OR REPLACE INTO timers (number, kind, due_ms) VALUES (?, ?, ?)"
_EXPECT: Final = "INSERT OR REPLACE INTO publishers (log, client_id, expected) VALUES (?, ?, ?)"
_ADD_SEQ: Final = (
    "INSERT OR REPLACE INTO seqs (log, client_id, seq, idx, timestamp) VALUES (?, ?, ?, ?, ?)"
)
_DROP_SEQ: Final = "DELETE FROM seqs WHERE log = ? AND client_id = ? AND seq = ?"
_CLEAR_TIMER: Final = "DELETE FROM timers WHERE number = ? AND kind = ?"


class Batch:
    """One transaction in the making. A step either raises before it has changed anything here, or
    is part of it as a whole.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        tasks: Tasks,
        committed_head: Callable[[str], Head | None],
    ) -> None:
        self.connection = connection
        self.heads: dict[str, Head | None] = {}
        """What was looked at or changed, by task id; None where there is no such task."""
        self.commits: list[Commit] = []
        """What is to be announced, in this order."""
        self.unsaid: list[Commit] = []
        """What ends what is remembered of a log, and is announced to nobody."""
        self.dropped = False
        """Whether a log was left to be swept up."""
        self._tasks = tasks
        self._committed_head = committed_head
        self._counts: dict[int, Head] = {}
        self._rows: dict[tuple[int, int], Row] = {}
        self._newest: dict[tuple[int, str], tuple[int, int]] = {}
        self._answers: dict[tuple[int, str], tuple[int, Idempotency, Commit]] = {}
        self._timers: dict[int, dict[str, int | None]] = {}
        self._expected: dict[tuple[int, str], int] = {}
        self._seqs: dict[tuple[int, str, int], tuple[int, int]] = {}
        self._old_seqs: set[tuple[int, str, int]] = set()
        self._now_ms = 0

    def head(self, task_id: str) -> Head | None:
        if task_id in self.heads:
            return self.heads[task_id]
        head = self._committed_head(task_id) or queries.head(self.connection, task_id)
        self.heads[task_id] = head
        return head

    def remembered_head(self, task_id: str) -> Head | None:
        """The head where that takes no look at the database."""
        if task_id in self.heads:
            return self.heads[task_id]
        return self._committed_head(task_id)

    def timers(self, head: Head) -> Mapping[str, int]:
        """When the timers of the task are due, by kind."""
        if head.timers is not None:
            return head.timers
        return queries.timers(self.connection, head.number)

    def set_timers(self, head: Head, timers: Timers) -> Head:
        """The head with these timers set; what that changes is kept to be written."""
        known = dict(self.timers(head))
        for kind, due_ms in timers.items():
            if known.get(kind) == due_ms:
                continue
            self._timers.setdefault(head.number, {})[kind] = due_ms
            if due_ms is None:
                del known[kind]
            else:
                known[kind] = due_ms
        return replace(head, timers=known)

    def publishers(self, head: Head) -> Mapping[str, int]:
        """The seqs that are expected next."""
        if head.publishers is not None:
            return head.publishers
        return queries.expected_seqs(self.connection, head.log)

    def seq_place(self, head: Head, client_id: str, seq: int) -> tuple[int, int] | None:
        """The index and the time of an event of a publisher, where these are known."""
        at = (head.log, client_id, seq)
        if at in self._old_seqs:
            return None
        return self._seqs.get(at) or queries.seq_place(self.connection, *at)

    def entry_at(self, head: Head, index: int) -> Entry | None:
        """The event at an index, where it is still in the log."""
        self.flush_events()
        row = queries.row_at(self.connection, head.log, index)
        return None if row is None else entry_of(row, head.record)

    def count(
        self, head: Head, entries: list[Entry], after: dict[str, int], limits: CountLimits
    ) -> Head:
        """The head that knows the entries by their publishers, of which ``after`` is expected."""
        if not after:
            return head
        log = head.log
        for entry in entries:
            event = entry.event
            if event.client_id is not UNSET and event.client_seq is not UNSET:
                at = (log, event.client_id, event.client_seq)
                self._seqs[at] = (entry.index, event.timestamp)
                old = (log, event.client_id, event.client_seq - limits.kept)
                if self._seqs.pop(old, None) is None and old[2] >= 0:
                    self._old_seqs.add(old)
        self._expected.update(((log, client_id), seq) for client_id, seq in after.items())
        return replace(head, publishers={**self.publishers(head), **after})

    def newest_of_series(self, log: int, series: str) -> tuple[int, int] | None:
        """The place of the newest event of the series' value, and the bytes of its data."""
        known = self._newest.get((log, series))
        return known or queries.newest_of_series(self.connection, log, series)

    def repeated(self, head: Head, idempotency: Idempotency, now_ms: int) -> Commit | None:
        """What the key brought before, or None.

        Raises:
            KeyReused: the key came with another request before.
        """
        known = self._answers.get((head.log, idempotency.key))
        if known is None:
            return queries.answer(
                self.connection, self._tasks, head.log, head.record, idempotency, now_ms
            )
        expires_ms, first, commit = known
        if expires_ms <= now_ms:
            return None
        if first.fingerprint != idempotency.fingerprint:
            raise KeyReused(head.record.task.id)
        return Commit(commit.record, commit.entries, repeated=True, aside=first.aside)

    def add_entries(
        self, log: int, entries: list[Entry], newest: dict[str, tuple[int, int]]
    ) -> None:
        """Keep the entries to be written; ``newest`` is what they leave of each series."""
        for entry in entries:
            self._rows[log, entry.place] = row_of(entry, foreign=False)
        for series, place in newest.items():
            self._newest[log, series] = place

    def write_log(self, head: Head, entries: Iterable[Entry]) -> None:
        """Write the events of a log that comes as a whole at once."""
        log, record = head.log, head.record
        rows = ((log, *row_of(entry, foreign=is_foreign(entry, record))) for entry in entries)
        self.connection.executemany(_ADD_EVENT, rows)

    def write_publishers(self, log: int, publishers: Mapping[str, Publisher]) -> None:
        """Write those of a log that comes as a whole at once."""
        executemany = self.connection.executemany
        executemany(_EXPECT, [(log, id_, each.expected) for id_, each in publishers.items()])
        for id_, each in publishers.items():
            executemany(_ADD_SEQ, [(log, id_, seq, *at) for seq, at in each.places.items()])

    def finish(
        self,
        head: Head,
        commit: Commit,
        idempotency: Idempotency | None = None,
        now_ms: int = 0,
    ) -> Commit:
        """Make ``head`` what the log has come to, announce the commit, and remember its key."""
        if idempotency is not None:
            expires_ms = now_ms + idempotency.ttl_ms
            head = replace(head, keys_until=max(head.keys_until, expires_ms))
            self._answers[head.log, idempotency.key] = (expires_ms, idempotency, commit)
            self._now_ms = max(self._now_ms, now_ms)
        self.keep(head)
        self.commits.append(commit)
        return commit

    def keep(self, head: Head) -> None:
        """Make ``head`` what the log has come to."""
        self.heads[head.record.task.id] = head
        self._counts[head.log] = head

    def drop(self, head: Head) -> None:
        """Remove what hangs on the task, and leave the log to be swept up."""
        self._timers.pop(head.number, None)
        for table in ("timers", "task_notes"):
            self.connection.execute(f"DELETE FROM {table} WHERE number = ?", (head.number,))
        self.connection.execute("INSERT INTO dropped (log) VALUES (?)", (head.log,))
        self.dropped = True

    def flush(self) -> None:
        """Write what has been gathered."""
        self.flush_timers()
        execute, executemany = self.connection.execute, self.connection.executemany
        self.flush_events()
        if self._counts:
            executemany(_SET_COUNTS, map(_counts, self._counts.values()))
        if self._expected:
            executemany(_EXPECT, [(*at, seq) for at, seq in self._expected.items()])
            executemany(_ADD_SEQ, [(*at, *place) for at, place in self._seqs.items()])
            executemany(_DROP_SEQ, self._old_seqs)
        if self._answers:
            execute(_DROP_EXPIRED_ANSWERS, (self._now_ms, 2 * len(self._answers) + 16))
            executemany(_ADD_ANSWER, (_answer(at, *known) for at, known in self._answers.items()))

    def flush_events(self) -> None:
        """Write the events, for who looks at those of a log."""
        if self._rows:
            rows = ((log, *row) for (log, _), row in self._rows.items())
            self.connection.executemany(_ADD_EVENT, rows)
            self._rows.clear()

    def flush_timers(self) -> None:
        """Write the timers, for who looks at those of all tasks."""
        if not self._timers:
            return
        changes = [
            (number, kind, due_ms)
            for number, timers in self._timers.items()
            for kind, due_ms in timers.items()
        ]
        executemany = self.connection.executemany
        executemany(_SET_TIMER, [change for change in changes if change[2] is not None])
        executemany(_CLEAR_TIMER, [change[:2] for change in changes if change[2] is None])
        self._timers.clear()


def _counts(head: Head) -> Row:
    record = head.record
    return (
        record.next_index, head.timestamp, head.events, head.bytes, head.keys_until,
        record.trimmed, record.trims, head.log,
    )  # fmt: skip


def _answer(at: tuple[int, str], expires_ms: int, idempotency: Idempotency, commit: Commit) -> Row:
    record: TaskRecord = commit.record
    entries = pack_entries([row_of(entry, foreign=False) for entry in commit.entries])
    return (
        *at, expires_ms, record.revision, record.next_index, idempotency.fingerprint, entries,
        idempotency.aside,
    )  # fmt: skip
