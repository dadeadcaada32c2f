"""Which server answers a query: a reader, if it sees all that was acknowledged, else the writer."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    QueryFailedError,
    QueryTimeoutError,
    StoreUnavailableError,
)
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.queries import AuroraQueries
from duostore_server.storage.aurora.visibility import SIGHT, Sight
from tests.support.authority_faults import backends, query, terminate
from tests.support.named_queries import answer, call, named
from tests.support.ports import free_port
from tests.support.servers import PostgresServer, running
from tests.support.standby import StandbyServer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

READER, WRITER = True, False
SEEN = "SELECT pg_is_in_recovery(), count(*) FROM seen"


class Pair:
    """A writer and its reader, with a clock by which a reader that failed is left alone."""

    def __init__(self, writer: PostgresServer, reader: StandbyServer, dsn: str) -> None:
        self.writer = writer
        self.reader = reader
        self.dsn = dsn
        self.now = 0.0
        self.slept: list[float] = []

    @property
    def reader_dsn(self) -> str:
        return self.reader.dsn(psycopg.conninfo.conninfo_to_dict(self.dsn)["dbname"])  # type: ignore[arg-type]

    @contextmanager
    def queries(self, reader_dsn: str | None = None) -> Iterator[AuroraQueries]:
        """Open queries on both; time passes for them as they sleep, and by ``later``."""
        with (
            AuroraPool(self.dsn, min_size=0, max_size=2, wait=5) as writer,
            AuroraPool(
                reader_dsn or self.reader_dsn,
                min_size=0,
                max_size=2,
                wait=0.5,
                any_server=True,
                name="reader",
            ) as reader,
        ):
            yield AuroraQueries(writer, reader, clock=lambda: self.now, sleep=self._sleep)

    def later(self) -> None:
        """Let so much time pass that a reader which failed is asked again."""
        self.now += 10

    def write(self) -> int:
        """Write a row; return how many there are."""
        query(self.dsn, "INSERT INTO seen VALUES (1)")
        ((count,),) = query(self.dsn, "SELECT count(*) FROM seen")
        return int(str(count))

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgresServer, StandbyServer]]:
    # Which transactions there are is for the tests to say.
    with (
        running(PostgresServer({"autovacuum": "off"})) as writer,
        running(StandbyServer(writer)) as reader,
    ):
        yield writer, reader


@pytest.fixture
def pair(servers: tuple[PostgresServer, StandbyServer]) -> Pair:
    writer, reader = servers
    dsn = writer.create_database()
    query(dsn, "CREATE TABLE seen (n int)")
    reader.catch_up()
    return Pair(writer, reader, dsn)


def test_a_reader_that_has_caught_up_answers(pair: Pair) -> None:
    count = pair.write()
    pair.reader.catch_up()
    with pair.queries() as queries:
        assert answer(queries, SEEN) == [[READER, count]]
    assert not pair.slept


def test_as_of_is_of_the_writer(pair: Pair) -> None:
    pair.write()
    pair.reader.catch_up()
    ((before,),) = query(pair.dsn, "SELECT clock_timestamp()")
    with pair.queries() as queries:
        with queries.open(call("SELECT now(), pg_is_in_recovery()"), Deadline.after(30)) as results:
            (((began, where),),) = results.portions()
        assert where is READER
        assert before <= results.as_of  # type: ignore[operator]
        # By the clock of the writer, whom it asked first.
        assert results.as_of < datetime.fromisoformat(began)


def test_a_reader_that_is_behind_does_not(pair: Pair) -> None:
    with pair.queries() as queries:
        assert answer(queries, SEEN) == [[READER, 0]]
        with pair.reader.replay_paused():
            count = pair.write()
            assert answer(queries, SEEN) == [[WRITER, count]]
            # It was given a tenth of a second to catch up.
            assert sum(pair.slept) == pytest.approx(0.1, abs=0.02)
            pair.later()
            count = pair.write()
            assert answer(queries, SEEN) == [[WRITER, count]]
        pair.reader.catch_up()
        pair.later()
        assert answer(queries, SEEN) == [[READER, count]]
    assert not query(pair.dsn, "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in%%'")


def test_one_that_was_behind_is_not_asked_for_a_second(pair: Pair) -> None:
    with pair.queries() as queries:
        with pair.reader.replay_paused():
            count = pair.write()
            assert answer(queries, SEEN) == [[WRITER, count]]
        pair.reader.catch_up()
        pair.now += 0.5
        assert answer(queries, SEEN) == [[WRITER, count]]
        pair.now += 0.6
        assert answer(queries, SEEN) == [[READER, count]]


def test_one_that_catches_up_in_time_is_waited_for(pair: Pair) -> None:
    with pair.queries() as queries, pair.reader.replay_paused():
        count = pair.write()
        resume = pair._sleep

        def sleep(seconds: float) -> None:
            resume(seconds)
            query(pair.reader.dsn(), "SELECT pg_wal_replay_resume()")
            pair.reader.catch_up()

        queries._sleep = sleep
        assert answer(queries, SEEN) == [[READER, count]]


def test_what_the_reader_has_of_a_transaction_is_not_enough(pair: Pair) -> None:
    """The reader has replayed a later transaction and not the commit of an earlier one.

    Of that it says nothing in the list of its snapshot: who goes by the list takes it for
    seen.
    """
    with pair.queries() as queries, psycopg.connect(pair.dsn) as earlier:
        earlier.execute("INSERT INTO seen VALUES (2)")
        pair.write()
        pair.reader.catch_up()
        with pair.reader.replay_paused():
            earlier.commit()
            by_writer, by_reader = (
                Sight.of(query(dsn, SIGHT)[0]) for dsn in (pair.dsn, pair.reader_dsn)
            )
            assert by_reader.xmax >= by_writer.xmax
            assert not by_reader.in_progress
            assert query(pair.reader_dsn, "SELECT count(*) FROM seen") == [(1,)]
            assert answer(queries, SEEN) == [[WRITER, 2]]


def test_while_a_transaction_of_the_writer_lasts_no_time_is_lost_on_the_reader(pair: Pair) -> None:
    with pair.queries() as queries, psycopg.connect(pair.dsn) as lasting:
        lasting.execute("INSERT INTO seen VALUES (2)")
        count = pair.write()
        pair.reader.catch_up()
        assert answer(queries, SEEN) == [[WRITER, count]]
        assert not pair.slept
        lasting.rollback()
        pair.reader.catch_up()
        pair.later()
        assert answer(queries, SEEN) == [[READER, count]]


def test_a_reader_whose_connections_died_is_no_reason_to_fail(pair: Pair) -> None:
    with pair.queries() as queries:
        assert answer(queries, SEEN) == [[READER, 0]]
        terminate(pair.reader_dsn)
        # Not used any more, but found to be dead and replaced.
        assert answer(queries, SEEN) == [[READER, 0]]


def test_a_reader_that_cannot_be_reached_is_left_to_itself(pair: Pair) -> None:
    nowhere = f"host=127.0.0.1 port={free_port()} dbname=x user=x"
    with pair.queries(nowhere) as queries:
        count = pair.write()
        for _ in range(3):
            assert answer(queries, SEEN) == [[WRITER, count]]


def test_a_frozen_reader_costs_a_caller_half_a_second_once(pair: Pair) -> None:
    with pair.queries() as queries:
        assert answer(queries, SEEN) == [[READER, 0]]
        count = pair.write()
        pair.reader.catch_up()
        pair.reader.pause()
        try:
            began = time.monotonic()
            assert answer(queries, SEEN) == [[WRITER, count]]
            first = time.monotonic() - began
            assert first < 2.0
            began = time.monotonic()
            assert answer(queries, SEEN) == [[WRITER, count]]
            assert time.monotonic() - began < 0.4
        finally:
            pair.reader.resume()

        def reads_again() -> bool:
            pair.later()
            return answer(queries, SEEN) == [[READER, count]]

        eventually(reads_again, within=10, what="the reader is asked again")


def test_what_is_wrong_with_a_query_is_not_tried_on_the_writer_too(pair: Pair) -> None:
    with pair.queries() as queries:
        with pytest.raises(QueryFailedError):
            answer(queries, "SELECT 1 / (CASE WHEN pg_is_in_recovery() THEN 0 ELSE 1 END)")
        slow = named("SELECT CASE WHEN pg_is_in_recovery() THEN pg_sleep(9) END", timeout=0.2)
        with pytest.raises(QueryTimeoutError):
            answer(queries, slow)
        assert answer(queries, SEEN) == [[READER, 0]]


def test_a_caller_who_has_no_time_is_not_sent_on(pair: Pair) -> None:
    with pair.queries() as queries:
        slow = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_sleep(9) END"
        with pytest.raises(DeadlineExceededError):
            answer(queries, slow, deadline=Deadline.after(0.3))
        eventually(
            lambda: (
                not query(
                    pair.reader_dsn,
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
                )
            ),
            within=1,
            what="the reader has stopped",
        )


def test_a_caller_in_a_hurry_says_nothing_of_the_reader(pair: Pair) -> None:
    with pair.queries() as queries:
        slow = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_sleep(9) END"
        with pytest.raises(DeadlineExceededError):
            answer(queries, slow, deadline=Deadline.after(0.3))
        assert answer(queries, SEEN) == [[READER, 0]]


def test_a_frozen_reader_is_left_alone_though_callers_have_little_time(pair: Pair) -> None:
    with pair.queries() as queries:
        assert answer(queries, SEEN) == [[READER, 0]]
        pair.reader.pause()
        try:
            with pytest.raises(DeadlineExceededError):
                answer(queries, SEEN, deadline=Deadline.after(0.4))
            assert answer(queries, SEEN, deadline=Deadline.after(0.4)) == [[WRITER, 0]]
        finally:
            pair.reader.resume()


def test_a_writer_that_fails_says_nothing_of_the_reader(pair: Pair) -> None:
    with pair.queries() as queries:
        # It is time to find out whether the reader is well again.
        queries._backoff.failed()
        pair.later()
        with pytest.raises(DeadlineExceededError):
            answer(queries, SEEN, deadline=Deadline.after(0))
        assert answer(queries, SEEN) == [[READER, 0]]


def test_without_the_writer_nobody_knows_what_has_to_be_seen(pair: Pair) -> None:
    with (
        AuroraPool(pair.reader_dsn, min_size=0, max_size=1, wait=5, any_server=True) as demoted,
        AuroraPool(pair.reader_dsn, min_size=0, max_size=1, wait=5, any_server=True) as reader,
    ):
        with pytest.raises(StoreUnavailableError):
            answer(AuroraQueries(demoted, reader), SEEN)
        with pytest.raises(StoreUnavailableError):
            answer(AuroraQueries(demoted), SEEN)


def test_a_reader_is_not_taken_from_the_writer_by_its_own_pool(pair: Pair) -> None:
    """The default of a pool is to connect to no server that only reads."""
    with AuroraPool(pair.reader_dsn, min_size=0, max_size=1, wait=0.5) as pool:
        with pytest.raises(StoreUnavailableError):
            pool.execute("SELECT 1", (), Deadline.after(5))
        assert not backends(pair.dsn)
