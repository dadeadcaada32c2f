"""The documents that have to be recomputed, in a table beside the entities."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg.types.numeric import Int8

from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import INLINE_DUE_AFTER
from duostore_server.domain.read_models import Outcome, Recomputed, StaleDocument
from duostore_server.domain.transactions import Change, IfAbsent, IfVersion, Origin
from duostore_server.storage.aurora.built import UnfitDocumentError, building, built, same
from duostore_server.storage.aurora.errors import fault_of_statement
from duostore_server.storage.aurora.mutations import statement_of, written_of
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.domain.transactions import Written
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Course, Rows

_log = structlog.get_logger(__name__)

ORIGIN: Final = Origin("duostore", "recompute")

_CLAIM_SECONDS: Final = 5.0
_SECONDS: Final = 1.0
# Of what time there is, so that the slowest leaves some to the others.
_SHARE: Final = 0.5

# As changes of sources are claimed. Joined by key: see the outbox.
_CLAIM: Final = """
WITH due AS MATERIALIZED (
    SELECT tenant, kind, entity_id, due_time
    FROM duostore.stale
    WHERE {failures} AND due_time <= statement_timestamp() AND kind = ANY (%(kinds)s)
    ORDER BY due_time
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE duostore.stale AS s
    SET due_time = clock_timestamp() + %(claim)s
    FROM due
    WHERE s.tenant = due.tenant AND s.kind = due.kind AND s.entity_id = due.entity_id
    RETURNING s.id, s.tenant, s.kind, s.entity_id, due.due_time
)
SELECT id, tenant, kind, entity_id FROM claimed ORDER BY due_time, id
"""
_CLAIMS: Final = tuple(
    _CLAIM.format(failures=failures) for failures in ("failures = 0", "failures > 0")
)

# The key is locked though there may be no entity yet. All take these locks in one order.
_LOCK_KEYS: Final = "SELECT pg_advisory_xact_lock(lock) FROM unnest(%s::bigint[]) AS lock"

_LOCK_ENTITIES: Final = """
SELECT n, version, data
FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS k (tenant, kind, id, n)
JOIN duostore.entity AS e USING (tenant, kind, id)
ORDER BY e.tenant, e.kind, e.id
FOR UPDATE OF e
"""

# A row that is locked is being given a new id, since it was touched again: see the outbox.
_FINISH: Final = """
DELETE FROM duostore.stale WHERE id IN (
    SELECT id FROM duostore.stale WHERE id = ANY (%s) FOR UPDATE SKIP LOCKED
)
"""

_BACK_OFF: Final = """
UPDATE duostore.stale
SET failures = failures + 1,
    due_time = clock_timestamp() + least(interval '1 s' * 2 ^ least(failures, 9), interval '1 min')
