-- Publishers that count their events.
--
-- client_id, client_seq: the publisher of an event, and the event's number among its own
-- expected:              the number of the event that a publisher is to send next; events that were
--                        replaced or trimmed can't tell it

ALTER TABLE taskcast_events
    ADD COLUMN IF NOT EXISTS client_id  TEXT,
    ADD COLUMN IF NOT EXISTS client_seq BIGINT;

ALTER TABLE taskcast_events ALTER COLUMN client_seq TYPE BIGINT;

ALTER TABLE taskcast_values
    ADD COLUMN IF NOT EXISTS client_id  TEXT,
    ADD COLUMN IF NOT EXISTS client_seq BIGINT;

ALTER TABLE taskcast_values ALTER COLUMN client_seq TYPE BIGINT;

CREATE TABLE taskcast_publishers (
    task_id   TEXT   NOT NULL REFERENCES taskcast_tasks (id) ON DELETE CASCADE,
    client_id TEXT   NOT NULL,
    expected  BIGINT NOT NULL,
    PRIMARY KEY (task_id, client_id)
);
