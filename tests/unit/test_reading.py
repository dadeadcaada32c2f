"""The reader by itself: whom it asks in which order, and what it fills."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from duostore_server import codec
from duostore_server.domain.entities import Cached, Form, Lease, Projection
from duostore_server.domain.errors import (
    EntityNotFoundError,
    InvalidRequestError,
    MinVersionNotReachedError,
    Store,
    StoreUnavailableError,
)
from duostore_server.domain.snapshots import Head
from tests.support.reader_stack import KEY, NOON, STATE, Stack, down, fail_cache, fail_dynamodb, key


def test_a_cached_entity_is_answered_by_the_cache_alone() -> None:
    stack = Stack()
    stack.commit()
    stack.fill(1)
    reading = stack.get()
    assert (reading.version, reading.payload, reading.cached_time) == (1, b"cached", NOON)
    assert stack.asked == ["cache.read"]
    assert stack.served == [Store.CACHE]


def test_a_vacant_entry_is_filled_with_what_dynamodb_holds() -> None:
    stack = Stack()
    stack.commit()
    reading = stack.get()
    assert reading.served_from is Store.DYNAMODB
    assert stack.asked == ["cache.read", "cache.lease", "dynamodb.read", "cache.fill"]
    assert stack.entry() == Cached(1, reading.payload, NOON)
    assert stack.get().served_from is Store.CACHE


def test_what_dynamodb_lacks_is_read_from_aurora_projected_and_then_filled() -> None:
    stack = Stack()
    stack.commit(projected=False)
    reading = stack.get()
    assert reading.served_from is Store.AURORA
    assert stack.asked[2:] == ["dynamodb.read", "aurora.read", "dynamodb.put_all", "cache.fill"]
    assert stack.stored.held[KEY] == Projection(1, Form.VALUE, reading.payload)
    assert stack.entry() == Cached(1, reading.payload, NOON)


def test_a_stub_sends_to_aurora_and_its_version_is_filled() -> None:
    stack = Stack()
    stack.commit(projected=False)
    stack.stored.held[KEY] = Projection(1, Form.STUB)
    reading = stack.get()
    assert reading.served_from is Store.AURORA
    assert "dynamodb.put_all" not in stack.asked
    assert stack.entry() == Cached(1, reading.payload, NOON)


def test_a_put_that_meets_a_newer_version_answers_that() -> None:
    stack = Stack()
    stack.commit(projected=False)
    stack.projections.before["put_all"] = lambda *_: stack.commit()
    reading = stack.get()
    assert (reading.version, reading.served_from) == (2, Store.DYNAMODB)
    assert stack.entry() == Cached(2, reading.payload, NOON)


def test_a_put_that_meets_a_newer_stub_fills_nothing() -> None:
    stack = Stack()
    stack.commit(projected=False)
    stack.projections.before["put_all"] = lambda *_: stack.stored.held.update(
        {KEY: Projection(2, Form.STUB)}
    )
    assert stack.get().version == 1
    assert stack.entry() is None


@pytest.mark.parametrize("deleted", [False, True])
def test_absence_is_filled_for_its_own_time(*, deleted: bool) -> None:
    stack = Stack(jitter=0.9)
    if deleted:
        stack.commit()
        stack.commit(deleted=True)
    version = 2 if deleted else 0
    with pytest.raises(EntityNotFoundError) as error:
        stack.get()
    assert error.value.version == version
    assert stack.entry() == Cached(version, None, NOON)
    stack.clock.now = 8.9
    assert stack.entry() is not None
    stack.clock.now = 9.1
    assert stack.entry() is None


def test_a_strong_read_asks_aurora_alone() -> None:
    stack = Stack()
    stack.commit()
    stack.fill(1)
    stack.commit(projected=False)
    assert stack.get(strong=True).version == 2
    assert stack.asked == ["aurora.read"]


def test_an_entry_behind_min_version_is_passed_over_and_removed() -> None:
    stack = Stack()
    stack.commit()
    stack.fill(1)
    stack.commit()
    assert stack.get(min_version=2).served_from is Store.DYNAMODB
    assert stack.asked == ["cache.read", "dynamodb.read", "cache.invalidate"]
    assert stack.entry() is None


def test_an_item_behind_min_version_sends_to_aurora() -> None:
    stack = Stack()
    stack.commit()
    stack.commit(projected=False)
    assert stack.get(min_version=2).served_from is Store.AURORA
    assert stack.stored.held[KEY].version == 2


def test_a_min_version_that_nobody_has_is_refused_and_costs_nobody_the_entry() -> None:
    stack = Stack()
    stack.commit()
    stack.fill(1)
    with pytest.raises(MinVersionNotReachedError) as error:
        stack.get(min_version=2)
    assert (error.value.min_version, error.value.version) == (2, 1)
    assert isinstance(stack.entry(), Cached)


def test_a_negative_min_version_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="min_version"):
        Stack().get(min_version=-1)


def test_without_the_cache_dynamodb_answers() -> None:
    stack = Stack()
    stack.commit()
    fail_cache(stack)
    assert stack.get().served_from is Store.DYNAMODB
    assert "cache.fill" not in stack.asked


def test_without_dynamodb_aurora_answers_and_nothing_is_cached() -> None:
    stack = Stack()
    stack.commit()
    fail_dynamodb(stack)
    assert stack.get().served_from is Store.AURORA
    assert stack.entry() is None, "neither an entry nor a lease to wait for"


def test_without_both_aurora_answers() -> None:
    stack = Stack()
    stack.commit()
    fail_cache(stack)
    fail_dynamodb(stack)
    assert stack.get().served_from is Store.AURORA


def test_a_put_that_fails_leaves_the_answer_and_caches_nothing() -> None:
    stack = Stack()
    stack.commit(projected=False)
    stack.projections.before["put_all"] = down(Store.DYNAMODB)
    assert stack.get().served_from is Store.AURORA
    assert stack.entry() is None


def test_an_absence_that_dynamodb_cannot_confirm_is_not_cached() -> None:
    stack = Stack()
    fail_dynamodb(stack)
    with pytest.raises(EntityNotFoundError):
        stack.get()
    assert stack.entry() is None


def test_a_read_that_nobody_can_answer_gives_its_lease_back() -> None:
    stack = Stack()
    fail_dynamodb(stack)
    stack.authority.before["read"] = down(Store.AURORA)
    with pytest.raises(StoreUnavailableError) as error:
        stack.get()
    assert error.value.store is Store.AURORA
    assert stack.entry() is None


def test_a_fill_that_comes_after_an_invalidation_is_dropped() -> None:
    stack = Stack()
    stack.commit()
    stack.cache.before["fill"] = lambda *_: stack.entries.invalidate((KEY,))
    assert stack.get().version == 1
    assert stack.entry() is None


def test_a_fill_under_the_lease_of_another_is_dropped() -> None:
    stack = Stack()
    stack.commit()
    others: list[Lease] = []

    def lease_anew(*_: Any) -> None:
        stack.entries.invalidate((KEY,))
        others.append(stack.entries.lease((KEY,))[KEY])

    stack.cache.before["fill"] = lease_anew
    assert stack.get().version == 1
    assert stack.entry() == others[0]


def test_a_batch_asks_each_store_once_and_of_each_key_what_it_must() -> None:
    stack = Stack()
    names = ("cached", "held", "stub", "behind", "absent", "leased", "gone")
    keys = cached, held, stub, behind, _, leased, gone = tuple(map(key, names))
    for each in (cached, held, leased, gone):
        stack.commit(each)
    stack.fill(1, cached)
    stack.commit(stub, projected=False)
    stack.stored.held[stub] = Projection(1, Form.STUB)
    stack.commit(behind, projected=False)
    stack.commit(gone, deleted=True)
    lease = stack.entries.lease((leased,))[leased]
    entry = Cached(1, b"cached", NOON)
    stack.during_pause = lambda: stack.entries.fill(leased, lease, entry, 60)
    readings = stack.reader.batch_get(keys, stack.soon())
    answered = {
        each.id: (reading.version, reading.payload is not None, reading.served_from)
        for each, reading in readings.items()
    }
    assert answered == {
        "cached": (1, True, Store.CACHE),
        "held": (1, True, Store.DYNAMODB),
        "stub": (1, True, Store.AURORA),
        "behind": (1, True, Store.AURORA),
        "absent": (0, False, Store.AURORA),
        "leased": (1, True, Store.CACHE),
        "gone": (2, False, Store.DYNAMODB),
    }
    assert stack.asked.count("dynamodb.read") == 1
    assert stack.asked.count("aurora.read") == 1
    assert stack.asked.count("dynamodb.put_all") == 1
    assert len(stack.served) == len(keys)
    assert all(isinstance(stack.entry(each), Cached) for each in keys)


def test_a_batch_over_a_cache_that_is_down_is_answered() -> None:
    stack = Stack()
    stack.commit()
    fail_cache(stack)
    readings = stack.reader.batch_get([KEY, key("2")], stack.soon())
    assert [reading.version for reading in readings.values()] == [1, 0]


def live_head(expire_time: datetime | None) -> Head:
    payload = codec.encode_head(STATE, {"line": 1})
    return Head(1, payload, NOON, NOON, expire_time)


def test_an_entity_at_home_in_dynamodb_is_read_there_alone() -> None:
    stack = Stack()
    stack.stored_heads.held[STATE] = live_head(None)
    assert stack.get(STATE).served_from is Store.DYNAMODB
    assert stack.get(STATE).served_from is Store.CACHE
    assert stack.asked.count("heads.read") == 1
    assert not [asked for asked in stack.asked if asked.startswith(("aurora", "dynamodb"))]
    assert stack.get(STATE, strong=True).served_from is Store.DYNAMODB


def test_a_cached_entity_is_absent_from_its_end_on() -> None:
    stack = Stack()
    stack.stored_heads.held[STATE] = live_head(NOON + timedelta(seconds=2))
    stack.get(STATE)
    stack.now = NOON + timedelta(seconds=2) - timedelta(microseconds=1)
    assert stack.get(STATE).served_from is Store.CACHE
    stack.now += timedelta(microseconds=1)
    # Its entry is there: the cache's own clock stands still.
    assert isinstance(stack.entry(STATE), Cached)
    with pytest.raises(EntityNotFoundError) as error:
        stack.get(STATE)
    assert error.value.version == 1
    stack.entries.invalidate((STATE,))
    with pytest.raises(EntityNotFoundError):
        stack.get(STATE)


@pytest.mark.parametrize(
    ("left", "ttl"), [(None, 5.0), (60.0, 5.0), (2.5, 2.5), (1.0, 1.0), (0.9, None)]
)
def test_an_entry_is_not_kept_past_the_end_of_its_entity(
    left: float | None, ttl: float | None
) -> None:
    stack = Stack()
    ends = None if left is None else NOON + timedelta(seconds=left)
    stack.stored_heads.held[STATE] = live_head(ends)
    ttls: list[float] = []
    stack.cache.before["fill"] = lambda *args: ttls.append(args[-1])
    stack.get(STATE)
    assert ttls == ([] if ttl is None else [ttl])
    if ttl is None:
        assert stack.entry(STATE) is None


def test_the_shortest_ttl_is_cached_whatever_the_jitter() -> None:
    stack = Stack(jitter=0.9, cache_ttl=1.0)
    stack.commit()
    ttls: list[float] = []
    stack.cache.before["fill"] = lambda *args: ttls.append(args[-1])
    stack.get()
    assert ttls == [1.0]
