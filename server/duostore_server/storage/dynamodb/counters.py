"""The port ``Counters`` on DynamoDB."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from duostore_server.domain.counters import GrantStepped, Lower
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreError,
    StoreOverloadedError,
    StoreTimeoutError,
    WriteOutcomeUnknownError,
)
from duostore_server.storage.dynamodb.asking import Patience
from duostore_server.storage.dynamodb.calls import Calls, make_all
from duostore_server.storage.dynamodb.coalescer import Direct
from duostore_server.storage.dynamodb.counter_items import counter_pk, grant_pk
from duostore_server.storage.dynamodb.counter_steps import is_done_once
from duostore_server.storage.dynamodb.counter_table import CounterTable, InConflict
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.idempotency import untold
from duostore_server.storage.dynamodb.lost_replies import LostReplies
from duostore_server.storage.dynamodb.pools import pool
from duostore_server.storage.dynamodb.table import MAX_KEYS
from duostore_server.storage.dynamodb.tables import counter_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.counters import Counter, Grant, Settlement, Step, Stepped
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.quotas import CounterKey
    from duostore_server.storage.dynamodb.coalescer import Batching
    from duostore_server.storage.dynamodb.idempotency import UnreadableRecord

T = TypeVar("T")

# A write conflicts with a transaction that is at work on its item, and those with all.
_ATTEMPTS: Final = 8
# Requests that may wait for a thread, in one process.
_MAX_WAITING_READS: Final = 5_000
_MAX_WAITING_WRITES: Final = 500


class DynamoCounters:
    """Reads counters and does their steps, within the smaller of the deadline and its timeout.

    Botocore sends a step again whose answer was lost. One that sets a lease knows itself
    then. One that ends a lease is in its own way, so that it is answered as not done though
    it was; the lease is gone either way, once. Any other debits twice, or is answered as not
    done, and debits once more with what its caller does next: more is counted than was
    used, never less. What gives back is therefore refused by ``ValueError`` if it could be
    done twice. What cannot be read is raised as ``UnreadableError``.
    """

    def __init__(
        self,
        *,
        table: CounterTable,
        reads: Batching[str, Mapping[str, Any] | None],
        calls: Calls,
        patience: Patience,
    ) -> None:
        self._table = table
        self._reads = reads
        self._calls = calls
        self._patience = patience

    def read(self, keys: Collection[CounterKey], deadline: Deadline) -> dict[CounterKey, Counter]:
        wanted = {counter_pk(key): key for key in keys}
        items = self._patience.gather(self._reads, wanted, deadline)
        counters = {wanted[pk]: self._table.counter(item) for pk, item in items.items()}
        return {key: counter for key, counter in counters.items() if counter is not None}

    def apply(self, key: CounterKey, step: Step, deadline: Deadline) -> Stepped:
        if isinstance(step.change, Lower) and not is_done_once(step):
            raise ValueError("a step that gives back has to be one that is done once")
        done = self._persist(partial(self._table.apply, key, step), deadline)
        if isinstance(done, InConflict):
            raise StoreOverloadedError(Store.DYNAMODB)
        return done

    def record(
        self, grant: Grant, step: Step, now: int, deadline: Deadline, instead: Grant | None = None
    ) -> GrantStepped:
        record = partial(self._table.record, grant, step, now, instead)
        return _told(self._persist(record, deadline))

    def find(self, tenant: str, id_: str, deadline: Deadline) -> Grant | None:
        pk = grant_pk(tenant, id_)
        return self._table.grant(self._patience.gather(self._reads, (pk,), deadline)[pk])

    def settle(
        self, grant: Grant, settlement: Settlement, step: Step | None, deadline: Deadline
    ) -> GrantStepped:
        return _told(self._persist(partial(self._table.settle, grant, settlement, step), deadline))

    def _persist(self, write: Callable[[], T | InConflict], deadline: Deadline) -> T | InConflict:
        """Write until no other write is in the way, several times at the most.

        Raises ``WriteOutcomeUnknownError`` if it may have been applied all the same.
        """
        effort = self._patience.begin()
        unsure = False
        for tried in range(_ATTEMPTS):
            try:
                if tried:
                    effort.wait(deadline, StoreOverloadedError)
                done = self._calls.make(write, deadline, effort.left(StoreTimeoutError))
            except (StoreError, DeadlineExceededError) as error:
                if unsure:
                    raise WriteOutcomeUnknownError(Store.DYNAMODB) from error
                raise
            if not isinstance(done, InConflict):
                return done
            unsure |= done.unsure
        if unsure:
            raise WriteOutcomeUnknownError(Store.DYNAMODB)
        return InConflict(unsure=False)


def _told(done: GrantStepped | InConflict) -> GrantStepped:
    return GrantStepped(done=False) if isinstance(done, InConflict) else done


@contextmanager
def open_counters(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: UnreadableRecord = untold,
    timeout: float = 1.0,
    reads_in_flight: int = 2,
    writes_in_flight: int = 8,
) -> Iterator[DynamoCounters]:
    """Run the threads that call DynamoDB, and yield the counters that use them.

    ``timeout`` is in seconds, and the most that a caller waits for a read or a write.
    ``reads_in_flight`` and ``writes_in_flight`` are numbers of threads, each of which needs
    a connection of the client's pool.
    """
    lost = LostReplies()
    table = _table(client, prefix, unreadable, lost)
    with ExitStack() as stack:
        stack.enter_context(lost.watched(client))
        yield DynamoCounters(
            table=table,
            reads=pool(
                stack,
                "dynamodb-counter-read",
                table.fetch,
                batch=MAX_KEYS,
                threads=reads_in_flight,
                waiting=_MAX_WAITING_READS,
            ),
            calls=Calls(
                pool(
                    stack,
                    "dynamodb-counter-write",
                    make_all,
                    batch=1,
                    threads=writes_in_flight,
                    waiting=_MAX_WAITING_WRITES,
                )
            ),
            patience=Patience(timeout),
        )


def direct_counters(
    client: DynamoDBClient,
    *,
    prefix: str,
    pause: Callable[[float], object],
    clock: Callable[[], float],
    unreadable: UnreadableRecord = untold,
    timeout: float = 1.0,
) -> DynamoCounters:
    """Return counters that call DynamoDB from their caller's thread, with no batching."""
    lost = LostReplies()
    lost.watch(client)
    table = _table(client, prefix, unreadable, lost)
    return DynamoCounters(
        table=table,
        reads=Direct(table.fetch, max_batch=MAX_KEYS),
        calls=Calls(Direct(make_all, max_batch=1)),
        patience=Patience(timeout, pause=pause, jitter=lambda: 1.0, clock=clock),
    )


def _table(
    client: DynamoDBClient,
    prefix: str,
    unreadable: UnreadableRecord,
    lost: LostReplies,
) -> CounterTable:
    return CounterTable(
        client,
        table=counter_table(prefix),
        edge=ErrorEdge(),
        lost=lost,
        unreadable=unreadable,
    )
