"""How a statement of the authority reaches the server: in one round trip, with bounds."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change, IfAbsent
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.connection import BoundedConnection
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.aurora.pool import AuroraPool
from tests.support.authority_engines import soon, write_of
from tests.support.authority_faults import (
    backends,
    locked,
    query,
    round_trips,
    wait_until_blocked,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import LiteralString

    from psycopg.abc import Params
    from psycopg.rows import TupleRow

KEY = EntityKey("acme", "proposal", "p-1")
# So often the driver runs a statement before it prepares it; and more often than that.
UNPREPARED = 5
WARM = 10


@pytest.fixture
def dsn(postgres_dsn: str) -> str:
    migrate(postgres_dsn)
    return postgres_dsn


@pytest.fixture
def pool(dsn: str) -> Iterator[AuroraPool]:
    with AuroraPool(dsn, max_size=1, wait=10, statement_timeout=10, lock_timeout=5) as pool:
        yield pool


def save(pool: AuroraPool, deadline: Deadline | None = None, key: EntityKey = KEY) -> int:
    change = Change(key, {"a": 1}, None, timedelta())
    (applied,) = AuroraAuthority(pool).write(write_of(change), deadline or soon()).answer
    return applied.version


def setting(pool: AuroraPool, name: str, deadline: Deadline | None = None) -> Any:
    query: LiteralString = "SELECT current_setting(%s)"
    ((value,),) = pool.execute(query, (name,), deadline or soon())
    return value


def test_a_write_is_one_round_trip(pool: AuroraPool) -> None:
    for _ in range(WARM):
        save(pool)
    with round_trips(pool) as count:
        for _ in range(5):
            save(pool)
        assert count() == 5
        save(pool, Deadline(1, clock=lambda: 0.0))
        assert setting(pool, "statement_timeout", Deadline(99, clock=lambda: 0.0)) == "9s"
        assert count() == 7
        AuroraAuthority(pool).read([KEY], soon())
        AuroraAuthority(pool).read([KEY, EntityKey("", "k", "2")], soon())
        assert count() == 9


def test_the_servers_timeout_fits_the_deadline(pool: AuroraPool) -> None:
    def milliseconds(seconds: float) -> int:
        # A clock that stands still.
        deadline = Deadline(seconds, clock=lambda: 0.0)
        text = setting(pool, "statement_timeout", deadline)
        return int(text.removesuffix("ms")) if text.endswith("ms") else int(text[:-1]) * 1000

    assert milliseconds(100) == 10_000
    assert milliseconds(1.02) == 900
    # What is between four fifths and all of the time left stays as it is.
    assert milliseconds(1.145) == 900
    assert milliseconds(0.92) == 900
    assert milliseconds(0.91) < 890
    assert milliseconds(1.52) == 1350
    assert milliseconds(0.0205) == 1
    assert milliseconds(100) == 9000


def test_a_statement_that_fails_leaves_no_doubt_about_the_timeout(pool: AuroraPool) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        pool.execute("SELECT 1 / %s", (0,), Deadline.after(1))
    assert setting(pool, "statement_timeout", Deadline(1.02, clock=lambda: 0.0)) == "900ms"


def test_the_server_gives_up_at_the_deadline_and_nothing_is_written(
    dsn: str, pool: AuroraPool
) -> None:
    save(pool)
    before = backends(dsn)
    with locked(dsn, KEY):
        began = time.monotonic()
        with pytest.raises(StoreTimeoutError):
            save(pool, Deadline.after(1.5))
        assert 1.3 < time.monotonic() - began < 1.75
    assert save(pool) == 2
    # The connection was of use afterwards.
    assert backends(dsn) == before


def test_the_server_gives_up_waiting_for_a_lock(dsn: str) -> None:
    with AuroraPool(dsn, lock_timeout=0.05, wait=10) as pool:
        save(pool)
        with locked(dsn, KEY), pytest.raises(StoreOverloadedError) as raised:
            save(pool)
        assert save(pool) == 2
    assert isinstance(raised.value.__cause__, psycopg.errors.LockNotAvailable)


@contextmanager
def table_locked(dsn: str) -> Iterator[None]:
    """Do as an ALTER TABLE does that takes its time: not even a parse gets through."""
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE duostore.entity IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


def prepared(pool: AuroraPool) -> int:
    """Return how many statements on entities the pool's only connection has prepared."""
    rows = pool.execute(
        "SELECT name FROM pg_prepared_statements WHERE statement LIKE %s",
        ("%duostore.entity%",),
        soon(),
    )
    return len(rows)


