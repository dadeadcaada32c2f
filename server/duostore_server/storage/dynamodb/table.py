"""The projection table: the requests that are made of it, one call to DynamoDB each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from botocore.exceptions import ClientError

from duostore_server.domain.entities import Form
from duostore_server.storage.dynamodb.batch_get import get_items
from duostore_server.storage.dynamodb.errors import CONDITION_FAILED, error_code, is_overload
from duostore_server.storage.dynamodb.items import attributes_of, decode, stub
from duostore_server.storage.dynamodb.statements import EXPECTED_REFUSALS, refusal, statement
from duostore_server.storage.dynamodb.transact import is_too_large

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from duostore_server.domain.entities import Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.errors import ErrorEdge
    from duostore_server.storage.dynamodb.items import Unreadable, Write

MAX_KEYS: Final = 100

# An item whose version cannot be compared would stand in the way for ever: replace it.
_IF_NEWER: Final = (
    "attribute_not_exists(pk) OR NOT attribute_type(version, :number) OR version < :version"
)
_FALLEN_BACK: Final = (
    "single puts do its work, at ten times the CPU; if it is access that is denied, allow "
    "dynamodb:PartiQLInsert and dynamodb:PartiQLUpdate"
)


class ProjectionTable:
    """Reads and conditionally writes the items of projections.

    Each method blocks for as long as the client's timeouts and retries allow, and
    raises ``StoreError``s.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        *,
        table: str,
        edge: ErrorEdge,
        unreadable: Unreadable,
        statements_from: int = 2,
    ) -> None:
        """``statements_from`` is the number of writes in a call from which on it has statements."""
        self._client = client
        self._table = table
        self._edge = edge
        self._unreadable = unreadable
        self._statements_from = statements_from

    def fetch(self, keys: Sequence[EntityKey]) -> dict[EntityKey, Projection | None]:
        """Return what is held of up to 100 different keys, None where there is nothing.

        Strongly consistent. Keys that DynamoDB did not get to are left out.
        """
        items = get_items(
            self._client, self._edge, self._table, {key: {"pk": {"S": str(key)}} for key in keys}
        )
        return {
            key: None if item is None else decode(key, item, self._unreadable)
            for key, item in items.items()
        }

    def put(self, writes: Sequence[Write]) -> dict[Write, Projection]:
        """Store each write unless what is held is newer, or as new and lacks nothing of it.

        Returns what is held.
        """
        return {write: self._put(write) for write in writes}

    def _put(self, write: Write) -> Projection:
        condition, values = _if_newer_or_lacking(write)
        with self._edge.translated():
            try:
                self._client.put_item(
                    TableName=self._table,
                    Item=write.item,
                    ConditionExpression=condition,
                    ExpressionAttributeValues=values,
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
            except ClientError as error:
                if error_code(error) == CONDITION_FAILED:
                    # Also when the put had succeeded, its reply was lost and it was sent again.
                    return decode(write.key, _old_item(error), self._unreadable)
                if write.projection.form is Form.VALUE and is_too_large(error):
                    return self._put(stub(write))
                raise
        return write.projection

    def put_together(self, writes: Sequence[Write]) -> dict[Write, Projection | None]:
        """As ``put``, for up to 25 writes in one call; None for those that it did not apply.

        None says nothing about what is held: ask ``put``, which knows all cases. Of
        several writes of one key only the newest is tried, since a call may name an
        item once. A single write is put.
        """
        if len(writes) < self._statements_from:
            return {**self.put(writes)}
        newest: dict[EntityKey, Write] = {}
        for write in writes:
            other = newest.get(write.key)
            if other is None or other.projection.version < write.projection.version:
                newest[write.key] = write
        refusals = self._execute(list(newest.values()))
        for refused in {*refusals} - {None, *EXPECTED_REFUSALS}:
            self._edge.complain(f"BatchExecuteStatement: {refused}", _FALLEN_BACK)
        held: dict[Write, Projection | None] = dict.fromkeys(writes)
        for write, refused in zip(newest.values(), refusals, strict=True):
            if refused is None:
                held[write] = write.projection
        return held

    def _execute(self, writes: Sequence[Write]) -> list[str | None]:
        """Return for each write why it was refused, or None if it was applied."""
        with self._edge.translated():
            try:
                responses = self._client.batch_execute_statement(
                    Statements=[statement(self._table, write) for write in writes]
                )["Responses"]
            except ClientError as error:
                if is_overload(error):
                    raise
                # A put of each will tell what is the matter, if it is not the statements.
                return [error_code(error)] * len(writes)
        return [refusal(response) for response in responses]


def _if_newer_or_lacking(write: Write) -> tuple[str, dict[str, AttributeValueTypeDef]]:
    """Return the condition of a put, and its values.

    A stub gives way to all that its version has: the document may fit by now, or what could
    not be made of it can be. It gives way to no other stub: what is too large is too large, and
    would be written anew by each who tries.
    """
    values: dict[str, AttributeValueTypeDef] = {
        ":version": write.item["version"],
        ":number": {"S": "N"},
    }
    if write.projection.form is Form.STUB:
        return _IF_NEWER, values
    condition = f"{_IF_NEWER} OR (version = :version AND form = :stub)"
    values[":stub"] = {"S": Form.STUB.value}
    if write.projection.form is Form.TOMBSTONE:
        return condition, values
    lacking = " OR ".join(map(_lacks, sorted(write.projection.shapes)))
    condition = f"{condition} OR (version = :version AND form = :value AND ({lacking}))"
    return condition, {**values, ":value": {"S": Form.VALUE.value}}


def _lacks(shape: int) -> str:
    payload, _, _, *versions = attributes_of(shape)
    return " OR ".join(
        [
            f"attribute_not_exists({payload})",
            # A shape that was left behind is not there.
            *(f"NOT {version} = :version" for version in versions),
        ]
    )


def _old_item(error: ClientError) -> Mapping[str, Any]:
    """Return the item that a condition was not true of."""
    return cast("Mapping[str, Any]", error.response.get("Item", {}))
