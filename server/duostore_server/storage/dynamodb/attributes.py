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


class UnreadableError(Exception):
    """An item is not what this folder wrote."""


def payload_of(item: Mapping[str, Any]) -> bytes:
    """Return the payload that an item holds. Raises ``UnreadableError``."""
    stored: bytes = attribute(item, PAYLOAD, "B")
    if ENCODING not in item:
        return stored
    encoding = attribute(item, ENCODING, "S")
    if encoding != ZSTD:
        raise UnreadableError(f"unknown encoding {encoding!r}")
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
