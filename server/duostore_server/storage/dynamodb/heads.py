"""The port ``Heads`` on DynamoDB."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import (
    DuplicateInProgressError,
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
)
from duostore_server.domain.policies import Home
from duostore_server.domain.snapshots import HeadWritten
from duostore_server.domain.transactions import Recorded
from duostore_server.storage.dynamodb.asking import Patience
from duostore_server.storage.dynamodb.attributes import UnreadableError
from duostore_server.storage.dynamodb.calls import Calls, make_all
from duostore_server.storage.dynamodb.coalescer import Direct
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.head_payloads import too_large
from duostore_server.storage.dynamodb.head_table import HeadTable, NotApplied
from duostore_server.storage.dynamodb.head_writes import Attempt, head_write, refusal
from duostore_server.storage.dynamodb.idempotency import (
    RecordTable,
    record_in_the_way,
    untold,
    utc_now,
)
from duostore_server.storage.dynamodb.lost_replies import LostReplies
from duostore_server.storage.dynamodb.pools import pool
from duostore_server.storage.dynamodb.table import MAX_KEYS
from duostore_server.storage.dynamodb.tables import idempotency_table, snapshot_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.snapshots import Head, HeadChange
    from duostore_server.domain.transactions import Idempotency, IdempotencyKey
    from duostore_server.storage.dynamodb.coalescer import Batching
    from duostore_server.storage.dynamodb.head_table import Found
    from duostore_server.storage.dynamodb.head_writes import HeadWrite
    from duostore_server.storage.dynamodb.idempotency import UnreadableRecord
    from duostore_server.storage.dynamodb.items import Unreadable
    from duostore_server.storage.dynamodb.transact import Refusal

_NONCE_BYTES: Final = 16
# Most writes need one; more after an expiry, or where several writers meet.
_ATTEMPTS: Final = 4
# Of a transaction, which conflicts with whatever else is under way on its items.
_TRANSACTIONS: Final = 8
# Requests that may wait for a thread, in one process.
_MAX_WAITING_READS: Final = 5_000
_MAX_WAITING_WRITES: Final = 500


def new_nonce() -> bytes:
    """Return 16 random bytes."""
    return secrets.token_bytes(_NONCE_BYTES)


class DynamoHeads:
    """Reads and writes heads, within the smaller of the deadline and its own timeout.

    What cannot be read is raised as ``UnreadableError``: there is no other store to ask.
    An unconditional write without idempotency may be applied twice, if its first answer
    was lost and another write came before botocore sent it again; its caller, who is
    answered once, then is the last writer.
    """

    def __init__(
        self,
        *,
        table: HeadTable,
        reads: Batching[EntityKey, Found],
        records: Batching[IdempotencyKey, Recorded | None],
        calls: Calls,
        patience: Patience,
        nonces: Callable[[], bytes],
        compress_above: int,
    ) -> None:
        self._table = table
        self._reads = reads
        self._records = records
        self._calls = calls
        self._patience = patience
        self._nonces = nonces
        self._compress_above = compress_above

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> dict[EntityKey, Head]:
        heads = {}
        for key, found in self._patience.gather(self._reads, keys, deadline).items():
            if isinstance(found, UnreadableError):
                raise UnreadableError(*found.args)
            if found is not None:
                heads[key] = found
        return heads

    def write(self, change: HeadChange, deadline: Deadline) -> HeadWritten:
        write = head_write(
            self._table.table, change, self._nonces(), compress_above=self._compress_above
        )
        if change.idempotency is None:
            return self._write(write, deadline)
        return self._write_once(write, change.idempotency, deadline)

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        return self._patience.gather(self._records, (key,), deadline)[key]

    def _write(self, write: HeadWrite, deadline: Deadline) -> HeadWritten:
        effort = self._patience.begin()
        attempt = Attempt()
        met = NotApplied()
        for _ in range(_ATTEMPTS):
            if met.in_conflict:
                effort.wait(deadline, _in_progress)
            done = self._calls.make(
                partial(self._table.apply, write, attempt), deadline, effort.left(StoreTimeoutError)
            )
            if isinstance(done, HeadWritten):
                return done
            met = done
            if not met.in_conflict:
                if refused := refusal(write.change, met.head):
                    raise refused
                attempt = write.attempt_after(met.head)
        raise (_in_progress if met.in_conflict else StoreOverloadedError)(Store.DYNAMODB)

    def _write_once(
        self, write: HeadWrite, idempotency: Idempotency, deadline: Deadline
    ) -> HeadWritten:
        """Apply a write whose answer is recorded with it.

        What is held is looked at before what is recorded: a head that refuses the write
        while there is no record yet was not changed by this request.
        """
        effort = self._patience.begin()
        key = write.change.key
        for tried in range(_TRANSACTIONS):
            if tried:
                effort.wait(deadline, _in_progress)
            head = self.read((key,), deadline).get(key)
            if refused := refusal(write.change, head):
                earlier = self.recall(idempotency.key, deadline)
                if earlier is None:
                    raise refused
                return _replayed(idempotency, earlier)
            applied = write.applied_to(head)
            recorded = Recorded(idempotency.request_hash, (applied,))
            refusals = self._calls.make(
                partial(
                    self._table.apply_once, write, head, applied.update_time, idempotency, recorded
                ),
                deadline,
                effort.left(StoreTimeoutError),
            )
            if refusals is None:
                return HeadWritten(applied.version, applied.update_time)
            if earlier := self._earlier(write, refusals):
                return _replayed(idempotency, earlier)
        raise DuplicateInProgressError

    def _earlier(self, write: HeadWrite, refusals: Sequence[Refusal]) -> Recorded | None:
        """Return what was recorded earlier, if it is that which stood in the way."""
        of_head, of_record = refusals
        if of_head.too_large:
            raise too_large(write.held)
        if not of_record.condition_failed:
            return None
        return record_in_the_way(of_record.item, write.change.now)


def _replayed(idempotency: Idempotency, recorded: Recorded) -> HeadWritten:
    (applied,) = idempotency.answer_of(recorded).answer
    return HeadWritten(applied.version, applied.update_time, replayed=True)


def _in_progress(_store: Store) -> DuplicateInProgressError:
    return DuplicateInProgressError()


@contextmanager
def open_heads(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: Unreadable,
    unreadable_record: UnreadableRecord = untold,
    compress_above: int = 1024,
    timeout: float = 1.0,
    reads_in_flight: int = 2,
    writes_in_flight: int = 8,
) -> Iterator[DynamoHeads]:
    """Run the threads that call DynamoDB, and yield the heads that use them.

    ``timeout`` is in seconds, and the most that a caller waits for a read or a write.
    ``reads_in_flight`` and ``writes_in_flight`` are numbers of threads; there is one more,
    and the client's pool should hold a connection for each.
    """
    lost = LostReplies()
    table = _table(client, prefix, unreadable, lost)
    records = _records(client, prefix, unreadable_record)
    with ExitStack() as stack:
        stack.enter_context(lost.watched(client))
        yield DynamoHeads(
            table=table,
            reads=pool(
                stack,
                "dynamodb-head-read",
                table.fetch,
                batch=MAX_KEYS,
                threads=reads_in_flight,
                waiting=_MAX_WAITING_READS,
            ),
            records=pool(
                stack,
                "dynamodb-head-record",
                records.fetch,
                batch=MAX_KEYS,
                threads=1,
                waiting=_MAX_WAITING_WRITES,
            ),
            calls=Calls(
                pool(
                    stack,
                    "dynamodb-head-write",
                    make_all,
                    batch=1,
                    threads=writes_in_flight,
                    waiting=_MAX_WAITING_WRITES,
                )
            ),
            patience=Patience(timeout),
            nonces=new_nonce,
            compress_above=compress_above,
        )


def direct_heads(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: Unreadable,
    pause: Callable[[float], object],
    clock: Callable[[], float],
    nonces: Callable[[], bytes] = new_nonce,
    compress_above: int = 1024,
    timeout: float = 1.0,
) -> DynamoHeads:
    """Return heads that call DynamoDB from their caller's thread, with no batching."""
    lost = LostReplies()
    lost.watch(client)
    table = _table(client, prefix, unreadable, lost)
    return DynamoHeads(
        table=table,
        reads=Direct(table.fetch, max_batch=MAX_KEYS),
        records=Direct(_records(client, prefix, untold).fetch, max_batch=MAX_KEYS),
        calls=Calls(Direct(make_all, max_batch=1)),
        patience=Patience(timeout, pause=pause, jitter=lambda: 1.0, clock=clock),
        nonces=nonces,
        compress_above=compress_above,
    )


def _table(
    client: DynamoDBClient, prefix: str, unreadable: Unreadable, lost: LostReplies
) -> HeadTable:
    return HeadTable(
        client,
        table=snapshot_table(prefix),
        records=idempotency_table(prefix),
        edge=ErrorEdge(),
        lost=lost,
        unreadable=unreadable,
    )


def _records(client: DynamoDBClient, prefix: str, unreadable: UnreadableRecord) -> RecordTable:
    return RecordTable(
        client,
        table=idempotency_table(prefix),
        home=Home.DYNAMODB,
        edge=ErrorEdge(),
        unreadable=unreadable,
        now=utc_now,
    )
