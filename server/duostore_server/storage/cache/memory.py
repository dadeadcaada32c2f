"""The cache inside one process, for the embedded default."""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.domain.entities import Cached, Lease, Peeked
from duostore_server.storage.cache.leases import LEASE_SECONDS, new_nonce

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from duostore_server.domain.keys import CacheKey
    from duostore_server.domain.ports import K

# About what a slot takes beside its payload and its key's text: the entry, the table.
_SLOT_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class _Slot:
    entry: Cached | Lease
    expires: float
    size: int


class MemoryCache:
    """A ``Cache`` that serves one process alone, and forgets what was used least lately.

    Correct only where no second process changes what it holds. Bounded by
    ``max_entries`` and ``max_bytes``, leases included; entries of more than
    ``item_max`` bytes are not filled. ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        *,
        max_entries: int = 100_000,
        max_bytes: int = 64 * 1024 * 1024,
        item_max: int = 1024 * 1024,
        nonces: Callable[[], bytes] = new_nonce,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._largest = min(item_max, max_bytes)
        self._nonces = nonces
        self._clock = clock
        self._lock = threading.Lock()
        # The least lately used first.
        self._slots: OrderedDict[CacheKey, _Slot] = OrderedDict()
        self._bytes = 0

    def read(self, keys: Collection[K]) -> Mapping[K, Cached | Lease]:
        entries = {}
        with self._lock:
            for key in keys:
                entry = self._find(key)
                if entry is not None:
                    self._slots.move_to_end(key)
                    entries[key] = entry
        return entries

    def lease(self, keys: Collection[K]) -> Mapping[K, Lease]:
        leases = {}
        with self._lock:
            for key in keys:
                if self._find(key) is None:
                    leases[key] = Lease(self._nonces())
                    self._put(key, leases[key], _overhead(key), LEASE_SECONDS)
        return leases

    def fill(self, key: CacheKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        size = _overhead(key) + len(entry.payload or b"")
        with self._lock:
            if self._find(key) != lease:
                return False
            self._remove(key)
            if size > self._largest:
                return False
            self._put(key, entry, size, ttl)
            return True

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        with self._lock:
            for key in keys:
                self._remove(key)

    def peek(self, keys: Collection[K]) -> Mapping[K, Peeked]:
        now = self._clock()
        with self._lock:
            slots = {key: slot for key in keys if (slot := self._slots.get(key)) is not None}
        return {
            key: Peeked(slot.entry, slot.size) for key, slot in slots.items() if slot.expires > now
        }

    def _find(self, key: CacheKey) -> Cached | Lease | None:
        slot = self._slots.get(key)
        if slot is None:
            return None
        if slot.expires <= self._clock():
            self._remove(key)
            return None
        return slot.entry

    def _put(self, key: CacheKey, entry: Cached | Lease, size: int, ttl: float) -> None:
        self._slots[key] = _Slot(entry, self._clock() + ttl, size)
        self._bytes += size
        while len(self._slots) > self._max_entries or self._bytes > self._max_bytes:
            _, evicted = self._slots.popitem(last=False)
            self._bytes -= evicted.size

    def _remove(self, key: CacheKey) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._bytes -= slot.size


def _overhead(key: CacheKey) -> int:
    # Of a text with one rare character each takes 4 bytes, so its length would not do.
    return _SLOT_BYTES + sys.getsizeof(str(key))
