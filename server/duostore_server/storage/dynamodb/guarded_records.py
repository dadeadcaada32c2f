"""The idempotency records, left alone for a moment when DynamoDB keeps failing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import IdempotencyRecords
    from duostore_server.domain.transactions import Idempotency, IdempotencyKey, Recorded
    from duostore_server.storage.dynamodb.guarded import Guard


class GuardedRecords:
    """Records that are left alone while DynamoDB is out of reach.

    To be turned away is always correct: of writes to the authority, it knows what was applied.
    """

    def __init__(self, delegate: IdempotencyRecords, guard: Guard) -> None:
        self._delegate = delegate
        self._guard = guard

    def read(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        with self._guard.watched():
            return self._delegate.read(key, deadline)

    def put(self, records: Sequence[tuple[Idempotency, Recorded]], deadline: Deadline) -> None:
        with self._guard.watched():
            self._delegate.put(records, deadline)