@pytest.mark.parametrize("runs", [UNPREPARED - 1, UNPREPARED, UNPREPARED + 1])
def test_a_save_that_fails_as_it_would_be_prepared_harms_none_after_it(
    dsn: str, pool: AuroraPool, runs: int
) -> None:
    for _ in range(runs):
        save(pool)
    before = backends(dsn)
    with table_locked(dsn), pytest.raises(StoreTimeoutError):
        save(pool, Deadline.after(0.2))
    assert [save(pool) for _ in range(WARM)] == list(range(runs + 1, runs + 1 + WARM))
    assert prepared(pool) == 1
    assert backends(dsn) == before


class PreparesAnywhere(BoundedConnection):
    """The mutant that lets the driver prepare in a pipeline, and believe what it wants to."""

    @contextmanager
    def in_one_trip(self, *, preparing: bool = False) -> Iterator[None]:
        assert not preparing, "there is nothing to mutate"
        with self.pipeline():
            yield


def test_a_statement_that_is_not_prepared_after_all_is_run_without(dsn: str) -> None:
    pool = AuroraPool(dsn, max_size=1, wait=10, statement_timeout=10)
    pool._pool.connection_class = PreparesAnywhere
    with pool:
        for _ in range(UNPREPARED):
            save(pool)
        before = backends(dsn)
        with table_locked(dsn), pytest.raises(StoreTimeoutError):
            save(pool, Deadline.after(0.2))
        assert backends(dsn) == before
        assert [save(pool) for _ in range(WARM)] == list(range(6, 6 + WARM))
        # What was mistaken is gone, and nothing else.
        assert not before & backends(dsn)
        assert prepared(pool) == 1


def test_a_change_of_the_schema_that_changes_a_plan_costs_no_call(dsn: str) -> None:
    connections = 3
    with (
        AuroraPool(dsn, min_size=connections, max_size=connections, wait=10) as pool,
        ThreadPoolExecutor(connections) as threads,
    ):
        authority = AuroraAuthority(pool)
        eventually(
            lambda: pool._pool.get_stats()["pool_available"] == connections,
            within=10,
            what="the pool is full",
        )
        for _ in range(connections * WARM):
            save(pool)
            authority.read([KEY], soon())
        query(dsn, "ALTER TABLE duostore.entity ALTER COLUMN version TYPE integer")
        first = connections * WARM + 1
        saves = [threads.submit(save, pool) for _ in range(connections * WARM)]
        assert sorted(future.result(10) for future in saves) == list(
            range(first, first + len(saves))
        )
        assert authority.read([KEY], soon())[KEY].version == 2 * connections * WARM


def test_waiting_for_a_connection_is_bounded(dsn: str) -> None:
    with (
        AuroraPool(dsn, max_size=1, wait=1, lock_timeout=9, statement_timeout=9) as pool,
        ThreadPoolExecutor(1) as threads,
    ):
        save(pool)
        with locked(dsn, KEY):
            first = threads.submit(save, pool)
            wait_until_blocked(dsn)
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                save(pool, Deadline.after(0.2))
            assert time.monotonic() - began < 0.9
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                save(pool)
            assert 1 <= time.monotonic() - began < 3
        assert first.result(10) == 2
        assert save(pool) == 3


