from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.storage.dynamodb.coalescer import Coalescer, Direct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

LONG = 30.0
SHORT = 0.05


def soon() -> Deadline:
    return Deadline.after(LONG)


class Backend:
    """Answers ``ANSWERS[request]``; holds calls back until they are let go."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.answer: Callable[[str], object] = str.upper
        self._gate = threading.Event()
        self._gate.set()

    def __call__(self, requests: Sequence[str]) -> dict[str, object]:
        self.sent.append(list(requests))
        answers = {request: self.answer(request) for request in requests}
        assert self._gate.wait(LONG)
        return answers

    def hold(self) -> None:
        self._gate.clear()

    def let_go(self) -> None:
        self._gate.set()


class Bench:
    """A coalescer, the backend below it and the callers above."""

    def __init__(self, coalescer: Coalescer[str, object], backend: Backend) -> None:
        self.coalescer = coalescer
        self.backend = backend
        self.callers = ThreadPoolExecutor(32)

    def call(self, *requests: str, timeout: float = LONG) -> Future[dict[str, object]]:
        return self.callers.submit(self.coalescer.ask, requests, soon(), timeout)

    def call_and_wait_until_sent(self, *requests: str) -> Future[dict[str, object]]:
        calls = len(self.backend.sent)
        future = self.call(*requests)
        eventually(lambda: len(self.backend.sent) > calls, within=LONG, what="it is sent")
        return future

    def call_and_wait_until_queued(self, *requests: str) -> Future[dict[str, object]]:
        future = self.call(*requests)
        self.wait_for_callers(requests[0])
        return future

    def wait_for_callers(self, request: str, count: int = 1) -> None:
        waiting = self.coalescer._waiting
        eventually(
            lambda: len(waiting.get(request, ())) >= count,
            within=LONG,
            what=f"{count} callers wait for {request}",
        )


@contextmanager
def running(
    kind: type[Coalescer[str, object]] = Coalescer,
    *,
    max_batch: int = 100,
    max_in_flight: int = 1,
    max_waiting: int = 1000,
) -> Iterator[Bench]:
    backend = Backend()
    coalescer = kind(
        "bench",
        backend,
        store=Store.DYNAMODB,
        max_batch=max_batch,
        max_in_flight=max_in_flight,
        max_waiting=max_waiting,
    )
    bench = Bench(coalescer, backend)
    with bench.callers:
        try:
            with coalescer:
                try:
                    yield bench
                finally:
                    backend.let_go()
        finally:
            eventually(
                lambda: not any(t.name.startswith("bench-") for t in threading.enumerate()),
                within=LONG,
                what="no thread is left behind",
            )


def test_one_caller_is_sent_at_once() -> None:
    with running() as bench:
        assert bench.coalescer.ask(("a",), soon(), LONG) == {"a": "A"}
        assert bench.backend.sent == [["a"]]


def test_nothing_asked_is_nothing_sent() -> None:
    with running() as bench:
        assert bench.coalescer.ask((), soon(), LONG) == {}
        assert bench.backend.sent == []


def test_what_gathers_while_a_batch_is_in_flight_is_one_batch() -> None:
    with running() as bench:
        bench.backend.hold()
        first = bench.call_and_wait_until_sent("a")
        others = {name: bench.call_and_wait_until_queued(name) for name in "bcdefgh"}
        bench.backend.let_go()
        assert first.result(LONG) == {"a": "A"}
        for name, future in others.items():
            assert future.result(LONG) == {name: name.upper()}
        assert bench.backend.sent == [["a"], list("bcdefgh")]


def test_a_batch_has_a_limit_and_keeps_the_order_of_arrival() -> None:
    with running(max_batch=3) as bench:
        bench.backend.hold()
        bench.call_and_wait_until_sent("a")
        futures = [bench.call_and_wait_until_queued(name) for name in "bcdefgh"]
        bench.backend.let_go()
        for future in futures:
            future.result(LONG)
        assert bench.backend.sent == [["a"], list("bcd"), list("efg"), ["h"]]


def test_a_large_call_travels_in_several_batches_at_a_time() -> None:
    requests = [f"r{number}" for number in range(10)]
    with running(max_batch=4, max_in_flight=3) as bench:
        bench.backend.hold()
        future = bench.call(*requests, *requests)
        eventually(lambda: len(bench.backend.sent) == 3, within=LONG, what="all are in flight")
        bench.backend.let_go()
        assert future.result(LONG) == {request: request.upper() for request in requests}
        assert sorted(len(batch) for batch in bench.backend.sent) == [2, 4, 4]


def test_equal_requests_that_wait_are_sent_once() -> None:
    with running() as bench:
        bench.backend.hold()
        bench.call_and_wait_until_sent("a")
        futures = [bench.call("b", "c"), bench.call("c", "d"), bench.call("c")]
        bench.wait_for_callers("c", 3)
        bench.backend.let_go()
        assert [sorted(future.result(LONG)) for future in futures] == [
            ["b", "c"],
            ["c", "d"],
            ["c"],
        ]
        assert [sorted(batch) for batch in bench.backend.sent] == [["a"], ["b", "c", "d"]]


def test_a_batch_that_hangs_pins_only_its_own_callers() -> None:
    with running(max_in_flight=2) as bench:
        bench.backend.hold()
        stuck = bench.call_and_wait_until_sent("a")
        first_gate, bench.backend._gate = bench.backend._gate, threading.Event()
        bench.backend.let_go()
        for _ in range(20):
            assert bench.call("b").result(LONG) == {"b": "B"}
        assert not stuck.done()
        first_gate.set()
        assert stuck.result(LONG) == {"a": "A"}


# A read that begins before the caller asks may miss a write that the caller knows of.


class JoinsInFlight(Coalescer[str, object]):
    """The mutant: a newcomer joins an equal request that was already sent."""

    def _joinable(self, request: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        sent = (batch[request] for batch in self._sent.values() if request in batch)
        return next(sent, None) or super()._joinable(request)


def read_after_an_acknowledged_write(kind: type[Coalescer[str, object]]) -> object:
    """Return what a caller reads who asks after a write, while an older read is in flight."""
    with running(kind, max_in_flight=2) as bench:
        versions = {"k": 1}
        bench.backend.answer = versions.__getitem__
        bench.backend.hold()
        older = bench.call_and_wait_until_sent("k")
        versions["k"] = 2  # the write, acknowledged here
        newer = bench.call("k")
        eventually(
            lambda: (
                len(bench.backend.sent) == 2
                or any(len(batch["k"]) == 2 for batch in list(bench.coalescer._sent.values()))
            ),
            within=LONG,
            what="the second call is on its way",
        )
        bench.backend.let_go()
        assert older.result(LONG) == {"k": 1}
        return newer.result(LONG)["k"]


def test_a_call_never_joins_a_batch_that_was_sent() -> None:
    assert read_after_an_acknowledged_write(Coalescer) == 2


def test_the_mutant_that_joins_reads_the_past() -> None:
    assert read_after_an_acknowledged_write(JoinsInFlight) == 1


@pytest.mark.parametrize("seed", range(3))
def test_under_load_every_answer_is_from_after_its_question(seed: int) -> None:
    clock = [0]
    lock = threading.Lock()

    def tick(_request: str = "") -> int:
        with lock:
            clock[0] += 1
            return clock[0]

    def caller(number: int) -> int:
        rng = random.Random(seed * 100 + number)
        for _ in range(200):
            requests = rng.sample("abcdefghij", rng.randint(1, 5))
            asked = tick()
            answers = bench.coalescer.ask(requests, soon(), LONG)
            assert set(answers) == set(requests)
            assert all(asked < answer <= clock[0] for answer in answers.values())  # type: ignore[operator]
        return number

    with running(max_batch=4, max_in_flight=3) as bench:
        bench.backend.answer = tick
        assert list(bench.callers.map(caller, range(16))) == list(range(16))
        assert len(bench.backend.sent) < 16 * 200


def test_a_caller_leaves_after_its_timeout() -> None:
    with running() as bench:
        bench.backend.hold()
        with pytest.raises(StoreTimeoutError) as caught:
            bench.coalescer.ask(("a",), soon(), SHORT)
        assert caught.value.store is Store.DYNAMODB


def test_a_caller_leaves_at_its_deadline() -> None:
    with running() as bench:
        bench.backend.hold()
        with pytest.raises(DeadlineExceededError):
            bench.coalescer.ask(("a",), Deadline.after(SHORT), LONG)


def test_after_the_deadline_nothing_is_sent() -> None:
    with running() as bench:
        with pytest.raises(DeadlineExceededError):
            bench.coalescer.ask(("a",), Deadline.after(0), LONG)
        assert bench.call("b").result(LONG) == {"b": "B"}
        assert bench.backend.sent == [["b"]]


def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    with running() as bench:
        bench.backend.hold()
        bench.call_and_wait_until_sent("a")
        with pytest.raises(StoreTimeoutError):
            bench.coalescer.ask(("b", "c"), soon(), SHORT)
        stays = bench.call_and_wait_until_queued("d")
        bench.backend.let_go()
        assert stays.result(LONG) == {"d": "D"}
        assert bench.backend.sent == [["a"], ["d"]]


def test_a_caller_that_leaves_takes_nothing_from_those_that_stay() -> None:
    with running() as bench:
        bench.backend.hold()
        bench.call_and_wait_until_sent("a")
        stays = bench.call_and_wait_until_queued("b")
        with pytest.raises(StoreTimeoutError):
            bench.coalescer.ask(("b",), soon(), SHORT)
        bench.backend.let_go()
        assert stays.result(LONG) == {"b": "B"}


def test_a_full_queue_refuses_and_takes_nothing_in() -> None:
    with running(max_waiting=2) as bench:
        bench.backend.hold()
        bench.call_and_wait_until_sent("a")
        waiting = [bench.call_and_wait_until_queued("b")]
        with pytest.raises(StoreOverloadedError):
            bench.coalescer.ask(("c", "d"), soon(), LONG)
        waiting.append(bench.call_and_wait_until_queued("c"))
        # Joining needs no room.
        waiting.append(bench.call("b", "c"))
        bench.wait_for_callers("c", 2)
        bench.backend.let_go()
        assert [future.result(LONG) for future in waiting] == [
            {"b": "B"},
            {"c": "C"},
            {"b": "B", "c": "C"},
        ]
        assert [sorted(batch) for batch in bench.backend.sent] == [["a"], ["b", "c"]]


def test_what_the_store_did_not_get_to_is_left_out() -> None:
    with running() as bench:
        bench.coalescer._send = lambda requests: {r: r for r in requests if r != "b"}
        assert bench.coalescer.ask(("a", "b", "c"), soon(), LONG) == {"a": "a", "c": "c"}
        assert bench.coalescer.ask(("b",), soon(), LONG) == {}


def test_each_caller_raises_an_exception_of_its_own() -> None:
    original = StoreOverloadedError(Store.DYNAMODB)

    def refuse(_request: str) -> object:
        raise original

    with running() as bench:
        bench.backend.hold()
        bench.call_and_wait_until_sent("a")
        futures = [bench.call("b"), bench.call("b"), bench.call("c")]
        bench.wait_for_callers("b", 2)
        bench.wait_for_callers("c")
        bench.backend.answer = refuse
        bench.backend.let_go()
        errors = [future.exception(LONG) for future in futures]
        length = traceback_length(original)
    for error in errors:
        assert type(error) is StoreOverloadedError
        assert str(error) == str(original)
        assert error.metadata == original.metadata
        assert error.__cause__ is original
    assert len({id(error) for error in [*errors, original]}) == 4
    assert traceback_length(original) == length


def traceback_length(error: BaseException) -> int:
    trace = error.__traceback__
    length = 0
    while trace is not None:
        length += 1
        trace = trace.tb_next
    return length


def test_a_bug_reaches_the_caller_and_the_thread_goes_on() -> None:
    def fail(_request: str) -> object:
        raise ZeroDivisionError("a bug")

    with running() as bench:
        bench.backend.answer = fail
        with pytest.raises(ZeroDivisionError, match="a bug"):
            bench.coalescer.ask(("a",), soon(), LONG)
        bench.backend.answer = str.upper
        assert bench.coalescer.ask(("a",), soon(), LONG) == {"a": "A"}


def test_a_call_fails_with_the_first_of_its_batches_and_sends_no_more() -> None:
    def fail(_request: str) -> object:
        raise StoreUnavailableError(Store.DYNAMODB)

    with running(max_batch=1) as bench:
        bench.backend.hold()
        bench.call_and_wait_until_sent("a")
        failing = bench.call_and_wait_until_queued("b", "c", "d")
        bench.backend.answer = fail
        bench.backend.let_go()
        with pytest.raises(StoreUnavailableError):
            failing.result(LONG)
        bench.backend.answer = str.upper
        assert bench.call("e").result(LONG) == {"e": "E"}
        assert bench.coalescer._waiting == {}


def test_stop_fails_those_who_wait_and_lets_those_in_flight_finish() -> None:
    with running() as bench:
        bench.backend.hold()
        in_flight = bench.call_and_wait_until_sent("a")
        waiting = bench.call_and_wait_until_queued("b")
        stopped = bench.callers.submit(bench.coalescer.stop)
        assert isinstance(waiting.exception(LONG), StoreUnavailableError)
        assert not in_flight.done()
        bench.backend.let_go()
        assert in_flight.result(LONG) == {"a": "A"}
        assert stopped.result(LONG) is True
        with pytest.raises(StoreUnavailableError):
            bench.coalescer.ask(("c",), soon(), LONG)
        assert bench.backend.sent == [["a"]]


def test_stop_waits_for_a_batch_that_hangs_only_so_long() -> None:
    with running() as bench:
        bench.backend.hold()
        stuck = bench.call_and_wait_until_sent("a")
        assert bench.coalescer.stop(grace=SHORT) is False
        assert isinstance(stuck.exception(LONG), StoreUnavailableError)


def test_before_start_nothing_can_be_asked() -> None:
    coalescer = Coalescer(
        "bench", Backend(), store=Store.DYNAMODB, max_batch=1, max_in_flight=1, max_waiting=1
    )
    with pytest.raises(StoreUnavailableError):
        coalescer.ask(("a",), soon(), LONG)
    assert coalescer.stop() is True


def test_direct_sends_in_batches_from_the_callers_thread() -> None:
    threads = set()
    sent = []

    def send(requests: Sequence[int]) -> dict[int, int]:
        threads.add(threading.current_thread())
        sent.append(list(requests))
        return {request: -request for request in requests}

    direct = Direct(send, max_batch=2)
    assert direct.ask((3, 1, 3, 2), soon(), LONG) == {3: -3, 1: -1, 2: -2}
    assert sent == [[3, 1], [2]]
    assert threads == {threading.current_thread()}


def test_direct_sends_nothing_after_the_deadline() -> None:
    sent = []
    moment = [0.0]

    def send(requests: Sequence[int]) -> dict[int, int]:
        sent.append(list(requests))
        moment[0] += 1
        return {request: request for request in requests}

    direct = Direct(send, max_batch=1)
    with pytest.raises(DeadlineExceededError):
        direct.ask((1, 2), Deadline(0.5, clock=lambda: moment[0]), LONG)
    assert sent == [[1]]


CALLER: ContextVar[str] = ContextVar("caller")


def test_a_batch_is_sent_on_behalf_of_the_first_of_its_callers() -> None:
    with running() as bench:

        def call_as(name: str, *requests: str) -> Future[dict[str, object]]:
            context = copy_context()
            context.run(CALLER.set, name)
            future = bench.callers.submit(context.run, bench.coalescer.ask, requests, soon(), LONG)
            bench.wait_for_callers(requests[-1])
            return future

        bench.backend.answer = lambda _: CALLER.get("nobody")
        bench.backend.hold()
        bench.call_and_wait_until_sent("first")
        calls = [call_as("ann", "a"), call_as("bob", "b", "c")]
        bench.backend.let_go()
        assert [call.result(LONG) for call in calls] == [{"a": "ann"}, {"b": "ann", "c": "ann"}]
