"""The calls that snapshots make of DynamoDB, and what becomes of answers that get lost."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import EndpointConnectionError

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuplicateInProgressError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.snapshots import Appended, NewSnapshot, StoredSnapshot
from duostore_server.storage.dynamodb.dirty import DynamoDirtyHeads
from duostore_server.storage.dynamodb.head_items import SHARDS, head_key
from duostore_server.storage.dynamodb.snapshots import open_snapshots
from tests.support.dynamodb_traffic import Traffic, answer, lose_reply, operation, refused
from tests.support.snapshot_engines import (
    CONSOLIDATE_AFTER,
    KEY,
    START,
    client_of,
    engine_on,
    idempotency,
    key_of,
    soon,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal
    from tests.support.snapshot_engines import Engine


@pytest.fixture
def client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with closing(client_of(dynamodb.endpoint_url)) as client:
        yield client


@pytest.fixture
def engine(client: DynamoDBClient, table_prefix: str) -> Iterator[Engine]:
    with engine_on(client, table_prefix) as engine:
        yield engine


@pytest.fixture
def traffic(client: DynamoDBClient, engine: Engine) -> Iterator[Traffic]:
    """The traffic of an engine that is ready."""
    assert engine.prefix
    with Traffic(client).watched() as traffic:
        yield traffic


def of(name: str, *tampers: Any) -> Any:
    """Return what tampers with the first requests of an operation, one after the other."""
    left = list(tampers)

    def tamper(request: AWSPreparedRequest) -> AWSResponse | None:
        if operation(request) != name or not left:
            return None
        made: AWSResponse | None = left.pop(0)(request)
        return made

    return tamper


def always(name: str, tamper: Any) -> Any:
    return lambda request: tamper(request) if operation(request) == name else None


def unreachable(request: AWSPreparedRequest) -> AWSResponse | None:
    raise EndpointConnectionError(endpoint_url=request.url)


def throttled(request: AWSPreparedRequest) -> AWSResponse:
    return refused(request, "ThrottlingException")


def failed(request: AWSPreparedRequest) -> AWSResponse:
    return refused(request, "InternalServerError", 500)


def in_conflict(request: AWSPreparedRequest) -> AWSResponse:
    return refused(request, "TransactionConflictException")


def test_an_append_is_one_call_and_one_more_for_the_history(
    engine: Engine, traffic: Traffic
) -> None:
    engine.append(in_history=False)
    assert traffic.sent == {"UpdateItem": 1}
    engine.append()
    assert traffic.sent == {"UpdateItem": 2, "BatchWriteItem": 1}
    engine.append(random.Random(1).randbytes(40_000))
    assert traffic.sent == {"UpdateItem": 3, "BatchWriteItem": 1, "PutItem": 1}


def test_an_idempotent_append_is_one_call_and_one_more_the_first_time(
    engine: Engine, traffic: Traffic
) -> None:
    for n in range(1, 4):
        engine.append(once=idempotency(f"k{n}"))
    assert traffic.sent == {"GetItem": 1, "TransactWriteItems": 3}
    engine.append(by=engine.others)
    traffic.sent.clear()
    # What was appended without a key is known too; what others appended is told.
    engine.append(once=idempotency("k4"), by=engine.others)
    assert traffic.sent == {"TransactWriteItems": 1}
    traffic.sent.clear()
    engine.append(once=idempotency("k5"))
    assert traffic.sent == {"TransactWriteItems": 2}
    assert engine.append(once=idempotency("k5")).replayed
    # A repetition is known as such whatever was guessed of the number.
    assert engine.append(once=idempotency("k5"), by=engine.others).replayed
    assert traffic.sent == {"TransactWriteItems": 4}


def test_reads_and_pages_are_one_call(engine: Engine, traffic: Traffic) -> None:
    for _ in range(5):
        engine.append()
    traffic.sent.clear()
    engine.read()
    engine.read(2)
    assert traffic.sent == {"BatchGetItem": 2}
    engine.page(None, 2)
    engine.page(4, 2)
    assert traffic.sent == {"BatchGetItem": 2, "Query": 2}


def at_once(callers: int, work: Callable[[int], None]) -> None:
    start = threading.Barrier(callers)

    def caller(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, range(callers)))


def test_concurrent_appends_share_the_calls_of_the_history(
    engine: Engine, traffic: Traffic
) -> None:
    def append(number: int) -> None:
        for n in range(1, 11):
            assert engine.append(b"%d" % number, key_of(number)).sequence == n

    at_once(32, append)
    assert traffic.sent["UpdateItem"] == 320
    assert traffic.sent["BatchWriteItem"] < 320 / 2
    assert engine.sequences(key_of(31)) == list(range(10, 0, -1))


def test_concurrent_reads_share_calls(engine: Engine, traffic: Traffic) -> None:
    for number in range(16):
        engine.append(b"%d" % number, key_of(number))
        engine.append(b"newest", key_of(number))

    def read(number: int) -> None:
        for step in range(10):
            wanted = (number + step) % 16
            found = engine.read(1, key_of(wanted))
            assert found is not None
            assert found.payload == b"%d" % wanted

    at_once(32, read)
    assert traffic.sent["BatchGetItem"] < 320 / 3


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
def test_an_append_whose_reply_is_lost_is_made_once(
    engine: Engine, traffic: Traffic, once: Any
) -> None:
    name = "UpdateItem" if once is None else "TransactWriteItems"
    engine.append()
    traffic.sent.clear()
    traffic.tamper = of(name, lose_reply)
    assert engine.append(b"mine", once=once) == Appended(2, START)
    assert traffic.sent[name] == 2
    assert engine.sequences() == [2, 1]
    assert engine.append().sequence == 3


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize(
    "second", [lose_reply, unreachable, throttled, failed], ids=lambda tamper: tamper.__name__
)
@pytest.mark.parametrize("first", [lose_reply, failed], ids=lambda tamper: tamper.__name__)
def test_what_may_have_been_appended_is_never_said_not_to_be(
    engine: Engine, traffic: Traffic, first: Any, second: Any, once: Any
) -> None:
    name = "UpdateItem" if once is None else "TransactWriteItems"
    traffic.tamper = of(name, first, second)
    with pytest.raises(WriteOutcomeUnknownError):
        engine.append(b"mine", once=once)
    assert traffic.sent[name] == 2
    applied = engine.read()
    assert (applied is not None) == (lose_reply in (first, second))
    if once is not None:
        # With the key it can be repeated.
        assert engine.append(b"mine", once=once) == Appended(1, START, replayed=bool(applied))
        assert engine.sequences() == [1]


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize(
    ("tamper", "error"),
    [(unreachable, StoreUnavailableError), (throttled, StoreOverloadedError)],
    ids=["unreachable", "throttled"],
)
def test_what_was_not_appended_is_said_not_to_be(
    engine: Engine, traffic: Traffic, tamper: Any, error: type[Exception], once: Any
) -> None:
    name = "UpdateItem" if once is None else "TransactWriteItems"
    engine.append()
    traffic.tamper = of(name, tamper, tamper)
    with pytest.raises(error):
        engine.append(once=once)
    assert engine.sequences() == [1]
    # Once is tried again by the driver.
    traffic.tamper = of(name, tamper)
    assert engine.append(once=once).sequence == 2


@pytest.mark.parametrize("tamper", [unreachable, throttled, failed, lose_reply])
def test_a_head_whose_history_is_not_known_to_be_there_is_not_acknowledged(
    engine: Engine, traffic: Traffic, tamper: Any
) -> None:
    traffic.tamper = of("BatchWriteItem", tamper, tamper)
    with pytest.raises(WriteOutcomeUnknownError):
        engine.append(b"mine")
    traffic.tamper = of("PutItem", tamper, tamper)
    large = random.Random(1).randbytes(40_000)
    with pytest.raises(WriteOutcomeUnknownError):
        engine.append(large)
    assert engine.read() == StoredSnapshot(2, large, START)
    assert engine.append().sequence == 3


def unprocessed(table: str, times: int) -> Callable[[dict[str, Any]], None]:
    """Return what lets DynamoDB say of so many calls that it did not get to their item."""
    left = [times]

    def change(parsed: dict[str, Any]) -> None:
        if "UnprocessedItems" in parsed and left[0]:
            left[0] -= 1
            item = {"pk": {"S": str(KEY)}, "sk": {"S": f"{1:020}"}}
            parsed["UnprocessedItems"] = {table: [{"PutRequest": {"Item": item}}]}

    return change


def test_history_that_was_not_processed_is_put_again(engine: Engine, traffic: Traffic) -> None:
    traffic.answered = unprocessed(engine.table, 3)
    assert engine.append().sequence == 1
    assert traffic.sent == {"UpdateItem": 1, "BatchWriteItem": 4}
    assert engine.item(KEY, 1) is not None


def test_history_that_is_never_processed_is_not_acknowledged(
    client: DynamoDBClient, table_prefix: str
) -> None:
    with (
        engine_on(client, table_prefix, timeout=0.5) as engine,
        Traffic(client).watched() as traffic,
    ):
        traffic.answered = unprocessed(engine.table, 10**6)
        with pytest.raises(WriteOutcomeUnknownError):
            engine.append()
        # 10, 20, 40 ... ms apart, and not as fast as it goes.
        assert 2 <= traffic.sent["BatchWriteItem"] <= 20


def test_an_append_waits_for_a_transaction_on_its_head(engine: Engine, traffic: Traffic) -> None:
    traffic.tamper = of("UpdateItem", in_conflict, in_conflict)
    assert engine.append().sequence == 1
    assert traffic.sent["UpdateItem"] == 3
    traffic.tamper = always("UpdateItem", in_conflict)
    traffic.sent.clear()
    with pytest.raises(DuplicateInProgressError):
        engine.append()
    assert traffic.sent == {"UpdateItem": 8}
    assert engine.sequences() == [1]


def test_a_conflict_after_a_lost_reply_is_no_refusal(engine: Engine, traffic: Traffic) -> None:
    traffic.tamper = of("UpdateItem", lose_reply, in_conflict)
    with pytest.raises(WriteOutcomeUnknownError):
        engine.append()


def cancelled(*reasons: str) -> Any:
    def tamper(request: AWSPreparedRequest) -> AWSResponse:
        response = refused(request, "TransactionCanceledException")
        body = answer(
            request,
            {
                "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
                "Message": "as the test wants",
                "CancellationReasons": [{"Code": reason} for reason in reasons],
            },
        )
        body.status_code = response.status_code
        return body

    return tamper


def test_an_idempotent_append_gets_past_others(engine: Engine, traffic: Traffic) -> None:
    conflict = cancelled("TransactionConflict", "None", "None")
    traffic.tamper = of("TransactWriteItems", conflict, conflict)
    assert engine.append(once=idempotency("k1")) == Appended(1, START)
    # Where DynamoDB does not tell the number that stood in the way, it is read.
    traffic.tamper = of("TransactWriteItems", cancelled("ConditionalCheckFailed", "None", "None"))
    traffic.sent.clear()
    assert engine.append(once=idempotency("k2")) == Appended(2, START)
    assert traffic.sent == {"TransactWriteItems": 2, "GetItem": 1}
    traffic.tamper = always("TransactWriteItems", conflict)
    traffic.sent.clear()
    with pytest.raises(DuplicateInProgressError):
        engine.append(once=idempotency("k3"))
    assert traffic.sent == {"TransactWriteItems": 8}
    assert engine.sequences() == [2, 1]


def test_to_wait_for_others_ends_with_the_timeout(
    client: DynamoDBClient, table_prefix: str
) -> None:
    with (
        engine_on(client, table_prefix, timeout=0.4) as engine,
        Traffic(client).watched() as traffic,
    ):
        traffic.tamper = always("TransactWriteItems", cancelled("TransactionConflict", "None"))
        with pytest.raises(DuplicateInProgressError):
            engine.append(once=idempotency("k"), in_history=False)
        traffic.tamper = always("UpdateItem", in_conflict)
        with pytest.raises(DuplicateInProgressError):
            engine.append()
        assert 2 <= traffic.sent["UpdateItem"] < 8


class Hanging:
    """Holds requests of an operation until it is released; they are answered after that."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._released = threading.Event()
        self.held = threading.Semaphore(0)

    def __call__(self, request: AWSPreparedRequest) -> None:
        if operation(request) == self._name:
            self.held.release()
            self._released.wait(60)

    @contextmanager
    def hanging(self) -> Iterator[Hanging]:
        try:
            yield self
        finally:
            self._released.set()


