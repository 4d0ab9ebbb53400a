"""The SQL of the store. ``$1`` is the task's id, but where many tasks are asked for."""

from __future__ import annotations

from typing import Final

from .rows import TASK_COLUMNS, EventRow

_ALIVE: Final = (
    "NOT EXISTS (SELECT FROM taskcast_tombstones AS tomb"
    " WHERE tomb.task_id = task.id AND tomb.epoch = task.epoch)"
)

STATE: Final = f"""
SELECT task.epoch, task.revision, task.created_at, task.next_index, task.trimmed, {_ALIVE} AS alive,
    task.status,
    EXISTS (SELECT FROM taskcast_tombstones WHERE task_id = $1 AND epoch = $2) AS buried
FROM (SELECT 1) AS one LEFT JOIN taskcast_tasks AS task ON task.id = $1
"""

LOAD: Final = (
    f"SELECT {', '.join(TASK_COLUMNS)} FROM taskcast_tasks AS task WHERE id = $1 AND {_ALIVE}"
)

EXISTS: Final = f"SELECT EXISTS (SELECT FROM taskcast_tasks AS task WHERE id = $1 AND {_ALIVE})"

ARCHIVED: Final = (
    f"SELECT next_index - 1 FROM taskcast_tasks AS task WHERE id = $1 AND epoch = $2 AND {_ALIVE}"
)

LIST: Final = f"""
SELECT {", ".join(TASK_COLUMNS)} FROM taskcast_tasks AS task
WHERE (created_at, id COLLATE "C") > ($1::bigint, $2::text)
    AND ($3::text[] IS NULL OR status = ANY ($3))
    AND ($4::text IS NULL OR type = $4)
    AND {_ALIVE}
ORDER BY created_at, id COLLATE "C"
LIMIT $5
"""

UPSERT: Final = (
    f"INSERT INTO taskcast_tasks ({', '.join(TASK_COLUMNS)})"
    f" VALUES ({', '.join(f'${n}' for n in range(1, len(TASK_COLUMNS) + 1))})"
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(
        f"{name} = greatest(taskcast_tasks.{name}, excluded.{name})"
        if name in ("trimmed", "trims")
        else f"{name} = excluded.{name}"
        for name in TASK_COLUMNS
        if name not in ("id", "next_index")
    )
)

ADVANCE: Final = (
    "UPDATE taskcast_tasks SET next_index = $2::bigint WHERE id = $1 AND next_index < $2::bigint"
)

MAX_FORMER: Final = 64
"""A cursor of an epoch that was longer ago is not known any more."""

RENEW: Final = f"""
UPDATE taskcast_tasks SET epoch = $2, former = (
    CASE WHEN jsonb_array_length(former) < {MAX_FORMER} THEN former ELSE former - 0 END
) || jsonb_build_array(jsonb_build_array(epoch, next_index))
WHERE id = $1
"""

EXTENTS: Final = f"""
SELECT id, epoch, revision, next_index FROM taskcast_tasks AS task
WHERE id = ANY ($1::text[]) AND {_ALIVE}
"""

SUMMARY: Final = f"""
SELECT count(*) AS tasks, coalesce(sum(next_index), 0)::bigint AS events,
    max(updated_at) AS updated_at
FROM taskcast_tasks AS task WHERE {_ALIVE}
"""

SET_DUE: Final = f"""
UPDATE taskcast_tasks AS task SET cleanup_at = $3::bigint
WHERE id = $1 AND epoch = $2 AND {_ALIVE} RETURNING 1
"""

_DUE: Final = f"""
SELECT id, cleanup_at FROM taskcast_tasks AS task
WHERE cleanup_at <= $1::bigint AND {_ALIVE} ORDER BY cleanup_at LIMIT $2::bigint
"""

LIST_DUE: Final = _DUE

TAKE_DUE: Final = f"""
WITH due AS ({_DUE} FOR UPDATE OF task SKIP LOCKED)
UPDATE taskcast_tasks AS task SET cleanup_at = $3::bigint
FROM due WHERE task.id = due.id RETURNING task.id, due.cleanup_at
"""

NEXT_DUE: Final = f"""
SELECT cleanup_at FROM taskcast_tasks AS task
WHERE cleanup_at IS NOT NULL AND {_ALIVE} ORDER BY cleanup_at LIMIT 1
"""

LIST_ENDED: Final = f"""
SELECT {", ".join(TASK_COLUMNS)} FROM taskcast_tasks AS task
WHERE id > $1 AND status = ANY ($2::text[]) AND {_ALIVE} ORDER BY id LIMIT $3
"""

MARK: Final = "SELECT value FROM taskcast_marks WHERE name = $1"

