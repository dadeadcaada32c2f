"""One computation of a result per process, whose outcome all are given who waited for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from duostore_server.access.result_flights import ResultFlights
from duostore_server.domain.errors import (
    DeadlineExceededError,
    QueryFailedError,
    QueryTimeoutError,
    ResultTooLargeError,
    Store,
    StoreUnavailableError,
)
from duostore_server.domain.keys import ResultKey
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

KEY = ResultKey("", "by_status", "1")
OTHER = ResultKey("", "by_status", "2")


class Crowd:
    """A first caller who computes until it is told the outcome, and others who wait for it."""

    def __init__(self, others: int = 5) -> None:
        self.flights: ResultFlights[str] = ResultFlights()
        self.computed = 0
        self._go = threading.Event()
        self._began = threading.Event()
        self._others = others

    def _all_wait(self) -> bool:
        # Of threads that wait for an event nothing public tells.
        waiters = self.flights._flights[KEY].landed._cond._waiters  # type: ignore[attr-defined]
        return len(waiters) == self._others

    def outcomes(self, outcome: Callable[[], str]) -> tuple[Future[str | None], list[object]]:
        """Return what came of the first, and of each other: a result, None or an error."""

        def compute() -> str:
            self.computed += 1
            self._began.set()
            assert self._go.wait(10)
            return outcome()

        def ask() -> str | None:
            return self.flights.join(KEY, 10, compute)

        with ThreadPoolExecutor(self._others + 1) as pool:
            first = pool.submit(ask)
            assert self._began.wait(10)
            others = [pool.submit(ask) for _ in range(self._others)]
            eventually(self._all_wait, within=10, what="all wait for the first")
            self._go.set()
            return first, [other.exception() or other.result() for other in others]


def test_all_are_given_what_one_has_computed() -> None:
    crowd = Crowd()
    first, others = crowd.outcomes(lambda: "rows")
    assert (first.result(), others, crowd.computed) == ("rows", ["rows"] * 5, 1)


@pytest.mark.parametrize(
    "error",
    [
        QueryTimeoutError("by_status"),
        QueryFailedError("by_status", "22012"),
        ResultTooLargeError("by_status", "max_rows", 1),
    ],
    ids=repr,
)
def test_what_is_true_of_the_result_all_are_told(error: Exception) -> None:
    def fail() -> str:
        raise error

    crowd = Crowd()
    first, others = crowd.outcomes(fail)
    assert first.exception() is error
    assert (others, crowd.computed) == ([error] * 5, 1)


@pytest.mark.parametrize(
    "error", [DeadlineExceededError(), StoreUnavailableError(Store.AURORA)], ids=repr
)
def test_what_befell_the_first_caller_alone_is_no_outcome(error: Exception) -> None:
    def fail() -> str:
        raise error

    crowd = Crowd(others=1)
    first, (other,) = crowd.outcomes(fail)
    assert first.exception() is error
    assert other is None
    assert crowd.flights.join(KEY, 10, lambda: "rows") == "rows"


def test_a_stuck_flight_pins_nobody_and_other_results_do_not_wait() -> None:
    flights: ResultFlights[str] = ResultFlights()

    def compute() -> str:
        assert flights.join(KEY, 0.01, lambda: "another's") is None
        assert flights.join(OTHER, 10, lambda: "other rows") == "other rows"
        return "rows"

    assert flights.join(KEY, 10, compute) == "rows"
