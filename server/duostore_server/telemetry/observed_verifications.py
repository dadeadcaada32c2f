"""What the verifier found, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from duostore_server.domain.admin_ports import Verifications
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import Verified
    from duostore_server.domain.keys import EntityKey
    from duostore_server.telemetry.metrics import Metrics


class ObservedVerifications:
    """Measures ``Verifications`` and changes nothing about them."""

    def __init__(self, delegate: Verifications, metrics: Metrics) -> None:
        self._delegate = delegate
        self._record = StoreCalls(metrics, Store.AURORA, "verifications_record")
        self._last = StoreCalls(metrics, Store.AURORA, "verifications_last")
        self._purge = StoreCalls(metrics, Store.AURORA, "verifications_purge")

    def record(self, looks: Sequence[Verified], deadline: Deadline) -> None:
        with self._record():
            self._delegate.record(looks, deadline)

    def last(self, key: EntityKey, deadline: Deadline) -> Verified | None:
        with self._last() as call:
            look = self._delegate.last(key, deadline)
            if look is None:
                call.outcome = "miss"
            return look

    def purge(self, before: datetime, limit: int, deadline: Deadline) -> int:
        with self._purge() as call:
            purged = self._delegate.purge(before, limit, deadline)
            if not purged:
                call.outcome = "miss"
            return purged
