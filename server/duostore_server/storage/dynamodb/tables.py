"""The tables: what they are called, and how they come to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from duostore_server.domain.errors import Store, StoreTimeoutError
from duostore_server.storage.dynamodb.errors import ErrorEdge, error_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import CreateTableInputTypeDef

_PROJECTION: Final = "projection"
_TABLES: Final = (_PROJECTION,)

_POLL_SECONDS: Final = 0.25
_POLLS: Final = 480


def projection_table(prefix: str) -> str:
    """Return the name of the projection table of a deployment."""
    return prefix + _PROJECTION


def create_tables(
    client: DynamoDBClient,
    *,
    prefix: str,
    pause: Callable[[float], object],
    progress: Callable[[str, str], None] = lambda _table, _status: None,
) -> list[str]:
    """Create the tables that are missing and return their names, once all are active.

    Repeatable, and safe to run twice at the same time. ``progress`` is told each
    table's status at every look, ``pause`` waits between two of them. Raises
    ``StoreTimeoutError`` after two minutes.
    """
    edge = ErrorEdge()
    created = []
    for table in _names(prefix):
        with edge.translated():
            if _create(client, table):
                created.append(table)
    for table in _names(prefix):
        with edge.translated():
            _wait_until_active(client, table, pause, progress)
    return created


def missing_tables(client: DynamoDBClient, *, prefix: str) -> list[str]:
    """Return the names of the tables that are not there, or not active yet."""
    edge = ErrorEdge()
    with edge.translated():
        return [table for table in _names(prefix) if _status(client, table) != "ACTIVE"]


def _names(prefix: str) -> list[str]:
    return [prefix + table for table in _TABLES]


def _create(client: DynamoDBClient, table: str) -> bool:
    """Create a table; return False if it is there already."""
    definition: CreateTableInputTypeDef = {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
    }
    try:
        client.create_table(**definition)
    except ClientError as error:
        if error_code(error) != "ResourceInUseException":
            raise
        return False
    return True


def _wait_until_active(
    client: DynamoDBClient,
    table: str,
    pause: Callable[[float], object],
    progress: Callable[[str, str], None],
) -> None:
    for _ in range(_POLLS):
        status = _status(client, table)
        progress(table, status)
        if status == "ACTIVE":
            return
        pause(_POLL_SECONDS)
    raise StoreTimeoutError(Store.DYNAMODB)


def _status(client: DynamoDBClient, table: str) -> str:
    """Return a table's status, or ``MISSING``; a new one may be missing for a moment."""
    try:
        return client.describe_table(TableName=table)["Table"]["TableStatus"]
    except ClientError as error:
        if error_code(error) != "ResourceNotFoundException":
            raise
        return "MISSING"
