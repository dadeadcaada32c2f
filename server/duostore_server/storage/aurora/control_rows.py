"""Rows of duostore.control, which every process reads once a second."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import LiteralString

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Rows

T = TypeVar("T")

_QUIET_SECONDS: Final = 60.0


class ControlRows(Generic[T]):
    """Rows, and what they come to.

    All of them are fetched each time, and looked into only if they have changed: there may be
    thousands.
    """

    def __init__(
        self,
        pool: AuroraPool,
        query: LiteralString,
        look_into: Callable[[Rows], tuple[T, int]],
        *,
        complain: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        """``look_into`` returns what rows come to, and how many of them cannot be read.

        ``complain`` is told that number once a minute, if there are any.
        """
        self._pool = pool
        self._query = query
        self._look_into = look_into
        self._complain = complain
        self._clock = clock
        self._quiet_until = -math.inf
        self._seen: tuple[Rows, tuple[T, int]] | None = None

    def read(self, deadline: Deadline) -> T:
        """Return what the rows come to now, the same object if it has not changed."""
        rows = self._pool.ask_writer(self._query, (), deadline)
        seen = self._seen
        if seen is None or seen[0] != rows:
            seen = self._seen = rows, self._look_into(rows)
        _, (found, unreadable) = seen
        if unreadable and self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + _QUIET_SECONDS
            self._complain(unreadable)
        return found
