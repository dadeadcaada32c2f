"""Counters are measured, and left alone together with everything else in DynamoDB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from duostore_server.domain.counters import (
    Begin,
    Counter,
    Grant,
    GrantStepped,
    Settlement,
    Step,
    Stepped,
)
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.quotas import CounterKey
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.dynamodb.guarded import Guard
from duostore_server.storage.dynamodb.guarded_counters import GuardedCounters
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.observed_counters import ObservedCounters

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from duostore_server.domain.ports import Counters

KEY = CounterKey("", "api_calls", "user-1")
COUNTER = Counter(1, {1: 5})
STEP = Step(Begin(1, 5))
SETTLEMENT = Settlement(1, 1, 0, covered=True)
GRANT = Grant(KEY, "g-1", "nonce", b"", 1, 1, 1, 7)
SOON = Deadline.after(3600)


class Holding:
    """Holds one counter and one grant, or nothing; does steps, or does not; or fails."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.full = True
        self.calls: list[tuple[object, ...]] = []

    def _reached(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def read(self, keys: Collection[CounterKey], deadline: Deadline) -> dict[CounterKey, Counter]:
        self._reached("read", keys, deadline)
        return dict.fromkeys(keys, COUNTER) if self.full else {}

    def apply(self, key: CounterKey, step: Step, deadline: Deadline) -> Stepped:
        self._reached("apply", key, step, deadline)
        return Stepped(self.full, COUNTER)

    def record(
        self, grant: Grant, step: Step, now: int, deadline: Deadline, instead: Grant | None = None
    ) -> GrantStepped:
        self._reached("record", grant, step, now, deadline, instead)
        return GrantStepped(self.full, COUNTER)

    def find(self, tenant: str, id_: str, deadline: Deadline) -> Grant | None:
        self._reached("find", tenant, id_, deadline)
        return GRANT if self.full else None

    def settle(
        self, grant: Grant, settlement: Settlement, step: Step | None, deadline: Deadline
    ) -> GrantStepped:
        self._reached("settle", grant, settlement, step, deadline)
        return GrantStepped(self.full, None, grant)


CALLS: list[Callable[[Counters], object]] = [
    lambda counters: counters.read((KEY,), SOON),
    lambda counters: counters.apply(KEY, STEP, SOON),
    lambda counters: counters.record(GRANT, STEP, 3, SOON),
    lambda counters: counters.record(GRANT, STEP, 3, SOON, GRANT),
    lambda counters: counters.find("t", "g-1", SOON),
    lambda counters: counters.settle(GRANT, SETTLEMENT, STEP, SOON),
]
PASSED_ON = [
    ("read", (KEY,), SOON),
    ("apply", KEY, STEP, SOON),
    ("record", GRANT, STEP, 3, SOON, None),
    ("record", GRANT, STEP, 3, SOON, GRANT),
    ("find", "t", "g-1", SOON),
    ("settle", GRANT, SETTLEMENT, STEP, SOON),
]
ANSWERS = [
    {KEY: COUNTER},
    Stepped(done=True, counter=COUNTER),
    GrantStepped(done=True, counter=COUNTER),
    GrantStepped(done=True, counter=COUNTER),
    GRANT,
    GrantStepped(done=True, grant=GRANT),
]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def guarded(delegate: Counters) -> GuardedCounters:
    return GuardedCounters(delegate, Guard(Backoff(lambda: 1.0, lambda: 0.0, tolerance=3)))


def counted(registry: CollectorRegistry, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


@pytest.mark.parametrize("kind", ["guarded", "observed"])
def test_what_works_passes_through(kind: str, registry: CollectorRegistry) -> None:
    delegate = Holding()
    wrapped: Counters = (
        guarded(delegate) if kind == "guarded" else ObservedCounters(delegate, Metrics(registry))
    )
    assert [call(wrapped) for call in CALLS] == ANSWERS
    assert delegate.calls == PASSED_ON


@pytest.mark.parametrize(
    "error",
    [
        StoreTimeoutError(Store.DYNAMODB),
        StoreUnavailableError(Store.DYNAMODB),
        WriteOutcomeUnknownError(Store.DYNAMODB),
    ],
)
@pytest.mark.parametrize("which", range(5))
def test_what_one_call_finds_out_holds_for_all(which: int, error: Exception) -> None:
    delegate = Holding()
    counters = guarded(delegate)
    delegate.error = error
    for _ in range(3):
        with pytest.raises(type(error)):
            CALLS[which](counters)
    for call in CALLS:
        with pytest.raises(StoreUnavailableError):
            call(counters)
    assert len(delegate.calls) == 3


def test_a_hot_counter_is_no_outage() -> None:
    delegate = Holding()
    counters = guarded(delegate)
    delegate.error = StoreOverloadedError(Store.DYNAMODB)
    for _ in range(9):
        with pytest.raises(StoreOverloadedError):
            counters.apply(KEY, STEP, SOON)
    delegate.error = None
    assert counters.apply(KEY, STEP, SOON).done


def test_every_call_is_measured(registry: CollectorRegistry) -> None:
    delegate = Holding()
    counters = ObservedCounters(delegate, Metrics(registry))
    once = ("read_counters", "step_counter", "record_grant", "find_grant", "settle_grant")
    ops = {**dict.fromkeys(once, 1), "record_grant": 2}
    for call in CALLS:
        call(counters)
    delegate.full = False
    for call in CALLS:
        call(counters)
    delegate.error = StoreTimeoutError(Store.DYNAMODB)
    for call in CALLS:
        with pytest.raises(StoreTimeoutError):
            call(counters)
    negative = ("miss", "conflict", "conflict", "miss", "conflict")
    assert counted(registry, "duostore_store_calls_total", "op", "outcome") == {
        **{(op, "ok"): times for op, times in ops.items()},
        **{(op, outcome): ops[op] for op, outcome in zip(ops, negative, strict=True)},
        **{(op, "timeout"): times for op, times in ops.items()},
    }


def test_decisions_and_leased_units_are_counted_by_quota(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    for outcome in ("allowed", "allowed", "denied", "unchecked"):
        metrics.quota_decided("api_calls", outcome)
    metrics.leased("api_calls", "granted", 50)
    metrics.leased("api_calls", "admitted", 30)
    metrics.leased("api_calls", "admitted", 12)
    decisions = counted(registry, "duostore_quota_decisions_total", "quota", "outcome")
    assert decisions == {
        ("api_calls", "allowed"): 2,
        ("api_calls", "denied"): 1,
        ("api_calls", "unchecked"): 1,
    }
    units = counted(registry, "duostore_quota_leased_units_total", "quota", "fate")
    assert units == {("api_calls", "granted"): 50, ("api_calls", "admitted"): 42}
