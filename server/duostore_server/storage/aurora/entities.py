"""The entities of Aurora, many at a time: page by page, or some of them at random."""

from __future__ import annotations

import json
import random
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.admin_ports import EntityPage
from duostore_server.domain.drift import SavedVersion
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.aurora.mutations import entity_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from psycopg.rows import TupleRow

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity
    from duostore_server.storage.aurora.pool import AuroraPool

# A page may have one document more than these bytes of JSON. Of tenants that have none of the
# kind it passes over so many.
_PAGE_BYTES: Final = 4 << 20
_PAGE_TENANTS: Final = 2000
# Blocks of the table, of 8 KiB, that are read for a sample: as many as there are to be entities,
# which is then one or two of a block; and, of a kind that is rare, so many. A table of no more
# is read as a whole.
_LEAST_BLOCKS: Final = 64
_MANY_BLOCKS: Final = 4096
_MOST_BLOCKS: Final = 16 * _MANY_BLOCKS
# A kind of no more entities than these is read as a whole.
_FEW: Final = 2000
_MOST_WALKED: Final = 5 * _FEW
# Where a kind that is rare was met by chance, it is read on from.
_PLACES: Final = 8
# Of a time, as many saves as the sample is taken of.
_MOST_SAVED: Final = 20_000

# Goes from entity to entity and, at the end of the kind in a tenant, on to the next tenant: each
# is one look into the primary key, whatever lies between them. An empty id is before all others.
_WALK: Final = """
WITH RECURSIVE walk AS (
    SELECT 0 AS step, 0 AS found, 0 AS passed, 0::bigint AS bytes,
        %(tenant)s::text COLLATE "C" AS tenant, %(id)s::text COLLATE "C" AS id,
        NULL::bigint AS version, NULL::text AS data,
        NULL::timestamptz AS create_time, NULL::timestamptz AS update_time
    UNION ALL
    SELECT step + 1,
        found + (here.id IS NOT NULL)::integer,
        passed + (here.id IS NULL)::integer,
        bytes + coalesce(octet_length(here.data), 0),
        coalesce(here.tenant, next.tenant), coalesce(here.id, ''),
        here.version, here.data, here.create_time, here.update_time
    FROM walk
    LEFT JOIN LATERAL (
        SELECT tenant, id, version, {data} AS data, create_time, update_time
        FROM duostore.entity AS e
        WHERE e.tenant = walk.tenant AND e.kind = %(kind)s AND e.id > walk.id
        ORDER BY e.id
        LIMIT 1
    ) AS here ON true
    LEFT JOIN LATERAL (
        SELECT tenant
        FROM duostore.entity AS e
        WHERE here.id IS NULL AND e.tenant > walk.tenant
        ORDER BY e.tenant
        LIMIT 1
    ) AS next ON true
    WHERE found < %(limit)s AND passed < %(tenants)s AND bytes < %(bytes)s
        AND coalesce(here.tenant, next.tenant) IS NOT NULL
        AND (
            %(until_tenant)s::text IS NULL
            OR (coalesce(here.tenant, next.tenant), coalesce(here.id, ''))
                <= (%(until_tenant)s, %(until_id)s)
        )
)
SELECT current_setting('transaction_read_only'), tenant, id, version, data,
    create_time, update_time,
    found >= %(limit)s OR passed >= %(tenants)s OR bytes >= %(bytes)s
FROM walk
WHERE version IS NOT NULL OR step = (SELECT max(step) FROM walk)
ORDER BY step
"""
_PAGE: Final = _WALK.format(data="data::text")
_KEYS: Final = _WALK.format(data="NULL::text")

_SAMPLE: Final = """
SELECT current_setting('transaction_read_only'), tenant, kind, id,
    pg_relation_size('duostore.entity') <= %(blocks)s * current_setting('block_size')::bigint
FROM (VALUES (1)) AS one
LEFT JOIN (
    SELECT tenant, kind, id
    FROM duostore.entity TABLESAMPLE SYSTEM (
        least(
            100,
            100.0 * %(blocks)s * current_setting('block_size')::bigint
                / greatest(1, pg_relation_size('duostore.entity'))
        )
    )
    WHERE %(kind)s = '' OR kind = %(kind)s
    ORDER BY random()
    LIMIT %(limit)s
) AS sample ON true
"""

_COUNT_IF_SMALL: Final = """
SELECT current_setting('transaction_read_only'),
    CASE
        WHEN pg_relation_size('duostore.entity')
            <= %(blocks)s * current_setting('block_size')::bigint
        THEN (
            SELECT count(*) FROM duostore.entity WHERE %(kind)s = '' OR kind = %(kind)s
        )
    END
"""
_PLAN_ALL: Final = "EXPLAIN (FORMAT JSON) SELECT FROM duostore.entity"
_PLAN_KIND: Final = "EXPLAIN (FORMAT JSON) SELECT FROM duostore.entity WHERE kind = %s"

_TIME: Final = "SELECT current_setting('transaction_read_only'), clock_timestamp()"

_SAVED: Final = """
SELECT current_setting('transaction_read_only'), tenant, kind, entity_id, version, time
FROM (VALUES (1)) AS one
LEFT JOIN (
    SELECT *
    FROM (
        SELECT tenant, kind, entity_id, version, time
        FROM duostore.audit
        WHERE time > %s AND time <= %s
        LIMIT %s
    ) AS saved
    ORDER BY random()
    LIMIT %s
) AS sample ON true
"""


