"""One loop for every background work: a stop event, backoff with jitter, a record of success."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, Self

import structlog

from duostore_server.domain.errors import DuostoreError
from duostore_server.telemetry.causes import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_FIRST_BACKOFF_SECONDS: Final = 0.1
# Short, since a projector that waits adds to how stale a read may be after an outage.
LONGEST_BACKOFF_SECONDS: Final = 0.4

_log = structlog.get_logger(__name__)


class IncompleteRoundError(Exception):
    """A round did what it could and has to be done again; its text says what is left."""


class LoopObserver(Protocol):
    """Is told how each round of a loop ended."""

    def succeeded(self, name: str) -> None:
        """A round was done."""
        ...

    def failed(self, name: str) -> None:
        """A round ended in an error."""
        ...


class Loop:
    """Does one work again and again on a thread of its own, until it is stopped.

    ``work`` returns True if there is more to do at once; otherwise the loop rests
    for ``rest`` seconds. A work that fails is tried again after 0.1 s, then twice as
    long each time up to ``longest`` seconds, less a random part.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], bool],
        *,
        rest: float,
        jitter: Callable[[], float],
        observer: LoopObserver,
        longest: float = LONGEST_BACKOFF_SECONDS,
    ) -> None:
        """``jitter`` returns the part of a backoff to wait, at most 1."""
        self._name = name
        self._work = work
        self._rest = rest
        self._jitter = jitter
        self._observer = observer
        self._longest = longest
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the round that is under way finish, and stop."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        wait = 0.0
        while not self._stop.wait(wait):
            began = time.monotonic()
            try:
                more = self._work()
            except Exception as error:  # noqa: BLE001 - the edge of a thread: it must go on
                self._observer.failed(self._name)
                # A store that is down is told of in a line; a fault of ours with its place.
                expected = isinstance(error, DuostoreError | IncompleteRoundError)
                _log.warning(
                    "background work failed",
                    work=self._name,
                    error=str(error) if expected else repr(error),
                    cause=cause_of(error) if error.__cause__ else None,
                    exc_info=not expected,
                    seconds=round(time.monotonic() - began, 3),
                )
                wait = backoff * self._jitter()
                backoff = min(backoff * 2, self._longest)
            else:
                self._observer.succeeded(self._name)
                backoff = _FIRST_BACKOFF_SECONDS
                wait = 0.0 if more else self._rest
