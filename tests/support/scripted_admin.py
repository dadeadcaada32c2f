"""An Admin that answers as it is told and remembers what it was asked."""

from __future__ import annotations

from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import json_format
from google.rpc import status_pb2
from grpc_status import rpc_status

from duostore.v1 import admin_pb2 as pb
from duostore.v1 import admin_pb2_grpc
from tests.support.scripted_service import Asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.scripted_service import Reply


class ScriptedAdmin(admin_pb2_grpc.AdminServicer):
    """Gives each method's replies in their order: a response, a status, or what a call returns.

    A reply of a stream is a series of those.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._replies: defaultdict[str, deque[Reply]] = defaultdict(deque)

    def script(self, method: str, *replies: Reply) -> None:
        self._replies[method].extend(replies)

    def Explain(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Explain", request, context)

    def CheckConsistency(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._stream("CheckConsistency", request, context)

    def Backfill(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._stream("Backfill", request, context)

    def SetReadOnly(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("SetReadOnly", request, context)

    def ListFlags(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("ListFlags", request, context)

    def SetFlag(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("SetFlag", request, context)

    def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("GetStatus", request, context)

    def _stream(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for reply in self._answer(method, request, context):
            yield self._resolved(reply, request, context)

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        metadata = dict(context.invocation_metadata())
        self.asked.append(Asked(method, request, metadata, context.time_remaining()))
        if not self._replies[method]:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no reply to {method} is scripted")
        return self._resolved(self._replies[method].popleft(), request, context)

    def _resolved(self, reply: Reply, request: Any, context: grpc.ServicerContext) -> Any:
        if isinstance(reply, status_pb2.Status):
            context.abort_with_status(rpc_status.to_status(reply))
        return reply(request, context) if callable(reply) else reply


@contextmanager
def serving(
    admin: ScriptedAdmin, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Serve on this port of this machine, or a free one; yields the address."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
        address = f"127.0.0.1:{port}"
        port = (
            server.add_secure_port(address, credentials)
            if credentials
            else server.add_insecure_port(address)
        )
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def explained(**fields: Any) -> pb.ExplainResponse:
    """Return an answer to Explain; fields are as in JSON."""
    return json_format.ParseDict(fields, pb.ExplainResponse())


def checked(**fields: Any) -> pb.CheckConsistencyResponse:
    """Return an answer to CheckConsistency; fields are as in JSON."""
    return json_format.ParseDict(fields, pb.CheckConsistencyResponse())


def backfilled(state: str = "RUNNING", **fields: Any) -> pb.BackfillResponse:
    """Return an answer to Backfill, of 1,000 notes; fields are as in JSON."""
    usual = {
        "kind": "note",
        "state": f"STATE_{state}",
        "estimatedTotal": 1000,
        "partCount": 4,
        "startTime": "2026-01-02T03:04:05Z",
        "updateTime": "2026-01-02T03:04:06Z",
    }
    return json_format.ParseDict({**usual, **fields}, pb.BackfillResponse())


def status_answer(**fields: Any) -> pb.GetStatusResponse:
    """Return an answer to GetStatus, of a service that is well; fields are as in JSON."""
    usual = {
        "release": "1.2.3",
        "startTime": "2026-01-02T03:04:05Z",
        "stores": [
            {"store": "STORE_AURORA", "up": True, "calls": 12345, "p95": "0.0031s"},
            {"store": "STORE_DYNAMODB", "up": True, "calls": 40, "errorRatio": 0.025, "p95": "1s"},
            {"store": "STORE_CACHE", "up": True},
        ],
        "projectionLag": "0s",
        "slos": [
            {
                "name": "availability",
                "objective": "99.9 % of calls do not fail",
                "target": 0.999,
                "ratio": 0.99996,
                "ratioHour": 1,
                "burnRate": 0.04,
                "holds": True,
            }
        ],
        "consistency": [{"age": "60s", "verified": 36000, "inconsistent": 2}],
    }
    return json_format.ParseDict({**usual, **fields}, pb.GetStatusResponse())
