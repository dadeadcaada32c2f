"""A ``Reader`` over stores in memory, of which a test decides what they do and how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from duostore_server import codec
from duostore_server.access.checks import Checks
from duostore_server.access.flights import Flights
from duostore_server.access.reading import Reader
from duostore_server.access.shapes import Shapes
from duostore_server.access.sources import HeadSource, ProjectedSource, is_behind
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Form, Lease, Projection
from duostore_server.domain.errors import (
    Store,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import Home, KindPolicy, Policies, ProjectionMode
from duostore_server.domain.transactions import Change, Origin, Transaction
from duostore_server.storage.cache.memory import MemoryCache
from tests.support.fake_authority import FakeAuthority

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.entities import Reading
    from duostore_server.domain.snapshots import Head

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
WITHIN = 30.0


def _policies(cache_ttl: float) -> Policies:
    return Policies(
        {
            "proposal": KindPolicy(
                cache_ttl=cache_ttl,
                absent_ttl=10,
                projection=ProjectionMode.INLINE,
                max_bytes=1000,
            ),
            "editor_state": KindPolicy(
                cache_ttl=5,
                absent_ttl=10,
                projection=ProjectionMode.INLINE,
                max_bytes=1000,
                home=Home.DYNAMODB,
            ),
        }
    )


def key(id_: str) -> EntityKey:
    return EntityKey("", "proposal", id_)


KEY = key("1")
STATE = EntityKey("", "editor_state", "1")


class Clock:
    """Seconds that pass when a test says so, and a microsecond between two looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class FakeProjections:
    """``ports.Projections`` in memory."""

    def __init__(self) -> None:
        self.held: dict[EntityKey, Projection] = {}

    def read(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        deadline.bound(1.0)
        return {key: self.held[key] for key in keys if key in self.held}

    def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
        deadline.bound(1.0)
        held = self.held.get(key)
        if held is None or is_behind(held, projection) or _is_stub_of(held, projection):
            self.held[key] = projection
        return self.held[key]

    def put_all(
        self, projections: Mapping[EntityKey, Projection], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        return {key: self.put(key, one, deadline) for key, one in projections.items()}


def _is_stub_of(held: Projection, projection: Projection) -> bool:
    return held == Projection(projection.version, Form.STUB)


class FakeHeads:
    """The reading half of ``ports.Heads`` in memory."""

    def __init__(self) -> None:
        self.held: dict[EntityKey, Head] = {}

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Head]:
        deadline.bound(1.0)
        return {key: self.held[key] for key in keys if key in self.held}


class Told:
    """A store that keeps a list of what it was asked.

    What ``before`` has for a method is called with its arguments first, and may raise;
    what ``after`` has is called when the store has done its part.
    """

    def __init__(self, name: str, store: Any, asked: list[str]) -> None:
        self._name = name
        self._store = store
        self._asked = asked
        self.before: dict[str, Callable[..., object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any) -> Any:
            self._asked.append(f"{self._name}.{method}")
            self.before.get(method, _nothing)(*args)
            answer = getattr(self._store, method)(*args)
            self.after.get(method, _nothing)()
            return answer

        return call


class Stack:
    """A reader over stores in memory, with all that a test may want to know and do."""

    def __init__(
        self,
        *,
        reader: type[Reader] = Reader,
        pauses: Sequence[float] = (0.01, 0.02),
        pause: Callable[[float], None] | None = None,
        jitter: float = 1.0,
        cache_ttl: float = 60.0,
        policies: Policies | None = None,
    ) -> None:
        policies = policies or _policies(cache_ttl)
        self.clock = Clock()
        self.asked: list[str] = []
        self.paused: list[float] = []
        self.served: list[Store] = []
        self.stored = FakeProjections()
        self.entries = MemoryCache(clock=self.clock)
        self.rows = FakeAuthority(clock=NOON.timestamp)
        self.authority = Told("aurora", self.rows, self.asked)
        self.projections = Told("dynamodb", self.stored, self.asked)
        self.cache = Told("cache", self.entries, self.asked)
        self.stored_heads = FakeHeads()
        self.heads = Told("heads", self.stored_heads, self.asked)
        self.now = NOON
        self.flights = Flights()
        self.during_pause: Callable[[], object] = _nothing
        self.flags: dict[str, FlagValue] = {}
        self.shapes = Shapes(policies, codec.encode, self.flags.get)
        self.reader = reader(
            sources={
                Home.AURORA: ProjectedSource(self.authority, self.projections, self.shapes),
                Home.DYNAMODB: HeadSource(self.heads, codec.head_entity, lambda: self.now),
            },
            cache=self.cache,
            policies=policies,
            checks=Checks(policies),
            shapes_of=self.shapes.readable,
            flights=self.flights,
            pauses=pauses,
            pause=pause or self._pause,
            jitter=lambda: jitter,
            now=lambda: self.now,
            served=lambda _, store: self.served.append(store),
        )

    def get(self, key: EntityKey = KEY, **options: Any) -> Reading:
        return self.reader.get(key, self.soon(), **options)

    def soon(self, seconds: float = 10.0) -> Deadline:
        return Deadline.after(seconds, clock=self.clock)

    def commit(self, key: EntityKey = KEY, *, deleted: bool = False, projected: bool = True) -> int:
        """Write the next version, behind the reader's back."""
        data = None if deleted else {"id": key.id}
        change = Change(key, data, None, timedelta())
        (written,) = self.rows.write(Transaction((change,), Origin("", "")), self.soon()).written
        entity = written.entity
        if projected:
            payload = None if deleted else codec.encode(entity)
            form = Form.TOMBSTONE if deleted else Form.VALUE
            self.stored.held[key] = Projection(entity.version, form, payload)
        return entity.version

    def fill(self, version: int, key: EntityKey = KEY) -> None:
        """Put an entry into the cache, behind the reader's back."""
        self.entries.invalidate((key,))
        lease = self.entries.lease((key,))[key]
        assert self.entries.fill(key, lease, Cached(version, b"cached", NOON), 60)

    def entry(self, key: EntityKey = KEY) -> Cached | Lease | None:
        return self.entries.read((key,)).get(key)

    def takes(self, seconds: float) -> Callable[..., None]:
        """Return what lets so much time pass."""

        def wait(*_: object) -> None:
            self.clock.now += seconds

        return wait

    def hangs(self, own: float, store: Store) -> Callable[..., None]:
        """Return what lets a call last until its own timeout or its deadline, and fail."""

        def wait(*args: Any) -> None:
            self.clock.now += args[-1].bound(own)
            raise StoreTimeoutError(store)

        return wait

    def _pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.clock.now += seconds
        self.during_pause()


def _nothing(*_: object) -> None:
    pass


def down(store: Store) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise StoreUnavailableError(store)

    return fail


def fail_cache(stack: Stack) -> None:
    for method in ("read", "lease", "fill", "invalidate"):
        stack.cache.before[method] = down(Store.CACHE)


def fail_dynamodb(stack: Stack) -> None:
    for method in ("read", "put_all"):
        stack.projections.before[method] = down(Store.DYNAMODB)
