"""One fill per key and process."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.keys import EntityKey


class Flights:
    """Lets one caller at a time fetch a key while the others wait for it to land.

    Nobody is handed another caller's result: that read may have begun before a Save
    that the waiting caller already knows of. Those who waited look into the cache
    again, where only a fill that survived every invalidation is found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[EntityKey, threading.Event] = {}

    @contextmanager
    def join(self, key: EntityKey, patience: float) -> Iterator[bool]:
        """Yield True to the first caller, who is in flight until the block ends.

        Yields False to the others, once that flight has landed or after ``patience``
        seconds: a stuck flight pins nobody.
        """
        with self._lock:
            landed = self._flights.get(key)
            if landed is None:
                mine = self._flights[key] = threading.Event()
        if landed is not None:
            landed.wait(patience)
            yield False
            return
        try:
            yield True
        finally:
            with self._lock:
                del self._flights[key]
            mine.set()
