"""Reads several items of a table in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from duostore_server.storage.dynamodb.errors import ErrorEdge

K = TypeVar("K")


def get_items(
    client: DynamoDBClient,
    edge: ErrorEdge,
    table: str,
    keys: Mapping[K, Mapping[str, AttributeValueTypeDef]],
) -> dict[K, Mapping[str, Any] | None]:
    """Return the item of each of up to 100 different primary keys, None where there is none.

    Strongly consistent. What DynamoDB did not get to is left out: ask again. Raises
    ``StoreError``s.
    """
    wanted = {_name(key, key): asked for asked, key in keys.items()}
    with edge.translated():
        response = client.batch_get_item(
            RequestItems={table: {"Keys": list(keys.values()), "ConsistentRead": True}}
        )
    found: dict[K, Mapping[str, Any] | None] = dict.fromkeys(keys)
    for unprocessed in response.get("UnprocessedKeys", {}).values():
        for key in unprocessed["Keys"]:
            del found[wanted[_name(key, key)]]
    names = next(iter(keys.values()), {})
    found |= {wanted[_name(item, names)]: item for item in response["Responses"][table]}
    return found


def _name(item: Mapping[str, Any], key: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of an item's primary key, whose attributes ``key`` has."""
    return tuple(item[attribute]["S"] for attribute in sorted(key))
