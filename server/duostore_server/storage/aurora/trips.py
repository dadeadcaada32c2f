"""What is sent over a connection for one call: one statement, or a transaction of several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from duostore_server.storage.aurora.errors import DRIVER_ERRORS

if TYPE_CHECKING:
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

_SET_TIMEOUT: Final = "SELECT set_config('statement_timeout', %s, %s)"
# In so many words, since a pooler may have forgotten what the session was told.
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_OPEN: Final = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})

Rows: TypeAlias = Sequence[TupleRow]
# Told the rows of each statement of a transaction, returns what is sent with its COMMIT;
# what it raises rolls the transaction back.
Conclude: TypeAlias = Callable[[Sequence[Rows]], "Sequence[Statement]"]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and its parameters."""

    query: LiteralString
    params: Params


class Trips:
    """Sends statements within the bounds of their call: its deadline, and ``timeout`` seconds.

    ``shared``: settings end with their transaction, for the session may be another's next.
    Leaves a connection ready for the next call, or closed, or with an error that says that
    it has to be.
    """

    def __init__(self, timeout: float, *, shared: bool) -> None:
        self._timeout = timeout
        self._shared = shared

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
            return _rows(connection.execute(statement.query, statement.params, prepare=prepare))
        # One transaction with the statement: if that fails, so has the setting.
        with connection.in_one_trip():
            self._choose(connection, chosen)
            cursor = connection.execute(statement.query, statement.params, prepare=prepare)
        self._chosen(connection, chosen)
        return _rows(cursor)

    def several(
        self,
        connection: BoundedConnection,
        statements: Sequence[Statement],
        conclude: Conclude,
        deadline: Deadline,
        *,
        prepare: bool | None,
    ) -> None:
        """Run statements in one transaction: two round trips, the second of which commits.

        Only while that is on its way is the outcome in doubt. Each statement has all of
        the call's time on the server, but when the time is over nothing is committed.
        """
        connection.in_doubt = False
        end = connection.rollback
        try:
            chosen = self._bound(connection, deadline)
            with connection.in_one_trip(preparing=True):
                connection.execute(_BEGIN, prepare=False)
                if chosen is not None:
                    self._choose(connection, chosen)
                cursors = [
                    connection.execute(each.query, each.params, prepare=prepare)
                    for each in statements
                ]
            end = connection.undo
            last = conclude([_rows(cursor) for cursor in cursors])
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


def _end(connection: BoundedConnection, roll_back: Callable[[], None]) -> None:
    """Leave no transaction open: a connection that does not come out of it is closed."""
    if connection.pgconn.transaction_status in _OPEN:
        with suppress(*DRIVER_ERRORS):
            roll_back()
            return
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        connection.close()


def _rows(cursor: psycopg.Cursor[TupleRow]) -> Rows:
    return cursor.fetchall() if cursor.description else ()
