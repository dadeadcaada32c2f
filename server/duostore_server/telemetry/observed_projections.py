"""The projections, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Projections
    from duostore_server.telemetry.metrics import Metrics


class ObservedProjections:
    """Measures ``Projections`` and changes nothing about them."""

    def __init__(self, delegate: Projections, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.DYNAMODB, "read")
        self._put = StoreCalls(metrics, Store.DYNAMODB, "put")
        self._put_all = StoreCalls(metrics, Store.DYNAMODB, "put_all")

    def read(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        with self._read() as call:
            found = self._delegate.read(keys, deadline)
            if not found:
                call.outcome = "miss"
            return found

    def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
        with self._put() as call:
            held = self._delegate.put(key, projection, deadline)
            if held.version != projection.version:
                call.outcome = "conflict"
            return held

    def put_all(
        self, projections: Mapping[EntityKey, Projection], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        with self._put_all() as call:
            held = self._delegate.put_all(projections, deadline)
            if any(held[key].version != put.version for key, put in projections.items()):
                call.outcome = "conflict"
            return held
