-- The same comparison by bytes as in 0001.

CREATE TABLE duostore.backfill (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text COLLATE "C" NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'paused', 'done', 'cancelled')),
    rate integer NOT NULL CHECK (rate >= 0),
    parts integer NOT NULL CHECK (parts > 0),
    parts_done integer NOT NULL DEFAULT 0 CHECK (parts_done BETWEEN 0 AND parts),
    estimated_total bigint NOT NULL,
    caller text NOT NULL,
    start_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CHECK (state <> 'done' OR parts_done = parts)
);

CREATE UNIQUE INDEX backfill_unfinished ON duostore.backfill (kind)
    WHERE state IN ('running', 'paused');
CREATE INDEX backfill_kind ON duostore.backfill (kind, id);

COMMENT ON TABLE duostore.backfill IS
    'The backfills of each kind, ended ones too: of a kind one at a time is running or paused. Who '
    'did what is in duostore.backfill_part.';
COMMENT ON COLUMN duostore.backfill.rate IS
    'The most entities a second, over all parts; 0: as many as go.';
COMMENT ON COLUMN duostore.backfill.parts_done IS
    'How many parts have come to their end: counted in the statement that ends one, so that one of '
    'them is the last.';
COMMENT ON COLUMN duostore.backfill.estimated_total IS
    'About how many entities there were when it began.';
COMMENT ON COLUMN duostore.backfill.caller IS
    'Who began it, or was the last to pause it, go on with it or cancel it; may be empty.';
COMMENT ON COLUMN duostore.backfill.update_time IS
    'When it began, or last went on after a pause. Its parts have theirs.';

CREATE TABLE duostore.backfill_part (
    backfill bigint NOT NULL REFERENCES duostore.backfill ON DELETE CASCADE,
    number integer NOT NULL,
    after_tenant text COLLATE "C",
    after_id text COLLATE "C",
    until_tenant text COLLATE "C",
    until_id text COLLATE "C",
    done bigint NOT NULL DEFAULT 0,
    projected bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    ended boolean NOT NULL DEFAULT false,
    claim bigint NOT NULL DEFAULT 0,
    claimed_until timestamptz NOT NULL DEFAULT '-infinity',
    update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (backfill, number),
    CHECK ((after_tenant IS NULL) = (after_id IS NULL)),
    CHECK ((until_tenant IS NULL) = (until_id IS NULL))
)
-- As of duostore.entity: no index holds a column that changes.
WITH (fillfactor = 50);

COMMENT ON TABLE duostore.backfill_part IS
    'The parts of backfills, ranges of keys, and how far each has come.';
COMMENT ON COLUMN duostore.backfill_part.after_tenant IS
    'The checkpoint: what is up to after_tenant and after_id, in their order, is done. NULL: '
    'nothing is, from the beginning of the kind on. An empty id is before all those of its tenant.';
COMMENT ON COLUMN duostore.backfill_part.until_tenant IS
    'The part ends with until_tenant and until_id, in their order. NULL: with the kind.';
COMMENT ON COLUMN duostore.backfill_part.done IS
    'Entities that were looked at.';
COMMENT ON COLUMN duostore.backfill_part.projected IS
    'Of these, how many DynamoDB did not have as they are.';
COMMENT ON COLUMN duostore.backfill_part.failed IS
    'Of these, how many cannot be projected.';
COMMENT ON COLUMN duostore.backfill_part.claim IS
    'How often it was claimed: whoever comes with another number has lost it.';
COMMENT ON COLUMN duostore.backfill_part.claimed_until IS
    'When another process may take it, unless it is advanced until then.';

CREATE TABLE duostore.verification (
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    age interval NOT NULL,
    version bigint NOT NULL,
    drifts text[] NOT NULL,
    time timestamptz NOT NULL,
    PRIMARY KEY (tenant, kind, entity_id)
);

CREATE INDEX verification_time ON duostore.verification (time);

COMMENT ON TABLE duostore.verification IS
    'What the verifier found when it last looked at an entity, of those that it took by chance.';
COMMENT ON COLUMN duostore.verification.age IS
    'How long after the version was saved it looked; 0 if it took the row by chance.';
COMMENT ON COLUMN duostore.verification.version IS
    'That which Aurora had then; 0 if it had none.';
COMMENT ON COLUMN duostore.verification.drifts IS
    'What did not agree, as duostore_drift_total names it; empty: all did.';

-- What was saved in the last second is looked for every second: without this, all rows since
-- the last vacuum would be read for it.
ALTER INDEX duostore.audit_time SET (autosummarize = on);

COMMENT ON COLUMN duostore.control.topic IS
    'What a row is about. quota_limit: the limit of a subject of a quota. flag: what a flag is. '
    'read_only: that writes are refused.';
COMMENT ON COLUMN duostore.control.name IS
    'What is set, within the topic. quota_limit: quota#subject, for the subject in every tenant, '
    'or quota#tenant#subject; a subject that holds a # always has its tenant before it, be it '
    'empty. flag: the name of the flag. read_only: the kind, or empty for all kinds.';
COMMENT ON COLUMN duostore.control.value IS
    'What it is set to. quota_limit: a whole number, 1 to 10^12. flag: a string or a whole number. '
    'read_only: the reason, a string, for those who are refused.';
