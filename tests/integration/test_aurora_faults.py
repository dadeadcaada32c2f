"""What the authority answers while its server is killed, frozen, stopped or demoted."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DuostoreError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.connection import BoundedConnection
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.probe import AuroraProbe, open_probe
from tests.support.authority_engines import soon, write_of
from tests.support.authority_faults import backends, locked, query, terminate, wait_until_blocked
from tests.support.servers import PostgresServer, running
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.abc import PQGen

    from duostore_server.domain.entities import Entity

RV = TypeVar("RV")

KEY = EntityKey("acme", "proposal", "p-1")
# How soon after an outage the service must be whole again.
RECOVERY = 5.0
# C10 grants 0.05 s after the deadline; a machine that runs tests may be busy.
LATE = 0.25


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running(PostgresServer()) as server:
        yield server


@pytest.fixture
def dsn(server: PostgresServer) -> str:
    dsn = server.create_database()
    migrate(dsn)
    return dsn


@pytest.fixture
def pool(dsn: str) -> Iterator[AuroraPool]:
    with AuroraPool(dsn, min_size=3, max_size=3, wait=1, max_waiting=2) as pool:
        eventually(lambda: len(backends(dsn)) == 3, within=RECOVERY, what="the pool is full")
        yield pool


@pytest.fixture
def probe(dsn: str) -> Iterator[AuroraProbe]:
    with open_probe(dsn) as probe:
        yield probe


@pytest.fixture
def authority(pool: AuroraPool) -> AuroraAuthority:
    return AuroraAuthority(pool)


def save(authority: AuroraAuthority, deadline: Deadline | None = None) -> Entity:
    change = Change(KEY, {"a": 1}, None, timedelta())
    (written,) = authority.write(write_of(change), deadline or soon()).written
    return written.entity


def is_whole(part: AuroraAuthority | AuroraProbe) -> bool:
    with suppress(DuostoreError):
        if isinstance(part, AuroraProbe):
            part.ping(Deadline.after(1))
        else:
            save(part, Deadline.after(1))
        return True
    return False


def recovers(part: AuroraAuthority | AuroraProbe) -> None:
    eventually(lambda: is_whole(part), within=RECOVERY, what=f"{type(part).__name__} is back")


@contextmanager
def paused(server: PostgresServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def demoted(dsn: str) -> Iterator[None]:
    """Let the server behave as an old writer that lives on as a reader, connections and all."""

    def be_read_only(value: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")
        eventually(
            lambda: query(dsn, "SHOW default_transaction_read_only") == [(value,)],
            within=RECOVERY,
            what=f"default_transaction_read_only is {value}",
        )

    be_read_only("on")
    try:
        yield
    finally:
        be_read_only("off")


def test_of_a_write_whose_connection_was_killed_the_outcome_is_unknown(
    dsn: str, authority: AuroraAuthority
) -> None:
    save(authority)
    with ThreadPoolExecutor(1) as threads, locked(dsn, KEY):
        writing = threads.submit(save, authority)
        wait_until_blocked(dsn)
        terminate(dsn)
        with pytest.raises(WriteOutcomeUnknownError):
            writing.result(10)
    assert save(authority).version == 2


def test_a_read_whose_connection_was_killed_is_unavailable(dsn: str, pool: AuroraPool) -> None:
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(pool.execute, "SELECT pg_sleep(9)", (), soon())
        eventually(
            lambda: query(
                dsn,
                "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                " AND datname = current_database()",
            ),
            within=RECOVERY,
            what="the statement runs",
        )
        terminate(dsn)
        with pytest.raises(StoreUnavailableError) as raised:
            reading.result(10)
    assert type(raised.value) is StoreUnavailableError


def test_connections_that_died_idle_cost_no_call(dsn: str, authority: AuroraAuthority) -> None:
    save(authority)
    terminate(dsn)
    assert save(authority).version == 2
    assert authority.read([KEY], soon())[KEY].version == 2


class NeverForsaken(BoundedConnection):
    """The mutant that hands out connections without a look at them."""

    is_forsaken = False


def test_without_a_look_at_them_they_would(
    dsn: str, pool: AuroraPool, authority: AuroraAuthority
) -> None:
    pool._pool.connection_class = NeverForsaken
    pool._pool.drain()
    eventually(lambda: len(backends(dsn)) == 3, within=RECOVERY, what="the pool is full")
    eventually(
        lambda: pool._pool.get_stats()["pool_available"] == 3, within=RECOVERY, what="and at rest"
    )
    terminate(dsn)
    with pytest.raises(WriteOutcomeUnknownError):
        save(authority)


def test_a_frozen_server_holds_no_call_beyond_its_deadline(
    server: PostgresServer,
    dsn: str,
    pool: AuroraPool,
    authority: AuroraAuthority,
    probe: AuroraProbe,
) -> None:
    save(authority)
    probe.ping(soon())
    took = {}
    with paused(server):
        for name, expected, call in (
            ("write", WriteOutcomeUnknownError, lambda d: save(authority, d)),
            ("read", StoreTimeoutError, lambda d: authority.read([KEY], d)),
            ("claim", StoreUnavailableError, lambda d: AuroraOutbox(pool).claim(1, d)),
            ("probe", StoreTimeoutError, probe.ping),
            ("probe that has to connect", StoreUnavailableError, probe.ping),
        ):
            began = time.monotonic()
            with pytest.raises(StoreError) as raised:
                call(Deadline.after(0.5))
            took[name] = time.monotonic() - began
            # After the first failure all connections are renewed, which a frozen server
            # does not answer either; whoever comes then gets none.
            assert isinstance(raised.value, (expected, StoreUnavailableError)), name
            if name in {"write", "probe"}:
                assert type(raised.value) is expected
    assert max(took.values()) <= 0.5 + LATE, took
    # The frozen server had the statement and carries it out: the outcome was unknown indeed.
    eventually(
        lambda: query(dsn, "SELECT version FROM duostore.entity") == [(2,)],
        within=RECOVERY,
        what="the write is applied",
    )
    recovers(authority)
    recovers(probe)


def test_a_frozen_server_is_given_up_on_without_a_deadline_that_presses(
    server: PostgresServer, dsn: str
) -> None:
    with AuroraPool(dsn, wait=1, statement_timeout=0.3) as pool:
        authority = AuroraAuthority(pool)
        save(authority)
        with paused(server):
            began = time.monotonic()
            with pytest.raises(StoreTimeoutError):
                authority.read([KEY], Deadline.after(60))
            assert time.monotonic() - began < 1
        recovers(authority)


def test_a_server_that_is_stopped_and_started_is_found_again(
    server: PostgresServer, authority: AuroraAuthority, pool: AuroraPool, probe: AuroraProbe
) -> None:
    before = save(authority)
    probe.ping(soon())
    server.stop()
    try:
        # More calls than may wait at a time: none of them may count as waiting for ever.
        for _ in range(4):
            with pytest.raises(StoreUnavailableError) as raised:
                save(authority, Deadline.after(0.2))
            assert type(raised.value) is StoreUnavailableError
            with pytest.raises(StoreUnavailableError):
                authority.read([KEY], Deadline.after(0.2))
            with pytest.raises(StoreUnavailableError):
                probe.ping(Deadline.after(0.2))
        # Long enough for the pool to give up on all its connections.
        eventually(
            lambda: pool._pool.get_stats()["pool_size"] == 0, within=20, what="none is expected"
        )
    finally:
        server.start()
    recovers(authority)
    recovers(probe)
    assert save(authority).version > before.version


def test_a_server_that_was_killed_loses_no_acknowledged_write(
    server: PostgresServer, authority: AuroraAuthority
) -> None:
    """C1, as far as the authority goes."""
    acknowledged = 0
    for _ in range(3):
        for _ in range(10):
            acknowledged = save(authority).version
        server.kill()
        server.start()
        eventually(lambda: _can_read(authority), within=RECOVERY, what="the authority can be read")
        assert authority.read([KEY], soon())[KEY].version == acknowledged


def _can_read(authority: AuroraAuthority) -> bool:
    with suppress(DuostoreError):
        authority.read([KEY], Deadline.after(1))
        return True
    return False


def test_a_writer_that_was_demoted_is_left(
    dsn: str, authority: AuroraAuthority, probe: AuroraProbe
) -> None:
    save(authority)
    before = backends(dsn)
    with demoted(dsn):
        with pytest.raises(StoreUnavailableError) as raised:
            save(authority)
        assert type(raised.value) is StoreUnavailableError
        assert isinstance(raised.value.__cause__, psycopg.errors.ReadOnlySqlTransaction)
        eventually(
            lambda: not before & backends(dsn), within=RECOVERY, what="its connections are closed"
        )
        # Nor is it connected to again, though it would gladly be read from.
        for call in (lambda: authority.read([KEY], soon()), lambda: probe.ping(soon())):
            with pytest.raises(StoreUnavailableError) as raised:
                call()
            assert isinstance(raised.value.__cause__, PoolTimeout)
    recovers(authority)
    assert not before & backends(dsn)


@pytest.mark.parametrize("many", [False, True])
def test_a_writer_that_was_demoted_is_not_read_from(
    dsn: str, authority: AuroraAuthority, *, many: bool
) -> None:
    """A connection that lives on would answer from the past: no error, and not the newest."""
    save(authority)
    before = backends(dsn)
    keys = [KEY, EntityKey("", "k", "2")] if many else [KEY]
    with demoted(dsn):
        with pytest.raises(StoreUnavailableError):
            authority.read(keys, soon())
        eventually(
            lambda: not before & backends(dsn), within=RECOVERY, what="its connections are closed"
        )
    recovers(authority)


def test_a_writer_that_was_demoted_fails_the_probe(dsn: str, probe: AuroraProbe) -> None:
    probe.ping(soon())
    before = backends(dsn)
    with demoted(dsn):
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                probe.ping(soon())
    recovers(probe)
    assert not before & backends(dsn)


def test_a_probe_has_one_connection_of_its_own_and_keeps_it(dsn: str) -> None:
    with open_probe(dsn) as probe:
        assert not backends(dsn)
        probe.ping(soon())
        before = backends(dsn)
        probe.ping(Deadline.after(0.5))
        assert len(before) == 1
        assert backends(dsn) == before
        terminate(dsn)
        probe.ping(soon())
        assert len(backends(dsn) - before) == 1
    eventually(lambda: not backends(dsn), within=RECOVERY, what="it is closed")
    with pytest.raises(StoreUnavailableError):
        probe.ping(soon())


def test_neither_a_full_pool_nor_a_lock_fails_the_probe(dsn: str, probe: AuroraProbe) -> None:
    with (
        AuroraPool(dsn, max_size=1, wait=9, lock_timeout=9, statement_timeout=9) as pool,
        ThreadPoolExecutor(1) as threads,
    ):
        authority = AuroraAuthority(pool)
        save(authority)
        with psycopg.connect(dsn) as other:
            other.execute("LOCK TABLE duostore.entity, duostore.outbox IN ACCESS EXCLUSIVE MODE")
            writing = threads.submit(save, authority)
            wait_until_blocked(dsn)
            probe.ping(soon())
            # The mutant that shares the pool.
            with pytest.raises(StoreUnavailableError):
                AuroraProbe(pool).ping(Deadline.after(0.1))
            other.rollback()
        assert writing.result(10).version == 2


class Torn(BoundedConnection):
    """A connection whose socket fails the system call that waits, when it is told to."""

    is_torn = False

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        if type(self).is_torn:
            type(self).is_torn = False
            raise OSError(12, "Cannot allocate memory")
        return super().wait(gen, interval, timeout)


def test_of_a_write_whose_socket_fails_the_outcome_is_unknown(dsn: str) -> None:
    pool = AuroraPool(dsn, max_size=1, wait=5)
    pool._pool.connection_class = Torn
    with pool:
        authority = AuroraAuthority(pool)
        save(authority)
        before = backends(dsn)
        Torn.is_torn = True
        with pytest.raises(WriteOutcomeUnknownError) as raised:
            save(authority)
        assert isinstance(raised.value.__cause__, OSError)
        save(authority)
        eventually(lambda: not before & backends(dsn), within=RECOVERY, what="it is closed")


def test_a_pool_starts_before_its_server_does(server: PostgresServer, dsn: str) -> None:
    server.stop()
    try:
        pool = AuroraPool(dsn, wait=0.1)
        pool.start()
        with pytest.raises(StoreUnavailableError):
            save(AuroraAuthority(pool))
    finally:
        server.start()
    recovers(AuroraAuthority(pool))
    pool.stop()
