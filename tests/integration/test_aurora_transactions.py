"""How a transaction of the authority reaches the server, and what stops it on the way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuplicateInProgressError,
    RefusalError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    VersionMismatchError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import (
    Change,
    Check,
    Idempotency,
    IdempotencyKey,
    IfVersion,
)
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.idempotency import AuroraIdempotency
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.aurora.pool import AuroraPool
from tests.support.authority_engines import soon, write_of
from tests.support.authority_faults import (
    backends,
    locked,
    query,
    round_trips,
    terminate,
    wait_until_blocked,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.transactions import Committed, Mutation, Transaction

DUE = timedelta()
# More often than the driver runs a statement before it prepares it.
WARM = 8
ONCE = Idempotency(IdempotencyKey("", "k-1"), b"\1" * 32, timedelta(hours=24))


@pytest.fixture
def dsn(postgres_dsn: str) -> str:
    migrate(postgres_dsn)
    return postgres_dsn


@pytest.fixture
def pool(dsn: str) -> Iterator[AuroraPool]:
    with AuroraPool(dsn, max_size=1, wait=10, statement_timeout=10, lock_timeout=5) as pool:
        yield pool


def key(name: str) -> EntityKey:
    return EntityKey("", "account", name)


def save(name: str, precondition: IfVersion | None = None) -> Change:
    return Change(key(name), {"a": 1}, precondition, DUE)


def write(
    pool: AuroraPool, transaction: Transaction, deadline: Deadline | None = None
) -> Committed:
    return AuroraAuthority(pool).write(transaction, deadline or soon())


def versions(dsn: str) -> dict[str, int]:
    rows = query(dsn, "SELECT id, version FROM duostore.entity")
    return {str(id_): int(str(version)) for id_, version in rows}


def prepared(pool: AuroraPool) -> int:
    """Return how many statements on entities the pool's only connection has prepared."""
    rows = pool.execute(
        "SELECT name FROM pg_prepared_statements WHERE statement LIKE %s",
        ("%duostore.entity%",),
        soon(),
    )
    return len(rows)


def test_a_transaction_is_two_round_trips_however_much_it_does(pool: AuroraPool) -> None:
    names = [f"{n:03}" for n in range(98)]
    many = [save(name) for name in names]
    for _ in range(WARM):
        write(pool, write_of(*many))
    with round_trips(pool) as count:
        write(pool, write_of(*many, Check(key("000"), WARM + 1), save("b")))
        assert count() == 2
        write(pool, write_of(*many, idempotency=ONCE))
        assert count() == 4
        write(pool, write_of(*many), Deadline(1, clock=lambda: 0.0))
        assert count() == 6


def test_a_write_that_takes_an_idempotency_key_is_one_round_trip(pool: AuroraPool) -> None:
    def once(n: int) -> Transaction:
        idempotency = Idempotency(IdempotencyKey("", f"k-{n}"), b"\1" * 32, timedelta(hours=24))
        return write_of(save("a"), idempotency=idempotency)

    for n in range(WARM):
        write(pool, once(n))
    with round_trips(pool) as count:
        write(pool, once(WARM))
        assert count() == 1
        assert write(pool, once(WARM)).replayed
        assert count() == 3


@pytest.mark.parametrize("names", ["az", "za"])
def test_locks_are_taken_in_the_order_of_the_keys(
    dsn: str, pool: AuroraPool, names: tuple[str, ...]
) -> None:
    """So that of two transactions, whatever their orders, one waits with nothing to hold up."""
    write(pool, write_of(save("a"), save("z")))
    for mutations in ([save(name) for name in names], [Check(key("a"), 2), save("z")]):
        with ThreadPoolExecutor(1) as threads:
            with locked(dsn, key("a")):
                writing = threads.submit(write, pool, write_of(*mutations))
                wait_until_blocked(dsn)
                with locked(dsn, key("z")):
                    pass
            writing.result(10)


