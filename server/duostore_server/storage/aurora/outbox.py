"""The keys that still have to be projected, in a table beside the entities."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.entities import Backlog, OutboxRow, PendingChange
from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from psycopg.rows import TupleRow

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.pool import AuroraPool

_CLAIM_SECONDS: Final = 3.0

# Rows are claimed by moving their due_time: one column is both the plan and the claim, and
# a claim that runs out needs nobody to take it back. Joined by key, since a row that a saver
# changed just before it was locked has another id by now.
_CLAIM: Final = """
WITH due AS MATERIALIZED (
    SELECT tenant, kind, entity_id, due_time
    FROM duostore.outbox
    WHERE due_time <= statement_timestamp()
    ORDER BY due_time
    LIMIT %s
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE duostore.outbox AS o
    SET due_time = clock_timestamp() + %s
    FROM due
    WHERE o.tenant = due.tenant AND o.kind = due.kind AND o.entity_id = due.entity_id
    RETURNING o.id, o.tenant, o.kind, o.entity_id, due.due_time
)
SELECT id, clock_timestamp(), tenant, kind, entity_id FROM claimed ORDER BY due_time, id
"""

# A row that is locked is being given a new id: it is not to be removed, and waiting for its
# saver, with other rows locked, could end in a deadlock.
# A row that has a new id by now stands for what was committed after as_of: all before was
# brought. It is made younger up to that, and not up to now, since what was committed meanwhile
# has waited for as long; nor up to a time that is to come, of a clock that was set back.
_COMPLETE: Final = """
WITH done AS MATERIALIZED (
    SELECT o.place, o.id, o.id = d.id AS is_met, d.as_of
    FROM unnest(%s::bigint[], %s::timestamptz[], %s::text[], %s::text[], %s::text[])
        AS d (id, as_of, tenant, kind, entity_id)
    -- A subquery that locks is not pulled up: each row is found by its key, in any table.
    CROSS JOIN LATERAL (
        SELECT o.ctid AS place, o.id
        FROM duostore.outbox AS o
        WHERE o.tenant = d.tenant AND o.kind = d.kind AND o.entity_id = d.entity_id
            AND (
                o.id = d.id
                OR (o.id > d.id AND o.create_time < d.as_of AND d.as_of <= clock_timestamp())
            )
        FOR UPDATE SKIP LOCKED
    ) AS o
), removed AS (
    DELETE FROM duostore.outbox AS o
    USING done
    WHERE o.ctid = done.place AND o.id = done.id AND done.is_met
)
UPDATE duostore.outbox AS o
SET create_time = done.as_of
FROM done
WHERE o.ctid = done.place AND o.id = done.id AND NOT done.is_met
"""

_BACKLOG: Final = """
SELECT count(*),
    greatest(0, coalesce(extract(epoch FROM clock_timestamp() - min(create_time)), 0))::float8
FROM duostore.outbox
"""


_FIND: Final = """
SELECT current_setting('transaction_read_only'), n, o.id, o.create_time, o.due_time,
    greatest(interval '0', clock_timestamp() - o.create_time)
FROM (VALUES (1)) AS one
LEFT JOIN (
    unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS k (tenant, kind, entity_id, n)
    JOIN duostore.outbox AS o USING (tenant, kind, entity_id)
) ON true
"""

# As a change queues its row, and in the order of keys in which changes take their locks.
_OBLIGE: Final = """
INSERT INTO duostore.outbox AS o (tenant, kind, entity_id, due_time, create_time)
SELECT tenant, kind, entity_id, t + %s, t
FROM unnest(%s::text[], %s::text[], %s::text[]) AS k (tenant, kind, entity_id),
    clock_timestamp() AS t
ORDER BY tenant COLLATE "C", kind COLLATE "C", entity_id COLLATE "C"
ON CONFLICT (tenant, kind, entity_id) DO UPDATE SET
    id = DEFAULT,
    due_time = least(o.due_time, excluded.due_time)
RETURNING id, clock_timestamp(), tenant, kind, entity_id
"""


class AuroraOutbox:
    """``ports.Outbox`` on PostgreSQL. A claim holds for ``claim`` seconds.

    ``backlog`` never understates how long ago the oldest change was committed that is not known
    to be brought. It may overstate: a row keeps its age until a completion tells that what it
    stood for was brought.
    """

    def __init__(self, pool: AuroraPool, *, claim: float = _CLAIM_SECONDS) -> None:
        self._pool = pool
        self._claim = timedelta(seconds=claim)

    def claim(self, limit: int, deadline: Deadline) -> Sequence[OutboxRow]:
        rows = self._pool.execute(_CLAIM, (Int8(limit), self._claim), deadline)
        return list(map(_row, rows))

    def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
        if not rows:
            return
        # Of several of a key the newest: the others say no more.
        newest = {row.key: row for row in sorted(rows, key=lambda row: row.id)}
        done = list(newest.values())
        ids, times = [Int8(row.id) for row in done], [row.as_of for row in done]
        self._pool.execute(_COMPLETE, (ids, times, *_columns(list(newest))), deadline)

    def backlog(self, deadline: Deadline) -> Backlog:
        ((depth, oldest_seconds),) = self._pool.execute(_BACKLOG, (), deadline)
        return Backlog(depth, oldest_seconds)

    def find(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, PendingChange]:
        ordered = list(keys)
        if not ordered:
            return {}
        rows = self._pool.ask_writer(_FIND, _columns(ordered), deadline)
        return {
            ordered[n - 1]: PendingChange(
                id_, create_time.astimezone(UTC), due_time.astimezone(UTC), age
            )
            for _, n, id_, create_time, due_time, age in rows
            if n is not None
        }

    def oblige(
        self, keys: Collection[EntityKey], due_after: timedelta, deadline: Deadline
    ) -> Sequence[OutboxRow]:
        ordered = list(dict.fromkeys(keys))
        if not ordered:
            return []
        rows = self._pool.execute(_OBLIGE, (due_after, *_columns(ordered)), deadline)
        return list(map(_row, rows))


def _row(row: TupleRow) -> OutboxRow:
    id_, as_of, *key = row
    return OutboxRow(id_, EntityKey(*key), as_of.astimezone(UTC))


def _columns(keys: Sequence[EntityKey]) -> tuple[list[str], list[str], list[str]]:
    return (
        [key.tenant for key in keys],
        [key.kind for key in keys],
        [key.id for key in keys],
    )
