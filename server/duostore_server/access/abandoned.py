"""Leases that were waited for in vain: nobody in this process waits for them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.domain.entities import Lease

K = TypeVar("K")

# Leases that nobody came back to fill; few at a time, since each ends after 10 s.
_MOST: Final = 1000


class AbandonedLeases(Generic[K]):
    """Remembers leases whose holders have died, or hang."""

    def __init__(self) -> None:
        self._leases: dict[K, Lease] = {}

    def add(self, leases: Mapping[K, Lease]) -> None:
        """Let nobody wait again for these."""
        if len(self._leases) + len(leases) > _MOST:
            self._leases.clear()
        self._leases.update(leases)

    def holds(self, key: K, lease: Lease) -> bool:
        """Return whether this very lease was waited for before."""
        return self._leases.get(key) == lease
