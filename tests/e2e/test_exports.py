"""Exports of a whole service: all rows, in bounded memory, and nothing left of who has gone."""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from duostore.v1 import data_access_pb2
from tests.support.crowd import failure_of
from tests.support.service import CALL_SECONDS, Caller, Service, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

    Export = grpc._CallIterator[data_access_pb2.ExportResponse]

MEBIBYTE = 1024 * 1024
# Of the memory of the process that serves, whatever the number of rows.
MOST_GROWTH = 64 * MEBIBYTE
EXPORT_SECONDS = 300.0
# More than a client that reads nothing can be sent.
ENDLESS = 1_000_000_000
# From a cancellation or a deadline until the database is free of it.
FREED_SECONDS = 1.0
ATTEMPTS = 3
GETS = 100
# Of one that finds the server free: far more than it takes on a machine that is busy.
GET_SECONDS = 2.0
RECOVERY_SECONDS = 30.0

KINDS = """
[kinds.proposal]
[queries.numbers]
sql = "numbers.sql"
params = { rows = "integer" }
timeout = "1m"
[queries.sleepy]
sql = "sleepy.sql"
timeout = "1m"
"""
SQL = {
    # 1 KB a row: all of them together are more than what the server may grow by. Each is made
    # when it is fetched.
    "numbers.sql": """
        SELECT n, md5(n::text) AS digest, repeat('.', 1000) AS filling
        FROM (SELECT generate_series(1, :rows) AS n) AS numbers
    """,
    # The first portion is there at once; the next one keeps the database busy.
    "sleepy.sql": """
        SELECT n, CASE WHEN n > 150 THEN pg_sleep(60) END::text AS slept
        FROM generate_series(1, 200) AS numbers (n)
    """,
}


@pytest.fixture(scope="module")
def service(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service of one worker: whoever calls meets the others."""
    with Service(
        tmp_path_factory.mktemp("exports"),
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
        workers=1,
        kinds=KINDS,
        sql=SQL,
    ) as running:
        yield running


@pytest.fixture
def caller(service: Service) -> Iterator[Caller]:
    with service.channel() as channel:
        yield Caller(channel)


def export(caller: Caller, query: str, timeout: float = EXPORT_SECONDS, **params: object) -> Export:
    request = data_access_pb2.ExportRequest(query=query, params=struct(params))
    return caller.stub.Export(request, timeout=timeout)


@contextmanager
def stalled(caller: Caller) -> Iterator[Export]:
    """Begin an export, read a portion, and no more."""
    call = export(caller, "numbers", rows=ENDLESS)
    try:
        assert next(call).rows
        yield call
    finally:
        call.cancel()


def open_cursors(service: Service) -> int:
    """Return how many exports the database has under way."""
    ((number,),) = service.fetch(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND query LIKE %s",
        "%duostore_result%",
    )
    return int(number)


def rest(service: Service) -> None:
    """Wait until no export of another test is left."""
    eventually(
        lambda: open_cursors(service) == 0, within=RECOVERY_SECONDS, what="no export is under way"
    )


@pytest.mark.parametrize(
    "rows", [100_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_all_rows_come_in_their_order_and_in_bounded_memory(
    service: Service,
    caller: Caller,
    rows: int,
    record_property: Callable[[str, object], None],
) -> None:
    (worker,) = service.workers()
    # What is loaded and opened once is no matter of the rows.
    for _ in export(caller, "numbers", rows=1000):
        pass
    before = most = worker.memory_info().rss
    size, numbers = 0, count(1)
    for portion in export(caller, "numbers", rows=rows):
        most = max(most, worker.memory_info().rss)
        size += portion.ByteSize()
        assert all(row[0] == number for row, number in zip(portion.rows, numbers, strict=False))
    record_property("bytes of growth", most - before)
    assert next(numbers) == rows + 1
    assert size > MOST_GROWTH
    assert most - before < MOST_GROWTH


def test_a_client_that_stops_reading_holds_no_other_call_up(
    service: Service, caller: Caller
) -> None:
    """Be it on the same connection or on another, and be it another export."""
    (worker,) = service.workers()
    rest(service)
    caller.save("one", {"n": 1})
    before = worker.memory_info().rss
    with service.channel() as channel, stalled(caller):
        for each in (caller, Caller(channel)):
            for _ in range(GETS):
                request = data_access_pb2.GetRequest(key=each.key("one"))
                assert each.stub.Get(request, timeout=GET_SECONDS).entity.version == 1
            numbers = [len(portion.rows) for portion in export(each, "numbers", rows=5000)]
            assert sum(numbers) == 5000
        assert open_cursors(service) == 1
        assert worker.memory_info().rss - before < MOST_GROWTH


def _cancel(call: Export) -> None:
    call.cancel()


def _await_deadline(call: Export) -> None:
    with pytest.raises(grpc.RpcError) as late:
        for _ in call:
            pass
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("ends", [_cancel, _await_deadline], ids=["cancelled", "late"])
@pytest.mark.parametrize("query", ["sleepy", "numbers"])
def test_of_an_export_that_ends_early_nothing_is_left_in_the_database(
    service: Service,
    caller: Caller,
    query: str,
    ends: Callable[[Export], None],
    record_property: Callable[[str, object], None],
) -> None:
    """While the database computes, and while the client does not read.

    A loaded machine may be late; one of three has to be gone in time.
    """
    timeout = EXPORT_SECONDS if ends is _cancel else 0.5
    params = {"rows": ENDLESS} if query == "numbers" else {}
    took: list[float] = []
    while not took or (took[-1] > FREED_SECONDS and len(took) < ATTEMPTS):
        rest(service)
        call = export(caller, query, timeout, **params)
        next(call)
        eventually(
            lambda: open_cursors(service) == 1, within=RECOVERY_SECONDS, what="it is under way"
        )
        ends(call)
        ended = time.monotonic()
        rest(service)
        took.append(time.monotonic() - ended)
    record_property("seconds until freed", took)
    assert took[-1] <= FREED_SECONDS


def test_an_export_too_many_is_refused_until_another_has_ended(
    service: Service, caller: Caller
) -> None:
    rest(service)
    with stalled(caller) as first, stalled(caller):
        with pytest.raises(grpc.RpcError) as refused:
            next(export(caller, "numbers", rows=1))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure_of(refused.value).reason == "OVERLOADED"
        # Gets are no exports.
        caller.save("two", {"n": 1})
        assert caller.get("two").entity.version == 1
        first.cancel()
        rows = eventually(
            lambda: _rows_unless_refused(caller), within=RECOVERY_SECONDS, what="there is room"
        )
        assert [row[0] for row in rows] == [1]


def _rows_unless_refused(caller: Caller) -> list[Any]:
    try:
        portions = list(export(caller, "numbers", rows=1, timeout=CALL_SECONDS))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return []
        raise
    return list(chain.from_iterable(portion.rows for portion in portions))
