"""The snapshots, left alone for a moment when DynamoDB keeps failing."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from duostore_server.storage.dynamodb.guarded import Guard


class GuardedSnapshots:
    """Snapshots that are left alone while DynamoDB is out of reach.

    There is no other store to turn to: callers are told at once that it is unavailable.
    """

    def __init__(self, delegate: Snapshots, guard: Guard) -> None:
        self._delegate = delegate
        self._guard = guard

    def append(self, snapshot: NewSnapshot, deadline: Deadline) -> Appended:
        with self._guard.watched():
            return self._delegate.append(snapshot, deadline)

    def read(self, key: EntityKey, sequence: int, deadline: Deadline) -> StoredSnapshot | None:
        with self._guard.watched():
            return self._delegate.read(key, sequence, deadline)

    def page(
        self, key: EntityKey, before: int | None, limit: int, deadline: Deadline
    ) -> SnapshotPage:
        with self._guard.watched():
            return self._delegate.page(key, before, limit, deadline)
