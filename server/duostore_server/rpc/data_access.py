"""The servicer of ``duostore.v1.DataAccess``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.rpc import converters as to

if TYPE_CHECKING:
    from duostore.v1 import data_access_pb2
    from duostore_server.access.reading import Reader
    from duostore_server.access.writing import Writer
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.policies import Policies


class DataAccess:
    """One method for each RPC, by its name; errors are mapped by the call chain."""

    def __init__(
        self, reader: Reader, writer: Writer, policies: Policies, *, max_answer_bytes: int
    ) -> None:
        """``max_answer_bytes`` bounds the answer to a BatchGet."""
        self._reader = reader
        self._writer = writer
        self._policies = policies
        self._max_answer_bytes = max_answer_bytes

    def Get(self, request: data_access_pb2.GetRequest, deadline: Deadline) -> bytes:
        reading = self._reader.get(
            to.key_of(request.key),
            deadline,
            min_version=request.min_version,
            strong=request.strong,
        )
        return to.get_response(reading)

    def BatchGet(self, request: data_access_pb2.BatchGetRequest, deadline: Deadline) -> bytes:
        keys = to.keys_of(request)
        readings = self._reader.batch_get(keys, deadline)
        return to.batch_get_response(keys, readings, max_bytes=self._max_answer_bytes)

    def Save(
        self, request: data_access_pb2.SaveRequest, deadline: Deadline
    ) -> data_access_pb2.SaveResponse:
        saved = self._writer.save(
            to.key_of(request.key),
            to.content_of(request, self._policies),
            to.precondition_of(request),
            deadline,
        )
        return to.save_response(saved)

    def Delete(
        self, request: data_access_pb2.DeleteRequest, deadline: Deadline
    ) -> data_access_pb2.DeleteResponse:
        saved = self._writer.delete(
            to.key_of(request.key), to.delete_precondition_of(request), deadline
        )
        return to.delete_response(saved)
