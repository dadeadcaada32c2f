"""All ports to DynamoDB, on one client."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.storage.dynamodb.counters import open_counters
from duostore_server.storage.dynamodb.dirty import DynamoDirtyHeads
from duostore_server.storage.dynamodb.heads import open_heads
from duostore_server.storage.dynamodb.idempotency import open_records
from duostore_server.storage.dynamodb.probe import open_probe
from duostore_server.storage.dynamodb.projection_items import DynamoProjectionItems
from duostore_server.storage.dynamodb.projections import open_projections
from duostore_server.storage.dynamodb.snapshots import open_snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.admin_ports import ProjectionItems
    from duostore_server.domain.ports import (
        Counters,
        DirtyHeads,
        Heads,
        IdempotencyRecords,
        Probe,
        Projections,
        Snapshots,
    )
    from duostore_server.storage.dynamodb.idempotency import UnreadableRecord
    from duostore_server.storage.dynamodb.items import Unreadable

# Pools of threads of each sort, and threads besides.
_READ_POOLS: Final = 6
_WRITE_POOLS: Final = 4
_OTHER_THREADS: Final = 12


def connections(reads_in_flight: int, writes_in_flight: int) -> int:
    """Return how many connections the ports use at most; each is opened when it is needed."""
    return _READ_POOLS * reads_in_flight + _WRITE_POOLS * writes_in_flight + _OTHER_THREADS


@dataclass(frozen=True, slots=True)
class DynamoDBPorts:
    """What the use cases and the background work need of DynamoDB."""

    projections: Projections
    items: ProjectionItems
    heads: Heads
    snapshots: Snapshots
    dirty_heads: DirtyHeads
    records: IdempotencyRecords
    counters: Counters
    probe: Probe


@contextmanager
def open_ports(
    client: DynamoDBClient,
    *,
    prefix: str,
    unreadable: Unreadable,
    unreadable_record: UnreadableRecord,
    unreadable_counter: UnreadableRecord,
    compress_above: int,
    timeout: float,
    reads_in_flight: int,
    writes_in_flight: int,
    statements: bool,
) -> Iterator[DynamoDBPorts]:
    """Run the threads that call DynamoDB, and yield the ports that use them.

    ``timeout`` is in seconds, and the most that a caller waits for a step. The client
    should have room for so many ``connections``. ``statements`` off keeps to single
    writes, for a DynamoDB that has no PartiQL.
    """
    with ExitStack() as stack:
        yield DynamoDBPorts(
            projections=stack.enter_context(
                open_projections(
                    client,
                    prefix=prefix,
                    unreadable=unreadable,
                    compress_above=compress_above,
                    timeout=timeout,
                    reads_in_flight=reads_in_flight,
                    writes_in_flight=writes_in_flight,
                    statements=statements,
                )
            ),
            items=DynamoProjectionItems(
                client, prefix=prefix, compress_above=compress_above, timeout=timeout
            ),
            heads=stack.enter_context(
                open_heads(
                    client,
                    prefix=prefix,
                    unreadable=unreadable,
                    unreadable_record=unreadable_record,
                    compress_above=compress_above,
                    timeout=timeout,
                    reads_in_flight=reads_in_flight,
                    writes_in_flight=writes_in_flight,
                )
            ),
            snapshots=stack.enter_context(
                open_snapshots(
                    client,
                    prefix=prefix,
                    unreadable=unreadable,
                    compress_above=compress_above,
                    timeout=timeout,
                    reads_in_flight=reads_in_flight,
                    writes_in_flight=writes_in_flight,
                )
            ),
            dirty_heads=DynamoDirtyHeads(
                client, prefix=prefix, unreadable=unreadable, statements=statements
            ),
            records=stack.enter_context(
                open_records(
                    client,
                    prefix=prefix,
                    unreadable=unreadable_record,
                    timeout=timeout,
                    reads_in_flight=reads_in_flight,
                )
            ),
            counters=stack.enter_context(
                open_counters(
                    client,
                    prefix=prefix,
                    unreadable=unreadable_counter,
                    timeout=timeout,
                    reads_in_flight=reads_in_flight,
                    writes_in_flight=writes_in_flight,
                )
            ),
            probe=stack.enter_context(open_probe(client, prefix=prefix, timeout=timeout)),
        )
