"""The engines that stand in for DynamoDB, for the suites that run over all of them."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from duostore_server.storage.dynamodb.client import make_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient


@contextmanager
def patient_client(endpoint_url: str) -> Iterator[DynamoDBClient]:
    """Return a client of an engine on this machine, with time enough for a busy one."""
    client = make_client(
        region="us-east-1",
        endpoint_url=endpoint_url,
        connect_timeout=5,
        read_timeout=20,
        max_pool_connections=40,
    )
    with closing(client):
        yield client


def never(_seconds: float) -> None:
    """Fail in place of a pause: there is nothing to wait for."""
    raise AssertionError("nothing is to be waited for")
