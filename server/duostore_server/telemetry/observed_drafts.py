"""The drafts, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Drafts
    from duostore_server.domain.snapshots import Draft
    from duostore_server.telemetry.metrics import Metrics


class ObservedDrafts:
    """Measures ``Drafts`` and changes nothing about them."""

    def __init__(self, delegate: Drafts, metrics: Metrics) -> None:
        self._delegate = delegate
        self._fold = StoreCalls(metrics, Store.AURORA, "drafts_fold")

    def fold(self, drafts: Sequence[Draft], deadline: Deadline) -> Mapping[EntityKey, int]:
        with self._fold():
            return self._delegate.fold(drafts, deadline)
