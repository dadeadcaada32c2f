"""Asks a store until it has got to everything, for as long as the caller waits."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from duostore_server.domain.errors import Store, StoreOverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.errors import DuostoreError
    from duostore_server.storage.dynamodb.coalescer import Batching

K = TypeVar("K")
V = TypeVar("V")

_FIRST_BACKOFF_SECONDS: Final = 0.010


def jitter() -> float:
    """Return the part of a backoff to wait for: half of it at least."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


class Patience:
    """How long DynamoDB has for a piece of work in all, and how to wait between its calls.

    ``timeout`` is in seconds of ``clock``, which is monotonic. ``jitter`` returns the part
    of a backoff to ``pause`` for: more than 0, at most 1.
    """

    def __init__(
        self,
        timeout: float,
        *,
        pause: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = jitter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = timeout
        self._pause = pause
        self._jitter = jitter
        self._clock = clock

    def begin(self, *, calls: int = 1) -> Effort:
        """Return the piece of work that begins now, of about so many calls."""
        ends = self._clock() + calls * self._timeout
        return Effort(ends, self._pause, self._jitter, self._clock)

    def gather(
        self, batching: Batching[K, V], requests: Collection[K], deadline: Deadline
    ) -> dict[K, V]:
        """Return the answers to all of these requests, which must be safe to repeat.

        Asks again for those that the store did not get to. Raises ``StoreOverloadedError``
        if it does not get to them within the timeout.
        """
        effort = self.begin()
        answers: dict[K, V] = {}
        pending = requests
        while True:
            answers |= batching.ask(pending, deadline, effort.left(StoreOverloadedError))
            pending = [request for request in pending if request not in answers]
            if not pending:
                return answers
            effort.wait(deadline, StoreOverloadedError)


class Effort:
    """One piece of work of several calls: the time that is left for it, its growing pauses."""

    def __init__(
        self,
        ends: float,
        pause: Callable[[float], object],
        jitter: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._ends = ends
        self._pause = pause
        self._jitter = jitter
        self._clock = clock
        self._backoff = _FIRST_BACKOFF_SECONDS

    def left(self, otherwise: Callable[[Store], DuostoreError]) -> float:
        """Return the seconds left; raise ``otherwise`` if DynamoDB has used them all up."""
        left = self._ends - self._clock()
        if left <= 0:
            raise otherwise(Store.DYNAMODB)
        return left

    def wait(self, deadline: Deadline, otherwise: Callable[[Store], DuostoreError]) -> None:
        """Pause before the next call, each time for about twice as long."""
        left = self.left(otherwise)
        self._pause(deadline.bound(min(self._backoff * self._jitter(), left)))
        self._backoff *= 2
