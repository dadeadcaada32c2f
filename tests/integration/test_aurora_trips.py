"""What a trip of several statements leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.storage.aurora.connection import BoundedConnection
from tests.support.authority_faults import query
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

_STALL = "SELECT set_config('idle_in_transaction_session_timeout', '100', true)"


def is_there(dsn: str, pid: int) -> bool:
    return query(dsn, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid) == [(1,)]


def begin(
    connection: BoundedConnection, trip: Callable[[], AbstractContextManager[object]]
) -> None:
    with trip():
        connection.execute("BEGIN")
        cursor = connection.execute(_STALL)
    assert cursor.fetchall() == [("100ms",)]


def test_a_client_that_hangs_between_two_trips_loses_its_transaction(postgres_dsn: str) -> None:
    with BoundedConnection.connect(postgres_dsn, autocommit=True) as connection:
        begin(connection, connection.in_one_trip)
        pid = connection.info.backend_pid
        eventually(lambda: not is_there(postgres_dsn, pid), within=5, what="it is cut off")
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            connection.execute("SELECT 1")


def test_of_the_pipeline_of_the_driver_alone_the_server_would_not_notice(postgres_dsn: str) -> None:
    """Once this fails, the driver is mended, and ``in_one_trip`` can do with its pipeline."""
    with BoundedConnection.connect(postgres_dsn, autocommit=True) as connection:
        begin(connection, connection.pipeline)
        ((later,),) = query(postgres_dsn, "SELECT clock_timestamp() + interval '0.3 s'")
        eventually(
            lambda: query(postgres_dsn, "SELECT clock_timestamp() >= %s", later) == [(True,)],
            within=5,
            what="three times as long has passed",
        )
        assert is_there(postgres_dsn, connection.info.backend_pid)


def failing_trip(connection: BoundedConnection) -> None:
    with connection.in_one_trip():
        connection.execute("BEGIN")
        connection.execute("SELECT 1 / 0")
        connection.execute("SELECT missing")


def test_the_error_of_the_first_statement_that_failed_is_raised(postgres_dsn: str) -> None:
    with BoundedConnection.connect(postgres_dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            failing_trip(connection)
        connection.rollback()
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_rows_may_be_read_in_the_middle_of_a_trip(postgres_dsn: str) -> None:
    with BoundedConnection.connect(postgres_dsn, autocommit=True) as connection:
        with connection.in_one_trip():
            first = connection.execute("SELECT 1").fetchall()
            second = connection.execute("SELECT 2")
        assert [first, second.fetchall()] == [[(1,)], [(2,)]]
