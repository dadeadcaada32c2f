"""What every engine of the counters promises.

No engine loses an answer, or refuses a write for another one that is under way: see
``tests/integration/test_dynamodb_counters.py``.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.counters import (
    BUCKET_SLOT,
    Begin,
    Counter,
    GrantStepped,
    HoldName,
    Lease,
    Lower,
    Raise,
    Settlement,
    Step,
    Stepped,
)
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.domain.quotas import CounterKey
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.attributes import UnreadableError
from duostore_server.storage.dynamodb.counters import direct_counters
from tests.support.counter_engines import (
    HOLD,
    HOUR,
    KEY,
    LEASE,
    NOW,
    NOW_NS,
    SLOT,
    WORKER,
    Engine,
    begun,
    direct,
    grant,
    raised,
    soon,
    threaded,
)
from tests.support.dynamodb_engines import never, patient_client
from tests.support.dynamodb_traffic import Traffic
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.counters import Grant
    from tests.support.servers import DynamoDBLocal

ANY = 10**30
LEASED = (WORKER, LEASE)
HELD = (HOLD, 2)
SETTLED = Settlement(1, 1, 1, covered=True)
RELEASED = Settlement(None, 0, 2, covered=True)


def key_of(number: int) -> CounterKey:
    return CounterKey("acme", "api_calls", f"user-{number}")


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
        yield direct(SimulatedDynamoDB().client, table_prefix)
        return
    fixture = {"dynamodb_local": "dynamodb_client", "embedded": "embedded_client"}[request.param]
    with threaded(request.getfixturevalue(fixture), table_prefix) as engine:
        yield engine


only_local = pytest.mark.parametrize("engine", ["dynamodb_local"], indirect=True)


def test_what_was_never_counted_is_missing(engine: Engine) -> None:
    engine.apply(begun())
    assert engine.counters.read((key_of(2), KEY), soon()).keys() == {KEY}
    assert engine.counters.read((), soon()) == {}
    assert engine.find() is None


def test_a_step_answers_the_counter_that_it_leaves(engine: Engine) -> None:
    steps = [
        (begun(5), Counter(SLOT, {SLOT: 5})),
        (raised(3), Counter(SLOT, {SLOT: 8})),
        (raised(3, lease=LEASED), Counter(SLOT, {SLOT: 11}, {WORKER: LEASE})),
        (raised(2, hold=HELD), Counter(SLOT, {SLOT: 13}, {WORKER: LEASE}, {HOLD: 2})),
        (
            Step(Lower(SLOT, 10), ended=LEASED),
            Counter(SLOT, {SLOT: 3}, {}, {HOLD: 2}, refunded=10),
        ),
        (
            Step(Begin(SLOT + 1, 1, SLOT, 3)),
            Counter(SLOT + 1, {SLOT: 3, SLOT + 1: 1}, {}, {HOLD: 2}, refunded=10),
        ),
        (
            Step(Lower(SLOT, 2), release=HELD),
            Counter(SLOT + 1, {SLOT: 1, SLOT + 1: 1}, {}, {}, refunded=12),
        ),
        (
            Step(Raise(SLOT + 1, 1, 1), drop=(SLOT, SLOT - 1)),
            Counter(SLOT + 1, {SLOT + 1: 2}, {}, {}, refunded=12),
        ),
    ]
    for step, expected in steps:
        assert engine.apply(step) == Stepped(done=True, counter=expected), step
        assert engine.read() == expected
    assert engine.unreadable == []


@pytest.mark.parametrize(
    "level",
    [10**18, 1_750_000_000 * 10**9, pytest.param(NOW_NS + 1, id="now"), 10**24 + 7],
)
def test_levels_are_exact(engine: Engine, level: int) -> None:
    """Of a token bucket: nanoseconds since 1970, whatever zeros they end in."""
    engine.apply(begun(level, slot=0))
    counter = engine.done(Step(Raise(0, 1, level, level - 1)))
    assert counter == engine.read() == Counter(0, {0: level + 1})
    assert engine.done(Step(Lower(0, 1, 0))).level(0) == level


def prepare(engine: Engine) -> Counter:
    """Return a counter that has been through something."""
    engine.apply(begun(1, SLOT - 1))
    engine.apply(Step(Begin(SLOT, 8, SLOT - 1, 1), lease=LEASED, hold=HELD))
    counter = engine.done(Step(Lower(SLOT, 3, 0)))
    levels = {SLOT - 1: 1, SLOT: 5}
    assert counter == Counter(SLOT, levels, {WORKER: LEASE}, {HOLD: 2}, refunded=3)
    return counter


# What steps require of it.
CONDITIONS: list[tuple[Step, bool]] = [
    (Step(Begin(SLOT, 1)), False),
    (Step(Begin(SLOT + 1, 1, SLOT, 5)), True),
    (Step(Begin(SLOT + 1, 1, SLOT, ANY)), True),
    (Step(Begin(SLOT + 1, 1, SLOT, 4)), False),
    (Step(Begin(SLOT + 1, 1, SLOT - 1, ANY)), False),
    (Step(Begin(SLOT, 9, SLOT, 5)), True),
    (Step(Begin(SLOT, 9, SLOT, 4)), False),
    (Step(Raise(SLOT, 1, 5)), True),
    (Step(Raise(SLOT, 1, 4)), False),
    (Step(Raise(SLOT, 1, -1)), False),
    (Step(Raise(SLOT + 1, 1, 5)), False),
    (Step(Raise(SLOT - 1, 1, 5)), False),
    (Step(Raise(SLOT, 1, 5, 4)), True),
    (Step(Raise(SLOT, 1, 5, 5)), False),
    (Step(Lower(SLOT, 5, 3)), True),
    (Step(Lower(SLOT, 6, 3)), False),
    (Step(Lower(SLOT, 5, 2)), False),
    (Step(Lower(SLOT, 5, 3, most=5)), True),
    (Step(Lower(SLOT, 5, 3, most=4)), False),
    (Step(Lower(SLOT + 1, 1, 3)), False),
    (Step(Raise(SLOT, 1, 5), lease=LEASED), False),
    (Step(Raise(SLOT, 1, 5), lease=(WORKER, replace(LEASE, nonce="nonce_2"))), True),
    (Step(Raise(SLOT, 1, 5), lease=("worker_2", LEASE)), True),
    (Step(None, ended=LEASED), True),
    (Step(None, ended=(WORKER, replace(LEASE, amount=9))), False),
    (Step(None, ended=(WORKER, replace(LEASE, until=LEASE.until + 1))), False),
    (Step(None, ended=(WORKER, replace(LEASE, nonce="nonce_2"))), False),
    (Step(None, ended=("worker_2", LEASE)), False),
    (Step(None, unhold=(HOLD, 2)), True),
    (Step(None, unhold=(HOLD, 1)), True),
    (Step(None, unhold=(HOLD, 3)), False),
    (Step(None, unhold=(replace(HOLD, slot=SLOT + 1), 1)), False),
    (Step(None, held=0, until=1), True),
    (Step(None, release=(HOLD, 2)), True),
    (Step(None, release=(HOLD, 1)), False),
    (Step(None, release=(HOLD, 3)), False),
    (Step(None, release=(replace(HOLD, until=1), 2)), False),
    (Step(None, forget=(WORKER, HOLD, "worker_2")), True),
    (Step(Raise(SLOT, 1, 5), ended=LEASED, release=HELD), True),
    (Step(Raise(SLOT, 1, 4), ended=LEASED, release=HELD), False),
    (Step(Raise(SLOT, 1, 5), ended=(WORKER, replace(LEASE, amount=9)), release=HELD), False),
    (Step(Raise(SLOT, 1, 5), ended=LEASED, release=(HOLD, 1)), False),
]


@pytest.mark.parametrize("in_transaction", [False, True], ids=["alone", "with_grant"])
@pytest.mark.parametrize(("step", "holds"), CONDITIONS)
def test_a_step_is_done_as_a_whole_if_what_it_requires_holds(
    engine: Engine, step: Step, *, holds: bool, in_transaction: bool
) -> None:
    before = prepare(engine)
    if in_transaction:
        recorded = engine.record(grant(), step)
        refused = GrantStepped(done=False, counter=before, counter_refused=True)
        assert recorded == (GrantStepped(done=True, grant=grant()) if holds else refused)
        assert (engine.find() is not None) is holds
    elif step.lease == LEASED:
        # It is there already: an earlier attempt has set it.
        assert engine.apply(step) == Stepped(done=True, counter=before, exact=False)
    else:
        stepped = engine.apply(step)
        assert stepped.done is holds
        assert stepped.counter == (engine.read() if holds else before)
    if not holds:
        assert engine.read() == before


class Without(SimulatedDynamoDB):
    """Takes a part of each update's condition, in plain words, for true."""

    guard = ""

    def update_item(self, **request: Any) -> dict[str, Any]:
        names, values = request["ExpressionAttributeNames"], request["ExpressionAttributeValues"]

        def plain(match: re.Match[str]) -> str:
            words = (
                names[word] if word[0] == "#" else word
                for word in re.split(r"[ ()]", match[0])
                if word
            )
            left_out = self.guard and re.match(self.guard, " ".join(words))
            return "pk = pk" if left_out else match[0]

        condition = re.sub(
            r"#\w+ [<>=]+ :\w+|attribute_not_exists\(#\w+\)", plain, request["ConditionExpression"]
        )
        used = {*re.findall(r"[#:]\w+", condition + " " + request["UpdateExpression"])}
        return super().update_item(
            **{
                **request,
                "ConditionExpression": condition,
                "ExpressionAttributeNames": {it: names[it] for it in names if it in used},
                "ExpressionAttributeValues": {it: values[it] for it in values if it in used},
            }
        )


