"""A server whose calls hang until they are let go, with the rooms that the service has."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from duostore.v1 import admin_pb2, admin_pb2_grpc, data_access_pb2
from duostore_server.rpc.chain import CallChain
from duostore_server.rpc.permission import Permission
from duostore_server.rpc.server import listening
from duostore_server.rpc.streams import Streams
from duostore_server.telemetry.metrics import Metrics
from tests.support.ports import free_port
from tests.support.service import CALL_SECONDS, Caller

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from duostore_server.rpc.chain import Call

THREADS = 24
OPEN = Permission(token=None, callers=(), open=True)


class Hanging:
    """The RPCs of services that do not answer until ``go_on`` is set, but BatchGet and GetStatus.

    CheckConsistency and Backfill tell how far they are until it is ``enough``.
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.enough = threading.Event()
        self.under_way = threading.Semaphore(0)
        self.message = data_access_pb2.ExportResponse(columns=["x" * 100_000]).SerializeToString()
        # Messages that were taken, and exports that have ended.
        self.streamed = 0
        self.closed = threading.Semaphore(0)

    def _answer(self, _request: object, _call: Call) -> bytes:
        self.under_way.release()
        self.go_on.wait(CALL_SECONDS)
        return b""

    def BatchGet(self, _request: object, _call: Call) -> bytes:  # noqa: N802
        return b""

    Explain = SetReadOnly = ListFlags = SetFlag = _answer
    GetStatus = BatchGet
    Get = Save = Delete = Transact = _answer
    Snapshot = GetSnapshot = ListSnapshots = Quota = SettleQuota = Query = _answer

    def Export(self, _request: object, call: Call) -> Generator[bytes, None, None]:  # noqa: N802
        """Stream ``message`` again and again until ``go_on`` is set or its caller has gone."""
        self.under_way.release()
        try:
            yield self.message
            while not self.go_on.is_set():
                call.deadline.bound(CALL_SECONDS)
                yield self.message
                self.streamed += 1
        finally:
            self.closed.release()

    def CheckConsistency(self, _request: object, call: Call) -> Generator[bytes, None, None]:  # noqa: N802
        """Tell nothing, ten times a second, until it is ``enough`` or nobody waits."""
        self.under_way.release()
        try:
            while not self.enough.wait(0.1):
                call.deadline.bound(CALL_SECONDS)
                yield b""
        finally:
            self.closed.release()

    Backfill = CheckConsistency


class Server:
    """A server over ``calls``, and a channel to it."""

    def __init__(
        self, target: str, calls: Hanging, streams: Streams, health: Any, channel: grpc.Channel
    ) -> None:
        self._target = target
        self.calls = calls
        self.streams = streams
        self.health = health
        self.channel = channel
        self.data: Any = Caller(channel).stub
        self.admin: Any = admin_pb2_grpc.AdminStub(channel)
        self.checks: Any = health_pb2_grpc.HealthStub(channel)
        self.reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

    def new_channel(self) -> grpc.Channel:
        """Return a channel with a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(self._target, options=options)

    def hang(self, count: int) -> list[Any]:
        """Start calls that hang."""
        request = data_access_pb2.GetRequest(strong=True)
        return [self.data.Get.future(request, timeout=CALL_SECONDS) for _ in range(count)]

    def export(self, *, within: float = CALL_SECONDS) -> Any:
        """Start an export; return it once it is under way, with its first message read."""
        stream = self.data.Export(data_access_pb2.ExportRequest(), timeout=within)
        next(stream)
        return stream

    def check_consistency(self) -> Any:
        """Start a check; return it once it is under way, with its first message read."""
        stream = self.admin.CheckConsistency(admin_pb2.CheckConsistencyRequest(all=True))
        next(stream)
        return stream

    def holds(self, count: int) -> bool:
        """Return whether of calls that hang this many are held, and the others refused."""
        self.calls.go_on.clear()
        request = data_access_pb2.GetRequest()
        calls = [self.data.Get.future(request, timeout=0.5) for _ in range(2 * count)]
        codes = [refused(call).code() for call in calls]
        self.calls.go_on.set()
        return (
            codes.count(grpc.StatusCode.DEADLINE_EXCEEDED) == count
            and codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == count
        )

    def is_blocked(self) -> bool:
        """Return whether a stream has been waiting for its client for a while."""
        waiting = list(self.streams._since.values())
        return any(time.monotonic() - since > 0.3 for since in waiting)

    def answers(self) -> bool:
        """Return whether a call is answered, over the channel that the streams have."""
        self.data.BatchGet(data_access_pb2.BatchGetRequest(), timeout=CALL_SECONDS)
        return True

    def check(self, *, within: float = 1.0) -> int:
        return int(self.checks.Check(health_pb2.HealthCheckRequest(), timeout=within).status)


@contextmanager
def server(
    *,
    threads: int = THREADS,
    most: int = 1000,
    drain_timeout: float = 60.0,
    stall: float = 30.0,
    max_connection_age: float = 600.0,
    connection_age_grace: float = 30.0,
    permission: Permission = OPEN,
) -> Iterator[Server]:
    """Serve with room for two exports, and two threads for queries."""
    calls = Hanging()
    streams = Streams(stall=stall)
    chain = CallChain(
        Metrics(CollectorRegistry()),
        default_deadline=5,
        max_deadline=60,
        stream_deadline=60,
        streams=streams,
    )
    target = f"127.0.0.1:{free_port()}"
    # The channel outlives the server, which has to end what is open on it.
    with (
        grpc.insecure_channel(target) as channel,
        listening(
            address=target,
            threads=threads,
            max_concurrent_rpcs=most,
            max_message_bytes=1 << 20,
            max_connection_age=max_connection_age,
            connection_age_grace=connection_age_grace,
            query_threads=2,
            export_streams=2,
            drain_timeout=drain_timeout,
            tls=None,
            reflect=True,
            chain=chain,
            data_access=calls,  # type: ignore[arg-type]  # stands in for DataAccess
            admin=calls,  # type: ignore[arg-type]  # and for Admin
            admin_permission=permission,
        ) as answering,
    ):
        try:
            yield Server(target, calls, streams, answering.health, channel)
        finally:
            calls.go_on.set()


def refused(call: Any) -> grpc.RpcError:
    """Return why a call failed."""
    with pytest.raises(grpc.RpcError) as error:
        call.result(CALL_SECONDS)
    return error.value
