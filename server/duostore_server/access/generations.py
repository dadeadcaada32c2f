"""The generations of kinds: what makes all cached results of a kind unreachable at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import StoreError
from duostore_server.domain.keys import GenerationKey

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime

    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Cache

# Longer than any result is cached: one that ends takes good results with it.
_TTL_SECONDS: Final = 24 * 3600.0
# Of an entry that exists.
_VERSION: Final = 1


class Generations:
    """Names the present generation of a kind in a tenant by a random nonce in the cache.

    A result is cached under the nonces that were there before it was computed. A change of
    a kind takes the nonce away, as it takes the entity's entry away; whoever comes next
    places another, which was never there before. Counters would not do: a counter that is
    evicted begins anew, and leads back to what was cached under its first values.

    The nonce is that of a lease, whether it is found as one or, once it was made to last,
    as an entry.
    """

    def __init__(self, cache: Cache, now: Callable[[], datetime]) -> None:
        self._cache = cache
        self._now = now

    def read(self, tenant: str, kinds: Iterable[str]) -> tuple[bytes, ...] | None:
        """Return the nonce of each kind; None if one cannot be told, so that nothing be cached."""
        keys = [GenerationKey(tenant, kind) for kind in kinds]
        if not keys:
            return ()
        try:
            found = self._read(keys)
            if vacant := [key for key in keys if key not in found]:
                found |= self._place(vacant)
            if lost := [key for key in vacant if key not in found]:
                # Another was first.
                found |= self._read(lost)
        except StoreError:
            return None
        if len(found) < len(keys):
            return None
        return tuple(found[key] for key in keys)

    def _read(self, keys: Collection[GenerationKey]) -> dict[GenerationKey, bytes]:
        return {
            key: nonce
            for key, entry in self._cache.read(keys).items()
            if (nonce := entry.nonce if isinstance(entry, Lease) else entry.payload)
        }

    def _place(self, keys: Collection[GenerationKey]) -> dict[GenerationKey, bytes]:
        leases = self._cache.lease(keys)
        for key, lease in leases.items():
            self._keep(key, lease)
        return {key: lease.nonce for key, lease in leases.items()}

    def _keep(self, key: GenerationKey, lease: Lease) -> None:
        """Make a nonce last. If it was taken away by now, nobody finds what is cached under it."""
        self._cache.fill(key, lease, Cached(_VERSION, lease.nonce, self._now()), _TTL_SECONDS)


def generations_of(keys: Iterable[EntityKey]) -> Iterable[GenerationKey]:
    """Return the generations that end when these entities change, each once and in order."""
    return dict.fromkeys(GenerationKey(key.tenant, key.kind) for key in keys)
