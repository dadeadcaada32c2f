"""What tests do to PostgreSQL behind the back of the authority."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from duostore_server.storage.aurora.connection import APPLICATION_NAME
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import LiteralString

    from duostore_server.domain.keys import EntityKey
    from duostore_server.storage.aurora.pool import AuroraPool

_OURS = "datname = current_database() AND application_name = %s"
_WITHIN = 10.0


def query(dsn: str, statement: LiteralString, *params: object) -> list[tuple[object, ...]]:
    """Run a statement on a connection of its own and return its rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement, params)
        return cursor.fetchall() if cursor.description else []


def backends(dsn: str) -> set[int]:
    """Return the process ids of the server's side of our pools' connections."""
    rows = query(dsn, f"SELECT pid FROM pg_stat_activity WHERE {_OURS}", APPLICATION_NAME)
    return {int(str(pid)) for (pid,) in rows}


def terminate(dsn: str) -> None:
    """End all connections of our pools, and return when they have ended."""
    before = backends(dsn)
    query(
        dsn,
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}",
        APPLICATION_NAME,
    )
    eventually(
        lambda: not before & backends(dsn), within=_WITHIN, what="the connections have ended"
    )


def blocked(dsn: str) -> int:
    """Return how many statements of our pools wait for a lock."""
    ((count,),) = query(
        dsn,
        f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS} AND wait_event_type = 'Lock'",
        APPLICATION_NAME,
    )
    return int(str(count))


def wait_until_blocked(dsn: str, count: int = 1) -> None:
    """Return when so many statements of our pools wait for a lock."""
    eventually(
        lambda: blocked(dsn) == count,
        within=_WITHIN,
        what=f"{count} statements wait for a lock",
    )


@contextmanager
def locked(dsn: str, key: EntityKey) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Keep the row of an existing entity locked, so that writes to it wait."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT version FROM duostore.entity WHERE tenant = %s AND kind = %s AND id = %s"
            " FOR UPDATE",
            (key.tenant, key.kind, key.id),
        ).fetchall()
        assert rows, f"{key} does not exist"
        yield connection
        connection.rollback()


@contextmanager
def round_trips(pool: AuroraPool) -> Iterator[Callable[[], int]]:
    """Count how often the pool's only connection waited for the server's answer.

    Each wait follows a Sync or a simple query.
    """
    with tempfile.TemporaryFile("r+") as trace:
        connection = pool._pool.getconn()
        connection.pgconn.trace(trace.fileno())
        pool._pool.putconn(connection)

        def count() -> int:
            trace.seek(0)
            sent = [line.split("\t")[1:4:2] for line in trace if line.count("\t") >= 3]
            return sum(
                side == "F" and what.split()[0] in {"Sync", "Query", "Terminate"}
                for side, what in sent
            )

        yield count
        connection = pool._pool.getconn()
        connection.pgconn.untrace()
        pool._pool.putconn(connection)
