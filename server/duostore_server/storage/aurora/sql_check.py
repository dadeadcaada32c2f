"""Checks SQL of the configuration against a database: prepared, never run to its end."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeGuard

from psycopg.pq import DiagnosticField, ExecStatus

from duostore_server.domain.read_models import ID
from duostore_server.storage.aurora.migrate import connected
from duostore_server.storage.aurora.sql_render import prepared

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from duostore_server.domain.sql import SqlFile, SqlStatement
    from duostore_server.storage.aurora.connection import BoundedConnection, Conninfo
    from duostore_server.storage.aurora.sql_render import Prepared

_CURSOR: Final = "DECLARE duostore_check NO SCROLL CURSOR FOR "
# A schema, a table, a column, a function or operator, a type: undefined.
_ABSENT: Final = frozenset({"3F000", "42P01", "42703", "42883", "42704"})
_READ_ONLY: Final = "25006"
# A lock that others hold for long must not stop the check for ever, nor a plan that is slow.
_BOUNDS: Final = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '30s'"
_FAILURES: Final = (ExecStatus.FATAL_ERROR, ExecStatus.NONFATAL_ERROR)


class Role(Enum):
    """What a file is for."""

    ROWS = "rows"  # a query or a read model: one SELECT, with a name for each column
    IDS = "ids"  # one SELECT, with a column id
    WRITES = "writes"  # statements of a Save or a Delete


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that is to be checked; ``types`` are the server's, by the names of parameters."""

    file: SqlFile
    types: Mapping[str, str]
    role: Role


@dataclass(frozen=True, slots=True)
class SqlProblem:
    """What the database does not like, in its own words, and the line of the file."""

    path: str
    line: int
    message: str
    is_absent: bool = False
    """Whether it names what is not there, which a migration may make."""

    def __str__(self) -> str:
        """Return ``path:line: message``, as editors know it."""
        return f"{self.path}:{self.line}: {self.message}"


def check(conninfo: Conninfo, wanted: Sequence[Checked]) -> list[SqlProblem]:
    """Return all that is wrong with these files in a database, each problem once.

    Nothing is executed but the beginning of each SELECT, in a read-only transaction that is
    rolled back: up to where the first row would be looked for. The path on which names are
    searched is that of the role. Raises ``StoreError`` if there is no connection.
    """
    found: dict[SqlProblem, None] = {}
    with connected(conninfo) as connection:
        for each in wanted:
            for statement in each.file.statements:
                found.update(dict.fromkeys(_problems(connection, each, statement)))
    return list(found)


def _problems(
    connection: BoundedConnection, checked: Checked, statement: SqlStatement
) -> Iterator[SqlProblem]:
    ready = prepared(statement, checked.types)
    path = checked.file.path
    conn = connection.pgconn
    with _rolled_back(connection):
        described = _prepare(conn, ready.sql)
        if _failed(described):
            yield _told(path, ready, described)
            return
        if checked.role is Role.WRITES:
            return
        opened = _open(conn, ready)
    line = ready.line_of(1)
    if _failed(opened):
        yield SqlProblem(path, line, f"does not only read: {_message(opened)}")
        return
    names = [(described.fname(index) or b"").decode() for index in range(described.nfields)]
    for fault in _misnamed(names, checked.role):
        yield SqlProblem(path, line, fault)


def _misnamed(names: Sequence[str], role: Role) -> Iterator[str]:
    if not names:
        yield "answers no columns"
    elif role is Role.IDS and ID not in names:
        yield f"answers no column {ID}, which tells the documents; it answers {', '.join(names)}"
    for name, count in Counter(names).items():
        if count > 1:
            yield f'answers {count} columns with the name "{name}": give each its own, by AS'


@contextmanager
def _rolled_back(connection: BoundedConnection) -> Iterator[None]:
    connection.execute(f"BEGIN READ ONLY; {_BOUNDS}")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _prepare(conn: PGconn, sql: str) -> PGresult:
    """Return what a statement answers, or why it cannot be prepared."""
    answer = conn.prepare(b"", sql.encode())
    return answer if _failed(answer) else conn.describe_prepared(b"")


def _open(conn: PGconn, ready: Prepared) -> PGresult | None:
    """Open a cursor, with no value for any parameter; return why it only could if it wrote."""
    sql = (_CURSOR + ready.sql).encode()
    answer = conn.prepare(b"", sql)
    if _failed(answer):
        return answer
    answer = conn.exec_params(sql, [None] * len(ready.names))
    # Anything else may be for want of values.
    return answer if answer.error_field(DiagnosticField.SQLSTATE) == _READ_ONLY.encode() else None


def _failed(answer: PGresult | None) -> TypeGuard[PGresult]:
    return answer is not None and answer.status in _FAILURES


def _told(path: str, ready: Prepared, answer: PGresult) -> SqlProblem:
    position = answer.error_field(DiagnosticField.STATEMENT_POSITION)
    line = ready.line_of(int(position) if position else 1)
    state = (answer.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    return SqlProblem(path, line, _message(answer), is_absent=state in _ABSENT)


def _message(answer: PGresult) -> str:
    told = [
        (answer.error_field(field) or b"").decode(errors="replace")
        for field in (DiagnosticField.MESSAGE_PRIMARY, DiagnosticField.MESSAGE_DETAIL)
    ]
    hint = (answer.error_field(DiagnosticField.MESSAGE_HINT) or b"").decode(errors="replace")
    return "; ".join(text for text in told if text) + (f" ({hint})" if hint else "")
