"""The schema of the authority: numbered SQL files, each applied once and then never changed.

After those of Duostore come those of its user, who has tables in the same database. They are
recorded under their names, after ``app/``.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from duostore_server.storage.aurora.connection import BoundedConnection, completed, resolved
from duostore_server.storage.aurora.errors import translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from importlib.resources.abc import Traversable

    from psycopg.rows import TupleRow

    from duostore_server.storage.aurora.connection import Conninfo

    # Migrations of the user: their names and contents, in order.
    Own: TypeAlias = Sequence[tuple[str, bytes]]

MIGRATIONS: Final = files("duostore_server.storage.aurora") / "migrations"

_OWN: Final = "app/"
_CONNECT_SECONDS: Final = 5.0
# All that migrate a database take this lock: the bytes of "duostore".
_LOCK: Final = int.from_bytes(b"duostore", "big")
_UNHURRIED: Final = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"
# Whoever waits for a table's lock holds up all that come later and want the table.
_POLITE: Final = "SET LOCAL lock_timeout = '10s'"

_FOUNDATION: Final = """
CREATE SCHEMA IF NOT EXISTS duostore;
CREATE TABLE IF NOT EXISTS duostore.migration (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    apply_time timestamptz NOT NULL DEFAULT now()
);
"""


class MigrationError(Exception):
    """The schema is not what this version of Duostore needs. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its name without ``.sql``, its SQL, and the SHA-256 of its bytes in hex."""

    name: str
    sql: bytes
    checksum: str

    @property
    def is_own(self) -> bool:
        """Whether it is one of the user."""
        return self.name.startswith(_OWN)


def migrate(
    conninfo: Conninfo,
    *,
    target: str | None = None,
    folder: Traversable = MIGRATIONS,
    own: Own = (),
) -> list[str]:
    """Apply what is missing, in order, up to and with ``target``; return the names.

    Each file is one transaction, those of ``folder`` first. Any number of processes may do
    this at once: each file is applied by one of them. Raises ``MigrationError`` if an
    applied file was changed, if there is no ``target``, if another session keeps a table
    locked, or if the database refuses one of the ``own``; ``StoreUnavailableError`` if
    there is no connection.
    """
    wanted = _up_to(target, _wanted(folder, own))
    applied = []
    with connected(conninfo) as connection:
        for migration in wanted:
            with connection.transaction():
                connection.execute(_UNHURRIED)
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                connection.execute(_FOUNDATION)
                if migration in _missing(wanted, _applied(connection)):
                    _apply(connection, migration)
                    applied.append(migration.name)
    return applied


def pending(conninfo: Conninfo, *, folder: Traversable = MIGRATIONS, own: Own = ()) -> list[str]:
    """Return the names of the migrations that are still to be applied; raises as ``migrate``."""
    with connected(conninfo) as connection:
        return [m.name for m in _missing(_wanted(folder, own), _applied(connection))]


def ensure_current(conninfo: Conninfo, *, folder: Traversable = MIGRATIONS, own: Own = ()) -> None:
    """Raise ``MigrationError`` unless the schema is the one that this version needs.

    Migrations of a later version do not disturb it: they are written so that the servers
    of the version before can go on while they are replaced.
    """
    if missing := pending(conninfo, folder=folder, own=own):
        raise MigrationError(
            f"the schema of the database lacks {', '.join(missing)}: run `duostore migrate`"
        )


def forget_drafts(conninfo: Conninfo) -> None:
    """Empty the table of consolidated drafts, for a deployment whose DynamoDB begins anew.

    Its heads count from 1 again, so that what Aurora has of them would pass for newer.
    """
    with connected(conninfo) as connection:
        connection.execute("DELETE FROM duostore.draft")


def _wanted(folder: Traversable, own: Own) -> list[Migration]:
    found = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    contents = [(file.name.removesuffix(".sql"), file.read_bytes()) for file in found]
    contents += [(f"{_OWN}{name}", sql) for name, sql in own]
    return [Migration(name, sql, hashlib.sha256(sql).hexdigest()) for name, sql in contents]


def _up_to(target: str | None, migrations: Sequence[Migration]) -> Sequence[Migration]:
    if target is None:
        return migrations
    names = [migration.name for migration in migrations]
    if target not in names:
        raise MigrationError(f"there is no migration {target}; there are {', '.join(names)}")
    return migrations[: names.index(target) + 1]


def _applied(connection: psycopg.Connection[TupleRow]) -> Mapping[str, str]:
    """Return the checksum of each migration that was applied, by name."""
    ((exists,),) = connection.execute("SELECT to_regclass('duostore.migration') IS NOT NULL")
    if not exists:
        return {}
    return dict(connection.execute("SELECT name, checksum FROM duostore.migration").fetchall())


def _missing(migrations: Sequence[Migration], applied: Mapping[str, str]) -> list[Migration]:
    for migration in migrations:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"migration {migration.name} was changed after it was applied to this database; "
                "restore the file and put what you need into a new one"
            )
    return [migration for migration in migrations if migration.name not in applied]


def _apply(connection: psycopg.Connection[TupleRow], migration: Migration) -> None:
    connection.execute(_POLITE)
    try:
        connection.execute(migration.sql)
    except psycopg.errors.LockNotAvailable as error:
        raise MigrationError(
            f"migration {migration.name} was not applied: other sessions keep a table locked; "
            "try again when long transactions have ended"
        ) from error
    except psycopg.Error as error:
        if migration.is_own and error.sqlstate is not None and translated(error) is None:
            raise MigrationError(_refused(migration, error)) from error
        raise
    if connection.info.transaction_status is not TransactionStatus.INTRANS:
        raise MigrationError(
            f"migration {migration.name} ended its transaction, and was applied in part: restore "
            "the database and leave COMMIT and ROLLBACK out of the file"
        )
    connection.execute(
        "INSERT INTO duostore.migration (name, checksum) VALUES (%s, %s)",
        (migration.name, migration.checksum),
    )


def _refused(migration: Migration, error: psycopg.Error) -> str:
    """Return what the database says of a file, and of which line."""
    diag = error.diag
    where = ""
    if diag.statement_position is not None:
        before = migration.sql.decode(errors="replace")[: int(diag.statement_position) - 1]
        where = f" line {before.count(chr(10)) + 1}:"
    told = "; ".join(text for text in (diag.message_primary, diag.message_detail) if text)
    hint = f" ({diag.message_hint})" if diag.message_hint else ""
    return f"migration {migration.name} was not applied:{where} {told}{hint}"


@contextmanager
def connected(conninfo: Conninfo) -> Iterator[BoundedConnection]:
    """Yield a connection for a command, with autocommit; its errors are told as by ``migrate``.

    Waits for the server without end, unless the connection is bounded.
    """
    whole = completed(resolved(conninfo), connect_timeout=_CONNECT_SECONDS, settings={})
    give_up_at: float | None = None
    try:
        with BoundedConnection.connect(
            whole, autocommit=True, prepare_threshold=None
        ) as connection:
            try:
                yield connection
            finally:
                give_up_at = connection.give_up_at
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            "the role may not do this to the database; docs/operations.md lists the rights "
            "that `duostore migrate` and `duostore serve` need"
        ) from error
    except psycopg.Error as error:
        gave_up = give_up_at is not None and time.monotonic() >= give_up_at
        if failure := translated(error, gave_up=gave_up):
            raise failure from error
        raise
