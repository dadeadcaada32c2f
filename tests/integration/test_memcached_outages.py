"""The cache on real memcached servers that stop, hang and come back."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.probes import MemcachedProbe
from tests.support.servers import MemcachedServer, running
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.storage.cache.nodes import Node
    from duostore_server.storage.cache.wire import Connection

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEYS = [EntityKey("acme", "proposal", f"p-{n}") for n in range(40)]
KEY = KEYS[0]
VALUE = Cached(1, b"payload", NOW)
THREADS = 16

# On a busy machine a healthy server may be late; a test that is about something else waits.
PATIENT = 5.0


@pytest.fixture
def server() -> Iterator[MemcachedServer]:
    with running(MemcachedServer()) as server:
        yield server


def fill(cache: MemcachedCache, key: EntityKey = KEY) -> None:
    cache.invalidate([key])
    assert cache.fill(key, cache.lease([key])[key], VALUE, 60)


def at_once(work: Callable[[], object]) -> list[object]:
    """Do the work in 16 threads at the same time; return what came of it or was raised."""
    together = Barrier(THREADS)

    def do(_: int) -> object:
        together.wait(timeout=30)
        try:
            return work()
        except StoreError as error:
            return type(error)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(do, range(THREADS)))


def keep_connections(node: Node, count: int) -> None:
    """Have so many connections in use at the same time, and kept from then on."""

    def use(connection: Connection) -> None:
        connection.version()
        if count > 1:
            keep_connections(node, count - 1)

    node.call(use)


def test_no_caller_notices_a_restart_but_by_a_vacant_key(server: MemcachedServer) -> None:
    with MemcachedCache([server.address], timeout=PATIENT, connect_timeout=PATIENT) as cache:
        operations: list[Callable[[], object]] = [
            lambda: cache.read([KEY]),
            lambda: cache.lease([KEY]),
            lambda: cache.invalidate([KEY]),
        ]
        for operation in operations:
            fill(cache)
            keep_connections(cache._nodes[0], THREADS)
            server.kill()
            server.start()
            # Each of the kept connections fails once, and all are used at once.
            answers = at_once(operation)
            assert not any(isinstance(answer, type) for answer in answers)
            assert cache.read([KEY]).get(KEY) != VALUE


def test_a_lease_from_before_a_restart_fills_nothing(server: MemcachedServer) -> None:
    with MemcachedCache([server.address], timeout=PATIENT, connect_timeout=PATIENT) as cache:
        lease = cache.lease([KEY])[KEY]
        server.kill()
        server.start()
        with pytest.raises(StoreUnavailableError):
            cache.fill(KEY, lease, VALUE, 60)
        other = cache.lease([KEY])
        # On the new server the other lease has the CAS number that this one had.
        assert not cache.fill(KEY, lease, VALUE, 60)
        assert cache.read([KEY]) == other


def test_a_server_that_is_down_is_an_error_until_it_is_back(server: MemcachedServer) -> None:
    with MemcachedCache([server.address], connect_timeout=PATIENT, timeout=PATIENT) as cache:
        fill(cache)
        server.stop()
        assert at_once(lambda: cache.read([KEY])) == [StoreUnavailableError] * THREADS
        with pytest.raises(StoreUnavailableError):
            cache.invalidate([KEY])
        with pytest.raises(StoreUnavailableError):
            MemcachedProbe([server.address]).ping(Deadline.after(5))
        server.start()
        MemcachedProbe([server.address], timeout=PATIENT).ping(Deadline.after(5))

        def answers() -> bool:
            try:
                return cache.read([KEY]) == {}
            except StoreUnavailableError:
                return False

        eventually(answers, within=5, what="the server is asked again")
        fill(cache)


def test_a_server_that_hangs_costs_a_timeout_and_then_nothing(server: MemcachedServer) -> None:
    now = 0.0
    with MemcachedCache([server.address], timeout=0.2, clock=lambda: now) as cache:
        # So patient a fill, that only the pause can make it fail.
        eventually(lambda: _fills(cache), within=10, what="the entry is filled")
        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises(StoreTimeoutError):
                cache.read([KEY])
            assert time.monotonic() - began >= 0.19
            began = time.monotonic()
            for _ in range(100):
                with pytest.raises(StoreUnavailableError):
                    cache.read([KEY])
                with pytest.raises(StoreUnavailableError):
                    cache.lease([KEY])
            # One more timeout each would be 40 s.
            assert time.monotonic() - began < 5
            # An invalidation is tried for real, and is bounded too.
            with pytest.raises(StoreTimeoutError):
                cache.invalidate([KEY])
            with pytest.raises(StoreTimeoutError):
                MemcachedProbe([server.address]).ping(Deadline.after(5))
        finally:
            server.resume()
        # What was in the server when it was paused is there again, and what was sent
        # meanwhile may take effect: both are as if they had come later.
        eventually(lambda: _fills(cache), within=10, what="the server is used again")


def _fills(cache: MemcachedCache) -> bool:
    try:
        fill(cache)
    except (StoreError, KeyError):
        return False
    return cache.read([KEY]) == {KEY: VALUE}


def test_of_two_servers_the_one_that_is_down_is_bypassed(server: MemcachedServer) -> None:
    bypassed: list[str] = []
    with (
        running(MemcachedServer()) as second,
        MemcachedCache(
            [server.address, second.address],
            connect_timeout=PATIENT,
            timeout=PATIENT,
            on_bypass=lambda operation, _error: bypassed.append(operation),
        ) as cache,
        MemcachedCache([second.address], timeout=PATIENT) as alone,
    ):
        for key in KEYS:
            fill(cache, key)
        assert cache.read(KEYS) == dict.fromkeys(KEYS, VALUE)
        theirs = list(alone.read(KEYS))
        ours = [key for key in KEYS if key not in theirs]
        assert ours
        assert theirs

        second.stop()
        assert cache.read(KEYS) == dict.fromkeys(ours, VALUE)
        assert bypassed == ["read"]
        # Nobody takes its keys over.
        assert cache.lease(theirs[:1] + ours) == {}
        with pytest.raises(StoreUnavailableError):
            cache.fill(theirs[0], Lease(b"n" * 16), VALUE, 60)
        with MemcachedCache([server.address], timeout=PATIENT) as first_alone:
            assert first_alone.read(theirs) == {}
        # A Save is not told that its invalidation was heard, so its outbox row stays and
        # the projector tries until it is; what the server holds lives no longer than its
        # TTL even so.
        with pytest.raises(StoreUnavailableError):
            cache.invalidate(KEYS)
        assert cache.read(ours) == {}

        second.start()
        cache.invalidate(KEYS)
        fill(cache, theirs[0])
        assert cache.read(KEYS) == {theirs[0]: VALUE}
