"""A deployment whose stores are simulated and whose processes are the production code.

Every process has connections, a cache adapter and use cases of its own, as it has in
production. What a test varies is the order of steps, the faults, and the mutant.

One process is one actor, so what the threads of a process share is not in play here:
``Flights`` is held to its word in tests/unit/test_flights.py and, in a reader, in
tests/unit/test_reading_waits.py; ``Coalescer`` in tests/unit/test_coalescer.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from duostore_server import codec
from duostore_server.access.checks import Checks
from duostore_server.access.committing import Committer
from duostore_server.access.dynamodb_home import DynamoDBHome
from duostore_server.access.flights import Flights
from duostore_server.access.propagation import Propagation
from duostore_server.access.reading import Reader
from duostore_server.access.shapes import OLD, Shapes
from duostore_server.access.sources import HeadSource, ProjectedSource
from duostore_server.access.writing import Writer
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.policies import Home, KindPolicy, Policies, ProjectionMode
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.dynamodb.heads import direct_heads
from duostore_server.storage.dynamodb.idempotency import direct_records
from duostore_server.storage.dynamodb.projections import direct_projections
from duostore_server.workers.deferred import Deferred
from duostore_server.workers.projector import Projector
from tests.interleaving.stores import Stores, must_be_readable
from tests.support.fake_authority import FakeAuthority
from tests.support.simulated_dynamodb import SimulatedDynamoDB
from tests.support.simulated_memcached import connect_to

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from duostore_server.access.drafting import Drafting
    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import OutboxRow
    from duostore_server.domain.ports import Heads, IdempotencyRecords
    from duostore_server.storage.dynamodb.projections import DynamoProjections
    from tests.interleaving.scheduler import World


def _kind(projection: ProjectionMode, home: Home = Home.AURORA) -> KindPolicy:
    return KindPolicy(cache_ttl=60, absent_ttl=10, projection=projection, max_bytes=1000, home=home)


def _second(document: JsonObject) -> JsonObject:
    return {SECOND: document}


# What a document in the second shape has alone: itself as it was saved.
SECOND = "second"

_POLICIES = Policies(
    {
        # Moves to its second projection version, if the flags of a process say so.
        "proposal": replace(
            _kind(ProjectionMode.INLINE), projection_version=2, transforms={2: _second}
        ),
        "note": _kind(ProjectionMode.ASYNC),
        "state": _kind(ProjectionMode.INLINE, Home.DYNAMODB),
    }
)
_NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
_NODE = "cache:11211"
# No scene publishes a snapshot.
NO_DRAFTS = cast("Drafting", None)


@dataclass(frozen=True, slots=True)
class Flags:
    """What one process takes the flags for, which reach the processes at different times."""

    write: str = OLD
    read: int = 0

    def shapes(self) -> Shapes:
        """Return the shapes of a process with these flags."""
        values: dict[str, FlagValue] = {
            "projection_write.proposal.2": self.write,
            "projection_read.proposal.2": self.read,
        }
        return Shapes(_POLICIES, codec.encode, values.__getitem__)


AS_EVER = Flags()


@dataclass(frozen=True, slots=True)
class Design:
    """The classes that a deployment is built of. A mutant replaces one of them."""

    authority: type[FakeAuthority] = FakeAuthority
    dynamodb: type[SimulatedDynamoDB] = SimulatedDynamoDB
    cache: type[MemcachedCache] = MemcachedCache
    propagation: type[Propagation] = Propagation
    dynamodb_home: type[DynamoDBHome] = DynamoDBHome
    source: type[ProjectedSource] = ProjectedSource
    reader: type[Reader] = Reader


class Deployment(Stores):
    """Stores, and the processes that use them. Each that is made is a process of its own."""

    def __init__(self, world: World, design: Design) -> None:
        super().__init__(world, design.authority, design.dynamodb)
        # Off, DynamoDB is written by single puts alone.
        self.statements = True
        self._design = design
        self._nonces_of: dict[str, itertools.count[int]] = {}
        self._completers: dict[str, Deferred[OutboxRow]] = {}

    def kill(self, name: str) -> None:
        """Let a process die where it stands, and with it what it does beside its requests."""
        for actor in self.world.actors:
            if actor.name in {name, completer_of(name)}:
                actor.killed = True

    def make_reader(self, flags: Flags = AS_EVER) -> Reader:
        shapes = flags.shapes()
        return self._design.reader(
            sources={
                Home.AURORA: self._design.source(self.authority, self._projections(), shapes),
                Home.DYNAMODB: HeadSource(self._heads(), codec.head_entity, lambda: _NOON),
            },
            cache=self._cache(),
            policies=_POLICIES,
            checks=Checks(_POLICIES),
            shapes_of=shapes.readable,
            flights=Flights(),
            pauses=(0.005, 0.010),
            pause=lambda _: self.world.step("pause"),
            jitter=lambda: 1.0,
            now=lambda: _NOON,
            served=lambda _kind, _store: None,
        )

    def make_writer(self, name: str, flags: Flags = AS_EVER) -> Writer:
        return Writer(
            committer=Committer(
                authority=self.authority,
                rows=self.authority,
                records=self._records(),
                propagation=self._propagation(flags),
                completions=self.completer_beside(name),
                # Never sent: what DynamoDB does not remember the authority does.
                answers=Deferred(lambda _notes, _deadline: None, batch=1),
                policies=_POLICIES,
            ),
            dynamodb_home=self._design.dynamodb_home(
                heads=self._heads(),
                cache=self._cache(),
                policies=_POLICIES,
                encode=codec.encode_head,
                now=lambda: _NOON,
            ),
            drafting=NO_DRAFTS,
            policies=_POLICIES,
            checks=Checks(_POLICIES),
            keep=timedelta(hours=24),
            check_writable=lambda _: None,
        )

    def make_projector(self, flags: Flags = AS_EVER) -> Projector:
        return Projector(
            outbox=self.authority,
            authority=self.authority,
            propagation=self._propagation(flags),
            batch=10,
            budget=3600,
        )

    def completer_beside(self, name: str) -> Deferred[OutboxRow]:
        """Return the completer of a process, the same each time."""
        return self._completers.setdefault(name, Deferred(self.authority.complete, batch=500))

    def notes(self, name: str) -> Hashable:
        """Return what the completer of a process has noted."""
        return tuple(self.completer_beside(name)._notes)

    def _propagation(self, flags: Flags) -> Propagation:
        project = flags.shapes().project
        return self._design.propagation(self._projections(), self._cache(), project)

    def _projections(self) -> DynamoProjections:
        return direct_projections(
            self.dynamodb.client,
            prefix="",
            unreadable=must_be_readable,
            pause=lambda _: self.world.step("pause"),
            clock=lambda: 0.0,
            statements=self.statements,
        )

    def _heads(self) -> Heads:
        return direct_heads(
            self.dynamodb.client,
            prefix="",
            unreadable=must_be_readable,
            pause=lambda _: self.world.step("pause"),
            clock=lambda: 0.0,
            nonces=self._nonces(),
        )

    def _records(self) -> IdempotencyRecords:
        return direct_records(
            self.dynamodb.client,
            prefix="",
            pause=lambda _: self.world.step("pause"),
            clock=lambda: 0.0,
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

    def held(self) -> Hashable:
        notes = sorted((name, self.notes(name)) for name in self._completers)
        return super().held(), tuple(notes)


def completer_of(name: str) -> str:
    """Return the name of the actor that completes what a process has done."""
    return f"{name}'s completer"


def soon() -> Deadline:
    """Return a deadline that no test gets to."""
    return Deadline.after(3600)
