"""Backfills and how far they have come, in two tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from psycopg.types.numeric import Int4, Int8

from duostore_server.domain.backfills import (
    CLAIM_SECONDS,
    Advanced,
    Backfill,
    BackfillPart,
    BackfillState,
)
from duostore_server.domain.errors import Store, StoreOverloadedError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.aurora.entities import AuroraEntities

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import LiteralString

    from psycopg.abc import Params
    from psycopg.rows import TupleRow

    from duostore_server.domain.backfills import Batch
    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.pool import AuroraPool

# Of a kind, so many keys for each part, by which it is cut into parts of about one size.
_KEYS_PER_PART: Final = 100
# One that is found running may have ended when it is joined, again and again.
_ATTEMPTS: Final = 5

_READ: Final = """
SELECT current_setting('transaction_read_only'), b.id, b.kind, b.state, p.done, p.projected,
    p.failed, b.estimated_total, b.parts, b.parts_done, b.rate, b.caller, b.start_time,
    greatest(b.update_time, p.update_time)
FROM (VALUES (1)) AS one
LEFT JOIN (
    duostore.backfill AS b CROSS JOIN LATERAL (
        SELECT sum(done)::bigint AS done, sum(projected)::bigint AS projected,
            sum(failed)::bigint AS failed, max(update_time) AS update_time
        FROM duostore.backfill_part
        WHERE backfill = b.id
    ) AS p
) ON {which}
ORDER BY b.kind
"""
_READ_ONE: Final = _READ.format(which="b.id = %s")
_READ_NEWEST: Final = _READ.format(
    which="b.id = (SELECT max(id) FROM duostore.backfill WHERE kind = %s)"
)
_READ_UNFINISHED: Final = _READ.format(which="b.state IN ('running', 'paused')")

_JOIN: Final = """
UPDATE duostore.backfill
SET state = 'running',
    rate = CASE WHEN %(rate)s = 0 THEN rate ELSE %(rate)s END,
    caller = CASE state WHEN 'paused' THEN %(caller)s ELSE caller END,
    update_time = CASE state WHEN 'paused' THEN clock_timestamp() ELSE update_time END
WHERE kind = %(kind)s AND state IN ('running', 'paused')
RETURNING id
"""

_BEGIN: Final = """
WITH begun AS (
    INSERT INTO duostore.backfill
        (kind, state, rate, parts, estimated_total, caller, start_time, update_time)
    SELECT %(kind)s, 'running', %(rate)s, %(parts)s, %(estimated_total)s, %(caller)s, t, t
    FROM clock_timestamp() AS t
    ON CONFLICT (kind) WHERE state IN ('running', 'paused') DO NOTHING
    RETURNING id
), parted AS (
    INSERT INTO duostore.backfill_part
        (backfill, number, after_tenant, after_id, until_tenant, until_id)
    SELECT begun.id, number, after_tenant, after_id, until_tenant, until_id
    FROM begun, unnest(
        %(after_tenants)s::text[], %(after_ids)s::text[],
        %(until_tenants)s::text[], %(until_ids)s::text[]
    ) WITH ORDINALITY AS p (after_tenant, after_id, until_tenant, until_id, number)
)
SELECT id FROM begun
"""

_MOVE: Final = """
UPDATE duostore.backfill
SET state = %(state)s,
    caller = CASE state WHEN %(state)s THEN caller ELSE %(caller)s END
WHERE kind = %(kind)s AND state IN ('running', 'paused')
RETURNING id
"""

# Those that were free are claimed in the same statement, whose subqueries see them as they were.
_CLAIM: Final = """
WITH free AS MATERIALIZED (
    SELECT p.backfill, p.number, p.claimed_until, b.kind, b.rate
    FROM duostore.backfill AS b
    JOIN duostore.backfill_part AS p ON p.backfill = b.id
    WHERE b.state = 'running' AND b.kind = ANY (%s)
        AND NOT p.ended AND p.claimed_until <= statement_timestamp()
    ORDER BY p.claimed_until, p.backfill, p.number
    LIMIT %s
    FOR UPDATE OF p SKIP LOCKED
), claimed AS (
    UPDATE duostore.backfill_part AS p
    SET claim = p.claim + 1, claimed_until = clock_timestamp() + %s
    FROM free
    WHERE p.backfill = free.backfill AND p.number = free.number
    RETURNING p.backfill, free.kind, p.number, p.claim, p.after_tenant, p.after_id,
        p.until_tenant, p.until_id, free.rate, free.claimed_until AS free_since
)
SELECT backfill, kind, number, claim, after_tenant, after_id, until_tenant, until_id, rate,
    count(*) OVER (PARTITION BY backfill) + (
        SELECT count(*)
        FROM duostore.backfill_part AS o
        WHERE o.backfill = claimed.backfill
            AND NOT o.ended AND o.claimed_until > statement_timestamp()
    )
