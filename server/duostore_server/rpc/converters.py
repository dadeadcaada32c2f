"""Between messages and the values of the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server.access.checks import batch_size_violation
from duostore_server.codec import plain
from duostore_server.domain.documents import most_struct_bytes
from duostore_server.domain.entities import IfAbsent, IfVersion
from duostore_server.domain.errors import (
    AnswerTooLargeError,
    FieldViolation,
    InvalidRequestError,
    Store,
)
from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import Reading, Saved
    from duostore_server.domain.policies import Policies

_Written = TypeVar("_Written", data_access_pb2.SaveResponse, data_access_pb2.DeleteResponse)

_STORES: Final = {
    Store.CACHE: entity_pb2.STORE_CACHE,
    Store.DYNAMODB: entity_pb2.STORE_DYNAMODB,
    Store.AURORA: entity_pb2.STORE_AURORA,
}
_SLOWEST_FIRST: Final = (Store.AURORA, Store.DYNAMODB, Store.CACHE)

# Field 1 (entity, or entities) with a length before it: both responses begin so.
_ENTITY_TAG: Final = b"\x0a"


def key_of(message: entity_pb2.EntityKey) -> EntityKey:
    """Return the key that a message names."""
    return EntityKey(message.tenant, message.kind, message.id)


def keys_of(request: data_access_pb2.BatchGetRequest) -> list[EntityKey]:
    """Return the keys of a batch; refused before they are read if they are too many."""
    if (violation := batch_size_violation(len(request.keys))) is not None:
        raise InvalidRequestError([violation])
    return [key_of(key) for key in request.keys]


def message_of(key: EntityKey) -> entity_pb2.EntityKey:
    """Return the message that names a key."""
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def content_of(request: data_access_pb2.SaveRequest, policies: Policies) -> JsonObject | None:
    """Return the document of a Save, numbers as floats; None if there is none.

    One that certainly is too large for its kind is refused before it is converted, which
    takes seconds for some requests of a few MiB. That of a kind which is not configured,
    and will be refused for that, is not looked at.
    """
    if not request.HasField("data"):
        return None
    policy = policies.find(key_of(request.key))
    if policy is None:
        return {}
    if request.data.ByteSize() > most_struct_bytes(policy.max_bytes):
        raise InvalidRequestError(
            [
                FieldViolation(
                    "data",
                    f"has more bytes as compact JSON than its kind allows, {policy.max_bytes}",
                )
            ]
        )
    return plain(request.data)


def precondition_of(request: data_access_pb2.SaveRequest) -> IfVersion | IfAbsent | None:
    """Return what a Save requires."""
    match request.WhichOneof("precondition"):
        case "if_version":
            return IfVersion(request.if_version)
        case "if_absent":
            if not request.if_absent:
                raise InvalidRequestError([FieldViolation("if_absent", "must be true if set")])
            return IfAbsent()
        case _:
            return None


def delete_precondition_of(request: data_access_pb2.DeleteRequest) -> IfVersion | None:
    """Return what a Delete requires."""
    if request.WhichOneof("precondition") is None:
        return None
    return IfVersion(request.if_version)


def get_response(reading: Reading) -> bytes:
    """Return the serialized GetResponse: the stored bytes as they are, then the receipt."""
    tail = data_access_pb2.GetResponse(receipt=_receipt((reading,)))
    payload = reading.payload or b""
    return b"".join((_entity_header(payload), payload, tail.SerializeToString()))


def batch_get_response(
    keys: Sequence[EntityKey], readings: Mapping[EntityKey, Reading], *, max_bytes: int
) -> bytes:
    """Return the serialized BatchGetResponse: stored bytes in the order of the request.

    Raises ``AnswerTooLargeError``, before anything is copied, if it has more than ``max_bytes``.
    """
    tail = data_access_pb2.BatchGetResponse(
        missing=[message_of(key) for key in keys if readings[key].payload is None],
        receipt=_receipt(tuple(readings.values())),
    )
    parts: list[bytes] = []
    for key in keys:
        if (payload := readings[key].payload) is not None:
            parts += (_entity_header(payload), payload)
    parts.append(tail.SerializeToString())
    size = sum(map(len, parts))
    if size > max_bytes:
        raise AnswerTooLargeError(size, max_bytes)
    return b"".join(parts)


def save_response(saved: Saved) -> data_access_pb2.SaveResponse:
    """Return the answer to a Save."""
    return _written(data_access_pb2.SaveResponse, saved)


def delete_response(saved: Saved) -> data_access_pb2.DeleteResponse:
    """Return the answer to a Delete."""
    return _written(data_access_pb2.DeleteResponse, saved)


def _written(kind: type[_Written], saved: Saved) -> _Written:
    response = kind(
        key=message_of(saved.entity.key),
        version=saved.entity.version,
        projection=(
            entity_pb2.PROJECTION_DONE if saved.projected else entity_pb2.PROJECTION_PENDING
        ),
    )
    response.update_time.FromDatetime(saved.entity.update_time)
    return response


def _receipt(readings: Sequence[Reading]) -> entity_pb2.Receipt:
    asked = {reading.served_from for reading in readings}
    slowest = next(store for store in _SLOWEST_FIRST if store in asked)
    receipt = entity_pb2.Receipt(served_from=_STORES[slowest])
    if slowest is Store.CACHE:
        oldest = min(r.cached_time for r in readings if r.cached_time is not None)
        receipt.cached_time.FromDatetime(oldest)
    return receipt


def _entity_header(payload: bytes) -> bytes:
    return _ENTITY_TAG + _varint(len(payload))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
