"""The authority, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Authority
    from duostore_server.domain.transactions import Committed, Transaction
    from duostore_server.telemetry.metrics import Metrics


class ObservedAuthority:
    """Measures an ``Authority`` and changes nothing about it."""

    def __init__(self, delegate: Authority, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.AURORA, "read")
        self._write = StoreCalls(metrics, Store.AURORA, "write")

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        with self._read() as call:
            found = self._delegate.read(keys, deadline)
            if not found:
                call.outcome = "miss"
            return found

    def write(self, transaction: Transaction, deadline: Deadline) -> Committed:
        with self._write():
            return self._delegate.write(transaction, deadline)
