"""Watches a backfill, also over restarts of the service that tells of it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

import grpc

from duostore.v1 import admin_pb2
from duostore_server.cli.failure import failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore.v1.admin_pb2 import BackfillRequest, BackfillResponse
    from duostore.v1.admin_pb2_grpc import AdminStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.progress_display import ProgressDisplay

_FIRST_WAIT: Final = 0.5
_LAST_WAIT: Final = 10.0
# Between two looks, once the stream is lost.
_LOOK_SECONDS: Final = 1.0


class Watch:
    """Yields how far a backfill is until it has ended, or was stopped.

    A stream that is lost is not begun anew: if the backfill has ended meanwhile, that would
    begin another. It is looked at again and again instead.
    """

    def __init__(
        self,
        stub: AdminStub,
        metadata: Metadata,
        display: ProgressDisplay,
        *,
        retry_for: float,
        timeout: float,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``retry_for`` is how long, in seconds, the service may be away; ``timeout`` a look's."""
        self._stub = stub
        self._metadata = metadata
        self._display = display
        self._retry_for = retry_for
        self._timeout = timeout
        self._wait = wait
        self._clock = clock
        self._jitter = jitter

    def progress(self, request: BackfillRequest) -> Iterator[BackfillResponse]:
        """Start it or join it, and yield its progress.

        Raises ``grpc.RpcError`` if it cannot be started, if what went wrong will not pass, or
        nobody has answered for ``retry_for``.
        """
        last: BackfillResponse | None = None
        lost: grpc.RpcError | None = None
        stream = self._stub.Backfill(request, metadata=self._metadata)
        try:
            for last in stream:
                yield last
                if last.state != admin_pb2.BackfillResponse.STATE_RUNNING:
                    return
        except grpc.RpcError as error:
            if last is None or not failure_of(error).may_pass:
                raise
            lost = error
        finally:
            # Nobody listens any more.
            stream.cancel()
        if last is None:
            return
        yield from self._looks(last, lost)

    def _looks(
        self, last: BackfillResponse, lost: grpc.RpcError | None
    ) -> Iterator[BackfillResponse]:
        why = f" ({failure_of(lost)})" if lost is not None else ""
        self._display.say(f"The connection was lost{why}. The backfill goes on; trying again.")
        is_away, attempt, answered = True, 0, self._clock()
        request = admin_pb2.BackfillRequest(
            kind=last.kind, action=admin_pb2.BackfillRequest.ACTION_SHOW
        )
        while last.state == admin_pb2.BackfillResponse.STATE_RUNNING:
            self._wait(self._backoff(attempt) if is_away else _LOOK_SECONDS)
            try:
                found = self._look(request, last)
            except grpc.RpcError as error:
                late = self._clock() - answered >= self._retry_for
                if late or not failure_of(error).may_pass:
                    raise
                if not is_away:
                    self._display.say("The service is away again; trying again.")
                is_away, attempt = True, attempt + 1
                continue
            if is_away:
                self._display.say("The service answers again.")
            if found.start_time != last.start_time:
                self._display.say("Another backfill of the kind has begun since: watching that.")
            is_away, attempt, answered, last = False, 0, self._clock(), found
            yield last

    def _look(self, request: BackfillRequest, last: BackfillResponse) -> BackfillResponse:
        stream = self._stub.Backfill(request, timeout=self._timeout, metadata=self._metadata)
        try:
            return next(stream, last)
        finally:
            stream.cancel()

    def _backoff(self, attempt: int) -> float:
        longest: float = min(_FIRST_WAIT * 2.0**attempt, _LAST_WAIT)
        return longest * (0.5 + self._jitter() / 2)
