"""The first replay of a subscription: where it stands, and what it puts together or leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

from taskcast_trio.core.entry import Entry
from taskcast_trio.core.ids import event_id, parse_event_id
from taskcast_trio.core.series import accumulates, series_of
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Snapshot, TaskRecord

from .items import Follow


@dataclass(slots=True)
class Replay:
    """A replay in stored order, up to ``high_water``.

    ``values`` are those of every series there, ``collapse`` says that an accumulate series is sent
    as its value.
    """

    high_water: int
    values: dict[str, Entry]
    collapse: bool
    after_place: int = -1
    cut_place: int = -1
    since_ms: float | None = None
    left: int | None = None
    collapsed: set[str] = field(default_factory=set)
    owed: dict[str, None] = field(default_factory=dict)
    """The series of which pieces are behind, and the snapshot that has them is still to come."""

    @property
    def whole(self) -> bool:
        """Whether nothing is to be left out or put together."""
        if self.left is not None or self.since_ms is not None:
            return False
        return not self.collapse or not any(accumulates(v.event) for v in self.values.values())

    def passed_cut(self, entry: Entry) -> bool:
        """Whether the entry is one that the replay was asked for."""
        after = self.since_ms is None or entry.event.timestamp > self.since_ms
        return after and entry.place > self.cut_place

    def value_of(self, entry: Entry) -> Entry | None:
        """The value that stands for this piece; None where it stands for itself."""
        series = series_of(entry.event)
        if not self.collapse or series is None or not accumulates(entry.event):
            return None
        value = self.values.get(series)
        return value if value is not None and accumulates(value.event) else None

    def replaced_value(self, later: Entry) -> Entry | None:
        """The value whose newest piece stood where a ``latest`` event from beyond the high-water
        mark stands now: the pieces before it have nothing else to stand for them.
        """
        value = self.values.get(series_of(later.event) or "")
        if value is None or value.place != later.place:
            return None
        return self.value_of(value)

    def left_over(self) -> list[Entry]:
        """The values that are owed at the end: the events that they would stand at are gone."""
        return sorted((self.values[series] for series in self.owed), key=attrgetter("index"))


async def has_expired(store: ShortTermStore, snapshot: Snapshot, follow: Follow) -> bool:
    """Whether events behind the cursor of ``follow`` may have been trimmed, or events before it
    that it needs.
    """
    record = snapshot.record
    if not record.trims:
        return False
    # Running values are made of the events before the cursor too.
    joins = follow.accumulated and any(accumulates(v.event) for v in snapshot.values.values())
    owed_from = record.next_index - 1 if joins else record.trimmed
    if follow.last_event_id is not None:
        index = await resolve_cursor(store, record, follow.last_event_id)
        return index is not None and index < owed_from
    if follow.since_id:
        index = await resolve_cursor(store, record, follow.since_id)
        if index is None or index < owed_from:
            return index is not None
        return await store.find(record.task.id, follow.since_id) is None  # no place to cut at
    if follow.since_index is not None:
        return True  # it counts events, some of which are gone
    if follow.since_timestamp is not None:
        page = await store.read(record.task.id, after=owed_from, limit=1)
        next_ms = page.entries[0].event.timestamp if page.entries else record.task.updated_at
        return follow.since_timestamp < next_ms
    return False


def end_cursor(record: TaskRecord) -> str | None:
    """The end of a log that was trimmed, as the id of an event there; else None."""
    if not record.trims:
        return None
    return event_id(record.task.updated_at, record.epoch, record.next_index - 1)


async def resolve_cursor(store: ShortTermStore, record: TaskRecord, event_id: str) -> int | None:
    """The index that an event id stands for in the log of ``record``, replaced events included;
    else None.
    """
    position = parse_event_id(event_id)
    if position is not None:
        if record.holds(position.epoch, position.index):
            return position.index
        if position.epoch == record.epoch:
            return None
    found = await store.find(record.task.id, event_id)
    return found.index if found is not None else None