def test_a_transaction_that_is_refused_leaves_no_lock_and_keeps_what_is_prepared(
    dsn: str, pool: AuroraPool
) -> None:
    write(pool, write_of(save("c")))
    for _ in range(WARM):
        write(pool, write_of(save("a"), save("b"), Check(key("c"), 1)))
    before, connections = prepared(pool), backends(dsn)
    assert before
    for _ in range(3):
        with pytest.raises(VersionMismatchError):
            write(pool, write_of(save("a"), save("b"), Check(key("c"), 7)))
        assert prepared(pool) == before
        with locked(dsn, key("a")), locked(dsn, key("b")):
            pass
    assert backends(dsn) == connections
    with round_trips(pool) as count:
        write(pool, write_of(save("a"), save("b")))
        assert count() == 2


def fail(dsn: str, table: str, state: str, *, after: int = 0, times: int = 1) -> None:
    """Let so many inserts into a table fail with a state; sequences forget no rollback."""
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SEQUENCE attempts")
        connection.execute(
            sql.SQL(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$"
                " DECLARE attempt bigint := nextval('attempts');"
                " BEGIN IF attempt > {} AND attempt <= {} THEN RAISE SQLSTATE {}; END IF;"
                " RETURN new; END $$"
            ).format(after, after + times, state)
        )
        connection.execute(
            sql.SQL(
                "CREATE TRIGGER fail BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION fail()"
            ).format(sql.Identifier("duostore", table))
        )


MANY = [save(f"{n:03}") for n in range(100)]
LARGE = [Change(key(f"{n:03}"), {"text": "x" * 20_000}, None, DUE) for n in range(100)]


@pytest.mark.parametrize(
    ("mutations", "after", "state"),
    [(MANY, 0, "40001"), (MANY, 99, "40P01"), (LARGE, 0, "40P01"), (LARGE, 50, "40001")],
    ids=["many, the first", "many, the last", "large, the first", "large, in between"],
)
def test_contention_in_a_transaction_is_tried_once_more(
    dsn: str, pool: AuroraPool, mutations: list[Mutation], after: int, state: str
) -> None:
    write(pool, write_of(save("000")))
    before = backends(dsn)
    fail(dsn, "outbox", state, after=after)
    committed = write(pool, write_of(*mutations))
    assert [applied.version for applied in committed.answer] == [2, *[1] * 99]
    assert backends(dsn) == before


@pytest.mark.parametrize("table", ["outbox", "audit", "idempotency"])
def test_contention_that_stays_is_overload_and_nothing_is_written(
    dsn: str, pool: AuroraPool, table: str
) -> None:
    fail(dsn, table, "40001", times=2)
    transaction = write_of(save("a"), save("b"), idempotency=ONCE)
    with pytest.raises(StoreOverloadedError):
        write(pool, transaction)
    assert versions(dsn) == {}
    assert not write(pool, transaction).replayed


@pytest.mark.parametrize("runs", [4, 5, 6])
def test_a_transaction_that_fails_harms_none_after_it(
    dsn: str, pool: AuroraPool, runs: int
) -> None:
    """Whenever the driver would have prepared its statements."""
    for _ in range(runs):
        write(pool, write_of(save("a"), save("b")))
    before = backends(dsn)
    fail(dsn, "audit", "57014", after=1)
    with pytest.raises(StoreTimeoutError):
        write(pool, write_of(save("a"), save("b"), save("c")))
    for n in range(WARM):
        committed = write(pool, write_of(save("a"), save("b")))
        assert [applied.version for applied in committed.answer] == [runs + 1 + n] * 2
    assert backends(dsn) == before


def test_a_change_of_the_schema_that_changes_a_plan_costs_no_transaction(
    dsn: str, pool: AuroraPool
) -> None:
    for _ in range(WARM):
        write(pool, write_of(save("a"), save("b")))
    assert prepared(pool)
    query(dsn, "ALTER TABLE duostore.entity ALTER COLUMN version TYPE integer")
    committed = write(pool, write_of(save("a"), save("b")))
    assert [applied.version for applied in committed.answer] == [WARM + 1] * 2


