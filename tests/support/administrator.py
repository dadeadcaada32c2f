"""Somebody who operates a service: calls Admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.struct_pb2 import Value

from duostore.v1 import admin_pb2, admin_pb2_grpc, entity_pb2
from tests.support.service import CALL_SECONDS

if TYPE_CHECKING:
    import grpc

BACKFILL = admin_pb2.BackfillRequest


class Administrator:
    """Calls Admin over a channel, with a token if it has one."""

    def __init__(
        self, channel: grpc.Channel, *, token: str | None = None, caller: str = ""
    ) -> None:
        self.stub: Any = admin_pb2_grpc.AdminStub(channel)
        shown = (("authorization", f"Bearer {token}"),) if token is not None else ()
        named = (("x-caller", caller),) if caller else ()
        self._options: dict[str, Any] = {"timeout": CALL_SECONDS, "metadata": (*shown, *named)}

    def explain(self, kind: str, id_: str) -> admin_pb2.ExplainResponse:
        """Ask what is held of an entity."""
        key = entity_pb2.EntityKey(kind=kind, id=id_)
        answer: admin_pb2.ExplainResponse = self.stub.Explain(
            admin_pb2.ExplainRequest(key=key), **self._options
        )
        return answer

    def checking(self, kind: str = "", *, repair: bool = False, **extent: Any) -> Any:
        """Start to compare, all if nothing else is said; return the stream."""
        request = admin_pb2.CheckConsistencyRequest(
            kind=kind, repair=repair, **(extent or {"all": True})
        )
        return self.stub.CheckConsistency(request, **self._options)

    def check(
        self, kind: str = "", *, repair: bool = False, **extent: Any
    ) -> tuple[list[admin_pb2.Drift], admin_pb2.CheckConsistencyResponse]:
        """Compare; return all that was found, and the summary."""
        *_, last = messages = list(self.checking(kind, repair=repair, **extent))
        return [drift for message in messages for drift in message.drifts], last

    def backfill(
        self, kind: str, action: admin_pb2.BackfillRequest.Action.ValueType, **options: Any
    ) -> list[admin_pb2.BackfillResponse]:
        """Do something about a backfill; return all that was told."""
        request = admin_pb2.BackfillRequest(kind=kind, action=action, **options)
        return list(self.stub.Backfill(request, **self._options))

    def watching(self, kind: str, **options: Any) -> Any:
        """Start or join a backfill; return the stream that tells of it."""
        request = admin_pb2.BackfillRequest(kind=kind, **options)
        return self.stub.Backfill(request, **self._options)

    def set_read_only(self, kind: str, reason: str | None) -> list[admin_pb2.ReadOnly]:
        """Refuse writes for a reason, or take them again; return all that is read-only."""
        request = admin_pb2.SetReadOnlyRequest(
            kind=kind, read_only=reason is not None, reason=reason or ""
        )
        return list(self.stub.SetReadOnly(request, **self._options).read_only)

    def flags(self) -> dict[str, admin_pb2.Flag]:
        """Return all flags by name."""
        answer = self.stub.ListFlags(admin_pb2.ListFlagsRequest(), **self._options)
        return {flag.name: flag for flag in answer.flags}

    def set_flag(self, name: str, value: str | float | None) -> admin_pb2.Flag:
        """Set a flag, or forget what is set of it."""
        match value:
            case None:
                sent = None
            case str():
                sent = Value(string_value=value)
            case _:
                sent = Value(number_value=value)
        request = admin_pb2.SetFlagRequest(name=name, value=sent)
        flag: admin_pb2.Flag = self.stub.SetFlag(request, **self._options).flag
        return flag

    def status(self) -> admin_pb2.GetStatusResponse:
        """Return how the service is."""
        answer: admin_pb2.GetStatusResponse = self.stub.GetStatus(
            admin_pb2.GetStatusRequest(), **self._options
        )
        return answer
