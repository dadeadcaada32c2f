"""A DataAccess in memory that remembers what it was asked, and fails when it is told to."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from duostore_server.codec import plain
from duostore_server.domain.documents import normalized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

    Failing = Callable[[Any], status_pb2.Status | None]

HEALTHY: Final = health_pb2.HealthCheckResponse.SERVING
UNHEALTHY: Final = health_pb2.HealthCheckResponse.NOT_SERVING


def _never(_: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Asked:
    """One call as it arrived."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]


class RecordingService(data_access_pb2_grpc.DataAccessServicer):
    """Keeps entities by their ids and the order of their saves; a Save with a key once.

    ``snapshots`` are those that there are, of whatever entity, newest first. ``decision`` is
    what quotas answer, and ``settled`` how reservations are settled.
    ``result`` is what every query answers, in pages; ``portions`` are streamed by every
    export, and then it fails with ``broken`` if that is set.
    ``failing`` gives the status that a request fails with, or None; it may also wait.
    ``lost`` does the same after the request was carried out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked: list[Asked] = []
        self.saved: dict[str, list[Any]] = {}
        self.failing: Failing = _never
        self.lost: Failing = _never
        self.keys: dict[str, data_access_pb2.SaveResponse] = {}
        self.snapshots: list[Any] = []
        self.projection = entity_pb2.PROJECTION_DONE
        self.decision = data_access_pb2.QuotaResponse()
        self.settled = data_access_pb2.SettleQuotaResponse()
        self.result = data_access_pb2.QueryResponse()
        self.portions: list[data_access_pb2.ExportResponse] = []
        self.broken: status_pb2.Status | None = None

    def Get(self, request: Any, context: Any) -> data_access_pb2.GetResponse:  # noqa: N802
        self._receive("Get", request, context)
        saved = self.saved.get(request.key.id)
        if not saved:
            fail(context, status(grpc.StatusCode.NOT_FOUND, "no such entity", "ENTITY_NOT_FOUND"))
            raise AssertionError
        response = data_access_pb2.GetResponse()
        response.entity.key.CopyFrom(request.key)
        response.entity.version = len(saved)
        response.entity.data.update(saved[-1])
        response.entity.create_time.FromJsonString("2026-01-02T03:04:05Z")
        response.entity.update_time.FromJsonString("2026-01-02T03:04:05.678901Z")
        response.receipt.served_from = entity_pb2.STORE_AURORA
        return response

    def BatchGet(self, request: Any, context: Any) -> data_access_pb2.BatchGetResponse:  # noqa: N802
        self._receive("BatchGet", request, context)
        return data_access_pb2.BatchGetResponse()

    def Save(self, request: Any, context: Any) -> data_access_pb2.SaveResponse:  # noqa: N802
        self._receive("Save", request, context)
        if not context.is_active():
            # As the service does: nobody waits any more, so that nothing may be written.
            return data_access_pb2.SaveResponse()
        with self._lock:
            response = self.keys.get(request.idempotency_key) or self._apply(request)
            if response is not None and request.idempotency_key:
                self.keys[request.idempotency_key] = response
        if response is None:
            fail(context, status(grpc.StatusCode.ALREADY_EXISTS, "it exists", "ENTITY_EXISTS"))
            raise AssertionError
        fail(context, self.lost(request))
        return response

    def _apply(self, request: Any) -> data_access_pb2.SaveResponse | None:
        saved = self.saved.setdefault(request.key.id, [])
        if saved and request.if_absent:
            return None
        saved.append(normalized(plain(request.data)))
        response = data_access_pb2.SaveResponse(version=len(saved), projection=self.projection)
        response.key.CopyFrom(request.key)
        response.update_time.FromJsonString("2026-01-02T03:04:05Z")
        return response

    def Delete(self, request: Any, context: Any) -> data_access_pb2.DeleteResponse:  # noqa: N802
        self._receive("Delete", request, context)
        response = data_access_pb2.DeleteResponse(version=9, projection=self.projection)
        response.key.CopyFrom(request.key)
        response.update_time.FromJsonString("2026-01-02T03:04:05Z")
        return response

    def Transact(self, request: Any, context: Any) -> data_access_pb2.TransactResponse:  # noqa: N802
        self._receive("Transact", request, context)
        response = data_access_pb2.TransactResponse(projection=self.projection)
        for version, mutation in enumerate(request.mutations, start=1):
            key = getattr(mutation, mutation.WhichOneof("mutation")).key
            response.results.add(key=key, version=version).update_time.FromJsonString(
                "2026-01-02T03:04:05Z"
            )
        return response

    def Snapshot(self, request: Any, context: Any) -> data_access_pb2.SnapshotResponse:  # noqa: N802
        self._receive("Snapshot", request, context)
        response = data_access_pb2.SnapshotResponse(sequence=7)
        response.snapshot_time.FromJsonString("2026-01-02T03:04:05Z")
        return response

    def GetSnapshot(self, request: Any, context: Any) -> data_access_pb2.GetSnapshotResponse:  # noqa: N802
        self._receive("GetSnapshot", request, context)
        return data_access_pb2.GetSnapshotResponse(snapshot=self.snapshots[0])

    def ListSnapshots(self, request: Any, context: Any) -> data_access_pb2.ListSnapshotsResponse:  # noqa: N802
        self._receive("ListSnapshots", request, context)
        start = int(request.page_token or 0)
        end = start + request.page_size
        return data_access_pb2.ListSnapshotsResponse(
            snapshots=self.snapshots[start:end],
            next_page_token=str(end) if end < len(self.snapshots) else "",
        )

    def Quota(self, request: Any, context: Any) -> data_access_pb2.QuotaResponse:  # noqa: N802
        self._receive("Quota", request, context)
        return self.decision

    def SettleQuota(self, request: Any, context: Any) -> data_access_pb2.SettleQuotaResponse:  # noqa: N802
        self._receive("SettleQuota", request, context)
        return self.settled

    def Query(self, request: Any, context: Any) -> data_access_pb2.QueryResponse:  # noqa: N802
        self._receive("Query", request, context)
        page = data_access_pb2.QueryResponse()
        page.CopyFrom(self.result)
        start = int(request.page_token or 0)
        end = start + (request.page_size or len(page.rows))
        if end < len(page.rows):
            page.next_page_token = str(end)
        del page.rows[end:]
        del page.rows[:start]
        return page

    def Export(self, request: Any, context: Any) -> Iterator[data_access_pb2.ExportResponse]:  # noqa: N802
        self._receive("Export", request, context)
        yield from self.portions
        fail(context, self.broken)

    def _receive(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        with self._lock:
            self.asked.append(Asked(method, request, metadata))
        fail(context, self.failing(request))


def fail(context: grpc.ServicerContext, answer: status_pb2.Status | None) -> None:
    """End the call with the status, if there is one."""
    if answer is not None:
        context.abort_with_status(rpc_status.to_status(answer))


def status(
    code: grpc.StatusCode, message: str, reason: str = "", *details: Message
) -> status_pb2.Status:
    """Return a status as the service sends it; without a reason it is not the service's own."""
    answer = status_pb2.Status(code=code.value[0], message=message)
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="duostore")
        request = error_details_pb2.RequestInfo(request_id="r-1")
        details = (info, *details, request)
    for detail in details:
        packed = Packed()
        packed.Pack(detail)
        answer.details.append(packed)
    return answer


def invalid(**violations: str) -> status_pb2.Status:
    """Return the status that refuses these fields; ``__`` stands for the dot in their names."""
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=field.replace("__", "."), description=description
            )
            for field, description in violations.items()
        ]
    )
    return status(grpc.StatusCode.INVALID_ARGUMENT, "bad", "INVALID_REQUEST", bad)


@dataclass(frozen=True, slots=True)
class Served:
    """A service that answers at ``address``, and its health."""

    address: str
    health: health.HealthServicer
    server: grpc.Server


@contextmanager
def serving(
    service: RecordingService,
    *,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
    max_message_bytes: int = 4 * 1024 * 1024,
) -> Iterator[Served]:
    """Serve on this port of this machine, or a free one."""
    with ThreadPoolExecutor(40) as pool:
        server = grpc.server(
            pool,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_message_bytes),
            ],
        )
        data_access_pb2_grpc.add_DataAccessServicer_to_server(service, server)
        checks = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        server.start()
        try:
            yield Served(f"127.0.0.1:{port}", checks, server)
        finally:
            server.stop(None).wait()
