"""Caches with one guard left out, each found by a check that the production cache passes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.storage.cache.memcached import MemcachedCache
from tests.conformance.test_cache import (
    ADDRESS,
    KEY,
    VALUE,
    Engine,
    Time,
    check_a_newer_fill_stays,
    check_an_invalidation_drops_the_fill,
    check_another_lease_drops_the_fill,
    simulated,
    won,
)
from tests.support.simulated_memcached import (
    SimulatedConnection,
    SimulatedMemcached,
    connect_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from duostore_server.domain.entities import Lease
    from duostore_server.domain.keys import CacheKey
    from duostore_server.storage.cache.wire import Connection


def check_a_restart_drops_the_fill(engine: Engine, node: SimulatedMemcached) -> None:
    mine = won(engine.cache)
    node.restart()
    theirs = MemcachedCache([ADDRESS], connect=connect_to({ADDRESS: node})).lease([KEY])
    # Its connection is gone; nothing is left of the lease on a new one either.
    with pytest.raises(StoreUnavailableError):
        engine.cache.fill(KEY, mine, VALUE, 60)
    assert not engine.cache.fill(KEY, mine, VALUE, 60)
    assert engine.cache.read([KEY]) == theirs


def check_an_unheard_delete_is_no_delete(engine: Engine, node: SimulatedMemcached) -> None:
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 60)
    node.reachable = False
    with suppress(StoreUnavailableError):
        engine.cache.invalidate([KEY])
        node.reachable = True
        engine.go_on(2)  # the node is asked again
        assert engine.cache.read([KEY]) == {}


class FillsByPlainSet(MemcachedCache):
    def _swap(
        self,
        connection: Connection,
        name: bytes,
        lease: Lease,  # noqa: ARG002 - what is left out
        value: bytes,
        expire: int,
    ) -> bool:
        assert isinstance(connection, SimulatedConnection)
        connection.set(name, value, expire)
        return True


class FillsWhateverIsThere(MemcachedCache):
    def _swap(
        self,
        connection: Connection,
        name: bytes,
        lease: Lease,  # noqa: ARG002 - what is left out
        value: bytes,
        expire: int,
    ) -> bool:
        found = connection.gets(name)
        return found is not None and connection.cas(name, value, found[1], expire)


class FillsByNumberAlone(MemcachedCache):
    def __init__(self, nodes: Sequence[str], **options: Any) -> None:
        super().__init__(nodes, **options)
        self.numbers: dict[bytes, bytes] = {}

    def _place(self, names: Collection[bytes], connection: Connection) -> Mapping[bytes, Lease]:
        leases = super()._place(names, connection)
        for name, lease in leases.items():
            if found := connection.gets(name):
                self.numbers[lease.nonce] = found[1]
        return leases

    def _swap(
        self, connection: Connection, name: bytes, lease: Lease, value: bytes, expire: int
    ) -> bool:
        return connection.cas(name, value, self.numbers[lease.nonce], expire)


class HearsNoDelete(MemcachedCache):
    """What pymemcache's ``noreply=True`` makes of it: sent, and taken for done."""

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        with suppress(StoreUnavailableError):
            super().invalidate(keys)


def test_a_fill_after_a_restart_is_dropped() -> None:
    check_a_restart_drops_the_fill(*simulated(Time()))


def test_an_unheard_delete_is_raised() -> None:
    engine, node = simulated(Time())
    check_an_unheard_delete_is_no_delete(engine, node)
    assert not node.reachable


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (FillsByPlainSet, check_an_invalidation_drops_the_fill),
        (FillsByPlainSet, check_another_lease_drops_the_fill),
        (FillsByPlainSet, check_a_newer_fill_stays),
        (FillsWhateverIsThere, check_another_lease_drops_the_fill),
        (FillsWhateverIsThere, check_a_newer_fill_stays),
    ],
)
def test_a_fill_that_does_not_look_is_found(
    mutant: type[MemcachedCache], check: Callable[[Engine], None]
) -> None:
    engine, _ = simulated(Time(), mutant)
    with pytest.raises(AssertionError):
        check(engine)


def test_a_fill_by_number_alone_is_found_by_a_restart_and_by_nothing_else() -> None:
    for check in (
        check_an_invalidation_drops_the_fill,
        check_another_lease_drops_the_fill,
        check_a_newer_fill_stays,
    ):
        engine, _ = simulated(Time(), FillsByNumberAlone)
        check(engine)
    with pytest.raises(AssertionError):
        check_a_restart_drops_the_fill(*simulated(Time(), FillsByNumberAlone))


def test_a_delete_that_is_not_heard_is_found() -> None:
    with pytest.raises(AssertionError):
        check_an_unheard_delete_is_no_delete(*simulated(Time(), HearsNoDelete))
