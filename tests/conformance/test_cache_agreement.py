"""The engines of the cache against each other, over sequences that nobody thought of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from duostore_server.domain.entities import Cached, Lease
from tests.conformance.test_cache import NOW, Time, in_memory, key_of, simulated

if TYPE_CHECKING:
    from duostore_server.domain.keys import EntityKey

KEYS = [key_of(1), key_of(2)]


class Engines(RuleBasedStateMachine):
    """The in-process cache and the one on memcached, given the same work."""

    keys = st.sampled_from(KEYS)

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.one, _ = simulated(self.time)
        self.other = in_memory(self.time)
        # The same lease, as each engine names it.
        self.leases: list[tuple[EntityKey, Lease, Lease]] = []

    @rule(keys=st.lists(keys, unique=True))
    def lease(self, keys: list[EntityKey]) -> None:
        ones, others = self.one.cache.lease(keys), self.other.cache.lease(keys)
        assert ones.keys() == others.keys()
        self.leases += [(key, ones[key], others[key]) for key in ones]

    @rule(
        data=st.data(),
        version=st.integers(1, 4),
        shape=st.integers(1, 3),
        ttl=st.integers(1, 20),
        absent=st.booleans(),
    )
    def fill(
        self, data: st.DataObject, version: int, shape: int, ttl: int, *, absent: bool
    ) -> None:
        if self.leases:
            key, one, other = data.draw(st.sampled_from(self.leases))
            entry = Cached(version, None if absent else b"payload", NOW, shape=shape)
            filled = self.one.cache.fill(key, one, entry, ttl)
            assert filled == self.other.cache.fill(key, other, entry, ttl)

    @rule(keys=st.lists(keys, unique=True))
    def invalidate(self, keys: list[EntityKey]) -> None:
        self.one.cache.invalidate(keys)
        self.other.cache.invalidate(keys)

    @rule(key=keys)
    def evict(self, key: EntityKey) -> None:
        self.one.evict(key)
        self.other.evict(key)

    @rule(seconds=st.sampled_from([0.5, 1, 4, 10]))
    def wait(self, seconds: float) -> None:
        self.time.go_on(seconds)

    @invariant()
    def both_hold_the_same(self) -> None:
        names = {one: other for _, one, other in self.leases}

        def as_other(found: Cached | Lease | None) -> Cached | Lease | None:
            return names[found] if isinstance(found, Lease) else found

        seen = {key: as_other(peeked.entry) for key, peeked in self.one.cache.peek(KEYS).items()}
        others = {key: peeked.entry for key, peeked in self.other.cache.peek(KEYS).items()}
        assert seen == others
        ones = {key: as_other(found) for key, found in self.one.cache.read(KEYS).items()}
        assert ones == self.other.cache.read(KEYS) == seen


Engines.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
test_the_engines_agree = Engines.TestCase
