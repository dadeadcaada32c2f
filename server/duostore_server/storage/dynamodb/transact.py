"""Runs ``TransactWriteItems``, and tells what stood in the way of one that was refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from botocore.exceptions import ClientError

from duostore_server.domain.errors import Store, StoreOverloadedError
from duostore_server.storage.dynamodb.errors import error_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# The reasons of a cancelled transaction, one for each action; "None" is that of an
# action which was not at fault.
_CONDITION_FAILED: Final = "ConditionalCheckFailed"
_CONFLICT: Final = "TransactionConflict"
_OVERLOADS: Final = frozenset({"ProvisionedThroughputExceeded", "ThrottlingError"})
_INVALID: Final = frozenset({"ValidationError", "ValidationException"})

_CANCELLED: Final = "TransactionCanceledException"
# Of the call as a whole: the first attempt, which botocore gave up, is still under way.
_IN_PROGRESS: Final = "TransactionInProgressException"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one action of a transaction was refused; all are false if it was not at fault.

    ``conflicts``: with another write of the item that is under way. ``item`` is what
    ``condition_failed`` on, if there is any and the action asks for it.
    """

    condition_failed: bool = False
    conflicts: bool = False
    too_large: bool = False
    item: Mapping[str, Any] | None = None

    @property
    def is_decided(self) -> bool:
        """Whether the action is at fault, in a way that is told here."""
        return self.condition_failed or self.conflicts or self.too_large


def transact(
    client: DynamoDBClient, actions: Sequence[TransactWriteItemTypeDef]
) -> Sequence[Refusal] | None:
    """Apply all actions, or none; return None if they were applied.

    Otherwise returns for each action, in order, why it was refused; one of them at least
    is at fault. Those that are not told to be at fault may be so all the same. Raises
    ``StoreOverloadedError`` if DynamoDB has no room, and botocore's errors as they are.
    Botocore may send it twice, under one token, and it is applied once.
    """
    try:
        client.transact_write_items(TransactItems=actions)
    except ClientError as error:
        if error_code(error) == _IN_PROGRESS:
            # Botocore has sent it again while the first attempt still may be applied.
            return [Refusal(conflicts=True)] * len(actions)
        if is_too_large(error):
            return [Refusal(too_large=True)] * len(actions)
        if error_code(error) != _CANCELLED:
            raise
        reasons = cast("Sequence[Mapping[str, Any]]", error.response.get("CancellationReasons", ()))
        refusals = [_refusal(reason) for reason in reasons]
        if any(refusal.is_decided for refusal in refusals):
            return refusals
        if any(reason.get("Code") in _OVERLOADS for reason in reasons):
            raise StoreOverloadedError(Store.DYNAMODB) from error
        raise
    return None


def is_too_large(error: ClientError) -> bool:
    """Return whether DynamoDB refused an item for its size."""
    return _is_size(error_code(error), error.response["Error"].get("Message", ""))


def _refusal(reason: Mapping[str, Any]) -> Refusal:
    code = reason.get("Code", "")
    return Refusal(
        condition_failed=code == _CONDITION_FAILED,
        conflicts=code == _CONFLICT,
        too_large=_is_size(code, reason.get("Message", "")),
        item=reason.get("Item"),
    )


def _is_size(code: str, message: str) -> bool:
    return code in _INVALID and "size" in message and "has exceeded" in message
