"""What the verifier found when it last looked at an entity, in a table."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.drift import Drift, Verified

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.aurora.pool import AuroraPool

# Rows are locked in the order of their keys, so that two that record the same ones do not wait
# for each other in a circle.
_RECORD: Final = """
INSERT INTO duostore.verification AS v (tenant, kind, entity_id, age, version, drifts, time)
SELECT tenant, kind, entity_id, age, version, string_to_array(drifts, ' '), time
FROM unnest(
    %s::text[], %s::text[], %s::text[], %s::interval[], %s::bigint[], %s::text[], %s::timestamptz[]
) AS given (tenant, kind, entity_id, age, version, drifts, time)
ORDER BY tenant COLLATE "C", kind COLLATE "C", entity_id COLLATE "C"
ON CONFLICT (tenant, kind, entity_id) DO UPDATE SET
    age = excluded.age,
    version = excluded.version,
    drifts = excluded.drifts,
    time = excluded.time
WHERE v.time <= excluded.time
"""

_LAST: Final = """
SELECT current_setting('transaction_read_only'), age, version, drifts, time
FROM (VALUES (1)) AS one
LEFT JOIN duostore.verification ON tenant = %s AND kind = %s AND entity_id = %s
"""

# Rows that are locked are being purged by another, or written anew.
_PURGE: Final = """
WITH old AS MATERIALIZED (
    SELECT tenant, kind, entity_id
    FROM duostore.verification
    WHERE time < %s
    ORDER BY time
    LIMIT %s
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM duostore.verification AS v
    USING old
    WHERE v.tenant = old.tenant AND v.kind = old.kind AND v.entity_id = old.entity_id
    RETURNING 1
)
SELECT count(*) FROM purged
"""

_DRIFTS: Final = frozenset(drift.value for drift in Drift)


class AuroraVerifications:
    """``admin_ports.Verifications`` on PostgreSQL.

    A look that comes after a later one at the same key is not noted. One that found what this
    release has no name for is as good as none.
    """

    def __init__(self, pool: AuroraPool) -> None:
        self._pool = pool

    def record(self, looks: Sequence[Verified], deadline: Deadline) -> None:
        if not looks:
            return
        columns = (
            [look.key.tenant for look in looks],
            [look.key.kind for look in looks],
            [look.key.id for look in looks],
            [look.age for look in looks],
            [Int8(look.version) for look in looks],
            [" ".join(drift.value for drift in look.drifts) for look in looks],
            [look.time for look in looks],
        )
        self._pool.execute(_RECORD, columns, deadline)

    def last(self, key: EntityKey, deadline: Deadline) -> Verified | None:
        rows = self._pool.ask_writer(_LAST, (key.tenant, key.kind, key.id), deadline)
        ((_, age, version, drifts, time),) = rows
        if version is None or not _DRIFTS.issuperset(drifts):
            return None
        found = tuple(Drift(drift) for drift in drifts)
        return Verified(key, age, version, time.astimezone(UTC), found)

    def purge(self, before: datetime, limit: int, deadline: Deadline) -> int:
        ((purged,),) = self._pool.execute(_PURGE, (before, Int8(limit)), deadline)
        return int(purged)
