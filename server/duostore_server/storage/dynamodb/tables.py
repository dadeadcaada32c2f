"""The tables: what they are called, and how they come to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from duostore_server.domain.errors import Store, StoreTimeoutError
from duostore_server.storage.dynamodb.errors import ErrorEdge, error_code
from duostore_server.storage.dynamodb.head_items import (
    DIRTY_INDEX,
    DIRTY_SHARD,
    DUE_TIME,
    SWEEP_TIME,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.literals import KeyTypeType
    from types_boto3_dynamodb.type_defs import (
        CreateTableInputTypeDef,
        KeySchemaElementTypeDef,
    )

_POLL_SECONDS: Final = 0.25
_POLLS: Final = 480

_ROLES: Final[tuple[KeyTypeType, ...]] = ("HASH", "RANGE")


@dataclass(frozen=True, slots=True)
class _Table:
    """What a table is made of.

    ``key`` are the attributes of its primary key, ``attributes`` the types of all that
    are part of a key. ``index`` is a global secondary index of keys alone: its name and
    its key. Items are swept after the time in their attribute ``sweep``.
    """

    name: str
    key: tuple[str, ...]
    attributes: dict[str, str]
    index: tuple[str, tuple[str, ...]] | None = None
    sweep: str | None = None


_PROJECTION: Final = _Table("projection", ("pk",), {"pk": "S"})
_SNAPSHOT: Final = _Table(
    "snapshot",
    ("pk", "sk"),
    {"pk": "S", "sk": "S", DIRTY_SHARD: "S", DUE_TIME: "N"},
    index=(DIRTY_INDEX, (DIRTY_SHARD, DUE_TIME)),
    sweep=SWEEP_TIME,
)
_IDEMPOTENCY: Final = _Table("idempotency", ("pk",), {"pk": "S"}, sweep=SWEEP_TIME)
_COUNTER: Final = _Table("counter", ("pk",), {"pk": "S"}, sweep=SWEEP_TIME)
_TABLES: Final = (_PROJECTION, _SNAPSHOT, _IDEMPOTENCY, _COUNTER)


def projection_table(prefix: str) -> str:
    """Return the name of the projection table of a deployment."""
    return prefix + _PROJECTION.name


def snapshot_table(prefix: str) -> str:
    """Return the name of the table of heads, and of the history of snapshots, of a deployment."""
    return prefix + _SNAPSHOT.name


def idempotency_table(prefix: str) -> str:
    """Return the name of the table of idempotency records of a deployment."""
    return prefix + _IDEMPOTENCY.name


def counter_table(prefix: str) -> str:
    """Return the name of the table of counters and grants of a deployment."""
    return prefix + _COUNTER.name


def create_tables(
    client: DynamoDBClient,
    *,
    prefix: str,
    pause: Callable[[float], object],
    progress: Callable[[str, str], None] = lambda _table, _status: None,
) -> list[str]:
    """Create the tables that are missing and return their names, once all are active.

    Repeatable, and safe to run twice at the same time; tables that are there are left as
    they are, but for their sweeping, which is turned on. ``progress`` is told each table's
    status at every look, ``pause`` waits between two of them. Raises ``StoreTimeoutError``
    after two minutes.
    """
    edge = ErrorEdge()
    with edge.translated():
        created = [prefix + table.name for table in _TABLES if _create(client, prefix, table)]
    for table in _TABLES:
        with edge.translated():
            _wait_until_active(client, prefix + table.name, pause, progress)
            if table.sweep is not None:
                _sweep(client, prefix + table.name, table.sweep)
    return created


def missing_tables(client: DynamoDBClient, *, prefix: str) -> list[str]:
    """Return the names of the tables that are not there, or not active yet."""
    names = [prefix + table.name for table in _TABLES]
    with ErrorEdge().translated():
        return [name for name in names if _status(client, name) != "ACTIVE"]


def _create(client: DynamoDBClient, prefix: str, table: _Table) -> bool:
    """Create a table; return False if it is there already."""
    try:
        client.create_table(**_definition(prefix, table))
    except ClientError as error:
        if error_code(error) != "ResourceInUseException":
            raise
        return False
    return True


def _definition(prefix: str, table: _Table) -> CreateTableInputTypeDef:
    definition: CreateTableInputTypeDef = {
        "TableName": prefix + table.name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": name, "AttributeType": "N" if kind == "N" else "S"}
            for name, kind in table.attributes.items()
        ],
        "KeySchema": _schema(table.key),
    }
    if table.index is not None:
        name, key = table.index
        definition["GlobalSecondaryIndexes"] = [
            {
                "IndexName": name,
                "KeySchema": _schema(key),
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ]
    return definition


def _schema(key: tuple[str, ...]) -> list[KeySchemaElementTypeDef]:
    return [
        {"AttributeName": name, "KeyType": role} for name, role in zip(key, _ROLES, strict=False)
    ]


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


def _sweep(client: DynamoDBClient, table: str, attribute: str) -> None:
    """Let DynamoDB delete the items whose time, in seconds, has passed."""
    try:
        client.update_time_to_live(
            TableName=table,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": attribute},
        )
    except ClientError as error:
        # DynamoDB takes no second order, nor one soon after another.
        if error_code(error) != "ValidationException" or not _swept(client, table, attribute):
            raise


def _swept(client: DynamoDBClient, table: str, attribute: str) -> bool:
    held = client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    return held.get("AttributeName") == attribute and held.get("TimeToLiveStatus") in {
        "ENABLING",
        "ENABLED",
    }
