"""Payloads in the items of the snapshot table, and how the items are read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.entities import Form
from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.storage.compression import compress
from duostore_server.storage.dynamodb.attributes import (
    ENCODING,
    MAX_ITEM_BYTES,
    PAYLOAD,
    ZSTD,
    UnreadableError,
    attribute,
    payload_of,
)
from duostore_server.storage.dynamodb.head_items import FORM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.items import Item

# What a head takes beside its payload and its pk, with all attributes that it may have.
_ROOM_FOR_OTHERS: Final = 512


def held(key: EntityKey, payload: bytes, *, compress_above: int) -> Item:
    """Return the attributes that hold a payload: ``payload``, and ``encoding`` if compressed.

    It is compressed past ``compress_above`` bytes, if that helps. Raises
    ``InvalidRequestError`` if no item has room for it.
    """
    stored, compressed = compress(payload, above=compress_above)
    room = MAX_ITEM_BYTES - _ROOM_FOR_OTHERS - len(str(key).encode())
    if len(stored) > room:
        raise InvalidRequestError(
            [FieldViolation("data", f"takes {len(stored)} bytes as stored; at most {room} fit")]
        )
    return {PAYLOAD: {"B": stored}, **({ENCODING: {"S": ZSTD}} if compressed else {})}


def too_large(attributes: Item) -> InvalidRequestError:
    """Return the error for attributes that DynamoDB counted otherwise than ``held``."""
    size = len(attributes[PAYLOAD]["B"])
    return InvalidRequestError(
        [FieldViolation("data", f"takes {size} bytes as stored, which DynamoDB refuses")]
    )


def head_payload(item: Mapping[str, Any]) -> bytes | None:
    """Return the payload of a head, None if it is a tombstone. Raises ``UnreadableError``."""
    form = attribute(item, FORM, "S")
    if form == Form.TOMBSTONE.value:
        return None
    if form != Form.VALUE.value:
        raise UnreadableError(f"unknown form {form!r}")
    return payload_of(item)