def test_a_transaction_whose_connection_is_killed_before_its_commit_was_not_applied(
    dsn: str, pool: AuroraPool
) -> None:
    write(pool, write_of(save("b")))
    with ThreadPoolExecutor(1) as threads, locked(dsn, key("b")):
        writing = threads.submit(write, pool, write_of(save("a"), save("b")))
        wait_until_blocked(dsn)
        terminate(dsn)
        with pytest.raises(StoreUnavailableError) as raised:
            writing.result(10)
        assert type(raised.value) is StoreUnavailableError
    assert versions(dsn) == {"b": 1}
    write(pool, write_of(save("a"), save("b")))
    assert versions(dsn) == {"a": 1, "b": 2}


def test_a_caller_that_is_gone_by_the_time_of_the_commit_writes_nothing(
    dsn: str, pool: AuroraPool
) -> None:
    gone = False
    write(pool, write_of(save("b")))
    before = backends(dsn)
    deadline = Deadline.after(10, cancelled=lambda: gone)
    with ThreadPoolExecutor(1) as threads:
        with locked(dsn, key("b")):
            writing = threads.submit(write, pool, write_of(save("a"), save("b")), deadline)
            wait_until_blocked(dsn)
            gone = True
        with pytest.raises(DeadlineExceededError):
            writing.result(10)
    assert versions(dsn) == {"b": 1}
    with locked(dsn, key("b")):
        pass
    assert backends(dsn) == before


def test_a_deadline_that_passes_while_a_lock_is_waited_for_writes_nothing(
    dsn: str, pool: AuroraPool
) -> None:
    write(pool, write_of(save("b")))
    with locked(dsn, key("b")), pytest.raises(StoreTimeoutError):
        write(pool, write_of(save("a"), save("b")), Deadline.after(0.5))
    assert versions(dsn) == {"b": 1}
    write(pool, write_of(save("a"), save("b")))
    assert versions(dsn) == {"a": 1, "b": 2}


@pytest.mark.parametrize("mutations", [[save("a")], [save("a"), save("b")]], ids=["one", "two"])
def test_who_waits_in_vain_is_told_of_a_duplicate_if_there_can_be_one(
    dsn: str, mutations: list[Mutation]
) -> None:
    with AuroraPool(dsn, wait=10, lock_timeout=0.05) as pool:
        write(pool, write_of(save("a")))
        with locked(dsn, key("a")):
            with pytest.raises(DuplicateInProgressError):
                write(pool, write_of(*mutations, idempotency=ONCE))
            with pytest.raises(StoreOverloadedError):
                write(pool, write_of(*mutations))
        assert versions(dsn) == {"a": 1}
        assert not write(pool, write_of(*mutations, idempotency=ONCE)).replayed


@pytest.mark.parametrize("mutations", [[save("a")], [save("a"), save("b")]], ids=["one", "two"])
@pytest.mark.parametrize("idempotency", [None, ONCE], ids=["without", "with a key"])
def test_a_row_in_the_way_that_is_no_idempotency_key_is_a_fault_of_ours(
    dsn: str, pool: AuroraPool, mutations: list[Mutation], idempotency: Idempotency | None
) -> None:
    query(
        dsn,
        "INSERT INTO duostore.audit VALUES ('', 'account', 'a', 1, 'save', '', '', now())",
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        write(pool, write_of(*mutations, idempotency=idempotency))
    assert versions(dsn) == {}


def test_a_purge_waits_for_nobody(dsn: str, pool: AuroraPool) -> None:
    write(pool, write_of(save("a"), idempotency=ONCE))
    query(dsn, "UPDATE duostore.idempotency SET expire_time = now() - interval '1 s'")
    rows = AuroraIdempotency(pool)
    with psycopg.connect(dsn) as other:
        other.execute("SELECT * FROM duostore.idempotency FOR UPDATE")
        assert rows.purge(10, Deadline.after(5)) == 0
        other.rollback()
    assert rows.purge(10, soon()) == 1


def test_behind_a_pooler_a_transaction_leaves_no_setting_behind(dsn: str) -> None:
    with AuroraPool(dsn, max_size=1, wait=10, statement_timeout=3, pooler=True) as pool:
        for n in range(WARM):
            deadline = Deadline.after(1 if n % 2 else 10)
            committed = write(pool, write_of(save("a"), save("b")), deadline)
            assert [applied.version for applied in committed.answer] == [n + 1] * 2
            with pytest.raises(RefusalError):
                write(pool, write_of(save("a"), save("b", IfVersion(99))), deadline)
        assert pool.execute("SELECT * FROM pg_prepared_statements", (), soon()) == []
        connection = pool._pool.getconn()
        try:
            ((after,),) = connection.execute("SHOW statement_timeout").fetchall()
        finally:
            pool._pool.putconn(connection)
        assert after == "3s"


AUDIT_AS_IT_IS = "SELECT entity_id, version FROM duostore.audit ORDER BY version"


UPSERT_OF_AUDIT = """
INSERT INTO duostore.audit SELECT * FROM duostore.audit
ON CONFLICT (tenant, kind, entity_id, version) DO UPDATE SET caller = ''
"""


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE duostore.audit SET caller = 'nobody'",
        "UPDATE duostore.audit SET caller = 'nobody' WHERE false",
        "DELETE FROM duostore.audit WHERE version = 1",
        "TRUNCATE duostore.audit",
        UPSERT_OF_AUDIT,
    ],
)
def test_what_is_in_the_audit_stays_as_it_is(dsn: str, pool: AuroraPool, statement: str) -> None:
    for _ in range(3):
        write(pool, write_of(save("a")))
    for role in ("origin", "replica"):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"SET session_replication_role = {role}")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                connection.execute(statement)
    assert query(dsn, AUDIT_AS_IT_IS) == [("a", 1), ("a", 2), ("a", 3)]


