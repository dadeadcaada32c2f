"""The items of snapshots: how the head and the history are written and read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from duostore_server.domain.entities import Form
from duostore_server.domain.snapshots import StoredSnapshot
from duostore_server.storage.dynamodb.attributes import (
    ENCODING,
    PAYLOAD,
    UnreadableError,
    payload_of,
    whole,
)
from duostore_server.storage.dynamodb.head_items import (
    DIRTY_SHARD,
    DUE_TIME,
    EXPIRE_TIME,
    FORM,
    HEAD,
    HISTORY,
    NONCE,
    NUMBER,
    SWEEP_TIME,
    TIME,
    head_key,
    history_key,
    micros,
    names,
    number,
    shard_of,
    time_of,
)
from duostore_server.storage.dynamodb.head_payloads import head_payload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import TypedDict

    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.items import Item, Unreadable

    class Update(TypedDict):
        """What ``UpdateItem`` and an ``Update`` of a transaction both take."""

        TableName: str
        Key: Mapping[str, AttributeValueTypeDef]
        UpdateExpression: str
        ExpressionAttributeNames: Mapping[str, str]
        ExpressionAttributeValues: Mapping[str, AttributeValueTypeDef]


@dataclass(frozen=True, slots=True)
class Append:
    """A snapshot on its way into the table.

    ``held`` are the attributes that hold its payload. It is due at ``due_time`` if its
    head is not due before. ``nonce`` is new with each append, and the same in all calls
    that are made for it.
    """

    key: EntityKey
    held: Item = field(repr=False)
    time: datetime
    due_time: datetime
    nonce: bytes = field(repr=False)
    in_history: bool


@dataclass(frozen=True, slots=True)
class HistoryPut:
    """A snapshot on its way into the history."""

    pk: str
    sk: str
    item: Item = field(compare=False, repr=False)

    @property
    def payload_bytes(self) -> int:
        """Return the size of the payload, as stored."""
        return len(self.item[PAYLOAD]["B"])


def head_update(table: str, append: Append, operand: str, numbers: Item) -> Update:
    """Return the update that makes a snapshot the head.

    Its number is to be ``operand``, of the values ``numbers``.
    """
    assigned: Item = {
        FORM: {"S": Form.VALUE.value},
        TIME: number(micros(append.time)),
        NONCE: {"B": append.nonce},
        DIRTY_SHARD: {"S": shard_of(append.key)},
        **append.held,
    }
    # What was at home here, before its kind moved, may have had an end; a snapshot has none.
    removed = [name for name in (ENCODING, EXPIRE_TIME, SWEEP_TIME) if name not in assigned]
    settings = [f"#{NUMBER} = {operand}", f"#{DUE_TIME} = if_not_exists(#{DUE_TIME}, :{DUE_TIME})"]
    settings += [f"#{name} = :{name}" for name in assigned]
    numbered = (NUMBER, HISTORY) if append.in_history else (NUMBER,)
    settings += [f"#{name} = {operand}" for name in numbered[1:]]
    return {
        "TableName": table,
        "Key": head_key(append.key),
        "UpdateExpression": (
            f"SET {', '.join(settings)} REMOVE {', '.join(f'#{name}' for name in removed)}"
        ),
        "ExpressionAttributeNames": names(*numbered, DUE_TIME, *assigned, *removed),
        "ExpressionAttributeValues": {
            **{f":{name}": value for name, value in assigned.items()},
            f":{DUE_TIME}": number(micros(append.due_time)),
            **numbers,
        },
    }


def history_put(append: Append, sequence: int) -> HistoryPut:
    """Return the put of a snapshot that is, or is to be, the head with this sequence."""
    item: Item = {
        **history_key(append.key, sequence),
        TIME: number(micros(append.time)),
        **append.held,
    }
    return HistoryPut(item["pk"]["S"], item["sk"]["S"], item)


def is_over(item: Mapping[str, Any], now: datetime) -> bool:
    """Return whether an item has expired by ``now``; raises ``UnreadableError``."""
    return EXPIRE_TIME in item and whole(item, EXPIRE_TIME) <= micros(now)


def decode_snapshot(
    key: EntityKey, item: Mapping[str, Any], now: datetime, unreadable: Unreadable
) -> StoredSnapshot | None:
    """Return the snapshot that an item of the table holds, None if it has expired by ``now``.

    None too for a tombstone, and for what cannot be read, which ``unreadable`` is told.
    """
    sequence = 0
    try:
        if is_over(item, now):
            return None
        is_head = item["sk"]["S"] == HEAD
        sequence = whole(item, NUMBER) if is_head else int(item["sk"]["S"])
        payload = head_payload(item) if is_head else payload_of(item)
        if payload is None:
            return None
        return StoredSnapshot(sequence, payload, time_of(whole(item, TIME)))
    except (OverflowError, UnreadableError, ValueError) as error:
        unreadable(key, sequence, str(error))
        return None