PUT_MARK: Final = """
INSERT INTO taskcast_marks (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""

BURY: Final = (
    "INSERT INTO taskcast_tombstones (task_id, epoch) SELECT $1, unnest($2::text[])"
    " ON CONFLICT DO NOTHING"
)

BURIED: Final = """
SELECT tomb.task_id, tomb.epoch, task.id IS NOT NULL AS has_rows
FROM (
    SELECT task_id, epoch FROM taskcast_tombstones
    WHERE (task_id, epoch) > ($1::text, $2::text) ORDER BY task_id, epoch LIMIT $3
) AS tomb LEFT JOIN taskcast_tasks AS task ON task.id = tomb.task_id AND task.epoch = tomb.epoch
ORDER BY tomb.task_id, tomb.epoch
"""

PURGE: Final = """
DELETE FROM taskcast_events WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM taskcast_events WHERE task_id = $1 LIMIT $2
))
"""

DROP: Final = "DELETE FROM taskcast_tasks WHERE id = $1"

FORGET: Final = """
DELETE FROM taskcast_tombstones AS tomb
WHERE buried_at < now() - interval '30 days' AND NOT EXISTS (
    SELECT FROM taskcast_tasks AS task WHERE task.id = tomb.task_id AND task.epoch = tomb.epoch
)
"""
"""No process holds a write back that long."""

_TYPES: Final = {
    "id": "text",
    "idx": "bigint",
    "place": "bigint",
    "timestamp": "bigint",
    "data": "text",
    "series_snapshot": "boolean",
    "client_seq": "bigint",
    "foreign_id": "boolean",
}

INSERT: Final = f"""
INSERT INTO taskcast_events (task_id, epoch, {", ".join(EventRow._fields)})
SELECT $1, $2, {
    ", ".join("row.data::jsonb" if f == "data" else f"row.{f}" for f in EventRow._fields)
}
FROM unnest({
    ", ".join(f"${n}::{_TYPES.get(f, 'text')}[]" for n, f in enumerate(EventRow._fields, start=3))
}) AS row ({", ".join(EventRow._fields)})
WHERE NOT EXISTS (
    SELECT FROM taskcast_events AS newer
    WHERE newer.task_id = $1 AND newer.place <> newer.idx
        AND newer.place = row.place AND newer.idx > row.idx
)
ON CONFLICT (task_id, idx, epoch) DO NOTHING
"""
"""A row whose place a later event has taken is one that comes late, and is not owed."""

_REPLACE: Final = (
    "DELETE FROM taskcast_events AS old"
    " USING unnest($2::bigint[], $3::bigint[]) AS row (place, idx)"
    " WHERE old.task_id = $1 AND old.place = row.place AND "
)

REPLACE: Final = (
    f"{_REPLACE} old.idx = row.place",
    f"{_REPLACE} old.place <> old.idx AND old.idx < row.idx",
)
"""What stood where an event stands now: the first one there, and one that had replaced it."""

_EVENT: Final = (
    ", ".join(name for name in EventRow._fields if name not in ("data", "foreign_id"))
    + ", CASE WHEN data_raw IS NULL THEN data END AS data"
)

READ: Final = (
    f"SELECT {_EVENT} FROM taskcast_events WHERE task_id = $1 AND idx > $2 ORDER BY idx LIMIT $3"
)

READ_PLACES: Final = f"""
(SELECT {_EVENT} FROM taskcast_events
    WHERE task_id = $1 AND place <> idx AND place > $2 AND idx > $3 ORDER BY place LIMIT $4)
UNION ALL
(SELECT {_EVENT} FROM taskcast_events
    WHERE task_id = $1 AND place = idx AND idx > greatest($2, $3) ORDER BY idx LIMIT $4)
ORDER BY place LIMIT $4
"""

_KEEPS_VALUE: Final = "series_mode IN ('accumulate', 'latest') AND series_id <> ''"

READ_SERIES: Final = f"""
SELECT {_EVENT} FROM taskcast_events
WHERE task_id = $1 AND idx > $2 AND {_KEEPS_VALUE}
ORDER BY idx LIMIT $3
"""

READ_VALUES: Final = f"SELECT {_EVENT} FROM taskcast_values WHERE task_id = $1"

NEEDS_VALUES: Final = f"""
SELECT EXISTS (
    SELECT FROM taskcast_events AS event
    WHERE task_id = $1 AND idx = ANY ($2::bigint[]) AND {_KEEPS_VALUE} AND NOT EXISTS (
        SELECT FROM taskcast_values AS value
        WHERE value.task_id = $1 AND value.series_id = event.series_id AND value.idx >= event.idx
    )
)
"""
"""Whether the value of a series is not written down yet that one of the events is part of."""

KEEP_VALUES: Final = (
    INSERT.partition("WHERE NOT EXISTS")[0].replace("INTO taskcast_events", "INTO taskcast_values")
    + " ON CONFLICT (task_id, series_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in EventRow._fields if name != "series_id")
    + " WHERE taskcast_values.idx < excluded.idx"
)

TRIM: Final = f"""
DELETE FROM taskcast_events WHERE task_id = $1 AND idx = ANY ($2::bigint[])
RETURNING idx, CASE WHEN {_KEEPS_VALUE} THEN series_id END AS series_id
"""

FORGET_VALUES: Final = f"""
DELETE FROM taskcast_values AS value
WHERE task_id = $1 AND series_id = ANY ($2::text[]) AND NOT EXISTS (
    SELECT FROM taskcast_events AS event
    WHERE event.task_id = $1 AND event.series_id = value.series_id
        AND {_KEEPS_VALUE.replace("series_", "event.series_")}
)
"""

TRIMMED: Final = (
    "UPDATE taskcast_tasks SET trimmed = greatest(trimmed, $2::bigint), trims = trims + $3::bigint"
    " WHERE id = $1"
)

PUBLISHERS: Final = "SELECT client_id, expected FROM taskcast_publishers WHERE task_id = $1"

EXPECT: Final = """
INSERT INTO taskcast_publishers (task_id, client_id, expected)
SELECT $1, row.client_id, row.expected
FROM unnest($2::text[], $3::bigint[]) AS row (client_id, expected)
ON CONFLICT (task_id, client_id) DO UPDATE
SET expected = greatest(taskcast_publishers.expected, excluded.expected)
"""

FIND: Final = f"""
(SELECT {_EVENT} FROM taskcast_events WHERE task_id = $1 AND idx = $3::bigint AND id = $2)
UNION ALL
(SELECT {_EVENT} FROM taskcast_events
    WHERE task_id = $1 AND foreign_id AND md5(id) = md5($2) AND id = $2)
LIMIT 1
"""
