"""The attributes of items, read back with care: they may be anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from duostore_server.storage.compression import CorruptError, decompress

if TYPE_CHECKING:
    from collections.abc import Mapping

PAYLOAD: Final = "payload"
ENCODING: Final = "encoding"
ZSTD: Final = "zstd"

# DynamoDB refuses items past 400 KB: the UTF-8 of every attribute's name and value.
MAX_ITEM_BYTES: Final = 400 * 1024

# What DynamoDB adds to a list or a map, and to each of its elements.
_NEST_BYTES: Final = 3
_ELEMENT_BYTES: Final = 1


class UnreadableError(Exception):
    """An item is not what this folder wrote."""


def payload_of(item: Mapping[str, Any], payload: str = PAYLOAD, encoding: str = ENCODING) -> bytes:
    """Return the payload that an item holds in these attributes. Raises ``UnreadableError``."""
    stored: bytes = attribute(item, payload, "B")
    if encoding not in item:
        return stored
    encoded = attribute(item, encoding, "S")
    if encoded != ZSTD:
        raise UnreadableError(f"unknown encoding {encoded!r}")
    try:
        return decompress(stored)
    except CorruptError as error:
        raise UnreadableError(str(error)) from error


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


def stored_bytes(item: Mapping[str, Any]) -> int:
    """Return the bytes that an item takes, as DynamoDB counts them; of numbers about."""
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def _value_bytes(value: Mapping[str, Any]) -> int:
    ((kind, held),) = value.items()
    size = 1
    match kind:
        case "S":
            size = len(held.encode())
        case "B":
            size = len(held)
        case "N":
            # Two significant digits a byte, and one for sign and exponent.
            digits = held.partition("E")[0].lstrip("-").replace(".", "").strip("0")
            size = (len(digits) + 1) // 2 + 1
        case "SS" | "NS" | "BS":
            size = sum(_value_bytes({kind[0]: one}) for one in held)
        case "L":
            size = _NEST_BYTES + sum(_ELEMENT_BYTES + _value_bytes(one) for one in held)
        case "M":
            size = _NEST_BYTES + _ELEMENT_BYTES * len(held) + stored_bytes(held)
    return size
