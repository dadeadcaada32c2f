"""One computation of a result per process, whose outcome all are given who waited for it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from duostore_server.domain.errors import (
    DuostoreError,
    QueryFailedError,
    QueryTimeoutError,
    ResultTooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.domain.keys import ResultKey

T = TypeVar("T")

# What is true of the result, whoever asks for it; all else was the first caller's bad luck.
_OF_THE_RESULT: Final = (QueryFailedError, QueryTimeoutError, ResultTooLargeError)


@dataclass(slots=True)
class _Flight(Generic[T]):
    landed: threading.Event = field(default_factory=threading.Event)
    result: T | None = None
    error: DuostoreError | None = None


class ResultFlights(Generic[T]):
    """Lets one caller at a time compute a result while the others wait for what comes of it.

    Unlike those of ``Flights`` they are handed another caller's outcome. The key holds the
    generations, so that all who wait have read the same ones, and so did the first before it
    began: what has changed since is in its result, or has ended a generation of theirs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[ResultKey, _Flight[T]] = {}

    def join(self, key: ResultKey, patience: float, compute: Callable[[], T]) -> T | None:
        """Return what ``compute`` does, for the first caller, or what it did for that one.

        None if that brought nothing which is of use to others, or not within ``patience``
        seconds. Raises what ``compute`` does, and to the others what is true of the result:
        that it is too large, cannot be computed, or takes too long.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                mine = self._flights[key] = _Flight()
        if flight is not None:
            flight.landed.wait(patience)
            if flight.error is not None:
                raise flight.error
            return flight.result
        try:
            mine.result = compute()
        except _OF_THE_RESULT as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            mine.landed.set()
        return mine.result
