"""A DynamoDB in this process, of which a test decides when and what happens.

It stands in for boto3's client below the production ``DynamoProjections`` and its like::

    database = SimulatedDynamoDB(step=world.step)
    create_tables(database.client, prefix="", pause=never)
    projections = direct_projections(database.client, prefix="", ...)

Requests, answers and errors have boto3's shapes, expressions and statements are evaluated as
they are written, and what is not understood is an error. Of botocore's own work there is
nothing: no retries, no timeouts.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from botocore.exceptions import ClientError, EndpointConnectionError

from tests.support.dynamodb_expressions import parse
from tests.support.simulated_memcached import Delivery, Fault
from tests.support.simulated_tables import Tables, place_of, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.dynamodb_expressions import Item, Statement
    from tests.support.simulated_tables import Key

__all__ = ["Delivery", "Fault", "SimulatedDynamoDB"]

T = TypeVar("T")

_MAX_KEYS = 100
_MAX_STATEMENTS = 25
_MAX_PUTS = 25
_MAX_ACTIONS = 100
_MAX_PARTS = 1_000_000
_CONDITIONAL = {
    *("TableName", "ConditionExpression", "ExpressionAttributeNames"),
    *("ExpressionAttributeValues", "ReturnValuesOnConditionCheckFailure"),
}
_PUT = {*_CONDITIONAL, "Item"}
_SCAN = {"TableName", "ConsistentRead", "Limit", "ExclusiveStartKey"}
_UPDATE = {*_CONDITIONAL, "Key", "UpdateExpression"}


def _no_step(_label: str) -> None:
    pass


def _no_fault(_label: str) -> Fault | None:
    return None


def _all_processed(_label: str) -> bool:
    return False


def _newest(_label: str, states: int) -> int:
    return states - 1


class _Meta:
    """What clients of botocore tell of themselves: here, that nothing is ever sent again."""

    @property
    def events(self) -> _Meta:
        return self

    def register(self, event: str, handler: Callable[..., object]) -> None:
        """Take note of nothing: the event never comes."""

    def unregister(self, event: str, handler: Callable[..., object]) -> None:
        """Undo nothing."""


class SimulatedDynamoDB:
    """Tables of items. Safe to use from threads, though made for greenlets.

    ``step`` is called with ``"operation pk"``, and the sort key if there is one, just before
    each read or write of an item takes effect, those of a batch one by one, those of a
    transaction at once; no lock is held then. ``fault`` is asked next: its error is raised in
    place of the answer, the operation applied or not. A read that is not strongly consistent
    answers what ``staleness`` chooses: the index of one of the ``states`` that the item went
    through, the first (0) being its absence. What is part of a batch, and ``unprocessed`` is
    true of, is not done. Items past ``item_max`` bytes are refused.
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
        self._lock = threading.RLock()
        self._tables = Tables(item_max=item_max)
        self.meta = _Meta()
        self._late: list[Callable[[], object]] = []

    @property
    def client(self) -> DynamoDBClient:
        """Return this database in the type of boto3's client."""
        return cast("DynamoDBClient", self)

    def item(self, table: str, *key: str) -> Item | None:
        """Return what is held under a key: its pk, and its sk if the table has one."""
        with self._lock:
            return self._tables.table(table, "").states(key)[-1]

    def states(self, table: str, *key: str) -> list[Item | None]:
        """Return what was held under a key, from its absence to the present."""
        with self._lock:
            return list(self._tables.table(table, "").states(key))

    def sweep(self, table: str, *key: str) -> None:
        """Delete an item, as DynamoDB itself does some time after its TTL attribute says so."""
        with self._lock:
            self._tables.table(table, "").states(key).append(None)

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
            return self.reachable, self._tables.state()

    def create_table(self, **request: Any) -> dict[str, Any]:
        self._reach("CreateTable")
        with self._lock:
            names = tuple(part["AttributeName"] for part in request["KeySchema"])
            self._tables.create(request["TableName"], names)
        return self.describe_table(TableName=request["TableName"])

    def describe_table(self, **request: Any) -> dict[str, Any]:
        self._reach("DescribeTable")
        with self._lock:
            self._tables.table(request["TableName"], "DescribeTable")
        return {"Table": {"TableName": request["TableName"], "TableStatus": "ACTIVE"}}

    def update_time_to_live(self, **request: Any) -> dict[str, Any]:
        """Take the order, and sweep nothing, as DynamoDB may for days."""
        self._reach("UpdateTimeToLive")
        with self._lock:
            self._tables.table(request["TableName"], "UpdateTimeToLive")
        return {"TimeToLiveSpecification": request["TimeToLiveSpecification"]}

    def put_item(self, **request: Any) -> dict[str, Any]:
        """Put an item if its condition holds; else raise, with the old item if asked for it."""
        _understand(request, _PUT)
        self._tables.check(request["TableName"], request["Item"], "PutItem")
        key = self._tables.table(request["TableName"], "PutItem").key_of(request["Item"])

        def apply() -> dict[str, Any]:
            self._tables.write(request, "PutItem")
            return {}

        return self._execute(_label("PutItem", key), apply)

    def delete_item(self, **request: Any) -> dict[str, Any]:
        """Delete an item if its condition holds; else raise as ``put_item``."""
        _understand(request, {*_CONDITIONAL, "Key"})
        key = self._tables.table(request["TableName"], "DeleteItem").exact_key(request["Key"])

        def apply() -> dict[str, Any]:
            self._tables.delete(request, "DeleteItem")
            return {}

        return self._execute(_label("DeleteItem", key), apply)

    def update_item(self, **request: Any) -> dict[str, Any]:
        """Update an item, or create it, if its condition holds; else raise as ``put_item``."""
        _understand(request, {*_UPDATE, "ReturnValues"})
        key = self._tables.table(request["TableName"], "UpdateItem").exact_key(request["Key"])

        def apply() -> dict[str, Any]:
            item, assigned = self._tables.write(request, "UpdateItem")
            match request.get("ReturnValues", "NONE"):
                case "NONE":
                    return {}
                case "ALL_NEW":
                    return {"Attributes": dict(item)}
                case "UPDATED_NEW":
                    return {"Attributes": {name: item[name] for name in assigned}}
            raise AssertionError(f"not understood: {request['ReturnValues']}")

        return self._execute(_label("UpdateItem", key), apply)

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        """Apply up to 100 puts and updates if all of their conditions hold; else none."""
        _understand(request, {"TransactItems"})
        operation = "TransactWriteItems"
        actions = [_action(action) for action in request["TransactItems"]]
        keys = [self._tables.key(action, operation) for action in actions]
        if not 0 < len(actions) <= _MAX_ACTIONS or len(set(keys)) < len(actions):
            raise refused(operation, "ValidationException", "1 to 100 different items")

        def apply() -> dict[str, Any]:
            self._tables.transact(actions, operation)
            return {}

        return self._execute(
            " ".join([operation, *(part for _, key in keys for part in key)]), apply
        )

    def get_item(self, **request: Any) -> dict[str, Any]:
        """Read one item."""
        _understand(request, {"TableName", "Key", "ConsistentRead"})
        item = self._read(request["TableName"], request, request["Key"], "GetItem")
        return {} if item is None else {"Item": dict(item)}

    def scan(self, **request: Any) -> dict[str, Any]:
        """Read items in the order of their places, all at one moment."""
        _understand(request, {*_SCAN, "Segment", "TotalSegments"})
        assert request["ConsistentRead"], "of a scan that may be stale nothing is known here"
        table = self._tables.table(request["TableName"], "Scan")
        part, parts = request.get("Segment", 0), request.get("TotalSegments", 1)
        assert 0 <= part < parts <= _MAX_PARTS
        assert request["Limit"] > 0

        def apply() -> dict[str, Any]:
            items = self._tables.part(request["TableName"], part, parts, "Scan")
            if "ExclusiveStartKey" in request:
                start = place_of(table.exact_key(request["ExclusiveStartKey"]))
                items = [item for item in items if place_of(table.key_of(item)) > start]
            page = items[: request["Limit"]]
            answer: dict[str, Any] = {"Items": [dict(item) for item in page]}
            # So does DynamoDB, though there be no more.
            if len(page) == request["Limit"]:
                answer["LastEvaluatedKey"] = {name: page[-1][name] for name in table.key_names}
            return answer

        return self._execute("Scan", apply)

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        """Read up to 100 items, each at a moment of its own."""
        _understand(request, {"RequestItems"})
        responses: dict[str, Any] = {}
        unprocessed: dict[str, Any] = {}
        for table, reads in request["RequestItems"].items():
            _understand(reads, {"Keys", "ConsistentRead"})
            named = {
                self._tables.table(table, "BatchGetItem").exact_key(key): key
                for key in reads["Keys"]
            }
            if not 0 < len(named) <= _MAX_KEYS or len(named) < len(reads["Keys"]):
                raise refused("BatchGetItem", "ValidationException", "1 to 100 different keys")
            left = {key for key in named if self.unprocessed(_label("BatchGetItem", key))}
            if left:
                unprocessed[table] = {**reads, "Keys": [named[key] for key in named if key in left]}
            items = [
                self._read(table, reads, named[key], "BatchGetItem")
                for key in named
                if key not in left
            ]
            responses[table] = [dict(item) for item in items if item is not None]
        return {"Responses": responses, "UnprocessedKeys": unprocessed}

    def batch_write_item(self, **request: Any) -> dict[str, Any]:
        """Put up to 25 items, each at a moment of its own."""
        _understand(request, {"RequestItems"})
        operation = "BatchWriteItem"
        unprocessed: dict[str, Any] = {}
        for name, writes in request["RequestItems"].items():
            table = self._tables.table(name, operation)
            items = [write["PutRequest"]["Item"] for write in writes]
            keys = [table.key_of(item) for item in items]
            if not 0 < len(keys) <= _MAX_PUTS or len(set(keys)) < len(keys):
                raise refused(operation, "ValidationException", "1 to 25 different items")
            for item in items:
                self._tables.check(name, item, operation)
            for write, item, key in zip(writes, items, keys, strict=True):
                label = _label(operation, key)
                if self.unprocessed(label):
                    unprocessed.setdefault(name, []).append(write)
                else:
                    self._execute(label, _appends(table.states(key), item))
        return {"UnprocessedItems": unprocessed}

    def batch_execute_statement(self, **request: Any) -> dict[str, Any]:
        """Execute up to 25 statements, each by itself."""
        statements = [
            parse(statement["Statement"], statement["Parameters"])
            for statement in request["Statements"]
        ]
        names = {statement.pk for statement in statements}
        if not 0 < len(statements) <= _MAX_STATEMENTS or len(names) < len(statements):
            raise refused("BatchExecuteStatement", "ValidationException", "1 to 25 different keys")
        return {"Responses": [self._statement(statement) for statement in statements]}

    def _statement(self, statement: Statement) -> dict[str, Any]:
        operation = "BatchExecuteStatement"

        def apply() -> dict[str, Any]:
            states = self._tables.table(statement.table, operation).states((statement.pk,))
            refusal = statement.refusal(states[-1])
            if refusal is not None:
                return {"TableName": statement.table, "Error": {"Code": refusal, "Message": ""}}
            item = statement.applied_to(states[-1])
            self._tables.check(statement.table, item, operation)
            states.append(item)
            return {"TableName": statement.table}

        return self._execute(f"{operation} {statement.pk}", apply)

    def _read(
        self, table: str, request: Mapping[str, Any], key: Mapping[str, Any], operation: str
    ) -> Item | None:
        states_of = self._tables.table(table, operation)
        label = _label(operation, states_of.exact_key(key))

        def apply() -> Item | None:
            states = states_of.states(states_of.key_of(key))
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


def _understand(request: Mapping[str, Any], parameters: set[str]) -> None:
    assert set(request) <= parameters, f"not understood: {set(request) - parameters}"


def _action(action: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the put or the update that an action of a transaction is."""
    ((kind, request),) = action.items()
    _understand(request, {"Put": _PUT, "Update": _UPDATE}[kind])
    typed: Mapping[str, Any] = request
    return typed


def _label(operation: str, key: Key) -> str:
    return " ".join((operation, *key))


def _appends(states: list[Item | None], item: Item) -> Callable[[], None]:
    return lambda: states.append(item)
