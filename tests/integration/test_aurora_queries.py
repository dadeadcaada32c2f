"""Queries on PostgreSQL: how much is fetched at a time, and how they end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuostoreError,
    QueryFailedError,
    QueryTimeoutError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.queries import ParamType
from duostore_server.storage.aurora.connection import APPLICATION_NAME, BoundedConnection
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.queries import AuroraQueries
from tests.support.authority_faults import (
    backends,
    query,
    round_trips,
    terminate,
    wait_until_blocked,
)
from tests.support.named_queries import answer, call, named, querying
from tests.support.servers import PostgresServer, running
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.queries import ParamValue, Row

SCHEMA = """
CREATE TABLE canary (n int);
CREATE FUNCTION sing() RETURNS int LANGUAGE sql VOLATILE AS
    'INSERT INTO canary VALUES (1) RETURNING n';
CREATE FUNCTION refuse() RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'a secret'; END $$;
"""
# A caller who went away is noticed within a second; a machine that runs tests may be busy.
FREED = 1.0
SLEEP = "SELECT pg_sleep(60)"
# Says by how many KiB its memory grew at most, and the characters of the largest portion.
READS = """
import resource, sys
from duostore_server.domain.deadline import Deadline
from tests.support.named_queries import answer, call, querying

with querying(sys.argv[1]) as queries:
    answer(queries, "SELECT 1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with queries.open(call(sys.argv[2]), Deadline.after(30)) as results:
        largest = max(sum(len(text) for (text,) in each) for each in results.portions())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, largest)
"""


@pytest.fixture(scope="module")
def dsn(postgres: PostgresServer) -> str:
    dsn = postgres.create_database()
    query(dsn, SCHEMA)
    return dsn


@pytest.fixture
def queries(dsn: str) -> Iterator[AuroraQueries]:
    with querying(dsn) as queries:
        yield queries


def soon() -> Deadline:
    return Deadline.after(30)


def portions(queries: AuroraQueries, sql: str) -> list[list[Row]]:
    with queries.open(call(sql), soon()) as results:
        return [list(portion) for portion in results.portions()]


def transactions(dsn: str) -> list[tuple[object, ...]]:
    """Return the states of our connections that are in a transaction, or in a statement."""
    return query(
        dsn,
        "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = %s AND state <> 'idle'",
        APPLICATION_NAME,
    )


def wait_until_asleep(dsn: str) -> None:
    eventually(
        lambda: query(
            dsn,
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            " AND datname = current_database()",
        ),
        within=10,
        what="a statement sleeps",
    )


def is_at_rest(dsn: str) -> bool:
    return not transactions(dsn)


@contextmanager
def cancelling(queries: AuroraQueries) -> Iterator[None]:
    """Do what the process does in the background."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.1):
            assert not queries.cancel_abandoned()

    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(work)
        try:
            yield
        finally:
            stop.set()
        working.result()


