"""The servicer of ``duostore.v1.DataAccess``."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from duostore_server.rpc import answers, converters

if TYPE_CHECKING:
    from collections.abc import Generator

    from duostore.v1 import data_access_pb2 as pb
    from duostore_server.access.drafting import Drafting
    from duostore_server.access.exporting import Exporting
    from duostore_server.access.querying import Querying
    from duostore_server.access.quotas import Quotas
    from duostore_server.access.reading import Reader
    from duostore_server.access.settling import Settling
    from duostore_server.access.writing import Writer
    from duostore_server.domain.policies import Policies
    from duostore_server.rpc.chain import Call


class DataAccess:
    """One method for each RPC, by its name; errors are mapped by the call chain."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        drafting: Drafting,
        policies: Policies,
        *,
        quotas: Quotas,
        settling: Settling,
        querying: Querying,
        exporting: Exporting,
        max_answer_bytes: int,
    ) -> None:
        """``max_answer_bytes`` bounds the answer to a BatchGet."""
        self._reader = reader
        self._writer = writer
        self._drafting = drafting
        self._quotas = quotas
        self._settling = settling
        self._querying = querying
        self._exporting = exporting
        self._policies = policies
        self._max_answer_bytes = max_answer_bytes

    def Get(self, request: pb.GetRequest, call: Call) -> bytes:
        reading = self._reader.get(
            converters.key_of(request.key),
            call.deadline,
            min_version=request.min_version,
            strong=request.strong,
        )
        return answers.get_response(reading)

    def BatchGet(self, request: pb.BatchGetRequest, call: Call) -> bytes:
        keys = converters.keys_of(request)
        readings = self._reader.batch_get(keys, call.deadline)
        return answers.batch_get_response(keys, readings, max_bytes=self._max_answer_bytes)

    def Save(self, request: pb.SaveRequest, call: Call) -> pb.SaveResponse:
        save = converters.save_of(request, self._policies)
        outcome = self._writer.save(
            save.key,
            save.content,
            save.precondition,
            call.deadline,
            origin=call.origin,
            idempotency_key=request.idempotency_key,
        )
        return answers.save_response(save.key, outcome)

    def Delete(self, request: pb.DeleteRequest, call: Call) -> pb.DeleteResponse:
        delete = converters.delete_of(request)
        outcome = self._writer.delete(
            delete.key,
            delete.precondition,
            call.deadline,
            origin=call.origin,
            idempotency_key=request.idempotency_key,
        )
        return answers.delete_response(delete.key, outcome)

    def Transact(self, request: pb.TransactRequest, call: Call) -> pb.TransactResponse:
        requests = converters.requests_of(request, self._policies)
        outcome = self._writer.transact(
            requests,
            call.deadline,
            origin=call.origin,
            idempotency_key=request.idempotency_key,
        )
        return answers.transact_response(requests, outcome)

    def Snapshot(self, request: pb.SnapshotRequest, call: Call) -> pb.SnapshotResponse:
        appended = self._drafting.snapshot(
            converters.key_of(request.key),
            converters.document_of(request, self._policies),
            call.deadline,
            idempotency_key=request.idempotency_key,
        )
        return answers.snapshot_response(appended)

    def GetSnapshot(self, request: pb.GetSnapshotRequest, call: Call) -> bytes:
        key = converters.key_of(request.key)
        payload = self._drafting.get(key, request.sequence, call.deadline)
        return answers.get_snapshot_response(payload)

    def ListSnapshots(self, request: pb.ListSnapshotsRequest, call: Call) -> bytes:
        key = converters.key_of(request.key)
        page = self._drafting.list(key, request.page_size, request.page_token, call.deadline)
        return answers.list_snapshots_response(page)

    def Quota(self, request: pb.QuotaRequest, call: Call) -> pb.QuotaResponse:
        answer = self._quotas.ask(
            converters.counter_key_of(request),
            request.cost,
            converters.mode_of(request),
            call.deadline,
            idempotency_key=request.idempotency_key,
        )
        return answers.quota_response(answer)

    def SettleQuota(self, request: pb.SettleQuotaRequest, call: Call) -> pb.SettleQuotaResponse:
        settled = self._settling.settle(
            request.tenant,
            request.reservation,
            call.deadline,
            cost=request.cost if request.HasField("cost") else None,
            release=request.release if request.HasField("release") else None,
        )
        return answers.settle_quota_response(settled)

    def Query(self, request: pb.QueryRequest, call: Call) -> bytes:
        page = self._querying.query(
            request.tenant,
            request.query,
            converters.params_of(request),
            call.deadline,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return answers.query_response(page)

    def Export(self, request: pb.ExportRequest, call: Call) -> Generator[bytes, None, None]:
        params = converters.params_of(request)
        exported = self._exporting.export(request.tenant, request.query, params, call.deadline)
        with closing(exported) as portions:
            for portion in portions:
                yield from answers.export_responses(portion)
