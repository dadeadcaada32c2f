"""The keys that still have to be projected, in a table beside the entities."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.entities import Backlog, OutboxRow, PendingChange
from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

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
SELECT id, tenant, kind, entity_id FROM claimed ORDER BY due_time, id
"""

# A row that is locked is being given a new id: it is not to be removed, and waiting for its
# saver, with other rows locked, could end in a deadlock.
_COMPLETE: Final = """
DELETE FROM duostore.outbox WHERE id IN (
    SELECT id FROM duostore.outbox WHERE id = ANY (%s) FOR UPDATE SKIP LOCKED
)
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
RETURNING id, tenant, kind, entity_id
"""


class AuroraOutbox:
    """``ports.Outbox`` on PostgreSQL. A claim holds for ``claim`` seconds.

    ``backlog`` never understates: a row keeps the age of the oldest change that it stands
    for. It may overstate for a key that is saved faster than completions come in, whose row
    each of them just misses.
    """

    def __init__(self, pool: AuroraPool, *, claim: float = _CLAIM_SECONDS) -> None:
        self._pool = pool
        self._claim = timedelta(seconds=claim)

    def claim(self, limit: int, deadline: Deadline) -> Sequence[OutboxRow]:
        rows = self._pool.execute(_CLAIM, (Int8(limit), self._claim), deadline)
        return [OutboxRow(id_, EntityKey(*key)) for id_, *key in rows]

    def complete(self, ids: Collection[int], deadline: Deadline) -> None:
        if ids:
            self._pool.execute(_COMPLETE, ([Int8(id_) for id_ in ids],), deadline)

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
        return [OutboxRow(id_, EntityKey(*key)) for id_, *key in rows]


def _columns(keys: Sequence[EntityKey]) -> tuple[list[str], list[str], list[str]]:
    return (
        [key.tenant for key in keys],
        [key.kind for key in keys],
        [key.id for key in keys],
    )
