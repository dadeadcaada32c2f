"""The address of a node, found without waiting long for a resolver."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import AddressFamily, SocketKind
    from typing import Any

    # What getaddrinfo says of one address, and the answer to all.
    Address = tuple[AddressFamily, SocketKind, int, str, Any]
    Lookup = Callable[[str, int], Sequence[Address]]


def system_lookup(host: str, port: int) -> Sequence[Address]:
    """Return the addresses of a host in the system's order; waits as long as its resolver does."""
    return socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM, socket.IPPROTO_TCP)


class Resolver:
    """Finds the first address of one host, on a thread of its own.

    A resolver that hangs cannot be interrupted. So each lookup has a daemon thread, of
    which there is one at a time however many callers there are, and the last address
    found is kept for when the next lookup is late or fails. An IP address needs none of
    this. Safe to use from many threads.
    """

    def __init__(self, host: str, port: int, lookup: Lookup = system_lookup) -> None:
        self._host: Final = host
        self._port: Final = port
        self._lookup: Final = lookup
        self._is_address: Final = _is_address(host)
        self._lock = threading.Lock()
        self._asked = 0.0
        self._answer: Future[Address] | None = None
        self._known: Address | None = None

    def address(self, within: float) -> Address:
        """Return the address as it is now, or else as it was last; raise ``OSError`` if unknown.

        A lookup is waited for until it is ``within`` seconds old, so that one which hangs
        is waited for once and not by every caller.
        """
        if self._is_address:
            return self._lookup(self._host, self._port)[0]
        with self._lock:
            if self._answer is None or self._answer.done():
                answer: Future[Address] = Future()
                threading.Thread(
                    target=self._ask, args=(answer,), name="memcached-resolver", daemon=True
                ).start()
                self._answer, self._asked = answer, monotonic()
            answer, left = self._answer, self._asked + within - monotonic()
        try:
            return answer.result(max(left, 0.0))
        except OSError:  # TimeoutError is one
            if self._known is None:
                raise
            return self._known

    def _ask(self, answer: Future[Address]) -> None:
        try:
            address = self._lookup(self._host, self._port)[0]
        except OSError as error:
            answer.set_exception(error)
        except Exception as error:  # noqa: BLE001 - such as UnicodeError, of a name that is none
            answer.set_exception(OSError(f"no address of {self._host!r}: {error}"))
        else:
            self._known = address
            answer.set_result(address)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
