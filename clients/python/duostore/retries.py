"""Which calls are tried again, when, and when that ends.

gRPC's own policies go by the status code alone, do not know ``RetryInfo``, and try five
times at most; so none is set, and this is all there is.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final

from grpc import StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore.errors import Error

# Nothing was done, or the idempotency key lets what was done be found.
#
# OVERLOADED is left to the caller, who is told retry_after: the server sheds load then.
_PASSING_REASONS: Final = frozenset({"DUPLICATE_IN_PROGRESS", "WRITE_OUTCOME_UNKNOWN"})

# The first waits span a lost connection, the sum of all the restart of a server process.
_FIRST_SECONDS: Final = 0.1
_LONGEST_SECONDS: Final = 2.0
# A try that has less time than this tells nothing but that time was up.
_LEAST_TRY_SECONDS: Final = 0.05

# Retrying ends while failures outnumber a tenth of the successes by 50: early enough not
# to make an outage worse, late enough for one lost connection under many threads.
_MOST_TOKENS: Final = 100.0
_LEAST_TOKENS: Final = 50.0
_TOKENS_PER_SUCCESS: Final = 0.1


class Retries:
    """Decides for all calls of a client; safe to use from many threads.

    ``jitter`` returns by how much to lengthen a wait: a factor of at least 1.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._lock = threading.Lock()
        self._tokens = _MOST_TOKENS

    def succeeded(self) -> None:
        """Take note that a call succeeded."""
        with self._lock:
            self._tokens = min(_MOST_TOKENS, self._tokens + _TOKENS_PER_SUCCESS)

    def wait(self, failure: Error, tries: int, left: float) -> float | None:
        """Return the seconds to wait before the next try, or None if there shall be none.

        ``failure`` is what became of the last of so many ``tries``, of a call that may be
        repeated and has ``left`` seconds. The wait is never shorter than the server asks for.
        """
        if failure.code is not StatusCode.UNAVAILABLE and failure.reason not in _PASSING_REASONS:
            return None
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            if self._tokens <= _LEAST_TOKENS:
                return None
        backoff = min(_FIRST_SECONDS * 2.0 ** (tries - 1), _LONGEST_SECONDS)
        seconds = max(backoff, failure.retry_after or 0.0) * self._jitter()
        return seconds if seconds + _LEAST_TRY_SECONDS <= left else None


def random_jitter() -> float:
    """Return a factor that spreads the tries of many callers."""
    return random.uniform(1.0, 1.5)  # noqa: S311 - nobody gains by guessing it
