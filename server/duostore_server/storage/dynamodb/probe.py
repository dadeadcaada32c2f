"""The port ``Probe`` on DynamoDB."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import Store
from duostore_server.storage.dynamodb.coalescer import Coalescer
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.tables import projection_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.dynamodb.coalescer import Batching

# No entity has this key, since none has an empty kind.
_NOBODY: Final = "##"


class DynamoProbe:
    """Tells whether DynamoDB answers, by reading an item that does not exist."""

    store = Store.DYNAMODB

    def __init__(self, reads: Batching[str, None], *, timeout: float) -> None:
        self._reads = reads
        self._timeout = timeout

    def ping(self, deadline: Deadline) -> None:
        self._reads.ask((_NOBODY,), deadline, self._timeout)


@contextmanager
def open_probe(
    client: DynamoDBClient, *, prefix: str, timeout: float = 1.0
) -> Iterator[DynamoProbe]:
    """Run one thread for pings alone, and yield the probe: a full queue is no outage."""
    table = projection_table(prefix)
    edge = ErrorEdge()

    def read(names: Sequence[str]) -> dict[str, None]:
        for name in names:
            with edge.translated():
                client.get_item(TableName=table, Key={"pk": {"S": name}})
        return dict.fromkeys(names)

    with Coalescer(
        "dynamodb-ping", read, store=Store.DYNAMODB, max_batch=1, max_in_flight=1, max_waiting=1
    ) as reads:
        yield DynamoProbe(reads, timeout=timeout)
