"""What the driver's errors mean to us. Nothing of their text goes further than the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from duostore_server.domain.errors import (
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from duostore_server.domain.errors import StoreError

    # OSError: of the system call that waits for the server.
    DriverError: TypeAlias = psycopg.Error | OSError

DRIVER_ERRORS: Final = (psycopg.Error, OSError)

_READ_ONLY: Final = "25006"
_CONTENTION: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock
# The server has no such prepared statement; its plan must not change its result type. The
# latter state stands for every unsupported feature too, which another try does not mend.
_STALE: Final = frozenset({"26000", "0A000"})
# By SQLSTATE or, of two letters, by its class. All else is INTERNAL: a fault of ours (our
# SQL, our schema, our permissions) or of the server's own (XX: a bug of its, corrupted
# data), where to try again is in vain and a person has to look.
_MEANINGS: Final[Mapping[str, Callable[[Store], StoreError]]] = {
    _READ_ONLY: StoreUnavailableError,
    "53": StoreOverloadedError,  # out of memory, disk or connections
    "55000": StoreUnavailableError,  # not in the state for it: in recovery
    "55P03": StoreOverloadedError,  # lock timeout: others are at work on the row
    "57": StoreUnavailableError,  # an operator intervened
    "57014": StoreTimeoutError,  # statement timeout, or a cancel request by whomever
    "58": StoreUnavailableError,  # the server's disk or system failed it
    **dict.fromkeys(_CONTENTION, StoreOverloadedError),
}
# Statement timeout, lock timeout, more of temporary files than is allowed.
_OF_STATEMENTS: Final = frozenset({"57014", "55P03", "53400"})
# Shutdown, crash, starting up, database dropped, idle session; and what says of itself
# that nobody knows whether it was completed.
_LOSS: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "40003"})
_CONNECTION_CLASS: Final = "08"
_FATAL: Final = frozenset({"FATAL", "PANIC"})


def is_contention(error: DriverError) -> bool:
    """Tell whether the statement was rolled back for being in another's way: try it again."""
    return _state(error) in _CONTENTION


def is_stale(error: DriverError) -> bool:
    """Tell whether what the connection has prepared is of no use; nothing was executed.

    The driver goes on using it: the connection must be closed. Unprepared, the statement
    may succeed.
    """
    return _state(error) in _STALE


def fault_of_statement(error: psycopg.Error | StoreError) -> psycopg.Error | None:
    """Return why a statement failed of itself, on a server that is well; None if it did not.

    Of SQL that is not ours: others may succeed. It may also have waited for a lock in vain.
    ``error`` is as it comes out of the pool.
    """
    if isinstance(error, psycopg.Error):
        return error
    cause = error.__cause__
    return cause if isinstance(cause, psycopg.Error) and cause.sqlstate in _OF_STATEMENTS else None


def breaks_connection(error: DriverError) -> bool:
    """Tell whether the connection is lost, or leads to a server that is no writer."""
    return _state(error) == _READ_ONLY or is_loss(error)


def is_loss(error: DriverError) -> bool:
    """Tell whether the connection is lost: nobody knows how far the statement came."""
    if isinstance(error, OSError):
        return True
    state = error.sqlstate
    if state is None:
        # The driver's own finding: no answer, half an answer, no connection; or an answer
        # that makes no sense to it. As a plain DatabaseError libpq's own results come that say
        # in the middle of a pipeline that the connection is gone.
        found = isinstance(error, (psycopg.OperationalError, psycopg.InternalError))
        return found or type(error) is psycopg.DatabaseError
    return (
        state in _LOSS
        or state.startswith(_CONNECTION_CLASS)
        or error.diag.severity_nonlocalized in _FATAL
    )


def translated(
    error: DriverError, *, repeatable: bool = True, gave_up: bool = False
) -> StoreError | None:
    """Return what to raise for an error of a statement or of the pool; None: the error itself.

    An error of severity ERROR was raised inside the transaction, which is therefore
    rolled back. With a lost connection nobody can tell: even a FATAL error such as
    57P01 may have been raised after the statement, before or after its commit. So that
    of a statement that is not ``repeatable`` the outcome is unknown. ``gave_up`` tells
    that it was we who stopped waiting.
    """
    state = _state(error) or ""
    meaning: Callable[[Store], StoreError] | None
    if isinstance(error, TooManyRequests):
        meaning = StoreOverloadedError
    elif isinstance(error, (PoolTimeout, PoolClosed)):
        meaning = StoreUnavailableError
    elif not is_loss(error):
        meaning = _MEANINGS.get(state) or _MEANINGS.get(state[:2])
    elif not repeatable:
        meaning = WriteOutcomeUnknownError
    else:
        meaning = StoreTimeoutError if gave_up else StoreUnavailableError
    return meaning(Store.AURORA) if meaning else None


def _state(error: DriverError) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None
