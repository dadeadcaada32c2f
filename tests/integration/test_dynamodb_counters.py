"""Steps of counters whose answers get lost or come late, or that meet a transaction.

No emulator does that by itself: botocore's hooks do it, below its own retries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ConnectTimeoutError

from duostore_server.domain.counters import (
    Begin,
    Counter,
    GrantStepped,
    Lower,
    Raise,
    Settlement,
    Step,
    Stepped,
)
from duostore_server.domain.errors import (
    StoreOverloadedError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from tests.support.counter_engines import (
    HOLD,
    KEY,
    LEASE,
    SLOT,
    WORKER,
    Engine,
    begun,
    direct,
    grant,
    raised,
    threaded,
)
from tests.support.dynamodb_engines import patient_client
from tests.support.dynamodb_traffic import Traffic, lose_reply, operation, refused
from tests.support.simulated_dynamodb import Delivery, Fault, SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal

    # What becomes of an attempt: an answer in DynamoDB's place, or an error; None lets it pass.
    Fate: TypeAlias = Callable[[AWSPreparedRequest], AWSResponse | None]

UPDATE = "UpdateItem"
TRANSACT = "TransactWriteItems"
LEASED = (WORKER, LEASE)
HELD = (HOLD, 2)
SETTLED = Settlement(1, 1, 1, covered=True)
BEGUN = Counter(SLOT, {SLOT: 5})


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


def in_progress(request: AWSPreparedRequest) -> AWSResponse:
    return refused(request, "TransactionInProgressException")


@pytest.fixture(scope="module")
def client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with patient_client(dynamodb.endpoint_url) as client:
        yield client


@pytest.fixture
def engine(client: DynamoDBClient, table_prefix: str) -> Iterator[Engine]:
    with threaded(client, table_prefix) as engine:
        yield engine


@pytest.fixture
def embedded(table_prefix: str) -> Iterator[Engine]:
    with (
        EmbeddedDynamoDB() as server,
        patient_client(server.endpoint_url) as client,
        threaded(client, table_prefix) as engine,
    ):
        yield engine


def tamper(engine: Engine, *fates: Fate, of: str = UPDATE) -> AbstractContextManager[Traffic]:
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
@pytest.mark.parametrize(
    ("step", "after"),
    [
        (raised(10, lease=LEASED), Counter(SLOT, {SLOT: 15}, {WORKER: LEASE})),
        # There is no room for it twice, and none but it has used the room.
        (raised(10, 5, lease=LEASED), Counter(SLOT, {SLOT: 15}, {WORKER: LEASE})),
        (
            Step(Begin(SLOT + 1, 10, SLOT, 5), lease=LEASED, drop=(SLOT,)),
            Counter(SLOT + 1, {SLOT + 1: 10}, {WORKER: LEASE}),
        ),
    ],
)
def test_a_lease_is_debited_once(engine: Engine, lost: Fate, step: Step, after: Counter) -> None:
    engine.apply(begun())
    with tamper(engine, lost) as traffic:
        stepped = engine.apply(step)
    assert (stepped.done, stepped.counter) == (True, after)
    # Of a first attempt that came to nothing, the second answers for itself.
    assert stepped.exact is (lost is not lose_reply)
    assert traffic.sent == {UPDATE: 2}
    assert engine.read() == after


def test_a_lease_whose_answer_is_lost_tells_what_others_did_since(
    engine: Engine, client: DynamoDBClient, dynamodb: DynamoDBLocal
) -> None:
    engine.apply(begun())
    del client
    with (
        patient_client(dynamodb.endpoint_url) as untampered,
        threaded(untampered, engine.prefix) as other,
    ):

        def count_on(_request: AWSPreparedRequest) -> None:
            other.done(raised(7))

        with tamper(engine, lose_reply, count_on):
            stepped = engine.apply(raised(10, lease=LEASED))
    after = Counter(SLOT, {SLOT: 22}, {WORKER: LEASE})
    assert stepped == Stepped(done=True, counter=after, exact=False)
    assert engine.read() == after


@pytest.mark.parametrize(
    "step",
    [
        Step(Lower(SLOT, 10), ended=LEASED),
        Step(Lower(SLOT, 10), release=HELD),
        Step(Lower(SLOT, 10, 0)),
    ],
)
def test_what_is_given_back_is_given_back_once(engine: Engine, step: Step) -> None:
    """It is answered as not done, for it cannot tell itself from another's."""
    engine.apply(begun(15, lease=LEASED, hold=HELD))
    with tamper(engine, lose_reply) as traffic:
        stepped = engine.apply(step)
    assert traffic.sent == {UPDATE: 2}
    counter = engine.read()
    assert stepped == Stepped(done=False, counter=counter)
    assert counter is not None
    assert (counter.level(SLOT), counter.refunded) == (5, 10)