def test_calls_beyond_those_that_may_wait_are_refused_at_once(dsn: str) -> None:
    with (
        AuroraPool(
            dsn, max_size=1, max_waiting=1, wait=9, lock_timeout=9, statement_timeout=9
        ) as pool,
        ThreadPoolExecutor(3) as threads,
    ):
        save(pool)
        with locked(dsn, KEY):
            first = threads.submit(save, pool)
            wait_until_blocked(dsn)
            others = {threads.submit(save, pool) for _ in range(2)}
            refused = wait(others, timeout=5, return_when=FIRST_COMPLETED).done
            assert len(refused) == 1
            with pytest.raises(StoreOverloadedError):
                refused.pop().result()
        assert first.result(10) == 2
        assert {3} == {other.result(10) for other in others if not other.exception(10)}


def test_a_caller_that_is_gone_by_the_time_a_connection_is_free_writes_nothing(dsn: str) -> None:
    gone = False
    with (
        AuroraPool(dsn, max_size=1, wait=10, lock_timeout=9) as pool,
        ThreadPoolExecutor(2) as threads,
    ):
        save(pool)
        with locked(dsn, KEY):
            first = threads.submit(save, pool)
            wait_until_blocked(dsn)
            second = threads.submit(save, pool, Deadline.after(10, cancelled=lambda: gone))
            gone = True
        assert first.result(10) == 2
        with pytest.raises(DeadlineExceededError):
            second.result(10)
        assert save(pool) == 3


def fail_first(dsn: str, attempts: int, state: str) -> None:
    """Let so many changes of the outbox fail with a state; sequences forget no rollback."""
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SEQUENCE attempts")
        connection.execute(
            sql.SQL(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF nextval('attempts') <= {} THEN RAISE SQLSTATE {}; END IF; RETURN new;"
                " END $$"
            ).format(attempts, state)
        )
        connection.execute(
            "CREATE TRIGGER fail BEFORE INSERT ON duostore.outbox"
            " FOR EACH ROW EXECUTE FUNCTION fail()"
        )


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_contention_is_tried_once_more(dsn: str, pool: AuroraPool, state: str) -> None:
    fail_first(dsn, 1, state)
    assert save(pool) == 1


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_contention_that_stays_is_overload(dsn: str, pool: AuroraPool, state: str) -> None:
    fail_first(dsn, 2, state)
    with pytest.raises(StoreOverloadedError):
        save(pool)
    assert query(dsn, "SELECT version FROM duostore.entity") == []
    assert save(pool) == 1


def test_what_stays_unsupported_is_a_fault_of_ours(dsn: str, pool: AuroraPool) -> None:
    fail_first(dsn, 2, "0A000")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        save(pool)
    assert query(dsn, "SELECT version FROM duostore.entity") == []
    assert save(pool) == 1


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("53200", StoreOverloadedError),
        ("55000", StoreUnavailableError),
        ("57014", StoreTimeoutError),
        ("58030", StoreUnavailableError),
    ],
)
def test_the_cause_of_a_failure_is_kept_and_not_told(
    dsn: str, pool: AuroraPool, state: str, expected: type[StoreError]
) -> None:
    save(pool)
    before = backends(dsn)
    fail_first(dsn, 1, state)
    with pytest.raises(expected) as raised:
        save(pool)
    assert type(raised.value) is expected
    cause = raised.value.__cause__
    assert isinstance(cause, psycopg.Error)
    assert cause.sqlstate == state
    assert str(cause) not in str(raised.value)
    assert save(pool) == 2
    # A connection of the test's own may still have been about to end.
    assert set() < backends(dsn) <= before


class Interrupted(AuroraPool):
    """Lets something happen after the first statement that did nothing."""

    interrupt: Callable[[], object] | None = None

    def execute(
        self, query: LiteralString, params: Params, deadline: Deadline, *, repeatable: bool = True
    ) -> Sequence[TupleRow]:
        rows = super().execute(query, params, deadline, repeatable=repeatable)
        if not rows and (interrupt := self.interrupt):
            self.interrupt = None
            interrupt()
        return rows


