"""The tables of the simulated DynamoDB, and what puts and updates make of their items."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import md5
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from botocore.exceptions import ClientError

from tests.support.dynamodb_expressions import Substitutes, holds, updated

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from tests.support.dynamodb_expressions import Item

# The values of an item's key: pk, and sk if the table has one.
Key: TypeAlias = "tuple[str, ...]"

# Where items may lie: by a hash of their keys, as far as anybody can tell.
PLACES = 1 << 128


@dataclass(frozen=True, slots=True)
class Table:
    """The names of the key's attributes, and the states of each item, its absence first."""

    key_names: tuple[str, ...]
    items: dict[Key, list[Item | None]] = field(default_factory=dict)

    def key_of(self, attributes: Mapping[str, Any]) -> Key:
        """Return the key that an item, or a request's key, has."""
        return tuple(attributes[name]["S"] for name in self.key_names)

    def exact_key(self, key: Mapping[str, Any]) -> Key:
        """Return the key of a request, which may have no other attributes."""
        assert set(key) == set(self.key_names), f"not the table's key: {key}"
        return self.key_of(key)

    def states(self, key: Key) -> list[Item | None]:
        """Return the states that an item went through, the present one last."""
        return self.items.setdefault(key, [None])


class Tables:
    """What a DynamoDB holds. Knows no lock, and no moment but now.

    Requests are those of boto3's ``put_item`` and ``update_item``, or the same within a
    transaction; ``operation`` names in errors what was asked for.
    """

    def __init__(self, *, item_max: int) -> None:
        self._item_max = item_max
        self._tables: dict[str, Table] = {}

    def create(self, name: str, key_names: tuple[str, ...]) -> None:
        """Create a table of items with a key of these attributes."""
        if name in self._tables:
            raise refused("CreateTable", "ResourceInUseException", "Cannot create it again")
        self._tables[name] = Table(key_names)

    def state(self) -> Hashable:
        """Return all that the tables hold, and have held."""
        return tuple(
            (name, key, tuple(_frozen(item) for item in states))
            for name, table in sorted(self._tables.items())
            for key, states in sorted(table.items.items())
            if len(states) > 1
        )

    def table(self, name: str, operation: str) -> Table:
        """Return a table that has been created."""
        if name not in self._tables:
            raise refused(operation, "ResourceNotFoundException", "Cannot do it to no table")
        return self._tables[name]

    def write(self, request: Mapping[str, Any], operation: str) -> tuple[Item, Iterable[str]]:
        """Put or update; return the item that it came to, and the attributes that were set."""
        self._must_hold(request, operation)
        item, assigned = self._result(request, operation)
        table, key = self.key(request, operation)
        self.table(table, operation).states(key).append(item)
        return item, assigned

    def delete(self, request: Mapping[str, Any], operation: str) -> None:
        """Delete an item, whether it is there or not."""
        self._must_hold(request, operation)
        table, key = self.key(request, operation)
        self.table(table, operation).states(key).append(None)

    def part(self, name: str, part: int, parts: int, operation: str) -> list[Item]:
        """Return the items in a part of a table, in the order in which a scan comes by them."""
        placed = [
            (place, states[-1])
            for key, states in self.table(name, operation).items.items()
            if (place := place_of(key)) * parts // PLACES == part
        ]
        return [item for _, item in sorted(placed, key=itemgetter(0)) if item is not None]

    def transact(self, requests: Sequence[Mapping[str, Any]], operation: str) -> None:
        """Put and update all, or raise with the reasons of each."""
        reasons = [self._refusal(request, operation) for request in requests]
        if any(reason["Code"] != "None" for reason in reasons):
            error = refused(operation, "TransactionCanceledException", "It was cancelled")
            cast("dict[str, Any]", error.response)["CancellationReasons"] = reasons
            raise error
        results = [self._result(request, operation) for request in requests]
        for request, (item, _) in zip(requests, results, strict=True):
            table, key = self.key(request, operation)
            self.table(table, operation).states(key).append(item)

    def key(self, request: Mapping[str, Any], operation: str) -> tuple[str, Key]:
        """Return the table and the key that a put or an update is of."""
        table = self.table(request["TableName"], operation)
        if "Key" in request:
            return request["TableName"], table.exact_key(request["Key"])
        return request["TableName"], table.key_of(request["Item"])

    def check(self, table: str, item: Item, operation: str) -> None:
        """Refuse an item that DynamoDB would refuse."""
        size = sum(
            len(name.encode()) + _size(value)
            for name, attribute in item.items()
            for value in attribute.values()
        )
        if size > self._item_max:
            raise refused(
                operation, "ValidationException", "Item size has exceeded the maximum allowed size"
            )
        if not all(self.table(table, operation).key_of(item)):
            raise refused(operation, "ValidationException", "A key may not be empty")

    def _must_hold(self, request: Mapping[str, Any], operation: str) -> None:
        reason = self._refusal(request, operation)
        if reason["Code"] == "None":
            return
        error = refused(operation, "ConditionalCheckFailedException", reason["Message"])
        if "Item" in reason:
            cast("dict[str, Any]", error.response)["Item"] = reason["Item"]
        raise error

    def _refusal(self, request: Mapping[str, Any], operation: str) -> dict[str, Any]:
        """Return why a put or an update is refused, as transactions tell it."""
        table, key = self.key(request, operation)
        held = self.table(table, operation).states(key)[-1]
        substitutes = Substitutes(request)
        condition = request.get("ConditionExpression")
        if condition is None or holds(condition, held, substitutes):
            return {"Code": "None"}
        reason = {"Code": "ConditionalCheckFailed", "Message": "The condition failed"}
        if request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and held is not None:
            return {**reason, "Item": dict(held)}
        return reason

    def _result(self, request: Mapping[str, Any], operation: str) -> tuple[Item, Iterable[str]]:
        """Return the item that a put or an update makes, and the attributes that it sets."""
        table, key = self.key(request, operation)
        item, assigned = request.get("Item", {}), frozenset[str]()
        if "UpdateExpression" in request:
            held = self.table(table, operation).states(key)[-1] or request["Key"]
            item, assigned = updated(request["UpdateExpression"], held, Substitutes(request))
            assert self.table(table, operation).key_of(item) == key, "a key cannot be updated"
        self.check(table, item, operation)
        return item, assigned


def _size(value: str | bytes | bool) -> int:  # noqa: FBT001 - the value of an attribute
    if isinstance(value, bool):
        return 1
    return len(value if isinstance(value, bytes) else value.encode())


def place_of(key: Key) -> int:
    """Return where an item lies, whether it is there or not."""
    return int.from_bytes(md5("\0".join(key).encode(), usedforsecurity=False).digest(), "big")


def refused(operation: str, code: str, message: str) -> ClientError:
    """Return the error with which DynamoDB refuses an operation."""
    return ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {
                "RequestId": "",
                "HTTPStatusCode": 400,
                "HTTPHeaders": {},
                "HostId": "",
                "RetryAttempts": 0,
            },
        },
        operation,
    )


def _frozen(item: Item | None) -> Hashable:
    if item is None:
        return None
    return tuple(sorted((name, *next(iter(value.items()))) for name, value in item.items()))
