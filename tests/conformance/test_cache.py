"""What every engine of the cache promises.

Left out, by engine: ``memory`` keeps objects, not bytes, so that nothing of it can be
damaged; on ``memcached`` time cannot be moved on, so that the 10 s of a lease are looked
at in ``tests/integration/test_memcached_answers.py``.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pymemcache.client.base import Client  # type: ignore[import-untyped]

from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.cache.leases import LEASE_SECONDS
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.memory import MemoryCache
from tests.support.simulated_memcached import SimulatedMemcached, connect_to
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from duostore_server.domain.ports import Cache
    from tests.support.servers import MemcachedServer

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
KEY = EntityKey("acme", "proposal", "p-1")
VALUE = Cached(3, b"the third version", NOW)
NEWER = Cached(4, b"the fourth version", NOW)
ADDRESS = "cache:11211"


def key_of(number: int) -> EntityKey:
    return EntityKey("acme", "proposal", f"p-{number}")


@dataclass
class Time:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.now += seconds


def let_pass(_seconds: float) -> None:
    """Leave it to ``eventually``."""


@dataclass
class Engine:
    cache: Cache
    evict: Callable[[EntityKey], None]
    go_on: Callable[[float], None]
    damage: Callable[[EntityKey, bytes], None]


def on_memcached(address: str) -> Iterator[Engine]:
    name = f"test-{secrets.token_hex(4)}"
    key = Namespace(name).key
    bare = Client(address, timeout=5, default_noreply=False)
    with closing(bare), MemcachedCache([address], namespace=name, timeout=5) as cache:
        yield Engine(
            cache=cache,
            evict=lambda entity: bare.delete(key(entity)),
            go_on=let_pass,
            damage=lambda entity, raw: bare.set(key(entity), raw),
        )


def simulated(
    time: Time, kind: type[MemcachedCache] = MemcachedCache
) -> tuple[Engine, SimulatedMemcached]:
    node = SimulatedMemcached(clock=time)
    key = Namespace("duostore").key
    engine = Engine(
        cache=kind([ADDRESS], connect=connect_to({ADDRESS: node}), clock=time),
        evict=lambda entity: node.evict(key(entity)),
        go_on=time.go_on,
        damage=lambda entity, raw: node.put(key(entity), raw, 0),
    )
    return engine, node


def in_memory(time: Time) -> Engine:
    cache = MemoryCache(clock=time)

    def evict(entity: EntityKey) -> None:
        with cache._lock:
            cache._remove(entity)

    def damage(_entity: EntityKey, _raw: bytes) -> None:
        raise AssertionError("nothing can be damaged here")

    return Engine(cache, evict, time.go_on, damage)


@pytest.fixture(params=["memcached", "simulated", "memory"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "memcached":
        server: MemcachedServer = request.getfixturevalue("memcached")
        yield from on_memcached(server.address)
    elif request.param == "simulated":
        yield simulated(Time())[0]
    else:
        yield in_memory(Time())


only_bytes = pytest.mark.parametrize("engine", ["memcached", "simulated"], indirect=True)
only_clocked = pytest.mark.parametrize("engine", ["simulated", "memory"], indirect=True)


def won(cache: Cache, key: EntityKey = KEY) -> Lease:
    return cache.lease([key])[key]


# What test_cache_mutants.py shows its mutants to fail.


def check_another_lease_drops_the_fill(engine: Engine) -> None:
    mine = won(engine.cache)
    engine.cache.invalidate([KEY])
    theirs = won(engine.cache)
    assert not engine.cache.fill(KEY, mine, VALUE, 60)
    assert engine.cache.read([KEY]) == {KEY: theirs}


def check_a_newer_fill_stays(engine: Engine) -> None:
    mine = won(engine.cache)
    engine.cache.invalidate([KEY])
    assert engine.cache.fill(KEY, won(engine.cache), NEWER, 60)
    assert not engine.cache.fill(KEY, mine, VALUE, 60)
    assert engine.cache.read([KEY]) == {KEY: NEWER}


def check_an_invalidation_drops_the_fill(engine: Engine) -> None:
    mine = won(engine.cache)
    engine.cache.invalidate([KEY])
    assert not engine.cache.fill(KEY, mine, VALUE, 60)
    assert engine.cache.read([KEY]) == {}


def test_a_vacant_key_is_left_out(engine: Engine) -> None:
    assert engine.cache.read([KEY, key_of(2)]) == {}


def test_no_keys_are_no_work(engine: Engine) -> None:
    assert engine.cache.read([]) == {}
    assert engine.cache.lease([]) == {}
    engine.cache.invalidate([])


def test_one_of_16_threads_wins_the_lease(engine: Engine) -> None:
    together = threading.Barrier(16)

    def try_to_lease(_: int) -> Mapping[EntityKey, Lease]:
        together.wait(timeout=30)
        return engine.cache.lease([KEY])

    for _ in range(20):
        engine.cache.invalidate([KEY])
        with ThreadPoolExecutor(16) as pool:
            leases = [lease for lease in pool.map(try_to_lease, range(16)) if lease]
        assert len(leases) == 1
        assert engine.cache.read([KEY]) == leases[0]


def test_nonces_are_never_the_same(engine: Engine) -> None:
    leases = engine.cache.lease([key_of(n) for n in range(100)])
    assert len({lease.nonce for lease in leases.values()}) == 100
    assert {len(lease.nonce) for lease in leases.values()} == {16}


def test_only_vacant_keys_are_leased(engine: Engine) -> None:
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 60)
    leased = won(engine.cache, key_of(2))
    granted = engine.cache.lease([KEY, key_of(2), key_of(3)])
    assert list(granted) == [key_of(3)]
    assert engine.cache.read([KEY, key_of(2), key_of(3)]) == {
        KEY: VALUE,
        key_of(2): leased,
        key_of(3): granted[key_of(3)],
    }


def test_a_filled_lease_is_the_entry(engine: Engine) -> None:
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 60)
    assert engine.cache.read([KEY]) == {KEY: VALUE}


@pytest.mark.parametrize("version", [0, 7, 2**63 - 1])
def test_an_absent_entity_is_remembered_with_its_version(engine: Engine, version: int) -> None:
    absent = Cached(version, None, NOW)
    assert engine.cache.fill(KEY, won(engine.cache), absent, 10)
    assert engine.cache.read([KEY]) == {KEY: absent}


@pytest.mark.parametrize("version", [0, 7])
def test_what_is_absent_may_expire_too(engine: Engine, version: int) -> None:
    absent = Cached(version, None, NOW, NOW + timedelta(microseconds=1))
    assert engine.cache.fill(KEY, won(engine.cache), absent, 10)
    assert engine.cache.read([KEY]) == {KEY: absent}


@pytest.mark.parametrize("ahead", [timedelta(microseconds=1), timedelta(days=365)])
def test_an_entry_keeps_when_its_entity_expires(engine: Engine, ahead: timedelta) -> None:
    entry = Cached(3, b"the third version", NOW, NOW + ahead)
    assert engine.cache.fill(KEY, won(engine.cache), entry, 60)
    assert engine.cache.read([KEY]) == {KEY: entry}


@pytest.mark.parametrize("shape", [1, 2, 100])
@pytest.mark.parametrize("payload", [b"short", b"all work and no play " * 10_000, None])
def test_an_entry_keeps_its_shape(engine: Engine, shape: int, payload: bytes | None) -> None:
    entry = Cached(3, payload, NOW, NOW + timedelta(days=1), shape)
    assert engine.cache.fill(KEY, won(engine.cache), entry, 60)
    assert engine.cache.read([KEY]) == {KEY: entry}


def test_a_look_finds_what_is_there(engine: Engine) -> None:
    absent = Cached(7, None, NOW, shape=2)
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 60)
    assert engine.cache.fill(key_of(2), won(engine.cache, key_of(2)), absent, 60)
    lease = won(engine.cache, key_of(3))
    found = engine.cache.peek([key_of(n) for n in range(1, 5)])
    entries = {key: peeked.entry for key, peeked in found.items()}
    assert entries == {KEY: VALUE, key_of(2): absent, key_of(3): lease}
    assert all(peeked.stored_bytes > 0 for peeked in found.values())
    payload = VALUE.payload or b""
    assert found[KEY].stored_bytes == found[key_of(2)].stored_bytes + len(payload)
    assert engine.cache.peek([]) == {}


def test_a_look_changes_nothing(engine: Engine) -> None:
    """A vacant key stays vacant, and a lease that was looked at is still its holder's."""
    mine = won(engine.cache)
    for _ in range(2):
        assert engine.cache.peek([KEY, key_of(2)]).keys() == {KEY}
    assert engine.cache.fill(KEY, mine, VALUE, 60)
    assert engine.cache.peek([KEY])[KEY].entry == VALUE
    assert engine.cache.read([KEY, key_of(2)]) == {KEY: VALUE}


