"""The entities of Aurora, many at a time, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from duostore_server.domain.admin_ports import Entities, EntityPage
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import SavedVersion
    from duostore_server.domain.keys import EntityKey
    from duostore_server.telemetry.metrics import Metrics


class ObservedEntities:
    """Measures ``Entities`` and changes nothing about them."""

    def __init__(self, delegate: Entities, metrics: Metrics) -> None:
        self._delegate = delegate
        self._page = StoreCalls(metrics, Store.AURORA, "entities_page")
        self._sample = StoreCalls(metrics, Store.AURORA, "entities_sample")
        self._estimate = StoreCalls(metrics, Store.AURORA, "entities_estimate")
        self._time = StoreCalls(metrics, Store.AURORA, "entities_time")
        self._saved = StoreCalls(metrics, Store.AURORA, "entities_saved")

    def page(
        self,
        kind: str,
        after: EntityKey | None,
        until: EntityKey | None,
        limit: int,
        deadline: Deadline,
    ) -> EntityPage:
        with self._page() as call:
            page = self._delegate.page(kind, after, until, limit, deadline)
            if not page.entities:
                call.outcome = "miss"
            return page

    def sample(self, kind: str, limit: int, deadline: Deadline) -> Sequence[EntityKey]:
        with self._sample() as call:
            keys = self._delegate.sample(kind, limit, deadline)
            if not keys:
                call.outcome = "miss"
            return keys

    def estimate(self, kind: str, deadline: Deadline) -> int:
        with self._estimate():
            return self._delegate.estimate(kind, deadline)

    def time(self, deadline: Deadline) -> datetime:
        with self._time():
            return self._delegate.time(deadline)

    def saved(
        self, since: datetime, until: datetime, limit: int, deadline: Deadline
    ) -> Sequence[SavedVersion]:
        with self._saved() as call:
            versions = self._delegate.saved(since, until, limit, deadline)
            if not versions:
                call.outcome = "miss"
            return versions