GUARDS = [
    r"attribute_not_exists",
    r"epoch = ",
    r"level_\d+ <= ",
    r"level_\d+ > ",
    r"level_\d+ >= ",
    r"refunded = ",
    r"lease_\w+ = ",
    r"hold_\w+ >= ",
    r"hold_\w+ = ",
]


def done_without(guard: str) -> Iterator[bool]:
    """Tell of each step that is to be refused whether it is done without a guard."""
    for step in (step for step, holds in CONDITIONS if not holds and step.lease is None):
        database = Without()
        engine = direct(database.client)
        prepare(engine)
        database.guard = guard
        try:
            yield engine.apply(step).done
        except UnreadableError:
            yield True  # and has left less than nothing


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_needed(guard: str) -> None:
    assert any(done_without(guard))


def test_only_its_nonce_keeps_a_lease_from_being_set_twice() -> None:
    levels = []
    for guard in ("", r"lease_\w+ <> "):
        database = Without()
        engine = direct(database.client)
        engine.apply(begun())
        database.guard = guard
        for _ in range(2):
            engine.apply(raised(10, lease=LEASED))
        counter = engine.read()
        assert counter is not None
        levels.append(counter.level(SLOT))
    assert levels == [15, 25]


@pytest.mark.parametrize(
    "step",
    [
        raised(),
        Step(Lower(SLOT, 1, 0)),
        Step(None, ended=LEASED),
        Step(None, hold=HELD),
        Step(None, unhold=HELD),
        Step(None, release=HELD),
        Step(None, forget=(WORKER,)),
    ],
)
def test_only_a_beginning_makes_a_counter(engine: Engine, step: Step) -> None:
    assert engine.apply(step) == Stepped(done=False, counter=None)
    assert engine.record(grant(), step) == GrantStepped(done=False, counter_refused=True)
    assert engine.read() is None
    counter = engine.done(Step(Begin(SLOT, 5, SLOT - 1, 0)))
    assert counter == Counter(SLOT, {SLOT: 5})