def new(payload: bytes) -> NewSnapshot:
    return NewSnapshot(KEY, payload, START, in_history=False, consolidate_after=CONSOLIDATE_AFTER)


def test_callers_are_released_and_told_what_is_known(
    client: DynamoDBClient, engine: Engine
) -> None:
    """One append hangs, and a second one, which waits for its thread, never begins."""
    with (
        open_snapshots(
            client,
            prefix=engine.prefix,
            unreadable=lambda *_: None,
            timeout=0.3,
            writes_in_flight=1,
        ) as snapshots,
        Traffic(client).watched() as traffic,
        Hanging("UpdateItem").hanging() as hanging,
        ThreadPoolExecutor(1) as pool,
    ):
        traffic.tamper = hanging
        first = pool.submit(snapshots.append, new(b"first"), soon())
        assert hanging.held.acquire(timeout=20)
        began = time.monotonic()
        with pytest.raises(StoreTimeoutError):
            snapshots.append(new(b"second"), soon())
        with pytest.raises(DeadlineExceededError):
            snapshots.append(new(b"third"), Deadline.after(0.05))
        assert time.monotonic() - began < 10
        assert isinstance(first.exception(), WriteOutcomeUnknownError)
    eventually(engine.read, within=20, what="the first is appended after all")
    assert engine.read() == StoredSnapshot(1, b"first", START)


