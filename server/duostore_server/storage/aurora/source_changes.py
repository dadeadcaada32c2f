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
from duostore_server.storage.aurora.definitions import digest_of
from duostore_server.storage.aurora.errors import fault_of_statement
from duostore_server.storage.aurora.stale_rows import touching
from duostore_server.storage.aurora.touched import Touched
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import LiteralString

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Course, Rows

_log = structlog.get_logger(__name__)

_CLAIM_SECONDS: Final = 5.0
# Of what time there is; the rest is to note that it was not enough.
_SHARE: Final = 0.8

# Those sources for which what was last installed is what is configured here: what a newer or an
# older release has noted is for its own processes to expand.
_CONFIGURED: Final = """
WITH configured AS MATERIALIZED (
    SELECT kind, source
    FROM unnest(%(kinds)s::text[], %(sources)s::text[], %(digests)s::text[])
        AS c (kind, source, digest)
    JOIN duostore.read_model USING (kind, source, digest)
)"""

# Claimed as rows of the outbox are, source by source, so that rows of others are not looked at.
_CLAIM: Final = """
{configured}, locked AS MATERIALIZED (
    SELECT due.id, due.due_time
    FROM configured
    CROSS JOIN LATERAL (
        SELECT id, due_time
        FROM duostore.source_change AS c
        WHERE {failures}
            AND due_time <= statement_timestamp()
            AND c.kind = configured.kind AND c.source = configured.source
            AND (after_id IS NULL OR NOT %(fresh)s)
        ORDER BY due_time
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) AS due
), due AS (
    SELECT id, due_time FROM locked ORDER BY due_time, id LIMIT %(limit)s
), claimed AS (
    UPDATE duostore.source_change AS c
    SET due_time = clock_timestamp() + %(claim)s
    FROM due
    WHERE c.id = due.id
    RETURNING c.id, c.kind, c.source, c.after_id IS NOT NULL AS begun,
        c.after_id IS NOT NULL OR c.image IS NULL OR c.failures > 0 AS alone, due.due_time
)
SELECT id, kind, source, begun, alone FROM claimed ORDER BY due_time, id
"""
_CLAIM_FRESH: Final = _CLAIM.format(configured=_CONFIGURED, failures="failures = 0")
_CLAIM_FAILED: Final = _CLAIM.format(configured=_CONFIGURED, failures="failures > 0")
# One in so many is for what failed before, so that what is new never stops it for good.
_FAILED_ONE_IN: Final = 10

# Of two that expand a change the second one goes on where the first has come to.
_TAKE: Final = """
SELECT image, after_tenant, after_id
FROM duostore.source_change
WHERE id = %s
FOR UPDATE
"""

_TAKE_TOGETHER: Final = """
SELECT id
FROM duostore.source_change
WHERE id = ANY (%s::bigint[]) AND kind = %s AND source = %s
    AND after_id IS NULL AND image IS NOT NULL
FOR UPDATE SKIP LOCKED
"""

# What installs another waits for the lock, and then notes what is to be expanded anew. It is not
# waited for, since it may be waiting for the change.
_STILL_CONFIGURED: Final = """
SELECT true
FROM duostore.read_model
WHERE kind = %s AND source = %s AND digest = %s
FOR SHARE SKIP LOCKED
"""

# Due at once, and behind what has come meanwhile.
_ADVANCE: Final = """
UPDATE duostore.source_change
SET after_tenant = %s, after_id = %s, failures = 0, due_time = clock_timestamp()
WHERE id = %s
"""

_FINISH: Final = "DELETE FROM duostore.source_change WHERE id = ANY (%s::bigint[])"

_BACK_OFF: Final = """
UPDATE duostore.source_change
SET failures = failures + 1,
    due_time = clock_timestamp() + least(interval '1 s' * 2 ^ least(failures, 9), interval '1 min')
WHERE id = %s
"""

