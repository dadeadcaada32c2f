"""A query that is under way: a transaction that only reads, and its cursor on the server."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from psycopg.adapt import Transformer
from psycopg.pq import TransactionStatus

from duostore_server.domain.errors import (
    DeadlineExceededError,
    QueryFailedError,
    QueryTimeoutError,
    Store,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.queries import TENANT
from duostore_server.storage.aurora.connection import milliseconds
from duostore_server.storage.aurora.errors import DRIVER_ERRORS, is_loss, translated
from duostore_server.storage.aurora.row_stream import RowStream
from duostore_server.storage.aurora.sql_render import bound, rendered, types_of
from duostore_server.storage.aurora.sql_values import JsonRows, database_of
from duostore_server.storage.aurora.visibility import SIGHT, Sight

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from typing import LiteralString

    from psycopg.abc import Params
    from psycopg.pq.abc import PGresult
    from psycopg.rows import TupleRow

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.errors import DuostoreError
    from duostore_server.domain.queries import Column, QueryCall, Row
    from duostore_server.storage.aurora.connection import BoundedConnection
    from duostore_server.storage.aurora.errors import DriverError
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.row_stream import Statement

_FIRST_ROWS: Final = 100
_MOST_ROWS: Final = 1000
_PORTION_BYTES: Final = 256 * 1024
# A row costs several times its bytes until it is read.
_ROW_BYTES: Final = 64 * 1024 * 1024
# Of program_limit_exceeded.
_TOO_LARGE: Final = "54000"
# By so much a server that is alive may be late in saying that a statement timed out.
_PATIENCE_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 0.25
# The server's clock may go a little faster than ours.
_NEARLY: Final = 0.99
_END_SECONDS: Final = 0.5
_CANCEL_SECONDS: Final = 0.3

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ"
# For this transaction alone, since a pooler may give the session to others. All rows are
# wanted, not the first ones soon; the rest is what values are read by: see sql_values.
_SETTINGS: Final = """
SELECT set_config('transaction_read_only', 'on', true),
    set_config('statement_timeout', %s, true),
    set_config('idle_in_transaction_session_timeout', %s, true),
    set_config('cursor_tuple_fraction', '1', true),
    set_config('timezone', 'UTC', true),
    set_config('datestyle', 'ISO, YMD', true),
    set_config('intervalstyle', 'postgres', true),
    set_config('extra_float_digits', '1', true)
