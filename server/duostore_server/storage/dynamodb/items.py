"""The item of the projection table: how a projection is laid out in DynamoDB.

    pk           ``tenant#kind#id``
    version      of the entity
    form         ``value``, ``tombstone`` or ``stub``
    payload, encoding, crc              shape 1 of a value
    payload_N, encoding_N, crc_N, version_N
                                        a later shape N, if ``version_N`` is ``version``

All shapes are in one item, so that the condition on its version guards each of them. What
raises ``version`` and knows nothing of shape N, an older release say, leaves that one behind;
it is told by its version, and is as good as not there.

``crc`` is the CRC-32 of what the payload belongs to and of its bytes as they are stored: what
somebody else has put there, be it the payload of another item, is not answered to readers. An item
without it is taken as it is.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from duostore_server.domain.entities import AS_SAVED, Form, Projection
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
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from duostore_server.domain.keys import EntityKey

    Item: TypeAlias = dict[str, AttributeValueTypeDef]

# Told the key of an item that cannot be read, the version that it shows (or 0), and
# what is wrong with it.
Unreadable: TypeAlias = "Callable[[EntityKey, int, str], None]"

# What a number may take: 38 digits, two a byte, and one for sign and exponent; and
# one more.
_NUMBER_BYTES: Final = 21

_VERSION: Final = "version"
_CHECK: Final = "crc"
_LATER_PAYLOAD: Final = re.compile(rf"{PAYLOAD}_([2-9]|[1-9][0-9]{{1,2}})")


def attributes_of(shape: int) -> tuple[str, ...]:
    """Return the names of a shape's attributes: payload, encoding, crc; of a later one version."""
    if shape == AS_SAVED:
        return PAYLOAD, ENCODING, _CHECK
    return tuple(f"{name}_{shape}" for name in (PAYLOAD, ENCODING, _CHECK, _VERSION))


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

    Each payload of more than ``compress_above`` bytes is compressed if that helps.
    """
    write = Write(key, projection, _head(key, projection))
    for shape, payload in _payloads(projection):
        holds, encoded, check, *versions = attributes_of(shape)
        stored, compressed = compress(payload, above=compress_above)
        write.item[holds] = {"B": stored}
        write.item[check] = {"N": str(_check(str(key), projection.version, shape, stored))}
        if compressed:
            write.item[encoded] = {"S": ZSTD}
        write.item.update(dict.fromkeys(versions, write.item[_VERSION]))
    return write if write.size <= MAX_ITEM_BYTES else stub(write)


def _payloads(projection: Projection) -> Iterator[tuple[int, bytes]]:
    if projection.payload is not None:
        yield AS_SAVED, projection.payload
    yield from projection.later


def stub(write: Write) -> Write:
    """Return the write that says of the same version that the authority has to be read."""
    projection = Projection(write.projection.version, Form.STUB)
    return Write(write.key, projection, _head(write.key, projection))


def _head(key: EntityKey, projection: Projection) -> Item:
    """Return the attributes that every item has."""
    return {
        "pk": {"S": str(key)},
        _VERSION: {"N": str(projection.version)},
        "form": {"S": projection.form.value},
    }


def _check(pk: str, version: int, shape: int, stored: bytes) -> int:
    """Return the check of a payload as it is stored, of one shape of one version of an entity."""
    # A key holds no control characters, so that this is the same of nothing else.
    return zlib.crc32(stored, zlib.crc32(f"{pk}\0{version}\0{shape}".encode()))


def decode(
    key: EntityKey, item: Mapping[str, Any], unreadable: Unreadable, *, checked: bool = True
) -> Projection:
    """Return the projection that an item holds.

    An item that cannot be read is a ``Form.STUB`` with the version it shows, or 0, so
    that the authority is asked; ``unreadable`` is told. Unless it is to be ``checked``, what
    is there is returned though it is not what was put.
    """
    version = 0
    try:
        version = _version(item)
        projection = _projection(version, item)
        if checked:
            _verify(str(key), version, item, projection.shapes)
    except UnreadableError as error:
        unreadable(key, version, str(error))
        return Projection(version, Form.STUB)
    return projection


def _verify(pk: str, version: int, item: Mapping[str, Any], shapes: Iterable[int]) -> None:
    """Raise ``UnreadableError`` if a payload is not the one whose check there is."""
    for shape in shapes:
        holds, _, check, *_ = attributes_of(shape)
        if check in item and whole(item, check) != _check(pk, version, shape, item[holds]["B"]):
            raise UnreadableError(f"{holds} is not what was put: {check} differs")


def _projection(version: int, item: Mapping[str, Any]) -> Projection:
    form = attribute(item, "form", "S")
    if form == Form.TOMBSTONE.value:
        return Projection(version, Form.TOMBSTONE)
    if form == Form.STUB.value:
        return Projection(version, Form.STUB)
    if form != Form.VALUE.value:
        raise UnreadableError(f"unknown form {form!r}")
    later = tuple(
        (shape, payload_of(item, *attributes_of(shape)[:2])) for shape in later_shapes(item)
    )
    first = None if later and PAYLOAD not in item else payload_of(item)
    return Projection(version, Form.VALUE, first, later)


def later_shapes(item: Mapping[str, Any]) -> list[int]:
    """Return the later shapes that an item has of its own version, in rising order."""
    version = item.get(_VERSION)
    return sorted(
        shape for shape in shapes_in(item) if item.get(attributes_of(shape)[-1]) == version
    )


def shapes_in(item: Mapping[str, Any]) -> list[int]:
    """Return the later shapes that an item has payloads of, left behind or not."""
    return [int(found[1]) for name in item if (found := _LATER_PAYLOAD.fullmatch(name))]


def _version(item: Mapping[str, Any]) -> int:
    version = whole(item, _VERSION)
    if version == 0:
        raise UnreadableError("version 0")
    return version
