"""The few commands of the memcached protocol that the cache is built on.

``Connection`` is all that ``MemcachedCache`` knows of a node; pymemcache speaks it to a
real one, and tests have a simulated node that speaks it too.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from pymemcache.client.base import (  # type: ignore[import-untyped]
    Client,
    normalize_server_spec,
)
from pymemcache.exceptions import MemcacheUnknownError  # type: ignore[import-untyped]

from duostore_server.storage.cache.resolver import Resolver, system_lookup

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duostore_server.storage.cache.resolver import Lookup

# More than any line of an answer, with a key of 250 bytes, and than the end of one.
_LINE_BYTES: Final = 512


class Connection(Protocol):
    """One connection to one node, used by one thread at a time.

    Commands raise ``OSError`` or pymemcache's errors; after any error the connection
    may only be closed, since it is unknown which answers are still to come. Commands
    for many keys take one round trip, and effect each key on its own.
    """

    def get_many(self, keys: Collection[bytes]) -> Mapping[bytes, bytes]:
        """Return the values of those keys that have one."""
        ...

    def gets(self, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the value and its CAS number; None if the key has none."""
        ...

    def add_many(self, values: Mapping[bytes, bytes], expire: int) -> Collection[bytes]:
        """Store each value whose key has none; return the keys of those stored.

        ``expire`` is in seconds, 1 to 30 days.
        """
        ...

    def cas(self, key: bytes, value: bytes, number: bytes, expire: int) -> bool:
        """Replace the value if it still has this CAS number; return whether it had."""
        ...

    def delete_many(self, keys: Collection[bytes]) -> None:
        """Remove the keys. Returns once the removal of each was acknowledged."""
        ...

    def version(self) -> None:
        """Return if the node answers."""
        ...

    def close(self) -> None:
        """Close the connection; never raises."""
        ...


class Connect(Protocol):
    """Makes connections to nodes; timeouts are in seconds."""

    def __call__(self, address: str, *, connect_timeout: float, timeout: float) -> Connection:
        """Return a connection to ``host:port``, opened now or with its first command.

        ``timeout`` bounds each command, from its first byte sent to the last received.
        """
        ...


class _BoundedSocket(socket.socket):
    """A socket whose answers have to be whole in a given time and size.

    Python's own timeout begins anew with each ``recv``.
    """

    __slots__ = ("_ends", "_room")

    def expect(self, size: int, timeout: float) -> None:
        """Begin a command: from now on ``timeout`` seconds, and ``size`` bytes to receive."""
        self._ends = monotonic() + timeout
        self._room = size
        self.settimeout(timeout)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        left = self._ends - monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        part = super().recv(size, flags)
        self._room -= len(part)
        if self._room < 0:
            raise MemcacheUnknownError("an answer that is too long")
        return part


class _PipelinedClient(Client):  # type: ignore[misc]  # pymemcache has no types
    """A pymemcache client whose every answer is awaited, bounded and looked at."""

    sock: _BoundedSocket | None

    def __init__(
        self, resolver: Resolver, *, connect_timeout: float, timeout: float, item_max: int
    ) -> None:
        super().__init__(("", 0), default_noreply=False)
        self._resolver = resolver
        self._connect_seconds = connect_timeout
        self._command_seconds = timeout
        self._value_bytes = item_max + _LINE_BYTES

    def get_many(self, keys: Collection[bytes]) -> Mapping[bytes, bytes]:
        self._expect(len(keys) * self._value_bytes)
        try:
            values: Mapping[bytes, bytes] = super().get_many(keys)
        except (KeyError, ValueError) as error:
            raise MemcacheUnknownError("an answer to another question") from error
        return values

    def gets(self, key: bytes) -> tuple[bytes, bytes] | None:
        self._expect(self._value_bytes)
        try:
            value, number = super().gets(key)
        except (KeyError, ValueError) as error:
            raise MemcacheUnknownError("an answer to another question") from error
        return None if value is None else (value, number)

    def add_many(self, values: Mapping[bytes, bytes], expire: int) -> Collection[bytes]:
        self._expect(len(values) * _LINE_BYTES)
        # Client.set_many sends its commands together like this; there is no such add.
        stored: Mapping[bytes, bool] = self._store_cmd(b"add", values, expire, noreply=False)
        return [key for key, done in stored.items() if done]

    def cas(self, key: bytes, value: bytes, number: bytes, expire: int) -> bool:
        self._expect(_LINE_BYTES)
        return super().cas(key, value, number, expire, noreply=False) is True

    def delete_many(self, keys: Collection[bytes]) -> None:
        self._expect(len(keys) * _LINE_BYTES)
        # Client.delete_many sends the same, but takes any line for an acknowledgement.
        commands = [b"delete " + self.check_key(key, b"") + b"\r\n" for key in keys]
        for line in self._misc_cmd(commands, b"delete", noreply=False):
            if line not in {b"DELETED", b"NOT_FOUND"}:
                raise MemcacheUnknownError(line[:32])

    def version(self) -> None:
        self._expect(_LINE_BYTES)
        super().version()

    def _expect(self, size: int) -> None:
        connected = self._connect() if self.sock is None else self.sock
        connected.expect(size + _LINE_BYTES, self._command_seconds)

    def _connect(self) -> _BoundedSocket:
        # Replaces pymemcache's, which waits for the resolver as long as that takes.
        ends = monotonic() + self._connect_seconds
        family, kind, protocol, _, address = self._resolver.address(self._connect_seconds / 2)
        left = ends - monotonic()
        if left <= 0:
            raise TimeoutError
        connected = _BoundedSocket(family, kind, protocol)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.settimeout(left)
            connected.connect(address)
        except BaseException:
            connected.close()
            raise
        self.sock = connected
        return connected


class Connector:
    """A ``Connect`` to real nodes, by connections that their first command opens.

    Half of ``connect_timeout`` at most goes to finding the node's address, the rest to
    connecting; only the first address that a name has is tried. No value is larger than
    ``item_max`` bytes; a longer answer is an error.
    """

    def __init__(self, *, item_max: int = 1024 * 1024, lookup: Lookup = system_lookup) -> None:
        self._item_max = item_max
        self._lookup = lookup
        self._resolvers: dict[str, Resolver] = {}

    def __call__(self, address: str, *, connect_timeout: float, timeout: float) -> Connection:
        resolver = self._resolvers.get(address)
        if resolver is None:
            # Of threads that come here at once, all get the one that was put first.
            host, port = normalize_server_spec(address)
            made = Resolver(host, port, self._lookup)
            resolver = self._resolvers.setdefault(address, made)
        connection: Connection = _PipelinedClient(
            resolver, connect_timeout=connect_timeout, timeout=timeout, item_max=self._item_max
        )
        return connection
