"""The cache, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duostore_server.domain.entities import Cached, Lease, Peeked
    from duostore_server.domain.keys import CacheKey
    from duostore_server.domain.ports import Cache, K
    from duostore_server.telemetry.metrics import Metrics


class ObservedCache:
    """Measures a ``Cache`` and changes nothing about it."""

    def __init__(self, delegate: Cache, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.CACHE, "read")
        self._lease = StoreCalls(metrics, Store.CACHE, "lease")
        self._fill = StoreCalls(metrics, Store.CACHE, "fill")
        self._invalidate = StoreCalls(metrics, Store.CACHE, "invalidate")
        self._peek = StoreCalls(metrics, Store.CACHE, "peek")

    def read(self, keys: Collection[K]) -> Mapping[K, Cached | Lease]:
        with self._read() as call:
            found = self._delegate.read(keys)
            if not found:
                call.outcome = "miss"
            return found

    def lease(self, keys: Collection[K]) -> Mapping[K, Lease]:
        with self._lease() as call:
            leases = self._delegate.lease(keys)
            if not leases:
                call.outcome = "conflict"
            return leases

    def fill(self, key: CacheKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        with self._fill() as call:
            filled = self._delegate.fill(key, lease, entry, ttl)
            if not filled:
                call.outcome = "conflict"
            return filled

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        with self._invalidate():
            self._delegate.invalidate(keys)

    def peek(self, keys: Collection[K]) -> Mapping[K, Peeked]:
        with self._peek() as call:
            found = self._delegate.peek(keys)
            if not found:
                call.outcome = "miss"
            return found