def test_an_operator_can_retire_what_is_old_as_the_comment_says(dsn: str, pool: AuroraPool) -> None:
    for _ in range(3):
        write(pool, write_of(save("a")))
    ((comment,),) = query(dsn, "SELECT obj_description('duostore.audit'::regclass)")
    ((second,),) = query(dsn, "SELECT time FROM duostore.audit WHERE version = 2")
    _, _, commands = str(comment).partition("in one transaction: ")
    commands, _, _ = commands.partition(". Writes wait")
    disable, retire, enable = commands.split("; ")
    with psycopg.connect(dsn) as connection:
        connection.execute(disable)
        connection.execute(retire.replace("...", "%s"), (second,))
        connection.execute(enable)
    assert query(dsn, AUDIT_AS_IT_IS) == [("a", 2), ("a", 3)]
    write(pool, write_of(save("a")))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        query(dsn, "DELETE FROM duostore.audit")


def test_a_transaction_that_was_given_up_on_does_not_go_on(dsn: str) -> None:
    """Its statements have all been sent, and each has all the time of the call on the server."""
    names = [f"k{number:02}" for number in range(12)]
    released: list[str] = []
    ended = threading.Event()
    with (
        AuroraPool(dsn, wait=10, statement_timeout=1, lock_timeout=1) as pool,
        ExitStack() as stack,
    ):
        for name in names:
            write(pool, write_of(save(name)))
        holders = {name: stack.enter_context(psycopg.connect(dsn)) for name in names[1:]}
        for name, holder in holders.items():
            holder.execute("SELECT FROM duostore.entity WHERE id = %s FOR UPDATE", (name,))

        def release_one_after_another() -> None:
            for name, holder in holders.items():
                ended.wait(0.7)
                released.append(name)
                holder.rollback()

        with ThreadPoolExecutor(1) as threads:
            releasing = threads.submit(release_one_after_another)
            try:
                with pytest.raises(StoreTimeoutError):
                    write(pool, write_of(*map(save, names)))
                eventually(lambda: is_free(dsn, names[0]), within=30, what="its locks are gone")
                assert names[-1] not in released
            finally:
                ended.set()
            releasing.result(10)
    assert set(versions(dsn).values()) == {1}


def is_free(dsn: str, name: str) -> bool:
    with psycopg.connect(dsn) as connection:
        try:
            connection.execute(
                "SELECT FROM duostore.entity WHERE id = %s FOR UPDATE NOWAIT", (name,)
            )
        except psycopg.errors.LockNotAvailable:
            return False
    return True
