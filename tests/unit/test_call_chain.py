"""How long a call may take that says so, and one that does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from prometheus_client import CollectorRegistry

from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from duostore_server.rpc.chain import CallChain
from duostore_server.rpc.server import DATA_ACCESS
from duostore_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from duostore_server.domain.deadline import Deadline


class Servicer:
    """Answers every call with nothing and notes how long it might have taken."""

    def __init__(self) -> None:
        self.left: list[float] = []

    def _note(self, _request: Message, deadline: Deadline) -> bytes:
        self.left.append(deadline.remaining())
        return b""

    Get = BatchGet = Save = Delete = _note


@contextmanager
def served(servicer: Servicer) -> Iterator[data_access_pb2_grpc.DataAccessStub]:
    chain = CallChain(Metrics(CollectorRegistry()), default_deadline=5, max_deadline=60)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((chain.handlers(DATA_ACCESS, servicer),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield data_access_pb2_grpc.DataAccessStub(channel)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(("asked", "given"), [(None, 5), (2, 2), (30, 30), (3600, 60)])
def test_the_deadline_is_the_callers_within_bounds(asked: float | None, given: float) -> None:
    servicer = Servicer()
    request = data_access_pb2.GetRequest(key=entity_pb2.EntityKey(kind="a", id="b"))
    with served(servicer) as stub:
        stub.Get(request, timeout=asked)
    [left] = servicer.left
    assert given - 1 < left < given + 0.1
