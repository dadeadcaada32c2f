"""Generations: one nonce for all who ask, another after each change, and none if in doubt."""

from __future__ import annotations

import pytest

from duostore_server.access.generations import Generations, generations_of
from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import Store
from duostore_server.domain.keys import EntityKey, GenerationKey
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.memory import MemoryCache
from tests.support.reader_stack import NOON, Clock, Told, down
from tests.support.simulated_memcached import SimulatedMemcached, connect_to

PROPOSALS = GenerationKey("acme", "proposal")
NOTES = GenerationKey("acme", "note")
DAY = 24 * 3600.0


class Stack:
    """A process that reads generations; another may share its cache."""

    def __init__(self, entries: MemoryCache | MemcachedCache | None = None) -> None:
        self.clock = Clock()
        self.entries = entries or MemoryCache(clock=self.clock)
        self.asked: list[str] = []
        self.cache = Told("cache", self.entries, self.asked)
        self.generations = Generations(self.cache, lambda: NOON)

    def read(self, *kinds: str) -> tuple[bytes, ...] | None:
        return self.generations.read("acme", kinds or ("proposal",))


def test_what_depends_on_nothing_asks_nobody() -> None:
    stack = Stack()
    assert stack.generations.read("acme", ()) == ()
    assert stack.asked == []


def test_a_generation_is_placed_once_and_lasts() -> None:
    stack = Stack()
    placed = stack.read()
    assert placed is not None
    assert stack.asked == ["cache.read", "cache.lease", "cache.fill"]
    assert stack.entries.read((PROPOSALS,)) == {PROPOSALS: Cached(1, placed[0], NOON)}
    stack.asked.clear()
    stack.clock.now = DAY - 1
    assert stack.read() == placed
    assert Stack(stack.entries).read() == placed
    assert stack.asked == ["cache.read"]


def test_one_that_has_ended_does_not_come_back() -> None:
    stack = Stack()
    seen = set()
    for _ in range(5):
        seen.add(stack.read())
        stack.entries.invalidate((PROPOSALS,))
    stack.read()
    stack.clock.now = DAY + 1
    seen.add(stack.read())
    assert len(seen) == 6


def test_kinds_and_tenants_have_their_own_in_the_order_asked_for() -> None:
    stack = Stack()
    both = stack.read("proposal", "note")
    assert both is not None
    assert stack.read("note", "proposal") == both[::-1]
    stack.entries.invalidate((NOTES,))
    again = stack.read("proposal", "note")
    assert again is not None
    assert again[0] == both[0]
    assert again[1] != both[1]
    assert stack.generations.read("", ("proposal",)) != both[:1]


def test_one_that_was_not_made_to_last_yet_is_the_same_before_and_after() -> None:
    stack = Stack()
    lease = stack.entries.lease((PROPOSALS,))[PROPOSALS]
    assert stack.read() == (lease.nonce,)
    assert stack.entries.fill(PROPOSALS, lease, Cached(1, lease.nonce, NOON), 60)
    assert stack.read() == (lease.nonce,)


def test_who_comes_second_takes_what_the_first_has_placed() -> None:
    stack = Stack()
    first: list[Lease] = []
    stack.cache.before["lease"] = lambda *_: first.append(
        stack.entries.lease((PROPOSALS,))[PROPOSALS]
    )
    assert stack.read() == (first[0].nonce,)


def test_what_was_taken_away_meanwhile_is_not_put_back() -> None:
    stack = Stack()
    stack.cache.before["fill"] = lambda *_: stack.entries.invalidate((PROPOSALS,))
    assert stack.read() is not None
    assert stack.entries.read((PROPOSALS,)) == {}


def test_what_vanishes_before_it_was_read_is_not_known() -> None:
    stack = Stack()
    stack.cache.before["lease"] = lambda *_: stack.entries.lease((PROPOSALS,))
    stack.cache.after["lease"] = lambda: stack.entries.invalidate((PROPOSALS,))
    assert stack.read() is None


@pytest.mark.parametrize("method", ["read", "lease", "fill"])
def test_with_the_cache_down_none_is_known(method: str) -> None:
    stack = Stack()
    stack.cache.before[method] = down(Store.CACHE)
    assert stack.read("proposal", "note") is None


def test_with_one_node_of_two_down_none_is_known_of_kinds_there() -> None:
    nodes = {f"cache{number}:1": SimulatedMemcached() for number in range(2)}
    cache = MemcachedCache(list(nodes), connect=connect_to(nodes), backoff=(0.0, 0.0))
    kinds = [f"kind{number}" for number in range(8)]
    stack = Stack(cache)
    placed = stack.read(*kinds)
    assert placed is not None
    nodes["cache0:1"].reachable = False
    assert stack.read(*kinds) is None
    known = [stack.read(kind) for kind in kinds]
    assert all(one in {None, (nonce,)} for one, nonce in zip(known, placed, strict=True))
    assert None in known, "some are on the node that is down"
    assert known.count(None) < 8, "and some are not"
    nodes["cache0:1"].reachable = True
    assert stack.read(*kinds) == placed


def test_an_entry_that_is_no_generation_is_none() -> None:
    stack = Stack()
    lease = stack.entries.lease((PROPOSALS,))[PROPOSALS]
    stack.entries.fill(PROPOSALS, lease, Cached(0, None, NOON), 60)
    assert stack.read() is None


def test_a_failure_of_ours_is_not_taken_for_one_of_the_cache() -> None:
    stack = Stack()

    def fail(*_: object) -> None:
        raise ValueError("a fault")

    stack.cache.before["read"] = fail
    with pytest.raises(ValueError, match="a fault"):
        stack.read()


def test_the_generations_of_entities_are_those_of_their_kinds_and_tenants_once_each() -> None:
    keys = [
        EntityKey("acme", "proposal", "1"),
        EntityKey("acme", "proposal", "2"),
        EntityKey("acme", "note", "1"),
        EntityKey("", "proposal", "1"),
    ]
    assert list(generations_of(keys)) == [
        PROPOSALS,
        GenerationKey("acme", "note"),
        GenerationKey("", "proposal"),
    ]
