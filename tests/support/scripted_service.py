"""A DataAccess that answers as it is told and remembers what it was asked.

The other tests of the client import it from here.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from duostore import Client
from duostore.v1 import data_access_pb2, data_access_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

Reply: TypeAlias = (
    Message | Iterable[Message] | Callable[[Any, grpc.ServicerContext], Message | Iterable[Message]]
)

# A proxy that the environment names has no business with a server of the test's own.
DIRECT = ("grpc.enable_http_proxy", 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One call as it arrived. ``remaining`` is what its deadline left, in seconds."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    remaining: float


class ScriptedService(data_access_pb2_grpc.DataAccessServicer):
    """Gives each method's replies in their order: a response, a status, or what a call returns.

    A reply of Export is a series of those.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._replies: defaultdict[str, deque[Reply]] = defaultdict(deque)

    def script(self, method: str, *replies: Reply) -> None:
        self._replies[method].extend(replies)

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Get", request, context)

    def BatchGet(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("BatchGet", request, context)

    def Save(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Save", request, context)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Delete", request, context)

    def Transact(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Transact", request, context)

    def Snapshot(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Snapshot", request, context)

    def GetSnapshot(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("GetSnapshot", request, context)

    def ListSnapshots(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("ListSnapshots", request, context)

    def Quota(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Quota", request, context)

    def SettleQuota(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("SettleQuota", request, context)

    def Query(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Query", request, context)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for reply in self._answer("Export", request, context):
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


def status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    """Return the reply that fails a call."""
    answer = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = Packed()
        packed.Pack(detail)
        answer.details.append(packed)
    return answer


def reason(name: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    """Return the detail that gives the reason of a failure."""
    return error_details_pb2.ErrorInfo(reason=name, domain="duostore", metadata=metadata)


UNAVAILABLE = status(
    grpc.StatusCode.UNAVAILABLE,
    "aurora cannot be reached; try again",
    reason("STORE_UNAVAILABLE", store="aurora"),
)


def hold(_: Any, context: grpc.ServicerContext) -> Message:
    """Answer when nobody waits any more."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(30)
    return data_access_pb2.GetResponse()


@contextmanager
def serving(service: ScriptedService, port: int = 0) -> Iterator[tuple[grpc.Server, str]]:
    """Serve on this port of this machine, or a free one; yields the server and its address."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        data_access_pb2_grpc.add_DataAccessServicer_to_server(service, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield server, f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@contextmanager
def client_of(service: ScriptedService, **arguments: Any) -> Iterator[Client]:
    """Serve, and yield a client with these arguments that is connected to it."""
    options = [DIRECT, *arguments.pop("options", ())]
    with serving(service) as (_, target), Client(target, options=options, **arguments) as client:
        yield client
