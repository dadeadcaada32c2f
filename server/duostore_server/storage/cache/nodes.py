"""One memcached node: its idle connections, and whether it is worth asking."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.storage.cache.errors import CLOSED, DRIVER_ERRORS, is_refusal, store_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.storage.backoff import Backoff
    from duostore_server.storage.cache.wire import Connection

Answer = TypeVar("Answer")


class Node:
    """A node, with connections that are kept for the next call.

    There are as many connections, made by ``connect``, as calls at a time; ``most_idle``
    of them are kept, and the last used is used first. Of the driver's errors none leaves:
    they become ``StoreUnavailableError`` or ``StoreTimeoutError``.
    """

    def __init__(
        self,
        address: str,
        connect: Callable[[], Connection],
        backoff: Backoff,
        *,
        most_idle: int,
    ) -> None:
        # Whether the last call failed.
        self.failing = False
        self._address = address
        self._connect = connect
        self._backoff = backoff
        self._most_idle = most_idle
        self._idle: deque[Connection] = deque()
        self._closed = False

    def call(
        self,
        command: Callable[[Connection], Answer],
        *,
        retry: bool = True,
        insist: bool = False,
    ) -> Answer:
        """Return what ``command`` returns, called with a connection that is its own.

        A kept connection that turns out to be closed says only that the node restarted
        some time ago: the command is then done once more, on a new connection, unless
        ``retry`` is False. A command that timed out is not repeated. ``insist`` asks the
        node even while it is shut off.
        """
        if not (insist or self._backoff.admits()):
            raise self.named(StoreUnavailableError(Store.CACHE))
        try:
            kept = self._take()
            if kept is not None:
                try:
                    return self._do(command, kept)
                except CLOSED:
                    # The others were opened before it closed, and will be closed too.
                    self._drop_idle()
                    if not retry:
                        raise
            return self._do(command, self._connect())
        except DRIVER_ERRORS as error:
            if is_refusal(error):
                self._succeeded()
            elif retry or not isinstance(error, CLOSED):
                self.failing = True
                self._backoff.failed()
            raise self.named(store_error(error)) from error

    def named(self, error: StoreUnavailableError) -> StoreUnavailableError:
        """Return the error with a note of the node's address."""
        error.add_note(f"memcached node {self._address}")
        return error

    def close(self) -> None:
        """Close all connections; those in use when their call ends."""
        self._closed = True
        self._drop_idle()

    def _do(self, command: Callable[[Connection], Answer], connection: Connection) -> Answer:
        try:
            answer = command(connection)
        except BaseException:
            # Answers may be under way that the next command would take for its own.
            connection.close()
            raise
        self._succeeded()
        self._idle.append(connection)
        if self._closed:
            self._drop_idle()
        elif len(self._idle) > self._most_idle:
            self._close_one()
        return answer

    def _succeeded(self) -> None:
        self.failing = False
        self._backoff.succeeded()

    def _take(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _close_one(self) -> bool:
        try:
            connection = self._idle.popleft()
        except IndexError:
            return False
        connection.close()
        return True

    def _drop_idle(self) -> None:
        while self._close_one():
            pass
