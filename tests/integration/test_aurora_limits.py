"""Limits that are set at run time, in PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.limits import MAX_LIMIT, LimitKey
from duostore_server.storage.aurora.limits import (
    AuroraLimits,
    list_limits,
    set_limit,
    unset_limit,
)
from duostore_server.storage.aurora.migrate import MigrationError, migrate
from tests.support.authority_engines import migrated_pool, soon
from tests.support.postgres import PostgresServer
from tests.support.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.storage.aurora.pool import AuroraPool

UNREADABLE = "limits cannot be read"


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture
def dsn(database: tuple[str, AuroraPool]) -> str:
    dsn, _ = database
    execute(dsn, "TRUNCATE duostore.control")
    return dsn


@pytest.fixture
def pool(database: tuple[str, AuroraPool]) -> AuroraPool:
    return database[1]


@pytest.fixture
def limits(pool: AuroraPool) -> AuroraLimits:
    return AuroraLimits(pool)


def execute(dsn: str, query: str, *params: object) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(query.encode(), params)


def put(dsn: str, name: str, value: str, topic: str = "quota_limit") -> None:
    """Write a row as somebody may who has no command."""
    execute(
        dsn,
        "INSERT INTO duostore.control (topic, name, value, caller, update_time)"
        " VALUES (%s, %s, %s, 'somebody', now())",
        topic,
        name,
        value,
    )


def test_nothing_is_set_at_first(dsn: str, limits: AuroraLimits) -> None:
    assert limits.read(soon()) == {}
    assert list_limits(dsn) == []


def test_what_is_set_is_read_until_it_is_unset(dsn: str, limits: AuroraLimits) -> None:
    everywhere, here, empty = (LimitKey(tenant, "alice") for tenant in (None, "acme", ""))
    odd = LimitKey("acme", "#'\"{}\\ NULL é")
    set_limit(dsn, "calls", everywhere, 1, caller="")
    set_limit(dsn, "calls", here, MAX_LIMIT, caller="")
    set_limit(dsn, "calls", empty, 0, caller="")
    set_limit(dsn, "tokens", odd, 4, caller="")
    assert limits.read(soon()) == {
        ("calls", "alice"): 1,
        ("calls", "acme#alice"): MAX_LIMIT,
        ("calls", "#alice"): 0,
        ("tokens", "acme##'\"{}\\ NULL é"): 4,
    }

    set_limit(dsn, "calls", here, 5, caller="")
    assert unset_limit(dsn, "calls", everywhere)
    assert not unset_limit(dsn, "calls", everywhere)
    assert not unset_limit(dsn, "tokens", here)
    assert unset_limit(dsn, "tokens", odd)
    assert limits.read(soon()) == {("calls", "acme#alice"): 5, ("calls", "#alice"): 0}


def test_the_list_tells_who_set_what_and_when(dsn: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    set_limit(dsn, "tokens", LimitKey(None, "bob"), 7, caller="ops")
    set_limit(dsn, "calls", LimitKey("acme", "a#b"), 8, caller="ops")
    set_limit(dsn, "calls", LimitKey("acme", "a#b"), 9, caller="on call")
    first, second = list_limits(dsn)

    assert (first.quota, first.key, first.limit) == ("calls", LimitKey("acme", "a#b"), 9)
    assert (first.caller, second.caller) == ("on call", "ops")
    assert (second.quota, second.key, second.limit) == ("tokens", LimitKey(None, "bob"), 7)
    assert before < second.update_time <= first.update_time < before + timedelta(minutes=1)


BAD_ROWS = [
    ("calls#a", '"5"'),
    ("calls#b", "5.0"),
    ("calls#c", "-1"),
    ("calls#d", "-5"),
    ("calls#e", str(MAX_LIMIT + 1)),
    ("calls#f", "9" * 5000),
    ("calls#g", "true"),
    ("calls#h", "null"),
    ("calls#i", '{"limit": 5}'),
    ("calls#j", "[" * 5000 + "]" * 5000),
    ("calls", "5"),
    ("calls#", "5"),
    ("calls#acme#", "5"),
    ("#alice", "5"),
    ("", "5"),
    ("calls#a\ab", "5"),
    ("calls#" + "s" * 257, "5"),
]


def test_rows_that_cannot_be_read_are_passed_over(dsn: str, limits: AuroraLimits) -> None:
    set_limit(dsn, "calls", LimitKey(None, "alice"), 5, caller="")
    for name, value in BAD_ROWS:
        put(dsn, name, value)
    put(dsn, "calls#bob", "7", topic="flag")

    assert limits.read(soon()) == {("calls", "alice"): 5}
    listed = list_limits(dsn)
    assert len(listed) == len(BAD_ROWS) + 1
    assert {row.value for row in listed if row.limit is None} == {value for _, value in BAD_ROWS}
    # What is wrong with a value the commands can mend.
    set_limit(dsn, "calls", LimitKey(None, "a"), 6, caller="")
    assert unset_limit(dsn, "calls", LimitKey(None, "b"))
    assert limits.read(soon()) == {("calls", "alice"): 5, ("calls", "a"): 6}


def test_rows_that_cannot_be_read_are_told_once_a_minute(
    dsn: str, pool: AuroraPool, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    limits = AuroraLimits(pool, clock=lambda: now)

    def told() -> int:
        caplog.clear()
        limits.read(soon())
        return sum(UNREADABLE in record.getMessage() for record in caplog.records)

    assert told() == 0
    put(dsn, "calls#secret", "-1")
    put(dsn, "calls#other", "-1")
    assert told() == 1
    assert "count=2" in caplog.text
    assert "secret" not in caplog.text
    now += 59
    assert told() == 0
    # Also of rows that have not changed since.
    now += 1
    assert told() == 1
    execute(dsn, "TRUNCATE duostore.control")
    now += 60
    assert told() == 0


def test_rows_that_have_not_changed_are_not_looked_into(dsn: str, limits: AuroraLimits) -> None:
    set_limit(dsn, "calls", LimitKey(None, "alice"), 5, caller="")
    first = limits.read(soon())
    assert limits.read(soon()) is first
    set_limit(dsn, "calls", LimitKey(None, "alice"), 6, caller="")
    assert limits.read(soon()) == {("calls", "alice"): 6}


def test_a_deadline_that_passed_stops_a_call_before_it_begins(limits: AuroraLimits) -> None:
    with pytest.raises(DeadlineExceededError):
        limits.read(Deadline.after(0))


def test_a_writer_that_was_demoted_is_not_believed(dsn: str) -> None:
    set_limit(dsn, "calls", LimitKey(None, "alice"), 5, caller="")
    with migrated_pool(dsn, max_size=1) as pool:
        limits = AuroraLimits(pool)
        assert limits.read(soon())
        pool.execute("SET default_transaction_read_only = on", (), soon())
        with pytest.raises(StoreUnavailableError):
            limits.read(soon())
        # By a connection that is new.
        assert limits.read(soon())


def test_a_command_says_that_the_schema_is_older(postgres_dsn: str) -> None:
    migrate(postgres_dsn, target="0002_idempotency_audit_draft")
    for command in (
        lambda: set_limit(postgres_dsn, "calls", LimitKey(None, "a"), 1, caller=""),
        lambda: unset_limit(postgres_dsn, "calls", LimitKey(None, "a")),
        lambda: list_limits(postgres_dsn),
    ):
        with pytest.raises(MigrationError, match=r"no table duostore\.control: run `duostore mig"):
            command()


def test_a_command_waits_for_no_lock_for_ever(dsn: str) -> None:
    key = LimitKey(None, "a")
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK duostore.control")
        for command in (
            lambda: set_limit(dsn, "calls", key, 1, caller="", within=0.2),
            lambda: unset_limit(dsn, "calls", key, within=0.2),
            lambda: list_limits(dsn, within=0.2),
        ):
            with pytest.raises(StoreTimeoutError):
                command()
    assert list_limits(dsn) == []


def test_a_command_gives_a_server_up_that_is_frozen_or_gone() -> None:
    with running(PostgresServer()) as server:
        dsn = server.create_database()
        migrate(dsn)
        server.pause()
        with pytest.raises(StoreUnavailableError):
            list_limits(dsn)
        server.resume()
        assert list_limits(dsn) == []
        server.kill()
        with pytest.raises(StoreUnavailableError):
            list_limits(dsn)
