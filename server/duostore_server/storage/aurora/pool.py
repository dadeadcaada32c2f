"""The pool of connections to Aurora: one call at a time on each, bounded in every way."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.storage.aurora.connection import (
    OF_TRANSACTIONS,
    BoundedConnection,
    completed,
    milliseconds,
    resolved,
    session_settings,
)
from duostore_server.storage.aurora.errors import (
    DRIVER_ERRORS,
    breaks_connection,
    is_contention,
    is_stale,
    translated,
)
from duostore_server.storage.aurora.trips import Statement, Trips

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import LiteralString

    from psycopg.abc import Params

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.connection import Conninfo
    from duostore_server.storage.aurora.trips import Course, Rows

T = TypeVar("T")

# Longer-lived connections keep to a server that DNS may no longer name, and to the
# memory that their backends have gathered.
_MAX_LIFETIME_SECONDS: Final = 12 * 60.0
_MAX_IDLE_SECONDS: Final = 5 * 60.0
# After that the pool gives up on a new connection; the next call asks for one anew. It
# bounds how long after an outage calls are still refused.
_RECONNECT_SECONDS: Final = 1.0
_RENEWAL_SECONDS: Final = 1.0
_DEFAULT_PREPARE_THRESHOLD: Final = 5

_SET_ANY: Final = "SELECT set_config(%s, %s, false)"


class _Connections(ConnectionPool[BoundedConnection]):
    """The driver's pool, less a fault of its queue: who stopped waiting stays in it.

    With ``max_waiting`` such clients count, and during an outage nobody takes them out: soon
    every call is refused as one too many, and since a refused call opens no connection the
    pool does not come back when the server does (psycopg_pool 3.3.3).
    """

    def getconn(self, timeout: float | None = None) -> BoundedConnection:
        """Return a connection; raises as the driver's pool does."""
        try:
            return super().getconn(timeout)
        except PoolTimeout:
            with self._lock:
                for client in [client for client in self._waiting if client.error]:
                    self._waiting.remove(client)
            raise


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """How a pool is used: connections, those that are being made among the used, and waiters."""

    name: str
    idle: int
    used: int
    waiting: int


