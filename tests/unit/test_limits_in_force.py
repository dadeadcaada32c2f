"""Which of several limits holds for a subject."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from duostore_server.access.limits import LimitsInForce
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.domain.limits import LimitKey, limit_key_violations, most_units
from duostore_server.domain.quotas import AlgorithmName, CounterKey, Quota
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.observed_limits import ObservedLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUTE = timedelta(minutes=1)


class SetLimits:
    """What is set at run time, or a database that is away."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], int] = {}
        self.error: Exception | None = None

    def read(self, deadline: Deadline) -> Mapping[tuple[str, str], int]:
        assert 0 < deadline.remaining() <= 1
        if self.error is not None:
            raise self.error
        return dict(self.held)


def quota(name: str, limit: int, overrides: Mapping[str, int] | None = None) -> Quota:
    return Quota(
        name,
        limit,
        MINUTE,
        lease_time=timedelta(seconds=1),
        reservation_ttl=MINUTE,
        overrides=overrides or {},
    )


CALLS = quota("calls", 1000, {"alice": 11, "acme#alice": 12, "#carol": 13, "acme#d#e": 14})
PLAIN = quota("plain", 50)


@pytest.fixture
def held() -> SetLimits:
    return SetLimits()


@pytest.fixture
def limits(held: SetLimits) -> LimitsInForce:
    return LimitsInForce({each.name: each for each in (CALLS, PLAIN)}, held)


def test_until_something_is_set_the_configuration_holds(limits: LimitsInForce) -> None:
    def of(tenant: str, subject: str) -> int:
        return limits.of(CALLS, CounterKey(tenant, "calls", subject))

    assert of("acme", "alice") == 12
    assert (of("", "alice"), of("other", "alice")) == (11, 11)
    assert (of("", "carol"), of("acme", "carol")) == (13, 1000)
    assert of("acme", "bob") == 1000
    assert limits.of(PLAIN, CounterKey("acme", "plain", "alice")) == 50


def test_a_subject_that_looks_like_one_of_a_tenant_is_none(limits: LimitsInForce) -> None:
    # Callers choose their subjects, but not the tenant that a limit names.
    for tenant in ("", "other"):
        assert limits.of(CALLS, CounterKey(tenant, "calls", "acme#alice")) == 1000
        assert limits.of(CALLS, CounterKey(tenant, "calls", "#carol")) == 1000
    assert limits.of(CALLS, CounterKey("acme", "calls", "d#e")) == 14


def test_what_is_set_goes_first_and_a_tenant_before_every_tenant(
    limits: LimitsInForce, held: SetLimits
) -> None:
    def of(tenant: str) -> int:
        limits.refresh()
        return limits.of(CALLS, CounterKey(tenant, "calls", "alice"))

    held.held["calls", "alice"] = 21
    # Also before the tenant's own of the configuration.
    assert (of("acme"), of("other")) == (21, 21)
    held.held["calls", "alice"] = 20
    assert (of("acme"), of("other")) == (20, 20)
    held.held["calls", "acme#alice"] = 22
    assert (of("acme"), of("other")) == (22, 20)
    del held.held["calls", "alice"]
    assert (of("acme"), of("other")) == (22, 11)
    del held.held["calls", "acme#alice"]
    assert (of("acme"), of("other")) == (12, 11)


def test_limits_are_those_of_their_quota_alone(limits: LimitsInForce, held: SetLimits) -> None:
    held.held.update({("plain", "bob"): 7, ("gone", "alice"): 8})
    limits.refresh()

    assert limits.of(PLAIN, CounterKey("", "plain", "bob")) == 7
    assert limits.of(PLAIN, CounterKey("", "plain", "alice")) == 50
    assert limits.of(CALLS, CounterKey("", "calls", "bob")) == 1000
    assert limits.of(CALLS, CounterKey("", "calls", "alice")) == 11


def test_a_round_is_done_at_once(limits: LimitsInForce, held: SetLimits) -> None:
    assert limits.refresh() is False
    held.held["plain", "bob"] = 7
    assert limits.refresh() is False


