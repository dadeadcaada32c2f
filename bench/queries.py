"""A Query whose result is cached, against the same one computed each time."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Final

from bench.callers import call_for
from bench.contest import Contest, Side
from bench.deployment import CACHED, UNCACHED
from bench.figures import BenchError
from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from tests.support.service import CALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.deployment import Deployment
    from bench.figures import Figures

# What a query takes at least for the comparison to mean anything.
_LEAST_SECONDS: Final = 0.05


@contextmanager
def queries(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of latency: one call at a time."""
    with deployment.service.channel() as channel:
        stub = data_access_pb2_grpc.DataAccessStub(channel)

        def ask(name: str, store: entity_pb2.Store.ValueType) -> None:
            request = data_access_pb2.QueryRequest(query=name)
            answer = stub.Query(request, timeout=CALL_SECONDS)
            if answer.receipt.served_from != store or not answer.rows:
                raise BenchError(f"{name} was not answered by {entity_pb2.Store.Name(store)}")

        def cached(seconds: float) -> Figures:
            return call_for(seconds, 1, partial(ask, CACHED), repeat(entity_pb2.STORE_CACHE))

        def computed(seconds: float) -> Figures:
            figures = call_for(seconds, 1, partial(ask, UNCACHED), repeat(entity_pb2.STORE_AURORA))
            if figures.p50 < _LEAST_SECONDS:
                raise BenchError("the query is too quick: its SQL has to have more to do")
            return figures

        # So that it is cached.
        request = data_access_pb2.QueryRequest(query=CACHED)
        stub.Query(request, timeout=CALL_SECONDS)
        yield Contest(
            "queries",
            "one result of 10 rows, by one thread of one process; what the SQL takes is most of"
            " what is spared",
            Side("Query, cached", cached),
            [Side("Query, not cached", computed)],
        )