@only_clocked
def test_a_look_finds_nothing_of_what_has_expired(engine: Engine) -> None:
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 5)
    engine.go_on(4.99)
    assert engine.cache.peek([KEY])[KEY].entry == VALUE
    engine.go_on(0.02)
    assert engine.cache.peek([KEY]) == {}


@only_bytes
@pytest.mark.parametrize("raw", [b"", b"\xd5\x01" + b"\0" * 38, b"left by others"])
def test_a_look_leaves_what_cannot_be_read(engine: Engine, raw: bytes) -> None:
    sound = won(engine.cache, key_of(2))
    engine.damage(KEY, raw)
    for _ in range(2):
        found = engine.cache.peek([KEY, key_of(2)])
        assert found[KEY].entry is None
        assert found[KEY].stored_bytes > len(raw)
        assert found[key_of(2)].entry == sound


def test_a_look_says_so_if_a_node_does_not_answer() -> None:
    """What cannot be looked at is not vacant, though readers take it for that."""
    time = Time()
    nodes = {f"cache-{n}:11211": SimulatedMemcached(clock=time) for n in range(2)}
    told: list[str] = []
    cache = MemcachedCache(
        list(nodes),
        connect=connect_to(nodes),
        clock=time,
        on_bypass=lambda operation, _: told.append(operation),
        on_unreadable=lambda: told.append("unreadable"),
    )
    keys = [key_of(n) for n in range(20)]
    cache.lease(keys)
    first, second = nodes.values()
    at_second = [key for key in keys if second.item(Namespace("duostore").key(key))]
    assert 0 < len(at_second) < len(keys)
    second.put(Namespace("duostore").key(at_second[0]), b"damaged", 0)
    assert cache.peek(keys).keys() == set(keys)
    for down, up in ((first, second), (second, first)):
        down.reachable = False
        with pytest.raises(StoreUnavailableError):
            cache.peek(keys)
        assert up.reachable
        down.reachable = True
        time.go_on(2)
    second.reachable = False
    at_first = [key for key in keys if key not in at_second]
    assert cache.peek(at_first).keys() == set(at_first)
    assert told == []


