"""The checker of C7: it never cries wolf, and sees a single unit too many."""

from __future__ import annotations

import random
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.domain.quotas import AlgorithmName, Quota
from tests.support.admissions import Admission, Refund, violations

if TYPE_CHECKING:
    from collections.abc import Sequence

FIXED, SLIDING, BUCKET = AlgorithmName
MS = 1_000_000
WINDOW = 1000 * MS
LIMIT = 5


def quota(algorithm: AlgorithmName) -> Quota:
    return Quota(
        "calls",
        LIMIT,
        timedelta(milliseconds=1000),
        algorithm,
        sub_windows=4,
        lease_time=timedelta(seconds=1),
        reservation_ttl=timedelta(minutes=1),
    )


def rules(
    algorithm: AlgorithmName, admissions: Sequence[Admission], *, exact_labels: bool = False
) -> list[str]:
    found = violations(quota(algorithm), LIMIT, admissions, exact_labels=exact_labels)
    return [each.rule for each in found]


def at(time: int, cost: int = 1, *, took: int = 0, reset_time: int | None = None) -> Admission:
    return Admission(time * MS, (time + took) * MS, cost, reset_time)


@pytest.mark.parametrize("algorithm", AlgorithmName)
def test_the_limit_at_once_is_allowed_and_one_more_is_not(algorithm: AlgorithmName) -> None:
    full = [at(2100)] * LIMIT
    assert rules(algorithm, full) == []
    assert rules(algorithm, [*full, at(2100)])


@pytest.mark.parametrize("algorithm", AlgorithmName)
def test_nothing_is_nothing(algorithm: AlgorithmName) -> None:
    assert rules(algorithm, []) == []


def test_a_fixed_window_may_be_followed_by_another_at_once() -> None:
    assert rules(FIXED, [at(1999, LIMIT), at(2000, LIMIT)]) == []
    assert rules(SLIDING, [at(1999, LIMIT), at(2000, LIMIT)])
    assert rules(BUCKET, [at(1999, LIMIT), at(2000, LIMIT)])


def test_calls_that_touch_two_windows_may_be_of_either() -> None:
    straddling = at(1990, 2, took=20)
    assert rules(FIXED, [at(1500, LIMIT), straddling]) == []
    assert rules(FIXED, [straddling, at(2500, LIMIT)]) == []
    assert rules(FIXED, [at(1500, LIMIT - 1), straddling, at(2500, LIMIT)]) == ["window"]


def test_a_reset_time_rules_out_the_window_after() -> None:
    straddling = at(1990, took=20, reset_time=2000 * MS)
    assert rules(FIXED, [straddling, at(2500, LIMIT)]) == []
    assert rules(FIXED, [at(1500, LIMIT), straddling]) == ["window", "slots"]


def test_an_exact_reset_time_rules_out_the_window_before_too() -> None:
    straddling = at(1990, took=20, reset_time=3000 * MS)
    history = [straddling, at(2500, LIMIT, reset_time=3000 * MS)]
    assert rules(FIXED, history) == []
    assert rules(FIXED, history, exact_labels=True) == ["window", "slots"]


def test_a_reset_time_before_the_call_is_wrong() -> None:
    assert rules(FIXED, [at(2500, reset_time=2000 * MS)]) == ["label"]
    assert rules(SLIDING, [at(2500, reset_time=3500 * MS)]) == ["label"]
    assert rules(SLIDING, [at(2500, reset_time=3750 * MS)]) == []


def test_a_sliding_window_counts_its_sub_windows_together_with_the_one_before() -> None:
    """More than a rolling window sees: 1.249 s lie between the first and the last."""
    history = [at(2000, LIMIT), at(3249)]
    assert rules(SLIDING, history) == ["slots"]
    assert rules(SLIDING, [at(2000, LIMIT), at(3250)]) == []


def test_a_sliding_window_is_looked_at_wherever_it_begins() -> None:
    # Each call touches two sub-windows, so that none is certain, but for the time.
    history = [at(2245, 3, took=10), at(2995, 3, took=10)]
    assert rules(SLIDING, history) == ["rolling window", "slots"]
    late = [at(2245, 3, took=10), at(3245, 3, took=10)]
    assert rules(SLIDING, late) == []


def test_a_bucket_fills_as_time_goes_by() -> None:
    assert rules(BUCKET, [at(2000, LIMIT), at(2200), at(2400), at(3000, 3)]) == []
    assert rules(BUCKET, [at(2000, LIMIT), at(2200), at(2399)]) == ["interval"]
    assert rules(BUCKET, [at(2000, LIMIT), at(2200), at(2399, took=1)]) == []


@pytest.mark.parametrize("algorithm", AlgorithmName)
def test_what_is_given_back_was_used_until_then(algorithm: AlgorithmName) -> None:
    first = Admission(2100 * MS, 2100 * MS, LIMIT, refunds=(Refund(2110 * MS, 2),))
    assert rules(algorithm, [first, at(2110, 2)]) == []
    assert rules(algorithm, [first, at(2105, 2)])
    assert rules(algorithm, [first, at(2110, 3)])


