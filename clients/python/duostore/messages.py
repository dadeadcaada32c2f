"""Between messages and the values of this client: no connection, no state."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, Final

from duostore.documents import from_struct, no_unicode, to_struct
from duostore.errors import FieldViolation, InvalidRequestError, invalid_request
from duostore.params import to_params
from duostore.v1 import data_access_pb2, entity_pb2
from duostore.values import (
    Appended,
    Applied,
    Check,
    Delete,
    Entity,
    Key,
    Publish,
    QuotaDecision,
    Save,
    Saved,
    Settled,
    Snapshot,
    Store,
    Transacted,
    require_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from duostore.params import Params
    from duostore.values import Mutation

_STORES: Final = {
    entity_pb2.STORE_CACHE: Store.CACHE,
    entity_pb2.STORE_DYNAMODB: Store.DYNAMODB,
    entity_pb2.STORE_AURORA: Store.AURORA,
}
# Units travel as 64-bit numbers.
_MOST_UNITS: Final = 2**63 - 1


def get_request(key: Key, *, min_version: int | None, strong: bool) -> data_access_pb2.GetRequest:
    """Return the request; raises ``InvalidRequestError`` if it asks for two freshnesses."""
    request = data_access_pb2.GetRequest(key=_message_of(key))
    if strong and min_version is not None:
        raise _exclusive("strong", "min_version", "a strong read sees every version")
    if strong:
        request.strong = True
    if min_version is not None:
        request.min_version = min_version
    return request


def batch_get_request(keys: Iterable[Key]) -> data_access_pb2.BatchGetRequest:
    """Return the request."""
    return data_access_pb2.BatchGetRequest(keys=[_message_of(key) for key in keys])


def save_request(
    key: Key,
    data: Mapping[str, Any],
    *,
    if_version: int | None,
    if_absent: bool,
    idempotency_key: str,
) -> data_access_pb2.SaveRequest:
    """Return the request.

    Raises ``InvalidRequestError`` for two preconditions, or a document that could not be
    sent unchanged.
    """
    request = data_access_pb2.SaveRequest(
        key=_message_of(key), data=to_struct(data), idempotency_key=idempotency_key
    )
    _require(request, if_version=if_version, if_absent=if_absent)
    return request


def publish_request(
    key: Key, sequence: int, *, if_version: int | None, if_absent: bool, idempotency_key: str
) -> data_access_pb2.SaveRequest:
    """Return the request; raises ``InvalidRequestError`` for two preconditions."""
    request = data_access_pb2.SaveRequest(
        key=_message_of(key), from_snapshot=sequence, idempotency_key=idempotency_key
    )
    _require(request, if_version=if_version, if_absent=if_absent)
    return request


def delete_request(
    key: Key, *, if_version: int | None, idempotency_key: str
) -> data_access_pb2.DeleteRequest:
    """Return the request."""
    request = data_access_pb2.DeleteRequest(key=_message_of(key), idempotency_key=idempotency_key)
    if if_version is not None:
        request.if_version = if_version
    return request


def transact_request(
    mutations: Iterable[Mutation], tenant: str, *, idempotency_key: str
) -> data_access_pb2.TransactRequest:
    """Return the request.

    Raises ``InvalidRequestError`` for two preconditions, or a document that could not be
    sent unchanged.
    """
    request = data_access_pb2.TransactRequest(idempotency_key=idempotency_key)
    for index, mutation in enumerate(mutations):
        _add(mutation, tenant, request.mutations.add(), f"mutations[{index}]")
    return request


def _add(mutation: Mutation, tenant: str, message: data_access_pb2.Mutation, field: str) -> None:
    match mutation:
        case Save() | Publish():
            save = message.save
            save.key.CopyFrom(_message_of(Key(mutation.kind, mutation.id, tenant)))
            if isinstance(mutation, Save):
                save.data.CopyFrom(to_struct(mutation.data, f"{field}.save.data"))
            else:
                save.from_snapshot = mutation.sequence
            _require(
                save,
                if_version=mutation.if_version,
                if_absent=mutation.if_absent,
                within=f"{field}.save.",
            )
        case Delete():
            message.delete.key.CopyFrom(_message_of(Key(mutation.kind, mutation.id, tenant)))
            if mutation.if_version is not None:
                message.delete.if_version = mutation.if_version
        case Check():
            message.check.key.CopyFrom(_message_of(Key(mutation.kind, mutation.id, tenant)))
            message.check.if_version = mutation.if_version
        case _:
            raise TypeError(
                f"{field} is of type {type(mutation).__name__};"
                " send a Save, Publish, Delete or Check of duostore"
            )


def snapshot_request(
    key: Key, data: Mapping[str, Any], *, idempotency_key: str
) -> data_access_pb2.SnapshotRequest:
    """Return the request; raises ``InvalidRequestError`` as ``save_request`` does."""
    return data_access_pb2.SnapshotRequest(
        key=_message_of(key), data=to_struct(data), idempotency_key=idempotency_key
    )


def get_snapshot_request(key: Key, sequence: int) -> data_access_pb2.GetSnapshotRequest:
    """Return the request."""
    return data_access_pb2.GetSnapshotRequest(key=_message_of(key), sequence=sequence)


def list_snapshots_request(key: Key, *, page_size: int) -> data_access_pb2.ListSnapshotsRequest:
    """Return the request for the first page."""
    return data_access_pb2.ListSnapshotsRequest(key=_message_of(key), page_size=page_size)


def quota_request(
    quota: str,
    subject: str,
    cost: int,
    mode: data_access_pb2.Mode.ValueType,
    *,
    tenant: str,
    idempotency_key: str,
) -> data_access_pb2.QuotaRequest:
    """Return the request.

    Raises ``TypeError`` for what is of another type, ``InvalidRequestError`` for a cost
    below 1 and for what cannot be sent unchanged.
    """
    _require_texts(quota=quota, subject=subject, tenant=tenant, idempotency_key=idempotency_key)
    # A 0 would be taken for one that is not given, and debit 1.
    _require_units(cost, least=1)
    return data_access_pb2.QuotaRequest(
        tenant=tenant,
        quota=quota,
        subject=subject,
        cost=cost,
        mode=mode,
        idempotency_key=idempotency_key,
    )


def settle_quota_request(
    reservation: str, *, cost: int | None, release: bool, tenant: str
) -> data_access_pb2.SettleQuotaRequest:
    """Return the request.

    Raises ``TypeError`` for what is of another type, ``InvalidRequestError`` for what cannot
    be sent unchanged, and unless it settles the reservation in one way.
    """
    _require_texts(reservation=reservation, tenant=tenant)
    request = data_access_pb2.SettleQuotaRequest(tenant=tenant, reservation=reservation)
    if release and cost is not None:
        raise _exclusive("release", "cost", "what is released was not used")
    if release:
        request.release = True
    elif cost is not None:
        _require_units(cost, least=0)
        request.cost = cost
    else:
        raise invalid_request([FieldViolation("cost", "is required, or release=True")])
    return request


def query_request(
    query: str, params: Params, *, tenant: str, page_size: int
) -> data_access_pb2.QueryRequest:
    """Return the request for the first page.

    Raises ``TypeError`` for what is of another type, ``InvalidRequestError`` for parameters
    that cannot be sent unchanged.
    """
    _require_texts(query=query, tenant=tenant)
    return data_access_pb2.QueryRequest(
        tenant=tenant, query=query, params=to_params(params), page_size=page_size
    )


def export_request(query: str, params: Params, *, tenant: str) -> data_access_pb2.ExportRequest:
    """Return the request; raises as ``query_request``."""
    _require_texts(query=query, tenant=tenant)
    return data_access_pb2.ExportRequest(tenant=tenant, query=query, params=to_params(params))


def key_of(message: entity_pb2.EntityKey) -> Key:
    """Return the key that a message names."""
    return Key(message.kind, message.id, message.tenant)


def entity_of(message: entity_pb2.Entity, receipt: entity_pb2.Receipt) -> Entity:
    """Return an entity that was read, with the receipt of its answer."""
    served_from, cached_time = served_of(receipt)
    return Entity(
        tenant=message.key.tenant,
        kind=message.key.kind,
        id=message.key.id,
        version=message.version,
        data=from_struct(message.data),
        create_time=message.create_time.ToDatetime(UTC),
        update_time=message.update_time.ToDatetime(UTC),
        served_from=served_from,
        cached_time=cached_time,
    )


def served_of(receipt: entity_pb2.Receipt) -> tuple[Store, datetime | None]:
    """Return which store answered, and when the answer was put into the cache if that did."""
    cached = receipt.cached_time.ToDatetime(UTC) if receipt.HasField("cached_time") else None
    return _STORES.get(receipt.served_from, Store.UNKNOWN), cached


def saved_of(response: data_access_pb2.SaveResponse | data_access_pb2.DeleteResponse) -> Saved:
    """Return the answer to a write."""
    return Saved(
        version=response.version,
        update_time=response.update_time.ToDatetime(UTC),
        projected=response.projection == entity_pb2.PROJECTION_DONE,
        replayed=response.replayed,
    )


def transacted_of(response: data_access_pb2.TransactResponse) -> Transacted:
    """Return the answer to a transaction."""
    return Transacted(
        results=tuple(
            Applied(key_of(result.key), result.version, result.update_time.ToDatetime(UTC))
            for result in response.results
        ),
        projected=response.projection == entity_pb2.PROJECTION_DONE,
        replayed=response.replayed,
    )


def appended_of(response: data_access_pb2.SnapshotResponse) -> Appended:
    """Return the answer to a snapshot."""
    time = response.snapshot_time.ToDatetime(UTC)
    return Appended(response.sequence, time, response.replayed)


def snapshot_of(message: entity_pb2.EntitySnapshot) -> Snapshot:
    """Return a snapshot that was read."""
    return Snapshot(
        tenant=message.key.tenant,
        kind=message.key.kind,
        id=message.key.id,
        sequence=message.sequence,
        data=from_struct(message.data),
        snapshot_time=message.snapshot_time.ToDatetime(UTC),
    )


def decision_of(response: data_access_pb2.QuotaResponse) -> QuotaDecision:
    """Return the answer to a call that asks a quota; its times are rounded up."""
    reset_time = _not_before(response.reset_time) if response.HasField("reset_time") else None
    retry_after = None
    if response.HasField("retry_after"):
        retry_after = timedelta(microseconds=-(-response.retry_after.ToNanoseconds() // 1000))
    return QuotaDecision(
        allowed=response.allowed,
        limit=response.limit,
        remaining=response.remaining,
        reset_time=reset_time,
        retry_after=retry_after,
        replayed=response.replayed,
        unchecked=response.unchecked,
    )


def expire_time_of(response: data_access_pb2.QuotaResponse) -> datetime | None:
    """Return until when a reservation can be settled, None if nothing is reserved."""
    return response.expire_time.ToDatetime(UTC) if response.HasField("expire_time") else None


def settled_of(response: data_access_pb2.SettleQuotaResponse) -> Settled:
    """Return the answer to a settlement."""
    return Settled(response.committed, response.refunded, response.covered, response.replayed)


def _not_before(time: Timestamp) -> datetime:
    """Return a time in whole microseconds that is not before it."""
    return time.ToDatetime(UTC) + timedelta(microseconds=1 if time.nanos % 1000 else 0)


def _require_texts(**texts: object) -> None:
    for name, text in texts.items():
        require_text(name, text)
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            # Without its cause, which repeats the string.
            violation = FieldViolation(name, f"is a string {no_unicode(error)}")
            raise invalid_request([violation]) from None


def _require_units(cost: object, *, least: int) -> None:
    # A bool is an int to Python; as a number of units it is a mistake.
    if not isinstance(cost, int) or isinstance(cost, bool):
        raise TypeError(f"cost is {cost!r}, of type {type(cost).__name__}; send an int")
    if cost < least:
        problem = f"is {cost}; it must be at least {least}"
    elif cost > _MOST_UNITS:
        problem = f"is {cost}; it must be below 2^63"
    else:
        return
    raise invalid_request([FieldViolation("cost", problem)])


def _require(
    message: data_access_pb2.SaveRequest | data_access_pb2.SaveMutation,
    *,
    if_version: int | None,
    if_absent: bool,
    within: str = "",
) -> None:
    if if_absent and if_version is not None:
        why = "an entity that is absent has no version"
        raise _exclusive(f"{within}if_absent", "if_version", why)
    if if_absent:
        message.if_absent = True
    if if_version is not None:
        message.if_version = if_version


def _message_of(key: Key) -> entity_pb2.EntityKey:
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def _exclusive(field: str, other: str, why: str) -> InvalidRequestError:
    return invalid_request([FieldViolation(field, f"excludes {other}: {why}")])
