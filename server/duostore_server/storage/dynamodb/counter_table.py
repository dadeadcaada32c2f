"""The counter table: the requests that are made of it, one call to DynamoDB each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from botocore.exceptions import ClientError

from duostore_server.domain.counters import GrantStepped, Stepped
from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.storage.dynamodb.attributes import UnreadableError
from duostore_server.storage.dynamodb.batch_get import get_items
from duostore_server.storage.dynamodb.counter_items import (
    COMMITTED,
    FORGET_TIME,
    NONCE,
    decode_counter,
    decode_grant,
    encode_grant,
    encode_settlement,
    grant_pk,
)
from duostore_server.storage.dynamodb.counter_steps import step_update
from duostore_server.storage.dynamodb.errors import CONDITION_FAILED, CONFLICT, error_code
from duostore_server.storage.dynamodb.head_items import names, number
from duostore_server.storage.dynamodb.transact import Refusal, transact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef, UpdateTypeDef

    from duostore_server.domain.counters import Counter, Grant, Settlement, Step
    from duostore_server.domain.quotas import CounterKey
    from duostore_server.storage.dynamodb.errors import ErrorEdge
    from duostore_server.storage.dynamodb.idempotency import UnreadableRecord
    from duostore_server.storage.dynamodb.lost_replies import LostReplies

T = TypeVar("T")

_FAULTLESS: Final = Refusal()


@dataclass(frozen=True, slots=True)
class InConflict:
    """A write that another one of the same item was in the way of, and nothing came of.

    ``unsure``: an earlier attempt of it may have been applied.
    """

    unsure: bool


class CounterTable:
    """Reads counters and grants, and conditionally changes them.

    Each method blocks for as long as the client's timeouts and retries allow, and raises
    ``StoreError``s, or ``UnreadableError`` if it needs what cannot be read.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        *,
        table: str,
        edge: ErrorEdge,
        lost: LostReplies,
        unreadable: UnreadableRecord,
    ) -> None:
        self._client = client
        self._table = table
        self._edge = edge
        self._lost = lost
        self._unreadable = unreadable

    def fetch(self, pks: Sequence[str]) -> dict[str, Mapping[str, Any] | None]:
        """Return up to 100 different items, None where there is nothing.

        Strongly consistent. Keys that DynamoDB did not get to are left out.
        """
        return get_items(
            self._client, self._edge, self._table, {pk: {"pk": {"S": pk}} for pk in pks}
        )

    def counter(self, item: Mapping[str, Any] | None) -> Counter | None:
        """Return the counter that an item holds, if there is one."""
        return self._decoded(decode_counter, item)

    def grant(self, item: Mapping[str, Any] | None) -> Grant | None:
        """Return the grant that an item holds, if there is one."""
        return self._decoded(decode_grant, item)

    def apply(self, key: CounterKey, step: Step) -> Stepped | InConflict:
        """Do a step by one update, if what it requires holds.

        Raises ``WriteOutcomeUnknownError`` if it may have been done.
        """
        update = self._update(key, step)
        with self._lost.translated(self._edge):
            try:
                response = self._client.update_item(**update, ReturnValues="ALL_NEW")
            except ClientError as error:
                return self._not_done(step, error)
        return Stepped(done=True, counter=self.counter(response["Attributes"]))

    def record(
        self, grant: Grant, step: Step, now: int, instead: Grant | None
    ) -> GrantStepped | InConflict:
        """Do a step and put a grant; both or neither. Raises as ``apply``."""
        condition = "attribute_not_exists(pk) OR #forget_time <= :now"
        used, values = names(FORGET_TIME), {":now": number(now)}
        if instead is not None:
            settled = "attribute_exists" if instead.settlement else "attribute_not_exists"
            condition += f" OR (#{NONCE} = :{NONCE} AND {settled}(#{COMMITTED}))"
            used |= names(NONCE, COMMITTED)
            values[f":{NONCE}"] = {"S": instead.nonce}
        actions: list[TransactWriteItemTypeDef] = [
            {
                "Put": {
                    "TableName": self._table,
                    "Item": encode_grant(grant),
                    "ConditionExpression": condition,
                    "ExpressionAttributeNames": used,
                    "ExpressionAttributeValues": values,
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                }
            },
            {"Update": self._update(grant.counter, step)},
        ]
        stepped = self._transact(actions, grant)
        if isinstance(stepped, GrantStepped) and stepped.grant == grant:
            # An earlier attempt was applied, and its reply was lost.
            return GrantStepped(done=True, grant=grant)
        return stepped

    def settle(
        self, grant: Grant, settlement: Settlement, step: Step | None
    ) -> GrantStepped | InConflict:
        """Settle exactly this grant, and do a step; both or neither. Raises as ``apply``."""
        actions: list[TransactWriteItemTypeDef] = [{"Update": self._settling(grant, settlement)}]
        if step is not None:
            actions.append({"Update": self._update(grant.counter, step)})
        return self._transact(actions, replace(grant, settlement=settlement))

    def _transact(
        self, actions: Sequence[TransactWriteItemTypeDef], becomes: Grant
    ) -> GrantStepped | InConflict:
        """Apply the action of a grant, which ``becomes`` this, and that of a counter, if any."""
        with self._lost.translated(self._edge):
            refusals = transact(self._client, actions)
        if refusals is None:
            return GrantStepped(done=True, grant=becomes)
        of_grant, of_counter = refusals if len(refusals) > 1 else (*refusals, _FAULTLESS)
        if of_grant.conflicts:
            # Who is at work on the grant may have changed the counter for it already.
            return InConflict(unsure=self._lost.any)
        if of_grant.condition_failed or of_counter.condition_failed:
            return GrantStepped(
                done=False,
                counter=self.counter(of_counter.item or None),
                grant=self.grant(of_grant.item or None),
                counter_refused=of_counter.condition_failed,
                grant_refused=of_grant.condition_failed,
            )
        if of_grant.too_large or of_counter.too_large:
            self._edge.complain("a counter is too large", "have fewer sub-windows or workers")
            raise StoreUnavailableError(Store.DYNAMODB)
        return InConflict(unsure=self._lost.any)

    def _update(self, key: CounterKey, step: Step) -> UpdateTypeDef:
        return step_update(self._table, key, step)

    def _settling(self, grant: Grant, settlement: Settlement) -> UpdateTypeDef:
        settled = encode_settlement(settlement)
        assigned = ", ".join(f"#{name} = :{name}" for name in settled)
        return {
            "TableName": self._table,
            "Key": {"pk": {"S": grant_pk(grant.counter.tenant, grant.id)}},
            "UpdateExpression": f"SET {assigned}",
            # It may have been followed by another one of its id.
            "ConditionExpression": (f"#{NONCE} = :{NONCE} AND attribute_not_exists(#{COMMITTED})"),
            "ExpressionAttributeNames": names(NONCE, *settled),
            "ExpressionAttributeValues": {
                f":{NONCE}": {"S": grant.nonce},
                **{f":{name}": value for name, value in settled.items()},
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def _not_done(self, step: Step, error: ClientError) -> Stepped | InConflict:
        code = error_code(error)
        if code == CONFLICT:
            return InConflict(unsure=self._lost.any)
        if code != CONDITION_FAILED:
            raise error
        item = cast("Mapping[str, Any]", error.response.get("Item", {}))
        counter = self.counter(item or None)
        if counter is not None and step.lease is not None:
            worker, lease = step.lease
            # If it is there, an earlier attempt was applied, and its reply was lost.
            known = counter.leases.get(worker) == lease
            return Stepped(done=known, counter=counter, exact=not known)
        return Stepped(done=False, counter=counter)

    def _decoded(
        self, decode: Callable[[Mapping[str, Any]], T], item: Mapping[str, Any] | None
    ) -> T | None:
        try:
            return None if item is None else decode(item)
        except UnreadableError as error:
            self._unreadable(str(error))
            raise
