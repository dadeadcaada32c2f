-- The same comparison by bytes as in 0001.

CREATE TABLE duostore.idempotency (
    tenant text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    answer jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (tenant, key)
);

CREATE INDEX idempotency_expire_time ON duostore.idempotency (expire_time);

COMMENT ON TABLE duostore.idempotency IS
    'What was applied under which idempotency key, committed together with what was applied.';
COMMENT ON COLUMN duostore.idempotency.request_hash IS
    'SHA-256 of what was asked for. The same key with another hash is refused.';
COMMENT ON COLUMN duostore.idempotency.answer IS
    'Version and update_time that each mutation came to, in the order of the request.';
COMMENT ON COLUMN duostore.idempotency.expire_time IS
    'When the row may be purged. It counts until it is.';

CREATE TABLE duostore.audit (
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    operation text NOT NULL CHECK (operation IN ('save', 'delete')),
    caller text NOT NULL,
    request_id text NOT NULL,
    time timestamptz NOT NULL,
    PRIMARY KEY (tenant, kind, entity_id, version)
);

-- Rows come in the order of time, nearly: a few pages of this index cover years.
CREATE INDEX audit_time ON duostore.audit USING brin (time);

CREATE FUNCTION duostore.refuse_to_rewrite_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'duostore.audit is append-only: % is refused', tg_op
        USING ERRCODE = 'insufficient_privilege',
            HINT = 'The comment on the table says how an operator retires old rows.';
END
$$;

CREATE TRIGGER audit_is_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON duostore.audit
    FOR EACH STATEMENT EXECUTE FUNCTION duostore.refuse_to_rewrite_audit();
-- In a session that replays a replica's changes too.
ALTER TABLE duostore.audit ENABLE ALWAYS TRIGGER audit_is_append_only;

COMMENT ON TABLE duostore.audit IS
    'Who wrote which version, and when: one row for each, committed together with it. Rows are '
    'only ever added; a trigger refuses the rest. To retire old rows, the owner of the table '
    'archives them and then, in one transaction: ALTER TABLE duostore.audit DISABLE TRIGGER '
    'audit_is_append_only; DELETE FROM duostore.audit WHERE time < ...; ALTER TABLE '
    'duostore.audit ENABLE ALWAYS TRIGGER audit_is_append_only. Writes wait for that transaction '
    'to end: delete a little at a time.';
COMMENT ON COLUMN duostore.audit.caller IS
    'Who asked for it: the name in the client certificate or, where clients present none, what '
    'the caller says of itself; may be empty.';
COMMENT ON COLUMN duostore.audit.request_id IS
    'The request id of the call, as the log has it.';
COMMENT ON COLUMN duostore.audit.time IS
    'The update_time of the version.';

CREATE TABLE duostore.draft (
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    data jsonb,
    deleted boolean NOT NULL,
    update_time timestamptz NOT NULL,
    expire_time timestamptz,
    consolidate_time timestamptz NOT NULL,
    PRIMARY KEY (tenant, kind, id),
    CHECK (deleted = (data IS NULL))
)
-- As of duostore.entity: no index holds a column that changes.
WITH (fillfactor = 85);

COMMENT ON TABLE duostore.draft IS
    'The newest content of what lives in DynamoDB, as of its last consolidation: a copy to query.';
COMMENT ON COLUMN duostore.draft.sequence IS
    'The sequence of the snapshot, or the version of the entity at home in DynamoDB.';
COMMENT ON COLUMN duostore.draft.update_time IS
    'When the content was written to DynamoDB.';
COMMENT ON COLUMN duostore.draft.expire_time IS
    'From when on the entity is absent, if ever: queries have to look at it.';
COMMENT ON COLUMN duostore.draft.consolidate_time IS
    'When it was brought here.';
