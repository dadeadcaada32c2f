"""The one place between an entity and the serialized ``duostore.v1.Entity``.

DynamoDB and the cache hold these bytes, and a Get answers with them as they are.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from duostore.v1 import entity_pb2
from duostore_server.domain.documents import normalized
from duostore_server.domain.entities import Entity
from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct, Value

    from duostore_server.domain.documents import JsonObject


def encode(entity: Entity) -> bytes:
    """Return the serialized Entity of a version that is no tombstone.

    The same entity always gives the same bytes.
    """
    key = entity.key
    message = entity_pb2.Entity(
        key=entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id),
        version=entity.version,
    )
    message.data.update(entity.data or {})
    message.create_time.FromDatetime(entity.create_time)
    message.update_time.FromDatetime(entity.update_time)
    return message.SerializeToString(deterministic=True)


def decode(payload: bytes) -> Entity:
    """Return the entity of a payload.

    Raises ``google.protobuf.message.DecodeError`` if it is none.
    """
    message = entity_pb2.Entity.FromString(payload)
    return Entity(
        key=EntityKey(message.key.tenant, message.key.kind, message.key.id),
        version=message.version,
        data=normalized(plain(message.data)),
        create_time=_utc(message.create_time.ToDatetime()),
        update_time=_utc(message.update_time.ToDatetime()),
    )


def plain(struct: Struct) -> JsonObject:
    """Return a Struct as plain values: numbers as floats, a value that is not set as None."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def _plain(value: Value) -> Any:  # noqa: ANN401 - any JSON value
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None


def _utc(naive: datetime) -> datetime:
    return naive.replace(tzinfo=UTC)
