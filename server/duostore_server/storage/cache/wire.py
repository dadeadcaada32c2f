"""The few commands of the memcached protocol that the cache is built on.

``Connection`` is all that ``MemcachedCache`` knows of a node; pymemcache speaks it to a
real one, and tests have a simulated node that speaks it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pymemcache.client.base import Client  # type: ignore[import-untyped]
from pymemcache.exceptions import MemcacheUnknownError  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


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

        ``timeout`` bounds each wait for the node to take or send the next bytes.
        """
        ...


class _PipelinedClient(Client):  # type: ignore[misc]  # pymemcache has no types
    """A pymemcache client whose every answer is awaited and looked at."""

    def get_many(self, keys: Collection[bytes]) -> Mapping[bytes, bytes]:
        try:
            values: Mapping[bytes, bytes] = super().get_many(keys)
        except (KeyError, ValueError) as error:
            raise MemcacheUnknownError("an answer to another question") from error
        return values

    def gets(self, key: bytes) -> tuple[bytes, bytes] | None:
        try:
            value, number = super().gets(key)
        except (KeyError, ValueError) as error:
            raise MemcacheUnknownError("an answer to another question") from error
        return None if value is None else (value, number)

    def add_many(self, values: Mapping[bytes, bytes], expire: int) -> Collection[bytes]:
        # Client.set_many sends its commands together like this; there is no such add.
        stored: Mapping[bytes, bool] = self._store_cmd(b"add", values, expire, noreply=False)
        return [key for key, done in stored.items() if done]

    def cas(self, key: bytes, value: bytes, number: bytes, expire: int) -> bool:
        return super().cas(key, value, number, expire, noreply=False) is True

    def delete_many(self, keys: Collection[bytes]) -> None:
        # Client.delete_many sends the same, but takes any line for an acknowledgement.
        commands = [b"delete " + self.check_key(key, b"") + b"\r\n" for key in keys]
        for line in self._misc_cmd(commands, b"delete", noreply=False):
            if line not in {b"DELETED", b"NOT_FOUND"}:
                raise MemcacheUnknownError(line[:32])

    def version(self) -> None:
        super().version()


def open_connection(address: str, *, connect_timeout: float, timeout: float) -> Connection:
    """Return a connection that is opened by its first command: a ``Connect``.

    The name is resolved then, with the resolver's own timeout, and only the first
    address that it has is tried.
    """
    connection: Connection = _PipelinedClient(
        address,
        connect_timeout=connect_timeout,
        timeout=timeout,
        no_delay=True,
        default_noreply=False,
    )
    return connection
