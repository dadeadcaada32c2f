"""The bytes of a cache value.

Each starts with the same header, numbers big-endian: magic (1 byte), format (1), kind (1),
flags (1), size of what follows the header (4), version (8), cached time in ms since
1970 (8), expire time in µs since 1970 or 0 if there is none (8). What follows is the
payload, zstd-compressed if flagged, or a lease's nonce. Bit 0 of the flags is set if it is
compressed; the others are the shape - 1. So entries of shape 1 have the flags that they had
when there was no other, and a release that knows no other cannot read the others' entries.

A hit costs one unpack and one slice, or one decompression. The header has no checksum:
TCP and memory have theirs, and a hit is paid for thousands of times a second. The size
is there since a shortened payload would otherwise pass for a whole one.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.domain.entities import AS_SAVED, Cached, Lease
from duostore_server.storage.cache.leases import NONCE_BYTES
from duostore_server.storage.compression import CorruptError, compress, decompress

if TYPE_CHECKING:
    from collections.abc import Sequence

# The number of this layout. It is part of every memcached key too: see keys.py.
FORMAT: Final = 2

HEADER_BYTES: Final = 32

# Not zero, and no letter or digit: neither an empty value nor a text is taken for an entry.
_MAGIC: Final = 0xD5
_HEADER: Final = struct.Struct(">BBBBIqqq")

_VALUE: Final = 1
_ABSENT: Final = 2
_LEASE: Final = 3

_PLAIN: Final = 0
_COMPRESSED: Final = 1
_SHAPE_SHIFT: Final = 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_LAST: Final = datetime.max.replace(tzinfo=UTC) - _EPOCH
_LAST_MILLISECOND: Final = _LAST // _MILLISECOND
_LAST_MICROSECOND: Final = _LAST // _MICROSECOND
_NEVER: Final = 0


def encode(entry: Cached | Lease, *, compress_above: int) -> bytes:
    """Return the bytes that ``decode`` takes back.

    The cached time loses what is below a millisecond. Payloads of more than
    ``compress_above`` bytes are compressed if that makes them smaller.
    """
    if isinstance(entry, Lease):
        return _pack(_LEASE, _PLAIN, 0, (0, _NEVER), entry.nonce)
    times = (entry.cached_time - _EPOCH) // _MILLISECOND, _expire_micros(entry.expire_time)
    if entry.payload is None:
        return _pack(_ABSENT, _flags(entry.shape), entry.version, times, b"")
    body, compressed = compress(entry.payload, above=compress_above)
    flags = _flags(entry.shape, _COMPRESSED if compressed else _PLAIN)
    return _pack(_VALUE, flags, entry.version, times, body)


def decode(raw: bytes) -> Cached | Lease | None:
    """Return the entry, or None if the bytes are not one that ``encode`` made.

    Never raises, whatever the bytes are.
    """
    if len(raw) < HEADER_BYTES:
        return None
    magic, layout, kind, flags, size, version, *times = _HEADER.unpack_from(raw)
    if magic != _MAGIC or layout != FORMAT or size != len(raw) - HEADER_BYTES:
        return None
    if kind == _LEASE:
        return Lease(raw[HEADER_BYTES:]) if size == NONCE_BYTES and flags == _PLAIN else None
    return _cached(kind, flags, version, times, raw[HEADER_BYTES:])


def _cached(
    kind: int, flags: int, version: int, times: Sequence[int], body: bytes
) -> Cached | None:
    payload = None
    compressed = flags & _COMPRESSED
    if kind == _VALUE and version >= 1:
        try:
            payload = decompress(body) if compressed else body
        except CorruptError:
            return None
    elif not (kind == _ABSENT and version >= 0 and not compressed and not body):
        return None
    cached_ms, expire_micros = times
    if not (0 <= cached_ms <= _LAST_MILLISECOND and 0 <= expire_micros <= _LAST_MICROSECOND):
        return None
    return Cached(
        version,
        payload,
        _EPOCH + timedelta(milliseconds=cached_ms),
        None if expire_micros == _NEVER else _EPOCH + timedelta(microseconds=expire_micros),
        (flags >> _SHAPE_SHIFT) + AS_SAVED,
    )


def _flags(shape: int, compression: int = _PLAIN) -> int:
    return shape - AS_SAVED << _SHAPE_SHIFT | compression


def _expire_micros(expire_time: datetime | None) -> int:
    if expire_time is None:
        return _NEVER
    # What expired in 1970 or before has expired.
    return max(1, (expire_time - _EPOCH) // _MICROSECOND)


def _pack(kind: int, flags: int, version: int, times: tuple[int, int], body: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, FORMAT, kind, flags, len(body), version, *times) + body
