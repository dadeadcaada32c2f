"""A ``Writer`` over stores in memory, of which a test decides what they do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from duostore_server import codec
from duostore_server.access.checks import Checks
from duostore_server.access.committing import Committer
from duostore_server.access.drafting import Drafting
from duostore_server.access.dynamodb_home import DynamoDBHome
from duostore_server.access.propagation import Propagation
from duostore_server.access.shapes import Shapes
from duostore_server.access.writing import Writer
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import ReadOnlyError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import (
    Home,
    KindPolicy,
    Policies,
    ProjectionMode,
    SnapshotPolicy,
)
from duostore_server.domain.snapshots import (
    Appended,
    HeadWritten,
    SnapshotPage,
    StoredSnapshot,
)
from duostore_server.domain.transactions import Applied, Origin, Recorded
from duostore_server.storage.cache.memory import MemoryCache
from tests.support.fake_authority import FakeAuthority
from tests.support.reader_stack import FakeProjections, Told

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from duostore_server.domain.snapshots import HeadChange, NewSnapshot
    from duostore_server.domain.transactions import (
        Idempotency,
        IdempotencyKey,
        Outcome,
    )

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ORIGIN = Origin("tests", "request-1")
HOUR = timedelta(hours=1)

PROPOSAL = EntityKey("acme", "proposal", "1")
NOTE = EntityKey("acme", "note", "1")
STATE = EntityKey("acme", "editor_state", "1")


def _kind(**options: Any) -> KindPolicy:
    given = {"cache_ttl": 60, "absent_ttl": 10, "projection": ProjectionMode.INLINE}
    return KindPolicy(**{**given, "max_bytes": 1000, **options})


POLICIES = Policies(
    {
        "proposal": _kind(snapshots=SnapshotPolicy(timedelta(seconds=30), timedelta(days=7))),
        "unkept": _kind(snapshots=SnapshotPolicy(timedelta(seconds=30), timedelta())),
        "note": _kind(projection=ProjectionMode.ASYNC),
        "editor_state": _kind(home=Home.DYNAMODB, ttl=timedelta(hours=24)),
    }
)


class FakeRecords:
    """``ports.IdempotencyRecords`` in memory; nothing expires."""

    def __init__(self) -> None:
        self.held: dict[IdempotencyKey, Recorded] = {}

    def read(self, key: IdempotencyKey, _: Deadline) -> Recorded | None:
        return self.held.get(key)

    def put(self, records: Sequence[tuple[Idempotency, Recorded]], _: Deadline) -> None:
        self.held.update({idempotency.key: recorded for idempotency, recorded in records})


class FakeHeads:
    """The writing half of ``ports.Heads``: counts what it is asked, and takes it all."""

    def __init__(self) -> None:
        self.changes: list[HeadChange] = []
        self.recorded: dict[IdempotencyKey, Recorded] = {}

    def write(self, change: HeadChange, _: Deadline) -> HeadWritten:
        self.changes.append(change)
        if (once := change.idempotency) is not None:
            applied = Applied(len(self.changes), change.now)
            self.recorded[once.key] = Recorded(once.request_hash, (applied,))
        return HeadWritten(len(self.changes), change.now)

    def recall(self, key: IdempotencyKey, _: Deadline) -> Recorded | None:
        return self.recorded.get(key)


class FakeSnapshots:
    """``ports.Snapshots`` of one key in memory; nothing expires."""

    def __init__(self) -> None:
        self.appended: list[NewSnapshot] = []

    def append(self, snapshot: NewSnapshot, _: Deadline) -> Appended:
        self.appended.append(snapshot)
        return Appended(len(self.appended), snapshot.time)

    def read(self, _key: EntityKey, sequence: int, _: Deadline) -> StoredSnapshot | None:
        number = sequence or len(self.appended)
        return self._stored(number) if 0 < number <= len(self.appended) else None

    def page(self, _key: EntityKey, before: int | None, limit: int, _: Deadline) -> SnapshotPage:
        newest = len(self.appended) if before is None else before - 1
        numbers = range(newest, max(0, newest - limit), -1)
        return SnapshotPage([self._stored(number) for number in numbers], newest > limit)

    def _stored(self, number: int) -> StoredSnapshot:
        snapshot = self.appended[number - 1]
        return StoredSnapshot(number, snapshot.payload, snapshot.time)


class Notes(list[Any]):
    """``ports.Notes`` that are kept."""

    def add(self, notes: Any) -> None:
        self.extend(notes)


class WriterStack:
    """A writer over stores in memory, with all that a test may want to know and do."""

    def __init__(self, *, max_answer_bytes: int = 4_000_000) -> None:
        self.asked: list[str] = []
        self.rows = FakeAuthority()
        self.authority = Told("aurora", self.rows, self.asked)
        self.stored = FakeProjections()
        self.projections = Told("dynamodb", self.stored, self.asked)
        self.records = Told("records", FakeRecords(), self.asked)
        self.heads_written = FakeHeads()
        self.heads = Told("heads", self.heads_written, self.asked)
        self.snapshots_kept = FakeSnapshots()
        self.snapshots = Told("snapshots", self.snapshots_kept, self.asked)
        self.cache = Told("cache", MemoryCache(), self.asked)
        self.completions, self.answers = Notes(), Notes()
        self.now = NOON
        checks = Checks(POLICIES)
        self.drafting = Drafting(
            snapshots=self.snapshots,
            policies=POLICIES,
            checks=checks,
            encode=codec.encode_snapshot,
            numbered=codec.numbered,
            data_of=codec.document_of,
            now=lambda: self.now,
            keep=HOUR,
            max_answer_bytes=max_answer_bytes,
        )
        self.read_only: set[str] = set()
        self.writer = Writer(
            committer=Committer(
                authority=self.authority,
                rows=Told("rows", self.rows, self.asked),
                records=self.records,
                propagation=Propagation(
                    self.projections, self.cache, Shapes(POLICIES, codec.encode).project
                ),
                completions=self.completions,
                answers=self.answers,
                policies=POLICIES,
            ),
            dynamodb_home=DynamoDBHome(
                heads=self.heads,
                cache=self.cache,
                policies=POLICIES,
                encode=codec.encode_head,
                now=lambda: self.now,
            ),
            drafting=self.drafting,
            policies=POLICIES,
            checks=checks,
            keep=HOUR,
            check_writable=self._check_writable,
        )

    def _check_writable(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            if kind in self.read_only:
                raise ReadOnlyError(kind, "maintenance")

    def save(self, key: EntityKey = PROPOSAL, content: Any = None, **options: Any) -> Outcome:
        """Save as callers do; ``precondition`` and ``idempotency_key`` are options."""
        precondition = options.pop("precondition", None)
        content = {"a": 1} if content is None else content
        return self.writer.save(key, content, precondition, soon(), origin=ORIGIN, **options)

    def snapshot(self, data: Any, key: EntityKey = PROPOSAL, **options: Any) -> Appended:
        return self.drafting.snapshot(key, data, soon(), **options)

    def send_answers(self) -> None:
        """Let the records hold what was noted."""
        self.records.put(self.answers, soon())
        self.asked.clear()


def soon() -> Deadline:
    return Deadline.after(10)
