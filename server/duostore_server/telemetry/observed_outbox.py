"""The outbox, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import timedelta

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Backlog, OutboxRow, PendingChange
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Outbox
    from duostore_server.telemetry.metrics import Metrics


class ObservedOutbox:
    """Measures an ``Outbox`` and changes nothing about it."""

    def __init__(self, delegate: Outbox, metrics: Metrics) -> None:
        self._delegate = delegate
        self._claim = StoreCalls(metrics, Store.AURORA, "outbox_claim")
        self._complete = StoreCalls(metrics, Store.AURORA, "outbox_complete")
        self._backlog = StoreCalls(metrics, Store.AURORA, "outbox_backlog")
        self._find = StoreCalls(metrics, Store.AURORA, "outbox_find")
        self._oblige = StoreCalls(metrics, Store.AURORA, "outbox_oblige")

    def claim(self, limit: int, deadline: Deadline) -> Sequence[OutboxRow]:
        with self._claim() as call:
            rows = self._delegate.claim(limit, deadline)
            if not rows:
                call.outcome = "miss"
            return rows

    def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
        with self._complete():
            self._delegate.complete(rows, deadline)

    def backlog(self, deadline: Deadline) -> Backlog:
        with self._backlog():
            return self._delegate.backlog(deadline)

    def find(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, PendingChange]:
        with self._find() as call:
            found = self._delegate.find(keys, deadline)
            if not found:
                call.outcome = "miss"
            return found

    def oblige(
        self, keys: Collection[EntityKey], due_after: timedelta, deadline: Deadline
    ) -> Sequence[OutboxRow]:
        with self._oblige():
            return self._delegate.oblige(keys, due_after, deadline)
