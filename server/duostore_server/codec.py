"""The one place between entities and snapshots and their serialized messages.

DynamoDB and the cache hold these bytes, and a read answers with them as they are. What
is not known yet when they are stored, such as a number that DynamoDB gives, is appended
when they are read: protobuf messages concatenate, so that nothing is parsed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from duostore.v1 import entity_pb2
from duostore_server.domain.documents import normalized
from duostore_server.domain.entities import Entity
from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct, Value

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.snapshots import Head


def encode(entity: Entity) -> bytes:
    """Return the serialized Entity of a version that is no tombstone.

    The same entity always gives the same bytes.
    """
    message = entity_pb2.Entity(key=_message_of(entity.key), version=entity.version)
    _fill(message.data, entity.data or {})
    message.create_time.FromDatetime(entity.create_time)
    message.update_time.FromDatetime(entity.update_time)
    return message.SerializeToString(deterministic=True)


def decode(payload: bytes) -> Entity:
    """Return the entity of a payload.

    Raises ``ValueError`` if it is none.
    """
    message = _parsed(payload)
    return Entity(
        key=EntityKey(message.key.tenant, message.key.kind, message.key.id),
        version=message.version,
        data=_document(message.data),
        create_time=_utc(message.create_time.ToDatetime()),
        update_time=_utc(message.update_time.ToDatetime()),
    )


def encode_head(key: EntityKey, data: JsonObject) -> bytes:
    """Return the serialized Entity of a document, without version and times.

    The same document always gives the same bytes. ``head_entity`` adds the rest.
    """
    message = entity_pb2.Entity(key=_message_of(key))
    _fill(message.data, data)
    return message.SerializeToString(deterministic=True)


def head_entity(payload: bytes, head: Head) -> bytes:
    """Return the whole serialized Entity: ``payload``, then the head's version and times."""
    rest = entity_pb2.Entity(version=head.version)
    rest.create_time.FromDatetime(head.create_time)
    rest.update_time.FromDatetime(head.update_time)
    return payload + rest.SerializeToString(deterministic=True)


def encode_snapshot(key: EntityKey, data: JsonObject, time: datetime) -> bytes:
    """Return the serialized EntitySnapshot of a document, without its sequence.

    The same snapshot always gives the same bytes. ``numbered`` adds the sequence.
    """
    message = entity_pb2.EntitySnapshot(key=_message_of(key))
    _fill(message.data, data)
    message.snapshot_time.FromDatetime(time)
    return message.SerializeToString(deterministic=True)


def numbered(payload: bytes, sequence: int) -> bytes:
    """Return the whole serialized EntitySnapshot: ``payload``, then its sequence."""
    return payload + entity_pb2.EntitySnapshot(sequence=sequence).SerializeToString()


def document_of(payload: bytes) -> JsonObject:
    """Return the document of a serialized Entity or EntitySnapshot, whole or not yet.

    Raises ``ValueError`` if it is neither.
    """
    # Both messages have the document in the same field.
    return _document(_parsed(payload).data)


def plain(struct: Struct) -> JsonObject:
    """Return a Struct as plain values: numbers as floats, a value that is not set as None."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def _parsed(payload: bytes) -> entity_pb2.Entity:
    try:
        return entity_pb2.Entity.FromString(payload)
    except DecodeError as error:
        raise ValueError("not a serialized Entity or EntitySnapshot") from error


def _message_of(key: EntityKey) -> entity_pb2.EntityKey:
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def _fill(struct: Struct, data: JsonObject) -> None:
    # An empty document is one all the same: who reads it can save it again.
    struct.SetInParent()
    struct.update(data)


def _document(struct: Struct) -> JsonObject:
    document: JsonObject = normalized(plain(struct))
    return document


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
