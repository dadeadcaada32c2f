"""How long somebody is still waiting, and what of it a step may use."""

from __future__ import annotations

import pytest

from duostore_server.domain.deadline import LEAST_PART_SECONDS, MARGIN_SECONDS, Deadline
from duostore_server.domain.errors import DeadlineExceededError


def left(seconds: float) -> Deadline:
    return Deadline.after(seconds, clock=lambda: 100.0)


def test_a_call_is_bounded_by_its_own_timeout_or_by_what_is_left() -> None:
    assert left(5).bound(0.8) == pytest.approx(0.8)
    assert left(0.5).bound(0.8) == pytest.approx(0.5 - MARGIN_SECONDS)


@pytest.mark.parametrize("seconds", [-1, 0, MARGIN_SECONDS])
def test_nothing_is_begun_in_vain(seconds: float) -> None:
    with pytest.raises(DeadlineExceededError):
        left(seconds).bound(1)
    assert left(seconds).is_over()


def test_nothing_is_begun_for_a_caller_who_has_gone() -> None:
    deadline = Deadline.after(5, cancelled=lambda: True)
    with pytest.raises(DeadlineExceededError):
        deadline.bound(1)
    with pytest.raises(DeadlineExceededError):
        deadline.part(0.5).bound(1)


def test_a_part_leaves_the_rest() -> None:
    assert left(2.02).part(0.5).bound(10) == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [0.030, 0.060, 0.100])
def test_a_short_deadline_is_not_shared(seconds: float) -> None:
    expected = min(seconds - MARGIN_SECONDS, LEAST_PART_SECONDS)
    assert left(seconds).part(0.5).bound(10) == pytest.approx(expected)


@pytest.mark.parametrize("seconds", [-1, 0, 0.010, MARGIN_SECONDS, 0.030, 5])
def test_no_part_ends_after_the_whole(seconds: float) -> None:
    whole = left(seconds)
    assert whole.part(0.5).remaining() <= whole.remaining()


def test_no_part_of_a_deadline_that_is_over_is_left() -> None:
    assert left(-1).part(0.5).is_over()


@pytest.mark.parametrize("seconds", [-1, 0, MARGIN_SECONDS])
def test_nobody_waits_beyond_a_deadline(seconds: float) -> None:
    assert left(seconds).is_abandoned()
    assert not left(MARGIN_SECONDS + 0.001).is_abandoned()


def test_nobody_waits_who_has_gone() -> None:
    gone = False
    deadline = Deadline.after(5, cancelled=lambda: gone)
    assert not deadline.is_abandoned()
    gone = True
    assert deadline.is_abandoned()
