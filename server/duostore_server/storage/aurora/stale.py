"""The documents that have to be recomputed, in a table beside the entities."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg.types.numeric import Int8

from duostore_server.domain.errors import DeadlineExceededError, StoreError, StoreTimeoutError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import INLINE_DUE_AFTER
from duostore_server.domain.read_models import Outcome, Recomputed, StaleDocument
from duostore_server.domain.transactions import Change, IfAbsent, IfVersion, Origin
from duostore_server.storage.aurora.built import UnfitDocumentError, building, built, same
from duostore_server.storage.aurora.definitions import LOCK, digest_of
from duostore_server.storage.aurora.errors import fault_of_statement
from duostore_server.storage.aurora.mutations import statement_of, written_of
from duostore_server.storage.aurora.trips import Statement, StatementFailedError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.domain.transactions import Written
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Course, Rows

_log = structlog.get_logger(__name__)

ORIGIN: Final = Origin("duostore", "recompute")

# Of a process that died. What takes longer is claimed by others meanwhile, who find it locked,
# and leave it.
_CLAIM_SECONDS: Final = 5.0
_SECONDS: Final = 1.0
# Of what time there is, so that the slowest leaves some to the others.
_SHARE: Final = 0.5
# What has less than that to itself is not tried: that it failed would say nothing of it.
_LEAST_ALONE_SECONDS: Final = 0.25

# As changes of sources are claimed. Joined by key: see the outbox. Kinds that are defined
# otherwise in the database than here are another release's.
_CLAIM: Final = """
WITH others AS MATERIALIZED (
    SELECT kind
    FROM unnest(%(kinds)s::text[], %(sources)s::text[], %(digests)s::text[])
        AS mine (kind, source, digest)
    FULL JOIN duostore.read_model AS installed USING (kind, source, digest)
    WHERE mine.kind IS NULL OR installed.kind IS NULL
), due AS MATERIALIZED (
    SELECT tenant, kind, entity_id, due_time
    FROM duostore.stale
    WHERE {failures}
        AND due_time <= statement_timestamp()
        AND kind = ANY (%(kinds)s)
        AND kind NOT IN (SELECT kind FROM others)
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

_HOLD_DEFINITIONS: Final = "SELECT pg_advisory_xact_lock_shared(%s)"
_FIND_DEFINITIONS: Final = """
SELECT kind, source, digest FROM duostore.read_model WHERE kind = ANY (%s)
"""

# The key is locked, though there may be no entity yet, and not the entity, so that a Save need
# not wait for read models. All take these locks in one order.
_LOCK_KEYS: Final = "SELECT pg_advisory_xact_lock(lock) FROM unnest(%s::bigint[]) AS lock"

_READ_ENTITIES: Final = """
SELECT n, version, data
FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS k (tenant, kind, id, n)
JOIN duostore.entity AS e USING (tenant, kind, id)
"""

_LOCKED: Final = "55P03"

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


class _LeftError(Exception):
    """Documents are not to be recomputed here and now, for what others do; they stay stale."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read of documents: version and data of those that exist, rows of read models.

    Kinds that are ``redefined`` are another release's to recompute.
    """

    redefined: Collection[str]
    current: Mapping[EntityKey, tuple[int, JsonObject | None]]
    found: Sequence[Rows]


class AuroraStaleDocuments:
    """``ports.StaleDocuments`` on PostgreSQL. A claim holds for ``claim`` seconds.

    Documents whose read model fails, takes too long by itself, or builds what is no document,
    are due again after a second, then after twice as long each time, up to a minute. Those of
    kinds that the database has otherwise than ``read_models`` are left to whom it has them from.
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
        self._definitions = {
            (kind, source.name): digest_of(model, source)
            for kind, model in self._models.items()
            for source in model.sources
        }
        self._claim = timedelta(seconds=claim)

    def claim(self, limit: int, deadline: Deadline) -> Sequence[StaleDocument]:
        stale: list[StaleDocument] = []
        for claim in _CLAIMS:
            if len(stale) < limit:
                params = {
                    "kinds": [kind for kind, _ in self._definitions],
                    "sources": [source for _, source in self._definitions],
                    "digests": list(self._definitions.values()),
                    "limit": Int8(limit - len(stale)),
                    "claim": self._claim,
                }
                rows = self._pool.execute(claim, params, deadline)
                stale += [StaleDocument(id_, EntityKey(*key)) for id_, *key in rows]
        return stale

    def recompute(self, stale: Sequence[StaleDocument], deadline: Deadline) -> Sequence[Recomputed]:
        """Keep the promise of the port: in one transaction or, if that fails, in one for each.

        What there is no time for is answered as failed, too: its claim runs out. Left out is
        what others recompute or save just now, and what another release has to recompute.
        """
        deadline.bound(_SECONDS)
        if len(stale) > 1:
            try:
                return self._together(stale, deadline.part(_SHARE))
            except (_LeftError, DeadlineExceededError, StoreTimeoutError):
                pass
            except (psycopg.Error, StoreError) as error:
                if fault_of_statement(error) is None:
                    raise
        return [one for each in stale for one in self._alone(each, deadline)]

    def _alone(self, stale: StaleDocument, deadline: Deadline) -> Sequence[Recomputed]:
        part = deadline.part(_SHARE)
        if part.remaining() >= _LEAST_ALONE_SECONDS:
            try:
                return self._together([stale], part)
            except _LeftError:
                return []
            except (DeadlineExceededError, StoreTimeoutError) as error:
                cause = error.__cause__
                why = cause.sqlstate if isinstance(cause, psycopg.Error) else None
                self._back_off(stale, f"SQLSTATE {why}" if why else "takes too long", deadline)
            except (psycopg.Error, StoreError) as error:
                fault = fault_of_statement(error)
                if fault is None:
                    raise
                self._back_off(stale, f"SQLSTATE {fault.sqlstate}", deadline)
        return [Recomputed(stale.key, Outcome.FAILED)]

    def _back_off(self, stale: StaleDocument, why: str, deadline: Deadline) -> None:
        _tell(stale, why)
        with suppress(DeadlineExceededError):
            self._pool.execute(_BACK_OFF, ([Int8(stale.id)],), deadline)

    def _together(self, stale: Sequence[StaleDocument], deadline: Deadline) -> Sequence[Recomputed]:
        recomputed: Sequence[Recomputed] = ()

        def course() -> Course:
            nonlocal recomputed
            seen = yield from self._looked_at(stale)
            changes: list[Change] = []
            outcomes: dict[EntityKey, Outcome] = {}
            for each, rows in zip(stale, seen.found, strict=True):
                if each.key.kind in seen.redefined:
                    continue
                try:
                    document = built(self._models[each.key.kind], rows)
                except UnfitDocumentError as error:
                    _tell(each, str(error))
                    outcomes[each.key] = Outcome.FAILED
                    continue
                version, data = seen.current.get(each.key, (0, None))
                if same(document, data):
                    outcomes[each.key] = Outcome.UNCHANGED
                else:
                    changes.append(_change(each.key, document, None if data is None else version))
            written: dict[EntityKey, Written] = {}
            if changes:
                # In the order in which every transaction takes its locks.
                changes.sort(key=lambda change: (change.key.tenant, change.key.kind, change.key.id))
                answers = yield from _unless_locked(
                    [statement_of(change, ORIGIN) for change in changes]
                )
                for change, rows in zip(changes, answers, strict=True):
                    # None if it was saved since it was read, which has made it stale again.
                    for row in rows:
                        outcomes[change.key] = Outcome.CHANGED
                        written[change.key] = written_of(change, row)
            done = [each for each in stale if each.key in outcomes]
            recomputed = [
                Recomputed(each.key, outcomes[each.key], written.get(each.key)) for each in done
            ]
            return _finishing(done, recomputed)

        self._pool.transact(course, deadline)
        return recomputed

    def _looked_at(
        self, stale: Sequence[StaleDocument]
    ) -> Generator[Sequence[Statement], Sequence[Rows], _Seen]:
        """Lock the keys of documents and then read what each is, and then what it is to be.

        Each statement sees what was committed before it begins, and so all that whoever held
        the locks before has seen, and all that the version which is read was built from.
        """
        keys = [each.key for each in stale]
        kinds = sorted({key.kind for key in keys})
        columns = (
            [key.tenant for key in keys],
            [key.kind for key in keys],
            [key.id for key in keys],
        )
        ours = [
            Statement(_HOLD_DEFINITIONS, (Int8(LOCK),)),
            Statement(_FIND_DEFINITIONS, (kinds,)),
            Statement(_LOCK_KEYS, (sorted(Int8(_lock(key)) for key in keys),)),
            Statement(_READ_ENTITIES, columns),
        ]
        reads = [building(self._models[key.kind], key) for key in keys]
        try:
            _, definitions, _, entities, *found = yield [*ours, *reads]
        except StatementFailedError as failure:
            # Of SQL that a migration has left behind it says nothing that it fails.
            redefined = len(failure.rows) > 1 and self._redefined(kinds, failure.rows[1])
            if redefined or (len(failure.rows) < len(ours) and _is_locked(failure)):
                raise _LeftError from failure
            raise
        current = {keys[n - 1]: (version, data) for n, version, data in entities}
        return _Seen(self._redefined(kinds, definitions), current, found)

    def _redefined(self, kinds: Collection[str], definitions: Rows) -> Collection[str]:
        """Return those of the kinds that the database has otherwise than they are here."""
        installed = {(kind, source, digest) for kind, source, digest in definitions}
        mine = {(*of, digest) for of, digest in self._definitions.items() if of[0] in kinds}
        return {kind for kind, _, _ in installed ^ mine}


def _unless_locked(
    statements: Sequence[Statement],
) -> Generator[Sequence[Statement], Sequence[Rows], Sequence[Rows]]:
    """Make a trip of statements of ours, which raises ``_LeftError`` if one waits in vain."""
    try:
        return (yield statements)
    except StatementFailedError as failure:
        if _is_locked(failure):
            raise _LeftError from failure
        raise


def _is_locked(failure: StatementFailedError) -> bool:
    cause = failure.__cause__
    return isinstance(cause, psycopg.Error) and cause.sqlstate == _LOCKED


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
