"""What the authority remembers of idempotent writes, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import IdempotencyRows
    from duostore_server.domain.transactions import IdempotencyKey, Recorded
    from duostore_server.telemetry.metrics import Metrics


class ObservedIdempotencyRows:
    """Measures ``IdempotencyRows`` and changes nothing about them."""

    def __init__(self, delegate: IdempotencyRows, metrics: Metrics) -> None:
        self._delegate = delegate
        self._recall = StoreCalls(metrics, Store.AURORA, "idempotency_recall")
        self._purge = StoreCalls(metrics, Store.AURORA, "idempotency_purge")

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        with self._recall() as call:
            found = self._delegate.recall(key, deadline)
            if found is None:
                call.outcome = "miss"
            return found

    def purge(self, limit: int, deadline: Deadline) -> int:
        with self._purge() as call:
            purged = self._delegate.purge(limit, deadline)
            if not purged:
                call.outcome = "miss"
            return purged
