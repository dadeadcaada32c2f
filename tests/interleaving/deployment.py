"""A deployment whose stores are simulated and whose processes are the production code.

Every process has connections, a cache adapter and use cases of its own, as it has in
production. What a test varies is the order of steps, the faults, and the mutant.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ReadTimeoutError

from duostore_server import codec
from duostore_server.access.checks import Checks
from duostore_server.access.flights import Flights
from duostore_server.access.propagation import Propagation
from duostore_server.access.reading import Reader
from duostore_server.access.writing import Writer
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached
from duostore_server.domain.errors import (
    EntityNotFoundError,
    Store,
    StoreError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode
from duostore_server.storage.cache.entries import decode as decode_entry
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.dynamodb.items import decode as decode_item
from duostore_server.storage.dynamodb.projections import direct_projections
from duostore_server.storage.dynamodb.tables import create_tables, projection_table
from duostore_server.workers.completer import Completer
from duostore_server.workers.projector import Projector
from tests.support.fake_authority import FakeAuthority
from tests.support.simulated_dynamodb import Delivery, Fault, SimulatedDynamoDB
from tests.support.simulated_memcached import SimulatedMemcached, connect_to

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable

    from duostore_server.domain.entities import Entity, Saved, Written
    from tests.interleaving.scheduler import World

KEY = EntityKey("", "proposal", "1")
OTHER = EntityKey("", "proposal", "2")
KEYS = (KEY, OTHER)

_POLICIES = Policies(
    {
        "proposal": KindPolicy(
            cache_ttl=60, absent_ttl=10, projection=ProjectionMode.INLINE, max_bytes=1000
        )
    }
)
_NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
_NODE = "cache:11211"
_MOST_ROUNDS = 20
_LOST_SHARE = 0.15


class ViolationError(AssertionError):
    """A claim of the protocol does not hold."""


@dataclass(frozen=True, slots=True)
class Design:
    """The classes that a deployment is built of. A mutant replaces one of them."""

    authority: type[FakeAuthority] = FakeAuthority
    dynamodb: type[SimulatedDynamoDB] = SimulatedDynamoDB
    cache: type[MemcachedCache] = MemcachedCache
    propagation: type[Propagation] = Propagation
    reader: type[Reader] = Reader


@dataclass(slots=True)
class Claims:
    """What was promised so far, and whether it holds."""

    written: dict[EntityKey, dict[int, Any]] = field(default_factory=dict)
    # The newest version that was acknowledged as projected.
    acknowledged: dict[EntityKey, int] = field(default_factory=dict)
    highest: dict[tuple[str, EntityKey], int] = field(default_factory=dict)

    def committed(self, written: Written) -> None:
        """Take note of a commit: versions have no gaps (C3)."""
        entity = written.entity
        versions = self.written.setdefault(entity.key, {})
        if entity.version != len(versions) + 1:
            raise ViolationError(f"C3: version {entity.version} after {len(versions)}")
        versions[entity.version] = entity.data

    def answered(self, saved: Saved) -> None:
        """Take note of what a writer was told."""
        if saved.projected:
            key = saved.entity.key
            self.acknowledged[key] = max(self.acknowledged.get(key, 0), saved.entity.version)

    def saw(self, key: EntityKey, version: int, found: Entity | None, at_least: int) -> None:
        """Check an answer to a reader that had to see version ``at_least`` (C3, C4, C6)."""
        if version < at_least:
            raise ViolationError(f"C4/C6: {key} read at {version}, {at_least} was acknowledged")
        expected = self.written.get(key, {}).get(version)
        if (found.data if found else None) != expected:
            raise ViolationError(f"C3: {key} at {version} is {expected}, read as {found}")

    def holds(self, tier: str, key: EntityKey, version: int) -> None:
        """Check that what a tier holds is not older than what it held before (C5)."""
        before = self.highest.get((tier, key), 0)
        if version < before:
            raise ViolationError(f"C5: {tier} of {key} went back from {before} to {version}")
        self.highest[tier, key] = version


class Deployment:
    """Three simulated stores, and the processes on them as actors of a world."""

    def __init__(self, world: World, design: Design) -> None:
        self.world = world
        self.claims = Claims()
        self._design = design
        self._ticks = itertools.count(1)
        self._namespace = Namespace("duostore")
        self.node = SimulatedMemcached(step=lambda label: world.step(f"cache {label}"))
        self.dynamodb = design.dynamodb(step=lambda label: world.step(f"dynamodb {label}"))
        self.authority = design.authority(
            # An hour passes between two looks at the clock: whatever may have fallen due,
            # or run out, has.
            clock=lambda: 3600.0 * next(self._ticks),
            step=world.step,
            after_commit=self._after_commit,
        )
        self.commit_answer_lost: Callable[[], bool] = lambda: False
        create_tables(self.dynamodb.client, prefix="", pause=lambda _: None)
        world.store_state = self._store_state
        world.after_step = self.check_tiers

    def saver(self, name: str, key: EntityKey = KEY, times: int = 1) -> None:
        """Add a process that saves an entity and is then asked no more."""

        def work() -> None:
            writer = self._writer()
            for count in range(times):
                document = {"by": f"{name}{count}"}
                self._write(partial(writer.save, key, document, None, _soon()))

        self.world.actor(name, work)

    def deleter(self, name: str, key: EntityKey = KEY) -> None:
        """Add a process that deletes an entity."""
        self.world.actor(
            name, lambda: self._write(lambda: self._writer().delete(key, None, _soon()))
        )

    def reader(self, name: str, key: EntityKey = KEY, times: int = 1) -> None:
        """Add a process that reads an entity, from the second time on with a token."""

        def work() -> None:
            reader = self._reader()
            token = 0
            for _ in range(times):
                token = max(token, self._read(reader, key, token))

        self.world.actor(name, work)

    def batch_reader(self, name: str) -> None:
        """Add a process that reads all keys in one call."""

        def work() -> None:
            at_least = dict(self.claims.acknowledged)
            try:
                readings = self._reader().batch_get(KEYS, _soon())
            except StoreError:
                return
            for key, reading in readings.items():
                found = codec.decode(reading.payload) if reading.payload is not None else None
                self.claims.saw(key, reading.version, found, at_least.get(key, 0))

        self.world.actor(name, work)

    def projector(self, name: str, rounds: int = 1) -> None:
        """Add a background process that looks into the outbox a few times."""

        def work() -> None:
            projector = self._projector()
            for _ in range(rounds):
                try:
                    projector.run_once()
                except StoreError:
                    continue

        self.world.actor(name, work)

    def event(self, name: str, *happenings: Callable[[], None]) -> None:
        """Add things that happen by themselves, in this order, at any time."""

        def work() -> None:
            for number, happen in enumerate(happenings):
                if number:
                    self.world.step(name)
                happen()

        self.world.actor(name, work)

    def evict(self, key: EntityKey = KEY) -> None:
        """Let the cache forget an entry."""
        self.node.evict(self._namespace.key(key))

    def kill(self, name: str) -> None:
        """Let the process of an actor die where it stands."""
        next(actor for actor in self.world.actors if actor.name == name).killed = True

    def cut(self, store: SimulatedMemcached | SimulatedDynamoDB, *, off: bool) -> None:
        """Cut a store off from everybody, or mend that."""
        store.reachable = not off

    def lose_answers(self, rng: random.Random) -> None:
        """Let some operations time out for their caller: done all the same, or not, or later."""

        def fault(_label: str) -> Fault | None:
            if rng.random() < _LOST_SHARE:
                return Fault(TimeoutError(), rng.choice(list(Delivery)))
            return None

        def fault_of_boto(_label: str) -> Fault | None:
            if rng.random() < _LOST_SHARE:
                error = ReadTimeoutError(endpoint_url="simulated:")
                return Fault(error, rng.choice(list(Delivery)))
            return None

        self.node.fault = fault
        self.dynamodb.fault = fault_of_boto
        self.commit_answer_lost = lambda: rng.random() < _LOST_SHARE

    def deliver(self) -> None:
        """Let what is late arrive."""
        self.node.deliver()
        self.dynamodb.deliver()

    def check_tiers(self) -> None:
        """Check after each step that no tier went back in version."""
        for key in KEYS:
            cached = self._cached(key)
            if cached is not None:
                self.claims.holds("the cache", key, cached.version)
            version = self._projected(key)
            if version is not None:
                self.claims.holds("DynamoDB", key, version)

    def check_at_rest(self) -> None:
        """Let all faults end and the projector finish; then all tiers have to agree (C6, C8)."""
        self.cut(self.node, off=False)
        self.cut(self.dynamodb, off=False)
        self.node.fault = self.dynamodb.fault = lambda _label: None
        self.deliver()
        projector = self._projector()
        for _ in range(_MOST_ROUNDS):
            if not self.authority.backlog(_soon()).depth:
                break
            projector.run_once()
        else:
            raise ViolationError("C8: the outbox does not drain")
        for key in KEYS:
            self.check_tiers()
            newest = len(self.claims.written.get(key, {}))
            if self._projected(key) not in {newest, None if newest == 0 else newest}:
                raise ViolationError(f"C8: DynamoDB holds {self._projected(key)}, not {newest}")
            cached = self._cached(key)
            if cached is not None and cached.version != newest:
                raise ViolationError(f"C8: the cache holds {cached.version}, not {newest}")
            self.claims.acknowledged[key] = newest
            self._read(self._reader(), key, 0)

    def _after_commit(self, written: Written) -> None:
        self.claims.committed(written)
        if self.commit_answer_lost():
            raise WriteOutcomeUnknownError(Store.AURORA)

    def _write(self, write: Callable[[], Saved]) -> None:
        try:
            self.claims.answered(write())
        except (StoreError, EntityNotFoundError):
            return

    def _read(self, reader: Reader, key: EntityKey, token: int) -> int:
        at_least = max(token, self.claims.acknowledged.get(key, 0))
        try:
            reading = reader.get(key, _soon(), min_version=token)
        except EntityNotFoundError as error:
            self.claims.saw(key, error.version, None, at_least)
            return error.version
        except StoreError:
            return token
        assert reading.payload is not None
        self.claims.saw(key, reading.version, codec.decode(reading.payload), at_least)
        return reading.version

    def _cached(self, key: EntityKey) -> Cached | None:
        item = self.node.item(self._namespace.key(key))
        entry = decode_entry(item.value) if item else None
        return entry if isinstance(entry, Cached) else None

    def _projected(self, key: EntityKey) -> int | None:
        item = self.dynamodb.item(projection_table(""), str(key))
        return decode_item(key, item, _must_be_readable).version if item else None

    def _reader(self) -> Reader:
        return self._design.reader(
            authority=self.authority,
            projections=self._projections(),
            cache=self._cache(),
            policies=_POLICIES,
            checks=Checks(_POLICIES),
            flights=Flights(),
            encode=codec.encode,
            pauses=(0.005, 0.010),
            pause=lambda _: self.world.step("pause"),
            jitter=lambda: 1.0,
            now=lambda: _NOON,
            served=lambda _kind, _store: None,
        )

    def _writer(self) -> Writer:
        return Writer(
            authority=self.authority,
            propagation=self._propagation(),
            completions=_AtOnce(self.authority),
            policies=_POLICIES,
            checks=Checks(_POLICIES),
        )

    def _projector(self) -> Projector:
        return Projector(
            outbox=self.authority,
            authority=self.authority,
            propagation=self._propagation(),
            batch=10,
            budget=60,
        )

    def _propagation(self) -> Propagation:
        return self._design.propagation(self._projections(), self._cache(), codec.encode)

    def _projections(self) -> Any:
        return direct_projections(
            self.dynamodb.client,
            prefix="",
            unreadable=_must_be_readable,
            pause=lambda _: self.world.step("pause"),
            clock=lambda: 0.0,
        )

    def _cache(self) -> MemcachedCache:
        return self._design.cache(
            [_NODE],
            connect=connect_to({_NODE: self.node}),
            nonces=self._nonces(),
            # Each look at the clock finds a pause after a failure over.
            clock=lambda: 10.0 * next(self._ticks),
        )

    def _nonces(self) -> Callable[[], bytes]:
        # Named after the actor, so that they do not depend on the order of steps.
        numbers = itertools.count()
        name = self.world.current_name().encode()
        return lambda: (b"%s%d" % (name, next(numbers)))[:16].rjust(16)

    def _store_state(self, label: str) -> Hashable:
        if label.startswith("cache"):
            return self.node.state()
        if label.startswith("dynamodb"):
            return self.dynamodb.state()
        if label.startswith(("authority", "outbox")):
            return self.authority.state()
        return (
            self.node.state(),
            self.dynamodb.state(),
            self.authority.state(),
            tuple(sorted((str(key), version) for key, version in self.claims.acknowledged.items())),
        )


class _AtOnce:
    """Completes outbox rows when they are noted; a process may die before that, or between."""

    def __init__(self, outbox: FakeAuthority) -> None:
        self._completer = Completer(outbox)

    def add(self, outbox_ids: Any) -> None:
        self._completer.add(outbox_ids)
        self._completer.run_once()


def _soon() -> Deadline:
    return Deadline.after(3600)


def _must_be_readable(key: EntityKey, version: int, why: str) -> None:
    raise ViolationError(f"{key} at {version} cannot be read: {why}")