_COUNT: Final = """
{configured}
SELECT count(*)
FROM (
    SELECT
    FROM (SELECT DISTINCT kind FROM configured) AS configured
    CROSS JOIN LATERAL (
        SELECT
        FROM duostore.stale AS s
        WHERE s.kind = configured.kind AND s.failures = 0
        LIMIT %(limit)s
    ) AS stale
    LIMIT %(limit)s
) AS waiting
"""
_WAITING: Final = _COUNT.format(configured=_CONFIGURED)

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
        self._digests = {
            (kind, source.name): digest_of(model, source)
            for kind, model in read_models.items()
            for source in model.sources
        }
        self._claim = timedelta(seconds=claim)

    def claim(
        self, limit: int, deadline: Deadline, *, fresh: bool = False
    ) -> Sequence[SourceChange]:
        def claimed(statement: LiteralString, room: int) -> list[SourceChange]:
            if not room:
                return []
            params = {
                **self._configured(),
                "fresh": fresh,
                "limit": Int8(room),
                "claim": self._claim,
            }
            return [
                SourceChange(id_, kind, source, begun=begun, alone=alone)
                for id_, kind, source, begun, alone in self._pool.execute(
                    statement, params, deadline
                )
            ]

        share = limit // _FAILED_ONE_IN
        failed = claimed(_CLAIM_FAILED, share)
        changes = claimed(_CLAIM_FRESH, limit - len(failed))
        if len(failed) == share:
            # Perhaps there are more, and room for them.
            failed += claimed(_CLAIM_FAILED, limit - len(failed) - len(changes))
        return changes + failed

    def expand(self, change: SourceChange, limit: int, deadline: Deadline) -> Expansion:
        """Keep the promise of the port. A change whose SQL fails is answered as not done."""
        expansion = Expansion(0, done=True)
        touched = self._touched[change.kind, change.source]

        def course() -> Course:
            nonlocal expansion
            taken, configured = yield [
                Statement(_TAKE, (Int8(change.id),)),
                self._still_configured(change),
            ]
            expansion = Expansion(0, done=not taken)
            if not taken or not configured:
                return []
            ((image, *after),) = taken
            begun = None if after[1] is None else (after[0], after[1])
            # Of any row, a document may be found twice: by its source, and as one that is there.
            most = limit if image is not None else 2 * limit
            (page,) = yield [touched.page(image, begun, most)]
            part = _up_to(page, limit)
            keys = _keys(change, part)
            expansion = Expansion(len(keys), done=len(page) < most and len(part) == len(page))
            return self._noting(change, part, keys, expansion)

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

    def expand_together(
        self, changes: Sequence[SourceChange], limit: int, deadline: Deadline
    ) -> Expansion | None:
        first = changes[0]
        ids = [change.id for change in changes]
        expansion: Expansion | None = None

        def course() -> Course:
            nonlocal expansion
            taken, configured = yield [
                Statement(_TAKE_TOGETHER, (ids, first.kind, first.source)),
                self._still_configured(first),
            ]
            expansion = Expansion(0, done=not taken)
            if not taken or not configured:
                return []
            held = [id_ for (id_,) in taken]
            touched = self._touched[first.kind, first.source]
            (page,) = yield [touched.together(held, limit + 1)]
            if len(page) > limit:
                expansion = None
                return []
            keys = _keys(first, page)
            expansion = Expansion(len(keys), done=True)
            finish = Statement(_FINISH, (held,))
            return [touching(keys), finish] if keys else [finish]

        try:
            self._pool.transact(course, deadline.part(_SHARE))
        except (psycopg.Error, StoreError) as error:
            if fault_of_statement(error) is None:
                raise
            return None
        return expansion

    def waiting(self, limit: int, deadline: Deadline) -> int:
        params = {**self._configured(), "limit": Int8(limit)}
        ((waiting,),) = self._pool.execute(_WAITING, params, deadline)
        return int(waiting)

    def backlog(self, deadline: Deadline) -> FanOutBacklog:
        ((changes, stale, failing, oldest),) = self._pool.execute(_BACKLOG, (), deadline)
        return FanOutBacklog(changes, stale, failing, oldest)

    def _configured(self) -> dict[str, list[str]]:
        return {
            "kinds": [kind for kind, _ in self._digests],
            "sources": [source for _, source in self._digests],
            "digests": list(self._digests.values()),
        }

    def _still_configured(self, change: SourceChange) -> Statement:
        """Return what answers a row, and keeps it, while the change is for this process."""
        digest = self._digests[change.kind, change.source]
        return Statement(_STILL_CONFIGURED, (change.kind, change.source, digest))

    def _noting(
        self, change: SourceChange, page: Rows, keys: Sequence[EntityKey], expansion: Expansion
    ) -> list[Statement]:
        """Return what makes the documents stale and, with that, notes how far the change is."""
        if expansion.done:
            advance = Statement(_FINISH, ([change.id],))
        else:
            advance = Statement(_ADVANCE, (*page[-1], Int8(change.id)))
        return [touching(keys), advance] if keys else [advance]


def _up_to(page: Rows, limit: int) -> Rows:
    """Return the rows of a page that is in order up to so many different ones, all of each."""
    different = 0
    for n, row in enumerate(page):
        different += n == 0 or row != page[n - 1]
        if different > limit:
            return page[:n]
    return page


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
