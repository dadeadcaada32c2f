"""The item of the projection table: how a projection is laid out in DynamoDB."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from duostore_server.domain.entities import Form, Projection
from duostore_server.storage.compression import compress
from duostore_server.storage.dynamodb.attributes import (
    ENCODING,
    MAX_ITEM_BYTES,
    PAYLOAD,
    ZSTD,
    UnreadableError,
    attribute,
    payload_of,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from duostore_server.domain.keys import EntityKey

    Item: TypeAlias = dict[str, AttributeValueTypeDef]

# Told the key of an item that cannot be read, the version that it shows (or 0), and
# what is wrong with it.
Unreadable: TypeAlias = "Callable[[EntityKey, int, str], None]"

# What a number may take: 38 digits, two a byte, and one for sign and exponent; and
# one more.
_NUMBER_BYTES: Final = 21


@dataclass(frozen=True, slots=True)
class Write:
    """A projection on its way into the table, in the form in which it will be held."""

    key: EntityKey
    projection: Projection
    item: Item = field(compare=False, repr=False)

    @property
    def size(self) -> int:
        """Return an upper bound of the bytes that DynamoDB counts for the item."""
        return sum(
            len(name.encode())
            + len(value.get("S", "").encode())
            + len(value.get("B", b""))
            + (_NUMBER_BYTES if "N" in value else 0)
            for name, value in self.item.items()
        )


def encode(key: EntityKey, projection: Projection, *, compress_above: int) -> Write:
    """Return the write that holds a projection, or its stub if it is too large for an item.

    A payload of more than ``compress_above`` bytes is compressed if that helps.
    """
    write = Write(key, projection, _head(key, projection))
    if projection.payload is None:
        return write
    payload, compressed = compress(projection.payload, above=compress_above)
    write.item[PAYLOAD] = {"B": payload}
    if compressed:
        write.item[ENCODING] = {"S": ZSTD}
    return write if write.size <= MAX_ITEM_BYTES else stub(write)


def stub(write: Write) -> Write:
    """Return the write that says of the same version that the authority has to be read."""
    projection = Projection(write.projection.version, Form.STUB)
    return Write(write.key, projection, _head(write.key, projection))


def _head(key: EntityKey, projection: Projection) -> Item:
    """Return the attributes that every item has."""
    return {
        "pk": {"S": str(key)},
        "version": {"N": str(projection.version)},
        "form": {"S": projection.form.value},
    }


def decode(key: EntityKey, item: Mapping[str, Any], unreadable: Unreadable) -> Projection:
    """Return the projection that an item holds.

    An item that cannot be read is a ``Form.STUB`` with the version it shows, or 0, so
    that the authority is asked; ``unreadable`` is told.
    """
    version = 0
    try:
        version = _version(item)
        return _projection(version, item)
    except UnreadableError as error:
        unreadable(key, version, str(error))
        return Projection(version, Form.STUB)


def _projection(version: int, item: Mapping[str, Any]) -> Projection:
    form = attribute(item, "form", "S")
    if form == Form.TOMBSTONE.value:
        return Projection(version, Form.TOMBSTONE)
    if form == Form.STUB.value:
        return Projection(version, Form.STUB)
    if form != Form.VALUE.value:
        raise UnreadableError(f"unknown form {form!r}")
    return Projection(version, Form.VALUE, payload_of(item))


def _version(item: Mapping[str, Any]) -> int:
    version = whole(item, "version")
    if version == 0:
        raise UnreadableError("version 0")
    return version
