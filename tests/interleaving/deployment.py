"""A deployment whose stores are simulated and whose processes are the production code.

Every process has connections, a cache adapter and use cases of its own, as it has in
production. What a test varies is the order of steps, the faults, and the mutant.

One process is one actor, so what the threads of a process share is not in play here:
``Flights`` is held to its word in tests/unit/test_flights.py and, in a reader, in
tests/unit/test_reading_flights.py; ``Coalescer`` in tests/unit/test_coalescer.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ReadTimeoutError

from duostore_server import codec
from duostore_server.access.checks import Checks
from duostore_server.access.flights import Flights
from duostore_server.access.propagation import Propagation
from duostore_server.access.reading import Reader
from duostore_server.access.writing import Writer
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached
from duostore_server.domain.errors import Store, StoreUnavailableError, WriteOutcomeUnknownError
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
from tests.interleaving.claims import Claims, ViolationError
from tests.support.fake_authority import FakeAuthority
from tests.support.simulated_dynamodb import Delivery, Fault, SimulatedDynamoDB
from tests.support.simulated_memcached import Item, SimulatedMemcached, connect_to

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable

    from duostore_server.domain.entities import Written
    from duostore_server.storage.dynamodb.projections import DynamoProjections
    from tests.interleaving.scheduler import World

KEY = EntityKey("", "proposal", "1")
OTHER = EntityKey("", "proposal", "2")
ASYNC = EntityKey("", "note", "1")
ASYNC_OTHER = EntityKey("", "note", "2")
KEYS = (KEY, OTHER, ASYNC, ASYNC_OTHER)
# Items past this are refused: a document of that size leaves a stub.
ITEM_MAX = 400


def _kind(projection: ProjectionMode) -> KindPolicy:
    return KindPolicy(cache_ttl=60, absent_ttl=10, projection=projection, max_bytes=1000)


_POLICIES = Policies(
    {"proposal": _kind(ProjectionMode.INLINE), "note": _kind(ProjectionMode.ASYNC)}
)
_NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
_NODE = "cache:11211"
_NAMESPACE = Namespace("duostore")
_CACHE_NAMES = {key: _NAMESPACE.key(key) for key in KEYS}
_LOST_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Design:
    """The classes that a deployment is built of. A mutant replaces one of them."""

    authority: type[FakeAuthority] = FakeAuthority
    dynamodb: type[SimulatedDynamoDB] = SimulatedDynamoDB
    cache: type[MemcachedCache] = MemcachedCache
    propagation: type[Propagation] = Propagation
    reader: type[Reader] = Reader
    writer: type[Writer] = Writer


class Deployment:
    """Three simulated stores, what happens to them, and the processes that use them."""

    def __init__(self, world: World, design: Design) -> None:
        self.world = world
        self.claims = Claims()
        self.aurora_reachable = True
        # Off, DynamoDB is written by single puts alone.
        self.statements = True
        self._design = design
        self._nonces_of: dict[str, itertools.count[int]] = {}
        self._completers: dict[str, Completer] = {}
        self._checked: dict[EntityKey, tuple[Item | None, object]] = {}
        self._commit_answer_lost: Callable[[], bool] = lambda: False
        hours = itertools.count(1)
        self.node = SimulatedMemcached(
            step=lambda label: world.step(f"cache {label}"), observe=world.observe
        )
        self.dynamodb = design.dynamodb(
            step=lambda label: world.step(f"dynamodb {label}"), item_max=ITEM_MAX
        )
        self.authority = design.authority(
            # An hour passes between two looks at the clock: whatever may have fallen due,
            # or run out, has. Nobody is shown the time, but in payloads.
            clock=lambda: 3600.0 * next(hours),
            step=self._aurora_step,
            observe=world.observe,
            after_commit=self._after_commit,
        )
        create_tables(self.dynamodb.client, prefix="", pause=lambda _: None)
        world.seen_at = self._seen_at
        world.held = self._held
        world.after_step = self.check_tiers

    # What happens to the stores and the processes.

    def evict(self, key: EntityKey = KEY) -> None:
        """Let the cache forget an entry."""
        self.node.evict(_CACHE_NAMES[key])

    def kill(self, name: str) -> None:
        """Let a process die where it stands, and with it what it does beside its requests."""
        for actor in self.world.actors:
            if actor.name in {name, completer_of(name)}:
                actor.killed = True

    def cut(self, store: SimulatedMemcached | SimulatedDynamoDB, *, off: bool) -> None:
        """Cut a store off from everybody, or mend that."""
        store.reachable = not off

    def cut_aurora(self, *, off: bool) -> None:
        """Cut Aurora off from everybody, or mend that. What needs it fails, to no effect."""
        self.aurora_reachable = not off

    def lose_answers(self, rng: random.Random) -> None:
        """Let some operations fail for their caller: done all the same, or not, or later.

        DynamoDB refuses some besides, for there being too many, and leaves some undone.
        """

        def chance() -> bool:
            return rng.random() < _LOST_SHARE

        def fault(_label: str) -> Fault | None:
            return Fault(TimeoutError(), rng.choice(list(Delivery))) if chance() else None

        def fault_of_boto(label: str) -> Fault | None:
            if not chance():
                return None
            if chance():
                return Fault(_throttled(label), Delivery.LOST)
            error = ReadTimeoutError(endpoint_url="simulated:")
            return Fault(error, rng.choice(list(Delivery)))

        self.node.fault = fault
        self.dynamodb.fault = fault_of_boto
        self.dynamodb.unprocessed = lambda _label: chance()
        self._commit_answer_lost = chance

    def deliver(self) -> None:
        """Let what is late arrive."""
        self.node.deliver()
        self.dynamodb.deliver()

    def end_faults(self) -> None:
        """Mend everything, and let what is late arrive."""
        self.node.reachable = self.dynamodb.reachable = self.aurora_reachable = True
        self.node.fault = self.dynamodb.fault = lambda _label: None
        self.dynamodb.unprocessed = lambda _label: False
        self._commit_answer_lost = lambda: False
        self.deliver()

    # What the stores hold.

    def check_tiers(self) -> None:
        """Check after each step that no tier went back in version (C5)."""
        for key in KEYS:
            held = self.node.item(_CACHE_NAMES[key]), self.projected_item(key)
            if held == self._checked.get(key, (None, None)):
                continue
            self._checked[key] = held
            cached, version = self.cached(key), self.projected(key)
            if cached is not None:
                self.claims.holds("the cache", key, cached.version)
            if version is not None:
                self.claims.holds("DynamoDB", key, version)

    def cached(self, key: EntityKey) -> Cached | None:
        """Return what the cache holds of a key, if that is not a lease."""
        item = self.node.item(_CACHE_NAMES[key])
        entry = decode_entry(item.value) if item else None
        return entry if isinstance(entry, Cached) else None

    def projected_item(self, key: EntityKey) -> Any:
        """Return the item that DynamoDB holds of a key, or None."""
        return self.dynamodb.item(projection_table(""), str(key))

    def projected(self, key: EntityKey) -> int | None:
        """Return the version that DynamoDB holds of a key, or None."""
        item = self.projected_item(key)
        return decode_item(key, item, _must_be_readable).version if item else None

    # What a process is made of. Each call is for a process of its own.

    def make_reader(self) -> Reader:
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

    def make_writer(self, name: str) -> Writer:
        return self._design.writer(
            authority=self.authority,
            propagation=self._propagation(),
            completions=self.completer_beside(name),
            policies=_POLICIES,
            checks=Checks(_POLICIES),
        )

    def make_projector(self) -> Projector:
        return Projector(
            outbox=self.authority,
            authority=self.authority,
            propagation=self._propagation(),
            batch=10,
            budget=3600,
        )

    def completer_beside(self, name: str) -> Completer:
        """Return the completer of a process, the same each time."""
        return self._completers.setdefault(name, Completer(self.authority))

    def notes(self, name: str) -> Hashable:
        """Return what the completer of a process has noted."""
        return tuple(self.completer_beside(name)._notes)

    def _propagation(self) -> Propagation:
        return self._design.propagation(self._projections(), self._cache(), codec.encode)

    def _projections(self) -> DynamoProjections:
        return direct_projections(
            self.dynamodb.client,
            prefix="",
            unreadable=_must_be_readable,
            pause=lambda _: self.world.step("pause"),
            clock=lambda: 0.0,
            statements=self.statements,
        )

    def _cache(self) -> MemcachedCache:
        return self._design.cache(
            [_NODE],
            connect=connect_to({_NODE: self.node}),
            nonces=self._nonces(),
            # The pause after a failure is over by the next call.
            backoff=(0.0, 0.0),
            clock=lambda: 0.0,
        )

    def _nonces(self) -> Callable[[], bytes]:
        # Named after the actor, so that they do not depend on the order of steps.
        name = self.world.current_name()
        numbers = self._nonces_of.setdefault(name, itertools.count())
        return lambda: (b"%s%d" % (name.encode(), next(numbers)))[-16:].rjust(16)

    def _aurora_step(self, label: str) -> None:
        self.world.step(label)
        if not self.aurora_reachable:
            raise StoreUnavailableError(Store.AURORA)

    def _after_commit(self, written: Written) -> None:
        self.claims.committed(written)
        if self._commit_answer_lost():
            raise WriteOutcomeUnknownError(Store.AURORA)

    def _seen_at(self, label: str) -> Hashable:
        store, _, _ = label.partition(" ")
        match store:
            case "cache":
                return self.node.state()
            case "dynamodb":
                return self.dynamodb.state()
            case _ if store.startswith(("authority.", "outbox.")):
                return self.aurora_reachable, self.authority.state()
        return None

    def _held(self) -> Hashable:
        return (
            self.node.state(),
            self.dynamodb.state(),
            self.aurora_reachable,
            self.authority.state(),
            self.claims.state(),
            tuple(sorted((name, self.notes(name)) for name in self._completers)),
        )


def completer_of(name: str) -> str:
    """Return the name of the actor that completes what a process has done."""
    return f"{name}'s completer"


def _throttled(label: str) -> ClientError:
    operation, _, _ = label.partition(" ")
    return ClientError(
        {"Error": {"Code": "ProvisionedThroughputExceededException", "Message": ""}}, operation
    )


def _must_be_readable(key: EntityKey, version: int, why: str) -> None:
    raise ViolationError("C3", f"{key} at {version} cannot be read: {why}")


def soon() -> Deadline:
    """Return a deadline that no test gets to."""
    return Deadline.after(3600)
