"""The changes of sources, in a table to which triggers add them: see ``triggers``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg.types.numeric import Int8

from duostore_server.domain.errors import StoreError
from duostore_server.domain.keys import EntityKey, key_violations
from duostore_server.domain.read_models import Expansion, FanOutBacklog, SourceChange
from duostore_server.storage.aurora.errors import fault_of_statement
from duostore_server.storage.aurora.stale_rows import touching
from duostore_server.storage.aurora.touched import Touched
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Course, Rows

_log = structlog.get_logger(__name__)

_CLAIM_SECONDS: Final = 5.0
# Of what time there is; the rest is to note that it was not enough.
_SHARE: Final = 0.8

# Claimed as rows of the outbox are. What failed is claimed when nothing else is due, so that it
# holds nobody up, however much of it there is.
_CLAIM: Final = """
WITH configured AS MATERIALIZED (
    SELECT kind, source
    FROM unnest(%(kinds)s::text[], %(sources)s::text[]) AS c (kind, source)
), due AS MATERIALIZED (
    SELECT id, due_time
    FROM duostore.source_change
    WHERE {failures}
        AND due_time <= statement_timestamp()
        AND (kind, source) IN (SELECT kind, source FROM configured)
        AND (after_id IS NULL OR NOT %(fresh)s)
    ORDER BY due_time
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE duostore.source_change AS c
    SET due_time = clock_timestamp() + %(claim)s
    FROM due
    WHERE c.id = due.id
    RETURNING c.id, c.kind, c.source, c.after_id IS NOT NULL AS begun, due.due_time
)
SELECT id, kind, source, begun FROM claimed ORDER BY due_time, id
"""
_CLAIMS: Final = tuple(
    _CLAIM.format(failures=failures) for failures in ("failures = 0", "failures > 0")
)

# Of two that expand a change the second one goes on where the first has come to.
_TAKE: Final = """
SELECT image, after_tenant, after_id
FROM duostore.source_change
WHERE id = %s
FOR UPDATE
"""

# Due at once, and behind what has come meanwhile.
_ADVANCE: Final = """
UPDATE duostore.source_change
SET after_tenant = %s, after_id = %s, failures = 0, due_time = clock_timestamp()
WHERE id = %s
"""

_FINISH: Final = "DELETE FROM duostore.source_change WHERE id = %s"

_BACK_OFF: Final = """
UPDATE duostore.source_change
SET failures = failures + 1,
    due_time = clock_timestamp() + least(interval '1 s' * 2 ^ least(failures, 9), interval '1 min')
WHERE id = %s
"""

_BACKLOG: Final = """
SELECT c.rows - c.failing, s.rows - s.failing, c.failing + s.failing,
    greatest(
        0, coalesce(extract(epoch FROM clock_timestamp() - least(c.oldest, s.oldest)), 0)
    )::float8
FROM (
    SELECT count(*) AS rows, count(*) FILTER (WHERE failures > 0) AS failing,
        min(create_time) AS oldest
    FROM duostore.source_change
) AS c, (
    SELECT count(*) AS rows, count(*) FILTER (WHERE failures > 0) AS failing,
        min(create_time) AS oldest
    FROM duostore.stale
) AS s
"""


class AuroraSourceChanges:
    """``ports.SourceChanges`` on PostgreSQL. A claim holds for ``claim`` seconds.

    Changes whose SQL fails stay: due again after a second, then after twice as long each time,
    up to a minute.
    """

    def __init__(
        self,
        pool: AuroraPool,
        read_models: Mapping[str, ReadModel],
        *,
        claim: float = _CLAIM_SECONDS,
    ) -> None:
        self._pool = pool
        self._touched = {
            (kind, source.name): Touched(kind, source)
            for kind, model in read_models.items()
            for source in model.sources
        }
        self._claim = timedelta(seconds=claim)

    def claim(
        self, limit: int, deadline: Deadline, *, fresh: bool = False
    ) -> Sequence[SourceChange]:
        changes: list[SourceChange] = []
        for claim in _CLAIMS:
            if len(changes) < limit:
                params = {
                    "kinds": [kind for kind, _ in self._touched],
                    "sources": [source for _, source in self._touched],
                    "fresh": fresh,
                    "limit": Int8(limit - len(changes)),
                    "claim": self._claim,
                }
                rows = self._pool.execute(claim, params, deadline)
                changes += [SourceChange(*row) for row in rows]
        return changes

    def expand(self, change: SourceChange, limit: int, deadline: Deadline) -> Expansion:
        """Keep the promise of the port. A change whose SQL fails is answered as not done."""
        expansion = Expansion(0, done=True)

        def course() -> Course:
            nonlocal expansion
            (taken,) = yield [Statement(_TAKE, (Int8(change.id),))]
            if not taken:
                expansion = Expansion(0, done=True)
                return []
            ((image, *after),) = taken
            touched = self._touched[change.kind, change.source]
            begun = None if after[1] is None else (after[0], after[1])
            (page,) = yield [touched.page(image, begun, limit)]
            keys = _keys(change, page)
            expansion = Expansion(len(keys), done=len(page) < limit)
            return self._noting(change, page, keys, expansion)

        try:
            self._pool.transact(course, deadline.part(_SHARE))
        except (psycopg.Error, StoreError) as error:
            fault = fault_of_statement(error)
            if fault is None:
                raise
            _log.error(
                "documents that a change touches cannot be found",
                kind=change.kind,
                source=change.source,
                sqlstate=fault.sqlstate,
            )
            self._pool.execute(_BACK_OFF, (Int8(change.id),), deadline)
            return Expansion(0, done=False)
        return expansion

    def backlog(self, deadline: Deadline) -> FanOutBacklog:
        ((changes, stale, failing, oldest),) = self._pool.execute(_BACKLOG, (), deadline)
        return FanOutBacklog(changes, stale, failing, oldest)

    def _noting(
        self, change: SourceChange, page: Rows, keys: Sequence[EntityKey], expansion: Expansion
    ) -> list[Statement]:
        """Return what makes the documents stale and, with that, notes how far the change is."""
        if expansion.done:
            advance = Statement(_FINISH, (Int8(change.id),))
        else:
            advance = Statement(_ADVANCE, (*page[-1], Int8(change.id)))
        return [touching(keys), advance] if keys else [advance]


def _keys(change: SourceChange, page: Rows) -> list[EntityKey]:
    """Return the keys of a page, each once; what cannot be one is told of and left out."""
    found = {EntityKey(tenant, change.kind, id_): None for tenant, id_ in page}
    keys = [key for key in found if not any(key_violations(key, "key"))]
    if left_out := len(found) - len(keys):
        _log.error(
            "change touches what can be no document",
            kind=change.kind,
            source=change.source,
            left_out=left_out,
            why=sorted({v.description for key in found for v in key_violations(key, "ids")})[:3],
        )
    return keys
