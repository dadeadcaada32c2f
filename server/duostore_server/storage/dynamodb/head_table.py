"""The heads of entities at home in DynamoDB: the requests that are made, one call each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from botocore.exceptions import ClientError

from duostore_server.domain.errors import Store, WriteOutcomeUnknownError
from duostore_server.domain.snapshots import HeadWritten
from duostore_server.domain.transactions import IfVersion
from duostore_server.storage.dynamodb.attributes import UnreadableError, whole
from duostore_server.storage.dynamodb.batch_get import get_items
from duostore_server.storage.dynamodb.errors import CONDITION_FAILED, CONFLICT, error_code
from duostore_server.storage.dynamodb.head_items import NONCE, NUMBER, TIME, head_key, time_of
from duostore_server.storage.dynamodb.head_payloads import too_large
from duostore_server.storage.dynamodb.head_writes import decode_head
from duostore_server.storage.dynamodb.idempotency import record_put
from duostore_server.storage.dynamodb.transact import is_too_large, transact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.literals import ReturnValueType
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.snapshots import Head
    from duostore_server.domain.transactions import Idempotency, Recorded
    from duostore_server.storage.dynamodb.errors import ErrorEdge
    from duostore_server.storage.dynamodb.head_writes import Attempt, HeadWrite
    from duostore_server.storage.dynamodb.items import Unreadable
    from duostore_server.storage.dynamodb.lost_replies import LostReplies
    from duostore_server.storage.dynamodb.transact import Refusal


@dataclass(frozen=True, slots=True)
class NotApplied:
    """A write whose condition did not hold: of ``head``, or since there is none.

    None of it was applied. With ``in_conflict`` a transaction is at work on the head, and
    nothing is known of it.
    """

    head: Head | None = None
    in_conflict: bool = False


# What is held; nothing; or something that cannot be read.
Found: TypeAlias = "Head | UnreadableError | None"


class HeadTable:
    """Reads and conditionally writes heads.

    Each method blocks for as long as the client's timeouts and retries allow, and raises
    ``StoreError``s, or ``UnreadableError`` if it needs what cannot be read.
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
    ) -> None:
        """``table`` and ``records`` are the names of the tables of heads and of records."""
        self._client = client
        self.table = table
        self._records = records
        self._edge = edge
        self._lost = lost
        self._unreadable = unreadable

    def fetch(self, keys: Sequence[EntityKey]) -> dict[EntityKey, Found]:
        """Return what is held of up to 100 different keys, None where there is nothing.

        Strongly consistent. Keys that DynamoDB did not get to are left out.
        """
        items = get_items(
            self._client, self._edge, self.table, {key: head_key(key) for key in keys}
        )
        return {
            key: None if item is None else self._decoded(key, item) for key, item in items.items()
        }

    def apply(self, write: HeadWrite, attempt: Attempt) -> HeadWritten | NotApplied:
        """Apply a change by one update, if its condition holds.

        Raises ``InvalidRequestError`` if it is too large for an item, and
        ``WriteOutcomeUnknownError`` if it may have been applied.
        """
        with self._lost.translated(self._edge):
            try:
                response = self._client.update_item(
                    **write.update(attempt), ReturnValues=_wanted(write, attempt)
                )
            except ClientError as error:
                return self._not_applied(write, error)
        held = response.get("Attributes", {})
        if attempt.ahead:
            return _written(held)
        expected = write.change.precondition
        if isinstance(expected, IfVersion):
            return HeadWritten(expected.version + 1, write.change.now)
        return HeadWritten(whole(held, NUMBER), write.change.now)

    def _not_applied(self, write: HeadWrite, error: ClientError) -> HeadWritten | NotApplied:
        code = error_code(error)
        if is_too_large(error):
            raise too_large(write.held) from error
        if code not in {CONDITION_FAILED, CONFLICT}:
            raise error
        item = cast("Mapping[str, Any]", error.response.get("Item", {}))
        if item.get(NONCE) == {"B": write.nonce}:
            # An earlier attempt was applied, and its reply was lost.
            return _written(item)
        if self._lost.any:
            # It may have been applied, and another write may have come after it.
            raise WriteOutcomeUnknownError(Store.DYNAMODB) from error
        if code == CONFLICT:
            return NotApplied(in_conflict=True)
        return NotApplied(self._readable(write.change.key, item) if item else None)

    def apply_once(
        self,
        write: HeadWrite,
        head: Head | None,
        time: datetime,
        idempotency: Idempotency,
        recorded: Recorded,
    ) -> Sequence[Refusal] | None:
        """Apply a change to exactly this head and record its answer, both or neither.

        Returns None if it was applied; else why not: the head's refusal, the record's.
        Raises as ``apply``.
        """
        actions: list[TransactWriteItemTypeDef] = [
            {"Update": write.update_of(head, time)},
            record_put(self._records, idempotency, recorded, write.change.now),
        ]
        with self._lost.translated(self._edge):
            return transact(self._client, actions)

    def _readable(self, key: EntityKey, item: Mapping[str, Any]) -> Head:
        found = self._decoded(key, item)
        if isinstance(found, UnreadableError):
            raise found
        return found

    def _decoded(self, key: EntityKey, item: Mapping[str, Any]) -> Head | UnreadableError:
        try:
            return decode_head(item)
        except UnreadableError as error:
            self._unreadable(key, 0, str(error))
            return error


def _wanted(write: HeadWrite, attempt: Attempt) -> ReturnValueType:
    """Return what an update is to answer with: as little as tells version and time.

    It cannot be less than all that was updated, the payload too; engines differ in whether
    what was updated to what it was before is part of that.
    """
    if attempt.ahead:
        return "ALL_NEW"
    return "NONE" if isinstance(write.change.precondition, IfVersion) else "UPDATED_NEW"


def _written(item: Mapping[str, Any]) -> HeadWritten:
    return HeadWritten(whole(item, NUMBER), time_of(whole(item, TIME)))