@pytest.mark.parametrize(
    ("step", "done", "level"),
    [
        (raised(1), True, 7),
        (raised(1, 5), False, 6),
        (Step(Begin(SLOT, 1, SLOT, 5)), True, 1),
        (Step(Begin(SLOT, 9, SLOT, 5)), False, 9),
        (Step(Raise(SLOT, 1, 5, 4)), False, 6),
    ],
)
def test_more_is_counted_than_was_used_but_never_less(
    engine: Engine, step: Step, level: int, *, done: bool
) -> None:
    engine.apply(begun())
    with tamper(engine, lose_reply):
        stepped = engine.apply(step)
    assert stepped == Stepped(done=done, counter=Counter(SLOT, {SLOT: level}))
    assert engine.read() == stepped.counter


def lease(engine: Engine) -> Stepped:
    return engine.apply(raised(2, lease=LEASED))


def reserve(engine: Engine) -> GrantStepped:
    return engine.record(grant(), raised(2, hold=HELD))


def settle(engine: Engine) -> GrantStepped:
    return engine.settle(grant(), SETTLED, Step(Lower(SLOT, 1), unhold=HELD))


WORKS: dict[str, Callable[[Engine], Stepped | GrantStepped]] = {UPDATE: lease, TRANSACT: reserve}
LEASED_TWO = Counter(SLOT, {SLOT: 7}, {WORKER: LEASE})
RESERVED = Counter(SLOT, {SLOT: 7}, {}, {HOLD: 2})
AFTERWARDS = Counter(SLOT, {SLOT: 6}, {}, {HOLD: 0}, refunded=1)


@pytest.mark.parametrize("lost", [lose_reply, cut_off, broken, not_connected, throttled])
def test_a_transaction_whose_answer_is_lost_is_applied_once(engine: Engine, lost: Fate) -> None:
    engine.apply(begun())
    with tamper(engine, lost, of=TRANSACT) as traffic:
        assert reserve(engine) == GrantStepped(done=True, grant=grant())
    assert traffic.sent == {TRANSACT: 2}
    assert engine.read() == RESERVED
    settled = grant(settlement=SETTLED)
    with tamper(engine, lost, of=TRANSACT) as traffic:
        assert settle(engine) == GrantStepped(done=True, grant=settled)
    assert traffic.sent == {TRANSACT: 2}
    assert (engine.find(), engine.read()) == (settled, AFTERWARDS)


def test_an_engine_that_knows_no_tokens_finds_the_grant(embedded: Engine) -> None:
    embedded.apply(begun())
    with tamper(embedded, lose_reply, of=TRANSACT):
        assert reserve(embedded) == GrantStepped(done=True, grant=grant())
    assert embedded.read() == RESERVED
    with tamper(embedded, lose_reply, of=TRANSACT):
        stepped = settle(embedded)
    settled = grant(settlement=SETTLED)
    assert stepped == GrantStepped(
        done=False,
        counter=AFTERWARDS,
        grant=settled,
        counter_refused=True,
        grant_refused=True,
    )
    assert (embedded.find(), embedded.read()) == (settled, AFTERWARDS)


@pytest.mark.parametrize("came_through", [lose_reply, cut_off])
def test_a_grant_that_is_still_under_way_is_waited_for(engine: Engine, came_through: Fate) -> None:
    """By another transaction, with another token; what the first came to is found then."""
    engine.apply(begun())
    with tamper(engine, came_through, in_progress, of=TRANSACT) as traffic:
        assert reserve(engine) == GrantStepped(done=True, grant=grant())
    assert traffic.sent == {TRANSACT: 3}
    assert engine.read() == RESERVED


UNKNOWN: list[tuple[Fate, ...]] = [
    (lose_reply, lose_reply),
    (lose_reply, cut_off),
    (lose_reply, not_connected),
    (lose_reply, throttled),
    (broken, broken),
    (cut_off, not_connected),
    (cut_off, in_conflict, not_connected, not_connected),
    (lose_reply, in_conflict, throttled, throttled),
    # Botocore itself sends twice what is in progress.
    (lose_reply, *[in_conflict] * 15),
]