def test_no_more_is_given_back_than_was_used() -> None:
    gone = Admission(2100 * MS, 2100 * MS, 1, refunds=(Refund(2101 * MS, 9),))
    assert gone.used == 0


times = st.integers(min_value=1000, max_value=4000)
histories = st.lists(
    st.builds(
        lambda time, took, cost, late, back: Admission(
            time * MS,
            (time + took) * MS,
            cost,
            refunds=(Refund((time + late) * MS, min(back, cost)),) if back else (),
        ),
        times,
        st.integers(0, 300),
        st.integers(1, 3),
        st.integers(0, 500),
        st.integers(0, 2),
    ),
    max_size=12,
)


def densest_interval(history: Sequence[Admission]) -> int:
    """Return by how much the worst interval is over the limit, in units times window."""
    ends = [each.end for each in history]
    worst = -LIMIT * WINDOW
    for first, last in product([each.start for each in history], ends):
        if first > last:
            continue
        used = sum(
            each.cost - sum(r.units for r in each.refunds if max(each.end, r.time) <= last)
            for each in history
            if first <= each.start and each.end <= last
        )
        worst = max(worst, (used - LIMIT) * WINDOW - LIMIT * (last - first))
    return worst


@given(histories)
def test_every_interval_is_looked_at(history: list[Admission]) -> None:
    assert bool(rules(BUCKET, history)) == (densest_interval(history) > 0)


@given(histories)
def test_every_rolling_window_is_looked_at(history: list[Admission]) -> None:
    over = any(
        sum(e.used for e in history if begin <= e.start and e.end < begin + WINDOW) > LIMIT
        for begin in (each.start for each in history)
    )
    assert ("rolling window" in rules(SLIDING, history)) == over


@given(histories)
def test_every_row_of_windows_is_looked_at(history: list[Admission]) -> None:
    over = any(
        sum(
            each.used
            for each in history
            if first <= each.start // WINDOW and each.end // WINDOW <= last
        )
        > LIMIT * (last - first + 1)
        for first, last in product(range(1, 6), range(1, 6))
        if first <= last
    )
    assert ("window" in rules(FIXED, history)) == over


class Honest:
    """Admits, at exact moments, all that a rule allows and, if so wanted, ``more``."""

    def __init__(self, algorithm: AlgorithmName, more: int) -> None:
        self._algorithm = algorithm
        self._limit = LIMIT + more
        self._admitted: list[int] = []
        self._full = 0

    def admits(self, now: int) -> bool:
        if self._algorithm is BUCKET:
            # In units times nanoseconds: what has flowed in since it was full.
            full = max(self._full, now * LIMIT) + WINDOW
            if full > now * LIMIT + self._limit * WINDOW:
                return False
            self._full = full
            return True
        length, past = (WINDOW, 0) if self._algorithm is FIXED else (WINDOW // 4, 4)
        first = now // length - past
        if sum(each // length >= first for each in self._admitted) >= self._limit:
            return False
        self._admitted.append(now)
        return True

    def reset_time(self, now: int) -> int | None:
        if self._algorithm is BUCKET:
            return None
        length, past = (WINDOW, 0) if self._algorithm is FIXED else (WINDOW // 4, 4)
        return (now // length + past + 1) * length


def history_of(algorithm: AlgorithmName, seed: int, *, more: int = 0) -> list[Admission]:
    """Return what callers see of many calls with long and short latencies."""
    rng = random.Random(seed)
    honest = Honest(algorithm, more)
    admissions = []
    now = 10 * WINDOW
    for _ in range(300):
        now += rng.randrange(60 * MS)
        if honest.admits(now):
            start = now - rng.randrange(rng.choice((MS, WINDOW)))
            end = now + rng.randrange(rng.choice((MS, WINDOW)))
            label = honest.reset_time(now) if rng.random() < 0.5 else None
            admissions.append(Admission(start, end, 1, reset_time=label))
    return sorted(admissions, key=lambda _: rng.random())


@pytest.mark.parametrize("algorithm", AlgorithmName)
def test_the_honest_are_never_accused(algorithm: AlgorithmName) -> None:
    for seed in range(200):
        assert rules(algorithm, history_of(algorithm, seed), exact_labels=True) == []


@pytest.mark.parametrize("algorithm", AlgorithmName)
def test_one_unit_too_many_is_seen_through_short_latencies(algorithm: AlgorithmName) -> None:
    rng = random.Random(1)
    honest = Honest(algorithm, 1)
    history = []
    now = 10 * WINDOW
    for _ in range(1000):
        now += rng.randrange(10 * MS)
        if honest.admits(now):
            history.append(Admission(now - rng.randrange(MS), now + rng.randrange(MS), 1))
    assert rules(algorithm, history)
