"""The SQL of the authority. Every statement is one round trip.

A change commits the entity, its outbox row and its audit row together. The entity's row
lock comes first, so that writers of a key queue up there and an outbox id is taken in the
order of versions. Times are taken after the lock was waited for. The outbox goes by the
clock, not by update_time, which is ahead of it after a clock was set back.

A row that is already in the outbox gets a new id, so that who completes an older one takes
nothing away, and keeps its earlier due_time: with the later one, a key that is saved again
and again would never fall due, however long its projections fail.
"""

from __future__ import annotations

from typing import Final

# Ends each statement that changes, whose first part is named `written`.
_RECORDED: Final = """
), queued AS (
    INSERT INTO duostore.outbox AS o (tenant, kind, entity_id, due_time, create_time)
    SELECT %(tenant)s, %(kind)s, %(id)s, t + %(due_after)s, t
    FROM written, clock_timestamp() AS t
    ON CONFLICT (tenant, kind, entity_id) DO UPDATE SET
        id = DEFAULT,
        due_time = least(o.due_time, excluded.due_time)
    RETURNING id
), audited AS (
    INSERT INTO duostore.audit
        (tenant, kind, entity_id, version, operation, caller, request_id, time)
    SELECT %(tenant)s, %(kind)s, %(id)s, version, %(operation)s, %(caller)s, %(request_id)s,
        update_time
    FROM written
)
"""

# No ON CONFLICT: who finds the key taken must not have changed anything, so the whole
# statement fails.
_REMEMBERED: Final = """
, remembered AS (
    INSERT INTO duostore.idempotency
        (tenant, key, request_hash, answer, create_time, expire_time)
    SELECT %(key_tenant)s, %(key_text)s, %(request_hash)s,
        jsonb_build_array(
            jsonb_build_object('version', version, 'update_time', update_time)
        ),
        t, t + %(keep)s
    FROM written, clock_timestamp() AS t
)
"""

# The time is one before the commit, by the clock: whatever is committed after this change is
# committed after that.
_ANSWER: Final = (
    "SELECT version, create_time, update_time, id, clock_timestamp() FROM written, queued"
)

_UPSERT: Final = """
WITH written AS (
    INSERT INTO duostore.entity AS e
        (tenant, kind, id, version, data, deleted, create_time, update_time)
    SELECT %(tenant)s, %(kind)s, %(id)s, 1, %(data)s::jsonb, false, t, t
    FROM clock_timestamp() AS t
    ON CONFLICT (tenant, kind, id) DO UPDATE SET
        version = e.version + 1,
        data = excluded.data,
        deleted = false,
        (create_time, update_time) = (
            SELECT CASE WHEN e.deleted THEN t ELSE e.create_time END, t
            FROM greatest(clock_timestamp(), e.update_time) AS t
        )
    WHERE e.deleted OR NOT %(if_absent)s
    RETURNING version, create_time, update_time
"""

_UPDATE: Final = """
WITH written AS (
    UPDATE duostore.entity AS e SET
        version = e.version + 1,
        data = new.data,
        deleted = new.data IS NULL,
        update_time = greatest(clock_timestamp(), e.update_time)
    FROM (SELECT %(data)s::jsonb) AS new (data)
    WHERE e.tenant = %(tenant)s AND e.kind = %(kind)s AND e.id = %(id)s
        AND NOT e.deleted
        AND (%(if_version)s::bigint IS NULL OR e.version = %(if_version)s)
    RETURNING e.version, e.create_time, e.update_time
"""

# Saves that need no version of the entity, and all that do need one. Of a change that is
# refused they answer no row, and have written none. Each stands alone, or takes an
# idempotency key in the same stroke.
UPSERT: Final = _UPSERT + _RECORDED + _ANSWER
UPSERT_ONCE: Final = _UPSERT + _RECORDED + _REMEMBERED + _ANSWER
UPDATE: Final = _UPDATE + _RECORDED + _ANSWER
UPDATE_ONCE: Final = _UPDATE + _RECORDED + _REMEMBERED + _ANSWER

# The lock holds off every writer of the entity, and no other check, until the commit.
CHECK: Final = """
SELECT version, update_time
FROM duostore.entity
WHERE tenant = %(tenant)s AND kind = %(kind)s AND id = %(id)s
    AND version = %(if_version)s AND NOT deleted
FOR SHARE
"""

# Takes an idempotency key for a transaction, whose answer is known by then.
REMEMBER: Final = """
INSERT INTO duostore.idempotency (tenant, key, request_hash, answer, create_time, expire_time)
SELECT %(key_tenant)s, %(key_text)s, %(request_hash)s, %(answer)s::jsonb, t, t + %(keep)s
FROM clock_timestamp() AS t
"""

# What reads answers at least one row, which tells whether the server is a writer: see
# AuroraPool.ask_writer.

READ_ONE: Final = """
SELECT current_setting('transaction_read_only'), 1, version, data, create_time, update_time
FROM (VALUES (1)) AS one
LEFT JOIN duostore.entity ON tenant = %s AND kind = %s AND id = %s
"""

READ_MANY: Final = """
SELECT current_setting('transaction_read_only'), n, version, data, create_time, update_time
FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS k (tenant, kind, id, n)
LEFT JOIN duostore.entity USING (tenant, kind, id)
"""

READ_REMEMBERED: Final = """
SELECT current_setting('transaction_read_only'), request_hash, answer
FROM (VALUES (1)) AS one
LEFT JOIN duostore.idempotency ON tenant = %s AND key = %s
"""

# Rows that are locked are being purged by another.
PURGE: Final = """
WITH old AS MATERIALIZED (
    SELECT tenant, key
    FROM duostore.idempotency
    WHERE expire_time <= statement_timestamp()
    ORDER BY expire_time
    LIMIT %s
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM duostore.idempotency AS i
    USING old
    WHERE i.tenant = old.tenant AND i.key = old.key
    RETURNING 1
)
SELECT count(*) FROM purged
"""
