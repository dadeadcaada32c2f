"""The port ``ProjectionItems`` on DynamoDB."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from duostore_server.domain.admin_ports import HeldItem, ItemPage
from duostore_server.storage.dynamodb.asking import Patience
from duostore_server.storage.dynamodb.attributes import stored_bytes
from duostore_server.storage.dynamodb.batch_get import get_items
from duostore_server.storage.dynamodb.coalescer import Direct
from duostore_server.storage.dynamodb.errors import CONDITION_FAILED, ErrorEdge, error_code
from duostore_server.storage.dynamodb.head_items import key_of
from duostore_server.storage.dynamodb.items import decode, encode, stub
from duostore_server.storage.dynamodb.replacing import exactly
from duostore_server.storage.dynamodb.table import MAX_KEYS
from duostore_server.storage.dynamodb.tables import projection_table
from duostore_server.storage.dynamodb.transact import is_too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import ScanInputTypeDef

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.items import Write
    from duostore_server.storage.dynamodb.replacing import Condition

# A part of the table is looked into, and if it holds too little, a part of a larger size:
# the first are so small that one of them has few items even of a huge table.
_PARTS: Final = (1_000_000, 100_000, 10_000, 1_000, 100)
# Of so many, at most, one after the other is looked into.
_LAST_PARTS: Final = 16


class DynamoProjectionItems:
    """Looks at items and replaces them, from its caller's thread, off the request path.

    A call that has begun is bounded by the client's timeouts, not by the deadline.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        *,
        prefix: str,
        compress_above: int = 1024,
        timeout: float = 1.0,
        choose: Callable[[int], int] = random.randrange,
    ) -> None:
        """``choose`` returns a random number below the given one, and not below 0.

        ``timeout`` is in seconds, for each of the calls and its repetitions.
        """
        self._client = client
        self._table = projection_table(prefix)
        self._edge = ErrorEdge()
        self._compress_above = compress_above
        self._timeout = timeout
        self._patience = Patience(timeout)
        self._reads = Direct(self._fetch, max_batch=MAX_KEYS)
        self._choose = choose

    def inspect(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, HeldItem]:
        wanted = list(dict.fromkeys(keys))
        held: dict[EntityKey, HeldItem] = {}
        # One call's worth at a time: each has the time of one.
        for start in range(0, len(wanted), MAX_KEYS):
            lot = wanted[start : start + MAX_KEYS]
            found = self._patience.gather(self._reads, lot, deadline)
            held |= {key: _held(key, item) for key, item in found.items() if item is not None}
        return held

    def replace(self, found: HeldItem, by: Projection | None, deadline: Deadline) -> bool:
        deadline.bound(self._timeout)
        unchanged = exactly(found.raw, by)
        if by is None:
            return self._delete(found.key, unchanged)
        return self._put(encode(found.key, by, compress_above=self._compress_above), unchanged)

    def fits(self, key: EntityKey, projection: Projection) -> bool:
        write = encode(key, projection, compress_above=self._compress_above)
        return write.projection == projection

    def page(self, start: str | None, limit: int, deadline: Deadline) -> ItemPage:
        scan: ScanInputTypeDef = {
            "TableName": self._table,
            "ConsistentRead": True,
            "Limit": limit,
        }
        if start is not None:
            scan["ExclusiveStartKey"] = {"pk": {"S": start}}
        return self._scan(scan, deadline)

    def sample(self, limit: int, deadline: Deadline) -> Sequence[HeldItem]:
        found: dict[EntityKey, HeldItem] = {}
        for part, parts in self._parts():
            page = self._scan(
                {
                    "TableName": self._table,
                    "ConsistentRead": True,
                    "Limit": limit,
                    "Segment": part,
                    "TotalSegments": parts,
                },
                deadline,
            )
            found |= {item.key: item for item in page.items}
            if len(found) >= limit:
                break
        return list(found.values())[:limit]

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Yield parts of the table, each as its number and how many there are, larger and larger.

        A part begins at the same place whoever looks into it. So it is chosen into how many
        the table is divided as well, and any item may be the first of one. The last parts
        yielded are all of one division: together the whole table.
        """
        for most in _PARTS:
            parts = most - self._choose(most // 2)
            yield self._choose(parts), parts
        parts = _LAST_PARTS - self._choose(_LAST_PARTS // 2)
        first = self._choose(parts)
        for turn in range(parts):
            yield (first + turn) % parts, parts

    def _fetch(self, keys: Sequence[EntityKey]) -> dict[EntityKey, Mapping[str, Any] | None]:
        return get_items(
            self._client, self._edge, self._table, {key: {"pk": {"S": str(key)}} for key in keys}
        )

    def _scan(self, scan: ScanInputTypeDef, deadline: Deadline) -> ItemPage:
        deadline.bound(self._timeout)
        with self._edge.translated():
            response = self._client.scan(**scan)
        items = [_held(key, item) for item in response["Items"] if (key := _key(item)) is not None]
        last = response.get("LastEvaluatedKey")
        return ItemPage(items, None if last is None else last["pk"]["S"])

    def _put(self, write: Write, unchanged: Condition) -> bool:
        with self._edge.translated():
            try:
                self._client.put_item(
                    TableName=self._table,
                    Item=write.item,
                    ConditionExpression=unchanged.expression,
                    ExpressionAttributeNames=unchanged.names,
                    ExpressionAttributeValues=unchanged.values,
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
            except ClientError as error:
                if error_code(error) == CONDITION_FAILED:
                    # If the put had succeeded, its reply was lost and it was sent again.
                    return bool(error.response.get("Item") == write.item)
                if is_too_large(error) and (small := stub(write)).item != write.item:
                    return self._put(small, unchanged)
                raise
        return True

    def _delete(self, key: EntityKey, unchanged: Condition) -> bool:
        with self._edge.translated():
            try:
                self._client.delete_item(
                    TableName=self._table,
                    Key={"pk": {"S": str(key)}},
                    ConditionExpression=unchanged.expression,
                    ExpressionAttributeNames=unchanged.names,
                    ExpressionAttributeValues=unchanged.values,
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
            except ClientError as error:
                if error_code(error) == CONDITION_FAILED:
                    return "Item" not in error.response
                raise
        return True


def _held(key: EntityKey, item: Mapping[str, Any]) -> HeldItem:
    faults: list[str] = []
    projection = decode(key, item, lambda _key, _version, fault: faults.append(fault))
    if faults:
        # What was changed by hand can be told by path, if it can be read at all.
        projection = decode(key, item, lambda *_: None, checked=False)
    return HeldItem(key, projection, "".join(faults), stored_bytes(item), item)


def _key(item: Mapping[str, Any]) -> EntityKey | None:
    """Return the key that an item is of, None if no entity can have it."""
    try:
        key = key_of(item["pk"]["S"])
    except ValueError:
        return None
    return key if key.kind and key.id else None