FROM claimed
ORDER BY free_since, backfill, number
"""

# A part p is claimed itself, though its claim may have run out and nobody taken it.
_CLAIMED: Final = """
    1 + (
        SELECT count(*)
        FROM duostore.backfill_part AS o
        WHERE o.backfill = p.backfill AND o.number <> p.number
            AND NOT o.ended AND o.claimed_until > clock_timestamp()
    )
"""

# The part is where it was when it was claimed or last advanced, and the claim is no other's yet.
_MINE: Final = """
    b.id = p.backfill AND b.state = 'running'
    AND p.backfill = %(backfill)s AND p.number = %(number)s
    AND p.claim = %(claim)s AND NOT p.ended
    AND (p.after_tenant, p.after_id)
        IS NOT DISTINCT FROM (%(after_tenant)s::text, %(after_id)s::text)
"""

_HOLDING: Final = """
UPDATE duostore.backfill_part AS p
SET claimed_until = clock_timestamp() + %(hold)s
FROM duostore.backfill AS b
WHERE {mine}
RETURNING b.rate, {claimed}
"""

# The checkpoint and the counts move together, and only from where the batch began: so it counts
# once. Parts that are done are counted in the row of the backfill, where they queue up: of two
# that end at once, one sees that it is the last.
_ADVANCING: Final = """
WITH advanced AS (
    UPDATE duostore.backfill_part AS p
    SET done = p.done + %(done)s,
        projected = p.projected + %(projected)s,
        failed = p.failed + %(failed)s,
        after_tenant = CASE WHEN %(ended)s THEN p.after_tenant ELSE %(last_tenant)s END,
        after_id = CASE WHEN %(ended)s THEN p.after_id ELSE %(last_id)s END,
        ended = %(ended)s,
        claimed_until = clock_timestamp() + %(hold)s,
        update_time = clock_timestamp()
    FROM duostore.backfill AS b
    WHERE {mine}
    RETURNING p.backfill, p.ended, b.rate, {claimed} AS claimed
), done AS (
    UPDATE duostore.backfill AS b
    SET parts_done = b.parts_done + 1,
        state = CASE
            WHEN b.state <> 'cancelled' AND b.parts_done + 1 = b.parts THEN 'done'
            ELSE b.state
        END
    FROM advanced
    WHERE b.id = advanced.backfill AND advanced.ended
)
SELECT NOT ended, rate, claimed FROM advanced
"""

# Where the batch was noted before, and the answer lost: none but who has the claim can have
# brought the part to where that batch ends.
_RECALLING: Final = """
UPDATE duostore.backfill_part AS p
SET claimed_until = clock_timestamp() + %(hold)s
FROM duostore.backfill AS b
WHERE b.id = p.backfill
    AND p.backfill = %(backfill)s AND p.number = %(number)s
    AND p.claim = %(claim)s AND p.ended = %(ended)s
    AND (p.ended OR (p.after_tenant, p.after_id) = (%(last_tenant)s::text, %(last_id)s::text))