def test_a_lease_takes_the_place_of_the_one_that_ends(engine: Engine) -> None:
    newer = replace(LEASE, amount=20, nonce="nonce_2")
    engine.apply(begun(lease=LEASED))
    step = raised(20, ended=LEASED, lease=(WORKER, newer))
    assert engine.done(step).leases == {WORKER: newer}
    assert engine.done(step) == Counter(SLOT, {SLOT: 25}, {WORKER: newer})
    late = raised(1, ended=LEASED, lease=(WORKER, replace(LEASE, nonce="nonce_3")))
    assert not engine.apply(late).done


def test_holds_of_one_name_add_up(engine: Engine) -> None:
    engine.apply(begun(hold=(HOLD, 2)))
    assert engine.done(raised(3, hold=(HOLD, 3))).holds == {HOLD: 5}
    counter = engine.done(raised(1, hold=(replace(HOLD, until=9), 1), unhold=(HOLD, 4)))
    assert counter.holds == {HOLD: 1, HoldName(SLOT, 9): 1}
    assert engine.done(Step(None, unhold=(HOLD, 1))).holds == {HOLD: 0, HoldName(SLOT, 9): 1}


def test_what_no_longer_counts_goes(engine: Engine) -> None:
    other = Lease(1, 2, "nonce 2")
    engine.apply(begun(lease=LEASED, hold=HELD))
    engine.apply(Step(Begin(SLOT + 1, 1, SLOT, ANY), lease=("worker_2", other)))
    step = Step(
        Begin(SLOT + 9, 4, SLOT + 1, 1),
        lease=("worker_2", LEASE),
        forget=(WORKER, HOLD, HoldName(1, 2), "worker_3"),
        drop=(SLOT, SLOT + 1, SLOT - 5),
    )
    assert engine.done(step) == Counter(SLOT + 9, {SLOT + 9: 4}, {"worker_2": LEASE})
    always = {"pk", "epoch", "refunded"}
    assert engine.item().keys() == always | {f"level_{SLOT + 9}", "lease_worker_2"}


