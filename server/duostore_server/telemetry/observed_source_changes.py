"""The changes of sources, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import SourceChanges
    from duostore_server.domain.read_models import Expansion, FanOutBacklog, SourceChange
    from duostore_server.telemetry.metrics import Metrics


class ObservedSourceChanges:
    """Measures ``SourceChanges`` and changes nothing about them."""

    def __init__(self, delegate: SourceChanges, metrics: Metrics) -> None:
        self._delegate = delegate
        self._claim = StoreCalls(metrics, Store.AURORA, "source_change_claim")
        self._expand = StoreCalls(metrics, Store.AURORA, "source_change_expand")
        self._expand_together = StoreCalls(metrics, Store.AURORA, "source_change_expand_together")
        self._waiting = StoreCalls(metrics, Store.AURORA, "fan_out_waiting")
        self._backlog = StoreCalls(metrics, Store.AURORA, "fan_out_backlog")

    def claim(
        self, limit: int, deadline: Deadline, *, fresh: bool = False
    ) -> Sequence[SourceChange]:
        with self._claim() as call:
            changes = self._delegate.claim(limit, deadline, fresh=fresh)
            if not changes:
                call.outcome = "miss"
            return changes

    def expand(self, change: SourceChange, limit: int, deadline: Deadline) -> Expansion:
        with self._expand() as call:
            expansion = self._delegate.expand(change, limit, deadline)
            if not expansion.touched:
                # Not done either: its SQL failed, or answered nothing but what is no id.
                call.outcome = "miss" if expansion.done else "error"
            return expansion

    def expand_together(
        self, changes: Sequence[SourceChange], limit: int, deadline: Deadline
    ) -> Expansion | None:
        with self._expand_together() as call:
            expansion = self._delegate.expand_together(changes, limit, deadline)
            if expansion is None or not expansion.touched:
                # None: they are too many, or one fails; which, those calls tell that come after.
                call.outcome = "miss"
            return expansion

    def waiting(self, limit: int, deadline: Deadline) -> int:
        with self._waiting():
            return self._delegate.waiting(limit, deadline)

    def backlog(self, deadline: Deadline) -> FanOutBacklog:
        with self._backlog():
            return self._delegate.backlog(deadline)
