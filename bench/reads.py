"""Reads that DynamoDB answers, against boto3 with nothing around it."""

from __future__ import annotations

import random
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from bench.callers import call_for
from bench.contest import Contest, Side
from bench.deployment import SEEDED, key_message, seeded_key
from bench.figures import BenchError
from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from duostore_server import bootstrap
from duostore_server.config import load
from duostore_server.domain.deadline import Deadline
from duostore_server.storage.dynamodb.projections import open_projections
from tests.support.service import CALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from bench.deployment import Deployment
    from bench.figures import Figures
    from duostore_server.domain.keys import EntityKey

BATCH_KEYS: Final = 100
_GETTERS: Final = 16
_BATCH_GETTERS: Final = 4
_COALESCED: Final = 32


@contextmanager
def get_miss(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of single reads; each key is read once after the cache was emptied."""
    keys = _shuffled()
    requests = [data_access_pb2.GetRequest(key=key_message(key)) for key in keys]
    with (
        deployment.service.channel() as channel,
        deployment.plain_client(_GETTERS) as client,
    ):
        stub = data_access_pb2_grpc.DataAccessStub(channel)

        def get(request: data_access_pb2.GetRequest) -> None:
            _from_dynamodb(stub.Get(request, timeout=CALL_SECONDS).receipt)

        def gets(seconds: float) -> Figures:
            deployment.memcached.flush()
            return call_for(seconds, _GETTERS, get, iter(requests))

        yield Contest(
            "get-miss",
            f"entities of 1 KB that DynamoDB holds and the cache does not; {_GETTERS} threads of"
            " one process call",
            Side("Get", gets),
            [Side("boto3 get_item", _get_items(client, deployment.table, keys, _GETTERS))],
        )


@contextmanager
def batch_get(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of reads of 100 keys, as ``get_miss``."""
    keys = _shuffled()
    batches = [keys[first : first + BATCH_KEYS] for first in range(0, SEEDED, BATCH_KEYS)]
    requests = [
        data_access_pb2.BatchGetRequest(keys=[key_message(key) for key in batch])
        for batch in batches
    ]
    questions: list[Any] = [
        {deployment.table: {"Keys": [_primary(key) for key in batch], "ConsistentRead": True}}
        for batch in batches
    ]
    with (
        deployment.service.channel() as channel,
        deployment.plain_client(_BATCH_GETTERS) as client,
    ):
        stub = data_access_pb2_grpc.DataAccessStub(channel)

        def get(request: data_access_pb2.BatchGetRequest) -> None:
            _from_dynamodb(stub.BatchGet(request, timeout=CALL_SECONDS).receipt)

        def gets(seconds: float) -> Figures:
            deployment.memcached.flush()
            return call_for(seconds, _BATCH_GETTERS, get, iter(requests))

        def ask(question: Any) -> None:  # noqa: ANN401 - a RequestItems of boto3
            answer = client.batch_get_item(RequestItems=question)
            if len(answer["Responses"][deployment.table]) != BATCH_KEYS:
                raise BenchError("batch_get_item did not find all that was seeded")

        yield Contest(
            "batch-get",
            f"{BATCH_KEYS} entities of 1 KB a call, that DynamoDB holds and the cache does not;"
            f" {_BATCH_GETTERS} threads of one process call",
            Side("BatchGet", gets),
            [
                Side(
                    "boto3 batch_get_item",
                    lambda seconds: call_for(seconds, _BATCH_GETTERS, ask, cycle(questions)),
                )
            ],
        )


@contextmanager
def coalesced(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of the server's own reads of DynamoDB, with no service around them."""
    settings = load(deployment.service.config, {}, serving=True)
    keys = _shuffled()
    server_client = bootstrap.dynamodb_client(settings)

    def unreadable(key: EntityKey, version: int, why: str) -> None:
        raise BenchError(f"{key} at version {version}: {why}")

    try:
        with (
            deployment.plain_client(_COALESCED) as client,
            open_projections(
                server_client,
                prefix=deployment.prefix,
                unreadable=unreadable,
                timeout=CALL_SECONDS,
                reads_in_flight=settings.dynamodb.read_in_flight,
            ) as projections,
        ):

            def read(key: EntityKey) -> None:
                if key not in projections.read((key,), Deadline.after(CALL_SECONDS)):
                    raise BenchError(f"{key} was not found")

            yield Contest(
                "coalesced",
                f"entities of 1 KB, {_COALESCED} threads of one process, each with a key at a time;"
                f" {settings.dynamodb.read_in_flight} batches in flight",
                Side(
                    "DynamoProjections.read",
                    lambda seconds: call_for(seconds, _COALESCED, read, cycle(keys)),
                ),
                [Side("boto3 get_item", _get_items(client, deployment.table, keys, _COALESCED))],
            )
    finally:
        server_client.close()


def _get_items(
    client: DynamoDBClient, table: str, keys: list[EntityKey], threads: int
) -> Callable[[float], Figures]:
    """Return what reads items one by one, as consistently as the service does."""

    def ask(key: EntityKey) -> None:
        if "Item" not in client.get_item(TableName=table, Key=_primary(key), ConsistentRead=True):
            raise BenchError(f"{key} was not found")

    return lambda seconds: call_for(seconds, threads, ask, cycle(keys))


def _primary(key: EntityKey) -> Any:  # noqa: ANN401 - a Key of boto3
    return {"pk": {"S": str(key)}}


def _shuffled() -> list[EntityKey]:
    keys = [seeded_key(number) for number in range(SEEDED)]
    random.Random(SEEDED).shuffle(keys)  # noqa: S311 - only the order of reading
    return keys


def _from_dynamodb(receipt: entity_pb2.Receipt) -> None:
    if receipt.served_from != entity_pb2.STORE_DYNAMODB:
        raise BenchError(f"a read that was to come from DynamoDB came from {receipt.served_from}")
