"""The newest version of every entity, on the writer of Aurora."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.documents import compact_json
from duostore_server.domain.entities import Entity, IfAbsent, IfVersion, Written
from duostore_server.domain.errors import (
    EntityExistsError,
    EntityNotFoundError,
    Store,
    StoreOverloadedError,
    StoreUnavailableError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from psycopg.rows import TupleRow

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import Change
    from duostore_server.domain.errors import DuostoreError
    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.aurora.pool import AuroraPool

# How often a write is tried whose precondition did not hold when it ran and does when
# its refusal is looked into.
_ATTEMPTS: Final = 3

# Each statement commits the entity and its outbox row together, in one round trip. The
# entity's row lock comes first, so that writers of a key queue up there and an outbox id
# is taken in the order of versions. Times are taken after the lock was waited for. The
# outbox goes by the clock, not by update_time, which is ahead of it after a clock was
# set back.
#
# A row that is already in the outbox gets a new id, so that who completes an older one
# takes nothing away, and keeps its earlier due_time: with the later one, a key that is
# saved again and again would never fall due, however long its projections fail.

# Ends both statements, whose first part is named `written`.
_QUEUED: Final = """
), queued AS (
    INSERT INTO duostore.outbox AS o (tenant, kind, entity_id, due_time, create_time)
    SELECT %(tenant)s, %(kind)s, %(id)s, t + %(due_after)s, t
    FROM written, clock_timestamp() AS t
    ON CONFLICT (tenant, kind, entity_id) DO UPDATE SET
        id = DEFAULT,
        due_time = least(o.due_time, excluded.due_time)
    RETURNING id
)
SELECT version, create_time, update_time, id FROM written, queued
"""

_UPSERT: Final = (
    """
WITH written AS (
    INSERT INTO duostore.entity AS e
        (tenant, kind, id, version, data, deleted, create_time, update_time)
    SELECT %(tenant)s, %(kind)s, %(id)s, 1, %(data)s::jsonb, false, t, t
    FROM clock_timestamp() AS t
    ON CONFLICT (tenant, kind, id) DO UPDATE SET
        version = e.version + 1,
        data = excluded.data,
        deleted = false,
        (create_time, update_time) = (
            SELECT CASE WHEN e.deleted THEN t ELSE e.create_time END, t
            FROM greatest(clock_timestamp(), e.update_time) AS t
        )
    WHERE e.deleted OR NOT %(if_absent)s
    RETURNING version, create_time, update_time
"""  # noqa: S608 - both parts are ours
    + _QUEUED
)

_UPDATE: Final = (
    """
WITH written AS (
    UPDATE duostore.entity AS e SET
        version = e.version + 1,
        data = new.data,
        deleted = new.data IS NULL,
        update_time = greatest(clock_timestamp(), e.update_time)
    FROM (SELECT %(data)s::jsonb) AS new (data)
    WHERE e.tenant = %(tenant)s AND e.kind = %(kind)s AND e.id = %(id)s
        AND NOT e.deleted
        AND (%(if_version)s::bigint IS NULL OR e.version = %(if_version)s)
    RETURNING e.version, e.create_time, e.update_time
"""
    + _QUEUED
)

# Both readings answer a row for each key, so that they can tell with it whether the server
# is a writer: a connection to one that was demoted goes on answering, from the past.

_READ_ONE: Final = """
SELECT 1, current_setting('transaction_read_only'), version, data, create_time, update_time
FROM (VALUES (1)) AS one
LEFT JOIN duostore.entity ON tenant = %s AND kind = %s AND id = %s
"""

_READ_MANY: Final = """
SELECT n, current_setting('transaction_read_only'), version, data, create_time, update_time
FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS k (tenant, kind, id, n)
LEFT JOIN duostore.entity USING (tenant, kind, id)
"""


class AuroraAuthority:
    """``ports.Authority`` on PostgreSQL: each method is one statement."""

    def __init__(self, pool: AuroraPool) -> None:
        self._pool = pool

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        ordered = list(keys)
        if not ordered:
            return {}
        rows = self._rows(ordered, deadline)
        if rows[0][1] != "off":
            self._pool.renew()
            raise StoreUnavailableError(Store.AURORA)
        found: dict[EntityKey, Entity] = {}
        for n, _, version, data, create_time, update_time in rows:
            if version is not None:
                key = ordered[n - 1]
                found[key] = _entity(key, version, data, create_time, update_time)
        return found

    def write(self, change: Change, deadline: Deadline) -> Written:
        for _ in range(_ATTEMPTS):
            rows = self._try(change, deadline)
            if rows:
                ((version, create_time, update_time, outbox_id),) = rows
                entity = _entity(change.key, version, change.data, create_time, update_time)
                return Written(entity, outbox_id)
            # Nothing was written. Why is seen a moment later, when a concurrent change may
            # have made the precondition hold: a refusal would contradict itself then (not
            # version 5 but 5), so the write is due another attempt.
            if refusal := self._refusal(change, deadline):
                raise refusal
        raise StoreOverloadedError(Store.AURORA)

    def _rows(self, keys: Sequence[EntityKey], deadline: Deadline) -> Sequence[TupleRow]:
        if len(keys) == 1:
            (key,) = keys
            return self._pool.execute(_READ_ONE, (key.tenant, key.kind, key.id), deadline)
        columns = (
            [key.tenant for key in keys],
            [key.kind for key in keys],
            [key.id for key in keys],
        )
        return self._pool.execute(_READ_MANY, columns, deadline)

    def _try(self, change: Change, deadline: Deadline) -> Sequence[TupleRow]:
        key, precondition = change.key, change.precondition
        params: dict[str, object] = {
            "tenant": key.tenant,
            "kind": key.kind,
            "id": key.id,
            "data": None if change.data is None else compact_json(change.data),
            "due_after": change.due_after,
        }
        if change.data is None or isinstance(precondition, IfVersion):
            if isinstance(precondition, IfAbsent):
                raise ValueError("a Delete cannot require that the entity is absent")
            query = _UPDATE
            # Int8: else the driver would choose a type, and prepare anew, by the size.
            params["if_version"] = Int8(precondition.version) if precondition else None
        else:
            query = _UPSERT
            params["if_absent"] = isinstance(precondition, IfAbsent)
        return self._pool.execute(query, params, deadline, repeatable=False)

    def _refusal(self, change: Change, deadline: Deadline) -> DuostoreError | None:
        """Return why the change cannot be applied to what is there now, if so."""
        current = self.read((change.key,), deadline).get(change.key)
        version = current.version if current else 0
        live = version if current and current.data is not None else 0
        match change.precondition:
            case IfVersion(expected):
                return None if live == expected else VersionMismatchError(expected, live)
            case IfAbsent():
                return EntityExistsError(live) if live else None
            case None:
                return None if live else EntityNotFoundError(version)


def _entity(
    key: EntityKey,
    version: int,
    data: JsonObject | None,
    create_time: datetime,
    update_time: datetime,
) -> Entity:
    return Entity(key, version, data, create_time.astimezone(UTC), update_time.astimezone(UTC))