WHERE id IN (SELECT id FROM duostore.stale WHERE id = ANY (%s) FOR UPDATE SKIP LOCKED)
"""


class AuroraStaleDocuments:
    """``ports.StaleDocuments`` on PostgreSQL. A claim holds for ``claim`` seconds.

    Documents whose read model fails, or builds what is no document, are due again after a
    second, then after twice as long each time, up to a minute.
    """

    def __init__(
        self,
        pool: AuroraPool,
        read_models: Mapping[str, ReadModel],
        *,
        claim: float = _CLAIM_SECONDS,
    ) -> None:
        self._pool = pool
        self._models = {kind: model for kind, model in read_models.items() if model.sources}
        self._claim = timedelta(seconds=claim)

    def claim(self, limit: int, deadline: Deadline) -> Sequence[StaleDocument]:
        stale: list[StaleDocument] = []
        for claim in _CLAIMS:
            if len(stale) < limit:
                params = {
                    "kinds": list(self._models),
                    "limit": Int8(limit - len(stale)),
                    "claim": self._claim,
                }
                rows = self._pool.execute(claim, params, deadline)
                stale += [StaleDocument(id_, EntityKey(*key)) for id_, *key in rows]
        return stale

    def recompute(self, stale: Sequence[StaleDocument], deadline: Deadline) -> Sequence[Recomputed]:
        """Keep the promise of the port: in one transaction or, if that fails, in one for each.

        What there is no time for is answered as failed, too: its claim runs out.
        """
        deadline.bound(_SECONDS)
        if len(stale) > 1:
            try:
                return self._together(stale, deadline.part(_SHARE))
            except DeadlineExceededError:
                pass
            except (psycopg.Error, StoreError) as error:
                if fault_of_statement(error) is None:
                    raise
        return [self._alone(each, deadline) for each in stale]

    def _alone(self, stale: StaleDocument, deadline: Deadline) -> Recomputed:
        try:
            try:
                (recomputed,) = self._together([stale], deadline.part(_SHARE))
            except (psycopg.Error, StoreError) as error:
                fault = fault_of_statement(error)
                if fault is None:
                    raise
                _tell(stale, f"SQLSTATE {fault.sqlstate}")
                self._pool.execute(_BACK_OFF, ([Int8(stale.id)],), deadline)
            else:
                return recomputed
        except DeadlineExceededError:
            pass
        return Recomputed(stale.key, Outcome.FAILED)

    def _together(self, stale: Sequence[StaleDocument], deadline: Deadline) -> Sequence[Recomputed]:
        recomputed: Sequence[Recomputed] = ()

        def course() -> Course:
            nonlocal recomputed
            current, found = yield from self._looked_at(stale)
            changes: list[Change] = []
            outcomes: dict[EntityKey, Outcome] = {}
            for each, rows in zip(stale, found, strict=True):
                try:
                    document = built(self._models[each.key.kind], rows)
                except UnfitDocumentError as error:
                    _tell(each, str(error))
                    outcomes[each.key] = Outcome.FAILED
                    continue
                version, data = current.get(each.key, (0, None))
                if same(document, data):
                    outcomes[each.key] = Outcome.UNCHANGED
                else:
                    changes.append(_change(each.key, document, None if data is None else version))
            written: dict[EntityKey, Written] = {}
            if changes:
                # In the order in which every transaction takes its locks.
                changes.sort(key=lambda change: (change.key.tenant, change.key.kind, change.key.id))
                answers = yield [statement_of(change, ORIGIN) for change in changes]
                for change, rows in zip(changes, answers, strict=True):
                    # None if it came to be meanwhile, by a Save of a relational kind.
                    outcomes[change.key] = Outcome.CHANGED if rows else Outcome.FAILED
                    for row in rows:
                        written[change.key] = written_of(change, row)
            recomputed = [
                Recomputed(each.key, outcomes[each.key], written.get(each.key)) for each in stale
            ]
            return _finishing(stale, recomputed)

        self._pool.transact(course, deadline)
        return recomputed

    def _looked_at(
        self, stale: Sequence[StaleDocument]
    ) -> Generator[
        Sequence[Statement],
        Sequence[Rows],
        tuple[Mapping[EntityKey, tuple[int, JsonObject | None]], Sequence[Rows]],
    ]:
        """Lock documents and then read: what each is, and the rows of its read model.

        Each statement sees what was committed before it begins, and so all that whoever held
        the locks before has seen.
        """
        keys = [each.key for each in stale]
        entities, *found = (
            yield [
                Statement(_LOCK_KEYS, (sorted(Int8(_lock(key)) for key in keys),)),
                Statement(
                    _LOCK_ENTITIES,
                    (
                        [key.tenant for key in keys],
                        [key.kind for key in keys],
                        [key.id for key in keys],
                    ),
                ),
                *(building(self._models[key.kind], key) for key in keys),
            ]
        )[1:]
        return {keys[n - 1]: (version, data) for n, version, data in entities}, found


def _change(key: EntityKey, document: JsonObject | None, version: int | None) -> Change:
    precondition = IfAbsent() if version is None else IfVersion(version)
    return Change(key, document, precondition, INLINE_DUE_AFTER)


def _finishing(
    stale: Sequence[StaleDocument], recomputed: Sequence[Recomputed]
) -> Sequence[Statement]:
    done: list[Int8] = []
    failed: list[Int8] = []
    for each, one in zip(stale, recomputed, strict=True):
        (failed if one.outcome is Outcome.FAILED else done).append(Int8(each.id))
    return [
        Statement(query, (ids,)) for query, ids in ((_FINISH, done), (_BACK_OFF, failed)) if ids
    ]


def _lock(key: EntityKey) -> int:
    """Return the number of a key's lock; two keys of one number wait for each other in vain."""
    digest = hashlib.blake2b(str(key).encode(), digest_size=8, person=b"duostore").digest()
    return int.from_bytes(digest, "big", signed=True)


def _tell(stale: StaleDocument, why: str) -> None:
    # Which ones is in duostore.stale: keys are not logged.
    _log.error("document cannot be recomputed", kind=stale.key.kind, stale_id=stale.id, why=why)
