"""All three stores in memory, what compares and mends them, and hands that plant drift."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from duostore_server import codec
from duostore_server.access.checking import Checking
from duostore_server.access.checks import Checks
from duostore_server.access.examining import Examining
from duostore_server.access.explaining import Explaining
from duostore_server.access.judging import Judge
from duostore_server.access.propagation import Propagation
from duostore_server.access.repairing import Repairing
from duostore_server.access.shapes import Shapes
from duostore_server.access.walking import Walking
from duostore_server.domain.admin_ports import EntityPage, HeldItem, ItemPage
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Form, Peeked, Projection
from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import (
    Home,
    KindPolicy,
    Policies,
    ProjectionMode,
    SnapshotPolicy,
)
from duostore_server.domain.transactions import Change, Origin, Transaction
from duostore_server.storage.cache.memory import MemoryCache
from duostore_server.workers.projector import Projector
from tests.support.fake_authority import FakeAuthority
from tests.support.reader_stack import FakeHeads, Told
from tests.support.writer_stack import FakeSnapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.drift import Drift, SavedVersion, Verified
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.errors import Store
    from duostore_server.domain.keys import CacheKey
    from duostore_server.domain.ports import K

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
WRITE, READ = "projection_write.proposal.2", "projection_read.proposal.2"


def _upper(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name.upper(): value for name, value in document.items()}


def kind(**options: Any) -> KindPolicy:
    given = {
        "cache_ttl": 60,
        "absent_ttl": 10,
        "projection": ProjectionMode.INLINE,
        "max_bytes": 1000,
    }
    return KindPolicy(**{**given, **options})


POLICIES = Policies(
    {
        "proposal": kind(
            projection_version=2,
            transforms={2: _upper},
            snapshots=SnapshotPolicy(timedelta(seconds=30), timedelta(days=7)),
        ),
        "note": kind(),
        "editor_state": kind(home=Home.DYNAMODB),
    }
)


def key(id_: str = "1", kind: str = "proposal", tenant: str = "acme") -> EntityKey:
    return EntityKey(tenant, kind, id_)


KEY = key()


class FakeItems:
    """``ports.Projections`` and ``admin_ports.ProjectionItems`` in memory, on the same items."""

    def __init__(self) -> None:
        self.held: dict[EntityKey, HeldItem] = {}
        # Documents of more bytes, in all shapes together, leave a stub.
        self.largest = 10_000

    def hold(self, key: EntityKey, projection: Projection, fault: str = "") -> None:
        """Let an item be there, behind everybody's back."""
        self.held[key] = HeldItem(key, projection, fault, 100, {"fault": fault})

    def read(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        deadline.bound(1.0)
        return {key: self.held[key].projection for key in keys if key in self.held}

    def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
        return self.put_all({key: projection}, deadline)[key]

    def put_all(
        self, projections: Mapping[EntityKey, Projection], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        deadline.bound(1.0)
        for key, projection in projections.items():
            put = self._fitting(key, projection)
            if key not in self.held or _gives_way(self.held[key].projection, put):
                self.hold(key, put)
        return {key: self.held[key].projection for key in projections}

    def inspect(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, HeldItem]:
        deadline.bound(1.0)
        return {key: self.held[key] for key in keys if key in self.held}

    def replace(self, found: HeldItem, by: Projection | None, deadline: Deadline) -> bool:
        deadline.bound(1.0)
        if self.held.get(found.key) != found:
            return False
        if by is None:
            del self.held[found.key]
        else:
            self.hold(found.key, self._fitting(found.key, by))
        return True

    def fits(self, _key: EntityKey, projection: Projection) -> bool:
        return sum(len(projection.in_shape(n) or b"") for n in projection.shapes) <= self.largest

    def page(self, start: str | None, limit: int, deadline: Deadline) -> ItemPage:
        deadline.bound(1.0)
        names = sorted(str(key) for key in self.held)
        at = 0 if start is None else names.index(start) + 1
        keys = {str(key): key for key in self.held}
        page = [self.held[keys[name]] for name in names[at : at + limit]]
        more = at + limit < len(names)
        return ItemPage(page, str(page[-1].key) if more else None)

    def sample(self, limit: int, deadline: Deadline) -> Sequence[HeldItem]:
        deadline.bound(1.0)
        return list(self.held.values())[:limit]

    def _fitting(self, key: EntityKey, projection: Projection) -> Projection:
        stub = Projection(projection.version, Form.STUB)
        return projection if self.fits(key, projection) else stub


def _gives_way(held: Projection, put: Projection) -> bool:
    if held.version == put.version and held.form is Form.STUB:
        return put.form is not Form.STUB
    if held.version == put.version and held.form is put.form is Form.VALUE:
        return not put.shapes <= held.shapes
    return held.version < put.version


class Entries(MemoryCache):
    """A cache in which what is found under some keys cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: set[CacheKey] = set()

    def peek(self, keys: Collection[K]) -> Mapping[K, Peeked]:
        damaged = {key: Peeked(None, 7) for key in keys if key in self.damaged}
        return {**super().peek(keys), **damaged}

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        self.damaged -= set(keys)
        super().invalidate(keys)

    def hold(self, key: EntityKey, entry: Cached) -> None:
        """Let an entry be there, behind everybody's back."""
        self.invalidate((key,))
        assert self.fill(key, self.lease((key,))[key], entry, 60)


class FakeEntities:
    """``admin_ports.Entities`` over the fake authority; a sample is of the first ones."""

    def __init__(self, rows: FakeAuthority, now: Callable[[], datetime]) -> None:
        self._rows = rows
        self._now = now
        self.saves: list[SavedVersion] = []

    def page(
        self,
        kind: str,
        after: EntityKey | None,
        until: EntityKey | None,
        limit: int,
        deadline: Deadline,
    ) -> EntityPage:
        assert until is None
        keys = [each for each in self._keys(kind) if after is None or str(each) > str(after)]
        found = self._rows.read(keys[:limit], deadline)
        more = len(keys) > limit
        return EntityPage([found[each] for each in keys[:limit]], keys[limit - 1] if more else None)

    def sample(self, kind: str, limit: int, deadline: Deadline) -> Sequence[EntityKey]:
        deadline.bound(1.0)
        return self._keys(kind)[:limit]

    def estimate(self, kind: str, deadline: Deadline) -> int:
        deadline.bound(1.0)
        return len(self._keys(kind))

    def time(self, deadline: Deadline) -> datetime:
        deadline.bound(1.0)
        return self._now()

    def saved(
        self, since: datetime, until: datetime, limit: int, deadline: Deadline
    ) -> Sequence[SavedVersion]:
        deadline.bound(1.0)
        return [save for save in self.saves if since < save.time <= until][:limit]

    def _keys(self, kind: str) -> list[EntityKey]:
        return sorted((key for key in self._rows._entities if kind in {"", key.kind}), key=str)


class FakeVerifications:
    """``admin_ports.Verifications`` in memory."""

    def __init__(self) -> None:
        self.looks: dict[EntityKey, Verified] = {}

    def record(self, looks: Sequence[Verified], deadline: Deadline) -> None:
        deadline.bound(1.0)
        assert len({look.key for look in looks}) == len(looks)
        self.looks |= {look.key: look for look in looks}

    def last(self, key: EntityKey, deadline: Deadline) -> Verified | None:
        deadline.bound(1.0)
        return self.looks.get(key)

    def purge(self, before: datetime, limit: int, deadline: Deadline) -> int:
        deadline.bound(1.0)
        old = [key for key, look in self.looks.items() if look.time < before][:limit]
        for each in old:
            del self.looks[each]
        return len(old)


class Counted:
    """What was counted, by name."""

    def __init__(self) -> None:
        self.looks: list[tuple[str, str]] = []
        self.drifts: list[tuple[str, Drift]] = []
        self.repairs: list[tuple[str, bool]] = []

    def verified(self, age: str, outcome: str) -> None:
        self.looks.append((age, outcome))

    def drifted(self, kind: str, drift: Drift) -> None:
        self.drifts.append((kind, drift))

    def repaired(self, kind: str, ok: bool) -> None:  # noqa: FBT001 - as Metrics has it
        self.repairs.append((kind, ok))


class Tiers:
    """The stores and their use cases, with all that a test may want to know and do."""

    def __init__(
        self,
        *,
        examining: type[Examining] = Examining,
        judge: type[Judge] = Judge,
        repairing: type[Repairing] = Repairing,
        items: FakeItems | None = None,
        pauses: Sequence[float] = (0.1, 0.4),
    ) -> None:
        self.now = NOON
        self.seconds = 0.0
        self.asked: list[str] = []
        self.paused: list[float] = []
        self.during_pause: Callable[[], object] = lambda: None
        self.flags: dict[str, FlagValue] = {WRITE: "old", READ: 0}
        self.counted = Counted()
        self.rows = FakeAuthority(clock=self._seconds)
        self.stored = items or FakeItems()
        self.entries = Entries()
        self.stored_heads = FakeHeads()
        self.kept = FakeSnapshots()
        self.table = FakeEntities(self.rows, lambda: self.now)
        self.noted = FakeVerifications()
        self.authority = Told("aurora", self.rows, self.asked)
        self.outbox = Told("outbox", self.rows, self.asked)
        self.items = Told("items", self.stored, self.asked)
        self.projections = Told("projections", self.stored, self.asked)
        self.cache = Told("cache", self.entries, self.asked)
        self.heads = Told("heads", self.stored_heads, self.asked)
        self.snapshots = Told("snapshots", self.kept, self.asked)
        self.entities = Told("entities", self.table, self.asked)
        self.verifications = Told("verifications", self.noted, self.asked)
        self.shapes = Shapes(POLICIES, codec.encode, lambda name: self.flags[name])
        self.judge = judge(self.shapes, codec.decode, codec.head_entity, self.stored.fits)
        self.examining = examining(
            authority=self.authority,
            items=self.items,
            cache=self.cache,
            outbox=self.outbox,
            judge=self.judge,
            policies=POLICIES,
            pause=self._pause,
            pauses=pauses,
        )
        self.propagation = Propagation(self.projections, self.cache, self.shapes.project)
        self.repairing = repairing(
            examining=self.examining,
            authority=self.authority,
            outbox=self.outbox,
            items=self.items,
            cache=self.cache,
            propagation=self.propagation,
            shapes=self.shapes,
        )
        self.checking = Checking(
            walking=Walking(
                entities=self.entities,
                items=self.items,
                examining=self.examining,
                pause=self._pause,
            ),
            authority=self.authority,
            examining=self.examining,
            repairing=self.repairing,
            policies=POLICIES,
            drifted=self.counted.drifted,
            repaired=self.counted.repaired,
            clock=lambda: self.seconds,
        )
        self.explaining = Explaining(
            authority=self.authority,
            items=self.items,
            heads=self.heads,
            cache=self.cache,
            outbox=self.outbox,
            snapshots=self.snapshots,
            verifications=self.verifications,
            judge=self.judge,
            shapes=self.shapes,
            policies=POLICIES,
            checks=Checks(POLICIES),
            decode=codec.decode,
            now=lambda: self.now,
        )

    def save(
        self, key: EntityKey = KEY, data: Any = None, *, deleted: bool = False, done: bool = True
    ) -> Entity:
        """Commit the next version; bring it to where it is read if it is to be ``done``."""
        content = None if deleted else {"a": 1, "b": "two"} if data is None else data
        change = Change(key, content, None, timedelta(seconds=1))
        (written,) = self.rows.write(Transaction((change,), Origin("", "")), soon()).written
        if done:
            self.bring(written.entity)
            self.rows.complete((written.row,), soon())
        return written.entity

    def bring(self, entity: Entity) -> None:
        """Project a version and bust its entry, as a saver does, with nobody told."""
        self.stored.put_all({entity.key: self.shapes.project(entity)}, soon())
        self.entries.invalidate((entity.key,))

    def fill(self, entity: Entity, shape: int = 1) -> None:
        """Let the cache have a version."""
        payload = None if entity.data is None else self.shapes.payload(entity, shape)
        self.entries.hold(entity.key, Cached(entity.version, payload, self.now, shape=shape))

    def drifts(self, *keys: EntityKey) -> list[str]:
        """Return the names of all that does not agree for good."""
        examined = self.examining.examine(keys or (KEY,), soon())
        return [each.drift.value for one in examined.values() for each in one.findings]

    def project_due(self) -> None:
        """Do what the projector does in the next ten seconds."""
        self.now += timedelta(seconds=10)
        projector = Projector(
            outbox=self.rows,
            authority=self.rows,
            propagation=Propagation(self.stored, self.entries, self.shapes.project),
            batch=100,
            budget=5,
        )
        projector.run_once()

    def _seconds(self) -> float:
        return self.now.timestamp()

    def _pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.now += timedelta(seconds=seconds)
        self.during_pause()


def soon() -> Deadline:
    return Deadline.after(30)


def down(store: Store) -> Callable[..., None]:
    """Return what fails as a store does that is out of reach."""

    def fail(*_: Any) -> None:
        raise StoreUnavailableError(store)

    return fail