class Caller:
    """Somebody who may go away."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def deadline(self, seconds: float = 60) -> Deadline:
        return Deadline.after(seconds, cancelled=self._gone.is_set)

    def leave(self) -> float:
        """Go; return when that was."""
        self._gone.set()
        return time.monotonic()


def test_small_results_come_in_one_portion_and_two_round_trips(dsn: str) -> None:
    with AuroraPool(dsn, min_size=1, max_size=1, wait=5) as pool:
        queries = AuroraQueries(pool)
        assert answer(queries, "SELECT 1") == [[1]]
        with round_trips(pool) as count:
            before = count()
            assert len(answer(queries, "SELECT generate_series(1, 99)")) == 99
            assert count() - before == 2


def test_portions_grow_to_a_quarter_of_a_mebibyte(queries: AuroraQueries) -> None:
    found = portions(queries, "SELECT n, repeat('x', 1000) FROM generate_series(1, 3000) AS n")
    assert [row[0] for portion in found for row in portion] == list(range(1, 3001))
    sizes = [len(portion) for portion in found]
    assert sizes[:2] == [100, 200]
    assert set(sizes[2:-1]) == {256 * 1024 // 1004}


def test_small_rows_come_by_the_thousand(queries: AuroraQueries) -> None:
    found = portions(queries, "SELECT n FROM generate_series(1, 5000) AS n")
    assert [row[0] for portion in found for row in portion] == list(range(1, 5001))
    assert [len(portion) for portion in found] == [100, 200, 400, 800, 1000, 1000, 1000, 500]


def test_rows_of_megabytes_go_one_by_one_and_small_ones_together_again(
    queries: AuroraQueries,
) -> None:
    large = 3_000_000
    found = portions(
        queries,
        f"SELECT repeat('x', CASE WHEN n IN (101, 102) THEN {large} ELSE 1 END)"
        " FROM generate_series(1, 1000) AS n",
    )
    sizes = [len(portion) for portion in found]
    assert sum(sizes) == 1000
    # The large ones are among 200 that were asked for together.
    assert sizes == [100, 1, 1, 198, 1, 2, 4, 8, 16, 32, 64, 128, 256, 189]
    assert [len(text) for portion in found for (text,) in portion][100:102] == [large] * 2


@pytest.mark.parametrize("narrow", [0, 3100])
def test_no_more_than_a_portion_is_held_of_rows_that_turn_out_to_be_wide(
    dsn: str, narrow: int
) -> None:
    """Measured by the memory of a process that reads 100 rows of 2 MB, asked for at once."""
    sql = (
        f"SELECT repeat('x', CASE WHEN n > {narrow} THEN 2000000 ELSE 1 END)"
        f" FROM generate_series(1, {narrow} + 100) AS n"
    )
    grown, largest = subprocess.run(
        [sys.executable, "-c", READS, dsn, sql], check=True, capture_output=True, text=True
    ).stdout.split()
    assert 2_000_000 <= int(largest) <= 2_000_000 + 256 * 1024
    assert int(grown) < 64 * 1024


def test_a_row_that_is_too_large_fails_the_query_and_not_the_process(dsn: str) -> None:
    with querying(dsn, max_size=1) as queries:
        ((before,),) = answer(queries, "SELECT pg_backend_pid()")
        with pytest.raises(QueryFailedError) as raised:
            answer(queries, f"SELECT repeat('x', {65 * 1024 * 1024})")
        assert raised.value.metadata["sqlstate"] == "54000"
        # The memory that it took is not kept with its connection.
        assert answer(queries, "SELECT pg_backend_pid()") != [[before]]


def test_a_result_that_is_left_amid_wide_rows_leaves_nothing_behind(dsn: str) -> None:
    with querying(dsn, max_size=1) as queries:
        sql = call("SELECT repeat('x', 2000000) FROM generate_series(1, 100)")
        with queries.open(sql, soon()) as results:
            assert len(next(results.portions())) == 1
        assert answer(queries, "SELECT 1") == [[1]]
        eventually(lambda: is_at_rest(dsn), within=5, what="the server has stopped")


def test_a_result_is_of_one_moment(dsn: str, queries: AuroraQueries) -> None:
    query(
        dsn,
        "CREATE TABLE moment AS SELECT generate_series(1, 150) AS n;"
        "CREATE FUNCTION size() RETURNS bigint LANGUAGE sql VOLATILE AS"
        " 'SELECT count(*) FROM moment'",
    )
    # Functions, too, see the moment of the query, and not the one in which they are called.
    with queries.open(call("SELECT n, size() FROM moment"), soon()) as results:
        found = results.portions()
        rows = [*next(found)]
        query(dsn, "INSERT INTO moment SELECT generate_series(1000, 1100)")
        rows += [row for portion in found for row in portion]
    assert sorted(rows) == [[n, 150] for n in range(1, 151)]
    assert len(answer(queries, "SELECT n FROM moment")) == 251


def test_what_was_committed_before_as_of_was_seen(dsn: str, queries: AuroraQueries) -> None:
    query(dsn, "CREATE TABLE stamp (at timestamptz)")
    for _ in range(5):
        with psycopg.connect(dsn) as connection:
            connection.execute("INSERT INTO stamp VALUES (clock_timestamp())")
        ((before,),) = query(dsn, "SELECT clock_timestamp()")
        with queries.open(call("SELECT at FROM stamp"), soon()) as results:
            assert before <= results.as_of  # type: ignore[operator]
            assert results.as_of.utcoffset() == timedelta(0)
        ((after,),) = query(dsn, "SELECT clock_timestamp()")
        assert results.as_of <= after  # type: ignore[operator]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT sing()",
        "SELECT 1 FROM canary FOR UPDATE",
        "SELECT set_config('x.y', 'z', true), sing()",
    ],
)
def test_a_query_cannot_write(dsn: str, queries: AuroraQueries, sql: str) -> None:
    query(dsn, "TRUNCATE canary")
    before = answer(queries, "SELECT pg_backend_pid()")
    for _ in range(2):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            answer(queries, sql)
    assert query(dsn, "SELECT count(*) FROM canary") == [(0,)]
    # It is the query that is at fault: no connection was given up.
    assert answer(queries, "SELECT pg_backend_pid()") == before


@pytest.mark.parametrize(
    "sql",
    [
        "WITH done AS (INSERT INTO canary VALUES (1) RETURNING n) SELECT n FROM done",
        "SELECT set_config('transaction_read_only', 'off', true)::text || sing()",
        "VALUES (1), (2) ORDER BY missing",
    ],
)
def test_nor_get_round_that(dsn: str, queries: AuroraQueries, sql: str) -> None:
    query(dsn, "TRUNCATE canary")
    with pytest.raises(psycopg.Error):
        answer(queries, sql)
    assert query(dsn, "SELECT count(*) FROM canary") == [(0,)]
    assert is_at_rest(dsn)


@pytest.mark.parametrize(
    ("sql", "state"),
    [
        ("SELECT 1 / (:n - 1)", "22012"),
        ("SELECT 'x'::text::int", "22P02"),
        ("SELECT (SELECT n FROM generate_series(1, 2) AS n)", "21000"),
        ("SELECT refuse()", "P0001"),
        ("SELECT 1 / (n - 150) FROM generate_series(1, 200) AS n", "22012"),
    ],
)
def test_what_cannot_be_computed_over_the_data_is_told_by_its_state_alone(
    dsn: str, queries: AuroraQueries, sql: str, state: str
) -> None:
    values: dict[str, ParamValue] = {"n": 1}
    asked = named(sql, n=ParamType.INTEGER)
    before = answer(queries, "SELECT pg_backend_pid()")
    with pytest.raises(QueryFailedError) as raised:
        answer(queries, asked, values)
    assert raised.value.metadata == {"query": asked.name, "sqlstate": state}
    assert "secret" not in str(raised.value)
    assert answer(queries, "SELECT pg_backend_pid()") == before
    assert is_at_rest(dsn)


@pytest.mark.parametrize("sleeper", [1, 150])
def test_a_query_that_takes_too_long_says_so(
    dsn: str, queries: AuroraQueries, sleeper: int
) -> None:
    asked = named(
        f"SELECT CASE n WHEN {sleeper} THEN pg_sleep(60) END FROM generate_series(1, 200) AS n",
        timeout=0.2,
    )
    began = time.monotonic()
    with pytest.raises(QueryTimeoutError) as raised:
        answer(queries, asked)
    assert 0.2 <= time.monotonic() - began < 1.2
    assert raised.value.metadata == {"query": asked.name}
    assert is_at_rest(dsn)


def test_the_timeout_is_of_each_portion_and_not_of_the_caller(queries: AuroraQueries) -> None:
    asked = named("SELECT n FROM generate_series(1, 400) AS n", timeout=0.3)
    with queries.open(call(asked), soon()) as results:
        count = 0
        until = time.monotonic() + 0.4
        for portion in results.portions():
            count += len(portion)
            # A caller who takes more time than the query may.
            eventually(lambda: time.monotonic() >= until, within=5, what="it is late")
    assert count == 400


def test_but_of_the_caller_too_while_rows_that_turned_out_wide_are_held_up(
    queries: AuroraQueries,
) -> None:
    asked = named("SELECT repeat('x', 2000000) FROM generate_series(1, 100)", timeout=1.5)
    with queries.open(call(asked), soon()) as results:
        found = results.portions()
        next(found)
        until = time.monotonic() + 1.7
        eventually(lambda: time.monotonic() >= until, within=5, what="it is late")
        with pytest.raises(QueryTimeoutError):
            list(found)
    assert answer(queries, "SELECT 1") == [[1]]


def test_a_caller_whose_time_is_over_is_told_that_and_not_of_a_timeout(
    dsn: str, queries: AuroraQueries
) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        answer(queries, SLEEP, deadline=Deadline.after(0.3))
    assert time.monotonic() - began <= 0.3 + FREED
    eventually(lambda: is_at_rest(dsn), within=FREED, what="the server has stopped")


def test_a_statement_that_somebody_else_cancels_is_no_timeout(
    dsn: str, queries: AuroraQueries
) -> None:
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(answer, queries, SLEEP)
        wait_until_asleep(dsn)
        query(
            dsn,
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            " AND datname = current_database()",
        )
        with pytest.raises(StoreTimeoutError):
            asking.result(10)


def test_the_cursor_of_a_caller_who_went_is_freed_in_the_middle_of_a_statement(
    dsn: str, queries: AuroraQueries
) -> None:
    caller = Caller()
    with cancelling(queries), ThreadPoolExecutor(1) as threads:
        asking = threads.submit(answer, queries, SLEEP, None, caller.deadline())
        wait_until_asleep(dsn)
        left = caller.leave()
        eventually(lambda: is_at_rest(dsn), within=FREED, what="the statement has ended")
        with pytest.raises(DeadlineExceededError):
            asking.result(5)
        assert time.monotonic() - left <= FREED


def test_the_cursor_is_freed_when_nobody_fetches_any_more(dsn: str) -> None:
    with querying(dsn, max_size=1) as queries, cancelling(queries):
        caller = Caller()
        sql = call("SELECT n FROM generate_series(1, 1000) AS n")
        with queries.open(sql, caller.deadline()) as results:
            found = results.portions()
            next(found)
            assert len(transactions(dsn)) == 1
            caller.leave()
            eventually(lambda: is_at_rest(dsn), within=FREED, what="the transaction has ended")
            # The connection is not kept from others by one who never comes back.
            assert answer(queries, "SELECT 1") == [[1]]
            with pytest.raises(DeadlineExceededError):
                next(found)
        assert answer(queries, "SELECT 1") == [[1]]


def test_nobody_is_cancelled_who_still_waits(dsn: str, queries: AuroraQueries) -> None:
    with cancelling(queries):
        assert answer(queries, "SELECT pg_sleep(0.5)::text") == [[""]]
        with queries.open(call("SELECT n FROM generate_series(1, 200) AS n"), soon()) as results:
            before = transactions(dsn)
            assert [len(portion) for portion in results.portions()] == [100, 100]
            assert transactions(dsn)[0][0] == before[0][0]


def test_a_connection_that_was_cancelled_is_used_by_nobody_else(
    dsn: str, queries: AuroraQueries
) -> None:
    ((before,),) = answer(queries, "SELECT pg_backend_pid()")
    caller = Caller()
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(answer, queries, SLEEP, None, caller.deadline())
        wait_until_asleep(dsn)
        caller.leave()
        queries.cancel_abandoned()
        with pytest.raises(DeadlineExceededError):
            asking.result(5)
    assert answer(queries, "SELECT pg_backend_pid()") != [[before]]


class CancelledTogether(BoundedConnection):
    """A connection whose cancellation waits for that of all others."""

    together: ClassVar[threading.Barrier]

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        type(self).together.wait(5)
        super().cancel_safe(timeout=timeout)


def test_one_cancellation_does_not_wait_for_another(dsn: str) -> None:
    count = 3
    CancelledTogether.together = threading.Barrier(count)
    pool = AuroraPool(dsn, min_size=0, max_size=count, wait=5)
    pool._pool.connection_class = CancelledTogether
    caller = Caller()
    with pool, ThreadPoolExecutor(count) as threads:
        queries = AuroraQueries(pool)
        asking = [
            threads.submit(answer, queries, SLEEP, None, caller.deadline()) for _ in range(count)
        ]
        eventually(
            lambda: (
                query(
                    dsn,
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                    " AND datname = current_database()",
                )
                == [(count,)]
            ),
            within=10,
            what="all sleep",
        )
        caller.leave()
        queries.cancel_abandoned()
        for each in asking:
            with pytest.raises(DeadlineExceededError):
                each.result(5)


class LateCancelled(BoundedConnection):
    """A connection whose caller goes away while its transaction is being ended."""

    meanwhile: ClassVar[Callable[[], object]]

    def undo(self) -> None:
        super().undo()
        type(self).meanwhile()


def test_nor_is_one_that_may_be_cancelled_yet(dsn: str) -> None:
    pool = AuroraPool(dsn, min_size=0, max_size=1, wait=5)
    pool._pool.connection_class = LateCancelled
    with pool:
        queries = AuroraQueries(pool)
        caller = Caller()
        with queries.open(call("SELECT pg_backend_pid()"), caller.deadline()) as results:
            (((before,),),) = results.portions()
            caller.leave()
            LateCancelled.meanwhile = results.abandon_if_unwanted
        LateCancelled.meanwhile = caller.leave
        assert answer(queries, "SELECT pg_backend_pid()") != [[before]]


def test_a_result_that_is_left_early_leaves_nothing_behind(
    dsn: str, queries: AuroraQueries
) -> None:
    before = answer(queries, "SELECT pg_backend_pid()")
    sql = call("SELECT n FROM generate_series(1, 100000) AS n")
    with queries.open(sql, soon()) as results:
        for _ in results.portions():
            break
    assert is_at_rest(dsn)
    with suppress(ZeroDivisionError), queries.open(sql, soon()) as results:
        next(results.portions())
        raise ZeroDivisionError
    assert is_at_rest(dsn)
    assert answer(queries, "SELECT pg_backend_pid()") == before


def test_one_who_fetches_nothing_for_too_long_is_cut_off_by_the_server(dsn: str) -> None:
    with (
        querying(dsn, stall=0.2) as queries,
        queries.open(call("SELECT n FROM generate_series(1, 1000) AS n"), soon()) as results,
    ):
        found = results.portions()
        next(found)
        eventually(lambda: not backends(dsn), within=5, what="the server has hung up")
        with pytest.raises(StoreUnavailableError):
            next(found)


def test_a_query_whose_connection_was_killed_is_run_once_more(
    dsn: str, queries: AuroraQueries
) -> None:
    query(dsn, "CREATE TABLE locked AS SELECT 7 AS n")
    with ThreadPoolExecutor(1) as threads, psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        asking = threads.submit(answer, queries, "SELECT n FROM locked")
        wait_until_blocked(dsn)
        terminate(dsn)
        wait_until_blocked(dsn)
        other.rollback()
        assert asking.result(10) == [[7]]


def test_rows_that_were_given_out_are_not_given_out_again(dsn: str, queries: AuroraQueries) -> None:
    sql = call("SELECT n FROM generate_series(1, 1000) AS n")
    with queries.open(sql, soon()) as results:
        found = results.portions()
        next(found)
        terminate(dsn)
        with pytest.raises(StoreUnavailableError):
            next(found)
    assert answer(queries, "SELECT 1") == [[1]]


def test_queries_wait_for_no_more_than_their_own_connections(dsn: str) -> None:
    with (
        AuroraPool(dsn, min_size=0, max_size=1, wait=0.1, max_waiting=1) as pool,
        AuroraPool(dsn, min_size=0, max_size=1) as others,
    ):
        queries = AuroraQueries(pool)
        with queries.open(call("SELECT 1"), soon()):
            with pytest.raises(DuostoreError) as raised:
                answer(queries, "SELECT 1")
            assert isinstance(raised.value, (StoreUnavailableError, StoreOverloadedError))
            assert others.execute("SELECT 1", (), soon())[0] == (1,)
        assert answer(queries, "SELECT 1") == [[1]]


def test_a_server_that_only_reads_is_not_taken_for_the_writer(dsn: str) -> None:
    demoted = psycopg.conninfo.make_conninfo(dsn, options="-c default_transaction_read_only=on")
    with AuroraPool(demoted, min_size=0, max_size=1, wait=5, any_server=True) as pool:
        queries = AuroraQueries(pool)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                answer(queries, "SELECT 1")


def test_a_session_that_others_share_keeps_its_settings(dsn: str) -> None:
    """As behind a transaction pooler, which gives the session to somebody else."""
    names = [
        *("transaction_read_only", "statement_timeout", "cursor_tuple_fraction", "timezone"),
        *("idle_in_transaction_session_timeout", "datestyle", "extra_float_digits"),
    ]
    with AuroraPool(dsn, min_size=1, max_size=1, wait=5, pooler=True) as pool:

        def settings() -> Any:
            shown = "SELECT current_setting(name) FROM unnest(%s::text[]) AS name"
            return pool.execute(shown, (names,), soon())

        before = settings()
        queries = AuroraQueries(pool)
        within = answer(
            queries,
            "SELECT name, current_setting(name) FROM unnest(ARRAY["
            "'transaction_read_only', 'statement_timeout', 'cursor_tuple_fraction']) AS name",
        )
        assert within == [
            ["transaction_read_only", "on"],
            ["statement_timeout", "10s"],
            ["cursor_tuple_fraction", "1"],
        ]
        with pytest.raises(QueryFailedError):
            answer(queries, "SELECT 1 / (1 - 1)")
        assert settings() == before
        assert query(dsn, "SELECT count(*) FROM pg_prepared_statements") == [(0,)]


def test_a_frozen_server_holds_no_caller_beyond_the_deadline() -> None:
    with running(PostgresServer()) as server, querying(server.dsn()) as queries:
        assert answer(queries, "SELECT 1") == [[1]]
        asked = named("SELECT 1", timeout=0.2)
        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises(StoreTimeoutError):
                answer(queries, asked)
            with pytest.raises((DeadlineExceededError, StoreUnavailableError)):
                answer(queries, asked, deadline=Deadline.after(0.3))
            assert time.monotonic() - began < 2
            queries.cancel_abandoned()
        finally:
            server.resume()
        eventually(lambda: _answers(queries), within=5, what="it is answered again")


def _answers(queries: AuroraQueries) -> bool:
    try:
        return answer(queries, "SELECT 1", deadline=Deadline.after(1)) == [[1]]
    except DuostoreError:
        return False
