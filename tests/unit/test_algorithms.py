"""How quotas are counted: never too much, never too little, whatever the order of things."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duostore_server.domain.algorithms import (
    TokenBucket,
    Windows,
    algorithm_of,
    hopeful,
    nanoseconds,
)
from duostore_server.domain.counters import (
    Begin,
    Counter,
    HoldName,
    Lease,
    Lower,
    Raise,
    Step,
)
from duostore_server.domain.quotas import AlgorithmName, Quota
from tests.support.counter_model import applied
from tests.support.counter_play import (
    BUCKET,
    FIXED,
    LEASED_FOR,
    NOON,
    SLIDING,
    WINDOW,
    Play,
    Rule,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.domain.algorithms import Algorithm, Debit
    from duostore_server.domain.counters import Debiting

WORKERS = ("a", "b", "c")
LIMIT = FIXED.limit
SPANS = (0, 0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 30)

# What is done, by whom, with how many units, and how long after what was before.
Act: TypeAlias = "tuple[str, str, int, int]"

ALONE = ("consume", "exhaust", "look", "reserve", "settle", "settle_newest", "expire")
LEASES = ("lease", "admit", "admit", "give_back")
LATE = ("consume_late", "arrive", "settle_late", "give_back_late")


def acts(*kinds: str) -> st.SearchStrategy[list[Act]]:
    units = st.integers(1, LIMIT)
    act = st.tuples(st.sampled_from(kinds), st.sampled_from(WORKERS), units, st.sampled_from(SPANS))
    return st.lists(act, max_size=40)


def perform(play: Play, act: Act) -> None:
    kind, worker, units, span = act
    play.wait(span)
    if kind == "look":
        play.look(worker)
    elif kind == "arrive":
        play.arrive()
    elif kind == "expire":
        play.expire(worker)
    else:
        getattr(play, kind)(worker, units)


def played(rule: Rule, script: Sequence[Act], **options: Any) -> Play:
    play = Play(rule, **options)
    for act in script:
        perform(play, act)
    return play


WINDOWS = pytest.mark.parametrize("rule", [FIXED, SLIDING], ids=lambda rule: rule.name)
ALL = pytest.mark.parametrize("rule", [FIXED, SLIDING, BUCKET], ids=lambda rule: rule.name)


@WINDOWS
@settings(max_examples=200)
@given(script=acts(*ALONE, *LEASES, *LATE), releases=st.booleans())
def test_no_window_is_over_admitted(rule: Rule, script: list[Act], releases: bool) -> None:  # noqa: FBT001 - drawn
    assert not rule.is_broken_by(played(rule, script, releases=releases).uses)


@settings(max_examples=300)
@given(script=acts(*ALONE, *LEASES, *LATE), releases=st.booleans())
def test_no_interval_of_a_bucket_is_over_admitted(script: list[Act], releases: bool) -> None:  # noqa: FBT001 - drawn
    assert not BUCKET.is_broken_by(played(BUCKET, script, releases=releases).uses)


@WINDOWS
@given(
    script=acts(*ALONE, *LEASES, *LATE),
    skew=st.fixed_dictionaries({worker: st.integers(-30, 30) for worker in WORKERS}),
)
def test_no_slot_is_over_admitted_by_whatever_clocks(
    rule: Rule, script: list[Act], skew: dict[str, int]
) -> None:
    play = Play(rule, skew=skew)
    for act in script:
        perform(play, act)
        for last in play.debited:
            first = last - rule.past * rule.length
            together = [level for slot, level in play.debited.items() if first <= slot <= last]
            assert sum(together) <= LIMIT


@given(
    script=acts("consume", "look", "consume_late", "arrive"),
    skew=st.fixed_dictionaries({worker: st.integers(0, 9) for worker in WORKERS}),
)
def test_a_bucket_admits_no_more_than_fills_while_clocks_differ(
    script: list[Act], skew: dict[str, int]
) -> None:
    uses = played(BUCKET, script, skew=skew).uses
    differ = max(skew.values()) - min(skew.values())
    for first in uses:
        for last in uses:
            span = last.end - first.start
            inside = [u.units for u in uses if first.start <= u.start and u.end <= last.end]
            assert span < 0 or (sum(inside) - BUCKET.limit) * BUCKET.token <= span + differ


@WINDOWS
@given(script=acts(*ALONE, *LEASES, *LATE))
def test_a_window_denies_only_what_does_not_fit(rule: Rule, script: list[Act]) -> None:
    play = Play(rule)
    for act in script:
        perform(play, act)
        while play.denied:
            _, units = play.denied.pop()
            slot = play.now - play.now % rule.length
            first = slot - rule.past * rule.length
            used = sum(level for each, level in play.debited.items() if each >= first)
            assert used + units > LIMIT


@given(st.lists(st.tuples(st.integers(1, LIMIT), st.integers(0, 20)), max_size=60))
def test_a_bucket_is_what_fills_evenly_and_never_over(calls: list[tuple[int, int]]) -> None:
    play = Play(BUCKET)
    play.algorithm = TokenBucket(LIMIT, window=3 * LIMIT)
    tokens = Fraction(LIMIT)
    for units, span in calls:
        play.wait(span)
        tokens = min(Fraction(LIMIT), tokens + Fraction(span, 3))
        assert play.algorithm.room(play.counter, play.now) == int(tokens)
        before = len(play.uses)
        play.consume("a", units)
        assert (len(play.uses) > before) == (tokens >= units)
        if tokens >= units:
            tokens -= units


@ALL
@given(script=acts("consume", "exhaust", "look", *LEASES))
def test_what_is_told_is_what_can_be_debited(rule: Rule, script: list[Act]) -> None:
    play = played(rule, script)
    algorithm, counter, now, limit = play.algorithm, play.counter, play.now, rule.limit
    room = algorithm.room(counter, now)
    assert [fits(algorithm, counter, units, now) for units in range(1, limit + 2)] == [
        units <= room for units in range(1, limit + 2)
    ]
    reset_time = algorithm.reset_time(counter, now)
    assert fits(algorithm, counter, limit, reset_time)
    assert room == limit or not fits(algorithm, counter, limit, reset_time - 1)
    assert algorithm.retry_time(counter, limit + 1, now) is None
    for units in range(1, limit + 1):
        retry_time = algorithm.retry_time(counter, units, now)
        assert retry_time is not None
        assert fits(algorithm, counter, units, retry_time)
        assert retry_time == now or not fits(algorithm, counter, units, retry_time - 1)


def fits(algorithm: Algorithm, counter: Counter | None, units: int, now: int) -> bool:
    """Return whether a debit is done: planned, and not refused either."""
    change = algorithm.change(counter, units, now)
    if change is None:
        return False
    assert applied(counter, Step(change)) is not None
    return True


@ALL
@pytest.mark.parametrize("releases", [False, True])
@given(script=acts(*ALONE, *LEASES))
def test_hope_sees_all_that_may_come_back(rule: Rule, releases: bool, script: list[Act]) -> None:  # noqa: FBT001 - a parameter of the test
    """What hope rules out of a counter that was seen is ruled out of it as it has become."""
    play = Play(rule, releases=releases)
    for act in script:
        perform(play, act)
        for worker, seen in play.seen.items():
            if seen is None:
                continue
            best = hopeful(
                seen, play.seen_time[worker], kept=play.kept_by(worker), keep_expired=releases
            )
            for units in range(1, rule.limit + 1):
                if not fits_on(play.algorithm, best, units, play.now):
                    # Its own slice is a worker's own to give back: then it sees the counter.
                    assert not fits(play.algorithm, play.counter, units, play.now)


def test_hope_reckons_with_what_was_not_over_when_the_counter_was_seen() -> None:
    """It may have been given back since then, and by a step that was a little late."""
    second = 10**9
    lease, hold = Lease(2, NOON + second, "n"), HoldName(NOON, NOON + second)
    counter = Counter(NOON, {NOON: LIMIT}, {"a": lease}, {hold: 1})

    def hoped(seen: int, *kept: Lease, keep_expired: bool = False) -> int:
        best = hopeful(counter, seen, kept=kept, keep_expired=keep_expired)
        return LIMIT - best.level(NOON)

    assert hoped(NOON) == 3
    assert hoped(NOON, lease) == 1
    assert hoped(NOON + 2 * second) == 3
    assert hoped(NOON + 4 * second) == 1
    assert hoped(NOON + 60 * second) == 0
    assert hoped(NOON + 60 * second, keep_expired=True) == 1


def fits_on(algorithm: Algorithm, counter: Counter, units: int, now: int) -> bool:
    return algorithm.change(counter, units, now) is not None


@ALL
@given(script=acts("consume", "look"))
def test_two_steps_are_enough_whatever_was_seen(rule: Rule, script: list[Act]) -> None:
    """The second is planned by what refused the first: ``Play`` fails if that is refused, too."""
    play = played(rule, script)
    for worker in WORKERS:
        play.consume(worker, 1)


@WINDOWS
def test_a_debit_that_was_planned_before_others_fits_beside_them(rule: Rule) -> None:
    play = Play(rule)
    play.consume("a", 1)
    play.look("b")
    play.consume("a", 1)
    change = play.algorithm.change(play.seen["b"], LIMIT - 2, play.now)
    assert applied(play.counter, Step(change)) is not None
    assert play.algorithm.change(play.seen["b"], LIMIT - 1, play.now) == Raise(
        NOON, LIMIT - 1, most=1
    )
    assert applied(play.counter, Step(Raise(NOON, LIMIT - 1, most=1))) is None


def test_a_sub_window_begins_beside_debits_of_the_one_before_that_were_not_seen() -> None:
    play = Play(SLIDING)
    play.consume("a", 1)
    play.look("b")
    play.consume("a", 1)
    play.wait(SLIDING.length)
    roomy = play.algorithm.change(play.seen["b"], LIMIT - 2, play.now)
    assert applied(play.counter, Step(roomy)) is not None
    tight = play.algorithm.change(play.seen["b"], LIMIT - 1, play.now)
    assert applied(play.counter, Step(tight)) is None


def test_a_clock_that_is_behind_counts_in_the_newest_slot() -> None:
    play = Play(FIXED, skew={"behind": -FIXED.length})
    play.consume("a", LIMIT - 1)
    play.consume("behind", 1)
    play.consume("behind", 1)
    assert play.debited == {NOON: LIMIT}


def test_what_is_leased_of_a_bucket_is_not_filled_again_before_it_is_used() -> None:
    """A refund moves what was debited later to an earlier time: not before a lease is over."""
    ten = TokenBucket(10, window=10, ahead=3)
    first = ten.change(None, 5, NOON)
    counter = applied(None, Step(first))
    assert first is not None
    assert counter is not None
    debit = ten.done(5, first, counter)
    leased = ten.change(counter, 5, NOON, ahead=3)
    counter = applied(counter, Step(leased))
    assert counter is not None
    counter = applied(counter, Step(ten.refund(counter, debit, 5, NOON)))
    # With the five of the lease, which may be used until then, these are all of the limit.
    assert ten.room(counter, NOON + 3) == 5


def test_what_was_given_back_before_is_not_given_back_as_if_it_had_not_filled() -> None:
    """Each refund moves what was debited later to an earlier time, where it may have filled."""
    twelve = TokenBucket(12, window=12)
    first = twelve.change(None, 5, NOON)
    assert first is not None
    counter = applied(None, Step(first))
    assert counter is not None
    debit = twelve.done(5, first, counter)
    counter = applied(counter, Step(twelve.change(counter, 7, NOON)))
    assert counter is not None
    later = twelve.done(7, Raise(0, 7, 0), counter)
    counter = applied(counter, Step(twelve.refund(counter, debit, 5, NOON)))
    assert counter is not None
    # Of the seven, whose time began at once by now, six have filled again.
    assert twelve.refund(counter, later, 7, NOON + 6) == Lower(
        0, 1, refunded=5, most=counter.level(0)
    )


def test_a_refund_of_a_bucket_that_is_late_gives_back_nothing_that_has_filled() -> None:
    """It would move what was debited meanwhile to before it was admitted."""
    twenty = TokenBucket(20, window=20, ahead=1)
    change = twenty.change(None, 10, NOON, ahead=1)
    counter = applied(None, Step(change))
    assert change is not None
    assert counter is not None
    lower = twenty.refund(counter, twenty.done(10, change, counter), 10, NOON)
    counter = applied(counter, Step(twenty.change(counter, 5, NOON + 8)))
    assert applied(counter, Step(lower)) is None


def test_refunds_of_a_bucket_see_each_other() -> None:
    twelve = TokenBucket(12, window=12)
    change = twelve.change(None, 12, NOON)
    counter = applied(None, Step(change))
    assert change is not None
    assert counter is not None
    debit = twelve.done(12, change, counter)
    lower = twelve.refund(counter, debit, 4, NOON)
    counter = applied(counter, Step(lower))
    assert applied(counter, Step(lower)) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [(FIXED, SLIDING), (SLIDING, FIXED), (BUCKET, FIXED), (FIXED, BUCKET), (SLIDING, BUCKET)],
    ids=lambda rule: rule.name,
)
def test_a_quota_that_is_counted_otherwise_soon_counts_right(before: Rule, after: Rule) -> None:
    play = played(before, [("consume", "a", before.limit, span) for span in (5, 12)])
    other = Play(after)
    other.counter, other.now = play.counter, play.now + 25
    other.consume("a", after.limit)
    other.consume("a", 1)
    assert [use.units for use in other.uses] == [after.limit]


def test_a_window_that_was_shorter_is_followed_by_a_longer_one_that_begins_later() -> None:
    minute = Windows(LIMIT, length=60, past=0)
    hour = Windows(LIMIT, length=3600, past=0)
    now = 36_000 + 130
    counter = applied(None, Step(minute.change(None, LIMIT, now)))
    assert hour.change(counter, 1, now) is None
    assert hour.change(counter, 1, 39_600) == Begin(39_600, 1, 36_120, 10**30)


QUOTAS: dict[AlgorithmName, type[Algorithm]] = {
    AlgorithmName.FIXED_WINDOW: Windows,
    AlgorithmName.SLIDING_WINDOW: Windows,
    AlgorithmName.TOKEN_BUCKET: TokenBucket,
}


@pytest.mark.parametrize("name", AlgorithmName)
@given(limit=st.integers(1, 10**6), micros=st.integers(1, 10**9), parts=st.integers(1, 60))
def test_no_rounding_favours_the_caller(
    name: AlgorithmName, limit: int, micros: int, parts: int
) -> None:
    """All of the limit is there at once, and is whole again no sooner than a window later."""
    window = timedelta(microseconds=micros)
    quota = Quota(
        "q", limit, window, name, parts, lease=0, lease_time=window, reservation_ttl=window
    )
    algorithm = algorithm_of(quota, limit)
    assert isinstance(algorithm, QUOTAS[name])
    assert algorithm.limit == limit
    now = nanoseconds(window) * 10**6
    counter = applied(None, Step(algorithm.change(None, limit, now)))
    assert algorithm.change(counter, 1, now) is None
    assert algorithm.reset_time(counter, now) >= now + nanoseconds(window)


def test_a_refund_of_nothing_is_no_step() -> None:
    for rule in (FIXED, SLIDING, BUCKET):
        play = Play(rule)
        play.reserve("a", 1)
        assert play.counter is not None
        change = play.algorithm.change(None, 1, NOON)
        assert change is not None
        debit = play.algorithm.done(1, change, play.counter)
        assert play.algorithm.refund(play.counter, debit, 0, NOON) is None


def test_what_is_given_back_of_a_window_goes_to_its_slot_while_that_counts() -> None:
    play = Play(SLIDING)
    play.consume("a", 2)
    assert play.counter is not None
    debit = play.algorithm.done(2, Begin(NOON, 2), play.counter)
    later = NOON + 3 * SLIDING.length
    assert play.algorithm.refund(play.counter, debit, 2, later + 3) == Lower(NOON, 2)
    assert play.algorithm.refund(play.counter, debit, 2, later + 4) is None


def random_script(rng: random.Random, kinds: Sequence[str], most: int) -> list[Act]:
    spans = rng.choice((SPANS, (0, 0, 0, 1, 2, 5)))
    return [
        (rng.choice(kinds), rng.choice(WORKERS), rng.randint(1, most), rng.choice(spans))
        for _ in range(30)
    ]


class _RaisesByOneMore(Windows):
    """Admits one unit beyond the limit."""

    def change(self, *args: Any, **options: Any) -> Debiting | None:
        change = super().change(*args, **options)
        return replace(change, most=change.most + 1) if isinstance(change, Raise) else change


class _BeginsWhateverWasUsed(Windows):
    """Begins a slot whatever the one before was raised to since it was seen."""

    def change(self, *args: Any, **options: Any) -> Debiting | None:
        change = super().change(*args, **options)
        return replace(change, most=10**9) if isinstance(change, Begin) else change


class _CountsOneSlotLess(Windows):
    """Counts as many slots as a window has, and not the one more that it may touch."""

    def _first(self, slot: int) -> int:
        return super()._first(slot) + self._length


class _NeverOver(Windows):
    """Admits from a slice when the window is over that it was debited in."""

    def is_over(self, slot: int, now: int) -> bool:  # noqa: ARG002 - the mutant
        return False


class _OneTokenMore(TokenBucket):
    """Admits while a whole bucket and a token more are debited."""

    def change(self, *args: Any, **options: Any) -> Debiting | None:
        change = super().change(*args, **options)
        if isinstance(change, Raise):
            return replace(change, most=change.most + self._token)
        return change


class _LeasesFromNow(TokenBucket):
    """Lets the spans of a lease begin before its tokens are admitted."""

    def change(
        self,
        counter: Counter | None,
        units: int,
        now: int,
        *,
        ahead: int = 0,  # noqa: ARG002 - the mutant
    ) -> Debiting | None:
        return super().change(counter, units, now)


class _RefundsWhatHasFilled(TokenBucket):
    """Gives all of a debit back, filled again or not."""

    def refund(self, counter: Counter, debit: Debit, units: int, now: int) -> Lower | None:  # noqa: ARG002 - the mutant
        return Lower(0, units * self._token, counter.refunded) if units else None


@dataclass(frozen=True)
class Mutant:
    """An algorithm with a fault, and what has to be done to come upon it."""

    rule: Rule
    algorithm: Algorithm
    kinds: tuple[str, ...] = ("consume", "exhaust", "consume_late", "arrive", "look")


def windows_of(rule: Rule, mutant: type[Windows]) -> Algorithm:
    return mutant(rule.limit, length=rule.length, past=rule.past)


def bucket_of(mutant: type[TokenBucket], *, ahead: int = LEASED_FOR) -> Algorithm:
    return mutant(BUCKET.limit, window=WINDOW, ahead=ahead)


SLICES = ("exhaust", "lease", "admit", "admit")
RETURNS = (*SLICES, "lease", "give_back", "look")
MUTANTS = {
    "a fixed window admits one more": Mutant(FIXED, windows_of(FIXED, _RaisesByOneMore)),
    "a sliding window admits one more": Mutant(SLIDING, windows_of(SLIDING, _RaisesByOneMore)),
    "a sub-window begins on an unseen level": Mutant(
        SLIDING, windows_of(SLIDING, _BeginsWhateverWasUsed)
    ),
    "a sliding window counts a slot less": Mutant(SLIDING, windows_of(SLIDING, _CountsOneSlotLess)),
    "a slice outlives its window": Mutant(FIXED, windows_of(FIXED, _NeverOver), SLICES),
    "a bucket admits one more": Mutant(BUCKET, bucket_of(_OneTokenMore)),
    "spans of leases begin at once": Mutant(BUCKET, bucket_of(_LeasesFromNow), SLICES),
    "a refund of what has filled": Mutant(BUCKET, bucket_of(_RefundsWhatHasFilled), RETURNS),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_guard_is_needed(name: str) -> None:
    mutant = MUTANTS[name]
    for seed in range(3000):
        play = Play(mutant.rule)
        play.algorithm = mutant.algorithm
        for act in random_script(random.Random(seed), mutant.kinds, mutant.rule.limit):
            perform(play, act)
        if mutant.rule.is_broken_by(play.uses):
            return
    raise AssertionError("nobody noticed")
