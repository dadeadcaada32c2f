"""How long a caller is still waiting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from duostore_server.domain.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Callable

# Kept back from every store call, so that its answer can still travel.
MARGIN_SECONDS: Final = 0.020
# What a store that is well needs for an answer, nearly always.
LEAST_PART_SECONDS: Final = 0.050


def _never() -> bool:
    return False


class Deadline:
    """The moment after which nobody waits for an answer any more.

    ``cancelled`` tells whether the caller has gone before that moment. Times are
    seconds of ``clock``, which must be monotonic.
    """

    __slots__ = ("_at", "_cancelled", "_clock")

    def __init__(
        self,
        at: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        cancelled: Callable[[], bool] = _never,
    ) -> None:
        self._at = at
        self._clock = clock
        self._cancelled = cancelled

    @classmethod
    def after(
        cls,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        cancelled: Callable[[], bool] = _never,
    ) -> Self:
        """Return the deadline that is ``seconds`` away."""
        return cls(clock() + seconds, clock=clock, cancelled=cancelled)

    def remaining(self) -> float:
        """Return the seconds left; negative once the deadline has passed."""
        return self._at - self._clock()

    def is_over(self) -> bool:
        """Return whether nothing more should be begun."""
        return self.remaining() <= MARGIN_SECONDS

    def is_abandoned(self) -> bool:
        """Return whether nobody waits any more: it is over, or the caller has gone."""
        return self.is_over() or self._cancelled()

    def part(self, share: float) -> Deadline:
        """Return a deadline after which this share of what is left has been used.

        The rest is for what comes after. What is hardly worth sharing is not: there
        are always ``LEAST_PART_SECONDS``, if there is so much.
        """
        now = self._clock()
        left = self._at - now - MARGIN_SECONDS
        if left <= 0:
            return self
        part = max(left * share, min(left, LEAST_PART_SECONDS))
        return Deadline(now + part + MARGIN_SECONDS, clock=self._clock, cancelled=self._cancelled)

    def within(self, seconds: float) -> Deadline:
        """Return this deadline, or that which is ``seconds`` away if it is earlier."""
        at = min(self._at, self._clock() + seconds)
        return Deadline(at, clock=self._clock, cancelled=self._cancelled)

    def bound(self, own: float) -> float:
        """Return the timeout of a store call: ``own``, or what is left less a margin.

        Raises ``DeadlineExceededError`` if nothing is left or the caller has gone:
        call it just before the work that must not begin in vain.
        """
        left = min(own, self._at - self._clock() - MARGIN_SECONDS)
        if left <= 0 or self._cancelled():
            raise DeadlineExceededError
        return left
