"""The limits that are set at run time, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import Limits
    from duostore_server.telemetry.metrics import Metrics


class ObservedLimits:
    """Measures ``Limits`` and changes nothing about them."""

    def __init__(self, delegate: Limits, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.AURORA, "limits_read")

    def read(self, deadline: Deadline) -> Mapping[tuple[str, str], int]:
        with self._read() as call:
            found = self._delegate.read(deadline)
            if not found:
                call.outcome = "miss"
            return found
