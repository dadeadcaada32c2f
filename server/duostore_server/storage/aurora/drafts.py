"""What lives in DynamoDB, copied into a table to query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.documents import compact_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.snapshots import Draft
    from duostore_server.storage.aurora.pool import AuroraPool

# Rows are locked in the order of their keys, so that two that fold the same ones do not
# wait for each other in a circle. The answer is read as of the statement's beginning.
_FOLD: Final = """
WITH given AS MATERIALIZED (
    SELECT *
    FROM unnest(
        %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::timestamptz[],
        %s::timestamptz[]
    ) WITH ORDINALITY AS g (tenant, kind, id, sequence, data, update_time, expire_time, n)
), folded AS (
    INSERT INTO duostore.draft AS d
        (tenant, kind, id, sequence, data, deleted, update_time, expire_time, consolidate_time)
    SELECT tenant, kind, id, sequence, data::jsonb, data IS NULL, update_time, expire_time,
        clock_timestamp()
    FROM given
    ORDER BY tenant COLLATE "C", kind COLLATE "C", id COLLATE "C"
    ON CONFLICT (tenant, kind, id) DO UPDATE SET
        sequence = excluded.sequence,
        data = excluded.data,
        deleted = excluded.deleted,
        update_time = excluded.update_time,
        expire_time = excluded.expire_time,
        consolidate_time = excluded.consolidate_time
    WHERE d.sequence < excluded.sequence
)
SELECT coalesce(d.sequence, 0)
FROM given
LEFT JOIN duostore.draft AS d USING (tenant, kind, id)
ORDER BY n
"""


class AuroraDrafts:
    """``ports.Drafts`` on PostgreSQL, in one statement.

    The sequence that a key had before is that of before the call: of two calls at once
    both may be told the same.
    """

    def __init__(self, pool: AuroraPool) -> None:
        self._pool = pool

    def fold(self, drafts: Sequence[Draft], deadline: Deadline) -> Mapping[EntityKey, int]:
        if not drafts:
            return {}
        columns = (
            [draft.key.tenant for draft in drafts],
            [draft.key.kind for draft in drafts],
            [draft.key.id for draft in drafts],
            [Int8(draft.sequence) for draft in drafts],
            [None if draft.data is None else compact_json(draft.data) for draft in drafts],
            [draft.update_time for draft in drafts],
            [draft.expire_time for draft in drafts],
        )
        rows = self._pool.execute(_FOLD, columns, deadline)
        return {draft.key: former for draft, (former,) in zip(drafts, rows, strict=True)}
