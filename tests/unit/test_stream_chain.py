"""What happens around an RPC that answers with a stream."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from duostore.v1 import data_access_pb2, data_access_pb2_grpc
from duostore_server.domain.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    QueryTimeoutError,
)
from duostore_server.rpc.chain import CallChain, Terms
from duostore_server.rpc.server import DATA_ACCESS
from duostore_server.rpc.streams import Streams
from duostore_server.telemetry.metrics import Metrics
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from google.protobuf.message import Message

    from duostore_server.rpc.chain import Call

CALL_SECONDS = 20.0
LONGEST = 3600


def portion(number: int) -> data_access_pb2.ExportResponse:
    return data_access_pb2.ExportResponse(columns=[str(number)])


class Servicer:
    """Streams numbers as ``steps`` says: it is called before each, and may fail or say to stop."""

    def __init__(self, steps: Callable[[int], bool]) -> None:
        self._steps = steps
        self.calls: list[Call] = []
        self.logged: list[dict[str, Any]] = []
        self.threads: set[int] = set()
        self.closed = threading.Event()
        # Kept, so that nothing closes them but who should.
        self._open: list[Generator[bytes, None, None]] = []
        for method in DATA_ACCESS.methods:
            setattr(self, method.name, self._stream if method.server_streaming else self._nothing)

    def _nothing(self, _request: Message, _call: Call) -> bytes:
        return b""

    def _stream(self, _request: Message, call: Call) -> Generator[bytes, None, None]:
        self.calls.append(call)
        self._open.append(self._numbers())
        return self._open[-1]

    def _numbers(self) -> Generator[bytes, None, None]:
        number = 0
        try:
            while self._look() and self._steps(number):
                yield portion(number).SerializeToString()
                number += 1
        finally:
            self._look()
            self.closed.set()

    def _look(self) -> bool:
        self.logged.append(structlog.contextvars.get_contextvars())
        self.threads.add(threading.get_ident())
        return True


class Served:
    """A servicer behind the call chain, and a stub of it."""

    def __init__(self, servicer: Servicer, stub: Any, registry: CollectorRegistry) -> None:
        self.servicer = servicer
        self._stub = stub
        self._registry = registry

    def export(self, *, timeout: float | None = CALL_SECONDS, request_id: str = "mine-1") -> Any:
        metadata = (("x-request-id", request_id), ("x-caller", "billing"))
        request = data_access_pb2.ExportRequest(query="q")
        return self._stub.Export(request, timeout=timeout, metadata=metadata)

    def metric(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0

    def is_over(self, code: str) -> bool:
        """Return whether one stream ended with a code, and none is under way."""
        name = "duostore_rpc_duration_seconds_count"
        ended = self.metric(name, method="Export", code=code)
        return ended == 1 and self.metric("duostore_rpcs_in_flight") == 0


@contextmanager
def served(steps: Callable[[int], bool], terms: Terms = Terms()) -> Iterator[Served]:  # noqa: B008 - frozen
    servicer, registry = Servicer(steps), CollectorRegistry()
    chain = CallChain(
        Metrics(registry),
        default_deadline=5,
        max_deadline=60,
        stream_deadline=LONGEST,
        streams=Streams(stall=30),
    )
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[chain.handlers(DATA_ACCESS, servicer, terms=terms)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Served(servicer, data_access_pb2_grpc.DataAccessStub(channel), registry)
        finally:
            server.stop(None).wait()


def failed(stream: Any) -> tuple[list[Any], grpc.RpcError]:
    """Read a stream that fails; return what came before, and the failure."""
    read: list[Any] = []
    with pytest.raises(grpc.RpcError) as error:
        read.extend(stream)
    return read, error.value


def reason(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


def test_a_stream_comes_whole_and_is_measured_as_one_call() -> None:
    with served(lambda number: number < 500) as running:
        assert list(running.export()) == [portion(number) for number in range(500)]
        eventually(lambda: running.is_over("OK"), within=5, what="measured")
        assert running.servicer.closed.is_set()


@pytest.mark.parametrize(("asked", "given"), [(None, LONGEST), (2, 2), (2 * LONGEST, LONGEST)])
def test_the_deadline_of_a_stream_is_the_callers_within_a_bound_of_its_own(
    asked: float | None, given: float
) -> None:
    with served(lambda number: number < 1) as running:
        list(running.export(timeout=asked))
        [call] = running.servicer.calls
        assert given - 1.5 < call.deadline.remaining() < given + 0.1


def test_every_line_that_is_logged_while_a_stream_runs_says_of_which_call_it_is() -> None:
    with served(lambda number: number < 3) as running:
        list(running.export(request_id="one"))
        list(running.export(request_id="two"))
        logged = running.servicer.logged
        assert logged == [
            {"method": "Export", "request_id": request_id, "caller": "billing"}
            for request_id in ("one", "two")
            for _ in range(5)
        ]


def test_what_is_wrong_with_a_request_is_told_before_there_is_any_message() -> None:
    def refuse(_: int) -> bool:
        raise InvalidRequestError([FieldViolation("query", "is not configured")])

    with served(refuse) as running:
        read, error = failed(running.export())
        assert read == []
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason(error) == "INVALID_REQUEST"
        assert running.is_over("INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (QueryTimeoutError("q"), grpc.StatusCode.DEADLINE_EXCEEDED, "QUERY_TIMEOUT"),
        (ValueError("password=hunter2"), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
    ids=["ours", "a fault"],
)
def test_an_error_in_the_middle_is_told_after_what_was_sent(
    error: Exception, code: grpc.StatusCode, told: str
) -> None:
    def steps(number: int) -> bool:
        if number == 7:
            raise error
        return True

    with served(steps) as running:
        read, failure = failed(running.export())
        assert read == [portion(number) for number in range(7)]
        assert (failure.code(), reason(failure)) == (code, told)
        assert "hunter2" not in str(failure)
        assert running.servicer.closed.is_set()
        assert running.is_over(code.name)


def test_a_caller_who_goes_ends_the_stream_where_it_is() -> None:
    with served(lambda _: True) as running:
        stream = running.export()
        next(stream)
        stream.cancel()
        assert running.servicer.closed.wait(CALL_SECONDS)
        eventually(lambda: running.is_over("DEADLINE_EXCEEDED"), within=5, what="measured")
        # Closed by the thread of the call.
        assert len(running.servicer.threads) == 1


def test_a_stream_knows_that_its_caller_has_gone_while_it_makes_a_message() -> None:
    asked, noticed = threading.Event(), threading.Event()

    def steps(number: int) -> bool:
        if number == 0:
            return True
        asked.set()
        [call] = running.servicer.calls
        try:
            eventually(lambda: call.deadline.bound(60) < 0, within=CALL_SECONDS, what="never")
        except DeadlineExceededError:
            noticed.set()
            raise
        return False

    with served(steps) as running:
        stream = running.export()
        next(stream)
        assert asked.wait(CALL_SECONDS)
        stream.cancel()
        assert noticed.wait(CALL_SECONDS)
        assert running.servicer.closed.wait(CALL_SECONDS)


def test_a_service_may_have_longer_streams_than_others() -> None:
    with served(lambda number: number < 1, Terms(stream_deadline=5 * LONGEST)) as running:
        list(running.export(timeout=None))
        list(running.export(timeout=4 * LONGEST))
        lasting = [call.deadline.remaining() for call in running.servicer.calls]
        assert 5 * LONGEST - 2 < lasting[0] < 5 * LONGEST + 1
        # Of long timeouts gRPC tells about how long they are.
        assert 4 * LONGEST - 2 < lasting[1] < 4.1 * LONGEST


def is_retried(error: Any) -> bool:
    """Return whether an error says when to come again, and nothing of a reason."""
    status = rpc_status.from_call(error)
    assert status is not None
    kinds = {detail.TypeName() for detail in status.details}
    return kinds == {"google.rpc.RetryInfo", "google.rpc.RequestInfo"}


def test_a_stream_ends_once_the_server_stops_though_there_is_more() -> None:
    stopping = threading.Event()
    with served(lambda _: True, Terms(is_stopping=stopping.is_set)) as running:
        stream = running.export()
        next(stream)
        stopping.set()
        _, error = failed(stream)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert is_retried(error)
        assert running.servicer.closed.is_set()
        assert running.is_over("UNAVAILABLE")


def test_a_stream_that_makes_a_message_knows_that_the_server_stops() -> None:
    stopping, asked = threading.Event(), threading.Event()

    def steps(number: int) -> bool:
        if number == 0:
            return True
        asked.set()
        [call] = running.servicer.calls
        eventually(lambda: call.deadline.bound(60) < 0, within=5, what="never")
        return False

    with served(steps, Terms(is_stopping=stopping.is_set)) as running:
        stream = running.export()
        next(stream)
        assert asked.wait(CALL_SECONDS)
        stopping.set()
        _, error = failed(stream)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert is_retried(error)


def test_of_a_caller_who_went_before_the_server_stops_it_is_not_said_that_it_did() -> None:
    stopping, asked = threading.Event(), threading.Event()

    def steps(number: int) -> bool:
        if number == 0:
            return True
        asked.set()
        [call] = running.servicer.calls
        try:
            eventually(lambda: call.deadline.bound(60) < 0, within=5, what="never")
        finally:
            stopping.set()
        return False

    with served(steps, Terms(is_stopping=stopping.is_set)) as running:
        stream = running.export()
        next(stream)
        assert asked.wait(CALL_SECONDS)
        stream.cancel()
        eventually(lambda: running.is_over("DEADLINE_EXCEEDED"), within=5, what="measured")