def test_what_was_known_stays_in_force_while_the_database_is_away(
    limits: LimitsInForce, held: SetLimits
) -> None:
    held.held["plain", "bob"] = 0
    limits.refresh()
    held.held.clear()
    held.error = StoreUnavailableError(Store.AURORA)
    with pytest.raises(StoreUnavailableError):
        limits.refresh()
    assert limits.of(PLAIN, CounterKey("", "plain", "bob")) == 0
    held.error = None
    limits.refresh()
    assert limits.of(PLAIN, CounterKey("", "plain", "bob")) == 50


NAMES = st.text("a#b", max_size=3)
TENANTS = NAMES.filter(lambda text: "#" not in text)
SUBJECTS = NAMES.filter(bool)
OVERRIDES = st.dictionaries(NAMES, st.integers(0, 9), max_size=6)


@given(OVERRIDES, OVERRIDES, TENANTS, SUBJECTS)
def test_the_order_holds_for_any_limits(
    configured: dict[str, int], found: dict[str, int], tenant: str, subject: str
) -> None:
    counted = quota("q", 10, configured)
    held = SetLimits()
    held.held = {("q", name): limit for name, limit in found.items()}
    limits = LimitsInForce({"q": counted}, held)
    limits.refresh()

    # Which names mean a subject in every tenant, said in another way than the code does.
    names = [f"{tenant}#{subject}", *([] if "#" in subject else [subject])]
    fitting = [table[name] for table in (found, configured) for name in names if name in table]
    assert limits.of(counted, CounterKey(tenant, "q", subject)) == [*fitting, 10][0]


@given(st.none() | TENANTS, SUBJECTS)
def test_whom_a_limit_is_for_is_written_and_read_back(tenant: str | None, subject: str) -> None:
    key = LimitKey(tenant, subject)
    violations = list(limit_key_violations("q", key))

    if tenant is None and "#" in subject:
        assert [each.field for each in violations] == ["subject"]
    else:
        assert violations == []
        assert LimitKey.parse(str(key)) == key


@pytest.mark.parametrize(
    ("quota_name", "key", "fields"),
    [
        ("", LimitKey(None, "a"), ["quota"]),
        ("a#b", LimitKey(None, "a"), ["quota"]),
        ("q", LimitKey(None, ""), ["subject"]),
        ("q", LimitKey("a#b", "c"), ["tenant"]),
        ("q", LimitKey("t" * 65, "s" * 257), ["tenant", "subject"]),
        ("q", LimitKey(None, "a\0"), ["subject"]),
    ],
)
def test_all_that_is_wrong_with_whom_a_limit_is_for_is_told(
    quota_name: str, key: LimitKey, fields: list[str]
) -> None:
    assert [each.field for each in limit_key_violations(quota_name, key)] == fields


@pytest.mark.parametrize(
    ("algorithm", "window", "most"),
    [
        (AlgorithmName.FIXED_WINDOW, timedelta(seconds=1), 10**12),
        (AlgorithmName.SLIDING_WINDOW, timedelta(seconds=1), 10**12),
        (AlgorithmName.TOKEN_BUCKET, timedelta(seconds=1), 10**9),
        (AlgorithmName.TOKEN_BUCKET, timedelta(milliseconds=1500), 1_500_000_000),
        (AlgorithmName.TOKEN_BUCKET, timedelta(seconds=1000), 10**12),
        (AlgorithmName.TOKEN_BUCKET, timedelta(days=31), 10**12),
    ],
)
def test_the_highest_limit_is_what_the_algorithm_can_count(
    algorithm: AlgorithmName, window: timedelta, most: int
) -> None:
    assert most_units(algorithm, window) == most


def test_reading_what_is_set_is_measured(held: SetLimits) -> None:
    registry = CollectorRegistry()
    observed = ObservedLimits(held, Metrics(registry))
    deadline = Deadline.after(1)
    assert observed.read(deadline) == {}
    held.held["q", "a"] = 1
    assert observed.read(deadline) == held.held
    held.error = StoreUnavailableError(Store.AURORA)
    with pytest.raises(StoreUnavailableError):
        observed.read(deadline)

    def count(outcome: str) -> float | None:
        labels = {"store": "aurora", "op": "limits_read", "outcome": outcome}
        return registry.get_sample_value("duostore_store_calls_total", labels)

    assert (count("miss"), count("ok"), count("unavailable")) == (1, 1, 1)
