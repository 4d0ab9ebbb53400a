-- From rows of tasks and events to logs: lives (epochs), revisions, places, and the values of
-- callers byte for byte.
--
-- jsonb drops duplicate keys and spacing, and refuses \u0000: raw text beside it is what is read
-- back; jsonb is for people who query, and NULL where it cannot hold the value. Rows without raw
-- text are the original's.

-- Tasks ---------------------------------------------------------------------------------------
-- raw:        the task as JSON with every value of the caller's own replaced by 0
-- raws:       those values, in their order
-- next_index: the log is archived up to the index before this one
-- former:     epochs of the log before this one: [[epoch, next_index], ...]
-- trimmed:    the highest index that was ever trimmed
-- trims:      how many events were
-- cleanup_at: when the next cleanup rule is due (Unix ms)

ALTER TABLE taskcast_tasks
    ADD COLUMN IF NOT EXISTS tags              JSONB,
    ADD COLUMN IF NOT EXISTS assign_mode       TEXT,
    ADD COLUMN IF NOT EXISTS cost              BIGINT,
    ADD COLUMN IF NOT EXISTS assigned_worker   TEXT,
    ADD COLUMN IF NOT EXISTS disconnect_policy TEXT,
    ADD COLUMN IF NOT EXISTS reason            TEXT,
    ADD COLUMN IF NOT EXISTS resume_at         BIGINT,
    ADD COLUMN IF NOT EXISTS blocked_request   JSONB,
    ADD COLUMN raw        TEXT,
    ADD COLUMN raws       TEXT[],
    ADD COLUMN revision   BIGINT  NOT NULL DEFAULT 0,
    ADD COLUMN epoch      TEXT,
    ADD COLUMN next_index BIGINT  NOT NULL DEFAULT 0,
    ADD COLUMN former     JSONB   NOT NULL DEFAULT '[]',
    ADD COLUMN imported   BOOLEAN NOT NULL DEFAULT TRUE,
    ADD COLUMN trimmed    BIGINT  NOT NULL DEFAULT -1,
    ADD COLUMN trims      BIGINT  NOT NULL DEFAULT 0,
    ADD COLUMN cleanup_at BIGINT;

ALTER TABLE taskcast_tasks
    ALTER COLUMN ttl  TYPE BIGINT,
    ALTER COLUMN cost TYPE BIGINT;

-- The original knows no epochs. Hexadecimal digits are in the alphabet of ours.
UPDATE taskcast_tasks AS task
SET epoch = upper(left(md5(task.id), 8)),
    next_index = coalesce(
        (SELECT max(event.idx) + 1 FROM taskcast_events AS event WHERE event.task_id = task.id), 0
    );

ALTER TABLE taskcast_tasks ALTER COLUMN epoch SET NOT NULL;

-- In order of creation, of equal times by the bytes of the id.
CREATE INDEX taskcast_tasks_created ON taskcast_tasks (created_at, (id COLLATE "C"));

CREATE INDEX taskcast_tasks_cleanup ON taskcast_tasks (cleanup_at) WHERE cleanup_at IS NOT NULL;

-- Events --------------------------------------------------------------------------------------
-- data_raw:   the data as it came; '' for an event without data, NULL in rows of the original
-- place:      the index whose slot the event holds in stored order
-- foreign_id: the id says nothing of where the event stands

DO $$
DECLARE
    known RECORD;
BEGIN
    FOR known IN
        SELECT conname FROM pg_constraint
        WHERE conrelid = 'taskcast_events'::regclass AND contype IN ('p', 'u')
    LOOP
        EXECUTE format('ALTER TABLE taskcast_events DROP CONSTRAINT %I', known.conname);
    END LOOP;
END
$$;

DROP INDEX IF EXISTS taskcast_events_task_id_idx;
DROP INDEX IF EXISTS taskcast_events_task_id_timestamp;

ALTER TABLE taskcast_events
    ADD COLUMN epoch           TEXT,
    ADD COLUMN place           BIGINT,
    ADD COLUMN data_raw        TEXT,
    ADD COLUMN series_snapshot BOOLEAN,
    ADD COLUMN foreign_id      BOOLEAN NOT NULL DEFAULT TRUE;

-- One rewrite of the table for all three.
ALTER TABLE taskcast_events
    ALTER COLUMN idx   TYPE BIGINT,
    ALTER COLUMN epoch TYPE TEXT   USING upper(left(md5(task_id), 8)),
    ALTER COLUMN place TYPE BIGINT USING idx;

ALTER TABLE taskcast_events
    ALTER COLUMN epoch SET NOT NULL,
    ALTER COLUMN place SET NOT NULL,
    ADD PRIMARY KEY (task_id, idx, epoch);

-- Few rows are in these: latest events that took the place of another, and ids made elsewhere.
CREATE INDEX taskcast_events_moved ON taskcast_events (task_id, place) WHERE place <> idx;
CREATE INDEX taskcast_events_foreign ON taskcast_events (task_id, md5(id)) WHERE foreign_id;

-- Values ---------------------------------------------------------------------------------------
-- Of the series of a log that was trimmed, as they were when it first was.

CREATE TABLE taskcast_values (
    LIKE taskcast_events INCLUDING DEFAULTS,
    PRIMARY KEY (task_id, series_id),
    FOREIGN KEY (task_id) REFERENCES taskcast_tasks (id) ON DELETE CASCADE
);

-- What is known of the whole: by which cleanup rules the tasks were looked at.

CREATE TABLE taskcast_marks (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Tombstones ----------------------------------------------------------------------------------
-- Lives of tasks that have ended here: a write of one of them that comes late is refused.

CREATE TABLE taskcast_tombstones (
    task_id   TEXT NOT NULL,
    epoch     TEXT NOT NULL,
    buried_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (task_id, epoch)
);

CREATE INDEX taskcast_tombstones_buried ON taskcast_tombstones (buried_at);
