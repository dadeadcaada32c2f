-- The same comparison by bytes as in 0001.

CREATE TABLE duostore.source_change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    image jsonb,
    after_tenant text COLLATE "C",
    after_id text COLLATE "C",
    failures integer NOT NULL DEFAULT 0,
    due_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((after_tenant IS NULL) = (after_id IS NULL))
)
-- As of duostore.outbox.
WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 10000
);

-- Source by source, for rows of some may be another release's; what fails is looked at less.
CREATE INDEX source_change_due_time ON duostore.source_change (kind, source, due_time)
    WHERE failures = 0;
CREATE INDEX source_change_failed_due_time ON duostore.source_change (kind, source, due_time)
    WHERE failures > 0;
-- Looked for by each statement that writes while a column is gone.
CREATE INDEX source_change_any_row ON duostore.source_change (kind, source)
    WHERE image IS NULL AND after_id IS NULL;

COMMENT ON TABLE duostore.source_change IS
    'Changes of what documents are computed from, noted in the transaction that makes them, until '
    'the documents that they touch are all in duostore.stale.';
COMMENT ON COLUMN duostore.source_change.kind IS
    'The kind of the documents.';
COMMENT ON COLUMN duostore.source_change.source IS
    'kind:NAME or table:NAME, as the configuration names it.';
COMMENT ON COLUMN duostore.source_change.image IS
    'What the row was before the change, or is after it: the fields that the configuration names, '
    'as text, and of an entity its tenant and id. NULL: any row may have changed.';
COMMENT ON COLUMN duostore.source_change.after_tenant IS
    'How far it is worked off: up to the document of after_tenant and after_id, in their order. '
    'NULL: it is not begun.';
COMMENT ON COLUMN duostore.source_change.failures IS
    'How often in a row the SQL of the configuration failed.';
COMMENT ON COLUMN duostore.source_change.due_time IS
    'When a worker may take the row up. Claiming a row moves this into the future.';

CREATE TABLE duostore.stale (
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    failures integer NOT NULL DEFAULT 0,
    due_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, kind, entity_id)
)
-- As of duostore.outbox.
WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 10000
);

CREATE UNIQUE INDEX stale_id ON duostore.stale (id);
CREATE INDEX stale_due_time ON duostore.stale (due_time) WHERE failures = 0;
CREATE INDEX stale_failed_due_time ON duostore.stale (due_time) WHERE failures > 0;

COMMENT ON TABLE duostore.stale IS
    'The documents that have to be recomputed: a work set, not a log.';
COMMENT ON COLUMN duostore.stale.id IS
    'New with each change that touches the document. Not an order: commits may overtake each other.';
COMMENT ON COLUMN duostore.stale.failures IS
    'How often in a row it could not be recomputed.';
COMMENT ON COLUMN duostore.stale.due_time IS
    'When a worker may take the row up. Claiming a row moves this into the future.';
COMMENT ON COLUMN duostore.stale.create_time IS
    'Of the oldest change that the row stands for.';

CREATE TABLE duostore.read_model (
    kind text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    digest text NOT NULL,
    install_time timestamptz NOT NULL,
    PRIMARY KEY (kind, source)
);

COMMENT ON TABLE duostore.read_model IS
    'The sources of documents whose changes are noted, as `duostore migrate` found them configured.';
COMMENT ON COLUMN duostore.read_model.digest IS
    'SHA-256 of the SQL that computes the documents, of that which finds those that a change '
    'touches, and of the fields that it is told. All documents of a kind are recomputed when it '
    'changes.';

-- Who writes the users' tables needs no right to these. What values are as text does not depend
-- on the writer's session.

CREATE FUNCTION duostore.note_entity() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind CONSTANT text := tg_argv[0];
    source CONSTANT text := tg_argv[1];
    fields CONSTANT text[] := tg_argv[2:];
    key CONSTANT jsonb := jsonb_build_object('tenant', new.tenant, 'id', new.id);
    before jsonb;
    after CONSTANT jsonb := (
        SELECT coalesce(jsonb_object_agg(field, new.data ->> field), '{}') || key
        FROM unnest(fields) AS field
    );
BEGIN
    IF tg_op = 'UPDATE' THEN
        before := (
            SELECT coalesce(jsonb_object_agg(field, old.data ->> field), '{}') || key
            FROM unnest(fields) AS field
        );
    END IF;
    -- The same version again is what the version before it in this transaction has become, which
    -- is noted already as far as it is the same.
    IF before IS NULL OR new.version > old.version OR before <> after THEN
        INSERT INTO duostore.source_change (kind, source, image) VALUES (kind, source, after);
    END IF;
    IF before <> after AND new.version > old.version THEN
        INSERT INTO duostore.source_change (kind, source, image) VALUES (kind, source, before);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION duostore.note_entity() IS
    'Notes a change of an entity that documents of another kind depend on. Arguments: that kind, '
    'the source as the configuration names it, and the fields that tell which documents.';

CREATE FUNCTION duostore.note_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
SET extra_float_digits = '1'
AS $$
DECLARE
    kind CONSTANT text := tg_argv[0];
    source CONSTANT text := tg_argv[1];
    -- NULL if a column is gone, rather than that nobody can write: `duostore serve` and
    -- `duostore config check` tell of it.
    image CONSTANT text := (
        SELECT CASE WHEN coalesce(bool_and(attname IS NOT NULL), true) THEN format(
            'jsonb_build_object(%s)',
            string_agg(format('%L, changed.%I::text', field, field), ', ')
        ) END
        FROM unnest(tg_argv[2:]) AS field
        LEFT JOIN pg_attribute ON attrelid = tg_relid AND attname = field
            AND attnum > 0 AND NOT attisdropped
    );
    images CONSTANT text := CASE tg_op
        WHEN 'INSERT' THEN format('SELECT %s FROM after_rows AS changed', image)
        WHEN 'DELETE' THEN format('SELECT %s FROM before_rows AS changed', image)
        WHEN 'UPDATE' THEN format(
            'SELECT %1$s FROM before_rows AS changed UNION ALL SELECT %1$s FROM after_rows AS changed',
            image
        )
    END;
BEGIN
    IF tg_op = 'TRUNCATE' THEN
        INSERT INTO duostore.source_change (kind, source) VALUES (kind, source);
    ELSIF image IS NULL THEN
        -- Any row, which cannot be worked off until the column is back. That takes a lock of the
        -- table for which all wait that write now, so that one such row stands for all of them.
        INSERT INTO duostore.source_change (kind, source)
        SELECT tg_argv[0], tg_argv[1]
        WHERE NOT EXISTS (
            SELECT FROM duostore.source_change AS c
            WHERE c.kind = tg_argv[0] AND c.source = tg_argv[1]
                AND c.image IS NULL AND c.after_id IS NULL
        );
    ELSE
        EXECUTE format(
            'INSERT INTO duostore.source_change (kind, source, image)'
            ' SELECT DISTINCT $1, $2, noted.image FROM (%s) AS noted (image)',
            images
        ) USING kind, source;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION duostore.note_rows() IS
    'Notes which rows of a table that documents depend on a statement has changed, each image once. '
    'Arguments as of duostore.note_entity.';

REVOKE EXECUTE ON FUNCTION duostore.note_entity(), duostore.note_rows() FROM PUBLIC;
