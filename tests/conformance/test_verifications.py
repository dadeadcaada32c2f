"""What every engine of the verifications promises."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.types.numeric import Int8

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.drift import Drift, Verified
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.aurora.verifications import _PURGE, AuroraVerifications
from tests.support.authority_engines import migrated_pool, soon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
THREADS = 8


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture
def dsn(database: tuple[str, AuroraPool]) -> str:
    dsn, _ = database
    with psycopg.connect(dsn) as connection:
        connection.execute("TRUNCATE duostore.verification")
    return dsn


@pytest.fixture
def verifications(dsn: str, database: tuple[str, AuroraPool]) -> AuroraVerifications:
    assert dsn
    return AuroraVerifications(database[1])


def key(name: object) -> EntityKey:
    return EntityKey("acme", "proposal", str(name))


def look(name: object, second: float = 0, *drifts: Drift) -> Verified:
    return Verified(key(name), SECOND, 1, NOON + second * SECOND, drifts)


def test_a_look_is_remembered_as_it_was(verifications: AuroraVerifications) -> None:
    looks = [
        Verified(key(1), timedelta(), 0, NOON),
        Verified(key(2), timedelta(minutes=5), 2**62, NOON, tuple(Drift)),
        Verified(
            EntityKey("", "k", "#'\"{},\\ NULL \N{GRINNING FACE}"),
            timedelta(seconds=1, microseconds=1),
            3,
            NOON + timedelta(microseconds=1),
            (Drift.CACHE_CONTENT, Drift.CACHE_CONTENT),
        ),
    ]
    verifications.record(looks, soon())
    assert [verifications.last(each.key, soon()) for each in looks] == looks
    assert verifications.last(key(3), soon()) is None
    assert verifications.last(EntityKey("", "proposal", "1"), soon()) is None


def test_nothing_is_recorded_of_no_looks(verifications: AuroraVerifications) -> None:
    verifications.record([], soon())
    assert verifications.purge(NOON + timedelta(days=999), 9, soon()) == 0


def test_the_last_look_is_remembered_in_whatever_order_they_come(
    verifications: AuroraVerifications,
) -> None:
    first, second, third = look(1), look(1, 1, Drift.PROJECTION_OLDER), look(1, 2)
    verifications.record([first], soon())
    verifications.record([second, look(2)], soon())
    assert verifications.last(key(1), soon()) == second
    verifications.record([first], soon())
    assert verifications.last(key(1), soon()) == second
    verifications.record([third], soon())
    verifications.record([third], soon())
    assert verifications.last(key(1), soon()) == third
    assert verifications.last(key(2), soon()) == look(2)


def test_a_look_of_a_later_release_is_as_good_as_none(
    dsn: str, verifications: AuroraVerifications
) -> None:
    verifications.record([look(1, 0, Drift.CACHE_OLDER)], soon())
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE duostore.verification SET drifts = drifts || '{unheard_of}'")
    assert verifications.last(key(1), soon()) is None
    verifications.record([look(1, 1)], soon())
    assert verifications.last(key(1), soon()) == look(1, 1)


def test_the_oldest_are_purged_first(verifications: AuroraVerifications) -> None:
    names = list(range(10))
    random.Random(1).shuffle(names)
    verifications.record([look(name, name) for name in names], soon())
    assert verifications.purge(NOON + 7 * SECOND, 4, soon()) == 4
    assert [n for n in range(10) if verifications.last(key(n), soon())] == [4, 5, 6, 7, 8, 9]
    assert verifications.purge(NOON + 7 * SECOND, 4, soon()) == 3
    assert verifications.purge(NOON + 7 * SECOND, 4, soon()) == 0
    assert [n for n in range(10) if verifications.last(key(n), soon())] == [7, 8, 9]


def test_purging_waits_for_nobody(dsn: str, verifications: AuroraVerifications) -> None:
    verifications.record([look(1), look(2)], soon())
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT FROM duostore.verification WHERE entity_id = '1' FOR UPDATE")
        assert verifications.purge(NOON + SECOND, 9, Deadline.after(5)) == 1
    assert verifications.last(key(1), soon()) == look(1)


def test_a_large_table_is_purged_by_its_index(dsn: str, verifications: AuroraVerifications) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO duostore.verification"
            " SELECT '', 'proposal', n, '1 s', 1, '{}', %s::timestamptz + n * interval '1 s'"
            " FROM generate_series(1, 20000) AS n",
            (NOON,),
        )
        connection.execute("ANALYZE duostore.verification")
        plan = connection.execute("EXPLAIN " + _PURGE, (NOON, Int8(100))).fetchall()
    assert any("Index Scan using verification_time" in line for (line,) in plan)
    assert verifications.purge(NOON + 101 * SECOND, 500, soon()) == 100


def test_many_that_record_the_same_at_once_never_stand_in_a_circle(
    verifications: AuroraVerifications,
) -> None:
    names = range(20)
    barrier = threading.Barrier(THREADS)

    def record(thread: int) -> None:
        rng = random.Random(thread)
        barrier.wait()
        for n in range(15):
            looks = [look(name, n * THREADS + thread) for name in rng.sample(names, 15)]
            verifications.record(looks, soon())
        verifications.record(
            [look(name, 1000 + thread) for name in rng.sample(names, len(names))], soon()
        )

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(record, range(THREADS)))
    for name in names:
        assert verifications.last(key(name), soon()) == look(name, 1000 + THREADS - 1)


def test_a_deadline_that_passed_stops_a_call_before_it_begins(
    verifications: AuroraVerifications,
) -> None:
    verifications.record([look(1)], soon())
    over = Deadline.after(0)
    with pytest.raises(DeadlineExceededError):
        verifications.record([look(1, 1)], over)
    with pytest.raises(DeadlineExceededError):
        verifications.last(key(1), over)
    with pytest.raises(DeadlineExceededError):
        verifications.purge(NOON + SECOND, 1, over)
    assert verifications.last(key(1), soon()) == look(1)


def test_a_writer_that_was_demoted_is_not_believed(dsn: str) -> None:
    with migrated_pool(dsn, max_size=1) as pool:
        verifications = AuroraVerifications(pool)
        verifications.record([look(1)], soon())
        pool.execute("SET default_transaction_read_only = on", (), soon())
        with pytest.raises(StoreUnavailableError):
            verifications.last(key(1), soon())
        assert verifications.last(key(1), soon()) == look(1)
