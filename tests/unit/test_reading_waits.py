"""The reader by itself: how long it waits, for stores and for others who read the same."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.access.propagation import Propagation
from duostore_server.access.reading import Reader, lease_pauses
from duostore_server.domain.deadline import MARGIN_SECONDS, Deadline
from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
)
from tests.support.reader_stack import KEY, NOON, WITHIN, Stack, fail_dynamodb

if TYPE_CHECKING:
    from duostore_server.domain.entities import Reading
    from duostore_server.domain.keys import EntityKey


def test_the_value_that_another_fetches_is_waited_for() -> None:
    stack = Stack(pauses=(0.01, 0.02, 0.05))
    lease = stack.entries.lease((KEY,))[KEY]

    def fill_at_the_second() -> None:
        if len(stack.paused) == 2:
            stack.entries.fill(KEY, lease, Cached(1, b"cached", NOON), 60)

    stack.during_pause = fill_at_the_second
    assert stack.get().served_from is Store.CACHE
    assert stack.paused == [0.01, 0.02]


def test_who_waited_in_vain_reads_and_leaves_the_lease_alone() -> None:
    stack = Stack()
    stack.commit()
    lease = stack.entries.lease((KEY,))[KEY]
    assert stack.get().served_from is Store.DYNAMODB
    assert stack.paused == [0.01, 0.02]
    assert stack.entry() == lease


def test_a_lease_is_waited_for_in_vain_once() -> None:
    stack = Stack()
    stack.commit()
    stack.entries.lease((KEY,))
    stack.get()
    stack.paused.clear()
    assert stack.get().served_from is Store.DYNAMODB
    assert stack.paused == []
    stack.entries.invalidate((KEY,))
    stack.entries.lease((KEY,))
    stack.get()
    assert stack.paused == [0.01, 0.02], "this one is new"


def test_a_lease_that_another_won_at_the_same_time_is_waited_for() -> None:
    stack = Stack()
    stack.commit()
    lease: dict[EntityKey, Lease] = {}
    entry = Cached(1, b"cached", NOON)
    stack.cache.before["lease"] = lambda *_: lease.update(stack.entries.lease((KEY,)))
    stack.during_pause = lambda: stack.entries.fill(KEY, lease[KEY], entry, 60)
    assert stack.get().served_from is Store.CACHE
    assert stack.paused == [0.01]


def test_the_usual_patience_is_had_once_for_each_lease() -> None:
    stack = Stack(pauses=lease_pauses(0.5))
    stack.commit(projected=False)
    fail_dynamodb(stack)
    stack.entries.lease((KEY,))
    assert stack.get().served_from is Store.AURORA
    assert sum(stack.paused) == pytest.approx(0.5, abs=0.05)
    stack.paused.clear()
    assert stack.get().served_from is Store.AURORA
    assert stack.paused == []
    stack.entries.invalidate((KEY,))
    stack.entries.lease((KEY,))
    stack.get()
    assert stack.paused != []
    assert "cache.fill" not in stack.asked


def test_no_patience_is_no_pause() -> None:
    assert lease_pauses(0) == ()
    assert sum(lease_pauses(0.5)) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("patience", [0.0, 0.035, 0.2, 1.0])
def test_the_pauses_make_up_the_patience(patience: float) -> None:
    pauses = lease_pauses(patience)
    assert sum(pauses) == pytest.approx(patience, abs=0.025)
    assert sorted(pauses) == list(pauses)


def test_a_dynamodb_that_hangs_leaves_time_for_aurora() -> None:
    stack = Stack()
    stack.commit()
    stack.projections.before["read"] = stack.hangs(5.0, Store.DYNAMODB)
    stack.authority.before["read"] = stack.takes(0.3)
    reading = stack.reader.get(KEY, stack.soon(1.0))
    assert reading.served_from is Store.AURORA
    assert stack.clock.now < 1.0 - MARGIN_SECONDS


def test_a_dynamodb_that_uses_up_its_share_leaves_time_for_aurora() -> None:
    stack = Stack()
    stack.commit()

    def use_up(*args: Any) -> None:
        stack.clock.now += args[-1].bound(0.8)
        raise DeadlineExceededError

    stack.projections.before["read"] = use_up
    assert stack.reader.get(KEY, stack.soon(0.5)).served_from is Store.AURORA
    assert stack.clock.now < 0.3


def test_a_put_that_hangs_leaves_time_for_the_answer() -> None:
    stack = Stack()
    stack.commit(projected=False)
    stack.authority.before["read"] = stack.takes(0.5)
    stack.projections.before["put_all"] = stack.hangs(5.0, Store.DYNAMODB)
    reading = stack.reader.get(KEY, stack.soon(1.0))
    assert reading.served_from is Store.AURORA
    assert stack.clock.now < 1.0 - MARGIN_SECONDS


def test_a_lease_is_waited_for_with_a_part_of_the_time() -> None:
    stack = Stack(pauses=(0.1,) * 100)
    stack.commit()
    stack.entries.lease((KEY,))
    assert stack.reader.get(KEY, stack.soon(1.0)).served_from is Store.DYNAMODB
    assert 0.2 < sum(stack.paused) < 0.7


def test_waiting_for_a_lease_leaves_time_to_read() -> None:
    stack = Stack(pauses=lease_pauses(0.5))
    stack.commit(projected=False)
    fail_dynamodb(stack)
    stack.entries.lease((KEY,))
    assert stack.reader.get(KEY, stack.soon(0.3)).served_from is Store.AURORA
    assert stack.clock.now <= 0.15


def test_nothing_is_filled_when_the_answer_is_due() -> None:
    stack = Stack()
    stack.commit()
    stack.projections.after["read"] = stack.takes(1.0 - MARGIN_SECONDS / 2)
    assert stack.reader.get(KEY, stack.soon(1.0)).version == 1
    assert "cache.fill" not in stack.asked
    assert stack.entry() is None, "nobody waits for what will not come"


def test_a_deadline_that_passes_on_the_way_to_aurora_is_told_and_leaves_no_lease() -> None:
    stack = Stack()
    stack.commit(projected=False)
    stack.projections.after["read"] = stack.takes(1.0)
    with pytest.raises(DeadlineExceededError):
        stack.reader.get(KEY, stack.soon(1.0))
    assert stack.entry() is None


class Flown(threading.Event):
    """A flight under way, which tells when somebody waits for it to land."""

    def __init__(self, flight: threading.Event) -> None:
        super().__init__()
        self.joined = threading.Event()
        self._flight = flight

    def wait(self, timeout: float | None = None) -> bool:
        self.joined.set()
        return self._flight.wait(timeout)


class HandsOut(Reader):
    """The mutant: those who waited are handed what the one in flight has read."""

    def _get(self, key: EntityKey, min_version: int, deadline: Deadline) -> Reading:
        look = self._look((key,), min_version)
        with self._flights.join(key, WITHIN) as first:
            if first:
                self.landed = self._finish(look, min_version, deadline)[key]
        return self.landed


def read_during_an_older_flight(reader: type[Reader]) -> tuple[int, int]:
    """Return the versions read by one in flight since before a Save, and by one who came after."""
    stack = Stack(reader=reader, pauses=(WITHIN,))
    stack.commit()
    has_read, may_land = threading.Event(), threading.Event()
    soon = Deadline.after(4 * WITHIN)

    def hold_back(*_: Any) -> None:
        del stack.cache.before["fill"]
        has_read.set()
        assert may_land.wait(WITHIN)

    stack.cache.before["fill"] = hold_back
    propagation = Propagation(stack.stored, stack.entries, stack.shapes.project)
    with ThreadPoolExecutor(2) as pool:
        try:
            older = pool.submit(stack.reader.get, KEY, soon)
            assert has_read.wait(WITHIN)
            stack.commit(projected=False)
            assert propagation.propagate(list(stack.rows.read((KEY,), soon).values()), soon)
            flight = Flown(stack.flights._flights[KEY])
            stack.flights._flights[KEY] = flight
            newer = pool.submit(stack.reader.get, KEY, soon)
            assert flight.joined.wait(WITHIN)
        finally:
            may_land.set()
        return older.result(WITHIN).version, newer.result(WITHIN).version


def test_who_comes_after_a_save_is_not_answered_by_an_older_flight() -> None:
    assert read_during_an_older_flight(Reader) == (1, 2)


def test_a_reader_that_hands_its_result_out_is_found() -> None:
    assert read_during_an_older_flight(HandsOut) == (1, 1)


def test_who_waited_for_a_flight_finds_what_it_filled() -> None:
    stack = Stack(pauses=(WITHIN,))
    stack.commit()
    soon = Deadline.after(4 * WITHIN)
    has_read, may_land = threading.Event(), threading.Event()

    def hold_back(*_: Any) -> None:
        has_read.set()
        assert may_land.wait(WITHIN)

    # Vacant to both: the follower looked before the first had its lease.
    stack.cache.before["lease"] = hold_back
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(stack.reader.get, KEY, soon)
            assert has_read.wait(WITHIN)
            flight = Flown(stack.flights._flights[KEY])
            stack.flights._flights[KEY] = flight
            follower = pool.submit(stack.reader.get, KEY, soon)
            assert flight.joined.wait(WITHIN)
        finally:
            may_land.set()
        assert first.result(WITHIN).served_from is Store.DYNAMODB
        assert follower.result(WITHIN).served_from is Store.CACHE
    assert stack.asked.count("dynamodb.read") == 1


def test_a_flight_that_hangs_holds_a_follower_up_for_its_patience_and_no_longer() -> None:
    stack = Stack(pauses=(0.02,))
    stack.commit()
    # The one in flight has its lease, too; to wait for both would be to wait twice.
    stack.entries.lease((KEY,))
    with stack.flights.join(KEY, 0):
        assert stack.reader.get(KEY, Deadline.after(WITHIN)).version == 1
    assert stack.paused == []
