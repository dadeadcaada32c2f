"""The snapshots, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Snapshots
    from duostore_server.domain.snapshots import (
        Appended,
        NewSnapshot,
        SnapshotPage,
        StoredSnapshot,
    )
    from duostore_server.telemetry.metrics import Metrics


class ObservedSnapshots:
    """Measures ``Snapshots`` and changes nothing about them."""

    def __init__(self, delegate: Snapshots, metrics: Metrics) -> None:
        self._delegate = delegate
        self._append = StoreCalls(metrics, Store.DYNAMODB, "snapshot_append")
        self._read = StoreCalls(metrics, Store.DYNAMODB, "snapshot_read")
        self._page = StoreCalls(metrics, Store.DYNAMODB, "snapshot_page")

    def append(self, snapshot: NewSnapshot, deadline: Deadline) -> Appended:
        with self._append():
            return self._delegate.append(snapshot, deadline)

    def read(self, key: EntityKey, sequence: int, deadline: Deadline) -> StoredSnapshot | None:
        with self._read() as call:
            found = self._delegate.read(key, sequence, deadline)
            if found is None:
                call.outcome = "miss"
            return found

    def page(
        self, key: EntityKey, before: int | None, limit: int, deadline: Deadline
    ) -> SnapshotPage:
        with self._page() as call:
            page = self._delegate.page(key, before, limit, deadline)
            if not page.snapshots:
                call.outcome = "miss"
            return page
