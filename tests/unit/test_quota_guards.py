"""Quotas: small guards, each of which a lost race or a stale look needs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import EndpointConnectionError

from duostore_server.domain.algorithms import TokenBucket
from duostore_server.domain.counters import Counter, Raise
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    IdempotencyKeyReusedError,
    ReservationNotFoundError,
    ReservationSettledError,
    StoreError,
    StoreUnavailableError,
)
from duostore_server.domain.quotas import AlgorithmName, Mode
from tests.support.counter_play import NOON
from tests.support.quota_stack import SECOND, Worker, World, gated, quota
from tests.support.simulated_memcached import Delivery, Fault
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.access.accounts import Slice

# More calls than any of these tests needs to be given a slice, or to use one up.
MANY = 300


class Unhurried(Deadline):
    """A deadline that is never over."""

    def is_over(self) -> bool:
        return False


class Over(Deadline):
    """A deadline that is over, though the store is still asked."""

    def is_over(self) -> bool:
        return True


def next_slice(worker: Worker, *, least: int = 1) -> Slice:
    """Ask until the worker holds a slice with so many units left."""
    for _ in range(MANY):
        held = worker.account().slice
        if held is not None and held.left >= least:
            return held
        worker.ask()
    raise AssertionError("no slice")


def warm_slice(worker: Worker) -> Slice:
    """Ask quickly, and return a slice of which some units are left."""
    worker.admitted(60)
    return next_slice(worker, least=5)


def use_up(worker: Worker) -> None:
    """Ask until the worker holds no slice."""
    for _ in range(MANY):
        if worker.account().slice is None:
            return
        worker.ask()
    raise AssertionError("not used up")


def use_up_the_quota(worker: Worker) -> None:
    """Debit all that is left of the counter in the store."""
    assert worker.ask(worker.ask(1, Mode.PEEK).remaining).allowed


def before_first(operation: str, act: Callable[[], object]) -> Callable[[str], None]:
    """Return a step that acts just before the first operation whose label begins so."""
    done = False

    def step(label: str) -> None:
        nonlocal done
        if label.startswith(operation) and not done:
            done = True
            act()

    return step


def ask_for_more_than_is_left(worker: Worker) -> None:
    held = worker.account().slice
    assert held is not None
    worker.ask(held.left + 1)


class TestSlices:
    @pytest.mark.parametrize("give_back", [ask_for_more_than_is_left, Worker.drain])
    def test_nothing_is_admitted_from_a_slice_on_its_way_back(
        self, give_back: Callable[[Worker], None]
    ) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker = world.worker("w")
        warm_slice(worker)
        gate, asked = gated(world)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(give_back, worker)
            assert asked.wait(10)
            with pytest.raises(DeadlineExceededError):
                worker.ask(deadline=Deadline.after(0.1))
            gate.set()
            first.result()

    def test_a_drain_does_not_wait_for_a_slice_that_is_being_filled(self) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker = world.worker("w")
        held = warm_slice(worker)
        gate, asked = gated(world)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(worker.ask, held.left + 1)
            assert asked.wait(10)
            pool.submit(worker.drain).result(timeout=2)
            gate.set()
            assert first.result().allowed

    def test_the_time_of_a_slice_begins_before_it_is_asked_for(self) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker = world.worker("w")
        worker.admitted(40)
        use_up(worker)
        world.database.step = lambda _: world.pass_(0.9)
        worker.ask()
        assert worker.account().slice is not None
        world.pass_(0.2)
        calls: list[str] = []
        world.database.step = calls.append
        worker.ask()
        assert calls

    def test_a_drain_past_its_deadline_ends_quietly(self) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker = world.worker("w")
        warm_slice(worker)
        worker.leasing.return_all(worker.accounts.holding(), Deadline.after(-1))
        assert worker.account().slice is not None

    def test_what_may_have_been_given_back_is_not_ruled_out(self) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker, other = world.worker("w"), world.worker("other")
        held = warm_slice(worker)
        use_up_the_quota(other)
        worker.ask(1, Mode.PEEK)
        held.shut()
        assert worker.ask().allowed

    def test_an_account_with_a_slice_is_not_forgotten(self) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker = world.worker("w")
        warm_slice(worker)
        for number in range(250):
            worker.ask(subject=f"s{number}")
        assert worker.account().slice is not None

    def test_what_is_left_counts_for_what_others_may_give_back(self) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker, other = world.worker("w"), world.worker("other")
        held = warm_slice(worker)
        warm_slice(other)
        theirs = next_slice(other, least=50)
        use_up_the_quota(world.worker("third"))
        worker.ask(1, Mode.PEEK)
        returned = min(theirs.lease.amount, theirs.left)
        other.drain()
        assert worker.ask(held.left + returned).allowed

    def test_a_slice_of_a_bucket_is_dated_ahead(self) -> None:
        world = World(quota(100_000, algorithm=AlgorithmName.TOKEN_BUCKET, window=1000, lease=50))
        worker = world.worker("w")
        assert worker.ask().allowed
        held = next_slice(worker)
        assert held.debit.end - held.debit.amount >= world.now + SECOND

    def test_of_a_lease_that_is_found_by_its_nonce_no_span_is_given_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = World(quota(100, algorithm=AlgorithmName.TOKEN_BUCKET, window=100, lease=20))
        worker = world.worker("w")
        worker.admitted(30)
        use_up(worker)
        update_item = world.database.update_item

        def sent_twice(**request: Any) -> dict[str, Any]:
            update_item(**request)
            return update_item(**request)

        with monkeypatch.context() as patch:
            patch.setattr(world.database, "update_item", sent_twice)
            next_slice(worker)
        before = worker.ask(1, Mode.PEEK).remaining
        worker.drain()
        assert worker.ask(1, Mode.PEEK).remaining == before


class TestFailuresOfTheOneWhoAsks:
    """What those are told who wait for a caller whose own call fails."""

    def test_that_of_a_caller_past_its_deadline_is_its_own(self) -> None:
        world = World(quota(1000, lease=50))
        with ThreadPoolExecutor(2) as pool:
            second = self.one_waits_for_a_failing_one(world, pool, Over.after(5))
            assert second().allowed

    def test_that_of_the_store_is_theirs_too(self) -> None:
        world = World(quota(1000, lease=50))
        with ThreadPoolExecutor(2) as pool:
            second = self.one_waits_for_a_failing_one(world, pool, Unhurried.after(5))
            with pytest.raises(StoreUnavailableError):
                second()

    def one_waits_for_a_failing_one(
        self, world: World, pool: ThreadPoolExecutor, deadline: Deadline
    ) -> Callable[[], Any]:
        """Fail the first call of the store alone; return the answer to who waited for it."""
        worker = world.worker("w")
        worker.admitted(3)
        gate, asked = threading.Event(), threading.Event()
        calls: list[str] = []

        def step(label: str) -> None:
            calls.append(label)
            asked.set()
            assert gate.wait(10)

        def fault(_label: str) -> Fault | None:
            if len(calls) > 1:
                return None
            return Fault(EndpointConnectionError(endpoint_url="simulated:"), Delivery.LOST)

        world.database.step = step
        world.database.fault = fault
        first = pool.submit(worker.ask, deadline=deadline)
        assert asked.wait(10)
        second = pool.submit(worker.ask)
        eventually(lambda: worker.account().waiting == 1, within=10, what="the second waits")
        gate.set()
        with pytest.raises((StoreError, DeadlineExceededError)):
            first.result()
        return second.result


class TestWhatWasSeen:
    """Debits and denials by a counter that others have changed since it was seen."""

    def test_what_others_may_give_back_is_as_of_when_it_was_seen(self) -> None:
        world = World(quota(100, window=3600, lease=20))
        one, other = world.worker("one"), world.worker("other")
        warm_slice(one)
        use_up_the_quota(other)
        assert not other.ask().allowed
        one.drain()
        world.pass_(5)
        assert other.ask().allowed

    def test_a_debit_meets_what_was_reserved_meanwhile(self) -> None:
        world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=3600))
        one, other = world.worker("one"), world.worker("other")
        one.ask(1, Mode.PEEK)
        one.ask()
        other.ask(9, Mode.RESERVE)
        assert not one.ask().allowed

    def test_a_debit_under_a_key_meets_what_was_debited_meanwhile(self) -> None:
        world = World(quota(10))
        one, other = world.worker("one"), world.worker("other")
        one.ask()
        other.ask(7)
        assert not one.ask(5, key="k").allowed

    def test_a_debit_under_a_key_is_planned_anew_if_others_were_quicker(self) -> None:
        world = World(quota(10))
        one, other = world.worker("one"), world.worker("other")
        one.ask(1, Mode.PEEK)
        one.ask()
        other.ask(7)
        assert one.ask(2, key="k").allowed

    def test_who_has_just_looked_leaves_the_leases_of_an_earlier_sub_window(self) -> None:
        algorithm = AlgorithmName.SLIDING_WINDOW
        world = World(quota(1000, algorithm=algorithm, window=60, sub_windows=60, lease=50))
        one, other = world.worker("one"), world.worker("other")
        other.ask(1, Mode.PEEK)
        other.ask()
        world.pass_(0.9)
        warm_slice(one)
        world.pass_(60)
        warm_slice(one)
        world.pass_(0.2)
        other.ask(1, Mode.PEEK)
        other.account().seen = None
        assert other.ask().allowed
        counter = world.database.item("counter", "count#acme#calls#alice")
        assert counter is not None
        assert "lease_one" in counter

    def test_a_lease_of_ones_own_that_ran_out_is_replaced(self) -> None:
        world = World(quota(1000, window=3600, lease=50))
        worker = world.worker("w")
        warm_slice(worker)
        world.pass_(3)
        account = worker.account()
        account.slice = None
        account.seen = None
        account.quick = 9
        account.wanted = 20
        account.filled = world.monotonic()
        assert worker.ask().allowed
        assert worker.account().slice is not None

    def test_a_denial_needs_no_store(self) -> None:
        world = World(quota(10, window=3600))
        worker = world.worker("w")
        worker.ask(8)
        assert not worker.ask(5).allowed
        world.database.reachable = False
        assert not worker.ask(5).allowed

    def test_a_bucket_is_not_filled_in_the_past_though_its_level_was_lowered(self) -> None:
        bucket = TokenBucket(10, window=10)
        change = bucket.change(Counter(0, {0: NOON + 3}), 2, NOON)
        assert change == Raise(0, 2, most=NOON + 8, above=NOON)


class TestReservations:
    def test_two_do_not_share_the_units_of_a_bucket(self) -> None:
        world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=3600))
        worker = world.worker("w")
        assert worker.ask(6, Mode.RESERVE).allowed
        assert not worker.ask(6, Mode.RESERVE).allowed

    def test_nothing_is_held_for_less_than_its_time(self) -> None:
        world = World(quota(10, window=3600, reservation_ttl=60, release_expired=True))
        worker, other = world.worker("w"), world.worker("other")
        world.pass_(1)
        held = worker.ask(10, Mode.RESERVE)
        world.pass_(59.9)
        assert not other.ask().allowed
        assert worker.settle(held.reservation, cost=10).committed == 10

    def test_what_expired_of_a_bucket_counts_beside_the_next_units(self) -> None:
        bucket = AlgorithmName.TOKEN_BUCKET
        world = World(quota(10, algorithm=bucket, window=3600, reservation_ttl=60))
        worker, other = world.worker("w"), world.worker("other")
        worker.ask(5, Mode.RESERVE)
        world.pass_(61)
        other.ask(1, Mode.PEEK)
        assert worker.ask().allowed
        assert worker.ask(1, Mode.PEEK).remaining == 4

    def test_what_expired_counts_though_another_was_released_since(self) -> None:
        bucket = AlgorithmName.TOKEN_BUCKET
        world = World(quota(10, algorithm=bucket, window=3600, reservation_ttl=60))
        worker = world.worker("w")
        worker.ask(5, Mode.RESERVE)
        world.pass_(70)
        worker.settle(worker.ask(2, Mode.RESERVE).reservation, release=True)
        assert worker.admitted(10) == 5


class TestSettlements:
    """Of reservations whose counter others change meanwhile, or time does."""

    def test_more_may_be_used_of_the_next_window(self) -> None:
        world = World(quota(10))
        worker = world.worker("w")
        held = worker.ask(4, Mode.RESERVE)
        world.pass_(60)
        assert worker.settle(held.reservation, cost=6).covered
        assert worker.ask(1, Mode.PEEK).remaining == 8

    def test_what_is_reserved_meanwhile_does_not_hold_one_up(self) -> None:
        world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=3600))
        worker, other = world.worker("w"), world.worker("other")
        held = worker.ask(2, Mode.RESERVE)
        other.ask(1, Mode.PEEK)
        reserve = before_first("Transact", lambda: other.ask(1, Mode.RESERVE))
        transactions: list[str] = []

        def step(label: str) -> None:
            if label.startswith("Transact"):
                transactions.append(label)
            reserve(label)

        world.database.step = step
        worker.settle(held.reservation, cost=1)
        # The settlement, and the reservation of the other.
        assert len(transactions) == 2

    def test_more_than_was_reserved_is_not_covered_by_what_is_reserved_meanwhile(self) -> None:
        world = World(quota(10, algorithm=AlgorithmName.TOKEN_BUCKET, window=3600))
        worker, other = world.worker("w"), world.worker("other")
        held = worker.ask(2, Mode.RESERVE)
        other.ask(1, Mode.PEEK)
        allowed: list[bool] = []

        def reserve() -> None:
            allowed.append(other.ask(8, Mode.RESERVE).allowed)

        world.database.step = before_first("Transact", reserve)
        assert not worker.settle(held.reservation, cost=10).covered
        assert allowed == [True]

    def test_more_than_was_reserved_is_not_covered_by_what_is_debited_meanwhile(self) -> None:
        world = World(quota(10, window=3600))
        worker, other = world.worker("w"), world.worker("other")
        held = worker.ask(4, Mode.RESERVE)
        allowed: list[bool] = []

        def debit() -> None:
            allowed.append(other.ask(5).allowed)

        world.database.step = before_first("Transact", debit)
        assert not worker.settle(held.reservation, cost=6).covered
        assert allowed == [True]

    def test_what_another_released_meanwhile_is_settled(self) -> None:
        world = World(quota(10, window=3600))
        worker, other = world.worker("w"), world.worker("other")
        assert worker.ask(9).allowed
        held = worker.ask(1, Mode.RESERVE)
        world.database.step = before_first(
            "Transact", lambda: other.settle(held.reservation, release=True)
        )
        with pytest.raises(ReservationSettledError):
            worker.settle(held.reservation, cost=1)

    def test_what_expired_by_anothers_clock_is_not_committed(self) -> None:
        world = World(quota(10, window=3600, reservation_ttl=60, release_expired=True))
        worker, late = world.worker("w"), world.worker("late", behind=30)
        held = worker.ask(5, Mode.RESERVE)
        world.pass_(75)
        assert worker.ask(10).allowed
        with pytest.raises(ReservationNotFoundError):
            late.settle(held.reservation, cost=5)

    def test_what_was_released_is_not_taken_for_the_next_of_its_key(self) -> None:
        world = World(quota(10, window=3600, reservation_ttl=60))
        worker, other = world.worker("w"), world.worker("other")
        held = worker.ask(5, Mode.RESERVE, key="k")

        def replace() -> None:
            other.settle(held.reservation, release=True)
            again = other.ask(5, Mode.RESERVE, key="k")
            other.settle(again.reservation, cost=5)

        world.database.step = before_first("BatchGetItem count", replace)
        with pytest.raises(ReservationNotFoundError):
            worker.settle(held.reservation, cost=5)


class TestIdempotencyKeys:
    def test_that_of_what_was_released_is_for_the_same_request(self) -> None:
        worker = World(quota(10)).worker("w")
        held = worker.ask(4, Mode.RESERVE, key="k")
        worker.settle(held.reservation, release=True)
        with pytest.raises(IdempotencyKeyReusedError):
            worker.ask(5, Mode.RESERVE, key="k")

    def test_that_of_a_debit_is_for_no_reservation(self) -> None:
        worker = World(quota(10)).worker("w")
        assert worker.ask(2, key="k").allowed
        with pytest.raises(IdempotencyKeyReusedError):
            worker.ask(2, Mode.RESERVE, key="k")

    def test_what_is_forgotten_is_not_replayed_to_who_is_denied(self) -> None:
        world = World(quota(10, window=48 * 3600))
        worker = world.worker("w")
        worker.ask(4, key="k")
        assert worker.admitted(20) == 6
        world.pass_(25 * 3600)
        assert not worker.ask(4, key="k").allowed
