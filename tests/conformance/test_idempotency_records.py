"""What every engine of the idempotency records promises."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    IdempotencyKeyReusedError,
    StoreOverloadedError,
    StoreUnavailableError,
)
from duostore_server.domain.transactions import Applied, Idempotency, IdempotencyKey, Recorded
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.idempotency import (
    decode_record,
    direct_records,
    open_records,
    record_put,
)
from duostore_server.storage.dynamodb.tables import create_tables, idempotency_table
from duostore_server.storage.dynamodb.transact import transact
from tests.support.dynamodb_engines import never, patient_client
from tests.support.dynamodb_traffic import Traffic
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.ports import IdempotencyRecords
    from tests.support.servers import DynamoDBLocal

# DynamoDB Local sweeps what is past its time within seconds.
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
KEY = IdempotencyKey("acme", "publish-1")


def soon() -> Deadline:
    return Deadline.after(30)


def idempotency(
    text: str = KEY.text, request: str = "request", keep: timedelta = DAY
) -> Idempotency:
    key = IdempotencyKey(KEY.tenant, text)
    return Idempotency(key, hashlib.sha256(request.encode()).digest(), keep)


def recorded(*versions: int, request: str = "request", projected: bool = False) -> Recorded:
    answer = tuple(Applied(version, NOW + version * MICROSECOND) for version in versions)
    return Recorded(hashlib.sha256(request.encode()).digest(), answer, projected)


@dataclass
class Engine:
    client: DynamoDBClient
    prefix: str
    now: datetime = NOW
    unreadable: list[str] = field(default_factory=list)
    records: IdempotencyRecords = field(init=False)

    @property
    def table(self) -> str:
        return idempotency_table(self.prefix)

    def read(self, key: IdempotencyKey = KEY) -> Recorded | None:
        return self.records.read(key, soon())

    def put(self, *records: tuple[Idempotency, Recorded]) -> None:
        self.records.put(records, soon())

    def item(self, key: IdempotencyKey = KEY) -> dict[str, Any]:
        return dict(
            self.client.get_item(
                TableName=self.table, Key={"pk": {"S": f"aurora#{key}"}}, ConsistentRead=True
            )["Item"]
        )

    def damage(self, **attributes: Any) -> None:
        self.client.put_item(TableName=self.table, Item={**self.item(), **attributes})


@pytest.fixture(scope="module")
def dynamodb_client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with patient_client(dynamodb.endpoint_url) as client:
        yield client


@pytest.fixture(scope="module")
def embedded_client() -> Iterator[DynamoDBClient]:
    with EmbeddedDynamoDB() as server, patient_client(server.endpoint_url) as client:
        yield client


@pytest.fixture(params=["dynamodb_local", "embedded", "simulated"])
def engine(request: pytest.FixtureRequest, table_prefix: str) -> Iterator[Engine]:
    if request.param == "simulated":
        engine = Engine(SimulatedDynamoDB().client, table_prefix)
        create_tables(engine.client, prefix=table_prefix, pause=never)
        engine.records = direct_records(
            engine.client,
            prefix=table_prefix,
            pause=never,
            clock=time.monotonic,
            unreadable=engine.unreadable.append,
            now=lambda: engine.now,
        )
        yield engine
        return
    fixture = {"dynamodb_local": "dynamodb_client", "embedded": "embedded_client"}[request.param]
    engine = Engine(request.getfixturevalue(fixture), table_prefix)
    create_tables(engine.client, prefix=table_prefix, pause=time.sleep)
    with open_records(
        engine.client,
        prefix=table_prefix,
        unreadable=engine.unreadable.append,
        timeout=20,
        now=lambda: engine.now,
    ) as engine.records:
        yield engine


only_local = pytest.mark.parametrize("engine", ["dynamodb_local"], indirect=True)
only_simulated = pytest.mark.parametrize("engine", ["simulated"], indirect=True)


@pytest.mark.parametrize(
    "record",
    [recorded(1), recorded(7, projected=True), recorded(*range(1, 101)), recorded(2**53 + 1)],
    ids=["one", "projected", "a hundred", "a large version"],
)
def test_what_is_put_is_read(engine: Engine, record: Recorded) -> None:
    engine.put((idempotency(), record))
    assert engine.read() == record
    assert engine.unreadable == []


def test_what_was_never_put_is_nothing(engine: Engine) -> None:
    assert engine.read() is None


def test_keys_are_those_of_a_tenant(engine: Engine) -> None:
    other = IdempotencyKey("other", KEY.text)
    engine.put((idempotency(), recorded(1)), (replace(idempotency(), key=other), recorded(2)))
    assert engine.read() == recorded(1)
    assert engine.read(other) == recorded(2)
    assert engine.read(IdempotencyKey("", KEY.text)) is None


@pytest.mark.parametrize("text", ["#", "é" * 64, " ", "'\"?:now\\", "a#b#c", "🦆" * 32])
def test_unusual_keys_are_kept_apart(engine: Engine, text: str) -> None:
    engine.put((idempotency(), recorded(1)), (idempotency(text), recorded(2)))
    assert engine.read() == recorded(1)
    assert engine.read(IdempotencyKey("acme", text)) == recorded(2)


def test_a_record_is_kept_for_so_long_and_no_longer(engine: Engine) -> None:
    engine.put((idempotency(keep=timedelta(hours=2)), recorded(1)))
    engine.now = NOW + timedelta(hours=2) - MICROSECOND
    assert engine.read() == recorded(1)
    engine.now += MICROSECOND
    assert engine.read() is None
    assert engine.unreadable == []


def test_dynamodb_may_sweep_it_an_hour_later(engine: Engine) -> None:
    engine.put((idempotency(keep=timedelta(hours=2)), recorded(1)))
    swept = int(engine.item()["sweep_time"]["N"])
    assert swept == int((NOW + timedelta(hours=3)).timestamp())


def test_a_repetition_is_put_over_what_is_there(engine: Engine) -> None:
    engine.put((idempotency(), recorded(1)))
    engine.now = NOW + timedelta(hours=12)
    engine.put((idempotency(), recorded(1, projected=True)))
    engine.now = NOW + timedelta(hours=36) - MICROSECOND
    assert engine.read() == recorded(1, projected=True)


def test_many_are_put_at_once_and_of_one_key_the_last(engine: Engine) -> None:
    records = [(idempotency(f"k-{n % 60}"), recorded(n + 1)) for n in range(90)]
    engine.put(*records)
    found = [engine.read(IdempotencyKey("acme", f"k-{n}")) for n in range(60)]
    assert found == [recorded(n + 61 if n < 30 else n + 1) for n in range(60)]
    engine.put()


@only_local
def test_many_are_put_in_few_calls(engine: Engine) -> None:
    with Traffic(engine.client).watched() as traffic:
        engine.put(*((idempotency(f"k-{n}"), recorded(n + 1)) for n in range(60)))
    assert traffic.sent == {"BatchWriteItem": 3}


DAMAGES: dict[str, dict[str, Any]] = {
    "no number": {"expire_time": {"S": "soon"}},
    "no hash": {"request_hash": {"S": "hash"}},
    "no flag": {"projected": {"S": "yes"}},
    "no JSON": {"answer": {"S": "[[1,"}},
    "no pairs": {"answer": {"S": "[[1,2,3]]"}},
    "no list": {"answer": {"S": "7"}},
    "no time": {"answer": {"S": '[[1,"noon"]]'}},
    "no such time": {"answer": {"S": f"[[1,{10**30}]]"}},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_record_that_cannot_be_read_is_none_and_told(
    engine: Engine, damage: dict[str, Any]
) -> None:
    engine.put((idempotency(), recorded(1)), (idempotency("sound"), recorded(2)))
    engine.damage(**damage)
    assert engine.read() is None
    assert len(engine.unreadable) == 1
    assert engine.read(IdempotencyKey("acme", "sound")) == recorded(2)


def test_a_record_within_a_transaction_is_taken_once(engine: Engine) -> None:
    put = record_put(engine.table, idempotency(), recorded(1), NOW)
    assert transact(engine.client, [put]) is None
    again = record_put(
        engine.table, idempotency(request="other"), recorded(2, request="other"), NOW
    )
    (refusal,) = transact(engine.client, [again]) or ()
    assert refusal.condition_failed
    assert refusal.item is not None
    held = decode_record(refusal.item, NOW)
    assert held == recorded(1)
    with pytest.raises(IdempotencyKeyReusedError):
        idempotency(request="other").answer_of(held)


def test_a_copy_takes_no_decision_s_place(engine: Engine) -> None:
    decision = record_put(engine.table, idempotency(), recorded(1), NOW)
    assert transact(engine.client, [decision]) is None
    assert engine.read() is None
    engine.put((idempotency(request="other"), recorded(7, request="other")))
    assert engine.read() == recorded(7, request="other")
    (refusal,) = transact(engine.client, [decision]) or ()
    assert decode_record(refusal.item or {}, NOW) == recorded(1)


def test_an_expired_record_gives_way_in_a_transaction(engine: Engine) -> None:
    first = record_put(engine.table, idempotency(), recorded(1), NOW)
    assert transact(engine.client, [first]) is None
    second = idempotency(request="other")
    early = record_put(engine.table, second, recorded(2, request="other"), NOW + DAY - MICROSECOND)
    assert transact(engine.client, [early]) is not None
    late = record_put(engine.table, second, recorded(2, request="other"), NOW + DAY)
    assert transact(engine.client, [late]) is None
    (refusal,) = transact(engine.client, [late]) or ()
    assert decode_record(refusal.item or {}, NOW + DAY) == recorded(2, request="other")


def test_nothing_is_sent_after_the_deadline(engine: Engine) -> None:
    passed = Deadline.after(0)
    with pytest.raises(DeadlineExceededError):
        engine.records.read(KEY, passed)
    with pytest.raises(DeadlineExceededError):
        engine.records.put([(idempotency(), recorded(1))], passed)
    assert engine.read() is None


def test_a_missing_table_is_a_store_that_cannot_be_used(engine: Engine) -> None:
    records = direct_records(
        engine.client, prefix=f"{engine.prefix}other_", pause=never, clock=time.monotonic
    )
    with pytest.raises(StoreUnavailableError):
        records.read(KEY, soon())
    with pytest.raises(StoreUnavailableError):
        records.put([(idempotency(), recorded(1))], soon())


# What no emulator does: answer a batch in part.


class Partly(SimulatedDynamoDB):
    """Does not get to some items of a batch until they are asked for again so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times
        self.unprocessed = self._unprocessed

    def _unprocessed(self, label: str) -> bool:
        if not label.endswith("late"):
            return False
        self.left -= 1
        return self.left >= 0


def partly(times: int) -> tuple[IdempotencyRecords, list[float]]:
    database = Partly(times)
    create_tables(database.client, prefix="", pause=never)
    pauses: list[float] = []
    records = direct_records(
        database.client,
        prefix="",
        pause=pauses.append,
        clock=lambda: sum(pauses),
        now=lambda: NOW,
    )
    return records, pauses


def test_what_was_not_done_is_asked_for_again() -> None:
    records, pauses = partly(3)
    late, other = idempotency("late"), idempotency("other")
    records.put([(late, recorded(1)), (other, recorded(2))], soon())
    assert pauses == [0.01, 0.02, 0.04]
    assert records.read(late.key, soon()) == recorded(1)
    assert records.read(other.key, soon()) == recorded(2)


def test_what_is_never_done_is_an_overload() -> None:
    records, pauses = partly(10**6)
    with pytest.raises(StoreOverloadedError):
        records.put([(idempotency("late"), recorded(1))], soon())
    assert sum(pauses) == pytest.approx(1.0)
    with pytest.raises(StoreOverloadedError):
        partly(10**6)[0].read(IdempotencyKey("acme", "late"), soon())
