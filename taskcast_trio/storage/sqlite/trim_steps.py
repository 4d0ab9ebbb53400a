"""The step that removes events of a log that has ended, as it runs within a batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from msgspec.structs import replace

from taskcast_trio.core.entry import Entry

from ..records import Commit
from .batch import Batch
from .queries import Head
from .rows import EVENT_COLUMNS, is_foreign, row_of
from .schema import KEEPS_VALUE

_Found: TypeAlias = tuple[int, int, str | None, int]

_COLUMNS: Final = (
    "events.place, events.idx,"
    f" CASE WHEN {KEEPS_VALUE} THEN events.series_id END, coalesce(length(events.data), 0)"
)
_FIND: Final = (
    f"SELECT {_COLUMNS} FROM json_each(?) AS wanted CROSS JOIN events"
    " ON events.log = ? AND events.place = wanted.value WHERE events.idx = events.place"
)
_FIND_MOVED: Final = (
    f"SELECT {_COLUMNS} FROM json_each(?) AS wanted CROSS JOIN events INDEXED BY events_moved"
    " ON events.log = ? AND events.idx = wanted.value AND events.idx <> events.place"
)
_KEEP_VALUE: Final = (
    f"INSERT OR REPLACE INTO kept_values (log, {EVENT_COLUMNS})"
    f" VALUES (?{', ?' * (EVENT_COLUMNS.count(',') + 1)})"
)
_FORGET_VALUE: Final = (
    "DELETE FROM kept_values WHERE log = ? AND series_id = ? AND NOT EXISTS"
    " (SELECT 1 FROM events INDEXED BY events_series"
    f" WHERE events.log = kept_values.log AND events.series_id = kept_values.series_id"
    f" AND {KEEPS_VALUE.replace('series_', 'events.series_')})"
)


def trim(
    batch: Batch,
    task_id: str,
    indexes: Sequence[int],
    epoch: str,
    values: Sequence[Entry] | None,
) -> int | None:
    """How many events were removed; None, and nothing done, where series would lose their values by
    it: ask again with these.
    """
    head = batch.head(task_id)
    if head is None or head.record.epoch != epoch or not head.record.task.terminal:
        return 0
    batch.flush_events()
    found = _find(batch, head.log, indexes)
    if not found:
        return 0
    series = {name for _, _, name, _ in found if name is not None}
    if series and not _are_kept(batch, head.log):
        if values is None:
            return None
        _keep(batch, head, values)
    execute, executemany = batch.connection.execute, batch.connection.executemany
    executemany(
        "DELETE FROM events WHERE log = ? AND place = ?", [(head.log, place) for place, *_ in found]
    )
    for name in series:
        execute(_FORGET_VALUE, (head.log, name))
    record = replace(
        head.record,
        trimmed=max(head.record.trimmed, *(index for _, index, _, _ in found)),
        trims=head.record.trims + len(found),
    )
    size = sum(bytes_ for *_, bytes_ in found)
    batch.keep(
        replace(head, record=record, events=head.events - len(found), bytes=head.bytes - size)
    )
    batch.unsaid.append(Commit(record, deleted=True))
    return len(found)


def _find(batch: Batch, log: int, indexes: Sequence[int]) -> list[_Found]:
    wanted: tuple[Any, ...] = (json.dumps(sorted(set(indexes))), log)
    found: list[_Found] = batch.connection.execute(_FIND, wanted).fetchall()
    return found + batch.connection.execute(_FIND_MOVED, wanted).fetchall()


def _are_kept(batch: Batch, log: int) -> bool:
    """Whether the values are written down: all of them are, at the first trim that needs it."""
    query = "SELECT 1 FROM kept_values WHERE log = ? LIMIT 1"
    return batch.connection.execute(query, (log,)).fetchone() is not None


def _keep(batch: Batch, head: Head, values: Sequence[Entry]) -> None:
    rows = ((head.log, *row_of(entry, foreign=is_foreign(entry, head.record))) for entry in values)
    batch.connection.executemany(_KEEP_VALUE, rows)
