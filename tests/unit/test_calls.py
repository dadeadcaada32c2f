"""A call that is not safe to repeat is made once or never, and its caller knows which."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.storage.dynamodb.calls import Call, Calls, make_all
from duostore_server.storage.dynamodb.coalescer import Coalescer, Direct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.storage.dynamodb.calls import CallBatching

WITHIN = 30.0


def soon() -> Deadline:
    return Deadline.after(60)


@contextmanager
def one_thread(max_waiting: int = 8) -> Iterator[CallBatching]:
    with Coalescer(
        "calls",
        make_all,
        store=Store.DYNAMODB,
        max_batch=1,
        max_in_flight=1,
        max_waiting=max_waiting,
    ) as batching:
        yield batching


class Work:
    """Takes until it is let go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.runs = 0

    def __call__(self) -> str:
        self.runs += 1
        self.begun.set()
        assert self.go_on.wait(WITHIN)
        return "done"


def test_a_call_answers_or_raises_what_it_does() -> None:
    error = ValueError("of its own")

    def fail() -> None:
        raise error

    with one_thread() as threaded:
        for batching in (threaded, Direct(make_all, max_batch=1)):
            calls = Calls(batching)
            assert calls.make(lambda: None, soon(), WITHIN) is None
            assert calls.make(lambda: "done", soon(), WITHIN) == "done"
            with pytest.raises(ValueError, match="of its own") as raised:
                calls.make(fail, soon(), WITHIN)
            assert raised.value is error


@pytest.mark.parametrize("timeout", [0.15, 0.05], ids=["the store's", "the caller's"])
def test_a_call_that_was_begun_and_left_may_have_been_done(timeout: float) -> None:
    work = Work()
    with one_thread() as batching:
        deadline = Deadline.after(timeout + 0.02)
        with pytest.raises(WriteOutcomeUnknownError):
            Calls(batching).make(work, deadline, WITHIN)
        work.go_on.set()
    assert work.runs == 1


def test_a_call_that_was_left_before_it_began_is_never_made() -> None:
    blocking, late = Work(), Work()
    late.go_on.set()
    with one_thread() as batching, ThreadPoolExecutor(1) as pool:
        calls = Calls(batching)
        blocked = pool.submit(calls.make, blocking, soon(), WITHIN)
        assert blocking.begun.wait(WITHIN)
        with pytest.raises(StoreTimeoutError):
            calls.make(late, soon(), 0.1)
        with pytest.raises(DeadlineExceededError):
            calls.make(late, Deadline.after(0.05), WITHIN)
        with pytest.raises(DeadlineExceededError):
            calls.make(late, Deadline.after(0), WITHIN)
        blocking.go_on.set()
        assert blocked.result(WITHIN) == "done"
        assert calls.make(lambda: "next", soon(), WITHIN) == "next"
    assert late.runs == 0


def test_a_call_for_which_there_is_no_room_was_not_made() -> None:
    work = Work()
    with one_thread(max_waiting=0) as batching, pytest.raises(StoreOverloadedError):
        Calls(batching).make(work, soon(), WITHIN)
    assert work.runs == 0


def test_of_a_stop_each_caller_knows_whether_its_call_had_begun() -> None:
    begun, waiting = Work(), Work()
    batching: Coalescer[Call, object] = Coalescer(
        "calls", make_all, store=Store.DYNAMODB, max_batch=1, max_in_flight=1, max_waiting=8
    )
    calls = Calls(batching)
    batching.start()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(calls.make, begun, soon(), WITHIN)
        assert begun.begun.wait(WITHIN)
        second = pool.submit(calls.make, waiting, soon(), WITHIN)
        eventually(lambda: batching._waiting, within=WITHIN, what="the second call waits")
        assert not batching.stop(grace=0)
        with pytest.raises(WriteOutcomeUnknownError):
            first.result(WITHIN)
        with pytest.raises(StoreUnavailableError):
            second.result(WITHIN)
        begun.go_on.set()
    with pytest.raises(StoreUnavailableError):
        calls.make(waiting, soon(), WITHIN)
    assert (begun.runs, waiting.runs) == (1, 0)


def test_a_call_is_taken_once() -> None:
    """By its caller or by its maker, whoever comes first."""
    for _ in range(50):
        call = Call(lambda: None)
        together = threading.Barrier(4)

        def take(_: int, call: Call = call, together: threading.Barrier = together) -> bool:
            together.wait(WITHIN)
            return call.take()

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(take, range(4))) == 1
