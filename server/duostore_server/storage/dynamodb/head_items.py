"""The items of the snapshot table: heads, and the history below them.

A head (sk ``HEAD``) holds the newest snapshot of an entity, or the entity itself if its
kind is at home in DynamoDB. Times are microseconds since 1970, but for ``sweep_time``,
by which DynamoDB itself deletes: seconds. What a head has besides its payload:

    number       its sequence or version, raised by one with each write
    form         ``value``, or ``tombstone`` of a deleted entity
    time         when that number was written
    nonce        of the call that wrote it, 16 random bytes
    history      the last sequence that was to go into the history
    expiring     history up to this sequence has its expiry; written by settling alone
    dirty_shard, due_time    while Aurora has not been brought it

An item of the history has a payload, its ``time`` and, from when it was consolidated,
an ``expire_time``.
"""

from __future__ import annotations

import zlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

HEAD: Final = "HEAD"

NUMBER: Final = "number"
FORM: Final = "form"
TIME: Final = "time"
NONCE: Final = "nonce"
HISTORY: Final = "history"
EXPIRING: Final = "expiring"
# From then on an item is absent, whoever reads it.
EXPIRE_TIME: Final = "expire_time"

# The index of dirty heads is sparse: an item is in it for as long as it has both
# attributes. Its writes spread over so many partitions.
DIRTY_INDEX: Final = "dirty"
DIRTY_SHARD: Final = "dirty_shard"
DUE_TIME: Final = "due_time"
SHARDS: Final = 8
# DynamoDB's own TTL attribute. It sweeps days late: who reads looks at expire_time.
SWEEP_TIME: Final = "sweep_time"

_SEQUENCE_DIGITS: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def head_key(key: EntityKey) -> dict[str, AttributeValueTypeDef]:
    """Return the primary key of an entity's head."""
    return {"pk": {"S": str(key)}, "sk": {"S": HEAD}}


def history_key(key: EntityKey, sequence: int) -> dict[str, AttributeValueTypeDef]:
    """Return the primary key of a snapshot in the history; sorts below the head's, by sequence."""
    return {"pk": {"S": str(key)}, "sk": {"S": sort_key(sequence)}}


def sort_key(sequence: int) -> str:
    """Return a sequence as the sort key of a snapshot."""
    return f"{sequence:0{_SEQUENCE_DIGITS}}"


def shard_of(key: EntityKey) -> str:
    """Return the partition of the index in which a head is found while it is dirty."""
    return str(zlib.crc32(str(key).encode()) % SHARDS)


def key_of(pk: str) -> EntityKey:
    """Return the key that an item is of."""
    tenant, kind, id_ = pk.split("#", 2)
    return EntityKey(tenant, kind, id_)


def names(*attributes: str) -> dict[str, str]:
    """Return the names under which expressions may speak of attributes: ``#name`` for each.

    Many plain words, ``number`` and ``time`` among them, are DynamoDB's own.
    """
    return {f"#{attribute}": attribute for attribute in attributes}


def number(value: int) -> AttributeValueTypeDef:
    """Return a whole number as an attribute."""
    return {"N": str(value)}


def micros(time: datetime) -> int:
    """Return a time as microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def time_of(microseconds: int) -> datetime:
    """Return the time that so many microseconds since 1970 are."""
    return _EPOCH + microseconds * _MICROSECOND
