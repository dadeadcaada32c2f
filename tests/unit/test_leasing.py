"""Slices: units that a process debits ahead and admits from memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.domain.quotas import AlgorithmName, CounterKey, Mode
from tests.support.quota_stack import SECOND, World, gated, quota
from tests.support.simulated_memcached import Delivery, Fault
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.quota_stack import Worker

ALGORITHMS = tuple(AlgorithmName)


def foregone(algorithm: AlgorithmName, limit: int, *, window: float = 60.0) -> int:
    """Return the units that dating slices ahead by a second may cost a bucket that is full."""
    return -(-limit // round(window)) if algorithm is AlgorithmName.TOKEN_BUCKET else 0


def every_algorithm() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda each: each.value)


def warm(world: World, worker: Worker, times: int) -> None:
    """Ask quickly, so that the next slices are large ones."""
    assert worker.admitted(times) == times
    world.spent()


@every_algorithm()
def test_a_hot_subject_costs_few_writes(algorithm: AlgorithmName) -> None:
    world = World(quota(1000, algorithm=algorithm, lease=50))
    worker = world.worker("w")
    assert 1000 - foregone(algorithm, 1000) <= worker.admitted(1500) <= 1000
    spent = world.spent()
    assert spent.count("UpdateItem") == len(spent) <= 50
    assert worker.admitted(500) == 0
    assert world.spent() == []


@every_algorithm()
def test_two_workers_admit_the_limit_together(algorithm: AlgorithmName) -> None:
    world = World(quota(1000, algorithm=algorithm, lease=50))
    workers = world.worker("one"), world.worker("other")
    admitted = sum(worker.ask().allowed for _ in range(1000) for worker in workers)
    assert 1000 - foregone(algorithm, 1000) <= admitted <= 1000


def test_who_asks_seldom_gets_no_slice_and_knows_what_is_left() -> None:
    world = World(quota(1000, lease=50))
    worker = world.worker("w")
    for left in range(999, 990, -1):
        assert worker.ask().remaining == left
        world.pass_(0.5)
    assert worker.account().slice is None


def test_slices_double_with_demand_up_to_the_most() -> None:
    world = World(quota(10_000, lease=20))
    worker = world.worker("w")
    sizes = []
    for _ in range(150):
        worker.ask()
        held = worker.account().slice
        if held is not None and held.left == held.units:
            sizes.append(held.units)
    assert sizes[:6] == [1, 2, 4, 8, 16, 20]
    assert set(sizes[6:]) == {20}


def test_slices_shrink_when_they_last_too_long() -> None:
    world = World(quota(10_000, lease=20))
    worker = world.worker("w")
    warm(world, worker, 100)
    before = worker.account().wanted
    world.pass_(1.5)
    worker.ask()
    assert worker.account().wanted <= before // 4


def test_slices_shrink_as_the_quota_runs_out() -> None:
    world = World(quota(100, lease=50))
    worker = world.worker("w")
    warm(world, worker, 90)
    held = worker.account().slice
    assert held is None or held.units <= 10


@every_algorithm()
def test_what_is_left_of_a_slice_and_of_the_store_serve_one_call(
    algorithm: AlgorithmName,
) -> None:
    world = World(quota(100, algorithm=algorithm, lease=20))
    worker = world.worker("w")
    while worker.ask(1, Mode.PEEK).remaining > 12:
        assert worker.ask().allowed
    held = worker.account().slice
    left = 0 if held is None else held.left
    total = left + worker.ask(1, Mode.PEEK).remaining
    assert not worker.ask(total + 1).allowed
    assert worker.ask(total).allowed
    assert not worker.ask(1).allowed


@every_algorithm()
def test_what_was_not_used_is_given_back_on_drain(algorithm: AlgorithmName) -> None:
    world = World(quota(100, algorithm=algorithm, lease=20))
    one, other = world.worker("one"), world.worker("other")
    used = one.admitted(40)
    assert one.account().slice is not None
    one.drain()
    assert one.account().slice is None
    remaining = other.ask(1, Mode.PEEK).remaining
    assert 100 - used - foregone(algorithm, 100) <= remaining <= 100 - used
    assert one.fates["granted"] == one.fates["admitted"] + one.fates["returned"]


@every_algorithm()
def test_what_another_gives_back_is_allowed_at_once(algorithm: AlgorithmName) -> None:
    world = World(quota(100, algorithm=algorithm, lease=20))
    one, other = world.worker("one"), world.worker("other")
    used = one.admitted(40)
    used += other.admitted(200)
    assert other.admitted(5) == 0
    held = one.account().slice
    assert held is not None
    assert 100 - used - foregone(algorithm, 100) <= held.left <= 100 - used
    left = held.left
    one.drain()
    assert other.admitted(50) == left


@every_algorithm()
def test_a_denial_costs_reads_while_others_may_give_back_and_then_nothing(
    algorithm: AlgorithmName,
) -> None:
    world = World(quota(1000, algorithm=algorithm, window=600, lease=200))
    one, other = world.worker("one"), world.worker("other")
    one.admitted(700)
    other.admitted(2000)
    world.spent()
    assert other.admitted(5) == 0
    assert set(world.spent()) == {"BatchGetItem"}
    world.pass_(4.5)
    other.admitted(10)
    world.spent()
    assert other.admitted(5) == 0
    assert world.spent() == []


@every_algorithm()
def test_a_slice_is_not_admitted_from_past_its_time(algorithm: AlgorithmName) -> None:
    world = World(quota(1000, algorithm=algorithm, lease=50, lease_time=1.0))
    worker = world.worker("w")
    warm(world, worker, 200)
    assert worker.account().slice is not None
    world.pass_(1.0)
    assert worker.ask().allowed
    assert "UpdateItem" in world.spent()


def test_a_slice_is_not_admitted_from_in_the_next_window() -> None:
    world = World(quota(1000, window=60, lease=50, lease_time=3.0))
    worker = world.worker("w")
    world.pass_(59.5)
    warm(world, worker, 200)
    assert worker.account().slice is not None
    world.pass_(0.6)
    assert worker.admitted(1500) == 1000


@every_algorithm()
def test_what_is_not_used_soon_is_given_back(algorithm: AlgorithmName) -> None:
    world = World(quota(1000, algorithm=algorithm, lease=50, lease_time=1.0))
    worker = world.worker("w")
    warm(world, worker, 200)
    world.pass_(0.4)
    worker.look_after()
    assert world.spent() == []
    world.pass_(0.2)
    worker.look_after()
    assert worker.account().slice is None
    remaining = worker.ask(1, Mode.PEEK).remaining
    # A bucket fills by so much in the time that went by.
    filled = 10 if algorithm is AlgorithmName.TOKEN_BUCKET else 0
    assert 800 - foregone(algorithm, 1000) <= remaining <= 800 + filled


def test_a_lease_that_was_given_back_is_not_given_back_again() -> None:
    world = World(quota(100, lease=20))
    worker = world.worker("w")
    worker.admitted(40)
    held = worker.account().slice
    assert held is not None
    worker.drain()
    worker.account().slice = held
    held.units = held.left = 10
    worker.drain()
    assert worker.ask(1, Mode.PEEK).remaining == 60
    assert worker.fates["lost"] == 10


def test_a_crash_only_under_admits() -> None:
    world = World(quota(100, lease=20))
    crashed, other = world.worker("crashed"), world.worker("other")
    used = crashed.admitted(40)
    held = crashed.account().slice
    assert held is not None
    assert other.admitted(200) == 100 - used - held.left


def test_a_lease_of_a_subject_without_demand_is_forgotten_with_it() -> None:
    world = World(quota(1000, lease=50))
    worker = world.worker("w")
    for number in range(150):
        worker.ask(subject=f"s{number}")
    assert worker.accounts.of(CounterKey("acme", "calls", "s0")) is None
    assert worker.accounts.of(CounterKey("acme", "calls", "s149")) is not None


class TestTogether:
    def test_one_asks_for_all_who_wait(self) -> None:
        world = World(quota(1000, lease=50))
        worker = world.worker("w")
        warm(world, worker, 3)
        gate, asked = threading.Event(), threading.Event()

        def step(label: str) -> None:
            world.calls.append(label.split(" ", maxsplit=1)[0])
            asked.set()
            assert gate.wait(10)

        world.database.step = step
        with ThreadPoolExecutor(10) as pool:
            answers = [pool.submit(worker.ask) for _ in range(10)]
            assert asked.wait(10)
            account = worker.account()
            eventually(lambda: account.waiting == 9, within=10, what="all wait")
            gate.set()
            assert all(answer.result().allowed for answer in answers)
        assert len(world.spent()) <= 2

    def test_they_are_told_if_the_store_failed_the_one_who_asked(self) -> None:
        world = World(quota(1000, lease=50))
        worker = world.worker("w")
        warm(world, worker, 3)
        gate, asked = threading.Event(), threading.Event()

        def step(_label: str) -> None:
            asked.set()
            assert gate.wait(10)
            world.database.reachable = False

        world.database.step = step
        with ThreadPoolExecutor(5) as pool:
            answers = [pool.submit(worker.ask) for _ in range(5)]
            assert asked.wait(10)
            account = worker.account()
            eventually(lambda: account.waiting == 4, within=10, what="all wait")
            gate.set()
            for answer in answers:
                with pytest.raises(StoreUnavailableError):
                    answer.result()
        world.database.step, world.database.reachable = (lambda _: None), True
        assert worker.ask().allowed

    def test_who_is_in_a_hurry_does_not_wait_for_long(self) -> None:
        world = World(quota(1000, lease=50))
        worker = world.worker("w")
        warm(world, worker, 3)
        gate, asked = gated(world)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(worker.ask)
            assert asked.wait(10)
            with pytest.raises(DeadlineExceededError):
                worker.ask(deadline=Deadline.after(0.1))
            gate.set()
            assert first.result().allowed
        assert worker.account().waiting == 0

    @every_algorithm()
    def test_many_threads_admit_the_limit(self, algorithm: AlgorithmName) -> None:
        world = World(quota(500, algorithm=algorithm, lease=25))
        workers = [world.worker(f"w{number}") for number in range(3)]
        with ThreadPoolExecutor(12) as pool:
            admitted = sum(pool.map(lambda number: workers[number % 3].admitted(60), range(12)))
        held = sum(
            account.slice.left
            for worker in workers
            for account in worker.accounts.holding()
            if account.slice is not None
        )
        assert 500 - foregone(algorithm, 500) <= admitted + held <= 500


def test_a_span_of_a_bucket_is_not_given_back_twice() -> None:
    world = World(quota(60, algorithm=AlgorithmName.TOKEN_BUCKET, window=60, lease=30))
    one, other = world.worker("one"), world.worker("other")
    times = []
    for _ in range(200):
        times += [world.now] * one.admitted(3)
        one.drain()
        times += [world.now] * other.admitted(2)
        world.pass_(0.3)
        other.look_after()
    for index, begin in enumerate(times):
        for count, end in enumerate(times[index:], start=1):
            assert count <= 60 + (end - begin) / SECOND


class TestGivenBack:
    """What is given back while others look, or cannot be."""

    def test_what_was_given_back_by_this_process_is_not_denied_by_an_older_look(self) -> None:
        world = World(quota(100, window=3600, lease=20))
        one, other = world.worker("one"), world.worker("other")
        one.admitted(60)
        other.admitted(100)
        old = other.account().seen
        assert old is not None
        assert one.account().slice is not None
        one.account().saw(old, world.now)
        one.drain()
        one.account().saw(old, world.now)
        assert one.ask().allowed

    def test_what_could_not_be_given_back_is_tried_again(self) -> None:
        world = World(quota(100, window=3600, lease=20))
        worker = world.worker("w")
        used = worker.admitted(60)
        assert worker.account().slice is not None
        world.pass_(0.6)
        world.database.reachable = False
        with pytest.raises(StoreUnavailableError):
            worker.look_after()
        world.database.reachable = True
        world.pass_(0.2)
        worker.look_after()
        assert worker.account().slice is None
        assert worker.ask(1, Mode.PEEK).remaining == 100 - used
        assert "lost" not in worker.fates

    def test_it_is_lost_once_nobody_reckons_with_it(self) -> None:
        world = World(quota(100, window=3600, lease=20))
        worker = world.worker("w")
        worker.admitted(60)
        world.pass_(2.1)
        worker.look_after()
        assert worker.account().slice is None
        assert worker.fates["lost"] > 0

    def test_that_it_cannot_be_does_not_fail_the_next_call(self) -> None:
        world = World(quota(100, window=3600, lease=20))
        worker = world.worker("w")
        worker.admitted(60)
        failed: list[str] = []

        def fault(label: str) -> Fault | None:
            if failed or not label.startswith("UpdateItem"):
                return None
            failed.append(label)
            return Fault(EndpointConnectionError(endpoint_url="simulated:"), Delivery.LOST)

        world.pass_(1.1)
        world.database.fault = fault
        assert worker.ask().allowed
        assert failed

    def test_a_new_sub_window_leaves_the_leases_of_others(self) -> None:
        algorithm = AlgorithmName.SLIDING_WINDOW
        world = World(quota(1000, algorithm=algorithm, window=60, sub_windows=60, lease=50))
        one, other = world.worker("one"), world.worker("other")
        world.pass_(0.9)
        used = one.admitted(60)
        assert one.account().slice is not None
        world.pass_(0.2)
        # Its first try meets the counter; the second knows it, and clears away what is over.
        assert other.ask().allowed
        world.pass_(0.4)
        one.look_after()
        assert other.ask(1, Mode.PEEK).remaining == 1000 - used - 1

    def test_a_slice_that_is_over_is_not_held_against_its_own_process(self) -> None:
        algorithm = AlgorithmName.SLIDING_WINDOW
        world = World(quota(1000, algorithm=algorithm, window=60, sub_windows=60, lease=50))
        one, other = world.worker("one"), world.worker("other")
        world.pass_(0.9)
        one.admitted(60)
        held = one.account().slice
        assert held is not None
        while other.ask().allowed:
            pass
        one.ask(1, Mode.PEEK)
        world.pass_(0.2)
        assert one.admitted(100) == held.left

    def test_who_is_not_answered_takes_no_large_slices_in_vain(self) -> None:
        world = World(quota(10_000, window=3600, lease=500))
        worker = world.worker("w")
        worker.admitted(3000)
        before = worker.ask(1, Mode.PEEK).remaining

        def applied(label: str) -> Fault | None:
            if not label.startswith("UpdateItem"):
                return None
            return Fault(ReadTimeoutError(endpoint_url="simulated:"), Delivery.APPLIED)

        worker.drain()
        world.database.fault = applied
        for _ in range(8):
            with pytest.raises(StoreUnavailableError):
                worker.ask()
        world.database.fault = lambda _: None
        assert worker.ask(1, Mode.PEEK).remaining >= before - 500 - 8

    def test_an_old_look_removes_no_lease(self) -> None:
        world = World(quota(10_000, window=3600, lease=50))
        one, other = world.worker("one"), world.worker("other")
        other.admitted(60)
        one.ask(1, Mode.PEEK)
        world.pass_(3)
        other.look_after()
        other.admitted(60)
        assert other.account().slice is not None
        assert one.ask().allowed
        other.drain()
        assert "lost" not in other.fates or other.fates["returned"] > 0
        assert one.ask(1, Mode.PEEK).remaining >= 10_000 - 121 - other.fates.get("lost", 0)

    @every_algorithm()
    def test_a_slice_is_given_back_for_what_needs_the_store(self, algorithm: AlgorithmName) -> None:
        world = World(quota(100, algorithm=algorithm, window=3600, lease=50))
        worker = world.worker("w")
        while (held := worker.account().slice if worker.admitted(1) else None) is None or (
            worker.ask(1, Mode.PEEK).remaining > held.left
        ):
            pass
        left = held.left + worker.ask(1, Mode.PEEK).remaining
        assert worker.ask(left, Mode.RESERVE).allowed

    def test_a_span_that_is_not_known_is_not_given_back(self) -> None:
        world = World(quota(100, algorithm=AlgorithmName.TOKEN_BUCKET, window=100, lease=20))
        worker = world.worker("w")
        worker.admitted(30)
        held = worker.account().slice
        assert held is not None
        held.debit = replace(held.debit, end=0)
        before = worker.ask(1, Mode.PEEK).remaining
        worker.drain()
        assert worker.ask(1, Mode.PEEK).remaining == before
        assert worker.fates["lost"] == held.left
