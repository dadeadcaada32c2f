"""The heads, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Heads
    from duostore_server.domain.snapshots import Head, HeadChange, HeadWritten
    from duostore_server.domain.transactions import IdempotencyKey, Recorded
    from duostore_server.telemetry.metrics import Metrics


class ObservedHeads:
    """Measures ``Heads`` and changes nothing about them."""

    def __init__(self, delegate: Heads, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.DYNAMODB, "read_heads")
        self._write = StoreCalls(metrics, Store.DYNAMODB, "write_head")
        self._recall = StoreCalls(metrics, Store.DYNAMODB, "recall_head_write")

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Head]:
        with self._read() as call:
            found = self._delegate.read(keys, deadline)
            if not found:
                call.outcome = "miss"
            return found

    def write(self, change: HeadChange, deadline: Deadline) -> HeadWritten:
        with self._write():
            return self._delegate.write(change, deadline)

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        with self._recall():
            return self._delegate.recall(key, deadline)