def test_memory_keeps_nothing_longer_for_being_looked_at() -> None:
    cache = MemoryCache(max_entries=2)
    for n in range(2):
        assert cache.fill(key_of(n), won(cache, key_of(n)), VALUE, 60)
    cache.peek([key_of(0)])
    won(cache, key_of(2))
    assert set(cache.peek([key_of(n) for n in range(3)])) == {key_of(1), key_of(2)}


def test_a_fill_without_a_lease_is_dropped(engine: Engine) -> None:
    assert not engine.cache.fill(KEY, Lease(os.urandom(16)), VALUE, 60)
    assert engine.cache.read([KEY]) == {}


def test_a_fill_after_an_invalidation_is_dropped(engine: Engine) -> None:
    check_an_invalidation_drops_the_fill(engine)


def test_a_fill_under_anothers_lease_is_dropped(engine: Engine) -> None:
    check_another_lease_drops_the_fill(engine)


def test_a_fill_after_anothers_fill_is_dropped(engine: Engine) -> None:
    check_a_newer_fill_stays(engine)


def test_a_fill_after_an_eviction_is_dropped(engine: Engine) -> None:
    mine = won(engine.cache)
    engine.evict(KEY)
    assert not engine.cache.fill(KEY, mine, VALUE, 60)
    assert engine.cache.read([KEY]) == {}


