"""Payloads in the items of the snapshot table, and how the items are read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.entities import Form
from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.storage.compression import CorruptError, compress, decompress
from duostore_server.storage.dynamodb.head_items import FORM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.items import Item

PAYLOAD: Final = "payload"
ENCODING: Final = "encoding"

# DynamoDB refuses items past 400 KB: the UTF-8 of every attribute's name and value.
_MAX_ITEM_BYTES: Final = 400 * 1024
# What a head takes beside its payload and its pk, with all attributes that it may have.
_ROOM_FOR_OTHERS: Final = 512
_ZSTD: Final = "zstd"


class UnreadableError(Exception):
    """An item is not what this folder wrote."""


def held(key: EntityKey, payload: bytes, *, compress_above: int) -> Item:
    """Return the attributes that hold a payload: ``payload``, and ``encoding`` if compressed.

    It is compressed past ``compress_above`` bytes, if that helps. Raises
    ``InvalidRequestError`` if no item has room for it.
    """
    stored, compressed = compress(payload, above=compress_above)
    room = _MAX_ITEM_BYTES - _ROOM_FOR_OTHERS - len(str(key).encode())
    if len(stored) > room:
        raise InvalidRequestError(
            [FieldViolation("data", f"takes {len(stored)} bytes as stored; at most {room} fit")]
        )
    return {PAYLOAD: {"B": stored}, **({ENCODING: {"S": _ZSTD}} if compressed else {})}


def too_large(attributes: Item) -> InvalidRequestError:
    """Return the error for attributes that DynamoDB counted otherwise than ``held``."""
    size = len(attributes[PAYLOAD]["B"])
    return InvalidRequestError(
        [FieldViolation("data", f"takes {size} bytes as stored, which DynamoDB refuses")]
    )


def payload_of(item: Mapping[str, Any]) -> bytes:
    """Return the payload that an item holds. Raises ``UnreadableError``."""
    stored: bytes = attribute(item, PAYLOAD, "B")
    if ENCODING not in item:
        return stored
    encoding = attribute(item, ENCODING, "S")
    if encoding != _ZSTD:
        raise UnreadableError(f"unknown encoding {encoding!r}")
    try:
        return decompress(stored)
    except CorruptError as error:
        raise UnreadableError(str(error)) from error


def head_payload(item: Mapping[str, Any]) -> bytes | None:
    """Return the payload of a head, None if it is a tombstone. Raises ``UnreadableError``."""
    form = attribute(item, FORM, "S")
    if form == Form.TOMBSTONE.value:
        return None
    if form != Form.VALUE.value:
        raise UnreadableError(f"unknown form {form!r}")
    return payload_of(item)


def whole(item: Mapping[str, Any], name: str) -> int:
    """Return an attribute that is a whole number, at least 0. Raises ``UnreadableError``."""
    text: str = attribute(item, name, "N")
    # DynamoDB would show others as -1, 1.5 or 1E+30.
    if not text.isdecimal():
        raise UnreadableError(f"{name} {text!r}")
    return int(text)


def attribute(item: Mapping[str, Any], name: str, kind: str) -> Any:  # noqa: ANN401 - str or bytes
    """Return an attribute's value, of DynamoDB's type ``kind``. Raises ``UnreadableError``."""
    try:
        return item[name][kind]
    except KeyError:
        found = "missing" if name not in item else f"of type {'/'.join(item[name])}"
        raise UnreadableError(f"attribute {name!r} is {found}") from None
