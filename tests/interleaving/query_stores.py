"""The simulated stores below processes that save and processes that answer queries (Q1, Q2).

Q1: a query that begins after a Save of a kind that it depends on was acknowledged as
projected, or its outbox row removed, sees that Save. Q2: an answer is what the SQL
answered at one moment, and not before the generations that it is answered under were read.

What nobody else gets to see is no step of its own: a put, a pause, the removal of an entity's
entry, the fetching of rows. Whatever happens meanwhile happens before the next step as well.
"""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.errors import (
    Store,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.keys import EntityKey, GenerationKey, ResultKey
from duostore_server.domain.queries import Column
from duostore_server.storage.cache.keys import Namespace
from tests.interleaving.claims import ViolationError
from tests.support.fake_authority import FakeAuthority
from tests.support.query_stack import NOON, query
from tests.support.reader_stack import FakeProjections
from tests.support.simulated_memcached import Delivery, Fault, SimulatedMemcached

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from duostore_server.access.generations import Generations
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.queries import QueryCall, Row
    from duostore_server.domain.transactions import Written
    from tests.interleaving.scheduler import World

ONE: Final = EntityKey("", "proposal", "1")
TWO: Final = EntityKey("", "proposal", "2")
NOTE: Final = EntityKey("", "note", "1")
# Depends on one kind, or on both.
# Longer than anything takes here.
_TIMEOUT: Final = 60.0
BY_STATUS: Final = query(timeout=_TIMEOUT)
BOTH: Final = query("both", timeout=_TIMEOUT, depends_on=("proposal", "note"))

_NAMESPACE: Final = Namespace("duostore")
# What the names of all results begin with: that of any, but for its digest.
_RESULTS: Final = tuple(_NAMESPACE.key(ResultKey("", one.name, "")) for one in (BY_STATUS, BOTH))
_GENERATION: Final = _NAMESPACE.key(GenerationKey("", "proposal")).decode()
_ENTITIES: Final = tuple(_NAMESPACE.key(key).decode() for key in (ONE, TWO, NOTE))
_LOST_SHARE: Final = 0.15

# The version of each key at one moment.
State = dict[EntityKey, int]


@dataclass(slots=True)
class Snapshot:
    """What one transaction sees: a ``ports.ResultSet`` over the entities of some kinds."""

    rows: Sequence[Row]
    as_of: datetime
    columns: tuple[Column, ...] = (Column("key", "text"), Column("version", "bigint"))

    def portions(self) -> Iterator[Sequence[Row]]:
        yield self.rows


class Snapshots:
    """``ports.Queries`` on the authority: a moment is seen when a query begins, and told later."""

    def __init__(self, stage: QueryStores) -> None:
        self.stage = stage

    @contextmanager
    def open(self, call: QueryCall, deadline: Deadline) -> Iterator[Snapshot]:
        deadline.bound(call.query.timeout)
        self.stage.world.step("authority.begin")
        moment = self.moment()
        yield Snapshot(self.rows(call), NOON + timedelta(seconds=moment))

    def rows(self, call: QueryCall) -> list[Row]:
        """Return what is seen, now, of the kinds that a query depends on."""
        state = self.stage.states[self.moment()]
        return [[str(key), state[key]] for key in state if key.kind in call.query.depends_on]

    def moment(self) -> int:
        """Return which of the stage's states is seen, now."""
        return self.stage.moment


class Noted:
    """Generations, of which the stage is told when they were read."""

    def __init__(self, stage: QueryStores, generations: Generations) -> None:
        self._stage = stage
        self._generations = generations
        self.last: tuple[bytes, ...] | None = None

    def read(self, tenant: str, kinds: Iterable[str]) -> tuple[bytes, ...] | None:
        self.last = self._generations.read(tenant, kinds)
        if self.last is not None:
            self._stage.first_read.setdefault(self.last, self._stage.moment)
        return self.last


class Projections(FakeProjections):
    """DynamoDB, of which a put may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[], bool] = lambda: False

    def put_all(self, projections: Any, deadline: Deadline) -> Any:
        if self.fails():
            raise StoreUnavailableError(Store.DYNAMODB)
        return super().put_all(projections, deadline)


class QueryStores:
    """Stores whose operations are steps of a world. ``states`` are all that were ever committed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.states: list[State] = [{}]
        # Since when a set of generations may be answered under: the first moment that
        # anybody had read it.
        self.first_read: dict[tuple[bytes, ...], int] = {}
        self.acknowledged: State = {}
        self._late = ""
        self._commit_answer_lost: Callable[[], bool] = lambda: False
        hours = itertools.count(1)
        self.node = SimulatedMemcached(step=self._cache_step, observe=world.observe)
        # An hour passes between two looks at the clock, so that all that is claimed falls due.
        self.authority = FakeAuthority(
            clock=lambda: 3600.0 * next(hours),
            step=world.step,
            observe=world.observe,
            after_commit=self._after_commit,
        )
        self.projections = Projections()
        world.seen_at = self._seen_at
        world.held = self.held

    @property
    def moment(self) -> int:
        """Which of the states is the present one."""
        return len(self.states) - 1

    def evict_generation(self, kind: str = "proposal") -> None:
        """Let the cache forget the generation of a kind."""
        self.node.evict(_NAMESPACE.key(GenerationKey("", kind)))

    def evict_results(self) -> None:
        """Let the cache forget all results, and leases on them: as if their time were over."""
        for name in list(self.node._items):
            if name.startswith(_RESULTS):
                self.node.evict(name)

    def cut_cache(self, *, off: bool) -> None:
        """Cut the cache off from everybody, or mend that."""
        self.node.reachable = not off

    def lose_next(self, command: str, delivery: Delivery) -> None:
        """Let the next command of that kind, of a generation, have its answer lost."""
        self._late = "armed"

        def fault(label: str) -> Fault | None:
            if self._late != "armed" or label != f"{command} {_GENERATION}":
                return None
            self._late = label
            return Fault(TimeoutError(), delivery)

        self.node.fault = fault

    def lose_all(self, command: str) -> None:
        """Let no command of that kind, of a generation, have an answer, or come to anything."""

        def fault(label: str) -> Fault | None:
            if label != f"{command} {_GENERATION}":
                return None
            return Fault(TimeoutError(), Delivery.LOST)

        self.node.fault = fault

    def lose_answers(self, rng: random.Random) -> None:
        """Let some operations fail for their caller: done all the same, or not, or later."""

        def chance() -> bool:
            return rng.random() < _LOST_SHARE

        def fault(_label: str) -> Fault | None:
            return Fault(TimeoutError(), rng.choice(list(Delivery))) if chance() else None

        self.node.fault = fault
        self.projections.fails = chance
        self._commit_answer_lost = chance

    def deliver(self) -> None:
        """Let what is late arrive."""
        self.node.deliver()

    def held(self) -> Hashable:
        """Return all that the rest of an execution depends on, but for its actors."""
        return (
            self._node_state(),
            frozenset((name, self._value(name)) for name in self.node._items),
            self._late,
            len(self.node._late),
            self.authority.state(),
            tuple(frozenset(state.items()) for state in self.states),
            frozenset(self.acknowledged.items()),
            frozenset(self.first_read.items()),
        )

    def end_faults(self) -> None:
        """Mend everything, and let what is late arrive."""
        self.node.reachable = True
        self.node.fault = lambda _label: None
        self.projections.fails = lambda: False
        self._commit_answer_lost = lambda: False
        self.deliver()

    def check(
        self, payload: bytes, kinds: Sequence[str], promised: Mapping[EntityKey, int], since: int
    ) -> None:
        """Hold an answer against what had to be seen, and the moment that it may be of."""
        _, rows, as_of = json.loads(payload)
        found = dict(rows)
        for key, version in promised.items():
            if found.get(str(key), 0) < version:
                raise ViolationError("Q1", f"{found}, and {key} at {version} was acknowledged")
        moment = (datetime.fromisoformat(as_of) - NOON) // timedelta(seconds=1)
        state = self.states[moment]
        if found != {str(key): state[key] for key in state if key.kind in kinds}:
            raise ViolationError(
                "Q2", f"{found} was never the state; as of {moment} it was {state}"
            )
        if moment < since:
            raise ViolationError("Q2", f"as of {moment}, and the generation was read at {since}")

    def promised(self, kinds: Sequence[str]) -> State:
        """Return what whoever begins now has to see: what was acknowledged, or is worked off."""
        waiting = self.authority._outbox
        newest = self.states[-1]
        return {
            key: newest[key] if key not in waiting else self.acknowledged[key]
            for key in newest
            if key.kind in kinds and (key not in waiting or key in self.acknowledged)
        }

    def _after_commit(self, _: Written) -> None:
        held = {key: entity.version for key, entity in self.authority._entities.items()}
        # Of several entities in one transaction all are there when the first is told of.
        if self.states[-1] != held:
            self.states.append(held)
        if self._commit_answer_lost():
            raise WriteOutcomeUnknownError(Store.AURORA)

    def _cache_step(self, label: str) -> None:
        if not label.endswith(_ENTITIES):
            self.world.step(f"cache {label}")

    def _seen_at(self, label: str) -> Hashable:
        if label.startswith("cache "):
            _, _, name = label.split(" ")
            return self._late, self._node_state(), self._value(name.encode())
        if label == "authority.begin":
            return self.moment
        if label.startswith(("authority.", "outbox.")):
            return self.authority.state()
        return None

    def _node_state(self) -> Hashable:
        return self.node.reachable, self.node._starts

    def _value(self, name: bytes) -> bytes | None:
        # CAS numbers make no states: the value of a lease is there once, under one number.
        item = self.node.item(name)
        return item.value if item else None
