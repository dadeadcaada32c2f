"""When the client tries again: the waits, and what ends them."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from duostore import Error
from duostore.retries import Retries, random_jitter

DOWN = Error("down", code=StatusCode.UNAVAILABLE, reason="STORE_UNAVAILABLE")
LONG = 1e6


def retries(jitter: float = 1.0) -> Retries:
    return Retries(lambda: jitter)


@pytest.mark.parametrize(
    ("code", "reason", "passes"),
    [
        (StatusCode.UNAVAILABLE, "", True),
        (StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", True),
        (StatusCode.UNKNOWN, "WRITE_OUTCOME_UNKNOWN", True),
        (StatusCode.ABORTED, "DUPLICATE_IN_PROGRESS", True),
        (StatusCode.ABORTED, "VERSION_MISMATCH", False),
        (StatusCode.ABORTED, "", False),
        (StatusCode.UNKNOWN, "", False),
        (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", False),
        (StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", False),
        (StatusCode.INTERNAL, "INTERNAL", False),
        (StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED", False),
    ],
)
def test_what_may_pass_is_tried_again(code: StatusCode, reason: str, passes: bool) -> None:  # noqa: FBT001 - an expectation
    failure = Error("it failed", code=code, reason=reason)
    assert (retries().wait(failure, 1, LONG) is not None) is passes


def test_waits_double_up_to_two_seconds() -> None:
    waits = [retries().wait(DOWN, tries, LONG) for tries in range(1, 9)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_waits_are_spread_and_never_shorter_than_the_server_asks() -> None:
    asked = Error("down", code=StatusCode.UNAVAILABLE, retry_after=3.0)
    assert retries(1.5).wait(asked, 1, LONG) == 4.5
    assert retries(1.5).wait(DOWN, 1, LONG) == pytest.approx(0.15)
    soon = Error("busy", code=StatusCode.ABORTED, reason="DUPLICATE_IN_PROGRESS", retry_after=0.01)
    assert retries().wait(soon, 3, LONG) == 0.4, "nor shorter than it has been"
    jitters = [random_jitter() for _ in range(1000)]
    assert all(1.0 <= jitter <= 1.5 for jitter in jitters)
    assert max(jitters) - min(jitters) > 0.4


def test_nothing_is_waited_for_that_would_come_too_late() -> None:
    assert retries().wait(DOWN, 1, 0.16) == 0.1
    assert retries().wait(DOWN, 1, 0.14) is None
    assert retries().wait(DOWN, 1, -1.0) is None


def test_an_outage_ends_the_retrying_and_its_end_begins_it_anew() -> None:
    shared = retries()
    waits = [shared.wait(DOWN, 1, LONG) for _ in range(200)]
    assert waits[:49] == [0.1] * 49
    assert set(waits[49:]) == {None}
    for _ in range(499):
        shared.succeeded()
    assert shared.wait(DOWN, 1, LONG) is None, "a failure outweighs ten successes"
    for _ in range(30):
        shared.succeeded()
    assert shared.wait(DOWN, 1, LONG) == 0.1


def test_successes_are_not_saved_up_without_bounds() -> None:
    shared = retries()
    for _ in range(100_000):
        shared.succeeded()
    waits = [shared.wait(DOWN, 1, LONG) for _ in range(60)]
    assert waits.count(0.1) == 49


def test_what_would_not_be_tried_again_anyway_does_not_count() -> None:
    shared = retries()
    for _ in range(200):
        shared.wait(Error("it exists", code=StatusCode.ALREADY_EXISTS), 1, LONG)
    assert shared.wait(DOWN, 1, LONG) == 0.1