RETURNING b.state = 'running' AND NOT p.ended, b.rate, {claimed}
"""
_HOLD: Final = _HOLDING.format(mine=_MINE, claimed=_CLAIMED)
_ADVANCE: Final = _ADVANCING.format(mine=_MINE, claimed=_CLAIMED)
_ADVANCED_BEFORE: Final = _RECALLING.format(claimed=_CLAIMED)


class AuroraBackfills:
    """``admin_ports.Backfills`` on PostgreSQL. A claim holds for ``claim`` seconds."""

    def __init__(self, pool: AuroraPool, *, claim: float = CLAIM_SECONDS) -> None:
        self._pool = pool
        self._entities = AuroraEntities(pool)
        self._claim = timedelta(seconds=claim)

    def start(
        self, kind: str, *, rate: int, parts: int, caller: str, deadline: Deadline
    ) -> Backfill:
        joining = {"kind": kind, "rate": Int4(rate), "caller": caller}
        for _ in range(_ATTEMPTS):
            rows = self._pool.execute(_JOIN, joining, deadline)
            if not rows:
                beginning = {**joining, **self._cut(kind, parts, deadline)}
                rows = self._pool.execute(_BEGIN, beginning, deadline)
            for (id_,) in rows:
                return self._one(id_, deadline)
        raise StoreOverloadedError(Store.AURORA)

    def move(
        self, kind: str, state: BackfillState, caller: str, deadline: Deadline
    ) -> Backfill | None:
        params = {"kind": kind, "state": state.value, "caller": caller}
        for (id_,) in self._pool.execute(_MOVE, params, deadline):
            return self._one(id_, deadline)
        return None

    def find(self, kind: str, deadline: Deadline) -> Backfill | None:
        found = self._read(_READ_NEWEST, (kind,), deadline)
        return found[0] if found else None

    def unfinished(self, deadline: Deadline) -> Sequence[Backfill]:
        return self._read(_READ_UNFINISHED, (), deadline)

    def claim(
        self, kinds: Collection[str], limit: int, deadline: Deadline
    ) -> Sequence[BackfillPart]:
        rows = self._pool.execute(_CLAIM, (list(kinds), Int8(limit), self._claim), deadline)
        return [_part(row) for row in rows]

    def hold(self, part: BackfillPart, deadline: Deadline) -> BackfillPart | None:
        rows = self._pool.execute(_HOLD, _held(part, self._claim), deadline)
        for rate, claimed in rows:
            return replace(part, rate=_share(rate, claimed))
        return None

    def advance(self, part: BackfillPart, batch: Batch, deadline: Deadline) -> Advanced:
        params = _params(part, batch, self._claim)
        rows = self._pool.execute(_ADVANCE, params, deadline)
        rows = rows or self._pool.execute(_ADVANCED_BEFORE, params, deadline)
        for goes_on, rate, claimed in rows:
            following = replace(part, after=batch.last, rate=_share(rate, claimed))
            return Advanced(is_counted=True, part=following if goes_on else None)
        return Advanced(is_counted=False, part=None)

    def _cut(self, kind: str, parts: int, deadline: Deadline) -> dict[str, object]:
        """Return the parts of a kind, of about one size, as parameters."""
        keys = self._entities.sample(kind, parts * _KEYS_PER_PART, deadline)
        cuts = _quantiles(keys, parts)
        tenants, ids = [key.tenant for key in cuts], [key.id for key in cuts]
        return {
            "parts": Int4(len(cuts) + 1),
            "estimated_total": Int8(self._entities.estimate(kind, deadline)),
            "after_tenants": [None, *tenants],
            "after_ids": [None, *ids],
            "until_tenants": [*tenants, None],
            "until_ids": [*ids, None],
        }

    def _one(self, id_: int, deadline: Deadline) -> Backfill:
        (backfill,) = self._read(_READ_ONE, (Int8(id_),), deadline)
        return backfill

    def _read(self, query: LiteralString, params: Params, deadline: Deadline) -> list[Backfill]:
        rows = self._pool.ask_writer(query, params, deadline)
        return [_backfill(row) for row in rows if row[1] is not None]


def _held(part: BackfillPart, hold: timedelta) -> dict[str, object]:
    """Return the parameters of a statement that holds a part."""
    return {
        "backfill": Int8(part.backfill),
        "number": Int4(part.number),
        "claim": Int8(part.claim),
        "after_tenant": part.after and part.after.tenant,
        "after_id": part.after and part.after.id,
        "hold": hold,
    }


def _params(part: BackfillPart, batch: Batch, hold: timedelta) -> dict[str, object]:
    """Return the parameters of a statement that notes a batch of a part."""
    last = batch.last
    return {
        **_held(part, hold),
        "last_tenant": last and last.tenant,
        "last_id": last and last.id,
        "ended": last is None,
        "done": Int8(batch.done),
        "projected": Int8(batch.projected),
        "failed": Int8(batch.failed),
    }


def _backfill(row: TupleRow) -> Backfill:
    (
        _,
        id_,
        kind,
        state,
        done,
        projected,
        failed,
        estimated_total,
        parts,
        parts_done,
        rate,
        caller,
        start_time,
        update_time,
    ) = row
    return Backfill(
        id=id_,
        kind=kind,
        state=BackfillState(state),
        done=done,
        projected=projected,
        failed=failed,
        estimated_total=estimated_total,
        parts=parts,
        parts_done=parts_done,
        rate=rate,
        caller=caller,
        start_time=start_time.astimezone(UTC),
        update_time=update_time.astimezone(UTC),
    )


def _part(row: TupleRow) -> BackfillPart:
    backfill, kind, number, claim, *rest = row
    after_tenant, after_id, until_tenant, until_id, rate, claimed = rest
    return BackfillPart(
        backfill=backfill,
        kind=kind,
        number=number,
        claim=claim,
        after=_key(kind, after_tenant, after_id),
        until=_key(kind, until_tenant, until_id),
        rate=_share(rate, claimed),
    )


def _share(rate: int, claimed: int) -> float:
    """Return what a part may do of what all that are claimed may do together."""
    return rate / claimed


def _quantiles(keys: Sequence[EntityKey], parts: int) -> list[EntityKey]:
    """Return the keys, each once, that cut those of a sample into so many parts."""
    ordered = sorted(keys, key=lambda key: (key.tenant, key.id))
    if not ordered:
        return []
    return list(dict.fromkeys(ordered[n * len(ordered) // parts] for n in range(1, parts)))


def _key(kind: str, tenant: str | None, id_: str | None) -> EntityKey | None:
    return None if tenant is None or id_ is None else EntityKey(tenant, kind, id_)