def test_a_fill_may_be_repeated(engine: Engine) -> None:
    lease = won(engine.cache)
    assert engine.cache.fill(KEY, lease, VALUE, 60)
    assert not engine.cache.fill(KEY, lease, VALUE, 60)
    assert engine.cache.read([KEY]) == {KEY: VALUE}


def test_an_invalidation_takes_entries_leases_and_nothing(engine: Engine) -> None:
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 60)
    won(engine.cache, key_of(2))
    kept = won(engine.cache, key_of(4))
    for _ in range(2):
        engine.cache.invalidate([KEY, key_of(2), key_of(3)])
        assert engine.cache.read([key_of(n) for n in range(1, 5)]) == {key_of(4): kept}


@only_clocked
def test_a_lease_lapses_and_so_does_the_right_to_fill(engine: Engine) -> None:
    mine = won(engine.cache)
    engine.go_on(LEASE_SECONDS - 0.01)
    assert engine.cache.lease([KEY]) == {}
    engine.go_on(0.02)
    assert engine.cache.read([KEY]) == {}
    theirs = won(engine.cache)
    assert not engine.cache.fill(KEY, mine, VALUE, 60)
    assert engine.cache.read([KEY]) == {KEY: theirs}


def test_an_entry_expires(engine: Engine) -> None:
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 1)
    assert engine.cache.fill(key_of(2), won(engine.cache, key_of(2)), VALUE, 3600)
    engine.go_on(1)
    eventually(lambda: KEY not in engine.cache.read([KEY]), within=5, what="the entry is gone")
    assert engine.cache.read([key_of(2)]) == {key_of(2): VALUE}
    won(engine.cache)


@pytest.mark.parametrize("seconds", [31 * 24 * 3600.0, 1e9])
def test_a_long_ttl_is_no_date_in_the_past(engine: Engine, seconds: float) -> None:
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, seconds)
    assert engine.cache.read([KEY]) == {KEY: VALUE}


@pytest.mark.parametrize(
    "key",
    [
        EntityKey("", "k", "1"),
        EntityKey("acme", "k", "with spaces and #hashes#"),
        EntityKey("Ünïcode", "köln", "猫\N{CAT FACE}"),
        EntityKey("t" * 64, "k" * 64, "x" * 512),
        EntityKey("é" * 32, "é" * 32, "é" * 256),
        EntityKey("acme", "k", "x" * 230),
        EntityKey("acme", "k", "\u2028\u00a0\ufeff"),
        EntityKey("acme", "k", "%00\\r\\n"),
    ],
    ids=["no-tenant", "spaces", "unicode", "ascii-640", "utf8-640", "250", "separators", "escapes"],
)
def test_any_key_that_the_domain_allows(engine: Engine, key: EntityKey) -> None:
    alike = EntityKey(key.tenant, key.kind, key.id + "'")
    lease = won(engine.cache, key)
    assert engine.cache.fill(key, lease, VALUE, 60)
    assert engine.cache.read([key, alike]) == {key: VALUE}
    engine.cache.invalidate([alike])
    assert engine.cache.read([key]) == {key: VALUE}
    engine.cache.invalidate([key])
    assert engine.cache.read([key]) == {}


@only_bytes
@pytest.mark.parametrize("raw", [b"", b"\0" * 40, b"\xd5\x01" + b"\0" * 38, b"left by others"])
def test_an_entry_that_cannot_be_read_is_removed(engine: Engine, raw: bytes) -> None:
    sound = won(engine.cache, key_of(2))
    engine.damage(KEY, raw)
    assert engine.cache.read([KEY, key_of(2)]) == {key_of(2): sound}
    assert engine.cache.fill(KEY, won(engine.cache), VALUE, 60)
    assert engine.cache.read([KEY]) == {KEY: VALUE}


def test_a_large_entry_is_kept(engine: Engine) -> None:
    large = Cached(1, random.Random(1).randbytes(1_040_000), NOW)
    assert engine.cache.fill(KEY, won(engine.cache), large, 60)
    assert engine.cache.read([KEY]) == {KEY: large}


