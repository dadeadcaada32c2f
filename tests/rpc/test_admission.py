"""Calls that hang, streams that idle and callers too many: none of them holds up the others."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from duostore.v1 import data_access_pb2
from duostore_server.rpc.admission import OpenStreams, Room
from duostore_server.rpc.surroundings import ReflectionService
from tests.support.hanging_service import THREADS, Server, refused, server
from tests.support.service import CALL_SECONDS, Caller
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="")


def idle_stream(stub: Any, until: threading.Event) -> tuple[Any, grpc.StatusCode | None]:
    """Ask one thing by reflection and leave the stream open; return why that was refused."""

    def requests() -> Iterator[Any]:
        yield LIST_SERVICES
        until.wait(CALL_SECONDS)

    stream = stub.ServerReflectionInfo(requests())
    try:
        next(stream)
    except grpc.RpcError:
        return stream, stream.code()
    return stream, None


def test_health_is_answered_beside_idle_reflection_and_hanging_calls() -> None:
    enough = threading.Event()
    with server() as running:
        streams = [idle_stream(running.reflection, enough) for _ in range(THREADS)]
        hanging = running.hang(THREADS)
        try:
            # All calls have a thread, whatever the streams do, before one of those ends.
            for _ in hanging:
                assert running.calls.under_way.acquire(timeout=5)
            assert running.check() == NOT_SERVING
            running.health.set("", SERVING)
            assert running.check() == SERVING
        finally:
            enough.set()
            running.calls.go_on.set()
        assert all(call.result(CALL_SECONDS) is not None for call in hanging)
    codes = [code for _, code in streams]
    assert codes.count(None) == 4
    assert set(codes) == {None, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_calls_beyond_the_bound_are_refused_at_once_and_health_is_not() -> None:
    with server(threads=2, most=8) as running:
        held = running.hang(8)
        for _ in range(2):
            assert running.calls.under_way.acquire(timeout=CALL_SECONDS)
        # Those that wait for a thread are counted: of 200 further ones none gets in.
        eventually(lambda: running.hang(1)[0].exception(CALL_SECONDS), within=10, what="it is full")
        for call in running.hang(200):
            error: Any = refused(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(error)
        assert status is not None
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain) == ("OVERLOADED", "duostore")
        assert status.details[1].Unpack(retry)
        assert running.check() == NOT_SERVING
        running.calls.go_on.set()
        assert all(call.result(CALL_SECONDS) is not None for call in held)
        # What was held is let go, a moment after it was answered.
        eventually(lambda: running.holds(8), within=CALL_SECONDS, what="there is room again")


def test_queries_and_exports_take_no_thread_of_other_calls_and_are_bounded_by_themselves() -> None:
    with server(most=30) as running:
        query = data_access_pb2.QueryRequest()
        queries = [running.data.Query.future(query, timeout=CALL_SECONDS) for _ in range(30)]
        for _ in range(2):
            assert running.calls.under_way.acquire(timeout=CALL_SECONDS)
        exports = [running.export() for _ in range(2)]
        for _ in exports:
            assert running.calls.under_way.acquire(timeout=CALL_SECONDS)
        export = data_access_pb2.ExportRequest()
        further: list[Any] = [
            refused(running.data.Query.future(query, timeout=CALL_SECONDS)),
            running.data.Export(export, timeout=CALL_SECONDS).exception(CALL_SECONDS),
        ]
        for error in further:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            status = rpc_status.from_call(error)
            assert status is not None
            assert status.details[1].Is(error_details_pb2.RetryInfo.DESCRIPTOR)
        gets = running.hang(THREADS)
        for _ in gets:
            assert running.calls.under_way.acquire(timeout=CALL_SECONDS)
        # Of the queries that wait none has begun meanwhile.
        assert not running.calls.under_way.acquire(blocking=False)
        running.calls.go_on.set()
        assert all(call.result(CALL_SECONDS) is not None for call in (*queries, *gets))
        assert all(list(stream) for stream in exports)


def test_a_call_that_its_caller_gave_up_while_it_waited_leaves_the_room() -> None:
    with server(threads=1, most=8) as running:
        [first] = running.hang(1)
        assert running.calls.under_way.acquire(timeout=CALL_SECONDS)
        for _ in range(7):
            waiting = running.data.Get.future(data_access_pb2.GetRequest(), timeout=0.05)
            assert refused(waiting).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        running.calls.go_on.set()
        assert first.result(CALL_SECONDS) is not None
        # They leave as the thread comes to them.
        eventually(lambda: running.holds(8), within=CALL_SECONDS, what="there is room again")


def test_an_unknown_method_is_said_to_be_unknown() -> None:
    with server() as running:
        call: Any = running.channel.unary_unary("/duostore.v1.DataAccess/Guess")
        with pytest.raises(grpc.RpcError) as unknown:
            call(b"", timeout=CALL_SECONDS)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_nothing_is_said_to_serve_before_it_was_found_to() -> None:
    with server() as running:
        for name in ("", "duostore.v1.DataAccess", "aurora", "dynamodb", "cache"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert running.checks.Check(request, timeout=CALL_SECONDS).status == NOT_SERVING


def test_whoever_watches_is_told_before_calls_are_refused_and_keeps_no_drain_waiting() -> None:
    enough, told = threading.Event(), threading.Event()
    seen: list[int] = []
    answers: list[object] = []

    def watch(running: Server) -> grpc.StatusCode:
        stream = running.checks.Watch(health_pb2.HealthCheckRequest())
        try:
            for answer in stream:
                seen.append(answer.status)
                told.set()
                if answer.status == NOT_SERVING:
                    # Who has not heard of it is still answered, on new connections too.
                    for _ in range(20):
                        with running.new_channel() as channel:
                            stub = Caller(channel).stub
                            request = data_access_pb2.GetRequest()
                            answers.append(stub.Get(request, timeout=CALL_SECONDS))
        except grpc.RpcError:
            pass
        code: grpc.StatusCode = stream.code()
        return code

    with ThreadPoolExecutor(1) as pool:
        with server(drain_timeout=CALL_SECONDS) as running:
            running.health.set("", SERVING)
            running.calls.go_on.set()
            watching = pool.submit(watch, running)
            assert told.wait(CALL_SECONDS)
            assert idle_stream(running.reflection, enough)[1] is None
            began = time.monotonic()
        took = time.monotonic() - began
        enough.set()
        ended = watching.result(CALL_SECONDS)
    assert ended in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    assert seen == [SERVING, NOT_SERVING]
    assert len(answers) == 20
    assert took < CALL_SECONDS / 2


def test_a_stream_of_reflection_ends_by_itself() -> None:
    enough = threading.Event()
    with ThreadPoolExecutor(1) as spare, Room("reflection", threads=1, most=1) as room:
        service = ReflectionService(("a.Service",), room, most=1, seconds=0.2)
        server_ = grpc.server(spare, handlers=[service.handlers])
        port = server_.add_insecure_port("127.0.0.1:0")
        server_.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
                first, code = idle_stream(stub, enough)
                assert code is None
                with pytest.raises(grpc.RpcError):
                    next(first)
                assert first.code() is grpc.StatusCode.CANCELLED
                eventually(
                    lambda: idle_stream(stub, enough)[1] is None, within=10, what="room again"
                )
        finally:
            enough.set()
            server_.stop(0).wait()


class Stream:
    """What ``OpenStreams`` uses of a call's context."""

    def __init__(self, *, is_over: bool = False) -> None:
        self._is_over = is_over
        self._callbacks: list[Callable[[], None]] = []
        self.status: Any = None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        return not self._is_over

    def abort_with_status(self, status: Any) -> None:
        self.status = status
        raise RuntimeError("aborted")

    def cancel(self) -> None:
        for callback in self._callbacks:
            callback()


def test_open_streams_are_bounded_and_can_be_ended() -> None:
    streams = OpenStreams(2)
    first, second, third = Stream(), Stream(), Stream()
    streams.enter(Stream(is_over=True))  # type: ignore[arg-type]  # all that is used of a context
    streams.enter(first)  # type: ignore[arg-type]  # as above
    streams.enter(second)  # type: ignore[arg-type]  # as above
    with pytest.raises(RuntimeError, match="aborted"):
        streams.enter(third)  # type: ignore[arg-type]  # as above
    assert third.status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()
    streams.enter(third)  # type: ignore[arg-type]  # as above
    streams.end()
    for stream in (Stream(), Stream()):
        streams.enter(stream)  # type: ignore[arg-type]  # as above
