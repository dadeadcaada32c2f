"""The idempotency records, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import IdempotencyRecords
    from duostore_server.domain.transactions import Idempotency, IdempotencyKey, Recorded
    from duostore_server.telemetry.metrics import Metrics


class ObservedRecords:
    """Measures ``IdempotencyRecords`` and changes nothing about them."""

    def __init__(self, delegate: IdempotencyRecords, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.DYNAMODB, "read_record")
        self._put = StoreCalls(metrics, Store.DYNAMODB, "put_records")

    def read(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        with self._read() as call:
            recorded = self._delegate.read(key, deadline)
            if recorded is None:
                call.outcome = "miss"
            return recorded

    def put(self, records: Sequence[tuple[Idempotency, Recorded]], deadline: Deadline) -> None:
        with self._put():
            self._delegate.put(records, deadline)