def test_many_slots_go_a_hundred_at_a_time(engine: Engine) -> None:
    engine.apply(begun(1))
    older = range(SLOT - 250, SLOT)
    engine.damage(engine.item(), **{f"level_{slot}": {"N": "1"} for slot in older})
    left = []
    for slot in range(SLOT + 1, SLOT + 4):
        counter = engine.read()
        assert counter is not None
        drop = tuple(sorted(counter.levels.keys() - {counter.epoch}))
        after = engine.done(Step(Begin(slot, 1, counter.epoch, 1), drop=drop))
        left.append(len(after.levels))
    assert left == [152, 53, 2]


CONTRADICTIONS = [
    Step(Begin(SLOT, 1), drop=(SLOT,)),
    raised(drop=(SLOT,)),
    raised(hold=HELD, unhold=HELD),
    raised(hold=HELD, release=HELD),
    raised(unhold=HELD, forget=(HOLD,)),
    raised(release=HELD, forget=(HOLD,)),
    raised(lease=LEASED, forget=(WORKER,)),
    raised(ended=LEASED, forget=(WORKER,)),
    raised(forget=(WORKER, WORKER)),
]


@pytest.mark.parametrize("step", CONTRADICTIONS)
def test_a_step_that_contradicts_itself_is_not_sent(engine: Engine, step: Step) -> None:
    engine.apply(begun())
    before = engine.item()
    with pytest.raises(ValueError, match="two parts of a step change"):
        engine.apply(step)
    with pytest.raises(ValueError, match="two parts of a step change"):
        engine.record(grant(), step)
    assert engine.item() == before


@pytest.mark.parametrize("step", [Step(Lower(SLOT, 1)), Step(Lower(SLOT, 1), unhold=HELD)])
def test_what_gives_back_is_done_once_or_refused(engine: Engine, step: Step) -> None:
    engine.apply(begun(hold=HELD))
    with pytest.raises(ValueError, match="done once"):
        engine.apply(step)
    assert engine.read() == Counter(SLOT, {SLOT: 5}, {}, {HOLD: 2})


def seconds(item: dict[str, Any]) -> int:
    return int(item["sweep_time"]["N"])


def test_a_step_keeps_the_counter_until_a_day_after_it_matters(engine: Engine) -> None:
    engine.apply(begun(until=NOW_NS, lease=LEASED))
    assert seconds(engine.item()) == int(NOW.timestamp()) + 24 * 3600
    engine.apply(raised(until=NOW_NS + HOUR))
    assert seconds(engine.item()) == int(NOW.timestamp()) + 25 * 3600
    engine.apply(Step(Lower(SLOT, 1), ended=LEASED))
    assert seconds(engine.item()) == int(NOW.timestamp()) + 25 * 3600


def test_what_a_bucket_holds_is_kept_count_of(engine: Engine) -> None:
    held, later = HoldName(BUCKET_SLOT, 7), HoldName(BUCKET_SLOT, 8)
    engine.apply(begun(slot=BUCKET_SLOT, held=0, hold=(held, 5)))

    def raised_if(most: int, **parts: Any) -> bool:
        return engine.apply(raised(slot=BUCKET_SLOT, held=most, **parts)).done

    assert not raised_if(4, hold=(later, 3))
    assert raised_if(5, hold=(later, 3))
    assert not raised_if(7)
    assert raised_if(8)
    engine.done(Step(None, held=ANY, unhold=(held, 2)))
    assert not raised_if(5)
    # Be it of no bucket at the time, and not asked for.
    engine.done(Step(None, release=(later, 3)))
    assert not raised_if(2)
    assert raised_if(3)
    assert raised_if(3, hold=(later, 4), unhold=(held, 3))
    assert not raised_if(3)
    assert raised_if(4)


