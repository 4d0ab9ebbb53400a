"""The SQL of the store. ``$1`` is the task's id, but where many tasks are asked for."""

from __future__ import annotations

from typing import Final

from .rows import TASK_COLUMNS, EventRow

_ALIVE: Final = (
    "NOT EXISTS (SELECT FROM taskcast_tombstones AS tomb"
    " WHERE tomb.task_id = task.id AND tomb.epoch = task.epoch)"
)

STATE: Final = f"""
SELECT task.epoch, task.revision, task.created_at, task.next_index, {_ALIVE} AS alive,
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
        f"{name} = excluded.{name}" for name in TASK_COLUMNS if name not in ("id", "next_index")
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

BURY: Final = (
    "INSERT INTO taskcast_tombstones (task_id, epoch) SELECT $1, unnest($2::text[])"
    " ON CONFLICT DO NOTHING"
)

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

READ_SERIES: Final = f"""
SELECT {_EVENT} FROM taskcast_events
WHERE task_id = $1 AND idx > $2 AND series_mode IN ('accumulate', 'latest') AND series_id <> ''
ORDER BY idx LIMIT $3
"""

FIND: Final = f"""
(SELECT {_EVENT} FROM taskcast_events WHERE task_id = $1 AND idx = $3::bigint AND id = $2)
UNION ALL
(SELECT {_EVENT} FROM taskcast_events
    WHERE task_id = $1 AND foreign_id AND md5(id) = md5($2) AND id = $2)
LIMIT 1
"""