@pytest.mark.parametrize("of", [UPDATE, TRANSACT])
@pytest.mark.parametrize("fates", UNKNOWN)
def test_whatever_comes_after_a_lost_answer_does_not_make_it_a_failure(
    engine: Engine, fates: tuple[Fate, ...], of: str
) -> None:
    engine.apply(begun())
    if of == TRANSACT:
        fates = tuple(in_progress if fate is in_conflict else fate for fate in fates)
    with tamper(engine, *fates, of=of), pytest.raises(WriteOutcomeUnknownError):
        WORKS[of](engine)
    counter = engine.read()
    assert counter is not None
    assert counter.level(SLOT) == (7 if lose_reply in fates else 5)
    assert (engine.find() is not None) == (of == TRANSACT and lose_reply in fates)
    # It is safe to repeat.
    assert WORKS[of](engine).done
    counter = engine.read()
    assert counter is not None
    assert counter.level(SLOT) == 7


@pytest.mark.parametrize("of", [UPDATE, TRANSACT])
@pytest.mark.parametrize(
    ("fates", "error"),
    [
        ((not_connected, not_connected), StoreUnavailableError),
        ((throttled, not_connected), StoreUnavailableError),
        ((throttled, throttled), StoreOverloadedError),
        ((not_connected, throttled), StoreOverloadedError),
        ((in_conflict, throttled, throttled), StoreOverloadedError),
    ],
)
def test_what_was_never_carried_out_is_said_to_be_so(
    engine: Engine, fates: tuple[Fate, ...], error: type[Exception], of: str
) -> None:
    engine.apply(begun())
    if of == TRANSACT:
        fates = tuple(in_progress if fate is in_conflict else fate for fate in fates)
    with tamper(engine, *fates, of=of), pytest.raises(error) as failed:
        WORKS[of](engine)
    assert not isinstance(failed.value, WriteOutcomeUnknownError)
    assert engine.read() == BEGUN


def test_an_error_does_not_outlast_its_call(engine: Engine) -> None:
    """Eight threads make the calls, so that one of nine comes after a lost answer."""
    engine.apply(begun())
    for number in range(9):
        with tamper(engine, lose_reply):
            assert engine.apply(raised(lease=(f"worker_{number}", LEASE))).done
    for _ in range(9):
        fates = (in_conflict, not_connected, not_connected)
        with tamper(engine, *fates), pytest.raises(StoreUnavailableError):
            engine.apply(raised())


@pytest.mark.parametrize("conflicts", [1, 3])
def test_a_step_waits_for_a_transaction_on_its_counter(engine: Engine, conflicts: int) -> None:
    engine.apply(begun())
    with tamper(engine, *[in_conflict] * conflicts) as traffic:
        assert engine.done(raised()) == Counter(SLOT, {SLOT: 6})
    assert traffic.sent == {UPDATE: conflicts + 1}


class Conflicting(SimulatedDynamoDB):
    """Refuses so many writes, as DynamoDB does while a transaction is under way."""

    def __init__(self, times: int, *codes: str) -> None:
        super().__init__()
        self.left = times
        self._codes = codes

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            return super().transact_write_items(**request)
        reasons = [{"Code": code, "Message": "Item size has exceeded"} for code in self._codes]
        response: Any = {
            "Error": {"Code": "TransactionCanceledException", "Message": ""},
            "CancellationReasons": reasons,
        }
        raise ClientError(response, TRANSACT)

    def update_item(self, **request: Any) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            return super().update_item(**request)
        response: Any = {"Error": {"Code": "TransactionConflictException", "Message": ""}}
        raise ClientError(response, UPDATE)


def test_pauses_grow() -> None:
    pauses: list[float] = []
    engine = direct(Conflicting(3, "None", "TransactionConflict").client, pause=pauses.append)
    assert engine.record(grant(), begun()).done
    assert pauses == [0.01, 0.02, 0.04]
    pauses.clear()
    engine = direct(Conflicting(3).client, pause=pauses.append)
    assert engine.apply(begun()).done
    assert pauses == [0.01, 0.02, 0.04]


