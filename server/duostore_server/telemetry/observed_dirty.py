"""The dirty heads, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import DirtyHeads
    from duostore_server.domain.snapshots import DirtyHead, DueHeads
    from duostore_server.telemetry.metrics import Metrics


class ObservedDirtyHeads:
    """Measures ``DirtyHeads`` and changes nothing about them."""

    def __init__(self, delegate: DirtyHeads, metrics: Metrics) -> None:
        self._delegate = delegate
        self._due = StoreCalls(metrics, Store.DYNAMODB, "dirty_due")
        self._settle = StoreCalls(metrics, Store.DYNAMODB, "dirty_settle")

    def due(self, limit: int, deadline: Deadline) -> DueHeads:
        with self._due() as call:
            due = self._delegate.due(limit, deadline)
            if not due.heads:
                call.outcome = "miss"
            return due

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
        with self._settle():
            self._delegate.settle(
                head, expire=expire, keep=keep, clean=clean, next_due=next_due, deadline=deadline
            )