def test_a_round_of_consolidation_is_few_calls(engine: Engine, traffic: Traffic) -> None:
    for _ in range(60):
        engine.append()
    head = engine.found_when_due()
    traffic.sent.clear()
    assert engine.due() == [head]
    assert traffic.sent == {"Query": 8, "BatchGetItem": 1}
    traffic.sent.clear()
    engine.settle(head, expire=60)
    assert traffic.sent == {"BatchExecuteStatement": 3, "UpdateItem": 1}


def test_what_the_index_shows_no_longer_holds(engine: Engine, traffic: Traffic) -> None:
    """The index is behind: between its answer and the heads' own, others were at work."""
    for number in range(4):
        engine.append(key=key_of(number))
    engine.clock.turn(minutes=1)
    eventually(lambda: len(engine.due()) == 4, within=20, what="all are due")
    heads = {head.key: head for head in engine.due()}
    queries = []

    def interfere(parsed: dict[str, Any]) -> None:
        queries.append("Items" in parsed)
        if queries.count(True) == SHARDS and queries[-1]:
            engine.settle(heads[key_of(0)])
            later = engine.clock() + CONSOLIDATE_AFTER
            engine.settle(heads[key_of(1)], next_due=later)
            engine.client.delete_item(TableName=engine.table, Key=head_key(key_of(2)))
            engine.append(b"newer", key_of(3))

    traffic.answered = interfere
    (found,) = engine.due()
    assert (found.key, found.number, found.payload) == (key_of(3), 2, b"newer")
    assert engine.unreadable == []


