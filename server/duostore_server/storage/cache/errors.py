"""What goes wrong on the way to memcached, in the words of the domain."""

from __future__ import annotations

from typing import Final

from pymemcache.exceptions import (  # type: ignore[import-untyped]
    MemcacheClientError,
    MemcacheError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
)

from duostore_server.domain.errors import Store, StoreTimeoutError, StoreUnavailableError

# All that a connection may raise.
DRIVER_ERRORS: Final = (OSError, MemcacheError)

# The node ended the connection, as it does to each one when it restarts.
CLOSED: Final = (
    BrokenPipeError,
    ConnectionAbortedError,
    ConnectionResetError,
    MemcacheUnexpectedCloseError,
)


def is_refusal(error: Exception) -> bool:
    """Return whether the node is well and answered that it will not do this command."""
    return isinstance(error, MemcacheServerError | MemcacheClientError) and not isinstance(
        error, CLOSED
    )


def store_error(error: Exception) -> StoreUnavailableError:
    """Return the domain's error for one of ``DRIVER_ERRORS``; raise it ``from`` that one."""
    if isinstance(error, TimeoutError):
        return StoreTimeoutError(Store.CACHE)
    return StoreUnavailableError(Store.CACHE)
