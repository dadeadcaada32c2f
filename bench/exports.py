"""Exports of many rows, against the same rows read by psycopg through a cursor of the server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import psycopg

from bench.bulk import Bulk, Round
from bench.deployment import EXPORTED, ROWS_SQL
from bench.figures import BenchError
from duostore.v1 import data_access_pb2, data_access_pb2_grpc
from tests.support.service import struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.deployment import Deployment

_ROWS: Final = 1_000_000
_FEW_ROWS: Final = 10_000
_MOST_ROUNDS: Final = 3
_DEADLINE_SECONDS: Final = 600.0
# As Duostore fetches them at the most.
_FETCHED: Final = 1000


def exports(deployment: Deployment, rounds: int) -> Bulk:
    """Measure exports, and how much the memory of the server grows meanwhile."""
    (worker,) = deployment.service.workers()
    measured = []
    with deployment.service.channel() as channel:
        stub = data_access_pb2_grpc.DataAccessStub(channel)

        def export(rows: int) -> Iterator[int]:
            request = data_access_pb2.ExportRequest(query=EXPORTED, params=struct({"rows": rows}))
            for portion in stub.Export(request, timeout=_DEADLINE_SECONDS):
                yield len(portion.rows)

        # What is loaded and opened once is no matter of the rows.
        sum(export(_FEW_ROWS))
        for _ in range(min(rounds, _MOST_ROUNDS)):
            before = most = worker.memory_info().rss
            began, rows = time.perf_counter(), 0
            for portion in export(_ROWS):
                rows += portion
                most = max(most, worker.memory_info().rss)
            took = time.perf_counter() - began
            if rows != _ROWS:
                raise BenchError(f"{rows} rows were exported, not {_ROWS}")
            measured.append(Round(_ROWS / took, _ROWS / _plain(deployment.dsn), most - before))
    return Bulk(
        "exports",
        "rows",
        "psycopg",
        f"{_ROWS:,} rows of five columns, about 120 bytes, by one caller; the growth is that of the"
        " memory of the server's process (RSS)",
        measured,
    )


def _plain(dsn: str) -> float:
    """Return how long psycopg takes to read the rows, in portions of as many."""
    statement = ROWS_SQL.replace(":rows", "%(rows)s::bigint").encode()
    with psycopg.connect(dsn) as connection, connection.cursor("plain") as cursor:
        cursor.itersize = _FETCHED
        began, rows = time.perf_counter(), 0
        for _ in cursor.execute(statement, {"rows": _ROWS}):
            rows += 1
        took = time.perf_counter() - began
    if rows != _ROWS:
        raise BenchError(f"{rows} rows were read, not {_ROWS}")
    return took
