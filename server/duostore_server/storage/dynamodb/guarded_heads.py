"""The heads, left alone for a moment when DynamoDB keeps failing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Heads
    from duostore_server.domain.snapshots import Head, HeadChange, HeadWritten
    from duostore_server.domain.transactions import IdempotencyKey, Recorded
    from duostore_server.storage.dynamodb.guarded import Guard


class GuardedHeads:
    """Heads that are left alone while DynamoDB is out of reach: a write is not applied then."""

    def __init__(self, delegate: Heads, guard: Guard) -> None:
        self._delegate = delegate
        self._guard = guard

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Head]:
        with self._guard.watched():
            return self._delegate.read(keys, deadline)

    def write(self, change: HeadChange, deadline: Deadline) -> HeadWritten:
        with self._guard.watched():
            return self._delegate.write(change, deadline)

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        with self._guard.watched():
            return self._delegate.recall(key, deadline)
