"""The documents that have to be recomputed, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import StaleDocuments
    from duostore_server.domain.read_models import Recomputed, StaleDocument
    from duostore_server.telemetry.metrics import Metrics


class ObservedStaleDocuments:
    """Measures ``StaleDocuments`` and changes nothing about them.

    What a recomputation comes to is counted by whoever asks for it.
    """

    def __init__(self, delegate: StaleDocuments, metrics: Metrics) -> None:
        self._delegate = delegate
        self._claim = StoreCalls(metrics, Store.AURORA, "stale_claim")
        self._recompute = StoreCalls(metrics, Store.AURORA, "stale_recompute")

    def claim(self, limit: int, deadline: Deadline) -> Sequence[StaleDocument]:
        with self._claim() as call:
            stale = self._delegate.claim(limit, deadline)
            if not stale:
                call.outcome = "miss"
            return stale

    def recompute(self, stale: Sequence[StaleDocument], deadline: Deadline) -> Sequence[Recomputed]:
        with self._recompute():
            return self._delegate.recompute(stale, deadline)