def test_what_windows_hold_is_not_counted_with_it(engine: Engine) -> None:
    engine.apply(begun(hold=(HOLD, 5)))
    engine.done(raised(held=0))
    engine.done(Step(None, held=ANY, unhold=(HOLD, 2)))
    engine.done(raised(held=0))


def test_what_a_bucket_held_before_it_was_something_else_is_forgotten(engine: Engine) -> None:
    held = HoldName(BUCKET_SLOT, 7)
    engine.apply(begun(slot=BUCKET_SLOT, held=0, hold=(held, 5)))
    engine.done(Step(Begin(SLOT, 1, BUCKET_SLOT, ANY), forget=(held,)))
    begin = Begin(BUCKET_SLOT, 1, SLOT, ANY)
    engine.done(Step(begin, held=0, hold=(held, 2)))
    assert not engine.apply(raised(slot=BUCKET_SLOT, held=1)).done
    engine.done(raised(slot=BUCKET_SLOT, held=2))


GRANTS = [
    grant(),
    grant(hold=None, expire_time=None),
    grant(request_hash=b""),
    grant("a#b##c", request_hash=bytes(range(256))),
    grant("g-1", counter=CounterKey("", "api_calls", "#")),
    grant(cost=10**9, amount=10**19, slot=0),
]


@pytest.mark.parametrize("recorded", GRANTS)
def test_what_is_granted_is_found(engine: Engine, recorded: Grant) -> None:
    step = begun(recorded.amount)
    assert engine.record(recorded, step) == GrantStepped(done=True, grant=recorded)
    found = engine.find(recorded.id, recorded.counter.tenant)
    assert found == recorded
    assert engine.find(recorded.id, "other") is None
    assert engine.find(f"{recorded.id}-2", recorded.counter.tenant) is None
    counter = engine.read(recorded.counter)
    assert counter == Counter(SLOT, {SLOT: recorded.amount})


def test_a_grant_stays_for_a_day_after_its_time(engine: Engine) -> None:
    engine.record(grant(), begun())
    forget = grant().forget_time // 10**9
    assert seconds(engine.grant_item()) == forget + 24 * 3600


def test_a_grant_is_recorded_once(engine: Engine) -> None:
    engine.record(grant(), begun(2, hold=HELD))
    step = raised(2, hold=HELD)
    other = grant(cost=7)
    expected = GrantStepped(done=False, grant=grant(), grant_refused=True)
    assert engine.record(other, step) == expected
    last = grant().forget_time - 1
    assert engine.record(other, step, last) == expected
    both = replace(expected, counter=engine.read(), counter_refused=True)
    assert engine.record(other, raised(2, most=1)) == both
    assert engine.read() == Counter(SLOT, {SLOT: 2}, {}, {HOLD: 2})


def test_the_very_same_grant_is_its_own_repetition(engine: Engine) -> None:
    """It was recorded by an earlier attempt, whose answer was lost."""
    engine.record(grant(), begun(2))
    assert engine.record(grant(), raised(2)) == GrantStepped(done=True, grant=grant())
    assert engine.read() == Counter(SLOT, {SLOT: 2})


def test_a_forgotten_grant_is_replaced(engine: Engine) -> None:
    engine.record(grant(), begun(2))
    engine.settle(grant(), SETTLED, None)
    later = grant(forget_time=NOW_NS + 48 * HOUR, request_hash=b"other", hold=None)
    done = engine.record(later, raised(2), grant().forget_time)
    assert done == GrantStepped(done=True, grant=later)
    assert engine.find() == later


