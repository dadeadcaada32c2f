"""An Admin that answers what it is told to, and remembers what it was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duostore.v1 import admin_pb2, admin_pb2_grpc
from tests.support.recording_service import Asked, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc
    from google.rpc import status_pb2


class RecordingAdmin(admin_pb2_grpc.AdminServicer):
    """Each attribute is what the RPC of its name answers, again and again.

    ``check`` and ``backfill`` are streamed. All calls fail with ``broken`` if that is set,
    streams after their last message.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.broken: status_pb2.Status | None = None
        self.explained = admin_pb2.ExplainResponse()
        self.check: list[admin_pb2.CheckConsistencyResponse] = []
        self.backfill: list[admin_pb2.BackfillResponse] = []
        self.read_only = admin_pb2.SetReadOnlyResponse()
        self.flags = admin_pb2.ListFlagsResponse()
        self.flag = admin_pb2.SetFlagResponse()
        self.status = admin_pb2.GetStatusResponse()

    def Explain(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Explain", request, context, self.explained)

    def CheckConsistency(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._stream("CheckConsistency", request, context, self.check)

    def Backfill(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._stream("Backfill", request, context, self.backfill)

    def SetReadOnly(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("SetReadOnly", request, context, self.read_only)

    def ListFlags(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("ListFlags", request, context, self.flags)

    def SetFlag(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("SetFlag", request, context, self.flag)

    def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("GetStatus", request, context, self.status)

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext, answer: Any) -> Any:
        self.asked.append(Asked(method, request, dict(context.invocation_metadata())))
        fail(context, self.broken)
        return answer

    def _stream(
        self, method: str, request: Any, context: grpc.ServicerContext, answers: list[Any]
    ) -> Iterator[Any]:
        self.asked.append(Asked(method, request, dict(context.invocation_metadata())))
        yield from answers
        fail(context, self.broken)
