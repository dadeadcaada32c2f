"""Whether the cache answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import Store
from duostore_server.storage.cache.errors import DRIVER_ERRORS, store_error
from duostore_server.storage.cache.wire import Connector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.cache.wire import Connect

_LONGEST_SECONDS: Final = 1.0


class MemcachedProbe:
    """A ``Probe`` that finds the cache well if every node answers on a new connection.

    Every node, since one that is down keeps invalidations of its keys from being
    acknowledged. ``timeout`` is in seconds, for each node.
    """

    store = Store.CACHE

    def __init__(
        self, nodes: Sequence[str], *, timeout: float = 0.2, connect: Connect | None = None
    ) -> None:
        self._nodes = tuple(nodes)
        self._timeout = timeout
        self._connect = connect or Connector()

    def ping(self, deadline: Deadline) -> None:
        for address in self._nodes:
            # One half to connect, one half to wait for the answer.
            half = deadline.bound(self._timeout) / 2
            try:
                connection = self._connect(address, connect_timeout=half, timeout=half)
                try:
                    connection.version()
                finally:
                    connection.close()
            except DRIVER_ERRORS as error:
                failure = store_error(error)
                failure.add_note(f"memcached node {address}")
                raise failure from error


class MemoryProbe:
    """A ``Probe`` of the in-process cache, which answers as long as the process does."""

    store = Store.CACHE

    def ping(self, deadline: Deadline) -> None:
        deadline.bound(_LONGEST_SECONDS)