def test_a_compressible_entry_is_kept(engine: Engine) -> None:
    large = Cached(1, b"all work and no play " * 10_000, NOW)
    assert engine.cache.fill(KEY, won(engine.cache), large, 60)
    assert engine.cache.read([KEY]) == {KEY: large}


def test_an_entry_too_large_is_not_filled_and_its_lease_is_released(engine: Engine) -> None:
    too_large = Cached(1, random.Random(1).randbytes(1024 * 1024), NOW)
    assert not engine.cache.fill(KEY, won(engine.cache), too_large, 60)
    assert engine.cache.read([KEY]) == {}
    # Nor does it touch what belongs to others.
    mine = won(engine.cache)
    engine.cache.invalidate([KEY])
    theirs = won(engine.cache)
    assert not engine.cache.fill(KEY, mine, too_large, 60)
    assert engine.cache.read([KEY]) == {KEY: theirs}


def test_500_keys_at_once(engine: Engine) -> None:
    keys = [EntityKey("acme", "k" * 64, f"{n:03}-" + "x" * 160) for n in range(500)]
    leases = engine.cache.lease(keys)
    assert list(leases) == keys
    assert engine.cache.read(keys) == leases
    entries = {key: Cached(n + 1, b"%d" % n * 1000, NOW) for n, key in enumerate(keys)}
    for key in keys:
        assert engine.cache.fill(key, leases[key], entries[key], 60)
    assert engine.cache.read(keys) == entries
    engine.cache.invalidate(keys)
    assert engine.cache.read(keys) == {}


def test_no_reader_goes_back_behind_an_invalidation(engine: Engine) -> None:
    """A writer raises a number and invalidates; readers fill what they saw of it."""
    cache = engine.cache
    written = acknowledged = 0
    done = threading.Event()

    def read_on() -> int:
        fills = 0
        while not done.is_set():
            floor = acknowledged
            found = cache.read([KEY]).get(KEY)
            if isinstance(found, Cached):
                assert found.version >= floor
            elif found is None:
                for lease in cache.lease([KEY]).values():
                    fills += cache.fill(KEY, lease, Cached(written, b"payload", NOW), 60)
        return fills

    written = 1
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_on) for _ in range(4)]
        try:
            for version in range(2, 150):
                written = version
                cache.invalidate([KEY])
                acknowledged = version
                # Half of the writes come while the entry is filled.
                eventually(
                    lambda: version % 2 or isinstance(cache.read([KEY]).get(KEY), Cached),  # noqa: B023 - called at once
                    within=10,
                    what="the entry is filled",
                )
        finally:
            done.set()
        assert sum(reader.result() for reader in readers) > 0


def test_memory_forgets_what_was_used_least_lately() -> None:
    cache = MemoryCache(max_entries=3)
    for n in range(3):
        assert cache.fill(key_of(n), won(cache, key_of(n)), VALUE, 60)
    cache.read([key_of(0)])
    won(cache, key_of(3))
    assert set(cache.read([key_of(n) for n in range(4)])) == {key_of(0), key_of(2), key_of(3)}


def test_memory_is_bounded_in_bytes() -> None:
    cache = MemoryCache(max_bytes=100_000)
    for n in range(20):
        assert cache.fill(key_of(n), won(cache, key_of(n)), Cached(1, b"x" * 9_000, NOW), 60)
    kept = cache.read([key_of(n) for n in range(20)])
    assert set(kept) == {key_of(n) for n in range(10, 20)}
    cache.invalidate(list(kept))
    assert cache._bytes == 0


def test_memory_counts_the_text_of_keys() -> None:
    cache = MemoryCache(max_bytes=100_000)
    # 512 bytes of UTF-8 that Python keeps as 2 KB.
    keys = [EntityKey("", "k", f"{n:03}" + "x" * 505 + "\U0001f600") for n in range(100)]
    cache.lease(keys)
    assert len(cache.read(keys)) <= 100_000 // (512 + 4 * 509)
    cache.invalidate(keys)
    assert cache._bytes == 0
