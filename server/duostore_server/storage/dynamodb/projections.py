"""The port ``Projections`` on DynamoDB."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from math import ceil
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import StoreTimeoutError
from duostore_server.storage.dynamodb.asking import Patience, jitter
from duostore_server.storage.dynamodb.coalescer import Direct
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.items import encode
from duostore_server.storage.dynamodb.pools import pool
from duostore_server.storage.dynamodb.statements import MAX_STATEMENTS, does_all_of
from duostore_server.storage.dynamodb.table import MAX_KEYS, ProjectionTable
from duostore_server.storage.dynamodb.tables import projection_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.coalescer import Batching
    from duostore_server.storage.dynamodb.items import Unreadable, Write

# Past this a write travels alone: the call itself no longer is what it costs, and
# a batch of such would be slow to send.
_MAX_TOGETHER_BYTES: Final = 32 * 1024

# Fewer calls in flight are fuller calls: with two, one that hangs leaves the other.
_TOGETHER_IN_FLIGHT: Final = 2

# Requests that may wait for a thread, in one process.
_MAX_WAITING_READS: Final = 5_000
_MAX_WAITING_WRITES: Final = 500


class DynamoProjections:
    """Reads and puts projections, within the smaller of the deadline and its own timeout.

    Writes travel together where they can. One that was not applied so, is large or removes
    a document travels alone: that call creates what is missing, replaces all that is there,
    even if it cannot be read, and tells what is held.
    """

    def __init__(
        self,
        *,
        reads: Batching[EntityKey, Projection | None],
        together: Batching[Write, Projection | None] | None,
        alone: Batching[Write, Projection],
        compress_above: int,
        timeout: float,
        pause: Callable[[float], object],
        jitter: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``jitter`` returns the part of a backoff to ``pause`` for: more than 0, at most 1."""
        self._reads = reads
        self._together = together
        self._alone = alone
        self._compress_above = compress_above
        self._patience = Patience(timeout, pause=pause, jitter=jitter, clock=clock)

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> dict[EntityKey, Projection]:
        found = self._patience.gather(self._reads, keys, deadline)
        return {key: held for key, held in found.items() if held is not None}

    def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
        return self.put_all({key: projection}, deadline)[key]

    def put_all(
        self, projections: Mapping[EntityKey, Projection], deadline: Deadline
    ) -> dict[EntityKey, Projection]:
        writes = [
            encode(key, projection, compress_above=self._compress_above)
            for key, projection in projections.items()
        ]
        # What takes several calls has the time of several.
        effort = self._patience.begin(calls=max(1, ceil(len(writes) / MAX_STATEMENTS)))
        held: dict[EntityKey, Projection] = {}
        small = [w for w in writes if w.size <= _MAX_TOGETHER_BYTES and does_all_of(w)]
        if self._together is not None and small:
            answers = self._together.ask(small, deadline, effort.left(StoreTimeoutError))
            held = {write.key: put for write, put in answers.items() if put is not None}
        if rest := [write for write in writes if write.key not in held]:
            answers_alone = self._alone.ask(rest, deadline, effort.left(StoreTimeoutError))
            held |= {write.key: put for write, put in answers_alone.items()}
        return held


@contextmanager
def open_projections(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: Unreadable,
    compress_above: int = 1024,
    timeout: float = 1.0,
    reads_in_flight: int = 2,
    writes_in_flight: int = 8,
    statements: bool = True,
) -> Iterator[DynamoProjections]:
    """Run the threads that call DynamoDB, and yield the projections that use them.

    ``timeout`` is in seconds, and the most that a caller waits for a read or a put.
    ``reads_in_flight`` and ``writes_in_flight`` are numbers of threads; the client's pool
    should hold a connection for each. ``statements`` off keeps to single puts, for a
    DynamoDB that has no PartiQL.
    """
    table = _table(client, prefix, unreadable, statements_from=2)
    with ExitStack() as stack:
        yield DynamoProjections(
            reads=pool(
                stack,
                "dynamodb-read",
                table.fetch,
                batch=MAX_KEYS,
                threads=reads_in_flight,
                waiting=_MAX_WAITING_READS,
            ),
            together=pool(
                stack,
                "dynamodb-put-together",
                table.put_together,
                batch=MAX_STATEMENTS,
                threads=_TOGETHER_IN_FLIGHT,
                waiting=_MAX_WAITING_WRITES,
            )
            if statements
            else None,
            alone=pool(
                stack,
                "dynamodb-put",
                table.put,
                batch=1,
                threads=writes_in_flight,
                waiting=_MAX_WAITING_WRITES,
            ),
            compress_above=compress_above,
            timeout=timeout,
            pause=time.sleep,
            jitter=jitter,
        )


def direct_projections(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: Unreadable,
    pause: Callable[[float], object],
    clock: Callable[[], float],
    compress_above: int = 1024,
    timeout: float = 1.0,
    statements: bool = True,
) -> DynamoProjections:
    """Return projections that call DynamoDB from their caller's thread, with no batching."""
    table = _table(client, prefix, unreadable, statements_from=1)
    return DynamoProjections(
        reads=Direct(table.fetch, max_batch=MAX_KEYS),
        together=Direct(table.put_together, max_batch=MAX_STATEMENTS) if statements else None,
        alone=Direct(table.put, max_batch=1),
        compress_above=compress_above,
        timeout=timeout,
        pause=pause,
        jitter=lambda: 1.0,
        clock=clock,
    )


def _table(
    client: DynamoDBClient, prefix: str, unreadable: Unreadable, *, statements_from: int
) -> ProjectionTable:
    return ProjectionTable(
        client,
        table=projection_table(prefix),
        edge=ErrorEdge(),
        unreadable=unreadable,
        statements_from=statements_from,
    )
