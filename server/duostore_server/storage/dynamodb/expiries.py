"""Gives snapshots of the history their end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from duostore_server.storage.dynamodb.errors import CONDITION_FAILED, error_code, is_overload
from duostore_server.storage.dynamodb.head_items import (
    EXPIRE_TIME,
    SWEEP_TIME,
    history_key,
    micros,
    names,
    number,
    sort_key,
)
from duostore_server.storage.dynamodb.statements import (
    EXPECTED_REFUSALS,
    MAX_STATEMENTS,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.type_defs import BatchStatementRequestTypeDef

    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.dynamodb.errors import ErrorEdge

# Sequences that are given their end in one call.
MAX_TOGETHER: Final = MAX_STATEMENTS

# Who was reading when a snapshot expired has long finished when it is deleted.
_SWEPT_AFTER: Final = timedelta(days=1)
_END: Final = f'SET "{EXPIRE_TIME}"=? SET "{SWEEP_TIME}"=?'
_IF_ENDLESS: Final = f'"pk"=? AND "sk"=? AND "{EXPIRE_TIME}" IS MISSING'
_FALLEN_BACK: Final = (
    "single updates do its work, at many times the CPU; if it is access that is denied, allow "
    "dynamodb:PartiQLUpdate"
)


class Expiries:
    """Lets snapshots expire, by PartiQL statements if the engine has them."""

    def __init__(
        self, client: DynamoDBClient, *, table: str, edge: ErrorEdge, statements: bool
    ) -> None:
        self._client = client
        self._table = table
        self._edge = edge
        self._statements = statements

    def give(self, key: EntityKey, sequences: Sequence[int], expire_time: datetime) -> None:
        """Let those of up to ``MAX_TOGETHER`` snapshots expire that have no end yet.

        Creates none that is not there. Safe to repeat; raises ``StoreError``s with some of
        it done.
        """
        for sequence in self._together(key, sequences, expire_time):
            self._alone(key, sequence, expire_time)

    def _together(
        self, key: EntityKey, sequences: Sequence[int], expire_time: datetime
    ) -> Sequence[int]:
        """Return the sequences of which one call did not find out."""
        if not self._statements:
            return sequences
        with self._edge.translated():
            try:
                responses = self._client.batch_execute_statement(
                    Statements=[self._statement(key, n, expire_time) for n in sequences]
                )["Responses"]
            except ClientError as error:
                if is_overload(error):
                    raise
                # An update of each will tell what is the matter, if it is not the statements.
                self._edge.complain(f"BatchExecuteStatement: {error_code(error)}", _FALLEN_BACK)
                return sequences
        refusals = dict(zip(sequences, map(refusal, responses), strict=True))
        unexpected = {
            n: why for n, why in refusals.items() if why not in {None, *EXPECTED_REFUSALS}
        }
        for why in {*unexpected.values()}:
            self._edge.complain(f"BatchExecuteStatement: {why}", _FALLEN_BACK)
        return list(unexpected)

    def _statement(
        self, key: EntityKey, sequence: int, expire_time: datetime
    ) -> BatchStatementRequestTypeDef:
        return {
            "Statement": f'UPDATE "{self._table}" {_END} WHERE {_IF_ENDLESS}',
            "Parameters": [
                number(micros(expire_time)),
                number(_sweep_time(expire_time)),
                {"S": str(key)},
                {"S": sort_key(sequence)},
            ],
        }

    def _alone(self, key: EntityKey, sequence: int, expire_time: datetime) -> None:
        with self._edge.translated():
            try:
                self._client.update_item(
                    TableName=self._table,
                    Key=history_key(key, sequence),
                    UpdateExpression=f"SET #{EXPIRE_TIME} = :expire, #{SWEEP_TIME} = :sweep",
                    ConditionExpression=(
                        f"attribute_exists(pk) AND attribute_not_exists(#{EXPIRE_TIME})"
                    ),
                    ExpressionAttributeNames=names(EXPIRE_TIME, SWEEP_TIME),
                    ExpressionAttributeValues={
                        ":expire": number(micros(expire_time)),
                        ":sweep": number(_sweep_time(expire_time)),
                    },
                )
            except ClientError as error:
                if error_code(error) != CONDITION_FAILED:
                    raise


def _sweep_time(expire_time: datetime) -> int:
    return int((expire_time + _SWEPT_AFTER).timestamp())