"""
_DECLARE: Final = "DECLARE duostore_result NO SCROLL CURSOR FOR "
_FETCH: Final = b"FETCH FORWARD %d FROM duostore_result"

_CANCELLED: Final = "57014"
_READ_ONLY: Final = "25006"
# Cardinality (a subquery with two rows), data (a division by zero), and what functions of the
# database raise themselves: they depend on the data as they are.
_OF_THE_DATA: Final = frozenset({"21", "22", "P0"})


class BehindError(Exception):
    """A reader does not see yet what it must; ``may_pass`` tells whether it may do so soon."""

    def __init__(self, *, may_pass: bool) -> None:
        self.may_pass = may_pass
        super().__init__("the reader is behind the writer")


class OpenQuery:
    """``ports.ResultSet`` on a connection of its own, until ``close``.

    Rows are used by one thread; any other may ``abandon`` the query at any time. ``stall`` is
    for how many seconds the server keeps a transaction in which nobody fetches.
    """

    columns: tuple[Column, ...] = ()
    as_of: datetime
    _stream: RowStream

    def __init__(
        self, pool: AuroraPool, call: QueryCall, deadline: Deadline, *, stall: float
    ) -> None:
        self._pool = pool
        self._call = call
        self._deadline = deadline
        self._stall = stall
        # Held while the connection is used for a trip.
        self._running = threading.Lock()
        # Held while the connection is closed, given back or cancelled; taken after the other
        # lock, or by who does not wait for that one.
        self._lock = threading.Lock()
        self._connection: BoundedConnection | None = None
        self._abandoned = False
        self._timeout_ms = 0
        self._first: Sequence[Row] = ()
        self._rows: JsonRows | None = None
        # Whether rows are still to come of what was asked for.
        self._is_under_way = False
        self._asked = 0
        self._next = 0
        # When the statement began that is under way.
        self._began = 0.0

    def take(self) -> None:
        """Take a connection of the pool. Raises as the ports say."""
        self._connection = self._pool.take(self._deadline)

    def begin(self, needed: Sight | None = None) -> None:
        """Begin the transaction and fetch the first rows: one round trip, on the writer.

        On a reader that must see what is ``needed`` of the writer it is two; raises
        ``BehindError`` after the first, and may then be called again.
        """
        query = self._call.query
        declare = _DECLARE + rendered(query.sql.statement, types_of(query.params))
        values = bound({**self._call.values, TENANT: self._call.tenant})
        self._timeout_ms = milliseconds(self._deadline.bound(query.timeout))
        settings = (str(self._timeout_ms), str(milliseconds(self._stall)))
        with self._trip() as connection:
            look: list[Statement] = [(_BEGIN, None), (SIGHT, None)]
            sight = None
            if needed is not None:
                sight = self._looked(connection, look)
                if not sight.contains(needed):
                    raise BehindError(may_pass=sight.may_come_to_contain(needed))
                look = []
            answers = self._fetch(
                connection, _FIRST_ROWS, *look, (_SETTINGS, settings), (declare, values)
            )
            if sight is None:
                sight = self._on_writer(_sight(connection, answers[1]))
            self.as_of = needed.time if needed else sight.time
            self._first = self._read(connection)

    def portions(self) -> Iterator[Sequence[Row]]:
        """Keep the promise of the port.

        A portion ends with the row by which it has 256 KiB, and has at most a thousand. The
        server is asked for at most twice the rows of the last time, and for about as many as
        make a portion by the largest of those; where they turn out to be larger it is held up,
        and what the caller takes until it has them all counts as time of the query.
        """
        portion, self._first = self._first, ()
        while True:
            # None is left where the last row that was asked for has filled the portion before.
            if portion:
                yield portion
            with self._trip() as connection:
                if not self._is_under_way:
                    if self._stream.rows < self._asked:
                        return
                    self._fetch(connection, self._next)
                portion = self._read(connection)

    def is_unwanted(self) -> bool:
        """Tell whether nobody waits for it any more."""
        return self._deadline.is_abandoned()

    def abandon_if_unwanted(self) -> None:
        """End what runs on the server if nobody waits for it any more; from any thread.

        In the middle of a statement that is cancelled, and the thread that waits for it is
        told. Otherwise the connection is closed, and given back for whoever does not.
        """
        if not self._deadline.is_abandoned():
            return
        with self._lock:
            connection = self._connection
            if connection is None:
                return
            self._abandoned = True
            if self._running.acquire(blocking=False):
                try:
                    self._give_back(connection)
                finally:
                    self._running.release()
                return
            # A cancellation that does not arrive is tried again in the next round.
            with suppress(*DRIVER_ERRORS):
                connection.cancel_safe(timeout=_CANCEL_SECONDS)

    def close(self) -> None:
        """End the transaction, and give the connection back; closed, unless all went well."""
        with self._running:
            connection = self._connection
            if connection is None:
                return
            if not self._abandoned:
                with suppress(*DRIVER_ERRORS):
                    self._roll_back(connection)
            with self._lock:
                self._give_back(connection)

    def roll_back(self) -> None:
        """End a transaction that has not begun well. Raises as the ports say."""
        with self._trip() as connection:
            self._roll_back(connection)

    def _give_back(self, connection: BoundedConnection) -> None:
        # A cancellation may arrive when it is another's turn.
        if self._abandoned:
            connection.close()
        self._connection = None
        self._pool.give_back(connection)

    def _roll_back(self, connection: BoundedConnection) -> None:
        match connection.pgconn.transaction_status:
            case TransactionStatus.INTRANS:
                connection.give_up_at = time.monotonic() + _END_SECONDS
                connection.undo()
            case TransactionStatus.INERROR:
                connection.give_up_at = time.monotonic() + _END_SECONDS
                connection.rollback()

    def _drop(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    @contextmanager
    def _hurrying(self, connection: BoundedConnection) -> Iterator[None]:
        """Give up early within: there is another server, and time to ask it.

        A server that was silent for long is told from a caller who has little time.
        """
        until = connection.give_up_at
        began = time.monotonic()
        connection.give_up_at = min(until or math.inf, began + _LOOK_SECONDS)
        try:
            yield
        except DRIVER_ERRORS as error:
            now = time.monotonic()
            if now < connection.give_up_at or now < began + _SILENCE_SECONDS:
                raise
            self._drop()
            self._pool.renew()
            raise StoreTimeoutError(Store.AURORA) from error
        connection.give_up_at = until

    def _looked(self, connection: BoundedConnection, statements: Sequence[Statement]) -> Sight:
        """Return what a reader sees, which is not waited for as long as the caller would."""
        with self._hurrying(connection):
            stream = RowStream(connection)
            stream.send(*statements)
            (row,) = stream.take(_PORTION_BYTES)
        return _sight(connection, row)

    def _on_writer(self, sight: Sight) -> Sight:
        """Return what is seen, unless the connection leads to a writer that was demoted."""
        if not sight.is_writer:
            self._drop()
            self._pool.renew()
            raise StoreUnavailableError(Store.AURORA)
        return sight

    def _fetch(
        self, connection: BoundedConnection, rows: int, *before: Statement
    ) -> Sequence[PGresult]:
        """Ask for rows, after other statements, whose answers are returned."""
        self._asked = rows
        self._stream = RowStream(connection)
        return self._stream.send(*before, (_FETCH % rows, None))

    def _read(self, connection: BoundedConnection) -> Sequence[Row]:
        """Return a portion of what was asked for."""
        stream = self._stream
        taken = stream.take(_PORTION_BYTES)
        self._is_under_way = not stream.is_done
        if stream.largest > _ROW_BYTES:
            # The driver keeps so much memory for as long as it keeps the connection.
            self._drop()
            raise QueryFailedError(self._call.query.name, _TOO_LARGE)
        if stream.is_done:
            fitting = _PORTION_BYTES // max(1, stream.largest)
            self._next = max(1, min(fitting, 2 * self._asked, _MOST_ROWS))
        if self._rows is None and stream.described is not None:
            self._rows = JsonRows(stream.described, database_of(connection), self._look_up)
            self.columns = self._rows.columns
        return self._rows.of(*taken) if self._rows else ()

    def _look_up(self, sql: LiteralString, params: Params) -> Sequence[TupleRow]:
        connection = self._connection
        if connection is None or self._is_under_way:
            # Rows are still to come on our own.
            return self._pool.execute(sql, params, self._deadline)
        return connection.execute(sql, params, prepare=False).fetchall()

    @contextmanager
    def _trip(self) -> Iterator[BoundedConnection]:
        """Lend the connection for one round trip, within the bounds of the call."""
        with self._running:
            connection = self._connection
            if connection is None or self._abandoned:
                raise DeadlineExceededError
            bound = self._deadline.bound(self._call.query.timeout)
            now = time.monotonic()
            if not self._is_under_way:
                self._began = now
            connection.give_up_at = now + min(bound + _PATIENCE_SECONDS, self._deadline.remaining())
            try:
                yield connection
            except DRIVER_ERRORS as error:
                failure = self._failure(error, connection, time.monotonic() - self._began)
                if failure is None:
                    raise
                raise failure from error

    def _failure(
        self, error: DriverError, connection: BoundedConnection, took: float
    ) -> DuostoreError | None:
        """Return what to raise; None: the error itself."""
        gave_up = time.monotonic() >= (connection.give_up_at or 0.0)
        unwanted = self._abandoned or self._deadline.is_abandoned()
        state = getattr(error, "sqlstate", None) or ""
        if lost := is_loss(error):
            self._drop()
            # Who has gone says nothing of the other connections.
            if not unwanted:
                self._pool.renew()
        if unwanted and (lost or state == _CANCELLED):
            return DeadlineExceededError()
        if state == _CANCELLED and took * 1000 >= _NEARLY * self._timeout_ms:
            return QueryTimeoutError(self._call.query.name)
        if state[:2] in _OF_THE_DATA:
            return QueryFailedError(self._call.query.name, state)
        # That the transaction only reads is our doing: the query is at fault, not the server.
        return None if state == _READ_ONLY else translated(error, gave_up=gave_up)


def _sight(connection: BoundedConnection, answer: PGresult) -> Sight:
    transformer = Transformer.from_context(connection)
    transformer.set_pgresult(answer)
    (row,) = transformer.load_rows(0, answer.ntuples, tuple)
    return Sight.of(row)