def test_more_history_than_one_settlement_takes_is_left_for_the_next(
    engine: Engine, traffic: Traffic
) -> None:
    engine.append()
    engine.change(engine.item(), number={"N": "1003"})
    engine.append()
    engine.settle(engine.found_when_due(), expire=1004)
    assert traffic.sent["BatchExecuteStatement"] == 40
    head = engine.found()
    assert (head.number, head.expiring) == (1004, 1000)
    assert "expire_time" not in (engine.item(KEY, 1004) or {})
    engine.settle(head, expire=1004)
    assert traffic.sent["BatchExecuteStatement"] == 41
    assert "expire_time" in (engine.item(KEY, 1004) or {})
    assert engine.due() == []


def test_a_settlement_that_has_no_time_left_keeps_what_it_did(
    engine: Engine, traffic: Traffic
) -> None:
    for _ in range(60):
        engine.append()
    head = engine.found_when_due()
    deadline_over = [False]

    def end_after_a_call(parsed: dict[str, Any]) -> None:
        deadline_over[0] |= len(parsed.get("Responses", ())) == 25

    traffic.answered = end_after_a_call
    # Seven tenths of it are for the history: gone, as soon as one call was made.
    deadline = Deadline(100.0, clock=lambda: 80.0 if deadline_over[0] else 0.0)
    engine.dirty.settle(
        head,
        expire=60,
        keep=CONSOLIDATE_AFTER,
        clean=True,
        next_due=engine.clock(),
        deadline=deadline,
    )
    assert engine.found().expiring == 25
    engine.settle(engine.found(), expire=60)
    assert engine.due() == []


