"""Waiting for something to become true, for a bounded time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_POLL_SECONDS = 0.01


def eventually(condition: Callable[[], T], *, within: float, what: str) -> T:
    """Return the first truthy value of ``condition``, asked again and again.

    Raises ``AssertionError`` with ``what`` if there is none ``within`` so many seconds;
    the condition is asked at least once. What it raises passes through.
    """
    deadline = time.monotonic() + within
    while True:
        late = time.monotonic() >= deadline
        if value := condition():
            return value
        if late:
            raise AssertionError(f"not within {within:g} s: {what} (last seen: {value!r})")
        time.sleep(_POLL_SECONDS)
