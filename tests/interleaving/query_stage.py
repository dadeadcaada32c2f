"""The processes of a deployment that answers queries: what callers and the projector do.

Every process is one of its own, with the production use cases and the production cache
adapter, as in ``deployment``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from duostore_server import codec
from duostore_server.access.committing import Committer
from duostore_server.access.generations import Generations
from duostore_server.access.propagation import Propagation
from duostore_server.access.query_checks import QueryChecks
from duostore_server.access.querying import Querying
from duostore_server.access.result_flights import ResultFlights
from duostore_server.access.shapes import Shapes
from duostore_server.domain.errors import (
    Store,
    StoreError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode
from duostore_server.domain.transactions import Change, Origin, Transaction
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.workers.deferred import Deferred
from duostore_server.workers.loop import IncompleteRoundError
from duostore_server.workers.projector import Projector
from tests.interleaving.claims import ViolationError
from tests.interleaving.deployment import soon
from tests.interleaving.query_stores import (
    BOTH,
    BY_STATUS,
    ONE,
    Noted,
    QueryStores,
    Snapshots,
)
from tests.support.query_stack import NOON, encode, row_bytes, slice_of
from tests.support.simulated_memcached import connect_to
from tests.support.writer_stack import FakeRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from duostore_server.domain.entities import OutboxRow
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Cache
    from tests.interleaving.scheduler import World

_MOST_ROUNDS: Final = 20
_NODE: Final = "cache:11211"
_QUERIES: Final = {one.name: one for one in (BY_STATUS, BOTH)}


def _kind(projection: ProjectionMode) -> KindPolicy:
    return KindPolicy(cache_ttl=60, absent_ttl=10, projection=projection, max_bytes=1000)


POLICIES: Final = Policies(
    {"proposal": _kind(ProjectionMode.INLINE), "note": _kind(ProjectionMode.ASYNC)}
)
_SHAPES: Final = Shapes(POLICIES, codec.encode)


@dataclass(frozen=True, slots=True)
class QueryDesign:
    """What the processes are built of. A mutant replaces one of them or two."""

    cache: type[MemcachedCache] = MemcachedCache
    generations: type[Generations] = Generations
    querying: type[Querying] = Querying
    queries: type[Snapshots] = Snapshots
    propagation: type[Propagation] = Propagation
    committer: type[Committer] = Committer


class QueryStage(QueryStores):
    """Stores with processes on them. ``answers`` counts those given, ``hits`` the cache's."""

    def __init__(self, world: World, design: QueryDesign) -> None:
        super().__init__(world)
        self.design = design
        self.answers = self.hits = 0
        self._nonces_of: dict[str, itertools.count[int]] = {}
        self._completers: dict[str, Deferred[OutboxRow]] = {}

    def prime(self, *keys: EntityKey, cached: bool = False) -> None:
        """Let there be a version 1 of each, brought on, and cached if so wanted."""
        for key in keys or (ONE,):
            self.save("prime", key)
        self.project()
        if cached:
            self.ask()

    def saver(self, name: str, *keys: EntityKey, times: int = 1) -> None:
        """Add a process that saves entities, several in one transaction."""

        def work() -> None:
            for _ in range(times):
                self.save(name, *(keys or (ONE,)))

        self.world.actor(name, work)

    def querier(self, name: str, *, times: int = 1, both: bool = False) -> None:
        """Add a process that asks a query."""

        def work() -> None:
            ask = self.asker(both=both)
            for _ in range(times):
                ask()

        self.world.actor(name, work)

    def placer(self, name: str) -> None:
        """Add a process that reads a generation, or places one, and goes no further."""

        def work() -> None:
            self._noted().read("", ("proposal",))

        self.world.actor(name, work)

    def projector(self, name: str, *, rounds: int = 1) -> None:
        """Add a background process that looks into the outbox a few times."""
        self.world.actor(name, partial(self.project, rounds))

    def completer(self, of: str) -> None:
        """Add what a process does beside its requests: it removes the outbox rows it noted."""

        def work() -> None:
            self.world.observe(tuple(self._completer(of)._notes))
            self._completer(of).run_once()

        self.world.actor(f"{of}'s completer", work)

    def event(self, name: str, *happenings: Callable[[], None]) -> None:
        """Add things that happen by themselves, in this order, at any time."""

        def work() -> None:
            for number, happen in enumerate(happenings):
                if number:
                    self.world.step(name)
                happen()

        self.world.actor(name, work)

    def kill(self, name: str) -> None:
        """Let a process die where it stands, and with it what it does beside its requests."""
        for actor in self.world.actors:
            if actor.name in {name, f"{name}'s completer"}:
                actor.killed = True

    def project(self, rounds: int = 1) -> None:
        """Work off the outbox as the background process does."""
        projector = Projector(
            outbox=self.authority,
            authority=self.authority,
            propagation=self._propagation(self._cache()),
            batch=10,
            budget=3600,
        )
        for _ in range(rounds):
            try:
                projector.run_once()
            except (StoreError, IncompleteRoundError):
                continue

    def save(self, name: str, *keys: EntityKey) -> None:
        """Save as the calling actor."""
        cache = self._cache()
        committer = self.design.committer(
            authority=self.authority,
            rows=self.authority,
            records=FakeRecords(),
            propagation=self._propagation(cache),
            completions=self._completer(name),
            answers=Deferred(lambda _notes, _deadline: None, batch=1),
            policies=POLICIES,
        )
        changes = tuple(Change(key, {"by": name}, None, POLICIES.of(key).due_after) for key in keys)
        try:
            outcome = committer.commit(Transaction(changes, Origin("", "")), soon())
        except WriteOutcomeUnknownError:
            return
        if outcome.projected:
            for key, applied in zip(keys, outcome.answer, strict=True):
                newest = max(self.acknowledged.get(key, 0), applied.version)
                self.acknowledged[key] = newest

    def ask(self) -> bool:
        """Ask once, as a process of its own; return whether the cache has answered."""
        return self.asker()()

    def asker(self, *, both: bool = False) -> Callable[[], bool]:
        """Return what asks a query, as a process of its own, and returns as ``ask``."""
        noted = self._noted()
        querying = self.design.querying(
            checks=QueryChecks(_QUERIES),
            queries=self.design.queries(self),
            cache=self._cache(),
            # What it is asked for is all that anybody asks of generations.
            generations=noted,  # type: ignore[arg-type]
            flights=ResultFlights(),
            encode=encode,
            row_bytes=row_bytes,
            slice_of=slice_of,
            pauses=lambda patience: (patience,),
            pause=lambda _: None,
            jitter=lambda: 1.0,
            now=lambda: NOON,
            served=lambda _name, _store: None,
        )
        asked = BOTH if both else BY_STATUS

        def ask() -> bool:
            promised = self.promised(asked.depends_on)
            began = self.moment
            self.world.observe((frozenset(promised.items()), began))
            try:
                page = querying.query("", asked.name, {}, soon())
            except StoreError as error:
                raise ViolationError("C10", f"a query was not answered: {error!r}") from error
            cached = page.served_from is Store.CACHE
            self.answers += 1
            self.hits += cached
            not_before = began
            if cached:
                assert noted.last is not None
                not_before = self.first_read[noted.last]
            self.check(page.payload, asked.depends_on, promised, not_before)
            return cached

        return ask

    def check_at_rest(self) -> None:
        """Let all faults end and the projector finish; then everybody sees the newest state."""
        self.end_faults()
        for _ in range(_MOST_ROUNDS):
            if not self.authority.backlog(soon()).depth:
                break
            self.project()
        else:
            raise ViolationError("C8", "the outbox does not drain")
        self.acknowledged = dict(self.states[-1])
        for both in (False, True):
            self.asker(both=both)()
        # Leases of who died are over; from here on one process computes for all.
        self.evict_results()
        self.ask()
        if not self.ask():
            raise ViolationError("cached", "a result is not found by who asks for it again")

    def held(self) -> Hashable:
        notes = sorted((name, tuple(one._notes)) for name, one in self._completers.items())
        return super().held(), tuple(notes)

    def _noted(self) -> Noted:
        return Noted(self, self.design.generations(self._cache(), lambda: NOON))

    def _completer(self, name: str) -> Deferred[OutboxRow]:
        return self._completers.setdefault(name, Deferred(self.authority.complete, batch=500))

    def _propagation(self, cache: Cache) -> Propagation:
        return self.design.propagation(self.projections, cache, _SHAPES.project)

    def _cache(self) -> MemcachedCache:
        return self.design.cache(
            [_NODE],
            connect=connect_to({_NODE: self.node}),
            nonces=self._nonces(),
            backoff=(0.0, 0.0),
            clock=lambda: 0.0,
        )

    def _nonces(self) -> Callable[[], bytes]:
        # Named after the actor, so that they do not depend on the order of steps.
        name = self.world.current_name()
        numbers = self._nonces_of.setdefault(name, itertools.count())
        return lambda: (b"%s%d" % (name.encode(), next(numbers)))[-16:].rjust(16)
