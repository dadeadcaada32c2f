"""The port ``IdempotencyRecords`` on DynamoDB, and the records of writes that are made there.

An item is a request that was applied: pk is ``home#tenant#key``, the answer compact JSON,
a pair of version and time for each mutation. What is at home in DynamoDB is decided by its
record; the record of what is at home in Aurora is a copy of the row that decides there.
The two never meet: a copy put late must not take a decision's place. Times are
microseconds since 1970, but for ``sweep_time``: see ``head_items``.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.errors import Store, WriteOutcomeUnknownError
from duostore_server.domain.policies import Home
from duostore_server.domain.transactions import Applied, Recorded
from duostore_server.storage.dynamodb.asking import Patience
from duostore_server.storage.dynamodb.batch_get import get_items
from duostore_server.storage.dynamodb.coalescer import Direct
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.head_items import SWEEP_TIME, micros, number, time_of
from duostore_server.storage.dynamodb.pools import pool
from duostore_server.storage.dynamodb.table import MAX_KEYS
from duostore_server.storage.dynamodb.tables import idempotency_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.transactions import Idempotency, IdempotencyKey
    from duostore_server.storage.dynamodb.coalescer import Batching
    from duostore_server.storage.dynamodb.items import Item

    # Told what is wrong with a record that cannot be read.
    UnreadableRecord: TypeAlias = Callable[[str], None]

_MAX_PUTS: Final = 25
_SWEPT_AFTER: Final = timedelta(hours=1)
_MAX_WAITING: Final = 5_000


def untold(_problem: str) -> None:
    """Keep to oneself that a record cannot be read."""


def record_put(
    table: str, idempotency: Idempotency, recorded: Recorded, now: datetime
) -> TransactWriteItemTypeDef:
    """Return the action of a transaction that records an answer, if its key is free.

    If it is not, the whole transaction is refused, and the record comes back: see
    ``decode_record``. One that has expired by ``now`` is replaced.
    """
    return {
        "Put": {
            "TableName": table,
            "Item": _item(Home.DYNAMODB, idempotency, recorded, now),
            "ConditionExpression": "attribute_not_exists(pk) OR expire_time <= :now",
            "ExpressionAttributeValues": {":now": number(micros(now))},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def decode_record(
    item: Mapping[str, Any],
    now: datetime,
    unreadable: UnreadableRecord = untold,
) -> Recorded | None:
    """Return what an item records; None if it has expired by ``now``.

    None too if it cannot be read, which ``unreadable`` is told: a record that stood in
    the way of ``record_put`` with the same ``now`` cannot have expired, so that there
    None says that the request was applied, with an answer that is lost.
    """
    try:
        if int(item["expire_time"]["N"]) <= micros(now):
            return None
        return Recorded(
            item["request_hash"]["B"],
            tuple(Applied(version, time_of(at)) for version, at in json.loads(item["answer"]["S"])),
            projected=item["projected"]["BOOL"],
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        unreadable(f"{type(error).__name__}: {error}")
        return None


def record_in_the_way(item: Mapping[str, Any] | None, now: datetime) -> Recorded:
    """Return what an item records that was in the way of ``record_put`` with this ``now``.

    Raises ``WriteOutcomeUnknownError`` if it cannot be read: the request was applied, and
    what it came to is lost.
    """
    recorded = decode_record(item or {}, now)
    if recorded is None:
        raise WriteOutcomeUnknownError(Store.DYNAMODB)
    return recorded


def _primary_key(home: Home, key: IdempotencyKey) -> Item:
    return {"pk": {"S": f"{home.value}#{key}"}}


def _item(home: Home, idempotency: Idempotency, recorded: Recorded, now: datetime) -> Item:
    expire_time = now + idempotency.keep
    answer = [[applied.version, micros(applied.update_time)] for applied in recorded.answer]
    return {
        **_primary_key(home, idempotency.key),
        "request_hash": {"B": recorded.request_hash},
        "answer": {"S": json.dumps(answer, separators=(",", ":"))},
        "projected": {"BOOL": recorded.projected},
        "expire_time": number(micros(expire_time)),
        SWEEP_TIME: number(int((expire_time + _SWEPT_AFTER).timestamp())),
    }


@dataclass(frozen=True, slots=True)
class _Put:
    """A record on its way into the table."""

    pk: str
    item: Item = field(compare=False, repr=False)


class RecordTable:
    """Reads and puts records, one call to DynamoDB each; raises ``StoreError``s."""

    def __init__(
        self,
        client: DynamoDBClient,
        *,
        table: str,
        home: Home,
        edge: ErrorEdge,
        unreadable: UnreadableRecord,
        now: Callable[[], datetime],
    ) -> None:
        """``home`` is that of the kinds whose records these are."""
        self._home = home
        self._client = client
        self._table = table
        self._edge = edge
        self._unreadable = unreadable
        self._now = now

    def fetch(self, keys: Sequence[IdempotencyKey]) -> dict[IdempotencyKey, Recorded | None]:
        """Return what is recorded under up to 100 different keys, None where there is nothing.

        Strongly consistent. Keys that DynamoDB did not get to are left out.
        """
        items = get_items(
            self._client,
            self._edge,
            self._table,
            {key: _primary_key(self._home, key) for key in keys},
        )
        now = self._now()
        return {
            key: None if item is None else decode_record(item, now, self._unreadable)
            for key, item in items.items()
        }

    def put(self, puts: Sequence[_Put]) -> dict[_Put, None]:
        """Put up to 25 records of different keys; those DynamoDB did not get to are left out."""
        with self._edge.translated():
            response = self._client.batch_write_item(
                RequestItems={self._table: [{"PutRequest": {"Item": put.item}} for put in puts]}
            )
        left = {
            write["PutRequest"]["Item"]["pk"]["S"]
            for write in response.get("UnprocessedItems", {}).get(self._table, ())
        }
        return dict.fromkeys(put for put in puts if put.pk not in left)


class DynamoIdempotencyRecords:
    """Reads and puts records, within the smaller of the deadline and its own timeout."""

    def __init__(
        self,
        *,
        reads: Batching[IdempotencyKey, Recorded | None],
        puts: Batching[_Put, None],
        patience: Patience,
        now: Callable[[], datetime],
    ) -> None:
        self._reads = reads
        self._puts = puts
        self._patience = patience
        self._now = now

    def read(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        return self._patience.gather(self._reads, (key,), deadline)[key]

    def put(self, records: Sequence[tuple[Idempotency, Recorded]], deadline: Deadline) -> None:
        now = self._now()
        # A call may name an item once: the last record of a key counts.
        newest = {idempotency.key: (idempotency, recorded) for idempotency, recorded in records}
        items = [_item(Home.AURORA, *record, now) for record in newest.values()]
        puts = [_Put(item["pk"]["S"], item) for item in items]
        self._patience.gather(self._puts, puts, deadline)


def utc_now() -> datetime:
    """Return the time, aware and in UTC."""
    return datetime.now(UTC)


@contextmanager
def open_records(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: UnreadableRecord = untold,
    timeout: float = 1.0,
    reads_in_flight: int = 2,
    now: Callable[[], datetime] = utc_now,
) -> Iterator[DynamoIdempotencyRecords]:
    """Run the threads that call DynamoDB, and yield the records that use them.

    ``timeout`` is in seconds, and the most that a caller waits. There are
    ``reads_in_flight`` threads and one more, each of which needs a connection of the
    client's pool.
    """
    table = _table(client, prefix, unreadable, now)
    with ExitStack() as stack:
        yield DynamoIdempotencyRecords(
            reads=pool(
                stack,
                "dynamodb-record-read",
                table.fetch,
                batch=MAX_KEYS,
                threads=reads_in_flight,
                waiting=_MAX_WAITING,
            ),
            puts=pool(
                stack,
                "dynamodb-record-put",
                table.put,
                batch=_MAX_PUTS,
                threads=1,
                waiting=_MAX_WAITING,
            ),
            patience=Patience(timeout),
            now=now,
        )


def direct_records(
    client: DynamoDBClient,
    *,
    prefix: str,
    pause: Callable[[float], object],
    clock: Callable[[], float],
    unreadable: UnreadableRecord = untold,
    timeout: float = 1.0,
    now: Callable[[], datetime] = utc_now,
) -> DynamoIdempotencyRecords:
    """Return records that call DynamoDB from their caller's thread, with no batching."""
    table = _table(client, prefix, unreadable, now)
    return DynamoIdempotencyRecords(
        reads=Direct(table.fetch, max_batch=MAX_KEYS),
        puts=Direct(table.put, max_batch=_MAX_PUTS),
        patience=Patience(timeout, pause=pause, jitter=lambda: 1.0, clock=clock),
        now=now,
    )


def _table(
    client: DynamoDBClient,
    prefix: str,
    unreadable: UnreadableRecord,
    now: Callable[[], datetime],
) -> RecordTable:
    return RecordTable(
        client,
        table=idempotency_table(prefix),
        home=Home.AURORA,
        edge=ErrorEdge(),
        unreadable=unreadable,
        now=now,
    )
