"""What is sent over a connection for one call: one statement, or a transaction of several."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Final, TypeAlias

from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from duostore_server.storage.aurora.errors import DRIVER_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import LiteralString

    import psycopg
    from psycopg.abc import Params

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.connection import BoundedConnection

# By so much a server that is alive may be late in saying that a statement timed out.
_PATIENCE_SECONDS: Final = 0.25
# A session's statement_timeout may stay if it is between this and all of what a call
# has; otherwise it is set a little lower than that, so that it fits the next calls too.
_LEAST_FIT: Final = 0.8
_AIM: Final = 0.9

_SET_LOCAL: Final = """
SELECT count(set_config(name, value, true)) FROM unnest(%s::text[], %s::text[]) AS s (name, value)
"""
_SET_TIMEOUT: Final = "SELECT set_config('statement_timeout', %s, %s)"
# In so many words, since a pooler may have forgotten what the session was told.
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_OPEN: Final = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})

Rows: TypeAlias = Sequence[TupleRow]
# What a transaction does, trip by trip: yields the statements of each, one trip at least, and
# is sent their rows; returns those that go with the COMMIT. What it raises rolls back.
Course: TypeAlias = Generator["Sequence[Statement]", Sequence[Rows], "Sequence[Statement]"]


def rows_of(cursor: psycopg.Cursor[TupleRow]) -> Rows:
    """Return the rows of a statement; none if it answers none."""
    return cursor.fetchall() if cursor.description else ()


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and its parameters; ``read`` makes rows of what it answers."""

    query: LiteralString
    params: Params
    read: Callable[[psycopg.Cursor[TupleRow]], Rows] = rows_of


class StatementFailedError(Exception):
    """A statement of a trip failed, as the cause says. ``rows`` are of those before it.

    It is raised where a course has yielded them, which may raise in its place what it means.
    """

    def __init__(self, rows: Sequence[Rows]) -> None:
        self.rows = rows
        super().__init__(f"statement {len(rows)} of its trip failed")


class Trips:
    """Sends statements within the bounds of their call: its deadline, and ``timeout`` seconds.

    ``shared``: settings end with their transaction, for the session may be another's next,
    and transactions of several statements begin with ``settings``, for it may have been.
    Leaves a connection ready for the next call, or closed, or with an error that says that
    it has to be.
    """

    def __init__(
        self, timeout: float, *, shared: bool, settings: Mapping[str, str] | None = None
    ) -> None:
        self._timeout = timeout
        self._shared = shared
        self._settings = settings or {}

    def one(
        self,
        connection: BoundedConnection,
        statement: Statement,
        deadline: Deadline,
        *,
        repeatable: bool,
        prepare: bool | None,
    ) -> Rows:
        """Run a statement in a transaction of its own: one round trip."""
        connection.in_doubt = not repeatable
        chosen = self._bound(connection, deadline)
        if chosen is None:
            return statement.read(
                connection.execute(statement.query, statement.params, prepare=prepare)
            )
        # One transaction with the statement: if that fails, so has the setting.
        with connection.in_one_trip():
            self._choose(connection, chosen)
            cursor = connection.execute(statement.query, statement.params, prepare=prepare)
        self._chosen(connection, chosen)
        return statement.read(cursor)

    def several(
        self,
        connection: BoundedConnection,
        course: Course,
        deadline: Deadline,
        *,
        prepare: bool | None,
    ) -> None:
        """Run a transaction: a round trip for each that the course asks for, and the COMMIT's.

        Only while that is on its way is the outcome in doubt. Each statement has all of
        the call's time on the server, but when the time is over nothing is committed.
        """
        connection.in_doubt = False
        end = connection.rollback
        try:
            chosen = self._bound(connection, deadline)
            begin: Callable[[], None] = partial(self._begin, connection, chosen)
            with closing(course):
                statements = next(course)
                while True:
                    rows = _answered(connection, course, statements, begin, prepare=prepare)
                    begin = _nothing
                    end = connection.undo
                    try:
                        statements = course.send(rows)
                    except StopIteration as done:
                        last: Sequence[Statement] = done.value
                        break
                    deadline.bound(self._timeout)
                    end = connection.rollback
            deadline.bound(self._timeout)
            end = connection.rollback
            connection.in_doubt = True
            with connection.in_one_trip(preparing=True):
                for each in last:
                    connection.execute(each.query, each.params, prepare=prepare)
                connection.execute("COMMIT", prepare=False)
        except BaseException:
            _end(connection, end)
            raise
        if chosen is not None:
            self._chosen(connection, chosen)

    def _begin(self, connection: BoundedConnection, chosen: int | None) -> None:
        connection.execute(_BEGIN, prepare=False)
        if self._shared and self._settings:
            names, values = list(self._settings), list(self._settings.values())
            connection.execute(_SET_LOCAL, (names, values), prepare=False)
        if chosen is not None:
            self._choose(connection, chosen)

    def _bound(self, connection: BoundedConnection, deadline: Deadline) -> int | None:
        """Limit how long is waited; return the statement_timeout to set, if it does not fit."""
        bound = deadline.bound(self._timeout)
        connection.give_up_at = time.monotonic() + min(
            bound + _PATIENCE_SECONDS, deadline.remaining()
        )
        limit = bound * 1000
        if _LEAST_FIT * limit <= connection.timeout_ms <= limit:
            return None
        return max(1, int(_AIM * limit))

    def _choose(self, connection: BoundedConnection, chosen: int) -> None:
        connection.timeout_ms = 0
        connection.execute(_SET_TIMEOUT, (str(chosen), self._shared))

    def _chosen(self, connection: BoundedConnection, chosen: int) -> None:
        if not self._shared:
            connection.timeout_ms = chosen


def _nothing() -> None:
    """Begin nothing: the transaction is under way."""


def _answered(
    connection: BoundedConnection,
    course: Course,
    statements: Sequence[Statement],
    begin: Callable[[], None],
    *,
    prepare: bool | None,
) -> Sequence[Rows]:
    """Make one trip of a course; which statement failed, if one does, the course is told first."""
    cursors: list[psycopg.Cursor[TupleRow]] = []
    try:
        with connection.in_one_trip(preparing=True):
            begin()
            for each in statements:
                cursor = connection.execute(each.query, each.params, prepare=prepare)
                cursors.append(cursor)
    except DRIVER_ERRORS as error:
        # As the driver has them: to read more may take a statement more.
        done = takewhile(lambda cursor: cursor.pgresult is not None, cursors)
        failure = StatementFailedError([rows_of(cursor) for cursor in done])
        failure.__cause__ = error
        with suppress(StatementFailedError):
            course.throw(failure)
        raise
    return [each.read(cursor) for each, cursor in zip(statements, cursors, strict=True)]


def _end(connection: BoundedConnection, roll_back: Callable[[], None]) -> None:
    """Leave no transaction open: a connection that does not come out of it is closed."""
    if connection.pgconn.transaction_status in _OPEN:
        with suppress(*DRIVER_ERRORS):
            roll_back()
            return
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        connection.close()
