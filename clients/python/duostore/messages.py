"""Between messages and the values of this client: no connection, no state."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from duostore.documents import from_struct, to_struct
from duostore.errors import FieldViolation, InvalidRequestError, invalid_request
from duostore.v1 import data_access_pb2, entity_pb2
from duostore.values import Entity, Key, Saved, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STORES: Final = {
    entity_pb2.STORE_CACHE: Store.CACHE,
    entity_pb2.STORE_DYNAMODB: Store.DYNAMODB,
    entity_pb2.STORE_AURORA: Store.AURORA,
}


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
    key: Key, data: Mapping[str, Any], *, if_version: int | None, if_absent: bool
) -> data_access_pb2.SaveRequest:
    """Return the request.

    Raises ``InvalidRequestError`` for two preconditions, or a document that could not be
    sent unchanged.
    """
    request = data_access_pb2.SaveRequest(key=_message_of(key), data=to_struct(data))
    if if_absent and if_version is not None:
        raise _exclusive("if_absent", "if_version", "an entity that is absent has no version")
    if if_absent:
        request.if_absent = True
    if if_version is not None:
        request.if_version = if_version
    return request


def delete_request(key: Key, *, if_version: int | None) -> data_access_pb2.DeleteRequest:
    """Return the request."""
    request = data_access_pb2.DeleteRequest(key=_message_of(key))
    if if_version is not None:
        request.if_version = if_version
    return request


def key_of(message: entity_pb2.EntityKey) -> Key:
    """Return the key that a message names."""
    return Key(message.kind, message.id, message.tenant)


def entity_of(message: entity_pb2.Entity, receipt: entity_pb2.Receipt) -> Entity:
    """Return an entity that was read, with the receipt of its answer."""
    cached = receipt.HasField("cached_time")
    return Entity(
        tenant=message.key.tenant,
        kind=message.key.kind,
        id=message.key.id,
        version=message.version,
        data=from_struct(message.data),
        create_time=message.create_time.ToDatetime(UTC),
        update_time=message.update_time.ToDatetime(UTC),
        served_from=_STORES.get(receipt.served_from, Store.UNKNOWN),
        cached_time=receipt.cached_time.ToDatetime(UTC) if cached else None,
    )


def saved_of(response: data_access_pb2.SaveResponse | data_access_pb2.DeleteResponse) -> Saved:
    """Return the answer to a write."""
    return Saved(
        version=response.version,
        update_time=response.update_time.ToDatetime(UTC),
        projected=response.projection == entity_pb2.PROJECTION_DONE,
    )


def _message_of(key: Key) -> entity_pb2.EntityKey:
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def _exclusive(field: str, other: str, why: str) -> InvalidRequestError:
    return invalid_request([FieldViolation(field, f"excludes {other}: {why}")])
