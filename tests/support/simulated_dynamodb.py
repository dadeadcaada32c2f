"""A DynamoDB in this process, of which a test decides when and what happens.

It stands in for boto3's client below the production ``DynamoProjections``::

    database = SimulatedDynamoDB(step=world.step)
    create_tables(database.client, prefix="", pause=never)
    projections = direct_projections(database.client, prefix="", ...)

Requests, answers and errors have boto3's shapes, conditions and statements are evaluated as
they are written. Of botocore's own work there is nothing: no retries, no timeouts.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from botocore.exceptions import ClientError, EndpointConnectionError

from tests.support.dynamodb_expressions import holds, parse
from tests.support.simulated_memcached import Delivery, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.dynamodb_expressions import Item, Statement

__all__ = ["Delivery", "Fault", "SimulatedDynamoDB"]

T = TypeVar("T")

_MAX_KEYS = 100
_MAX_STATEMENTS = 25


def _no_step(_label: str) -> None:
    pass


def _no_fault(_label: str) -> Fault | None:
    return None


def _all_processed(_label: str) -> bool:
    return False


def _newest(_label: str, states: int) -> int:
    return states - 1


class SimulatedDynamoDB:
    """Tables of items under a ``pk``. Safe to use from threads, though made for greenlets.

    ``step`` is called with ``"operation pk"`` just before each read or write of an item
    takes effect, those of a batch one by one; no lock is held then. ``fault`` is asked
    next: its error is raised in place of the answer, the operation applied or not. A read
    that is not strongly consistent answers what ``staleness`` chooses: the index of one of
    the ``states`` that the item went through, the first (0) being its absence. Reads of a
    batch for which ``unprocessed`` is true are not done. Items past ``item_max`` bytes are
    refused.
    """

    def __init__(
        self,
        *,
        step: Callable[[str], None] = _no_step,
        staleness: Callable[[str, int], int] = _newest,
        item_max: int = 400 * 1024,
    ) -> None:
        self.step = step
        self.staleness = staleness
        self.fault: Callable[[str], Fault | None] = _no_fault
        self.unprocessed: Callable[[str], bool] = _all_processed
        self.reachable = True
        self._item_max = item_max
        self._lock = threading.RLock()
        self._tables: dict[str, dict[str, list[Item | None]]] = {}
        self._late: list[Callable[[], object]] = []

    @property
    def client(self) -> DynamoDBClient:
        """Return this database in the type of boto3's client."""
        return cast("DynamoDBClient", self)

    def item(self, table: str, pk: str) -> Item | None:
        """Return what is held under a key."""
        with self._lock:
            return self._states(table, pk)[-1]

    def deliver(self) -> None:
        """Apply the writes that are late."""
        with self._lock:
            late, self._late = self._late, []
            for apply in late:
                with suppress(ClientError):
                    apply()

    def state(self) -> Hashable:
        """Return all that the answers to come depend on, but for late writes and faults."""
        with self._lock:
            return self.reachable, tuple(
                (table, pk, tuple(_frozen(item) for item in states))
                for table, items in sorted(self._tables.items())
                for pk, states in sorted(items.items())
                if len(states) > 1
            )

    def create_table(self, **request: Any) -> dict[str, Any]:
        self._reach("CreateTable")
        with self._lock:
            if request["TableName"] in self._tables:
                raise _error("CreateTable", "ResourceInUseException", "Cannot create it again")
            self._tables[request["TableName"]] = {}
        return self.describe_table(TableName=request["TableName"])

    def describe_table(self, **request: Any) -> dict[str, Any]:
        self._reach("DescribeTable")
        with self._lock:
            self._table(request["TableName"], "DescribeTable")
        return {"Table": {"TableName": request["TableName"], "TableStatus": "ACTIVE"}}

    def put_item(self, **request: Any) -> dict[str, Any]:
        """Put an item if its condition holds; else raise, with the old item if asked for it."""
        table, item = request["TableName"], request["Item"]
        self._check(item, "PutItem")

        def apply() -> dict[str, Any]:
            states = self._states(table, item["pk"]["S"], "PutItem")
            condition = request.get("ConditionExpression")
            values = request.get("ExpressionAttributeValues", {})
            if condition is None or holds(condition, states[-1], values):
                states.append(item)
                return {}
            error = _error("PutItem", "ConditionalCheckFailedException", "The condition failed")
            if request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and states[-1]:
                error.response["Item"] = dict(states[-1])  # type: ignore[typeddict-unknown-key]
            raise error

        return self._execute(f"PutItem {item['pk']['S']}", apply)

    def get_item(self, **request: Any) -> dict[str, Any]:
        """Read one item."""
        item = self._read(request["TableName"], request, request["Key"]["pk"]["S"], "GetItem")
        return {} if item is None else {"Item": dict(item)}

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        """Read up to 100 items, each at a moment of its own."""
        responses: dict[str, Any] = {}
        unprocessed: dict[str, Any] = {}
        for table, reads in request["RequestItems"].items():
            names = [key["pk"]["S"] for key in reads["Keys"]]
            if not 0 < len(names) <= _MAX_KEYS or len(set(names)) < len(names):
                raise _error("BatchGetItem", "ValidationException", "1 to 100 different keys")
            left = [name for name in names if self.unprocessed(f"BatchGetItem {name}")]
            if left:
                unprocessed[table] = {**reads, "Keys": [{"pk": {"S": name}} for name in left]}
            items = [
                self._read(table, reads, name, "BatchGetItem") for name in names if name not in left
            ]
            responses[table] = [dict(item) for item in items if item is not None]
        return {"Responses": responses, "UnprocessedKeys": unprocessed}

    def batch_execute_statement(self, **request: Any) -> dict[str, Any]:
        """Execute up to 25 statements, each by itself."""
        statements = [
            parse(statement["Statement"], statement["Parameters"])
            for statement in request["Statements"]
        ]
        names = {statement.pk for statement in statements}
        if not 0 < len(statements) <= _MAX_STATEMENTS or len(names) < len(statements):
            raise _error("BatchExecuteStatement", "ValidationException", "1 to 25 different keys")
        return {"Responses": [self._statement(statement) for statement in statements]}

    def _statement(self, statement: Statement) -> dict[str, Any]:
        operation = "BatchExecuteStatement"

        def apply() -> dict[str, Any]:
            states = self._states(statement.table, statement.pk, operation)
            refusal = statement.refusal(states[-1])
            if refusal is not None:
                return {"TableName": statement.table, "Error": {"Code": refusal, "Message": ""}}
            item = statement.applied_to(states[-1])
            self._check(item, operation)
            states.append(item)
            return {"TableName": statement.table}

        return self._execute(f"{operation} {statement.pk}", apply)

    def _read(self, table: str, request: Mapping[str, Any], pk: str, operation: str) -> Item | None:
        label = f"{operation} {pk}"

        def apply() -> Item | None:
            states = self._states(table, pk, operation)
            consistent = request.get("ConsistentRead", False)
            return states[-1 if consistent else self.staleness(label, len(states))]

        return self._execute(label, apply)

    def _execute(self, label: str, apply: Callable[[], T]) -> T:
        """Let an operation take effect on one item."""
        self._reach(label)

        def locked() -> T:
            with self._lock:
                return apply()

        fault = self.fault(label)
        if fault is None:
            return locked()
        if fault.delivery is Delivery.APPLIED:
            with suppress(ClientError):
                locked()
        elif fault.delivery is Delivery.LATE:
            self._late.append(locked)
        raise fault.error

    def _reach(self, label: str) -> None:
        self.step(label)
        if not self.reachable:
            raise EndpointConnectionError(endpoint_url="simulated:")

    def _states(self, table: str, pk: str, operation: str = "") -> list[Item | None]:
        return self._table(table, operation).setdefault(pk, [None])

    def _table(self, table: str, operation: str) -> dict[str, list[Item | None]]:
        if table not in self._tables:
            raise _error(operation, "ResourceNotFoundException", "Cannot do it to no table")
        return self._tables[table]

    def _check(self, item: Item, operation: str) -> None:
        """Refuse an item that DynamoDB would refuse."""
        size = sum(
            len(name.encode()) + len(value if isinstance(value, bytes) else value.encode())
            for name, attribute in item.items()
            for value in attribute.values()
        )
        if size > self._item_max:
            raise _error(operation, "ValidationException", "Item size has exceeded the maximum")
        if not item["pk"]["S"]:
            raise _error(operation, "ValidationException", "A key may not be empty")


def _error(operation: str, code: str, message: str) -> ClientError:
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
