from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store, StoreTimeoutError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import (
    Appended,
    DirtyHead,
    DueHeads,
    NewSnapshot,
    SnapshotPage,
    StoredSnapshot,
)
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.observed_dirty import ObservedDirtyHeads
from duostore_server.telemetry.observed_snapshots import ObservedSnapshots

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = EntityKey("", "proposal", "1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = Deadline.after(3600)
NEW = NewSnapshot(KEY, b"", NOW, in_history=True, consolidate_after=timedelta())
APPENDED = Appended(1, NOW)
STORED = StoredSnapshot(1, b"", NOW)
HEAD = DirtyHead(KEY, 1, b"", NOW, 0)


class Snapshots:
    """Holds one snapshot, or none, or is out of reach."""

    def __init__(self) -> None:
        self.held: StoredSnapshot | None = STORED
        self.error: Exception | None = None

    def append(self, _snapshot: NewSnapshot, _: Deadline) -> Appended:
        if self.error is not None:
            raise self.error
        return APPENDED

    def read(self, _key: EntityKey, _sequence: int, _: Deadline) -> StoredSnapshot | None:
        return self.held

    def page(self, _key: EntityKey, _before: int | None, _limit: int, _: Deadline) -> SnapshotPage:
        return SnapshotPage(() if self.held is None else (self.held,), more=False)


class DirtyHeads:
    def __init__(self) -> None:
        self.held: Sequence[DirtyHead] = (HEAD,)
        self.settled: list[tuple[object, ...]] = []

    def due(self, limit: int, _: Deadline) -> DueHeads:
        return DueHeads(self.held[:limit], more=False)

    def settle(
        self,
        head: DirtyHead,
        *,
        expire: int,
        keep: timedelta,
        clean: bool,
        next_due: datetime,
        deadline: Deadline,
    ) -> None:
        self.settled.append((head, expire, keep, clean, next_due, deadline))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def counted(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["op"], sample.labels["outcome"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "duostore_store_calls_total" and sample.value
    }


def test_snapshots_are_measured(registry: CollectorRegistry) -> None:
    delegate = Snapshots()
    observed = ObservedSnapshots(delegate, Metrics(registry))
    assert observed.append(NEW, SOON) is APPENDED
    assert observed.read(KEY, 0, SOON) is STORED
    assert observed.page(KEY, None, 1, SOON).snapshots == (STORED,)
    delegate.held = None
    assert observed.read(KEY, 0, SOON) is None
    assert observed.page(KEY, None, 1, SOON).snapshots == ()
    delegate.error = StoreTimeoutError(Store.DYNAMODB)
    with pytest.raises(StoreTimeoutError):
        observed.append(NEW, SOON)
    assert counted(registry) == {
        ("snapshot_append", "ok"): 1,
        ("snapshot_append", "timeout"): 1,
        ("snapshot_read", "ok"): 1,
        ("snapshot_read", "miss"): 1,
        ("snapshot_page", "ok"): 1,
        ("snapshot_page", "miss"): 1,
    }


def test_dirty_heads_are_measured(registry: CollectorRegistry) -> None:
    delegate = DirtyHeads()
    observed = ObservedDirtyHeads(delegate, Metrics(registry))
    assert observed.due(5, SOON).heads == (HEAD,)
    observed.settle(HEAD, expire=3, keep=timedelta(1), clean=True, next_due=NOW, deadline=SOON)
    assert delegate.settled == [(HEAD, 3, timedelta(1), True, NOW, SOON)]
    delegate.held = ()
    assert observed.due(5, SOON).heads == ()
    assert counted(registry) == {
        ("dirty_due", "ok"): 1,
        ("dirty_due", "miss"): 1,
        ("dirty_settle", "ok"): 1,
    }
