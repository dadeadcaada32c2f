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

    from duostore_server.domain.errors import StoreError

_READ_ONLY: Final = "25006"
_CONTENTION: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock
# By SQLSTATE or, of two letters, by its class.
_MEANINGS: Final[Mapping[str, Callable[[Store], StoreError]]] = {
    _READ_ONLY: StoreUnavailableError,
    "57014": StoreTimeoutError,  # statement timeout, or a cancel request
    "55P03": StoreTimeoutError,  # lock timeout
    "53": StoreOverloadedError,  # insufficient resources
    **dict.fromkeys(_CONTENTION, StoreOverloadedError),
}
# Shutdown, crash, starting up, database dropped, idle session.
_SHUTDOWN: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05"})
_CONNECTION_CLASS: Final = "08"
_FATAL: Final = frozenset({"FATAL", "PANIC"})


def is_contention(error: psycopg.Error) -> bool:
    """Tell whether the statement was rolled back for being in another's way: try it again."""
    return error.sqlstate in _CONTENTION


def breaks_connection(error: psycopg.Error) -> bool:
    """Tell whether the connection is lost, or leads to a server that is no writer."""
    return error.sqlstate == _READ_ONLY or _is_loss(error)


def translated(
    error: psycopg.Error, *, repeatable: bool = True, gave_up: bool = False
) -> StoreError | None:
    """Return what to raise for an error of a statement or of the pool; None: the error itself.

    An error of severity ERROR was raised inside the transaction, which is therefore
    rolled back. With a lost connection nobody can tell: even a FATAL error such as
    57P01 may have been raised after the statement, before or after its commit. So that
    of a statement that is not ``repeatable`` the outcome is unknown. ``gave_up`` tells
    that it was we who stopped waiting.
    """
    state = error.sqlstate or ""
    meaning: Callable[[Store], StoreError] | None
    if isinstance(error, TooManyRequests):
        meaning = StoreOverloadedError
    elif isinstance(error, (PoolTimeout, PoolClosed)):
        meaning = StoreUnavailableError
    elif not _is_loss(error):
        meaning = _MEANINGS.get(state) or _MEANINGS.get(state[:2])
    elif not repeatable:
        meaning = WriteOutcomeUnknownError
    else:
        meaning = StoreTimeoutError if gave_up else StoreUnavailableError
    return meaning(Store.AURORA) if meaning else None


def _is_loss(error: psycopg.Error) -> bool:
    state = error.sqlstate
    if state is None:
        # The driver's own finding: no answer, half an answer, no connection.
        return isinstance(error, psycopg.OperationalError)
    return (
        state in _SHUTDOWN
        or state.startswith(_CONNECTION_CLASS)
        or error.diag.severity_nonlocalized in _FATAL
    )