def test_a_grant_is_put_instead_of_exactly_another(engine: Engine) -> None:
    engine.record(grant(), begun(2))
    later = grant(nonce="later")
    for other in (grant(nonce="other"), grant(settlement=RELEASED)):
        refused = engine.record(later, raised(2), instead=other)
        assert refused == GrantStepped(done=False, grant=grant(), grant_refused=True)
    engine.settle(grant(), RELEASED, None)
    refused = engine.record(later, raised(2), instead=grant())
    assert refused.grant_refused
    assert engine.record(later, raised(2), instead=grant(settlement=RELEASED)).done
    assert engine.find() == later
    assert engine.record(grant(nonce="third"), raised(2), instead=later).done
    assert engine.read() == Counter(SLOT, {SLOT: 6})


@pytest.mark.parametrize("settlement", [SETTLED, RELEASED, Settlement(9, 2, 0, covered=False)])
def test_a_reservation_is_settled_once(engine: Engine, settlement: Settlement) -> None:
    engine.record(grant(), begun(2, hold=HELD))
    settled = grant(settlement=settlement)
    step = Step(Lower(SLOT, 1), unhold=HELD)
    assert engine.settle(grant(), settlement, step) == GrantStepped(done=True, grant=settled)
    assert engine.find() == settled
    after = Counter(SLOT, {SLOT: 1}, {}, {HOLD: 0}, refunded=1)
    assert engine.read() == after
    for again in (settlement, Settlement(3, 3, 3, covered=True)):
        for repeated in (Step(Lower(SLOT, 1)), None):
            refused = engine.settle(grant(), again, repeated)
            assert refused == GrantStepped(done=False, grant=settled, grant_refused=True)
    assert engine.find() == settled
    assert engine.read() == after


def test_neither_is_settled_nor_the_step_done_by_itself(engine: Engine) -> None:
    engine.record(grant(), begun(2, hold=HELD))
    before = engine.read()
    refused = engine.settle(grant(), SETTLED, Step(Lower(SLOT, 1), unhold=(HOLD, 3)))
    assert refused == GrantStepped(done=False, counter=before, counter_refused=True)
    assert engine.find() == grant()
    unknown = engine.settle(grant("g-2"), SETTLED, Step(Lower(SLOT, 1)))
    assert unknown == GrantStepped(done=False, grant_refused=True)
    assert engine.find("g-2") is None
    both = engine.settle(grant("g-2"), SETTLED, Step(Lower(SLOT, 9)))
    expected = GrantStepped(done=False, counter=before, counter_refused=True, grant_refused=True)
    assert both == expected
    assert engine.read() == before


def test_a_settlement_may_change_no_counter(engine: Engine) -> None:
    engine.record(grant(), begun(2, hold=HELD))
    before = engine.read()
    settled = grant(settlement=SETTLED)
    assert engine.settle(grant(), SETTLED, None) == GrantStepped(done=True, grant=settled)
    assert engine.settle(grant(), RELEASED, None).grant == settled
    assert engine.find() == settled
    assert engine.read() == before


def test_another_grant_of_the_same_id_is_not_settled(engine: Engine) -> None:
    engine.record(grant(), begun(2))
    later = grant(nonce="another", forget_time=grant().forget_time + 1, amount=1)
    engine.record(later, raised(1), grant().forget_time)
    refused = engine.settle(grant(), RELEASED, Step(Lower(SLOT, 2)))
    assert refused == GrantStepped(done=False, grant=later, grant_refused=True)
    assert engine.read() == Counter(SLOT, {SLOT: 3})


UNUSUAL = [
    CounterKey("", "api_calls", "user#7"),
    CounterKey("acme", "api_calls", "user#7#"),
    CounterKey("acme", "api_calls", " ' \" ? :v0 #n0 \\"),
    CounterKey("acme", "api_calls", "USER#7"),
    CounterKey("acme", "api_calls", "e\u0301"),
    CounterKey("日本", "配額", "🦆" * 64),
    CounterKey("t" * 64, "q" * 64, "s" * 256),
]


def test_unusual_keys_are_kept_apart(engine: Engine) -> None:
    keys = [KEY, *UNUSUAL]
    for number, key in enumerate(keys):
        engine.apply(begun(number), key)
        engine.apply(raised(1), key)
    counters = engine.counters.read(keys, soon())
    assert {key: counter.levels for key, counter in counters.items()} == {
        key: {SLOT: number + 1} for number, key in enumerate(keys)
    }


