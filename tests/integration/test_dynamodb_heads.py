"""Writes of heads whose answers get lost, or that meet a transaction.

No emulator does that by itself: botocore's hooks do it, below its own retries.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ConnectTimeoutError

from duostore_server.domain.errors import (
    DuplicateInProgressError,
    EntityExistsError,
    Store,
    StoreOverloadedError,
    StoreUnavailableError,
    VersionMismatchError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.snapshots import Head, HeadWritten
from duostore_server.domain.transactions import IfAbsent, IfVersion
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.tables import snapshot_table
from tests.support.dynamodb_engines import patient_client
from tests.support.dynamodb_traffic import Traffic, lose_reply, operation, refused
from tests.support.head_engines import (
    KEY,
    MICROSECOND,
    NOW,
    Engine,
    direct,
    idempotency,
    threaded,
)
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.transactions import Precondition
    from tests.support.servers import DynamoDBLocal

    # What becomes of an attempt: an answer in DynamoDB's place, or an error; None lets it pass.
    Fate: TypeAlias = Callable[[AWSPreparedRequest], AWSResponse | None]


def not_connected(request: AWSPreparedRequest) -> None:
    raise ConnectTimeoutError(endpoint_url=request.url)


def cut_off(request: AWSPreparedRequest) -> None:
    raise ConnectionClosedError(endpoint_url=request.url)


def throttled(request: AWSPreparedRequest) -> AWSResponse:
    return refused(request, "ProvisionedThroughputExceededException")


def broken(request: AWSPreparedRequest) -> AWSResponse:
    return refused(request, "InternalServerError", 500)


def in_conflict(request: AWSPreparedRequest) -> AWSResponse:
    return refused(request, "TransactionConflictException")


@pytest.fixture(scope="module")
def client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with patient_client(dynamodb.endpoint_url) as client:
        yield client


@pytest.fixture
def engine(client: DynamoDBClient, table_prefix: str) -> Iterator[Engine]:
    with threaded(client, table_prefix) as engine:
        yield engine


@pytest.fixture
def other(client: DynamoDBClient, dynamodb: DynamoDBLocal, table_prefix: str) -> Iterator[Engine]:
    """Another process, whose calls are not tampered with."""
    del client
    with (
        patient_client(dynamodb.endpoint_url) as client,
        threaded(client, table_prefix) as engine,
    ):
        yield engine


def tamper(engine: Engine, *fates: Fate, of: str = "UpdateItem") -> AbstractContextManager[Traffic]:
    """Watch a client whose first attempts of an operation meet these fates."""
    traffic = Traffic(engine.client)
    left = list(fates)

    def meet(request: AWSPreparedRequest) -> AWSResponse | None:
        if operation(request) != of or not left:
            return None
        return left.pop(0)(request)

    traffic.tamper = meet
    return traffic.watched()


@pytest.mark.parametrize("lost", [lose_reply, cut_off, broken, not_connected, throttled])
@pytest.mark.parametrize("precondition", [None, IfVersion(1)])
def test_an_attempt_that_failed_is_made_again_and_applied_once(
    engine: Engine, lost: Fate, precondition: Precondition
) -> None:
    engine.write(b"one")
    with tamper(engine, lost) as traffic:
        assert engine.write(b"two", precondition) == HeadWritten(2, NOW)
    assert traffic.sent == {"UpdateItem": 2}
    assert engine.read() == Head(2, b"two", NOW, NOW, None)


@pytest.mark.parametrize("payload", [b"new", None])
def test_a_creation_and_a_deletion_know_themselves_again(
    engine: Engine, payload: bytes | None
) -> None:
    """Sent again, their own precondition no longer holds."""
    if payload is None:
        engine.write(b"one")
    version = 1 if payload else 2
    with tamper(engine, lose_reply):
        written = engine.write(payload, IfAbsent() if payload else None)
    assert written == HeadWritten(version, NOW)
    assert engine.read() == Head(version, payload, NOW, NOW, None)


def test_who_wrote_after_an_unheard_write_leaves_its_outcome_open(
    engine: Engine, other: Engine
) -> None:
    """It was applied, but another write has come after it: no refusal would be true."""
    engine.write(b"one")

    def write_after(_request: AWSPreparedRequest) -> None:
        assert other.write(b"three", IfVersion(2)).version == 3

    with (
        tamper(engine, lose_reply, write_after) as traffic,
        pytest.raises(WriteOutcomeUnknownError),
    ):
        engine.write(b"two", IfVersion(1))
    assert traffic.sent == {"UpdateItem": 2}
    assert engine.read() == Head(3, b"three", NOW, NOW, None)


@pytest.mark.parametrize("harmless", [not_connected, throttled])
def test_a_refusal_is_one_if_no_attempt_before_it_was_carried_out(
    engine: Engine, harmless: Fate
) -> None:
    engine.write(b"one")
    with tamper(engine, harmless), pytest.raises(VersionMismatchError):
        engine.write(b"two", IfVersion(7))
    with tamper(engine, harmless), pytest.raises(EntityExistsError):
        engine.write(b"two", IfAbsent())


UNKNOWN: list[tuple[Fate, ...]] = [
    (lose_reply, lose_reply),
    (lose_reply, cut_off),
    (lose_reply, not_connected),
    (lose_reply, throttled),
    (lose_reply, in_conflict),
    (broken, broken),
    (cut_off, not_connected),
]


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize("fates", UNKNOWN)
def test_whatever_comes_after_a_lost_answer_does_not_make_it_a_failure(
    engine: Engine, fates: tuple[Fate, ...], *, once: Any
) -> None:
    if once is not None and in_conflict in fates:
        fates = (lose_reply, lose_reply)  # that is of single updates
    of = "TransactWriteItems" if once else "UpdateItem"
    with tamper(engine, *fates, of=of), pytest.raises(WriteOutcomeUnknownError) as unknown:
        engine.write(b"one", once=once)
    assert unknown.value.store is Store.DYNAMODB
    head = engine.read()
    assert (head is not None) == (lose_reply in fates)
    if once is not None:
        again = engine.write(b"one", now=NOW + MICROSECOND, once=once)
        assert again.replayed == (lose_reply in fates)
        assert again.version == 1


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize(
    ("fates", "error"),
    [
        ((not_connected, not_connected), StoreUnavailableError),
        ((throttled, not_connected), StoreUnavailableError),
        ((throttled, throttled), StoreOverloadedError),
        ((not_connected, throttled), StoreOverloadedError),
    ],
)
def test_what_was_never_carried_out_is_said_to_be_so(
    engine: Engine, fates: tuple[Fate, ...], error: type[Exception], *, once: Any
) -> None:
    of = "TransactWriteItems" if once else "UpdateItem"
    with tamper(engine, *fates, of=of), pytest.raises(error) as failed:
        engine.write(b"one", once=once)
    assert not isinstance(failed.value, WriteOutcomeUnknownError)
    assert engine.read() is None


def test_an_error_does_not_outlast_its_call(engine: Engine) -> None:
    """Eight threads make the calls, so that one of nine comes after a lost answer."""
    for version in range(1, 10):
        with tamper(engine, lose_reply):
            assert engine.write(b"p").version == version
    for _ in range(9):
        with pytest.raises(VersionMismatchError):
            engine.write(b"p", IfVersion(1))


def test_a_transaction_whose_answer_is_lost_is_applied_once(engine: Engine) -> None:
    once = idempotency("k")
    with tamper(engine, lose_reply, of="TransactWriteItems") as traffic:
        assert engine.write(b"one", once=once) == HeadWritten(1, NOW)
    assert traffic.sent["TransactWriteItems"] == 2
    assert engine.read() == Head(1, b"one", NOW, NOW, None)


def test_an_engine_that_knows_no_tokens_finds_the_record(table_prefix: str) -> None:
    with (
        EmbeddedDynamoDB() as server,
        patient_client(server.endpoint_url) as client,
        threaded(client, table_prefix) as engine,
    ):
        with tamper(engine, lose_reply, of="TransactWriteItems"):
            written = engine.write(b"one", once=idempotency("k"))
        assert written == HeadWritten(1, NOW, replayed=True)
        assert engine.read() == Head(1, b"one", NOW, NOW, None)


@pytest.mark.parametrize("conflicts", [1, 3])
def test_an_update_waits_for_a_transaction_on_its_head(engine: Engine, conflicts: int) -> None:
    with tamper(engine, *[in_conflict] * conflicts) as traffic:
        assert engine.write(b"one") == HeadWritten(1, NOW)
    assert traffic.sent == {"UpdateItem": conflicts + 1}


def test_an_update_does_not_wait_for_ever(engine: Engine) -> None:
    with tamper(engine, *[in_conflict] * 9) as traffic, pytest.raises(DuplicateInProgressError):
        engine.write(b"one")
    assert traffic.sent == {"UpdateItem": 4}
    assert engine.read() is None


class Conflicting(SimulatedDynamoDB):
    """Cancels so many transactions, as DynamoDB does while another is under way."""

    def __init__(self, times: int, code: str) -> None:
        super().__init__()
        self.left = times
        self._code = code

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            return super().transact_write_items(**request)
        response: Any = {
            "Error": {"Code": "TransactionCanceledException", "Message": ""},
            "CancellationReasons": [{"Code": self._code}, {"Code": "None"}],
        }
        if self._code == "TransactionInProgressException":
            response = {"Error": {"Code": self._code, "Message": ""}}
        raise ClientError(response, "TransactWriteItems")


@pytest.mark.parametrize("code", ["TransactionConflict", "TransactionInProgressException"])
def test_a_transaction_waits_for_another(code: str) -> None:
    pauses: list[float] = []
    engine = direct(Conflicting(3, code).client, pause=pauses.append)
    assert engine.write(b"one", once=idempotency("k")) == HeadWritten(1, NOW)
    assert pauses == [0.01, 0.02, 0.04]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("TransactionConflict", DuplicateInProgressError),
        ("TransactionInProgressException", DuplicateInProgressError),
        ("ThrottlingError", StoreOverloadedError),
        ("ProvisionedThroughputExceeded", StoreOverloadedError),
        ("ItemCollectionSizeLimitExceeded", StoreUnavailableError),
    ],
)
def test_a_transaction_does_not_wait_for_ever(code: str, error: type[Exception]) -> None:
    engine = direct(Conflicting(10**6, code).client, pause=lambda _: None)
    with pytest.raises(error):
        engine.write(b"one", once=idempotency("k"))
    assert engine.read() is None


def test_a_record_whose_answer_is_lost_is_not_executed_again(engine: Engine) -> None:
    once = idempotency("k")
    engine.write(b"one", once=once)
    record = engine.record(once)
    assert record is not None
    engine.client.put_item(
        TableName=f"{engine.prefix}idempotency", Item={**record, "answer": {"S": "?"}}
    )
    with pytest.raises(WriteOutcomeUnknownError):
        engine.write(b"one", once=once)
    assert engine.read() == Head(1, b"one", NOW, NOW, None)


def test_what_was_swept_in_between_begins_anew() -> None:
    """An expired head is met, and gone when it is to be replaced."""
    database = SimulatedDynamoDB()
    engine = direct(database.client)
    engine.write(b"old", ttl=MICROSECOND)
    swept = []

    def sweep(label: str) -> None:
        if label.startswith("UpdateItem"):
            swept.append(label)
            if len(swept) == 2:
                database.sweep(snapshot_table(""), str(KEY), "HEAD")

    database.step = sweep
    assert engine.write(b"new", now=NOW + MICROSECOND) == HeadWritten(1, NOW + MICROSECOND)
    assert len(swept) == 3


class Resending(SimulatedDynamoDB):
    """Loses the first answer to each update, and is sent it again, as by botocore."""

    def update_item(self, **request: Any) -> dict[str, Any]:
        super().update_item(**request)
        return super().update_item(**request)


class ResendingWithoutNonce(Resending):
    def update_item(self, **request: Any) -> dict[str, Any]:
        condition = request["ConditionExpression"].replace("#nonce <> :nonce AND ", "")
        # The nonce is still written, and named there.
        return super().update_item(**{**request, "ConditionExpression": condition})


@pytest.mark.parametrize(("kind", "version"), [(Resending, 2), (ResendingWithoutNonce, 4)])
def test_only_the_nonce_keeps_a_write_from_being_applied_twice(
    kind: type[SimulatedDynamoDB], version: int
) -> None:
    engine = direct(kind().client)
    engine.write(b"one")
    assert engine.write(b"two").version == version


class Unconditional(SimulatedDynamoDB):
    def update_item(self, **request: Any) -> dict[str, Any]:
        del request["ConditionExpression"]
        for given in ("ExpressionAttributeNames", "ExpressionAttributeValues"):
            used = request["UpdateExpression"]
            request[given] = {name: it for name, it in request[given].items() if name in used}
        return super().update_item(**request)


@pytest.mark.parametrize(("kind", "held"), [(SimulatedDynamoDB, b"two"), (Unconditional, b"late")])
def test_only_its_condition_keeps_a_late_writer_from_going_back(
    kind: type[SimulatedDynamoDB], held: bytes
) -> None:
    engine = direct(kind().client)
    engine.write(b"one")
    engine.write(b"two", IfVersion(1))
    with suppress(VersionMismatchError):
        engine.write(b"late", IfVersion(1))
    head = engine.read()
    assert head is not None
    assert head.payload == held
