"""Streams whose clients do not take what they are sent."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc

_log = structlog.get_logger(__name__)


class Streams:
    """The streams that wait for their clients, who are cut off after ``stall`` seconds.

    A stream waits while a message of it is not taken: once what gRPC and the network hold
    for a client who does not read is full. How long the message took to make is no part
    of it.
    """

    def __init__(self, *, stall: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds and never goes back."""
        self._stall = stall
        self._clock = clock
        self._since: dict[grpc.ServicerContext, float] = {}
        self._changing = threading.Lock()

    @contextmanager
    def sending(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Send one message of a stream in the block, which ends early if the stream is cut off."""
        with self._changing:
            self._since[context] = self._clock()
        try:
            yield
        finally:
            with self._changing:
                cut_off = self._since.pop(context, None) is None
            if cut_off:
                _log.warning("stream cut off, its client takes nothing", seconds=self._stall)

    def cancel_stalled(self) -> bool:
        """Cut off all who have taken nothing for too long; return False, for it is all of them."""
        with self._changing:
            limit = self._clock() - self._stall
            stalled = [context for context, since in self._since.items() if since <= limit]
            for context in stalled:
                del self._since[context]
        for context in stalled:
            context.cancel()
        return False
