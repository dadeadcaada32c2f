"""The port ``DirtyHeads`` on DynamoDB."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from duostore_server.domain.errors import Store, StoreOverloadedError
from duostore_server.domain.snapshots import DirtyHead, DueHeads
from duostore_server.storage.dynamodb.asking import Patience
from duostore_server.storage.dynamodb.attributes import UnreadableError, whole
from duostore_server.storage.dynamodb.batch_get import get_items
from duostore_server.storage.dynamodb.coalescer import Direct
from duostore_server.storage.dynamodb.errors import (
    CONDITION_FAILED,
    CONFLICT,
    ErrorEdge,
    error_code,
)
from duostore_server.storage.dynamodb.expiries import MAX_TOGETHER, Expiries
from duostore_server.storage.dynamodb.head_items import (
    DIRTY_INDEX,
    DIRTY_SHARD,
    DUE_TIME,
    EXPIRE_TIME,
    EXPIRING,
    HISTORY,
    NUMBER,
    SHARDS,
    TIME,
    head_key,
    key_of,
    micros,
    names,
    number,
    shard_of,
    time_of,
)
from duostore_server.storage.dynamodb.head_payloads import head_payload
from duostore_server.storage.dynamodb.idempotency import utc_now
from duostore_server.storage.dynamodb.tables import snapshot_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import QueryInputTypeDef

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.items import Item, Unreadable

# So many heads of 400 KB are the 16 MB that one call may answer.
_MAX_HEADS: Final = 40
# Sequences that one call of ``settle`` looks at; what is left is due again at once.
_MAX_EXPIRED: Final = 40 * MAX_TOGETHER
# Of the time of ``settle``; the rest is for the head, so that what was done is known.
_EXPIRING_SHARE: Final = 0.7
# A head that cannot be read would be found again and again, before all others.
_UNREADABLE_AGAIN_AFTER: Final = timedelta(hours=1)


class DynamoDirtyHeads:
    """Finds and settles dirty heads, from its caller's thread.

    A call that has begun is bounded by the client's timeouts, not by the deadline. A head
    that cannot be read is told to ``unreadable``, passed over, and due again in an hour.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        *,
        prefix: str,
        unreadable: Unreadable,
        timeout: float = 1.0,
        statements: bool = True,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """``timeout`` is in seconds, for each of the calls and its repetitions.

        ``statements`` off keeps to single updates, for a DynamoDB that has no PartiQL.
        """
        self._client = client
        self._table = snapshot_table(prefix)
        self._edge = ErrorEdge()
        self._unreadable = unreadable
        self._timeout = timeout
        self._patience = Patience(timeout)
        self._heads = Direct(self._fetch, max_batch=_MAX_HEADS)
        self._expiries = Expiries(client, table=self._table, edge=self._edge, statements=statements)
        self._now = now
        self._turns = count()

    def due(self, limit: int, deadline: Deadline) -> DueHeads:
        now = self._now()
        first = next(self._turns)
        keys: list[EntityKey] = []
        # Each time another shard comes first, so that none waits for ever behind the others.
        for turn in range(SHARDS):
            keys += self._keys_in((first + turn) % SHARDS, now, limit - len(keys), deadline)
        more = len(keys) >= limit
        heads: list[DirtyHead] = []
        for start in range(0, len(keys), _MAX_HEADS):
            if start and deadline.is_over():
                more = True
                break
            lot = keys[start : start + _MAX_HEADS]
            found = self._patience.gather(self._heads, lot, deadline)
            heads += [head for key in lot if (head := self._dirty(key, found[key], now))]
        return DueHeads(heads, more)

    def _keys_in(
        self, shard: int, now: datetime, limit: int, deadline: Deadline
    ) -> list[EntityKey]:
        """Return keys whose heads are, or were a moment ago, due; those that were first."""
        query: QueryInputTypeDef = {
            "TableName": self._table,
            "IndexName": DIRTY_INDEX,
            "KeyConditionExpression": f"#{DIRTY_SHARD} = :shard AND #{DUE_TIME} <= :now",
            "ExpressionAttributeNames": names(DIRTY_SHARD, DUE_TIME),
            "ExpressionAttributeValues": {
                ":shard": {"S": str(shard)},
                ":now": number(micros(now)),
            },
        }
        keys: list[EntityKey] = []
        while len(keys) < limit:
            deadline.bound(self._timeout)
            query["Limit"] = limit - len(keys)
            with self._edge.translated():
                response = self._client.query(**query)
            keys += [key_of(item["pk"]["S"]) for item in response["Items"]]
            if "LastEvaluatedKey" not in response:
                break
            query["ExclusiveStartKey"] = response["LastEvaluatedKey"]
        return keys

    def _fetch(self, keys: Sequence[EntityKey]) -> dict[EntityKey, Mapping[str, Any] | None]:
        """Return the heads, None where there is none; leave out what DynamoDB did not get to."""
        wanted = {key: head_key(key) for key in keys}
        return get_items(self._client, self._edge, self._table, wanted)

    def _dirty(
        self, key: EntityKey, item: Mapping[str, Any] | None, now: datetime
    ) -> DirtyHead | None:
        """Return a head that is still due."""
        if item is None or DUE_TIME not in item:
            return None
        try:
            if time_of(whole(item, DUE_TIME)) > now:
                return None
            return DirtyHead(
                key,
                whole(item, NUMBER),
                head_payload(item),
                time_of(whole(item, TIME)),
                whole(item, EXPIRING) if EXPIRING in item else 0,
                whole(item, HISTORY) if HISTORY in item else 0,
                time_of(whole(item, EXPIRE_TIME)) if EXPIRE_TIME in item else None,
            )
        except (OverflowError, UnreadableError) as error:
            self._unreadable(key, 0, str(error))
            self._mark(key, now + _UNREADABLE_AGAIN_AFTER, {})
            return None

    def settle(
        self,
        head: DirtyHead,
        *,
        expire: int,
        keep: timedelta,
        clean: bool,
        next_due: datetime,
        deadline: Deadline,
    ) -> None:
        now = self._now()
        expiring = self._expire(head, expire, now + keep, deadline.part(_EXPIRING_SHARE))
        progress: Item = {EXPIRING: number(expiring)} if expiring else {}
        deadline.bound(self._timeout)
        if expiring < expire:
            next_due = now
        elif clean and self._clear(head, progress):
            return
        deadline.bound(self._timeout)
        self._mark(head.key, next_due, progress)

    def _expire(
        self, head: DirtyHead, expire: int, expire_time: datetime, deadline: Deadline
    ) -> int:
        """Give history its end for as long as there is time; return up to where it has one."""
        expiring = head.expiring
        last = min(expire, expiring + _MAX_EXPIRED)
        while expiring < last and not deadline.is_over():
            batch = range(expiring + 1, min(expiring + MAX_TOGETHER, last) + 1)
            self._expiries.give(head.key, batch, expire_time)
            expiring = batch[-1]
        return expiring

    def _clear(self, head: DirtyHead, progress: Item) -> bool:
        """Take the dirty mark from a head; return False if it has moved, or is gone."""
        return self._update(
            head.key,
            f"#{NUMBER} = :{NUMBER}",
            progress,
            removed=(DIRTY_SHARD, DUE_TIME),
            compared={NUMBER: number(head.number)},
        )

    def _mark(self, key: EntityKey, due_time: datetime, progress: Item) -> None:
        """Let a head be due at a time, unless it is gone."""
        marks: Item = {DIRTY_SHARD: {"S": shard_of(key)}, DUE_TIME: number(micros(due_time))}
        self._update(key, "attribute_exists(pk)", {**marks, **progress})

    def _update(
        self,
        key: EntityKey,
        condition: str,
        assigned: Item,
        *,
        removed: tuple[str, ...] = (),
        compared: Item | None = None,
    ) -> bool:
        """Update a head; return False if the condition does not hold."""
        clauses = []
        if assigned:
            clauses.append(f"SET {', '.join(f'#{name} = :{name}' for name in assigned)}")
        if removed:
            clauses.append(f"REMOVE {', '.join(f'#{name}' for name in removed)}")
        values = {**assigned, **(compared or {})}
        with self._edge.translated():
            try:
                self._client.update_item(
                    TableName=self._table,
                    Key=head_key(key),
                    UpdateExpression=" ".join(clauses),
                    ConditionExpression=condition,
                    ExpressionAttributeNames=names(*values, *removed),
                    ExpressionAttributeValues={f":{name}": v for name, v in values.items()},
                )
            except ClientError as error:
                code = error_code(error)
                if code == CONDITION_FAILED:
                    return False
                if code == CONFLICT:
                    raise StoreOverloadedError(Store.DYNAMODB) from error
                raise
        return True