class AuroraPool:
    """Runs statements and transactions on Aurora. Use it as a context manager.

    On the writer, or with ``any_server`` on whatever server the connection string leads to.

    Times are seconds. A call waits ``wait`` for a connection, unless ``max_waiting`` calls
    wait already; then it has ``statement_timeout`` and waits ``lock_timeout`` for each
    lock: all of it cut to the call's deadline.

    With ``pooler`` a transaction pooler may stand between: nothing is prepared, and the
    session's settings are not sent at its start but afterwards. A pooler may share or
    forget them: transactions of several statements do not rely on them, for the others set
    them for the database role as well. ``name`` is for the log.
    """

    def __init__(
        self,
        conninfo: Conninfo,
        *,
        min_size: int = 1,
        max_size: int = 8,
        wait: float = 0.5,
        max_waiting: int = 32,
        statement_timeout: float = 2.0,
        lock_timeout: float = 1.0,
        connect_timeout: float = 2.0,
        max_lifetime: float = _MAX_LIFETIME_SECONDS,
        pooler: bool = False,
        any_server: bool = False,
        name: str = "aurora",
    ) -> None:
        self._conninfo = conninfo
        self._any_server = any_server
        self._wait = wait
        self._statement_timeout = statement_timeout
        self._connect_timeout = connect_timeout
        self._pooler = pooler
        self._session = session_settings(statement_timeout, lock_timeout)
        self._trips = Trips(
            statement_timeout,
            shared=pooler,
            settings={name: self._session[name] for name in OF_TRANSACTIONS},
        )
        self._renewal = threading.Lock()
        self._renew_after = 0.0
        self._pool = _Connections(
            self._current_conninfo,
            connection_class=BoundedConnection,
            kwargs={
                "autocommit": True,
                "prepare_threshold": None if pooler else _DEFAULT_PREPARE_THRESHOLD,
            },
            configure=self._configure,
            name=name,
            open=False,
            min_size=min_size,
            max_size=max_size,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=_MAX_IDLE_SECONDS,
            reconnect_timeout=_RECONNECT_SECONDS,
        )

    def start(self) -> None:
        """Begin to connect in the background; returns at once, even if Aurora is down."""
        self._pool.open()

    def stop(self) -> None:
        """Close the connections; calls that come later raise ``StoreUnavailableError``."""
        self._pool.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def execute(
        self,
        query: LiteralString,
        params: Params,
        deadline: Deadline,
        *,
        repeatable: bool = True,
    ) -> Rows:
        """Run one statement in a transaction of its own and return its rows.

        One round trip, also where the deadline calls for a statement_timeout of its own.
        A statement that was rolled back for contention is tried once more, and so is one
        whose preparation is of no use any more. Raises as the ports say;
        ``WriteOutcomeUnknownError`` only if the statement is not ``repeatable``, that is if
        a repetition would do more than it did itself. What has no meaning to callers is
        raised as ``psycopg.Error``.
        """
        statement = Statement(query, params)
        return self._call(
            lambda connection, prepare: self._trips.one(
                connection, statement, deadline, repeatable=repeatable, prepare=prepare
            ),
            deadline,
        )

    def ask_writer(self, query: LiteralString, params: Params, deadline: Deadline) -> Rows:
        """Run a statement that reads, on a server that is the writer.

        The first column of its first row must be ``transaction_read_only``: a connection to
        a writer that was demoted goes on answering, from the past. Raises as ``execute``.
        """
        rows = self.execute(query, params, deadline)
        if rows[0][0] != "off":
            self.renew()
            raise StoreUnavailableError(Store.AURORA)
        return rows

    def transact(self, course: Callable[[], Course], deadline: Deadline) -> None:
        """Run a transaction, which a course says trip by trip, and commit it.

        Rolled back if the course raises, which passes through, and if the deadline passes
        before the last trip. Tried again as by ``execute``, with a course anew.
        ``WriteOutcomeUnknownError`` only if the answer to the last trip is lost; other errors
        mean that nothing was written.
        """
        self._call(
            lambda connection, prepare: self._trips.several(
                connection, course(), deadline, prepare=prepare
            ),
            deadline,
        )

    def usage(self) -> PoolUsage:
        """Return how many connections and calls there are now; asks nobody and waits for nobody."""
        stats = self._pool.get_stats()
        idle = stats["pool_available"]
        return PoolUsage(
            name=self._pool.name,
            idle=idle,
            used=max(0, stats["pool_size"] - idle),
            waiting=stats["requests_waiting"],
        )

    def take(self, deadline: Deadline) -> BoundedConnection:
        """Return a connection of the pool that its server has not closed meanwhile.

        Without this look each connection that died idle would cost a call, and a write
        its outcome. Raises as the ports say. Who takes one gives it back.
        """
        until = time.monotonic() + deadline.bound(self._wait)
        while True:
            try:
                connection = self._pool.getconn(until - time.monotonic())
            except psycopg.Error as error:
                raise translated(error) or StoreUnavailableError(Store.AURORA) from error
            if not connection.is_forsaken:
                return connection
            connection.close()
            self._pool.putconn(connection)

    def give_back(self, connection: BoundedConnection) -> None:
        """Return a connection to the pool; one that is in a transaction is closed."""
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            connection.close()
        self._pool.putconn(connection)

    def renew(self) -> None:
        """Replace all connections, in the background and at most once a second.

        Where one was lost or led to a reader, the others are no better.
        """
        now = time.monotonic()
        with self._renewal:
            if now < self._renew_after:
                return
            self._renew_after = now + _RENEWAL_SECONDS
        self._pool.drain()

    def _call(self, run: Callable[[BoundedConnection, bool | None], T], deadline: Deadline) -> T:
        """Run something on a connection, again if that helps, and translate how it fails."""
        contended = stale = False
        while True:
            connection = self.take(deadline)
            try:
                return run(connection, False if stale else None)
            except DRIVER_ERRORS as error:
                if is_contention(error) and not contended:
                    contended = True
                    continue
                if is_stale(error):
                    connection.close()
                    if not stale:
                        stale = True
                        continue
                gave_up = time.monotonic() >= (connection.give_up_at or 0.0)
                if breaks_connection(error):
                    connection.close()
                    # A caller in a hurry says nothing of the other connections.
                    if not (gave_up and deadline.is_over()):
                        self.renew()
                failure = translated(error, repeatable=not connection.in_doubt, gave_up=gave_up)
                if failure is None:
                    raise
                raise failure from error
            finally:
                self._pool.putconn(connection)

    def _current_conninfo(self) -> str:
        return completed(
            resolved(self._conninfo),
            connect_timeout=self._connect_timeout,
            settings={} if self._pooler else self._session,
            any_server=self._any_server,
        )

    def _configure(self, connection: BoundedConnection) -> None:
        if self._pooler:
            connection.give_up_at = time.monotonic() + self._connect_timeout
            for name, value in self._session.items():
                connection.execute(_SET_ANY, (name, value))
        else:
            connection.timeout_ms = milliseconds(self._statement_timeout)
