"""Reading a log from the outside: history and archive, page by page up to a high-water mark."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import msgspec
from msgspec import UNSET

from taskcast_trio.core.archive import compact
from taskcast_trio.core.entry import Entry
from taskcast_trio.core.errors import TaskNotFound
from taskcast_trio.core.filter import EventFilter
from taskcast_trio.core.model import ArchivedPublisher, Event, Task
from taskcast_trio.core.series import collapse
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Snapshot

PAGE_EVENTS: Final = 256
PASS_ALL: Final = EventFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """Which events, in stored order; ``since_id`` beats ``since_index`` beats ``since_timestamp``
    (ms).

    Cursor, filter and ``limit`` cut in this order; ``accumulated`` then makes each accumulate
    series one event.
    """

    filter: EventFilter = PASS_ALL
    since_id: str | None = None
    since_index: float | None = None
    since_timestamp: float | None = None
    limit: int | None = None
    accumulated: bool = False


class History:
    """The events of a log as of its opening; iterate :meth:`pages`.

    A log that is deleted or replaced meanwhile ends the iteration.
    """

    def __init__(
        self, store: ShortTermStore, query: HistoryQuery, snapshot: Snapshot, after_place: int
    ) -> None:
        self._store = store
        self._query = query
        self._snapshot = snapshot
        self._after_place = after_place
        self._more = True

    @classmethod
    async def open(cls, store: ShortTermStore, task_id: str, query: HistoryQuery) -> History:
        snapshot = await store.snapshot(task_id)
        found = await store.find(task_id, query.since_id) if query.since_id else None
        return cls(store, query, snapshot, found.place if found else -1)

    async def pages(self) -> AsyncIterator[list[Event]]:
        """Lists of events, none empty."""
        query, seen = self._query, set[str]()
        left = query.limit
        while left != 0 and (entries := await self._next_page()) is not None:
            kept = [entry for entry in entries if query.filter.matches(entry.type, entry.level)]
            if left is not None:
                kept = kept[:left]
                left -= len(kept)
            if query.accumulated:
                kept = list(collapse(kept, self._snapshot.values, seen))
            if kept:
                yield [entry.event for entry in kept]

    async def _next_page(self) -> list[Entry] | None:
        """What a page of the store has behind the cursor; None where the log goes no further."""
        if not self._more:
            return None
        query, record = self._query, self._snapshot.record
        after_index, since_ms = -1, None
        if not query.since_id:
            if query.since_index is not None:
                # An index above the range of the log is no place in it.
                after_index = int(min(query.since_index // 1, record.next_index))
            else:
                since_ms = query.since_timestamp
        try:
            page = await self._store.read_places(
                record.task.id,
                after_place=self._after_place,
                after_index=after_index,
                limit=PAGE_EVENTS,
            )
        except TaskNotFound:
            return None
        if not page.record.holds(record.epoch, record.next_index - 1):
            return None
        self._more = page.more
        if page.entries:
            self._after_place = page.entries[-1].place
        return [
            entry
            for entry in page.entries
            if entry.index < record.next_index
            and (since_ms is None or entry.event.timestamp > since_ms)
        ]


async def read_archive(
    store: ShortTermStore,
    task_id: str,
    *,
    exported_at_ms: int,
    shown: Callable[[Task], Task] | None = None,
) -> AsyncIterator[bytes]:
    """The parts of the archive's JSON text.

    Raises:
        TaskNotFound: there is no such task (before the first part).
    """
    # First: what the events say that came since is added.
    publishers = dict((await store.publishers(task_id)).expected)
    snapshot = await store.snapshot(task_id)
    task = shown(snapshot.record.task) if shown else snapshot.record.task
    return _archive_parts(store, snapshot, exported_at_ms, task, publishers)


async def _archive_parts(
    store: ShortTermStore,
    snapshot: Snapshot,
    exported_at_ms: int,
    task: Task,
    publishers: dict[str, int],
) -> AsyncIterator[bytes]:
    record = snapshot.record
    yield (
        b'{"schema":"taskcast.taskArchive","version":1,"exportedAt":%d,"task":%b,"events":['
        % (max(exported_at_ms, record.task.updated_at), msgspec.json.encode(task))
    )
    after, more, seen, count = -1, True, set[str](), 0
    values = {value.index: value for value in snapshot.values.values()}
    while more:
        page = await store.read(record.task.id, after=after, limit=PAGE_EVENTS)
        if not page.record.holds(record.epoch, record.next_index - 1):
            raise TaskNotFound(record.task.id)
        entries = [entry for entry in page.entries if entry.index < record.next_index]
        last = entries[-1].index if page.more and entries else record.next_index - 1
        entries = _with_replaced(entries, values, after, last)
        expect(publishers, entries)
        events = list(compact(entries, snapshot.values, seen, first_index=count))
        if events:
            text = msgspec.json.encode(events)[1:-1]
            yield b"," + text if count else text
            count += len(events)
        after, more = last, page.more and last < record.next_index - 1
    yield b"]"
    if publishers:
        told = [ArchivedPublisher(client_id=id_, expected_seq=s) for id_, s in publishers.items()]
        yield b',"publishers":' + msgspec.json.encode(told)
    yield b"}"


def expect(publishers: dict[str, int], entries: Iterable[Entry]) -> None:
    """Bring the seqs that are expected next up to these events."""
    for entry in entries:
        client_id, seq = entry.event.client_id, entry.event.client_seq
        if client_id is not UNSET and seq is not UNSET:
            publishers[client_id] = max(publishers.get(client_id, 0), seq + 1)


def _with_replaced(
    entries: list[Entry], values: dict[int, Entry], after: int, last: int
) -> list[Entry]:
    """The entries from behind ``after`` up to ``last``, and among them the values, by index, that
    were replaced since the snapshot.
    """
    present = {entry.index for entry in entries}
    missing = set(range(after + 1, last + 1)) - present
    gone = [values[index] for index in missing & values.keys()]
    return sorted([*entries, *gone], key=attrgetter("index")) if gone else entries
