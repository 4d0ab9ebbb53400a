"""Where a cursor from outside stands in a log, and whether what it needs is still there."""

from __future__ import annotations

from taskcast_trio.core.ids import event_id, parse_event_id
from taskcast_trio.core.series import accumulates
from taskcast_trio.storage.protocols import ShortTermStore
from taskcast_trio.storage.records import Snapshot, TaskRecord

from .history import PAGE_EVENTS
from .items import Follow


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


async def has_seen_all(store: ShortTermStore, record: TaskRecord, follow: Follow) -> bool:
    """Whether no event is behind the cursor of ``follow`` that passes its filter. Not where the
    log has lost the event that it stands at, and has another one in its place.
    """
    if follow.last_event_id is None:
        return False
    index = await resolve_cursor(store, record, follow.last_event_id)
    if index is None or index < record.trimmed:
        return False
    # Where the log was trimmed, the id may be the made-up one of its end.
    after = index if record.trims else index - 1
    more = True
    while more:
        page = await store.read(record.task.id, after=after, limit=PAGE_EVENTS)
        for entry in page.entries:
            if entry.index == index:
                if entry.id != follow.last_event_id:
                    return False
            elif follow.filter.matches(entry.type, entry.level):
                return False
            after = entry.index
        more = page.more
    return True


def end_cursor(record: TaskRecord) -> str | None:
    """The end of a log that was trimmed, as the id of an event there; else None."""
    if not record.trims:
        return None
    return event_id(record.task.updated_at, record.epoch, record.next_index - 1)
