"""Nodes that are given by name, and resolvers that are slow, wrong or gone."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import StoreTimeoutError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.probes import MemcachedProbe
from duostore_server.storage.cache.resolver import Resolver, system_lookup
from duostore_server.storage.cache.wire import Connector
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duostore_server.storage.cache.resolver import Address
    from tests.support.servers import MemcachedServer

KEY = EntityKey("acme", "proposal", "p-1")
LONG = 30.0


class Names:
    """A lookup that a test makes hang or fail."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0

    def __call__(self, _host: str, port: int) -> Sequence[Address]:
        self.asked += 1
        host, error = self.host, self.error
        assert self.answers.wait(LONG)
        if error is not None:
            raise error
        return system_lookup(host, port)


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    yield names
    names.answers.set()


def test_a_resolver_that_hangs_holds_nobody(names: Names) -> None:
    names.answers.clear()
    cache = MemcachedCache(["cache.example:11211"], connect=Connector(lookup=names))
    began = time.monotonic()
    with cache:
        with pytest.raises(StoreTimeoutError):
            cache.read([KEY])
        for _ in range(200):
            with pytest.raises(StoreTimeoutError):
                cache.invalidate([KEY])
    probe = MemcachedProbe(["cache.example:11211"], connect=Connector(lookup=names))
    with pytest.raises(StoreTimeoutError):
        probe.ping(Deadline.after(5))
    # To wait for it in each of the invalidations would be 10 s.
    assert time.monotonic() - began < 5
    assert names.asked == 2


def test_the_last_address_is_used_while_the_resolver_hangs_or_fails(
    names: Names, memcached: MemcachedServer
) -> None:
    node = f"cache.example:{memcached.address.rpartition(':')[2]}"
    connect = Connector(lookup=names)

    def ask(connect_timeout: float) -> None:
        # A new cache, since a kept connection needs no address.
        with MemcachedCache(
            [node], connect_timeout=connect_timeout, timeout=LONG, connect=connect
        ) as cache:
            cache.invalidate([KEY])

    ask(LONG)
    names.error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    ask(LONG)
    names.answers.clear()
    ask(1.0)
    assert names.asked == 3


def test_an_address_that_has_changed_is_used(names: Names) -> None:
    resolver = Resolver("cache.example", 11211, names)
    assert resolver.address(LONG)[4] == ("127.0.0.1", 11211)
    names.host = "127.0.0.2"
    assert resolver.address(LONG)[4] == ("127.0.0.2", 11211)
    # One that comes late is not lost.
    names.host = "127.0.0.3"
    names.answers.clear()
    assert resolver.address(0.01)[4] == ("127.0.0.2", 11211)
    names.error = OSError()
    names.answers.set()
    eventually(
        lambda: resolver.address(LONG)[4] == ("127.0.0.3", 11211), within=5, what="it is noted"
    )


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "unknown"), UnicodeError("label too long")]
)
def test_a_name_that_is_unknown_is_an_error_and_is_asked_for_again(
    names: Names, memcached: MemcachedServer, error: Exception
) -> None:
    names.error = error
    node = f"cache.example:{memcached.address.rpartition(':')[2]}"
    with MemcachedCache(
        [node], connect_timeout=LONG, timeout=LONG, connect=Connector(lookup=names)
    ) as cache:
        with pytest.raises(StoreUnavailableError):
            cache.invalidate([KEY])
        names.error = None
        cache.invalidate([KEY])


def test_an_ip_address_is_looked_up_by_nobody_else(names: Names) -> None:
    threads: list[int] = []

    def lookup(host: str, port: int) -> Sequence[Address]:
        threads.append(threading.get_ident())
        return names(host, port)

    assert Resolver("127.0.0.1", 1, lookup).address(0.0)[4] == ("127.0.0.1", 1)
    assert Resolver("::1", 1, system_lookup).address(0.0)[4][:2] == ("::1", 1)
    assert threads == [threading.get_ident()]
