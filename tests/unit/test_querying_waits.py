"""Queries by themselves: who runs the SQL while others wait, and what holds without the cache."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import DeadlineExceededError, Store, StoreUnavailableError
from duostore_server.domain.keys import GenerationKey, ResultKey
from duostore_server.storage.cache.leases import LEASE_SECONDS
from tests.support.query_stack import (
    CHANGED,
    GENERATION,
    NOON,
    ROWS,
    QueryStack,
    Rows,
    query,
    rows_of,
)
from tests.support.reader_stack import down
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.domain.queries import QueryCall, Row

WITHIN = 30.0
CALLERS = 60


def leased_by_another(stack: QueryStack) -> tuple[ResultKey, Lease]:
    """Let another process have begun to compute the result of ``stack.query()``."""
    stack.query()
    key = stack.result_key()
    stack.entries.invalidate((key,))
    lease = stack.entries.lease((key,))[key]
    stack.forget_calls()
    return key, lease


def raises(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


class Crowd:
    """Callers in threads, who have all looked into the cache in vain before any SQL is done."""

    def __init__(self, *stacks: QueryStack) -> None:
        self.stacks = stacks
        self.looks = 0
        self._lock = threading.Lock()
        for stack in stacks:
            stack.cache.before["read"] = self._look
            stack.database.queries.during = self._wait

    def _look(self, keys: tuple[object, ...]) -> None:
        with self._lock:
            self.looks += any(isinstance(key, ResultKey) for key in keys)

    def _wait(self, _: QueryCall) -> None:
        eventually(lambda: self.looks >= CALLERS, within=WITHIN, what="everybody has looked")

    def ask(self) -> list[list[Row]]:
        def ask(number: int) -> list[Row]:
            return rows_of(self.stacks[number % len(self.stacks)].query(within=WITHIN))

        with ThreadPoolExecutor(CALLERS) as pool:
            return list(pool.map(ask, range(CALLERS)))


@pytest.mark.parametrize("processes", [1, 3])
def test_a_crowd_runs_the_sql_once(processes: int) -> None:
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        threading.Event().wait(0.001)

    first = QueryStack(query(timeout=WITHIN), pause=pause)
    others = (QueryStack(query(timeout=WITHIN), pause=pause, beside=first) for _ in range(2))
    stacks = [first, *others][:processes]
    assert Crowd(*stacks).ask() == [ROWS] * CALLERS
    assert sum(stack.runs for stack in stacks) == 1
    assert sum(len(stack.served) for stack in stacks) == CALLERS
    assert bool(pauses) == (processes > 1), "in one process nobody looks again and again"


def test_who_finds_the_lease_of_another_process_waits_for_its_result() -> None:
    stack, other = QueryStack(), QueryStack()
    key, lease = leased_by_another(stack)
    other.query()
    entry = other.entries.read((other.result_key(),))[other.result_key()]
    assert isinstance(entry, Cached)

    def fill_at_the_third() -> None:
        if len(stack.paused) == 3:
            assert stack.entries.fill(key, lease, entry, 60)

    stack.during_pause = fill_at_the_third
    assert stack.query().served_from is Store.CACHE
    assert (stack.paused, stack.runs) == ([0.005, 0.010, 0.020], 0)
    assert "cache.lease" not in stack.asked


def test_a_lease_that_another_won_at_the_same_moment_is_waited_for() -> None:
    stack = QueryStack()
    key, lease = leased_by_another(stack)
    stack.entries.invalidate((key,))
    entry = Cached(1, b"d" * 16 + b"[[], [], null]", NOON)
    won: list[Lease] = []
    stack.cache.before["lease"] = lambda *_: won.append(stack.entries.lease((key,))[key])
    stack.during_pause = lambda: stack.entries.fill(key, won[0], entry, 60)
    assert rows_of(stack.query()) == []
    assert lease not in won
    assert stack.runs == 0


def test_who_waited_as_long_as_the_query_may_take_runs_it_and_leaves_the_lease() -> None:
    stack = QueryStack(query(timeout=2.0))
    key, lease = leased_by_another(stack)
    assert rows_of(stack.query()) == ROWS
    assert sum(stack.paused) == pytest.approx(2.0, abs=0.051)
    assert stack.runs == 1
    assert stack.entries.read((key,)) == {key: lease}


def test_nobody_waits_again_for_a_holder_that_was_waited_for_in_vain() -> None:
    stack = QueryStack(query(timeout=2.0))
    key, _ = leased_by_another(stack)
    stack.query()
    stack.paused.clear()
    assert rows_of(stack.query()) == ROWS
    assert stack.paused == []
    # Another lease is another holder's.
    stack.entries.invalidate((key,))
    stack.entries.lease((key,))
    stack.query()
    assert sum(stack.paused) == pytest.approx(2.0, abs=0.051)


def test_who_has_less_time_than_the_query_may_take_keeps_some_to_run_it() -> None:
    stack = QueryStack()
    leased_by_another(stack)
    before = stack.clock.now
    assert rows_of(stack.query(within=1.0)) == ROWS
    assert stack.clock.now - before < 0.98
    assert stack.runs == 1


@pytest.mark.parametrize("error", [StoreUnavailableError(Store.AURORA), KeyboardInterrupt()])
def test_a_holder_that_fails_makes_room_at_once(error: BaseException) -> None:
    stack = QueryStack()

    def fail(_: QueryCall) -> None:
        raise error

    stack.database.queries.during = fail
    with pytest.raises(type(error)):
        stack.query()
    assert stack.result_keys() == []
    stack.database.queries.during = lambda _: None
    assert stack.query().served_from is Store.AURORA
    assert stack.query().served_from is Store.CACHE
    assert stack.paused == []


def test_who_waits_for_one_that_fails_elsewhere_runs_it_and_caches_it() -> None:
    stack = QueryStack()
    key, _ = leased_by_another(stack)
    stack.during_pause = lambda: stack.entries.invalidate((key,))
    assert stack.query().served_from is Store.AURORA
    assert stack.paused == [0.005]
    assert stack.query().served_from is Store.CACHE
    assert stack.runs == 1


def test_who_waits_for_one_that_fails_here_is_answered_all_the_same() -> None:
    stack = QueryStack()
    runs = iter([StoreUnavailableError(Store.AURORA)])
    crowd = Crowd(stack)
    wait = stack.database.queries.during

    def fail_once(call: QueryCall) -> None:
        wait(call)
        if (error := next(runs, None)) is not None:
            raise error

    stack.database.queries.during = fail_once
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(rows_of(stack.query(within=WITHIN)))
        except StoreUnavailableError as error:
            answers.append(error.store)

    threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert sorted(map(str, answers)) == sorted(map(str, [Store.AURORA, *[ROWS] * (CALLERS - 1)]))
    assert crowd.looks >= CALLERS


def test_a_result_that_takes_longer_than_the_lease_is_cached_all_the_same() -> None:
    stack = QueryStack(query(timeout=60.0))

    def take_long(_: QueryCall) -> None:
        stack.clock.now += LEASE_SECONDS + 1

    stack.database.queries.during = take_long
    stack.query(within=60.0)
    assert stack.query().served_from is Store.CACHE
    assert stack.runs == 1


def test_a_lease_that_has_passed_to_another_is_left_to_it() -> None:
    stack = QueryStack(query(timeout=60.0))
    theirs: list[Lease] = []

    def take_long(_: QueryCall) -> None:
        stack.clock.now += LEASE_SECONDS + 1
        theirs.append(stack.entries.lease((stack.result_key(),))[stack.result_key()])

    stack.database.queries.during = take_long
    assert rows_of(stack.query(within=60.0)) == ROWS
    assert stack.entries.read((stack.result_key(),)) == {stack.result_key(): theirs[0]}


def test_what_changed_while_it_was_computed_is_not_found_by_those_who_come_after() -> None:
    stack = QueryStack()

    def change(_: QueryCall) -> None:
        stack.database.rows = Rows(CHANGED)
        stack.entries.invalidate((GENERATION,))

    stack.database.queries.during = change
    assert rows_of(stack.query()) == ROWS, "it began before the change"
    stack.database.queries.during = lambda _: None
    assert rows_of(stack.query()) == CHANGED


def test_without_the_cache_the_database_answers_and_nothing_is_kept() -> None:
    stack = QueryStack()
    for method in ("read", "lease", "fill", "invalidate"):
        stack.cache.before[method] = down(Store.CACHE)
    for _ in range(2):
        assert stack.query().served_from is Store.AURORA
    assert stack.runs == 2
    assert len(stack.entries._slots) == 0


@pytest.mark.parametrize("method", ["lease", "fill", "invalidate"])
def test_a_cache_that_fails_on_the_way_fails_nobody(method: str) -> None:
    stack = QueryStack()
    stack.cache.before[method] = down(Store.CACHE)
    assert rows_of(stack.query()) == ROWS


def test_a_cache_that_fails_the_second_time_costs_the_hit_alone() -> None:
    stack = QueryStack()
    stack.query()
    looks = iter([None, StoreUnavailableError(Store.CACHE)])

    def fail_the_second(*_: object) -> None:
        if (error := next(looks, None)) is not None:
            raise error

    stack.cache.before["read"] = fail_the_second
    assert rows_of(stack.query()) == ROWS
    assert rows_of(stack.query()) == ROWS


def test_a_holder_that_fails_while_the_cache_does_is_told_what_failed_first() -> None:
    stack = QueryStack()
    stack.database.queries.during = raises(StoreUnavailableError(Store.AURORA))
    stack.cache.before["invalidate"] = down(Store.CACHE)
    with pytest.raises(StoreUnavailableError) as error:
        stack.query()
    assert error.value.store is Store.AURORA


def test_nothing_is_cached_while_a_generation_cannot_be_placed() -> None:
    stack = QueryStack()

    def fail_for_generations(keys: tuple[object, ...]) -> None:
        if any(isinstance(key, GenerationKey) for key in keys):
            raise StoreUnavailableError(Store.CACHE)

    stack.cache.before["lease"] = fail_for_generations
    stack.query()
    stack.database.rows = Rows(CHANGED)
    assert rows_of(stack.query()) == CHANGED
    assert stack.result_keys() == []


@pytest.mark.parametrize("payload", [None, b"", b"short"])
def test_an_entry_that_is_no_result_is_passed_over(payload: bytes | None) -> None:
    stack = QueryStack()
    key, lease = leased_by_another(stack)
    assert stack.entries.fill(key, lease, Cached(1, payload, NOON), 60)
    assert rows_of(stack.query()) == ROWS


@pytest.mark.parametrize("ttl", [300.0, 0.0])
def test_past_its_deadline_no_sql_is_run(ttl: float) -> None:
    stack = QueryStack(query(cache_ttl=ttl))
    with pytest.raises(DeadlineExceededError):
        stack.query(within=0.0)
    assert stack.runs == 0
