-- The key parts are compared as bytes (COLLATE "C"): quicker than by any language's
-- rules, and their order in the index does not change with the system's libraries.

CREATE TABLE duostore.entity (
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    data jsonb,
    schema_version integer NOT NULL DEFAULT 1,
    deleted boolean NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (tenant, kind, id),
    CHECK (deleted = (data IS NULL))
)
-- A row is updated in place of its page (HOT), without a new index entry, as long as the
-- page has room: no index holds a column that a Save changes.
WITH (fillfactor = 85);

COMMENT ON TABLE duostore.entity IS
    'The newest version of each entity. Rows are never removed: a deletion is a version.';

CREATE TABLE duostore.outbox (
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    due_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant, kind, entity_id)
)
-- Rows live for a fraction of a second, so the table is small and almost all of it dead:
-- vacuum it by the number of dead rows, not by their share. A fillfactor would not help,
-- since each update changes an indexed column.
WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 10000
);

CREATE UNIQUE INDEX outbox_id ON duostore.outbox (id);
CREATE INDEX outbox_due_time ON duostore.outbox (due_time);

COMMENT ON TABLE duostore.outbox IS
    'The entities whose newest version may not be projected yet: a work set, not a log.';
COMMENT ON COLUMN duostore.outbox.id IS
    'New with each change to the entity. Not an order: commits may overtake each other.';
COMMENT ON COLUMN duostore.outbox.due_time IS
    'When a projector may take the row up. Claiming a row moves this into the future.';
COMMENT ON COLUMN duostore.outbox.create_time IS
    'Of the oldest change that the row stands for.';
