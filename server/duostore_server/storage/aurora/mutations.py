"""Mutations as statements, what the rows of those mean, and why one is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from psycopg.types.numeric import Int8

from duostore_server.domain.documents import compact_json
from duostore_server.domain.entities import Entity, OutboxRow
from duostore_server.domain.errors import (
    EntityExistsError,
    EntityNotFoundError,
    VersionMismatchError,
)
from duostore_server.domain.transactions import Change, Check, IfAbsent, IfVersion, Written
from duostore_server.storage.aurora.idempotency import taking
from duostore_server.storage.aurora.statements import (
    CHECK,
    UPDATE,
    UPDATE_ONCE,
    UPSERT,
    UPSERT_ONCE,
)
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.errors import RefusalError
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.transactions import Idempotency, Mutation, Origin


def statement_of(
    mutation: Mutation, origin: Origin, idempotency: Idempotency | None = None
) -> Statement:
    """Return what applies a mutation, or answers no row if it is refused.

    A change takes the key of ``idempotency`` in the same stroke, if given.
    """
    key = mutation.key
    params: dict[str, object] = {"tenant": key.tenant, "kind": key.kind, "id": key.id}
    if isinstance(mutation, Check):
        # Int8: else the driver would choose a type, and prepare anew, by the size.
        return Statement(CHECK, {**params, "if_version": Int8(mutation.version)})
    data, precondition = mutation.data, mutation.precondition
    params |= {
        "data": None if data is None else compact_json(data),
        "due_after": mutation.due_after,
        "operation": "delete" if data is None else "save",
        "caller": origin.caller,
        "request_id": origin.request_id,
        **(taking(idempotency) if idempotency else {}),
    }
    if data is None or isinstance(precondition, IfVersion):
        if isinstance(precondition, IfAbsent):
            raise ValueError("a Delete cannot require that the entity is absent")
        params["if_version"] = Int8(precondition.version) if precondition else None
        return Statement(UPDATE_ONCE if idempotency else UPDATE, params)
    params["if_absent"] = isinstance(precondition, IfAbsent)
    return Statement(UPSERT_ONCE if idempotency else UPSERT, params)


def written_of(change: Change, row: TupleRow) -> Written:
    """Return what a change came to, of the row that its statement answered."""
    version, create_time, update_time, outbox_id, as_of = row
    entity = entity_of(change.key, version, change.data, create_time, update_time)
    return Written(entity, OutboxRow(outbox_id, change.key, as_of.astimezone(UTC)))


def entity_of(
    key: EntityKey,
    version: int,
    data: JsonObject | None,
    create_time: datetime,
    update_time: datetime,
) -> Entity:
    """Return a version as the table holds it."""
    return Entity(key, version, data, create_time.astimezone(UTC), update_time.astimezone(UTC))


def refusal_of(mutation: Mutation, current: Entity | None) -> RefusalError | None:
    """Return why a mutation cannot be applied to what is there now, if so."""
    version = current.version if current else 0
    live = version if current and current.data is not None else 0
    precondition = (
        IfVersion(mutation.version) if isinstance(mutation, Check) else mutation.precondition
    )
    match precondition:
        case IfVersion(expected):
            return None if live == expected else VersionMismatchError(expected, live)
        case IfAbsent():
            return EntityExistsError(live) if live else None
        case None:
            is_delete = isinstance(mutation, Change) and mutation.data is None
            return EntityNotFoundError(version) if is_delete and not live else None
