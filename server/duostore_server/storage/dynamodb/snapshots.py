"""The port ``Snapshots`` on DynamoDB."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from duostore_server.domain.errors import (
    DuplicateInProgressError,
    Store,
    StoreError,
    StoreOverloadedError,
    StoreTimeoutError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.snapshots import Appended, SnapshotPage
from duostore_server.storage.dynamodb.asking import Patience
from duostore_server.storage.dynamodb.calls import Calls, make_all
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.guesses import Guesses
from duostore_server.storage.dynamodb.head_items import HEAD, sort_key
from duostore_server.storage.dynamodb.head_payloads import held, too_large
from duostore_server.storage.dynamodb.idempotency import record_in_the_way, utc_now
from duostore_server.storage.dynamodb.lost_replies import LostReplies
from duostore_server.storage.dynamodb.pools import pool
from duostore_server.storage.dynamodb.snapshot_items import Append, history_put
from duostore_server.storage.dynamodb.snapshot_table import (
    MAX_PUTS,
    PageRequest,
    Slot,
    SnapshotTable,
)
from duostore_server.storage.dynamodb.table import MAX_KEYS
from duostore_server.storage.dynamodb.tables import idempotency_table, snapshot_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.snapshots import NewSnapshot, StoredSnapshot
    from duostore_server.domain.transactions import Idempotency
    from duostore_server.storage.dynamodb.coalescer import Batching
    from duostore_server.storage.dynamodb.items import Unreadable
    from duostore_server.storage.dynamodb.snapshot_items import HistoryPut
    from duostore_server.storage.dynamodb.snapshot_table import Page
    from duostore_server.storage.dynamodb.transact import Refusal

K = TypeVar("K")
V = TypeVar("V")

_NONCE_BYTES: Final = 16
# Tries of one append to get past others that are at work on its head.
_ATTEMPTS: Final = 8
# Past this a snapshot travels into the history alone: see projections.
_MAX_TOGETHER_BYTES: Final = 32 * 1024
# Fewer calls in flight are fuller calls: as in projections.
_PUTS_IN_FLIGHT: Final = 2
_GUESSES: Final = 10_000

# Requests that may wait for a thread, in one process.
_MAX_WAITING_READS: Final = 5_000
_MAX_WAITING_WRITES: Final = 500


class _TimeIsUpError(StoreOverloadedError):
    """Others were at work on the head for all of the time that there was."""


class DynamoSnapshots:
    """Appends and reads snapshots, within the smaller of the deadline and its own timeout.

    An append is two calls: the head is raised, the history put; several share the latter.
    With an idempotency key it is one transaction. One without may be in the history twice
    if the first reply was lost and another snapshot came before botocore sent it again.

    ``page`` takes for ``before`` the sequence of a snapshot that was read: of the head
    it looks at the first page alone.
    """

    def __init__(
        self,
        table: SnapshotTable,
        *,
        calls: Calls,
        puts: Batching[HistoryPut, None],
        reads: Batching[Slot, StoredSnapshot | None],
        pages: Batching[PageRequest, Page],
        patience: Patience,
        compress_above: int,
        nonces: Callable[[], bytes],
        now: Callable[[], datetime],
    ) -> None:
        self._table = table
        self._calls = calls
        self._puts = puts
        self._reads = reads
        self._pages = pages
        self._patience = patience
        self._compress_above = compress_above
        self._nonces = nonces
        self._now = now
        self._guesses = Guesses(_GUESSES)

    def append(self, snapshot: NewSnapshot, deadline: Deadline) -> Appended:
        append = Append(
            snapshot.key,
            held(snapshot.key, snapshot.payload, compress_above=self._compress_above),
            snapshot.time,
            snapshot.time + snapshot.consolidate_after,
            self._nonces(),
            snapshot.in_history,
        )
        if snapshot.idempotency is not None:
            return self._append_once(append, snapshot, snapshot.idempotency, deadline)
        sequence = self._raise_head(append, deadline)
        if snapshot.in_history:
            self._put_history(append, sequence, deadline)
        return Appended(sequence, snapshot.time)

    def _raise_head(self, append: Append, deadline: Deadline) -> int:
        work = partial(self._table.raise_head, append)
        sequence = self._past_others(
            lambda timeout: self._calls.make(work, deadline, timeout), deadline
        )
        self._guesses.saw(append.key, sequence)
        return sequence

    def _past_others(self, attempt: Callable[[float], V | None], deadline: Deadline) -> V:
        """Return what an attempt, which has a timeout, comes to: not None.

        None says that nothing was written since others are at work on the head: then it is
        tried again for a while. Raises ``DuplicateInProgressError`` if that was in vain.
        """
        effort = self._patience.begin()
        try:
            for _ in range(_ATTEMPTS):
                done = attempt(effort.left(_TimeIsUpError))
                if done is not None:
                    return done
                effort.wait(deadline, _TimeIsUpError)
        except _TimeIsUpError as error:
            raise DuplicateInProgressError from error
        raise DuplicateInProgressError

    def _put_history(self, append: Append, sequence: int, deadline: Deadline) -> None:
        put = history_put(append, sequence)
        try:
            if put.payload_bytes <= _MAX_TOGETHER_BYTES:
                self._patience.gather(self._puts, (put,), deadline)
            else:
                left = self._patience.begin().left(StoreTimeoutError)
                self._calls.make(partial(self._table.put_alone, put), deadline, left)
        except StoreError as error:
            # It is the head already, and is in the history or not.
            raise WriteOutcomeUnknownError(Store.DYNAMODB) from error

    def _append_once(
        self, append: Append, snapshot: NewSnapshot, idempotency: Idempotency, deadline: Deadline
    ) -> Appended:
        """Append a snapshot together with the record of its answer: the number is a guess."""
        guess = self._guesses.of(append.key)

        def attempt(timeout: float) -> Appended | None:
            nonlocal guess
            now = self._now()
            work = partial(
                self._table.append_once,
                append,
                guess,
                idempotency=idempotency,
                now=now,
            )
            sequence, refusals = self._calls.make(work, deadline, timeout)
            if refusals is None:
                self._guesses.saw(append.key, sequence)
                return Appended(sequence, snapshot.time)
            if any(refusal.too_large for refusal in refusals):
                raise too_large(append.held)
            head, record, *_ = refusals
            if record.condition_failed:
                return _replayed(idempotency, record, now)
            if head.condition_failed:
                guess = self._table.number_in(append.key, head.item) if head.item else None
            return None

        return self._past_others(attempt, deadline)

    def read(self, key: EntityKey, sequence: int, deadline: Deadline) -> StoredSnapshot | None:
        head = Slot(key, HEAD)
        if sequence == 0:
            return self._patience.gather(self._reads, (head,), deadline)[head]
        place = Slot(key, sort_key(sequence))
        found = self._patience.gather(self._reads, (head, place), deadline)
        newest = found[head]
        return newest if newest is not None and newest.sequence == sequence else found[place]

    def page(
        self, key: EntityKey, before: int | None, limit: int, deadline: Deadline
    ) -> SnapshotPage:
        # The head, on the first page, is one more.
        request = (
            PageRequest(key, None, limit + 1)
            if before is None
            else PageRequest(key, sort_key(before), limit)
        )
        effort = self._patience.begin()
        while True:
            page = self._pages.ask((request,), deadline, effort.left(StoreTimeoutError))[request]
            if page.snapshots or page.below is None:
                more = page.below is not None or len(page.snapshots) > limit
                return SnapshotPage(page.snapshots[:limit], more)
            # None of these could be read; what comes after may be.
            request = replace(request, below=page.below)


def _replayed(idempotency: Idempotency, record: Refusal, now: datetime) -> Appended:
    """Return the answer of the append that was recorded earlier."""
    recorded = record_in_the_way(record.item, now)
    (applied,) = idempotency.answer_of(recorded).answer
    return Appended(applied.version, applied.update_time, replayed=True)


@contextmanager
def open_snapshots(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: Unreadable,
    compress_above: int = 1024,
    timeout: float = 1.0,
    reads_in_flight: int = 2,
    writes_in_flight: int = 8,
    now: Callable[[], datetime] = utc_now,
) -> Iterator[DynamoSnapshots]:
    """Run the threads that call DynamoDB, and yield the snapshots that use them.

    ``timeout`` is in seconds, and the most that a caller waits for each of the steps of an
    append, and for a read. There are ``writes_in_flight`` threads, twice ``reads_in_flight``
    and two more; the client's pool should hold a connection for each.
    """
    lost = LostReplies()
    table = SnapshotTable(
        client,
        table=snapshot_table(prefix),
        records=idempotency_table(prefix),
        edge=ErrorEdge(),
        lost=lost,
        unreadable=unreadable,
        now=now,
    )
    with ExitStack() as stack:
        stack.enter_context(lost.watched(client))
        reads, writes = _MAX_WAITING_READS, _MAX_WAITING_WRITES
        yield DynamoSnapshots(
            table,
            calls=Calls(
                pool(
                    stack,
                    "dynamodb-append",
                    make_all,
                    batch=1,
                    threads=writes_in_flight,
                    waiting=writes,
                )
            ),
            puts=pool(
                stack,
                "dynamodb-history",
                table.put_history,
                batch=MAX_PUTS,
                threads=_PUTS_IN_FLIGHT,
                waiting=writes,
            ),
            reads=pool(
                stack,
                "dynamodb-snapshot",
                table.fetch,
                batch=MAX_KEYS,
                threads=reads_in_flight,
                waiting=reads,
            ),
            pages=pool(
                stack,
                "dynamodb-page",
                table.pages,
                batch=1,
                threads=reads_in_flight,
                waiting=writes,
            ),
            patience=Patience(timeout),
            compress_above=compress_above,
            nonces=partial(secrets.token_bytes, _NONCE_BYTES),
            now=now,
        )