def test_500_counters_are_read_in_one_call(engine: Engine) -> None:
    keys = [key_of(number) for number in range(500)]
    stored = keys[::10]
    for number, key in enumerate(stored):
        engine.apply(begun(number), key)
    counters = engine.counters.read([*keys, *keys[:50]], soon())
    assert counters == {key: Counter(SLOT, {SLOT: number}) for number, key in enumerate(stored)}


LEVEL = f"level_{SLOT}"
DAMAGES: dict[str, dict[str, Any]] = {
    "no epoch": {"epoch": None},
    "an epoch without level": {"epoch": {"N": str(SLOT + 1)}},
    "a text for a level": {LEVEL: {"S": "1"}},
    "half a unit": {LEVEL: {"N": "1.5"}},
    "less than nothing": {LEVEL: {"N": "-1"}},
    "a level of nothing": {"level_": {"N": "1"}},
    "a level of two slots": {"level_1_2": {"N": "1"}},
    "no number of a slot": {"level_now": {"N": "1"}},
    "nothing given back": {"refunded": {"S": "3"}},
    "a number for a lease": {"lease_w": {"N": "1"}},
    "a lease for no time": {"lease_w": {"S": "1 now nonce"}},
    "a lease without nonce": {"lease_w": {"S": "1 2"}},
    "a hold of no slot": {"hold_x_1": {"N": "1"}},
    "a hold for no time": {"hold_1": {"N": "1"}},
    "half a hold": {"hold_1_2": {"N": "0.5"}},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_counter_that_cannot_be_read_is_an_error_of_its_own(
    engine: Engine, damage: dict[str, Any]
) -> None:
    """Not an absence, which would be leave to begin anew."""
    engine.apply(begun())
    engine.apply(begun(), key_of(2))
    engine.damage(engine.item(), **damage)
    with pytest.raises(UnreadableError):
        engine.read()
    with pytest.raises(UnreadableError):
        engine.apply(begun())
    assert len(engine.unreadable) == 2
    assert engine.read(key_of(2)) == Counter(SLOT, {SLOT: 5})


GRANT_DAMAGES: dict[str, dict[str, Any]] = {
    "no quota": {"quota": None},
    "no cost": {"cost": {"S": "2"}},
    "half a hold": {"hold_until": None},
    "no time to forget it": {"forget_time": {"N": f"{NOW_NS + HOUR}.5"}},
    "half a settlement": {"settled_committed": {"N": "1"}},
    "a hash that is a text": {"request_hash": {"S": "hash"}},
}


@pytest.mark.parametrize("damage", GRANT_DAMAGES.values(), ids=GRANT_DAMAGES)
def test_a_grant_that_cannot_be_read_is_an_error_of_its_own(
    engine: Engine, damage: dict[str, Any]
) -> None:
    engine.record(grant(), begun())
    engine.damage(engine.grant_item(), **damage)
    with pytest.raises(UnreadableError):
        engine.find()
    assert len(engine.unreadable) == 1
    with pytest.raises(UnreadableError):
        engine.record(grant(cost=3), raised())
    assert engine.read() == Counter(SLOT, {SLOT: 5})


def test_nothing_is_sent_after_the_deadline(engine: Engine) -> None:
    passed = Deadline.after(0)
    works: list[Callable[[], object]] = [
        lambda: engine.counters.apply(KEY, begun(), passed),
        lambda: engine.counters.record(grant(), begun(), NOW_NS, passed),
        lambda: engine.counters.settle(grant(), SETTLED, None, passed),
        lambda: engine.counters.read((KEY,), passed),
        lambda: engine.counters.find("acme", "g-1", passed),
    ]
    for work in works:
        with pytest.raises(DeadlineExceededError):
            work()
    assert engine.read() is None
    assert engine.find() is None


def test_a_missing_table_is_a_store_that_cannot_be_used(engine: Engine) -> None:
    counters = direct_counters(
        engine.client,
        prefix=f"{engine.prefix}other_",
        pause=never,
        clock=lambda: 0.0,
    )
    works: list[Callable[[], object]] = [
        lambda: counters.apply(KEY, begun(), soon()),
        lambda: counters.record(grant(), begun(), NOW_NS, soon()),
        lambda: counters.settle(grant(), SETTLED, None, soon()),
        lambda: counters.read((KEY,), soon()),
        lambda: counters.find("acme", "g-1", soon()),
    ]
    for work in works:
        with pytest.raises(StoreUnavailableError):
            work()


def together(work: Callable[[int], Any], threads: int = 8) -> list[Any]:
    """Return what came of the same work in many threads that begin at once."""
    barrier = threading.Barrier(threads)

    def begin(number: int) -> Any:
        barrier.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def test_of_eight_beginnings_one_is_done(engine: Engine) -> None:
    for number in range(6):
        key = key_of(number)

        def begin(level: int, key: CounterKey = key) -> Stepped:
            return engine.apply(begun(level), key)

        answers = together(begin)
        done = [stepped.done for stepped in answers]
        assert sum(done) == 1
        expected = Counter(SLOT, {SLOT: done.index(True)})
        assert [stepped.counter for stepped in answers] == [expected] * 8
        assert engine.read(key) == expected


LIMIT = 100


def admitted(engine: Engine) -> int:
    """Return how many units eight takers get of a counter that has room for 97 more."""
    engine.apply(begun(3))

    def take(_number: int) -> int:
        taken = 0
        for turn in count(1):
            units = turn % 3 + 1
            if not engine.apply(raised(units, LIMIT - units)).done:
                return taken
            taken += units
        raise AssertionError

    taken: list[int] = together(take)
    return 3 + sum(taken)


def test_no_more_is_admitted_than_there_is_room_for(engine: Engine) -> None:
    total = admitted(engine)
    assert LIMIT - 3 < total <= LIMIT
    counter = engine.read()
    assert counter is not None
    assert counter.level(SLOT) == total


def test_of_eight_who_record_one_grant_one_debits(engine: Engine) -> None:
    engine.apply(begun(0))
    for number in range(4):
        recorded = [grant(f"g-{number}", cost=cost) for cost in range(8)]

        def record(mine: int, recorded: list[Grant] = recorded) -> GrantStepped:
            return engine.record(recorded[mine], raised(1))

        answers = together(record)
        # Another one's may have been under way for all of the time.
        done = [stepped.done for stepped in answers]
        assert sum(done) == 1
        winner = recorded[done.index(True)]
        assert engine.find(f"g-{number}") == winner
        for stepped in answers:
            if stepped.grant_refused:
                assert stepped.grant == winner
        counter = engine.read()
        assert counter is not None
        assert counter.level(SLOT) == number + 1


def test_of_eight_who_settle_one_gives_back(engine: Engine) -> None:
    engine.apply(begun(0))
    for number in range(4):
        reserved = grant(f"g-{number}", amount=8)
        engine.record(reserved, raised(8, hold=(HOLD, 8)))

        def settle(cost: int, reserved: Grant = reserved) -> GrantStepped:
            settlement = Settlement(cost, cost, 8 - cost, covered=True)
            step = Step(Lower(SLOT, 8 - cost), unhold=(HOLD, 8))
            return engine.settle(reserved, settlement, step)

        before = engine.read()
        assert before is not None
        answers = together(settle)
        done = [stepped.done for stepped in answers]
        assert sum(done) == 1
        counter = engine.read()
        assert counter is not None
        assert counter.holds == {HOLD: 0}
        assert counter.level(SLOT) == before.level(SLOT) - 8 + done.index(True)


@only_local
def test_calls_of_dynamodb_are_few(engine: Engine) -> None:
    keys = [key_of(number) for number in range(100)]
    transaction = {"TransactWriteItems": 1}
    expected: list[tuple[str, Callable[[], object], dict[str, int]]] = [
        ("a beginning", lambda: engine.apply(begun()), {"UpdateItem": 1}),
        ("a step", lambda: engine.apply(raised(lease=LEASED)), {"UpdateItem": 1}),
        ("a refused step", lambda: engine.apply(raised(1, 0)), {"UpdateItem": 1}),
        ("a grant", lambda: engine.record(grant(), raised()), transaction),
        ("a refused grant", lambda: engine.record(grant(cost=9), raised()), transaction),
        ("a settlement", lambda: engine.settle(grant(), SETTLED, None), transaction),
        ("finding it", engine.find, {"BatchGetItem": 1}),
        ("100 reads", lambda: engine.counters.read(keys, soon()), {"BatchGetItem": 1}),
    ]
    for what, work, calls in expected:
        with Traffic(engine.client).watched() as traffic:
            work()
        assert traffic.sent == calls, what
