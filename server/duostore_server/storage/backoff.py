"""Keeps calls away from what has just failed, so that it is not waited for again and again."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_OPEN: Final = -math.inf


class Backoff:
    """Admits callers until ``tolerance`` calls in a row have failed, then nobody for a pause.

    After ``pause()`` seconds one caller at a time finds out for all, so that a store
    that swallows packets costs one timeout per pause and not one per request. ``clock``
    is monotonic. Safe to use from many threads.
    """

    def __init__(
        self, pause: Callable[[], float], clock: Callable[[], float], *, tolerance: int = 1
    ) -> None:
        self._pause = pause
        self._clock = clock
        self._tolerance = tolerance
        self._lock = threading.Lock()
        self._failures = 0
        self._shut_until = _OPEN

    def admits(self) -> bool:
        """Return whether to make a call; each caller told so must report what came of it."""
        if self._shut_until == _OPEN:
            return True
        with self._lock:
            now = self._clock()
            if now < self._shut_until:
                return False
            if self._shut_until != _OPEN:
                self._shut_until = now + self._pause()
            return True

    def failed(self) -> None:
        """Count a failure; shut the store off for a pause if there were too many."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._tolerance:
                self._shut_until = self._clock() + self._pause()

    def succeeded(self) -> None:
        """Forget the failures and admit everybody."""
        if self._failures or self._shut_until != _OPEN:
            with self._lock:
                self._failures = 0
                self._shut_until = _OPEN
