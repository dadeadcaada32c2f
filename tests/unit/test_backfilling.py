"""What those see of a backfill who run the service."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from duostore_server.access.backfilling import Backfilling
from duostore_server.domain.backfills import BackfillState
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    BackfillNotFoundError,
    DeadlineExceededError,
    InvalidRequestError,
    Store,
    StoreUnavailableError,
)
from duostore_server.domain.policies import Home, KindPolicy, Policies, ProjectionMode
from tests.support.fake_backfills import NOON, FakeBackfills
from tests.support.reader_stack import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from duostore_server.access.backfilling import Progress


def kind(home: Home = Home.AURORA) -> KindPolicy:
    return KindPolicy(60, 10, ProjectionMode.INLINE, 1000, home=home)


class Watch:
    """A use case over backfills in memory; ``during`` happens in each of its pauses."""

    def __init__(self, total: int = 1000) -> None:
        self.clock = Clock()
        self.backfills = FakeBackfills(self.clock, total=total)
        self.paused: list[float] = []
        self.during: Callable[[], object] = lambda: None
        self.gone = False
        self.backfilling = Backfilling(
            self.backfills,
            Policies({"note": kind(), "state": kind(Home.DYNAMODB)}),
            pause=self._pause,
            clock=self.clock,
        )

    def _pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.clock.now += seconds
        self.during()

    def soon(self, seconds: float = 3600.0) -> Deadline:
        return Deadline.after(seconds, clock=self.clock, cancelled=lambda: self.gone)

    def run(
        self, rate: int = 0, parallel: int = 0, seconds: float = 3600.0
    ) -> Generator[Progress, None, None]:
        return self.backfilling.run(
            "note", rate=rate, parallel=parallel, caller="ops", deadline=self.soon(seconds)
        )

    def does(self, per_second: int) -> Callable[[], None]:
        """Return what the background processes do in a pause."""

        def work() -> None:
            found = self.backfills.backfills["note"]
            done = found.done + int(per_second * self.paused[-1])
            ended = done >= found.estimated_total
            state = BackfillState.DONE if ended else found.state
            self.backfills.change("note", done=done, state=state)

        return work


def test_a_run_tells_of_each_step_twice_a_second_and_ends_with_the_backfill() -> None:
    watch = Watch(total=1000)
    watch.during = watch.does(per_second=500)
    looks = list(watch.run())
    assert [backfill.done for backfill, _ in looks] == [0, 250, 500, 750, 1000]
    assert [backfill.state for backfill, _ in looks][-2:] == [
        BackfillState.RUNNING,
        BackfillState.DONE,
    ]
    assert watch.paused == [0.5] * 4


def test_the_remaining_time_is_that_at_the_pace_of_late() -> None:
    watch = Watch(total=1_000_000)
    run = watch.run()
    watch.during = watch.does(per_second=10)
    slow = [next(run) for _ in range(200)][-1]
    assert slow[1] == pytest.approx(timedelta(seconds=(1_000_000 - slow[0].done) / 10), rel=0.01)
    watch.during = watch.does(per_second=1000)
    fast = [next(run) for _ in range(200)][-1]
    assert fast[1] == pytest.approx(timedelta(seconds=(1_000_000 - fast[0].done) / 1000), rel=0.01)


def test_the_pace_of_late_is_that_of_ten_seconds() -> None:
    watch = Watch(total=1_000_000)
    run = watch.run()
    watch.during = watch.does(per_second=1000)
    for _ in range(100):
        next(run)
    watch.during = watch.does(per_second=10)
    told = [next(run) for _ in range(21)][-1]
    assert told[1] == pytest.approx(timedelta(seconds=(1_000_000 - told[0].done) / 10), rel=0.01)


def test_the_time_until_the_first_batch_says_nothing_of_the_pace() -> None:
    watch = Watch(total=10_000)
    run = watch.run()
    for _ in range(7):
        next(run)
    watch.during = watch.does(per_second=100)
    told = [next(run) for _ in range(6)][-1]
    assert told[1] == pytest.approx(timedelta(seconds=(10_000 - told[0].done) / 100), rel=0.01)


def test_with_another_rate_the_pace_is_told_anew() -> None:
    watch = Watch(total=100_000)
    run = watch.run(rate=10)
    watch.during = watch.does(per_second=10)
    for _ in range(40):
        next(run)
    watch.backfills.change("note", rate=1000)
    watch.during = watch.does(per_second=1000)
    told = [next(run) for _ in range(6)][-1]
    assert told[1] == pytest.approx(timedelta(seconds=(100_000 - told[0].done) / 1000), rel=0.01)


def test_nobody_is_told_of_a_pace_above_the_rate() -> None:
    watch = Watch(total=100_000)
    run = watch.run(rate=100)
    # A batch that came just before the look.
    watch.during = watch.does(per_second=130)
    told = [next(run) for _ in range(10)][-1]
    assert told[1] == pytest.approx(timedelta(seconds=(100_000 - told[0].done) / 100), rel=0.01)


def test_before_anything_is_done_nothing_is_said_of_the_remaining_time() -> None:
    watch = Watch()
    run = watch.run()
    assert next(run)[1] is None
    watch.during = lambda: None
    assert [next(run)[1] for _ in range(10)] == [None] * 10


def test_of_one_that_is_only_shown_the_pace_is_that_since_it_began() -> None:
    watch = Watch(total=1000)
    watch.backfilling.start("note", rate=0, parallel=0, caller="", deadline=watch.soon())
    began = watch.backfills.backfills["note"].start_time
    watch.backfills.change("note", done=100, update_time=began + timedelta(seconds=10))
    _, remaining = watch.backfilling.show("note", watch.soon())
    assert remaining == timedelta(seconds=90)
    assert watch.backfilling.unfinished(watch.soon())[0][1] == remaining
    watch.backfills.change("note", rate=5)
    assert watch.backfilling.show("note", watch.soon())[1] == timedelta(seconds=180)


def test_of_one_that_is_paused_nothing_is_said_of_the_remaining_time() -> None:
    watch = Watch()
    watch.backfilling.start("note", rate=0, parallel=0, caller="", deadline=watch.soon())
    began = watch.backfills.backfills["note"].start_time
    watch.backfills.change("note", done=100, update_time=began + timedelta(seconds=10))
    assert watch.backfilling.pause("note", caller="ops", deadline=watch.soon())[1] is None


@pytest.mark.parametrize("how", ["pause", "cancel"])
def test_a_run_ends_when_another_stops_the_backfill(how: str) -> None:
    watch = Watch()
    run = watch.run()
    next(run)
    stop = getattr(watch.backfilling, how)
    watch.during = lambda: stop("note", caller="other", deadline=watch.soon())
    states = [backfill.state for backfill, _ in run]
    assert states == [BackfillState.PAUSED if how == "pause" else BackfillState.CANCELLED]


def test_a_run_joins_the_backfill_that_is_under_way() -> None:
    watch = Watch()
    first, _ = next(watch.run())
    joined, _ = next(watch.run(rate=7))
    assert (joined.id, joined.rate) == (first.id, 7)


def test_a_run_ends_when_its_caller_has_gone_and_the_backfill_goes_on() -> None:
    watch = Watch()
    run = watch.run()
    next(run)
    watch.gone = True
    with pytest.raises(DeadlineExceededError):
        next(run)
    assert watch.backfills.backfills["note"].state is BackfillState.RUNNING


def test_a_run_ends_with_its_deadline() -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceededError):
        list(watch.run(seconds=3.0))
    assert sum(watch.paused) <= 3.5


def test_a_failover_of_aurora_does_not_end_a_run_but_an_outage_does() -> None:
    watch = Watch()
    down = False

    def step(_: str) -> None:
        if down:
            raise StoreUnavailableError(Store.AURORA)

    watch.backfills.step = step
    run = watch.run()
    next(run)
    down = True

    def recover() -> None:
        nonlocal down
        down = watch.clock.now < 30

    watch.during = recover
    assert next(run)[0].state is BackfillState.RUNNING
    assert watch.clock.now >= 30
    down, watch.during = True, lambda: None
    with pytest.raises(StoreUnavailableError):
        next(run)
    assert 90 <= watch.clock.now <= 92


@pytest.mark.parametrize(
    ("of", "rate", "parallel", "fields"),
    [
        ("other", 0, 0, {"kind"}),
        ("state", 0, 0, {"kind"}),
        ("note", -1, 65, {"rate", "parallel"}),
        ("note", 1_000_001, -1, {"rate", "parallel"}),
    ],
)
def test_what_cannot_be_backfilled_is_refused(
    of: str, rate: int, parallel: int, fields: set[str]
) -> None:
    watch = Watch()
    with pytest.raises(InvalidRequestError) as caught:
        watch.backfilling.start(of, rate=rate, parallel=parallel, caller="", deadline=watch.soon())
    assert {violation.field for violation in caught.value.violations} == fields
    assert not watch.backfills.backfills


def test_what_is_not_there_is_not_found_and_of_no_kind_is_refused() -> None:
    watch = Watch()
    calls: list[Callable[[str], object]] = [
        lambda kind: watch.backfilling.show(kind, watch.soon()),
        lambda kind: watch.backfilling.pause(kind, caller="", deadline=watch.soon()),
        lambda kind: watch.backfilling.cancel(kind, caller="", deadline=watch.soon()),
    ]
    for call in calls:
        with pytest.raises(BackfillNotFoundError, match=r"^there is no backfill of 'note'$"):
            call("note")
        with pytest.raises(InvalidRequestError):
            call("other")


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        (
            BackfillState.DONE,
            "was done at 2026-11-23 12:01:00 UTC, with 1000 entities",
        ),
        (
            BackfillState.CANCELLED,
            "was cancelled after 1000 of about 5000 entities",
        ),
    ],
)
def test_of_one_that_has_ended_it_is_said_when_and_with_what(
    state: BackfillState, ended: str
) -> None:
    watch = Watch(total=5000)
    watch.backfilling.start("note", rate=0, parallel=0, caller="", deadline=watch.soon())
    end = NOON + timedelta(minutes=1)
    watch.backfills.change("note", done=1000, failed=3, state=state, update_time=end)
    for stop in (watch.backfilling.pause, watch.backfilling.cancel):
        with pytest.raises(BackfillNotFoundError) as caught:
            stop("note", caller="", deadline=watch.soon())
        assert str(caught.value) == (
            f"no backfill of 'note' is under way: the last one {ended}, "
            "of which 3 could not be projected"
        )
        assert caught.value.metadata == {"kind": "note"}
