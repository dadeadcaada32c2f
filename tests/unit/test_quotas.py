"""Quotas: what is allowed, what is remembered, and what it costs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import pytest
from botocore.exceptions import ClientError

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    ReservationNotFoundError,
    ReservationSettledError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.quotas import AlgorithmName, Mode
from tests.support.quota_stack import MIDNIGHT, SECOND, World, quota
from tests.support.simulated_memcached import Delivery, Fault

ALGORITHMS = tuple(AlgorithmName)


if TYPE_CHECKING:
    from collections.abc import Sequence


def every_algorithm() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda each: each.value)


def lost(label: str) -> Fault | None:
    """Apply every write of a counter, and lose the answer."""
    if not label.startswith(("UpdateItem", "TransactWriteItems")):
        return None
    response = {"Error": {"Code": "InternalServerError", "Message": ""}}
    metadata = {"HTTPStatusCode": 500, "RetryAttempts": 0}
    error = ClientError({**response, "ResponseMetadata": metadata}, "UpdateItem")  # type: ignore[typeddict-item]
    return Fault(error, Delivery.APPLIED)


@every_algorithm()
def test_as_much_is_allowed_as_the_limit_says(algorithm: AlgorithmName) -> None:
    worker = World(quota(10, algorithm=algorithm)).worker("w")
    assert [worker.ask().remaining for _ in range(10)] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    denied = worker.ask()
    assert not denied.allowed
    assert denied.retry_after is not None
    assert denied.retry_after > 0


@every_algorithm()
def test_a_debit_is_one_write_and_a_denial_is_none(algorithm: AlgorithmName) -> None:
    world = World(quota(10, algorithm=algorithm))
    worker = world.worker("w")
    assert worker.admitted(10) == 10
    assert world.spent() == ["UpdateItem"] * 10
    assert worker.admitted(100) == 0
    assert world.spent() == []


@every_algorithm()
def test_another_worker_is_denied_by_one_write_at_most_and_then_remembers(
    algorithm: AlgorithmName,
) -> None:
    world = World(quota(10, algorithm=algorithm))
    one, other = world.worker("one"), world.worker("other")
    assert one.admitted(10) == 10
    world.spent()
    assert other.admitted(50) == 0
    assert len(world.spent()) == 1


@every_algorithm()
def test_it_is_allowed_again_when_retry_after_says_and_not_before(
    algorithm: AlgorithmName,
) -> None:
    world = World(quota(10, algorithm=algorithm))
    worker = world.worker("w")
    world.pass_(7)
    assert worker.admitted(10) == 10
    denied = worker.ask(3)
    assert denied.retry_after is not None
    world.now += denied.retry_after - 1
    assert not worker.ask(3).allowed
    world.now += 1
    assert worker.ask(3).allowed


def test_a_fixed_window_ends_by_the_clock() -> None:
    world = World(quota(10))
    worker = world.worker("w")
    world.pass_(59)
    answer = worker.ask(10)
    assert (answer.allowed, answer.reset_time) == (True, MIDNIGHT + 60 * SECOND)
    world.pass_(1)
    assert worker.admitted(11) == 10


def test_a_new_window_costs_one_write_to_who_knows_the_old_one() -> None:
    world = World(quota(10))
    worker = world.worker("w")
    worker.admitted(4)
    world.pass_(60)
    world.spent()
    assert worker.admitted(2) == 2
    assert world.spent() == ["UpdateItem"] * 2


def test_a_clock_that_is_behind_counts_in_the_newest_window() -> None:
    world = World(quota(10))
    one, late = world.worker("one"), world.worker("late", behind=5.0)
    world.pass_(61)
    assert one.admitted(6) == 6
    assert late.admitted(20) == 4


@every_algorithm()
def test_a_clock_that_is_far_behind_is_told_of(algorithm: AlgorithmName) -> None:
    world = World(quota(10, algorithm=algorithm))
    one, late = world.worker("one"), world.worker("late", behind=70.0)
    assert one.admitted(10) == 10
    assert one.behind == []
    assert late.admitted(1) == 0
    assert late.behind
    assert max(late.behind) >= 9 * SECOND


def test_a_sliding_window_never_holds_more_wherever_it_begins() -> None:
    world = World(quota(10, algorithm=AlgorithmName.SLIDING_WINDOW, window=60, sub_windows=6))
    worker = world.worker("w")
    times = []
    for _ in range(300):
        times += [world.now] * worker.admitted(2)
        world.pass_(1)
    for begin in times:
        assert sum(begin <= each < begin + 60 * SECOND for each in times) <= 10
    assert len(times) >= 300 / 70 * 10 - 10


def test_a_bucket_fills_steadily() -> None:
    world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=60))
    worker = world.worker("w")
    assert worker.admitted(20) == 10
    world.pass_(12)
    assert worker.admitted(20) == 2
    world.pass_(600)
    assert worker.admitted(20) == 10


@every_algorithm()
@pytest.mark.parametrize("lease", [0, 5])
def test_a_cost_above_the_limit_never_fits_and_writes_nothing(
    algorithm: AlgorithmName, lease: int
) -> None:
    world = World(quota(10, algorithm=algorithm, lease=lease))
    worker = world.worker("w")
    worker.ask(4)
    world.spent()
    for mode in Mode:
        world.pass_(0.2)
        answer = worker.ask(11, mode)
        assert (answer.allowed, answer.limit, answer.remaining) == (False, 10, 6)
        assert answer.reset_time is not None
        assert answer.retry_after is None
    assert world.spent() == ["BatchGetItem"] * 3


@every_algorithm()
@pytest.mark.parametrize("lease", [0, 5])
def test_a_cost_as_large_as_the_limit_fits(algorithm: AlgorithmName, lease: int) -> None:
    assert World(quota(10, algorithm=algorithm, lease=lease)).worker("w").ask(10).allowed


def test_a_cost_of_0_stands_for_1() -> None:
    assert World(quota(10)).worker("w").ask(0).remaining == 9


def test_subjects_and_tenants_are_counted_apart() -> None:
    world = World(quota(10))
    worker = world.worker("w")
    assert worker.ask(10, subject="alice").allowed
    assert worker.ask(10, subject="bob").allowed
    assert not worker.ask(1, subject="bob").allowed


@every_algorithm()
def test_peek_debits_nothing_and_tells_what_is_left(algorithm: AlgorithmName) -> None:
    world = World(quota(10, algorithm=algorithm))
    worker = world.worker("w")
    worker.admitted(4)
    world.spent()
    fits, not_fits, never = (worker.ask(cost, Mode.PEEK) for cost in (6, 7, 11))
    assert (fits.allowed, fits.remaining, fits.retry_after) == (True, 6, None)
    assert (not_fits.allowed, not_fits.remaining) == (False, 6)
    assert not_fits.retry_after is not None
    assert (never.allowed, never.retry_after) == (False, None)
    assert set(world.spent()) == {"BatchGetItem"}
    assert worker.outcomes == ["allowed"] * 4


class TestRefunds:
    @every_algorithm()
    def test_what_is_refunded_by_another_worker_is_allowed_at_once(
        self, algorithm: AlgorithmName
    ) -> None:
        world = World(quota(10, algorithm=algorithm))
        one, other = world.worker("one"), world.worker("other")
        held = one.ask(4, Mode.RESERVE)
        assert one.admitted(6) == 6
        assert other.admitted(5) == 0
        world.spent()
        assert other.admitted(5) == 0
        assert set(world.spent()) == {"BatchGetItem"}
        settled = other.settling.settle("acme", held.reservation, Deadline.after(5), cost=1)
        assert (settled.committed, settled.refunded, settled.covered) == (1, 3, True)
        assert one.admitted(5) + other.admitted(5) == 3

    @every_algorithm()
    def test_what_exceeds_all_that_may_come_back_is_denied_with_no_call(
        self, algorithm: AlgorithmName
    ) -> None:
        world = World(quota(10, algorithm=algorithm))
        worker = world.worker("w")
        worker.ask(4, Mode.RESERVE)
        assert worker.admitted(6) == 6
        assert not worker.ask(1).allowed
        world.spent()
        assert not worker.ask(5).allowed
        assert world.spent() == []

    def test_a_released_reservation_of_a_window_that_is_over_changes_nothing(self) -> None:
        world = World(quota(10))
        worker = world.worker("w")
        held = worker.ask(10, Mode.RESERVE)
        world.pass_(60)
        assert worker.ask(10).allowed
        settled = worker.settling.settle("acme", held.reservation, Deadline.after(5), release=True)
        assert settled.refunded == 10
        assert not worker.ask(1).allowed

    @every_algorithm()
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_reservations_give_back_all_in_whatever_order(
        self, algorithm: AlgorithmName, order: Sequence[int]
    ) -> None:
        world = World(quota(10, algorithm=algorithm))
        worker = world.worker("w")
        held = [worker.ask(cost, Mode.RESERVE) for cost in (2, 3, 4)]
        used = (1, 0, 3)
        for count, index in enumerate(order):
            settled = worker.settling.settle(
                "acme", held[index].reservation, Deadline.after(5), cost=used[index]
            )
            assert settled.committed == used[index]
            left = sum(used[i] if i in order[: count + 1] else (2, 3, 4)[i] for i in range(3))
            assert worker.ask(1, Mode.PEEK).remaining == 10 - left
        assert worker.admitted(20) == 6

    def test_what_a_bucket_holds_does_not_fill_again(self) -> None:
        world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=60))
        worker = world.worker("w")
        held = worker.ask(6, Mode.RESERVE)
        assert worker.admitted(10) == 4
        world.pass_(60)
        assert worker.admitted(10) == 4
        worker.settling.settle("acme", held.reservation, Deadline.after(5), cost=2)
        assert worker.admitted(10) == 4
        world.pass_(60)
        assert worker.admitted(20) == 10


class TestReservations:
    @every_algorithm()
    def test_each_settles_once_and_is_answered_again(self, algorithm: AlgorithmName) -> None:
        world = World(quota(10, algorithm=algorithm))
        worker = world.worker("w")
        held = worker.ask(6, Mode.RESERVE)
        settle = worker.settling.settle
        first = settle("acme", held.reservation, Deadline.after(5), cost=2)
        again = settle("acme", held.reservation, Deadline.after(5), cost=2)
        assert (first.replayed, again.replayed) == (False, True)
        assert (again.committed, again.refunded) == (2, 4)
        with pytest.raises(ReservationSettledError) as raised:
            settle("acme", held.reservation, Deadline.after(5), release=True)
        assert raised.value.metadata == {"committed": "2", "refunded": "4"}
        assert worker.admitted(20) == 8

    @every_algorithm()
    def test_what_was_used_besides_is_debited_if_there_is_room(
        self, algorithm: AlgorithmName
    ) -> None:
        world = World(quota(10, algorithm=algorithm))
        worker = world.worker("w")
        one, other = worker.ask(4, Mode.RESERVE), worker.ask(4, Mode.RESERVE)
        settle = worker.settling.settle
        covered = settle("acme", one.reservation, Deadline.after(5), cost=6)
        short = settle("acme", other.reservation, Deadline.after(5), cost=5)
        assert (covered.committed, covered.covered) == (6, True)
        assert (short.committed, short.covered) == (4, False)
        assert settle("acme", other.reservation, Deadline.after(5), cost=5).covered is False
        assert not worker.ask(1).allowed

    @every_algorithm()
    def test_what_expired_counts_as_used(self, algorithm: AlgorithmName) -> None:
        world = World(quota(10, algorithm=algorithm, window=3600, reservation_ttl=60))
        worker = world.worker("w")
        held = worker.ask(10, Mode.RESERVE)
        assert held.expire_time == MIDNIGHT + 60 * SECOND
        world.pass_(59)
        assert worker.admitted(1) == 0
        world.pass_(30)
        with pytest.raises(ReservationNotFoundError):
            worker.settling.settle("acme", held.reservation, Deadline.after(5), cost=1)
        if algorithm is AlgorithmName.TOKEN_BUCKET:
            return  # It fills from then on: see below.
        assert worker.admitted(1) == 0
        assert world.worker("other").ask(1, Mode.PEEK).remaining == 0

    def test_what_expired_of_a_bucket_fills_again_from_then_on(self) -> None:
        world = World(
            quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=60, reservation_ttl=80)
        )
        worker = world.worker("w")
        assert worker.ask(10, Mode.RESERVE).allowed
        denied = worker.ask()
        assert denied.retry_after is not None
        assert denied.retry_after >= 80 * SECOND
        world.pass_(80)
        assert not worker.ask().allowed
        world.pass_(30)
        remaining = worker.ask(1, Mode.PEEK).remaining
        assert remaining == 5
        assert worker.admitted(20) == remaining
        world.spent()
        assert worker.admitted(20) == 0
        assert world.spent() == []

    @every_algorithm()
    def test_what_expired_is_released_if_so_configured(self, algorithm: AlgorithmName) -> None:
        world = World(
            quota(10, algorithm=algorithm, window=3600, reservation_ttl=60, release_expired=True)
        )
        worker, other = world.worker("w"), world.worker("other")
        held = worker.ask(10, Mode.RESERVE)
        assert worker.admitted(1) == 0
        world.pass_(90)
        assert other.ask(10, Mode.PEEK).allowed
        assert other.admitted(4) == 4
        with pytest.raises(ReservationNotFoundError):
            worker.settling.settle("acme", held.reservation, Deadline.after(5), cost=10)
        assert worker.admitted(20) == 6

    def test_it_is_of_its_tenant(self) -> None:
        worker = World().worker("w")
        held = worker.ask(1, Mode.RESERVE)
        with pytest.raises(ReservationNotFoundError):
            worker.settling.settle("other", held.reservation, Deadline.after(5), cost=1)

    def test_what_was_consumed_is_no_reservation(self) -> None:
        world = World()
        worker = world.worker("w")
        worker.ask(1, key="k")
        (id_,) = world.grants
        with pytest.raises(ReservationNotFoundError):
            worker.settling.settle("acme", id_, Deadline.after(5), cost=1)


class TestIdempotency:
    @every_algorithm()
    @pytest.mark.parametrize("mode", [Mode.CONSUME, Mode.RESERVE])
    def test_a_repetition_debits_nothing(self, algorithm: AlgorithmName, mode: Mode) -> None:
        world = World(quota(10, algorithm=algorithm))
        one, other = world.worker("one"), world.worker("other")
        first = one.ask(4, mode, key="k")
        world.pass_(0.001)
        again = [other.ask(4, mode, key="k"), one.ask(4, mode, key="k")]
        assert [each.allowed for each in again] == [True, True]
        assert [each.replayed for each in (first, *again)] == [False, True, True]
        assert {each.reservation for each in again} == {first.reservation}
        assert one.ask(1, Mode.PEEK).remaining == 6

    def test_it_is_allowed_though_the_quota_is_used_up_since(self) -> None:
        world = World(quota(10))
        worker = world.worker("w")
        worker.ask(4, key="k")
        assert worker.admitted(20) == 6
        assert worker.ask(4, key="k").replayed
        assert not worker.ask(4, key="new").allowed

    def test_what_was_denied_is_not_remembered(self) -> None:
        world = World(quota(10))
        worker = world.worker("w")
        worker.ask(10)
        assert not worker.ask(4, key="k").allowed
        world.pass_(60)
        assert worker.ask(4, key="k").allowed

    @pytest.mark.parametrize(("cost", "subject"), [(5, "alice"), (4, "bob")])
    def test_another_request_with_the_key_is_refused(self, cost: int, subject: str) -> None:
        worker = World(quota(10)).worker("w")
        worker.ask(4, key="k")
        with pytest.raises(IdempotencyKeyReusedError):
            worker.ask(cost, key="k", subject=subject)

    @pytest.mark.parametrize("mode", [Mode.CONSUME, Mode.RESERVE])
    def test_it_is_debited_once_though_the_answer_was_lost(self, mode: Mode) -> None:
        world = World(quota(10))
        worker = world.worker("w")
        world.database.fault = lost
        with pytest.raises(StoreTimeoutError):
            worker.ask(4, mode, key="k")
        world.database.fault = lambda _: None
        world.pass_(0.001)
        assert worker.ask(4, mode, key="k").replayed
        assert worker.ask(1, Mode.PEEK).remaining == 6

    def test_it_is_forgotten_after_its_time(self) -> None:
        world = World(quota(10))
        worker = world.worker("w")
        worker.ask(4, key="k")
        world.pass_(25 * 3600)
        assert not worker.ask(4, key="k").replayed


class TestLimits:
    def test_a_limit_set_at_run_time_is_in_force_after_a_refresh(self) -> None:
        world = World(quota(10, overrides={"alice": 12}))
        worker = world.worker("w")
        assert worker.admitted(20) == 12
        world.limits.rows["calls", "acme#alice"] = 15
        worker.limits.refresh()
        assert (worker.admitted(20), worker.ask(1).limit) == (3, 15)
        world.limits.rows["calls", "acme#alice"] = 4
        worker.limits.refresh()
        denied = worker.ask(1)
        assert (denied.allowed, denied.limit, denied.remaining) == (False, 4, 0)
        assert worker.ask(1, subject="bob").limit == 10


class TestOutages:
    @pytest.mark.parametrize("lease", [0, 5])
    def test_it_denies(self, lease: int) -> None:
        world = World(quota(10, lease=lease))
        worker = world.worker("w")
        world.database.reachable = False
        with pytest.raises(StoreUnavailableError):
            worker.ask()
        assert worker.outcomes == ["unavailable"]

    @pytest.mark.parametrize("lease", [0, 5])
    @pytest.mark.parametrize("mode", list(Mode))
    def test_it_allows_if_so_configured(self, lease: int, mode: Mode) -> None:
        world = World(quota(10, lease=lease, allow_on_outage=True))
        worker = world.worker("w")
        world.database.reachable = False
        answer = worker.ask(3, mode)
        assert (answer.allowed, answer.unchecked, answer.limit) == (True, True, 10)
        assert (answer.remaining, answer.reset_time, answer.reservation) == (0, None, "")
        assert worker.outcomes == ["unchecked"]

    def test_who_is_blocked_is_not_allowed_then_either(self) -> None:
        world = World(quota(10, allow_on_outage=True, overrides={"alice": 0}))
        worker = world.worker("w")
        world.database.reachable = False
        assert not worker.ask().allowed
        assert worker.ask(subject="bob").unchecked

    def test_what_is_used_up_is_denied_all_the_same(self) -> None:
        world = World(quota(10, allow_on_outage=True))
        worker = world.worker("w")
        worker.ask(10)
        world.database.reachable = False
        assert not worker.ask().allowed

    def test_a_debit_that_may_have_been_done_admits_nothing(self) -> None:
        world = World(quota(10))
        worker = world.worker("w")
        world.database.fault = lost
        with pytest.raises(StoreUnavailableError):
            worker.ask(4)
        world.database.fault = lambda _: None
        assert worker.ask(1, Mode.PEEK).remaining == 6

    def test_a_reservation_is_answered_though_what_is_left_is_not_known(self) -> None:
        world = World(quota(10))
        worker = world.worker("w")

        def step(label: str) -> None:
            world.database.reachable = not label.startswith("BatchGetItem")

        world.database.step = step
        answer = worker.ask(4, Mode.RESERVE)
        assert (answer.allowed, answer.remaining, answer.reset_time) == (True, 0, None)
        assert answer.reservation


class TestBadInput:
    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            ({"name": "unknown"}, "quota"),
            ({"name": ""}, "quota"),
            ({"subject": ""}, "subject"),
            ({"subject": "a\nb"}, "subject"),
            ({"subject": "x" * 257}, "subject"),
            ({"cost": -1}, "cost"),
            ({"key": "x" * 129}, "idempotency_key"),
            ({"key": "k", "mode": Mode.PEEK}, "idempotency_key"),
        ],
    )
    def test_the_field_is_named(self, changed: dict[str, object], field: str) -> None:
        world = World()
        with pytest.raises(InvalidRequestError) as raised:
            world.worker("w").ask(**changed)  # type: ignore[arg-type]
        assert [violation.field for violation in raised.value.violations] == [field]
        assert world.spent() == []

    @pytest.mark.parametrize(
        ("reservation", "cost", "release", "field"),
        [
            ("", 1, None, "reservation"),
            ("x", None, None, "settlement"),
            ("x", -1, None, "cost"),
            ("x", None, False, "release"),
        ],
    )
    def test_of_a_settlement_too(
        self,
        reservation: str,
        cost: int | None,
        release: Literal[False] | None,
        field: str,
    ) -> None:
        with pytest.raises(InvalidRequestError) as raised:
            World().worker("w").settling.settle(
                "",
                reservation,
                Deadline.after(5),
                cost=cost,
                release=release,
            )
        assert [violation.field for violation in raised.value.violations] == [field]


def test_a_counter_that_was_removed_is_found_out_within_a_minute() -> None:
    world = World(quota(10, window=24 * 3600))
    worker = world.worker("w")
    assert worker.admitted(20) == 10
    world.database.sweep("counter", "count#acme#calls#alice")
    world.pass_(59)
    assert not worker.ask().allowed
    world.pass_(1)
    assert worker.admitted(20) == 10


class TestReservedAgain:
    """A reservation under the idempotency key of an earlier one."""

    @every_algorithm()
    def test_what_was_released_is_decided_anew(self, algorithm: AlgorithmName) -> None:
        world = World(quota(10, algorithm=algorithm))
        worker = world.worker("w")
        first = worker.ask(10, Mode.RESERVE, key="k")
        worker.settle(first.reservation, release=True)
        world.pass_(0.001)
        assert worker.ask(4).allowed
        assert not worker.ask(10, Mode.RESERVE, key="k").allowed
        world.pass_(600)
        again = worker.ask(10, Mode.RESERVE, key="k")
        assert (again.allowed, again.replayed) == (True, False)
        with pytest.raises(ReservationNotFoundError):
            worker.settle(first.reservation, cost=1)
        assert worker.settle(again.reservation, cost=7).committed == 7

    @every_algorithm()
    def test_so_is_what_has_expired(self, algorithm: AlgorithmName) -> None:
        world = World(quota(10, algorithm=algorithm, reservation_ttl=10, release_expired=True))
        worker = world.worker("w")
        first = worker.ask(10, Mode.RESERVE, key="k")
        world.pass_(12)
        assert worker.ask(4).allowed
        assert not worker.ask(10, Mode.RESERVE, key="k").allowed
        assert worker.ask(6).allowed
        with pytest.raises(ReservationNotFoundError):
            worker.settle(first.reservation, cost=10)

    @every_algorithm()
    def test_what_was_committed_is_not_permitted_again(self, algorithm: AlgorithmName) -> None:
        worker = World(quota(10, algorithm=algorithm)).worker("w")
        first = worker.ask(10, Mode.RESERVE, key="k")
        worker.settle(first.reservation, cost=3)
        with pytest.raises(ReservationSettledError):
            worker.ask(10, Mode.RESERVE, key="k")
        assert worker.ask(1, Mode.PEEK).remaining == 7

    def test_its_name_cannot_be_guessed_from_the_key(self) -> None:
        world = World(quota(10))
        names = {world.worker("w").ask(1, Mode.RESERVE, key="k").reservation}
        names.add(World(quota(10)).worker("w").ask(1, Mode.RESERVE).reservation)
        assert {len(name) for name in names} == {48}


def hurried(world: World, seconds: float) -> Deadline:
    return Deadline.after(seconds, clock=world.monotonic)


class TestHurry:
    @pytest.mark.parametrize("lease", [0, 5])
    def test_a_caller_in_a_hurry_is_no_outage(self, lease: int) -> None:
        world = World(quota(10, lease=lease, allow_on_outage=True))
        worker = world.worker("w")

        def late(label: str) -> Fault | None:
            world.pass_(0.2)
            return lost(label)

        world.database.fault = late
        with pytest.raises(DeadlineExceededError):
            worker.ask(deadline=hurried(world, 0.1))
        assert worker.outcomes == []


class TestChangedLimits:
    def test_a_slice_of_a_bucket_gives_back_what_it_was_debited(self) -> None:
        world = World(
            quota(100, algorithm=AlgorithmName.TOKEN_BUCKET, window=100, lease=16, lease_time=5)
        )
        worker = world.worker("w")
        worker.admitted(40)
        held = worker.account().slice
        assert held is not None
        left = held.left
        assert left > 0
        world.limits.rows["calls", "alice"] = 25
        worker.limits.refresh()
        before = worker.ask(1, Mode.PEEK)
        worker.drain()
        after = worker.ask(1, Mode.PEEK)
        assert before.reset_time is not None
        assert after.reset_time is not None
        assert before.reset_time - after.reset_time == left * SECOND

    @every_algorithm()
    def test_a_limit_of_0_blocks(self, algorithm: AlgorithmName) -> None:
        world = World(quota(10, algorithm=algorithm, lease=5, overrides={"alice": 0}))
        worker = world.worker("w")
        for mode in Mode:
            answer = worker.ask(1, mode)
            assert (answer.allowed, answer.limit, answer.remaining) == (False, 0, 0)
            assert answer.retry_after is None
        world.spent()
        assert worker.admitted(10) == 0
        assert not worker.ask(1, Mode.RESERVE).allowed
        assert world.spent() == []
        assert worker.ask(subject="bob").allowed

    def test_a_bucket_that_was_windows_for_a_while_counts_on(self) -> None:
        bucket = quota(10, algorithm=AlgorithmName.TOKEN_BUCKET)
        world = World(bucket)
        held = world.worker("one").ask(4, Mode.RESERVE)
        world.quotas["calls"] = quota(10)
        between = world.worker("two")
        assert between.ask().allowed
        between.settle(held.reservation, release=True)
        world.quotas["calls"] = bucket
        last = world.worker("three")
        world.pass_(600)
        assert last.admitted(20) == 10


class TestWhenToAskAgain:
    @every_algorithm()
    def test_when_reservations_expire_that_are_released_then(
        self, algorithm: AlgorithmName
    ) -> None:
        world = World(
            quota(10, algorithm=algorithm, window=3600, reservation_ttl=8, release_expired=True)
        )
        worker = world.worker("w")
        worker.ask(10, Mode.RESERVE)
        denied = worker.ask(10)
        assert denied.retry_after == 8 * SECOND
        world.pass_(8)
        assert worker.ask(10).allowed

    def test_not_before_a_bucket_has_filled_after_its_reservations_have_expired(self) -> None:
        world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=60, reservation_ttl=8))
        worker = world.worker("w")
        worker.ask(10, Mode.RESERVE)
        denied = worker.ask(5)
        assert denied.retry_after is not None
        world.now += denied.retry_after - 1
        assert not worker.ask(5).allowed
        world.now += 1
        assert worker.ask(5).allowed

    @every_algorithm()
    def test_when_the_leases_of_others_run_out(self, algorithm: AlgorithmName) -> None:
        world = World(quota(1000, algorithm=algorithm, window=3600, lease=200))
        one, other = world.worker("one"), world.worker("other")
        one.admitted(300)
        while other.ask().allowed:
            pass
        denied = other.ask()
        assert denied.retry_after is not None
        assert denied.retry_after <= 2 * SECOND

    def test_a_bucket_is_full_again_after_its_holds(self) -> None:
        world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=60))
        answer = world.worker("w").ask(10, Mode.RESERVE)
        assert answer.reset_time == MIDNIGHT + 60 * SECOND


def test_a_denial_tells_what_is_left(subtests: pytest.Subtests) -> None:
    for algorithm in ALGORITHMS:
        with subtests.test(algorithm=algorithm):
            world = World(quota(10, algorithm=algorithm))
            one, other = world.worker("one"), world.worker("other")
            one.ask(4)
            assert other.ask(3).allowed
            assert one.ask(9).remaining == 3
            assert one.ask(9).remaining == 3


def test_more_than_was_reserved_fits_where_something_has_expired() -> None:
    world = World(quota(10, window=3600, reservation_ttl=60, release_expired=True))
    worker = world.worker("w")
    worker.ask(5, Mode.RESERVE)
    world.pass_(30)
    held = worker.ask(5, Mode.RESERVE)
    world.pass_(40)
    assert worker.settle(held.reservation, cost=8).covered
    assert worker.ask(1, Mode.PEEK).remaining == 2


def test_a_hold_that_was_seen_empty_is_not_forgotten_once_it_may_have_been_filled() -> None:
    world = World(quota(100, algorithm=AlgorithmName.TOKEN_BUCKET, reservation_ttl=60))
    one, other = world.worker("one"), world.worker("other")
    first = one.ask(5, Mode.RESERVE)
    world.pass_(7.6)
    one.settle(one.ask(5, Mode.RESERVE).reservation, release=True)
    assert other.ask().allowed
    one.settle(first.reservation, release=True)
    assert one.ask(5, Mode.RESERVE).allowed
    for seconds in (80, 600, 600):
        world.pass_(seconds)
        assert other.ask().allowed
    assert other.ask(1, Mode.PEEK).remaining == 99


@every_algorithm()
def test_a_settlement_that_comes_too_late_releases_nothing_of_its_own(
    algorithm: AlgorithmName,
) -> None:
    world = World(
        quota(10, algorithm=algorithm, window=3600, reservation_ttl=60, release_expired=True)
    )
    worker = world.worker("w")
    held = worker.ask(6, Mode.RESERVE)
    assert worker.ask(4).allowed
    world.pass_(59.9)

    reads: list[str] = []

    def slow(label: str) -> None:
        # The look at the counter, after the grant was found in time.
        if label.startswith("BatchGetItem"):
            reads.append(label)
            world.pass_(8 if len(reads) == 2 else 0)

    world.database.step = slow
    with pytest.raises(ReservationNotFoundError):
        worker.settle(held.reservation, cost=8)
    assert worker.ask(1, Mode.PEEK).remaining == 6


def test_what_a_bucket_held_counts_from_when_it_expired() -> None:
    world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, reservation_ttl=60))
    worker = world.worker("w")
    worker.ask(6, Mode.RESERVE)
    world.pass_(3600)
    assert worker.ask(1, Mode.PEEK).remaining == 10
    assert worker.admitted(20) == 10


@pytest.mark.parametrize("lease", [0, 5])
def test_a_store_that_has_too_much_to_do_is_no_outage(lease: int) -> None:
    world = World(quota(10, lease=lease, allow_on_outage=True))
    worker = world.worker("w")

    def throttled(label: str) -> Fault | None:
        if not label.startswith("UpdateItem"):
            return None
        response = {"Error": {"Code": "ThrottlingException", "Message": ""}}
        return Fault(ClientError(response, "UpdateItem"), Delivery.LOST)  # type: ignore[arg-type]

    world.database.fault = throttled
    with pytest.raises(StoreOverloadedError):
        worker.ask()