class AuroraEntities:
    """``admin_ports.Entities`` on PostgreSQL.

    A sample is taken of blocks at random, so that some of its entities were first saved at one
    time; of a kind that is rare, some lie next to each other. All entities of such a kind are
    sampled only if there are no more than ten thousand of them, in two thousand tenants. Of saves
    it is taken of twenty thousand at most. Estimates of large tables are those of the planner,
    as good as its statistics.
    """

    def __init__(
        self,
        pool: AuroraPool,
        *,
        page_bytes: int = _PAGE_BYTES,
        page_tenants: int = _PAGE_TENANTS,
        blocks: int = _MANY_BLOCKS,
        few: int = _FEW,
    ) -> None:
        """``blocks`` is how large a table may be that is read as a whole, ``few`` a kind."""
        self._pool = pool
        self._page_bytes = page_bytes
        self._page_tenants = page_tenants
        self._blocks = blocks
        self._few = few

    def page(
        self,
        kind: str,
        after: EntityKey | None,
        until: EntityKey | None,
        limit: int,
        deadline: Deadline,
    ) -> EntityPage:
        params = {
            **self._walked(kind, after, limit),
            "until_tenant": until and until.tenant,
            "until_id": until and until.id,
        }
        rows = self._pool.ask_writer(_PAGE, params, deadline)
        return EntityPage([_entity(kind, row) for row in rows if row[3]], _last(kind, rows))

    def sample(self, kind: str, limit: int, deadline: Deadline) -> Sequence[EntityKey]:
        found: list[EntityKey] = []
        for blocks in (
            min(max(limit, _LEAST_BLOCKS), self._blocks),
            min(max(limit, self._blocks), _MOST_BLOCKS),
        ):
            params = {"kind": kind, "limit": Int8(limit), "blocks": Int8(blocks)}
            rows = self._pool.ask_writer(_SAMPLE, params, deadline)
            found = [EntityKey(*key) for _, *key, _ in rows if key[0] is not None]
            *_, is_whole = rows[0]
            if is_whole or len(found) >= limit:
                return found
        return self._sample_rare(kind, found, limit, deadline) if kind else found

    def estimate(self, kind: str, deadline: Deadline) -> int:
        params = {"kind": kind, "blocks": Int8(self._blocks)}
        ((_, count),) = self._pool.ask_writer(_COUNT_IF_SMALL, params, deadline)
        if count is not None:
            return int(count)
        if kind:
            keys, more = self._keys(kind, None, self._few, deadline)
            if not more:
                return len(keys)
        query, given = (_PLAN_KIND, (kind,)) if kind else (_PLAN_ALL, ())
        (((plan,),),) = self._pool.execute(query, given, deadline)
        return int(plan["Plan"]["Plan Rows"])

    def time(self, deadline: Deadline) -> datetime:
        ((_, now),) = self._pool.ask_writer(_TIME, (), deadline)
        time: datetime = now.astimezone(UTC)
        return time

    def saved(
        self, since: datetime, until: datetime, limit: int, deadline: Deadline
    ) -> Sequence[SavedVersion]:
        params = (since, until, Int8(max(limit, _MOST_SAVED)), Int8(limit))
        return [
            SavedVersion(EntityKey(tenant, kind, id_), version, time.astimezone(UTC))
            for _, tenant, kind, id_, version, time in self._pool.ask_writer(
                _SAVED, params, deadline
            )
            if tenant is not None
        ]

    def _sample_rare(
        self, kind: str, found: Sequence[EntityKey], limit: int, deadline: Deadline
    ) -> Sequence[EntityKey]:
        """Return all entities of a kind, or those that were found and some that come after them."""
        few = min(max(self._few, limit + 1), _MOST_WALKED)
        keys, more = self._keys(kind, None, few, deadline)
        if not more:
            return keys if len(keys) <= limit else _chosen(keys, limit)
        near = list(found)
        for place in found[:_PLACES]:
            near += self._keys(kind, place, few // _PLACES, deadline)[0]
        return _chosen(list(dict.fromkeys(near or keys)), limit)

    def _keys(
        self, kind: str, after: EntityKey | None, limit: int, deadline: Deadline
    ) -> tuple[list[EntityKey], bool]:
        """Return the keys of a page, and whether there may be more."""
        params = {**self._walked(kind, after, limit), "until_tenant": None, "until_id": None}
        rows = self._pool.ask_writer(_KEYS, params, deadline)
        keys = [EntityKey(tenant, kind, id_) for _, tenant, id_, version, *_ in rows if version]
        return keys, _last(kind, rows) is not None

    def _walked(self, kind: str, after: EntityKey | None, limit: int) -> dict[str, object]:
        return {
            "kind": kind,
            "tenant": after.tenant if after else "",
            "id": after.id if after else "",
            "limit": Int8(limit),
            "tenants": Int8(self._page_tenants),
            "bytes": Int8(self._page_bytes),
        }


def _last(kind: str, rows: Sequence[TupleRow]) -> EntityKey | None:
    """Return where a walk stopped; None if it did since there is nothing more."""
    _, tenant, id_, *_, has_stopped = rows[-1]
    return EntityKey(tenant, kind, id_) if has_stopped else None


def _entity(kind: str, row: TupleRow) -> Entity:
    _, tenant, id_, version, text, create_time, update_time, _ = row
    data: dict[str, Any] | None = None if text is None else json.loads(text)
    return entity_of(EntityKey(tenant, kind, id_), version, data, create_time, update_time)


def _chosen(keys: Sequence[EntityKey], limit: int) -> Sequence[EntityKey]:
    # Of what is looked at, nothing that has to be hard to guess.
    return random.sample(keys, min(limit, len(keys)))
