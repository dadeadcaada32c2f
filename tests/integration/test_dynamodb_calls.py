"""The calls that are made of DynamoDB, and what becomes of answers that no emulator gives."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreOverloadedError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb.client import make_client
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.items import encode
from duostore_server.storage.dynamodb.projections import open_projections
from duostore_server.storage.dynamodb.table import ProjectionTable
from duostore_server.storage.dynamodb.tables import create_tables, projection_table
from tests.support.dynamodb_traffic import Traffic, answer, lose_reply, operation, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.storage.dynamodb.projections import DynamoProjections
    from tests.support.servers import DynamoDBLocal

KEY = EntityKey("acme", "proposal", "p-1")
TIMEOUT = 20.0


def soon() -> Deadline:
    return Deadline.after(60)


def value(version: int, payload: bytes = b"payload") -> Projection:
    return Projection(version, Form.VALUE, payload)


def key_of(number: int) -> EntityKey:
    return EntityKey("acme", "proposal", f"p-{number}")


@pytest.fixture
def client(dynamodb: DynamoDBLocal, table_prefix: str) -> Iterator[DynamoDBClient]:
    client = make_client(
        region="us-east-1", endpoint_url=dynamodb.endpoint_url, connect_timeout=5, read_timeout=20
    )
    with closing(client):
        create_tables(client, prefix=table_prefix, pause=time.sleep)
        yield client


def opened(
    client: DynamoDBClient, prefix: str, *, timeout: float = TIMEOUT, statements: bool = True
) -> Any:
    def unreadable(key: EntityKey, version: int, problem: str) -> None:
        raise AssertionError((key, version, problem))

    return open_projections(
        client, prefix=prefix, unreadable=unreadable, timeout=timeout, statements=statements
    )


@pytest.fixture
def projections(client: DynamoDBClient, table_prefix: str) -> Iterator[DynamoProjections]:
    with opened(client, table_prefix) as projections:
        yield projections


@pytest.fixture
def traffic(client: DynamoDBClient) -> Iterator[Traffic]:
    with Traffic(client).watched() as traffic:
        yield traffic


def at_once(callers: int, work: Callable[[int], None]) -> None:
    """Call ``work`` from so many threads, all at the same moment."""
    start = threading.Barrier(callers)

    def caller(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, range(callers)))


def first(times: int, tamper: Callable[[AWSPreparedRequest], AWSResponse | None]) -> Any:
    """Return a tamperer with so many requests."""
    left = [times]

    def tampered(request: AWSPreparedRequest) -> AWSResponse | None:
        left[0] -= 1
        return tamper(request) if left[0] >= 0 else None

    return tampered


def test_concurrent_reads_share_calls(projections: DynamoProjections, traffic: Traffic) -> None:
    for number in range(64):
        projections.put(key_of(number), value(1, b"%d" % number), soon())

    def read(number: int) -> None:
        for step in range(20):
            wanted = (number + step) % 64
            key = key_of(wanted)
            assert projections.read((key,), soon()) == {key: value(1, b"%d" % wanted)}

    at_once(64, read)
    assert traffic.sent["BatchGetItem"] < 64 * 20 / 5
    assert traffic.sent["GetItem"] == 0


def test_concurrent_puts_share_calls(projections: DynamoProjections, traffic: Traffic) -> None:
    def put(number: int) -> None:
        for version in range(1, 11):
            assert projections.put(key_of(number), value(version), soon()) == value(version)

    at_once(32, put)
    calls = traffic.sent["PutItem"] + traffic.sent["BatchExecuteStatement"]
    assert calls < 32 * 10 / 3
    keys = [key_of(number) for number in range(32)]
    assert projections.read(keys, soon()) == {key: value(10) for key in keys}


def test_large_payloads_travel_alone(projections: DynamoProjections, traffic: Traffic) -> None:
    def put(number: int) -> None:
        large = value(1, random.Random(number).randbytes(40_000))
        assert projections.put(key_of(number), large, soon()) == large

    at_once(8, put)
    assert traffic.sent == {"PutItem": 8}


def test_statements_that_are_refused_are_put_one_by_one(
    projections: DynamoProjections, traffic: Traffic
) -> None:
    def refuse(request: AWSPreparedRequest) -> AWSResponse | None:
        if operation(request) == "BatchExecuteStatement":
            return refused(request, "AccessDeniedException")
        return None

    traffic.tamper = refuse

    def put(number: int) -> None:
        for version in (1, 2, 3):
            assert projections.put(key_of(number), value(version), soon()) == value(version)

    at_once(16, put)
    assert traffic.sent["BatchExecuteStatement"] > 0
    assert traffic.sent["PutItem"] == 16 * 3


@pytest.mark.parametrize(
    "code",
    ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"],
)
def test_throttling_is_tried_again_and_then_overload(
    projections: DynamoProjections, traffic: Traffic, code: str
) -> None:
    traffic.tamper = first(1, lambda request: refused(request, code))
    assert projections.put(KEY, value(1), soon()) == value(1)
    assert traffic.sent["PutItem"] == 2
    traffic.tamper = first(1, lambda request: refused(request, code))
    assert projections.read((KEY,), soon()) == {KEY: value(1)}
    assert traffic.sent["BatchGetItem"] == 2
    traffic.tamper = lambda request: refused(request, code)
    with pytest.raises(StoreOverloadedError):
        projections.read((KEY,), soon())
    with pytest.raises(StoreOverloadedError):
        projections.put(KEY, value(2), soon())
    assert traffic.sent == {"PutItem": 4, "BatchGetItem": 4}


def test_throttled_statements_are_not_put_one_by_one(
    client: DynamoDBClient, traffic: Traffic, table_prefix: str
) -> None:
    table = ProjectionTable(
        client,
        table=projection_table(table_prefix),
        edge=ErrorEdge(),
        unreadable=lambda *_: None,
        statements_from=1,
    )
    writes = [encode(key_of(number), value(1), compress_above=0) for number in range(3)]
    traffic.tamper = lambda request: refused(request, "ThrottlingException")
    with pytest.raises(StoreOverloadedError):
        table.put_together(writes)
    assert traffic.sent == {"BatchExecuteStatement": 2}


def test_a_server_error_is_tried_again_and_then_unavailable(
    projections: DynamoProjections, traffic: Traffic
) -> None:
    traffic.tamper = first(1, lambda request: refused(request, "InternalServerError", 500))
    assert projections.put(KEY, value(1), soon()) == value(1)
    traffic.tamper = lambda request: refused(request, "InternalServerError", 500)
    with pytest.raises(StoreUnavailableError):
        projections.read((KEY,), soon())
    with pytest.raises(StoreUnavailableError):
        projections.put(KEY, value(2), soon())


class Unprocessed:
    """Takes items out of answers and calls them unprocessed, so many at a time."""

    def __init__(self, table: str, keep: Callable[[int], int], *, times: int) -> None:
        self._table = table
        self._keep = keep
        self.left = times

    def __call__(self, parsed: dict[str, Any]) -> None:
        items = parsed.get("Responses", {}).get(self._table, [])
        if not items or self.left == 0:
            return
        self.left -= 1
        kept = self._keep(len(items))
        keys = [{"pk": item["pk"]} for item in items[kept:]]
        del items[kept:]
        parsed["UnprocessedKeys"] = {self._table: {"Keys": keys, "ConsistentRead": True}}


def test_keys_that_were_not_processed_are_asked_for_again(
    projections: DynamoProjections, traffic: Traffic, table_prefix: str
) -> None:
    keys = [key_of(number) for number in range(40)]
    for key in keys:
        projections.put(key, value(1), soon())
    traffic.answered = Unprocessed(projection_table(table_prefix), lambda n: n // 2, times=4)
    assert projections.read([*keys, KEY, key_of(99)], soon()) == {key: value(1) for key in keys}
    assert traffic.sent["BatchGetItem"] == 5


def test_keys_that_are_never_processed_are_overload(
    client: DynamoDBClient, table_prefix: str
) -> None:
    with (
        opened(client, table_prefix, timeout=0.5) as projections,
        Traffic(client).watched() as traffic,
    ):
        projections.put(KEY, value(1), soon())
        traffic.answered = Unprocessed(projection_table(table_prefix), lambda _: 0, times=10**6)
        with pytest.raises(StoreOverloadedError):
            projections.read((KEY,), soon())
        # 10, 20, 40 ... ms apart, and not as fast as it goes.
        assert 2 <= traffic.sent["BatchGetItem"] <= 20
        with pytest.raises(DeadlineExceededError):
            projections.read((KEY,), Deadline.after(0.2))


def test_a_hot_key_delays_no_others(
    projections: DynamoProjections, traffic: Traffic, table_prefix: str
) -> None:
    table = projection_table(table_prefix)
    for number in range(8):
        projections.put(key_of(number), value(1), soon())
    stop = threading.Event()

    def hot(parsed: dict[str, Any]) -> None:
        items = parsed.get("Responses", {}).get(table, [])
        for item in [item for item in items if item["pk"]["S"] == str(KEY)]:
            if not stop.is_set():
                items.remove(item)
                unprocessed = {"Keys": [{"pk": item["pk"]}], "ConsistentRead": True}
                parsed["UnprocessedKeys"] = {table: unprocessed}

    traffic.answered = hot
    with ThreadPoolExecutor(4) as pool:
        try:
            waiting = [pool.submit(projections.read, (KEY,), soon()) for _ in range(4)]
            for _ in range(20):
                for number in (0, 2, 3, 4):
                    assert projections.read((key_of(number),), soon()) == {key_of(number): value(1)}
            assert not any(future.done() for future in waiting)
        finally:
            stop.set()
        assert [future.result() for future in waiting] == [{KEY: value(1)}] * 4


@pytest.mark.parametrize("version", [1, 2])
def test_a_put_whose_reply_is_lost_is_recognised_as_done(
    projections: DynamoProjections, traffic: Traffic, version: int
) -> None:
    if version > 1:
        projections.put(KEY, value(version - 1), soon())
    traffic.sent.clear()
    conflicts = []
    traffic.tamper = first(1, lose_reply)
    traffic.answered = lambda parsed: conflicts.append(parsed.get("Error", {}).get("Code"))
    assert projections.put(KEY, value(version), soon()) == value(version)
    assert traffic.sent == {"PutItem": 2}
    # The second attempt failed because the first had succeeded.
    assert conflicts == ["ConditionalCheckFailedException"]
    assert projections.read((KEY,), soon()) == {KEY: value(version)}


def test_statements_whose_reply_is_lost_are_recognised_as_done(
    projections: DynamoProjections, traffic: Traffic
) -> None:
    lost: list[AWSPreparedRequest] = []

    def lose_the_first_reply(request: AWSPreparedRequest) -> AWSResponse | None:
        if operation(request) == "BatchExecuteStatement" and not lost:
            lost.append(request)
            return lose_reply(request)
        return None

    traffic.tamper = lose_the_first_reply

    def put(number: int) -> None:
        for version in range(1, 6):
            assert projections.put(key_of(number), value(version), soon()) == value(version)

    at_once(16, put)
    assert lost
    # What the lost call had applied was put again, to no effect.
    assert traffic.sent["PutItem"] > 0
    keys = [key_of(number) for number in range(16)]
    assert projections.read(keys, soon()) == {key: value(5) for key in keys}


def test_an_answer_without_the_table_is_never_taken_for_absence(
    projections: DynamoProjections, traffic: Traffic
) -> None:
    projections.put(KEY, value(1), soon())
    traffic.tamper = lambda request: answer(request, {})
    with pytest.raises(KeyError):
        projections.read((KEY,), soon())
