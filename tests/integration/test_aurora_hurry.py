"""Callers in a hurry, and roles that may too little."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DuostoreError
from duostore_server.storage.aurora.migrate import MigrationError, ensure_current, migrate
from duostore_server.storage.aurora.pool import AuroraPool
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.servers import PostgresServer


def backends(dsn: str) -> set[int]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'duostore'"
            " AND datname = current_database()"
        ).fetchall()
    return {pid for (pid,) in rows}


def test_a_caller_in_a_hurry_costs_its_own_connection_at_most(postgres_dsn: str) -> None:
    with AuroraPool(postgres_dsn, min_size=4, max_size=4) as pool:
        eventually(lambda: len(backends(postgres_dsn)) == 4, within=10, what="the pool is full")
        before = backends(postgres_dsn)
        with pytest.raises(DuostoreError):
            pool.execute("SELECT pg_sleep(10)", (), Deadline.after(0.1))
        pool.execute("SELECT 1", (), Deadline.after(10))
        assert len(before & backends(postgres_dsn)) >= len(before) - 1


@pytest.fixture
def poor_dsn(postgres: PostgresServer) -> str:
    """The connection string of a role without any rights to a database."""
    dsn = postgres.create_database()
    name = "poor_" + psycopg.conninfo.conninfo_to_dict(dsn)["dbname"].removeprefix("test_")  # type: ignore[union-attr]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(name))
        )
    return psycopg.conninfo.make_conninfo(dsn, user=name, password="x")


def test_a_role_without_rights_is_told_where_they_are_listed(poor_dsn: str) -> None:
    with pytest.raises(MigrationError, match="rights"):
        migrate(poor_dsn)
    with pytest.raises(MigrationError):
        ensure_current(poor_dsn)
