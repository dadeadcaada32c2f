"""The snapshot table: the requests that snapshots make of it, one call to DynamoDB each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from botocore.exceptions import ClientError

from duostore_server.domain.errors import Store, WriteOutcomeUnknownError
from duostore_server.domain.transactions import Applied, Recorded
from duostore_server.storage.dynamodb.attributes import UnreadableError, whole
from duostore_server.storage.dynamodb.batch_get import get_items
from duostore_server.storage.dynamodb.errors import CONDITION_FAILED, CONFLICT, error_code
from duostore_server.storage.dynamodb.head_items import NUMBER, head_key, names, number
from duostore_server.storage.dynamodb.head_payloads import too_large
from duostore_server.storage.dynamodb.idempotency import record_put
from duostore_server.storage.dynamodb.snapshot_items import (
    decode_snapshot,
    head_update,
    history_put,
    is_over,
)
from duostore_server.storage.dynamodb.transact import is_too_large, transact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import (
        QueryInputTypeDef,
        TransactWriteItemTypeDef,
        UpdateTypeDef,
    )

    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.snapshots import StoredSnapshot
    from duostore_server.domain.transactions import Idempotency
    from duostore_server.storage.dynamodb.errors import ErrorEdge
    from duostore_server.storage.dynamodb.items import Unreadable
    from duostore_server.storage.dynamodb.lost_replies import LostReplies
    from duostore_server.storage.dynamodb.snapshot_items import Append, HistoryPut
    from duostore_server.storage.dynamodb.transact import Refusal

MAX_PUTS: Final = 25

_NOT_DONE: Final = "attribute_not_exists(#nonce) OR #nonce <> :nonce"


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one item: the head's, or that of a snapshot in the history."""

    key: EntityKey
    sk: str


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Asks for up to ``limit`` items of a key, from the largest sort key below ``below``."""

    key: EntityKey
    below: str | None
    limit: int


@dataclass(frozen=True, slots=True)
class Page:
    """Snapshots, newest first; ``below`` is where to go on, None at the end."""

    snapshots: tuple[StoredSnapshot, ...]
    below: str | None


class SnapshotTable:
    """Raises heads, and puts and reads snapshots.

    Each method blocks for as long as the client's timeouts and retries allow, and raises
    ``StoreError``s. ``now`` is the clock by which snapshots expire.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        *,
        table: str,
        records: str,
        edge: ErrorEdge,
        lost: LostReplies,
        unreadable: Unreadable,
        now: Callable[[], datetime],
    ) -> None:
        """``records`` is the name of the table of idempotency records."""
        self._client = client
        self._table = table
        self._records = records
        self._edge = edge
        self._lost = lost
        self._unreadable = unreadable
        self._now = now

    def raise_head(self, append: Append) -> int | None:
        """Make a snapshot the head; return its sequence.

        Returns None, with nothing done, if a transaction is at work on the head. Made
        again it returns the same sequence, unless another snapshot came in between: then
        it is appended twice.
        """
        raised = "if_not_exists(#number, :zero) + :one"
        numbers = {":zero": number(0), ":one": number(1)}
        with self._lost.translated(self._edge):
            try:
                response = self._client.update_item(
                    **head_update(self._table, append, raised, numbers),
                    ConditionExpression=_NOT_DONE,
                    # The number cannot be had alone: what was updated comes back with it.
                    ReturnValues="UPDATED_NEW",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
            except ClientError as error:
                code = error_code(error)
                if code == CONDITION_FAILED:
                    # The head has our nonce: the reply to an earlier attempt was lost.
                    item = cast("Mapping[str, Any]", error.response.get("Item", {}))
                    return whole(item, NUMBER)
                if code == CONFLICT:
                    if self._lost.any:
                        raise WriteOutcomeUnknownError(Store.DYNAMODB) from error
                    return None
                if is_too_large(error):
                    raise too_large(append.held) from error
                raise
        return whole(response["Attributes"], NUMBER)

    def append_once(
        self,
        append: Append,
        guess: int | None,
        *,
        idempotency: Idempotency,
        now: datetime,
    ) -> tuple[int, Sequence[Refusal] | None]:
        """Make a snapshot the head, if its number is as guessed, and record the answer.

        All of it or nothing. Reads the number first, by a call of its own, if there is no
        guess. Returns the sequence, and None or what stood in the way: of the head, of
        the record, of the history if it is to be there.
        """
        after = self.number(append.key) if guess is None else guess
        sequence = after + 1
        numbers = {":number": number(sequence), **({":after": number(after)} if after else {})}
        head: UpdateTypeDef = {
            **head_update(self._table, append, ":number", numbers),
            "ConditionExpression": "#number = :after" if after else "attribute_not_exists(#number)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        answer = (Applied(sequence, append.time),)
        recorded = Recorded(idempotency.request_hash, answer, projected=True)
        actions: list[TransactWriteItemTypeDef] = [
            {"Update": head},
            record_put(self._records, idempotency, recorded, now),
        ]
        if append.in_history:
            item = history_put(append, sequence).item
            actions.append({"Put": {"TableName": self._table, "Item": item}})
        with self._lost.translated(self._edge):
            return sequence, transact(self._client, actions)

    def put_alone(self, put: HistoryPut) -> None:
        """Put a snapshot into the history. Repeatable."""
        with self._edge.translated():
            self._client.put_item(TableName=self._table, Item=put.item)

    def put_history(self, puts: Sequence[HistoryPut]) -> dict[HistoryPut, None]:
        """Put up to 25 snapshots; those that DynamoDB did not get to are left out. Repeatable."""
        with self._edge.translated():
            response = self._client.batch_write_item(
                RequestItems={self._table: [{"PutRequest": {"Item": put.item}} for put in puts]}
            )
        left = {
            (request["PutRequest"]["Item"]["pk"]["S"], request["PutRequest"]["Item"]["sk"]["S"])
            for request in response.get("UnprocessedItems", {}).get(self._table, ())
        }
        return dict.fromkeys(put for put in puts if (put.pk, put.sk) not in left)

    def number(self, key: EntityKey) -> int:
        """Return the number of a head, 0 if there is none. Strongly consistent."""
        with self._edge.translated():
            response = self._client.get_item(
                TableName=self._table,
                Key=head_key(key),
                ConsistentRead=True,
                ProjectionExpression="#number",
                ExpressionAttributeNames=names(NUMBER),
            )
        head = response.get("Item")
        return 0 if head is None else self.number_in(key, head)

    def number_in(self, key: EntityKey, head: Mapping[str, Any]) -> int:
        """Return the number of a head; raise ``UnreadableError`` if there is none to be seen."""
        try:
            return whole(head, NUMBER)
        except UnreadableError as error:
            self._unreadable(key, 0, str(error))
            raise

    def fetch(self, slots: Sequence[Slot]) -> dict[Slot, StoredSnapshot | None]:
        """Return the snapshots in up to 100 different slots, None where there is none.

        Strongly consistent. Slots that DynamoDB did not get to are left out.
        """
        items = get_items(
            self._client,
            self._edge,
            self._table,
            {slot: {"pk": {"S": str(slot.key)}, "sk": {"S": slot.sk}} for slot in slots},
        )
        now = self._now()
        return {
            slot: None if item is None else decode_snapshot(slot.key, item, now, self._unreadable)
            for slot, item in items.items()
        }

    def pages(self, requests: Sequence[PageRequest]) -> dict[PageRequest, Page]:
        """Return the page that each asks for, by one call each. Strongly consistent."""
        return {request: self._page(request) for request in requests}

    def _page(self, request: PageRequest) -> Page:
        query: QueryInputTypeDef = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": str(request.key)}},
            "ScanIndexForward": False,
            "ConsistentRead": True,
            "Limit": request.limit,
        }
        if request.below is not None:
            query["KeyConditionExpression"] = "pk = :pk AND sk < :below"
            query["ExpressionAttributeValues"] = {
                ":pk": {"S": str(request.key)},
                ":below": {"S": request.below},
            }
        with self._edge.translated():
            response = self._client.query(**query)
        now = self._now()
        # The head sorts first, and may be in the history too.
        snapshots: dict[int, StoredSnapshot] = {}
        for item in response["Items"]:
            snapshot = decode_snapshot(request.key, item, now, self._unreadable)
            if snapshot is not None:
                snapshots.setdefault(snapshot.sequence, snapshot)
        last = response.get("LastEvaluatedKey")
        # History is given its end in the order of sequences: where a whole page has expired
        # so has what is below, and DynamoDB may be days behind with sweeping it.
        if last is None or all(self._is_over(item, now) for item in response["Items"]):
            return Page(tuple(snapshots.values()), None)
        return Page(tuple(snapshots.values()), last["sk"]["S"])

    @staticmethod
    def _is_over(item: Mapping[str, Any], now: datetime) -> bool:
        try:
            return is_over(item, now)
        except UnreadableError:
            return False