def test_a_write_that_was_refused_by_what_is_gone_by_now_is_tried_again(dsn: str) -> None:
    with Interrupted(dsn, wait=10) as pool:
        authority = AuroraAuthority(pool)
        save(pool)
        gone = write_of(Change(KEY, None, None, timedelta()))
        pool.interrupt = lambda: authority.write(gone, soon())
        anew = write_of(Change(KEY, {"b": 2}, IfAbsent(), timedelta()))
        (created,) = authority.write(anew, soon()).answer
        assert created.version == 3

        pool.interrupt = lambda: save(pool, key=EntityKey("acme", "proposal", "p-2"))
        absent = Change(EntityKey("acme", "proposal", "p-2"), None, None, timedelta())
        (deleted,) = authority.write(write_of(absent), soon()).answer
        assert deleted.version == 2


def test_the_session_is_set_up(dsn: str) -> None:
    with AuroraPool(dsn, wait=10, statement_timeout=3, lock_timeout=0.5) as pool:
        expected = {
            "statement_timeout": "3s",
            "lock_timeout": "500ms",
            "idle_in_transaction_session_timeout": "5s",
            "client_connection_check_interval": "200ms",
            "default_transaction_isolation": "read committed",
            "TimeZone": "UTC",
            "application_name": "duostore",
            "client_encoding": "UTF8",
        }
        assert {name: setting(pool, name) for name in expected} == expected


def test_what_the_connection_string_says_wins(dsn: str) -> None:
    own = make_conninfo(
        dsn, application_name="billing", options="-c work_mem=1MB -c lock_timeout=7s"
    )
    with AuroraPool(own, wait=10, lock_timeout=0.5) as pool:
        expected = {"application_name": "billing", "work_mem": "1MB", "lock_timeout": "7s"}
        assert {name: setting(pool, name) for name in expected} == expected
        assert setting(pool, "idle_in_transaction_session_timeout") == "5s"


def test_the_connection_string_may_be_asked_for_at_each_connection(dsn: str) -> None:
    asked = 0

    def with_token() -> str:
        nonlocal asked
        asked += 1
        return make_conninfo(dsn, application_name=f"token-{asked}")

    with AuroraPool(with_token, max_size=1, wait=10, max_lifetime=0) as pool:
        names = [setting(pool, "application_name") for _ in range(3)]
    assert names == ["token-1", "token-2", "token-3"]


def test_behind_a_pooler_nothing_is_prepared_and_nothing_is_sent_at_the_start(dsn: str) -> None:
    with AuroraPool(
        dsn, max_size=1, wait=10, statement_timeout=3, lock_timeout=0.5, pooler=True
    ) as pool:
        assert "options" not in conninfo_to_dict(pool._current_conninfo())
        for n in range(WARM):
            assert save(pool, Deadline.after(1 if n % 2 else 10)) == n + 1
        assert pool.execute("SELECT * FROM pg_prepared_statements", (), soon()) == []
        assert setting(pool, "lock_timeout") == "500ms"
        # A timeout for a deadline is gone with its transaction: another client may be next.
        assert setting(pool, "statement_timeout", Deadline(1.02, clock=lambda: 0.0)) == "900ms"
        connection = pool._pool.getconn()
        try:
            ((after,),) = connection.execute("SHOW statement_timeout").fetchall()
        finally:
            pool._pool.putconn(connection)
        assert after == "3s"


def test_a_pool_that_is_stopped_is_unavailable(dsn: str) -> None:
    pool = AuroraPool(dsn, wait=10)
    with pytest.raises(StoreUnavailableError):
        save(pool)
    with pool:
        save(pool)
    with pytest.raises(StoreUnavailableError):
        save(pool)
    assert query(dsn, "SELECT version FROM duostore.entity") == [(1,)]
