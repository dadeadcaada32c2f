"""The items of projections, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from duostore_server.domain.admin_ports import HeldItem, ItemPage, ProjectionItems
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.telemetry.metrics import Metrics


class ObservedProjectionItems:
    """Measures ``ProjectionItems`` and changes nothing about them."""

    def __init__(self, delegate: ProjectionItems, metrics: Metrics) -> None:
        self._delegate = delegate
        self._inspect = StoreCalls(metrics, Store.DYNAMODB, "inspect")
        self._replace = StoreCalls(metrics, Store.DYNAMODB, "replace")
        self._page = StoreCalls(metrics, Store.DYNAMODB, "page_items")
        self._sample = StoreCalls(metrics, Store.DYNAMODB, "sample_items")

    def inspect(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, HeldItem]:
        with self._inspect() as call:
            found = self._delegate.inspect(keys, deadline)
            if not found:
                call.outcome = "miss"
            return found

    def replace(self, found: HeldItem, by: Projection | None, deadline: Deadline) -> bool:
        with self._replace() as call:
            replaced = self._delegate.replace(found, by, deadline)
            if not replaced:
                call.outcome = "conflict"
            return replaced

    def fits(self, key: EntityKey, projection: Projection) -> bool:
        return self._delegate.fits(key, projection)

    def page(self, start: str | None, limit: int, deadline: Deadline) -> ItemPage:
        with self._page():
            return self._delegate.page(start, limit, deadline)

    def sample(self, limit: int, deadline: Deadline) -> Sequence[HeldItem]:
        with self._sample() as call:
            found = self._delegate.sample(limit, deadline)
            if not found:
                call.outcome = "miss"
            return found
