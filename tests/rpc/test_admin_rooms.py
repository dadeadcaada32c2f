"""Admin beside DataAccess: neither holds up the other, nor a server that stops."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from duostore.v1 import admin_pb2
from duostore_server.rpc.permission import Permission
from duostore_server.rpc.server import ADMIN, DATA_ACCESS
from tests.support.hanging_service import THREADS, Server, refused, server
from tests.support.service import CALL_SECONDS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

TOKEN = "correct-horse-battery-staple"
CHECKS = 2
BACKFILLS = 8
MOST_CALLS = 16


def status_is_answered(running: Server) -> bool:
    running.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=CALL_SECONDS)
    return True


def exhausted(stream: Any) -> bool:
    """Return whether a stream was refused, for there is no room."""
    try:
        next(stream)
    except grpc.RpcError:
        return bool(stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
    return False


def test_admin_is_answered_while_data_access_takes_no_more() -> None:
    with server(threads=2, most=4) as running:
        hanging = running.hang(4)
        for _ in range(2):
            assert running.calls.under_way.acquire(timeout=CALL_SECONDS)
        eventually(lambda: running.hang(1)[0].exception(CALL_SECONDS), within=10, what="it is full")
        for _ in range(20):
            assert status_is_answered(running)
        stream = running.check_consistency()
        stream.cancel()
        running.calls.go_on.set()
        assert all(call.result(CALL_SECONDS) is not None for call in hanging)


def test_data_access_is_answered_while_admin_takes_no_more() -> None:
    with server() as running:
        request = admin_pb2.ExplainRequest()
        held = [running.admin.Explain.future(request) for _ in range(MOST_CALLS)]
        for _ in range(2):
            assert running.calls.under_way.acquire(timeout=CALL_SECONDS)

        def full() -> bool:
            call = running.admin.Explain.future(request, timeout=0.5)
            return refused(call).code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        eventually(full, within=CALL_SECONDS, what="Admin is full")
        checks = [running.check_consistency() for _ in range(CHECKS)]
        watching = [running.admin.Backfill(admin_pb2.BackfillRequest()) for _ in range(BACKFILLS)]
        for stream in watching:
            next(stream)
        assert exhausted(running.admin.CheckConsistency(admin_pb2.CheckConsistencyRequest()))
        assert exhausted(running.admin.Backfill(admin_pb2.BackfillRequest()))
        # All threads of DataAccess are there.
        gets = running.hang(THREADS)
        for _ in range(CHECKS + BACKFILLS + THREADS):
            assert running.calls.under_way.acquire(timeout=CALL_SECONDS)
        running.calls.go_on.set()
        running.calls.enough.set()
        assert all(call.result(CALL_SECONDS) is not None for call in (*held, *gets))
        for stream in (*checks, *watching):
            assert list(stream) is not None


def test_who_goes_leaves_room_within_a_second() -> None:
    with server() as running:
        streams = [running.check_consistency() for _ in range(CHECKS)]
        began = time.monotonic()
        for stream in streams:
            stream.cancel()
        for _ in streams:
            assert running.calls.closed.acquire(timeout=CALL_SECONDS)
        assert time.monotonic() - began < 1.0
        eventually(
            lambda: not exhausted(running.admin.Backfill(admin_pb2.BackfillRequest())),
            within=CALL_SECONDS,
            what="there is room",
        )


def failure_of(stream: Any) -> Any:
    """Read a stream to its end; return how it failed."""
    with pytest.raises(grpc.RpcError) as error:
        list(stream)
    return error.value


def test_a_server_that_stops_ends_the_streams_of_admin_and_says_why() -> None:
    with ThreadPoolExecutor(1) as pool:
        with server(drain_timeout=60) as running:
            reading = pool.submit(failure_of, running.check_consistency())
            began = time.monotonic()
        assert time.monotonic() - began < CALL_SECONDS / 2
        error = reading.result(CALL_SECONDS)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server stops" in error.details()
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)


def answer_to(running: Server, method: MethodDescriptor, *, token: str | None) -> grpc.StatusCode:
    """Call a method with a request that nobody can read; return what came of it."""
    call: Any = running.channel.unary_stream(
        f"/{method.containing_service.full_name}/{method.name}"
    )
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    stream = call(b"\xff\xff\xff", timeout=CALL_SECONDS, metadata=metadata)
    with pytest.raises(grpc.RpcError):
        next(stream)
    code: grpc.StatusCode = stream.code()
    return code


@pytest.mark.parametrize("method", list(ADMIN.methods), ids=lambda method: method.name)
def test_every_call_of_admin_asks_who_calls_before_it_reads_the_request(
    method: MethodDescriptor,
) -> None:
    with server(permission=Permission(token=TOKEN, callers=(), open=False)) as running:
        answer = grpc.StatusCode
        assert answer_to(running, method, token=None) is answer.UNAUTHENTICATED
        assert answer_to(running, method, token="wrong") is answer.PERMISSION_DENIED
        assert answer_to(running, method, token=TOKEN) is answer.INVALID_ARGUMENT
        assert not running.calls.under_way.acquire(blocking=False)


def test_data_access_asks_for_no_permission() -> None:
    with server(permission=Permission(token=TOKEN, callers=(), open=False)) as running:
        running.calls.go_on.set()
        for method in DATA_ACCESS.methods:
            call: Any = running.channel.unary_stream(f"/{DATA_ACCESS.full_name}/{method.name}")
            assert list(call(b"", timeout=CALL_SECONDS)) is not None


def test_both_services_have_a_health_and_are_listed() -> None:
    with server() as running:
        names = {ADMIN.full_name, DATA_ACCESS.full_name}
        assert names <= set(ProtoReflectionDescriptorDatabase(running.channel).get_services())
        for name in names:
            request = health_pb2.HealthCheckRequest(service=name)
            answer = running.checks.Check(request, timeout=CALL_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