def test_what_is_only_in_the_way_is_in_nobodys_way() -> None:
    """Neither the counter nor the grant is at fault, and nothing is known of them."""
    pauses: list[float] = []
    database = Conflicting(10**6, "TransactionConflict", "None")
    engine = direct(database.client, pause=pauses.append)
    assert engine.record(grant(), begun()) == GrantStepped(done=False)
    assert engine.settle(grant(), SETTLED, raised()) == GrantStepped(done=False)
    assert len(pauses) == 14
    with pytest.raises(StoreOverloadedError):
        engine.apply(begun())
    assert engine.read() is None


def test_a_grant_decides_whatever_is_in_the_way_of_its_counter() -> None:
    engine = direct(Conflicting(1, "ConditionalCheckFailed", "TransactionConflict").client)
    assert engine.settle(grant(), SETTLED, raised()) == GrantStepped(done=False, grant_refused=True)


def test_who_is_at_work_on_a_grant_is_waited_for() -> None:
    """What the counter is refused for may be their doing, of which only the grant tells."""
    pauses: list[float] = []
    database = Conflicting(0, "TransactionConflict", "ConditionalCheckFailed")
    engine = direct(database.client, pause=pauses.append)
    engine.record(grant(), begun(2, hold=HELD))
    settle(engine)
    database.left = 2
    assert settle(engine).grant == grant(settlement=SETTLED)
    assert pauses == [0.01, 0.02]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ThrottlingError", StoreOverloadedError),
        ("ProvisionedThroughputExceeded", StoreOverloadedError),
        ("ValidationError", StoreUnavailableError),
        ("ItemCollectionSizeLimitExceeded", StoreUnavailableError),
    ],
)
def test_what_cannot_be_written_is_not_tried_again(code: str, error: type[Exception]) -> None:
    engine = direct(Conflicting(1, "None", code).client)
    with pytest.raises(error):
        engine.record(grant(), begun())
    assert engine.read() is None


def late(engine: Engine, database: SimulatedDynamoDB, work: Callable[[], object]) -> None:
    """Do work that DynamoDB gets to only after it was given up: at ``deliver``."""
    fault = Fault(ConnectionClosedError(endpoint_url="simulated:"), Delivery.LATE)
    database.fault = lambda label: None if label.startswith("BatchGet") else fault
    before = engine.read()
    with pytest.raises(WriteOutcomeUnknownError):
        work()
    database.fault = lambda _: None
    assert engine.read() == before


@pytest.mark.parametrize(("work", "after"), [(lease, LEASED_TWO), (reserve, RESERVED)])
def test_what_comes_late_is_not_done_again(
    work: Callable[[Engine], object], after: Counter
) -> None:
    database = SimulatedDynamoDB()
    engine = direct(database.client)
    engine.apply(begun())
    late(engine, database, lambda: work(engine))
    work(engine)
    assert engine.read() == after
    database.deliver()
    assert engine.read() == after


def test_a_lease_that_comes_late_leaves_nothing_to_give_back() -> None:
    """It is debited in vain, and takes the place of a newer one: less is admitted, not more."""
    database = SimulatedDynamoDB()
    engine = direct(database.client)
    engine.apply(begun())
    late(engine, database, lambda: lease(engine))
    newer = replace(LEASE, nonce="nonce_2")
    engine.done(raised(2, lease=(WORKER, newer)))
    database.deliver()
    after = Counter(SLOT, {SLOT: 9}, {WORKER: LEASE})
    assert engine.apply(Step(Lower(SLOT, 2), ended=(WORKER, newer))) == Stepped(
        done=False, counter=after
    )
    assert engine.read() == after


def test_a_settlement_that_comes_late_finds_the_grant_settled() -> None:
    database = SimulatedDynamoDB()
    engine = direct(database.client)
    engine.apply(begun())
    reserve(engine)
    late(engine, database, lambda: settle(engine))
    assert settle(engine).done
    database.deliver()
    assert engine.read() == AFTERWARDS


def test_a_counter_that_was_swept_begins_anew() -> None:
    database = SimulatedDynamoDB()
    engine = direct(database.client)
    engine.apply(begun())
    database.sweep(engine.table, f"count#{KEY}")
    assert engine.apply(raised()) == Stepped(done=False, counter=None)
    assert engine.done(Step(Begin(SLOT + 1, 1, SLOT, 5))) == Counter(SLOT + 1, {SLOT + 1: 1})
