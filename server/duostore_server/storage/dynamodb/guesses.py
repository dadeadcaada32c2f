"""What was last seen of numbers that others may have raised since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duostore_server.domain.keys import EntityKey


class Guesses:
    """Remembers the numbers of the heads that were written last; safe to use from many threads."""

    def __init__(self, most: int) -> None:
        """``most`` is the number of keys that are remembered."""
        self._most = most
        self._lock = threading.Lock()
        self._numbers: OrderedDict[EntityKey, int] = OrderedDict()

    def of(self, key: EntityKey) -> int | None:
        """Return the number last seen of a head, None if it is not remembered."""
        return self._numbers.get(key)

    def saw(self, key: EntityKey, number: int) -> None:
        """Remember a number, and forget the key that was not seen for longest."""
        with self._lock:
            self._numbers[key] = number
            self._numbers.move_to_end(key)
            if len(self._numbers) > self._most:
                self._numbers.popitem(last=False)
