"""The cache on memcached when answers are lost, late, or never come: on simulated nodes."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.entries import encode
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.cache.memcached import MemcachedCache
from tests.support.simulated_memcached import (
    Delivery,
    Fault,
    SimulatedConnection,
    SimulatedMemcached,
    connect_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from duostore_server.storage.cache.wire import Connection

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEY = EntityKey("acme", "proposal", "p-1")
NAME = Namespace("duostore").key(KEY)
OLD = Cached(1, b"old", NOW)
NEW = Cached(2, b"new", NOW)


class Setting:
    """One node or several, a cache on them, and all that the test wants to look at."""

    def __init__(self, nodes: int = 1, kind: type[MemcachedCache] = MemcachedCache) -> None:
        self.now = 100.0
        self.steps: list[str] = []
        self.nodes = [
            SimulatedMemcached(step=self.steps.append, clock=lambda: self.now) for _ in range(nodes)
        ]
        self.node = self.nodes[0]
        self.bypassed: list[tuple[str, StoreError]] = []
        self.connect = connect_to({f"cache:{n}": node for n, node in enumerate(self.nodes)})
        self.cache = self.another(kind)

    def another(self, kind: type[MemcachedCache] = MemcachedCache) -> MemcachedCache:
        return kind(
            [f"cache:{n}" for n in range(len(self.nodes))],
            connect=self.connect,
            clock=lambda: self.now,
            uniform=lambda low, high: (low + high) / 2,
            backoff=(0.4, 0.6),
            on_bypass=lambda operation, error: self.bypassed.append((operation, error)),
        )

    def fault_once(self, command: str, fault: Fault) -> None:
        """Let the next ``command`` go wrong."""

        def fault_of(label: str) -> Fault | None:
            if not label.startswith(f"{command} "):
                return None
            self.node.fault = lambda _: None
            return fault

        self.node.fault = fault_of

    def before_once(self, command: str, action: Callable[[], object]) -> None:
        """Do something just before the next ``command`` takes effect."""

        def step(label: str) -> None:
            if label.startswith(f"{command} "):
                self.node.step = self.steps.append
                action()

        self.node.step = step

    def fill(self, key: EntityKey = KEY, entry: Cached = OLD) -> None:
        assert self.cache.fill(key, self.cache.lease([key])[key], entry, 60)


RESET = Fault(ConnectionResetError())


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError()])
@pytest.mark.parametrize("delivery", list(Delivery))
def test_a_read_is_repeated_on_a_new_connection(error: Exception, delivery: Delivery) -> None:
    setting = Setting()
    setting.fill()
    setting.fault_once("get", Fault(error, delivery))
    assert setting.cache.read([KEY]) == {KEY: OLD}
    assert setting.node.opened == 2


@pytest.mark.parametrize("delivery", list(Delivery))
def test_an_invalidation_is_repeated_on_a_new_connection(delivery: Delivery) -> None:
    setting = Setting()
    setting.fill()
    setting.fault_once("delete", Fault(ConnectionResetError(), delivery))
    setting.cache.invalidate([KEY])
    assert setting.node.item(NAME) is None


def test_nothing_is_repeated_twice_nor_on_a_connection_that_was_new() -> None:
    setting = Setting()
    setting.fill()
    setting.node.fault = lambda _: RESET
    setting.steps.clear()
    with pytest.raises(StoreUnavailableError):
        setting.cache.invalidate([KEY])
    assert len(setting.steps) == 2
    # No connection is kept any more.
    with pytest.raises(StoreUnavailableError):
        setting.cache.invalidate([KEY])
    assert len(setting.steps) == 3


def test_nothing_is_repeated_after_a_timeout() -> None:
    setting = Setting()
    setting.fill()
    setting.steps.clear()
    setting.fault_once("delete", Fault(TimeoutError()))
    with pytest.raises(StoreTimeoutError):
        setting.cache.invalidate([KEY])
    assert len(setting.steps) == 1


def test_a_restart_costs_one_kept_connection_its_command_and_no_caller_an_error() -> None:
    setting = Setting()
    setting.fill()
    setting.node.restart()
    assert setting.cache.read([KEY]) == {}
    assert setting.node.opened == 2
    setting.fill()
    assert setting.node.opened == 2


def test_a_fill_ends_with_the_connection_that_looked_for_the_nonce() -> None:
    check_the_fill_keeps_to_one_connection(MemcachedCache)


def test_a_fill_over_two_connections_is_found() -> None:
    with pytest.raises(AssertionError):
        check_the_fill_keeps_to_one_connection(SwapsOnAnyConnection)


def check_the_fill_keeps_to_one_connection(kind: type[MemcachedCache]) -> None:
    """Between its gets and its cas the node restarts, and the CAS number comes up again."""
    setting = Setting(kind=kind)
    lease = setting.cache.lease([KEY])[KEY]
    newer = encode(NEW, compress_above=100)

    def restart_and_fill() -> None:
        setting.node.restart()
        setting.node.put(NAME, newer, 60)

    setting.before_once("cas", restart_and_fill)
    with suppress(StoreUnavailableError):
        assert not setting.cache.fill(KEY, lease, OLD, 60)
    assert setting.cache.read([KEY]) == {KEY: NEW}


class SwapsOnAnyConnection(MemcachedCache):
    """Looks for its nonce, and replaces by ``cas``, but begins anew if a connection is closed."""

    def _swap(
        self, connection: Connection, name: bytes, lease: Lease, value: bytes, expire: int
    ) -> bool:
        found = connection.gets(name)
        if found is None or found[0] != self._encoded(lease):
            return False
        try:
            return connection.cas(name, value, found[1], expire)
        except ConnectionResetError:
            assert isinstance(connection, SimulatedConnection)
            return connection._node.connect().cas(name, value, found[1], expire)


def test_a_lease_whose_answer_was_lost_is_not_granted() -> None:
    setting = Setting()
    setting.cache.read([KEY])
    setting.fault_once("add", RESET)
    assert setting.cache.lease([KEY]) == {}
    # It lapses by itself, since nobody holds it.
    setting.now += 10
    setting.fill()


def test_a_lease_that_was_never_placed_is_placed_on_a_new_connection() -> None:
    setting = Setting()
    setting.cache.read([KEY])
    setting.fault_once("add", Fault(ConnectionResetError(), Delivery.LOST))
    assert setting.cache.lease([KEY]).keys() == {KEY}


def test_a_lease_that_comes_late_gives_nobody_a_right() -> None:
    check_a_late_lease_gives_no_right(MemcachedCache)


def test_a_nonce_that_is_sent_again_is_found() -> None:
    with pytest.raises(AssertionError):
        check_a_late_lease_gives_no_right(SendsItsNonceAgain)


def check_a_late_lease_gives_no_right(kind: type[MemcachedCache]) -> None:
    """The first add arrives after the second was invalidated."""
    setting = Setting(kind=kind)
    setting.cache.read([KEY])
    setting.fault_once("add", Fault(ConnectionResetError(), Delivery.LATE))
    lease = setting.cache.lease([KEY])[KEY]
    # Here the old version is read at the source. Then a newer one is written:
    setting.another().invalidate([KEY])
    setting.node.deliver()
    assert not setting.cache.fill(KEY, lease, OLD, 60)
    assert OLD not in setting.cache.read([KEY]).values()


class SendsItsNonceAgain(MemcachedCache):
    sent: Mapping[bytes, Lease] | None = None

    def _place(self, names: Collection[bytes], connection: Connection) -> Mapping[bytes, Lease]:
        if self.sent is None:
            self.sent = {name: Lease(self._nonces()) for name in names}
        values = {name: self._encoded(lease) for name, lease in self.sent.items()}
        return {name: self.sent[name] for name in connection.add_many(values, 10)}


@pytest.mark.parametrize("delivery", list(Delivery))
@pytest.mark.parametrize("command", ["gets", "cas"])
def test_a_fill_whose_answer_was_lost_puts_nothing_over_a_newer_entry(
    command: str, delivery: Delivery
) -> None:
    setting = Setting()
    lease = setting.cache.lease([KEY])[KEY]
    setting.fault_once(command, Fault(TimeoutError(), delivery))
    with pytest.raises(StoreTimeoutError):
        setting.cache.fill(KEY, lease, OLD, 60)
    other = setting.another()
    other.invalidate([KEY])
    assert other.fill(KEY, other.lease([KEY])[KEY], NEW, 60)
    setting.node.deliver()
    assert other.read([KEY]) == {KEY: NEW}


def test_a_connection_is_not_kept_if_its_command_was_given_up() -> None:
    class GivenUpError(BaseException):
        pass

    def give_up() -> None:
        raise GivenUpError

    setting = Setting()
    setting.fill()
    setting.before_once("get", give_up)
    with pytest.raises(GivenUpError):
        setting.cache.read([KEY])
    assert setting.cache.read([KEY]) == {KEY: OLD}
    assert (setting.node.opened, setting.node.closed) == (2, 1)
