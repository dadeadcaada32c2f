"""The one place between entities, snapshots and rows, and their serialized messages.

DynamoDB and the cache hold these bytes, and a read answers with them as they are. What
is not known yet when they are stored, such as a number that DynamoDB gives, is appended
when they are read: protobuf messages concatenate, so that nothing is parsed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from struct import Struct as Layout
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import ListValue

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server.domain.documents import normalized
from duostore_server.domain.entities import Entity
from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.struct_pb2 import Struct, Value

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.queries import Result, Row
    from duostore_server.domain.snapshots import Head


# Of a row each value is field 1 of a ListValue, and each row field 2 of both answers that
# have rows; lengths stand before what they are of.
_NUMBER: Final = Layout("<BBBd")
_SHORT_TEXT: Final = 124
_NULL: Final = b"\x0a\x02\x08\x00"
_TRUE: Final = b"\x0a\x02\x20\x01"
_FALSE: Final = b"\x0a\x02\x20\x00"


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


def encode_result(result: Result) -> bytes:
    """Return the serialized QueryResponse of a whole result, without token and receipt.

    The same result always gives the same bytes.
    """
    head = data_access_pb2.QueryResponse(
        columns=[column.name for column in result.columns],
        column_types=[column.type for column in result.columns],
    )
    head.as_of.FromDatetime(result.as_of)
    return head.SerializeToString() + b"".join(map(encode_row, result.rows))


def encode_row(row: Row) -> bytes:
    """Return a row as a part of a serialized QueryResponse or ExportResponse.

    Twice as fast as by the messages of protobuf, which make an object of each value.
    """
    values = b"".join([_CELLS[type(value)](value) for value in row])
    return b"\x12%b%b" % (varint(len(values)), values)


def row_bytes(row: Row) -> int:
    """Return how many bytes a row takes in a serialized message."""
    return len(encode_row(row))


def page_of(payload: bytes, offset: int, size: int) -> tuple[bytes, int]:
    """Return a serialized QueryResponse with ``size`` rows of another, from ``offset`` on.

    And how many rows that other one has. Fewer rows are left at its end, or none.
    """
    message = data_access_pb2.QueryResponse.FromString(payload)
    total = len(message.rows)
    del message.rows[offset + size :]
    del message.rows[:offset]
    return message.SerializeToString(deterministic=True), total


def varint(number: int) -> bytes:
    """Return a length as protobuf writes it before what has that length."""
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def plain(struct: Struct) -> JsonObject:
    """Return a Struct as plain values: numbers as floats, a value that is not set as None."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def _text(value: str) -> bytes:
    raw = value.encode()
    if (size := len(raw)) < _SHORT_TEXT:
        return b"\x0a%c\x1a%c%b" % (size + 2, size, raw)
    text = b"\x1a%b%b" % (varint(size), raw)
    return b"\x0a%b%b" % (varint(len(text)), text)


def _number(value: float) -> bytes:
    return _NUMBER.pack(0x0A, 9, 0x11, value)


def _nested(value: Any) -> bytes:  # noqa: ANN401 - a list or an object of any JSON values
    values = ListValue()
    values.append(value)
    return values.SerializeToString(deterministic=True)


_CELLS: Final[Mapping[type, Callable[[Any], bytes]]] = {
    str: _text,
    int: _number,
    float: _number,
    bool: lambda value: _TRUE if value else _FALSE,
    type(None): lambda _: _NULL,
    dict: _nested,
    list: _nested,
}


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
