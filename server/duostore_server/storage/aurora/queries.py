"""Named queries on Aurora: on its reader where that sees as much as the writer does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import StoreError, StoreTimeoutError
from duostore_server.storage.aurora.errors import DRIVER_ERRORS, is_contention, is_loss
from duostore_server.storage.aurora.open_query import BehindError, OpenQuery
from duostore_server.storage.aurora.visibility import SIGHT, Sight
from duostore_server.storage.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.queries import QueryCall
    from duostore_server.storage.aurora.pool import AuroraPool

_STALL_SECONDS: Final = 30.0
_CATCH_UP_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.01
# For so long a reader that failed, or lags too far behind, is not asked again.
_PAUSE_SECONDS: Final = 1.0
# So many are cancelled at the same time.
_MOST_CANCELLED: Final = 32


class AuroraQueries:
    """``ports.Queries`` on PostgreSQL, by pools that nothing else takes connections from.

    A query is run by ``reader``, if there is one, as soon as it sees all that the writer saw a
    moment ago, and for that is waited ``catch_up`` seconds; as long as a transaction of the
    writer takes, a reader in recovery does not tell what it sees of those after it, and the
    writer answers. So it does for a reader that fails. The server keeps a result that nobody
    fetches from for ``stall`` seconds. ``cancel_abandoned`` must be called every few hundred
    milliseconds.
    """

    def __init__(
        self,
        writer: AuroraPool,
        reader: AuroraPool | None = None,
        *,
        stall: float = _STALL_SECONDS,
        catch_up: float = _CATCH_UP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._stall = stall
        self._catch_up = catch_up
        self._clock = clock
        self._sleep = sleep
        self._backoff = Backoff(lambda: _PAUSE_SECONDS, clock)
        self._lock = threading.Lock()
        self._open: set[OpenQuery] = set()

    @contextmanager
    def open(self, call: QueryCall, deadline: Deadline) -> Iterator[OpenQuery]:
        opened = self._begun(call, deadline)
        try:
            yield opened
        finally:
            self._end(opened)

    def cancel_abandoned(self) -> bool:
        """End what still runs for those who wait no more; one round. Returns False."""
        with self._lock:
            opened = list(self._open)
        unwanted = [each for each in opened if each.is_unwanted()]
        if unwanted:
            # Side by side: where the network is cut each takes its time.
            with ThreadPoolExecutor(min(len(unwanted), _MOST_CANCELLED)) as threads:
                list(threads.map(OpenQuery.abandon_if_unwanted, unwanted))
        return False

    def _begun(self, call: QueryCall, deadline: Deadline) -> OpenQuery:
        if self._reader is not None and self._backoff.admits():
            try:
                needed = self._seen_by_writer(deadline)
            except BaseException:
                # It says nothing of the reader, which is to be found out by the next.
                self._backoff.succeeded()
                raise
            try:
                opened = self._attempt(self._reader, call, deadline, needed)
            except (StoreError, BehindError):
                self._backoff.failed()
            except BaseException:
                # Above all a deadline: that of a caller in a hurry says nothing of the reader.
                self._backoff.succeeded()
                raise
            else:
                self._backoff.succeeded()
                return opened
        try:
            return self._attempt(self._writer, call, deadline)
        except StoreError as error:
            if not _is_worth_another_try(error):
                raise
        return self._attempt(self._writer, call, deadline)

    def _seen_by_writer(self, deadline: Deadline) -> Sight:
        return Sight.of(self._writer.ask_writer(SIGHT, (), deadline)[0])

    def _attempt(
        self, pool: AuroraPool, call: QueryCall, deadline: Deadline, needed: Sight | None = None
    ) -> OpenQuery:
        opened = OpenQuery(pool, call, deadline, stall=self._stall)
        opened.take()
        with self._lock:
            self._open.add(opened)
        try:
            self._begin(opened, needed)
        except BaseException:
            self._end(opened)
            raise
        return opened

    def _begin(self, opened: OpenQuery, needed: Sight | None) -> None:
        """Begin, and again while a reader is behind that may soon have caught up."""
        until = self._clock() + self._catch_up
        while True:
            try:
                return opened.begin(needed)
            except BehindError as behind:
                if not behind.may_pass or self._clock() >= until:
                    raise
            opened.roll_back()
            self._sleep(_POLL_SECONDS)

    def _end(self, opened: OpenQuery) -> None:
        with self._lock:
            self._open.discard(opened)
        opened.close()


def _is_worth_another_try(error: StoreError) -> bool:
    cause = error.__cause__
    if isinstance(error, StoreTimeoutError) or not isinstance(cause, DRIVER_ERRORS):
        return False
    return is_contention(cause) or is_loss(cause)