@pytest.mark.parametrize("code", ["AccessDeniedException", "InternalServerError"])
def test_history_expires_by_single_updates_where_statements_are_refused(
    engine: Engine, traffic: Traffic, code: str
) -> None:
    for _ in range(3):
        engine.append()
    traffic.sent.clear()
    traffic.tamper = always("BatchExecuteStatement", lambda request: refused(request, code))
    engine.settle(engine.found_when_due(), expire=3)
    assert traffic.sent["UpdateItem"] == 3 + 1
    engine.clock.turn(hours=1)
    assert engine.sequences() == [3]


def test_a_single_statement_that_failed_is_an_update(engine: Engine, traffic: Traffic) -> None:
    for _ in range(3):
        engine.append()
    head = engine.found_when_due()
    traffic.sent.clear()

    def fail_the_second(parsed: dict[str, Any]) -> None:
        if len(parsed.get("Responses", ())) == 3:
            parsed["Responses"][1] = {"Error": {"Code": "ThrottlingError", "Message": ""}}

    traffic.answered = fail_the_second
    engine.settle(head, expire=3)
    assert traffic.sent == {"BatchExecuteStatement": 1, "UpdateItem": 2}


@pytest.mark.parametrize("tamper", [throttled, in_conflict])
def test_an_overloaded_settlement_leaves_the_head_due(
    engine: Engine, traffic: Traffic, tamper: Any
) -> None:
    engine.append()
    head = engine.found_when_due()
    for name in ("UpdateItem", "BatchExecuteStatement"):
        traffic.tamper = always(name, throttled if name == "BatchExecuteStatement" else tamper)
        with pytest.raises(StoreOverloadedError):
            engine.settle(head, expire=1)
        assert engine.found().number == 1
    traffic.tamper = lambda _: None
    engine.settle(head, expire=1)
    assert engine.due() == []


@pytest.mark.parametrize("reply", ["kept", "lost"])
def test_a_settlement_whose_reply_is_lost_is_done(
    engine: Engine, traffic: Traffic, reply: str
) -> None:
    engine.append()
    head = engine.found_when_due()
    traffic.tamper = of("UpdateItem", lose_reply) if reply == "lost" else lambda _: None
    traffic.sent.clear()
    engine.settle(head)
    assert traffic.sent == {"UpdateItem": 1 if reply == "kept" else 2}
    assert engine.due() == []


def test_large_heads_are_fetched_past_the_limit_of_one_answer(
    engine: Engine, traffic: Traffic
) -> None:
    payload = random.Random(1).randbytes(380_000)
    for number in range(45):
        engine.append(payload, key_of(number), in_history=False)
    engine.clock.turn(minutes=1)
    traffic.sent.clear()
    heads = engine.due()
    assert {head.key for head in heads} == {key_of(number) for number in range(45)}
    assert all(head.payload == payload for head in heads)
    assert traffic.sent["BatchGetItem"] == 2


def test_keys_of_the_index_that_were_not_processed_are_asked_for_again(
    engine: Engine, traffic: Traffic
) -> None:
    for number in range(6):
        engine.append(key=key_of(number), in_history=False)
    engine.clock.turn(minutes=1)
    left = [2]

    def leave_half(parsed: dict[str, Any]) -> None:
        items = parsed.get("Responses", {})
        items = items.get(engine.table, []) if isinstance(items, dict) else []
        if items and left[0]:
            left[0] -= 1
            half = items[len(items) // 2 :]
            del items[len(items) // 2 :]
            keys = [{"pk": item["pk"], "sk": item["sk"]} for item in half]
            parsed["UnprocessedKeys"] = {engine.table: {"Keys": keys, "ConsistentRead": True}}

    traffic.answered = leave_half
    assert {head.key for head in engine.due()} == {key_of(number) for number in range(6)}
    left[0] = 2
    traffic.sent.clear()
    assert engine.read(1, key_of(3)) is not None
    assert traffic.sent["BatchGetItem"] > 1


def test_dirty_heads_call_from_their_callers_thread(client: DynamoDBClient, engine: Engine) -> None:
    before = threading.active_count()
    DynamoDirtyHeads(client, prefix=engine.prefix, unreadable=lambda *_: None).due(1, soon())
    assert threading.active_count() == before
