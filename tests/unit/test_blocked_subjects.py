"""A limit of 0 blocks a subject, whatever it was allowed before."""

from __future__ import annotations

import pytest

from duostore_server.domain.algorithms import algorithm_of
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.quotas import AlgorithmName, Mode
from tests.support.quota_stack import MIDNIGHT, Worker, World, quota

READS = {"BatchGetItem", "GetItem"}


def every_algorithm() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("algorithm", tuple(AlgorithmName), ids=lambda each: each.value)


def set_limit(world: World, worker: Worker, limit: int | None) -> None:
    world.limits.rows.pop(("calls", "alice"), None)
    if limit is not None:
        world.limits.rows["calls", "alice"] = limit
    worker.limits.refresh()


@every_algorithm()
@pytest.mark.parametrize("lease", [None, 0, 5])
def test_it_is_denied_all_that_it_asks_for_and_nothing_is_written(
    algorithm: AlgorithmName, lease: int | None
) -> None:
    world = World(quota(0, algorithm=algorithm, lease=lease, overrides={"bob": 2}))
    worker = world.worker("w")
    for mode in Mode:
        for cost in (0, 1, 7):
            answer = worker.ask(cost, mode)
            assert (answer.allowed, answer.limit, answer.remaining) == (False, 0, 0)
            assert answer.retry_after is None
    assert not worker.ask(key="k").allowed
    assert set(world.spent()) <= READS
    # Who has a limit of its own is not blocked by that of the quota.
    assert [worker.ask(subject="bob").allowed for _ in range(3)] == [True, True, False]


@every_algorithm()
@pytest.mark.parametrize("lease", [0, 50])
def test_it_goes_on_from_where_it_was_once_it_is_no_longer_blocked(
    algorithm: AlgorithmName, lease: int
) -> None:
    world = World(quota(1000, algorithm=algorithm, lease=lease))
    worker = world.worker("w")
    before = worker.admitted(150)
    assert before == 150
    set_limit(world, worker, 0)
    assert worker.admitted(20) == 0
    assert worker.ask(1, Mode.PEEK).remaining == 0
    # What was debited ahead goes back meanwhile, and no more than was not used of it: of a
    # bucket less, by what fills in the time that slices are admitted from.
    worker.drain()
    set_limit(world, worker, None)
    fills = 1000 // 60 + 1 if lease and algorithm is AlgorithmName.TOKEN_BUCKET else 0
    assert 1000 - before - fills <= worker.admitted(1000) <= 1000 - before
    assert worker.behind == []


@every_algorithm()
def test_a_reservation_that_it_had_before_is_settled_within_what_it_holds(
    algorithm: AlgorithmName,
) -> None:
    world = World(quota(10, algorithm=algorithm))
    worker = world.worker("w")
    one, other = (worker.ask(4, Mode.RESERVE).reservation for _ in range(2))
    set_limit(world, worker, 0)
    less = worker.settling.settle("acme", one, Deadline.after(5), cost=3)
    more = worker.settling.settle("acme", other, Deadline.after(5), cost=5)
    assert (less.committed, less.refunded, less.covered) == (3, 1, True)
    assert (more.committed, more.refunded, more.covered) == (4, 0, False)
    set_limit(world, worker, None)
    assert worker.admitted(10) == 3


@every_algorithm()
def test_a_counter_of_a_blocked_subject_has_room_for_nothing_at_any_time(
    algorithm: AlgorithmName,
) -> None:
    blocked = algorithm_of(quota(0, algorithm=algorithm), 0)
    for now in (MIDNIGHT, MIDNIGHT + 1, MIDNIGHT + 10**15):
        assert blocked.change(None, 1, now) is None
        assert blocked.reserve(None, 1, now) is None
        assert blocked.room(None, now) == 0
        assert blocked.retry_time(None, 1, now) is None
        assert blocked.reset_time(None, now) >= now
