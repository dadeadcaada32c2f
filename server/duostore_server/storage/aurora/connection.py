"""Connections to Aurora: how they are opened, and that no call on them waits for ever."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from psycopg.abc import PQGen

# A libpq connection string or URI, or what returns one: asked for each new connection,
# so that it may hold a password that lives for minutes (an IAM token).
Conninfo: TypeAlias = str | Callable[[], str]

# Those of ``session_settings`` that what a transaction does, or how long it is, depends on.
# ``statement_timeout`` each call chooses itself, and BEGIN says the isolation.
OF_TRANSACTIONS: Final = (
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "timezone",
    "datestyle",
    "intervalstyle",
    "extra_float_digits",
)

RV = TypeVar("RV")

APPLICATION_NAME: Final = "duostore"
_POLL_INTERVAL_SECONDS: Final = 0.1
_DEFAULTS: Final = {
    "client_encoding": "UTF8",
    # A peer that vanished is noticed after 10 + 3 * 3 s while idle, after 5 s while it
    # owes an acknowledgement.
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}


class _Trip(psycopg.Pipeline):
    """The driver's pipeline, less a message that it sends after the last Sync.

    The server asks for nothing more then, but takes note that its client is not idle: in a
    transaction that goes on it forgets ``idle_in_transaction_session_timeout`` (psycopg 3.3.9).
    """

    def _exit_gen(self) -> PQGen[None]:
        try:
            self._enqueue_sync()
            yield from self._communicate_gen()
        finally:
            yield from self._fetch_gen(flush=False)


class BoundedConnection(psycopg.Connection[TupleRow]):
    """A connection that stops waiting for the server at ``give_up_at``.

    That is a time of ``time.monotonic``; None waits without end. The server's own
    timeouts cannot do this: a server that is frozen or cut off keeps none. A call that
    gave up raises ``psycopg.OperationalError`` without an SQLSTATE; the connection is of
    no use then and must be closed.

    ``timeout_ms`` is the ``statement_timeout`` of the session, 0 where it is not known.
    ``in_doubt``: what was sent last may be committed and must not be repeated, so that
    without an answer nobody knows what was done.
    """

    give_up_at: float | None = None
    timeout_ms: int = 0
    in_doubt: bool = False

    def wait(
        self,
        gen: PQGen[RV],
        interval: float = _POLL_INTERVAL_SECONDS,
        timeout: float | None = None,
    ) -> RV:
        """Consume a generator of the driver's, as every call on a connection does."""
        if self.give_up_at is not None:
            timeout = max(0.0, self.give_up_at - time.monotonic())
        return super().wait(gen, interval, timeout)

    @contextmanager
    def in_one_trip(self, *, preparing: bool = False) -> Iterator[None]:
        """Send the statements of the block together; outside of a transaction they are one.

        Raises what the first statement that failed did. Uses what is prepared, and prepares
        only if ``preparing``: of a statement that fails while it is prepared in a pipeline
        the driver believes for ever that it is (psycopg 3.3.9). Who allows it rolls back
        after an error, by ``rollback``, after which the driver believes nothing.
        """
        threshold = self.prepare_threshold
        if threshold is not None and not preparing:
            self.prepare_threshold = sys.maxsize
        try:
            self._pipeline = _Trip(self)
            with self.pipeline():
                yield
        finally:
            self.prepare_threshold = threshold

    def undo(self) -> None:
        """Roll back a transaction of which no statement failed; what is prepared is kept.

        ``rollback`` would have it prepared anew, in case that the transaction has created
        or dropped something.
        """
        threshold = self.prepare_threshold
        # The driver forgets what it has prepared when it sees a rollback, unless it does
        # not prepare.
        self.prepare_threshold = None
        try:
            self.execute("ROLLBACK")
        finally:
            self.prepare_threshold = threshold

    @property
    def is_forsaken(self) -> bool:
        """Whether the server has closed this idle connection. Costs a system call, no round trip.

        Nothing is due on an idle connection: what can be read is a farewell.
        """
        poll = select.poll()
        try:
            poll.register(self.pgconn.socket, select.POLLIN)
            return bool(poll.poll(0))
        except (psycopg.OperationalError, OSError):
            return True


def resolved(conninfo: Conninfo) -> str:
    """Return the connection string as it is now."""
    return conninfo() if callable(conninfo) else conninfo


def completed(
    conninfo: str,
    *,
    connect_timeout: float,
    settings: Mapping[str, str],
    any_server: bool = False,
) -> str:
    """Return the connection string with our defaults for what it leaves open.

    Unless ``any_server`` will do, it leads to a server that can be written to.
    ``settings`` are server parameters for the session; those that the string has in its
    ``options`` win. ``connect_timeout`` is in seconds, of which libpq counts whole ones,
    at least 2.
    """
    given = conninfo_to_dict(conninfo)
    options = [f"-c {name}={_escaped(value)}" for name, value in settings.items()]
    if theirs := given.pop("options", None):
        options.append(str(theirs))
    defaults = {
        **_DEFAULTS,
        # A writer that was demoted may live on as a reader: do not connect to it.
        "target_session_attrs": "any" if any_server else "read-write",
        "application_name": APPLICATION_NAME,
        "connect_timeout": str(max(2, round(connect_timeout))),
    }
    if options:
        defaults["options"] = " ".join(options)
    return make_conninfo("", **{**defaults, **given})


def session_settings(statement_timeout: float, lock_timeout: float) -> Mapping[str, str]:
    """Return the server parameters of our sessions; the timeouts are in seconds."""
    return {
        "statement_timeout": str(milliseconds(statement_timeout)),
        "lock_timeout": str(milliseconds(lock_timeout)),
        # Of a transaction of several trips; should its client hang in between, it must not
        # hold its locks for long.
        "idle_in_transaction_session_timeout": "5000",
        # Of a transaction that was given up on the statements are all there already: the
        # server would else do every one, and hold its locks, before it looked who waits.
        "client_connection_check_interval": "200",
        # Statements rely on it: what waited for a row goes on with the row as it is then.
        "default_transaction_isolation": "read committed",
        # What values are as text: see sql_values.
        "timezone": "UTC",
        "datestyle": "ISO, YMD",
        "intervalstyle": "postgres",
        "extra_float_digits": "1",
    }


def milliseconds(seconds: float) -> int:
    """Return a timeout as the server counts it: at least 1, since 0 stands for none."""
    return max(1, int(seconds * 1000))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
