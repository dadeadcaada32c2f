"""The cache on memcached: leases by ``add``, fills by ``gets`` and ``cas``.

Three rules keep an old value from being put over a newer one:

- A fill looks for its own nonce by ``gets`` and replaces it by ``cas``, both on one
  connection. The CAS number alone would not do, since a restarted server counts anew;
  one connection ends with the server that it was opened to. A proxy that spreads one
  connection over several servers must therefore not stand in between.
- A nonce is sent once. An ``add`` whose answer was lost may take effect late, when its
  key has been invalidated in between; so a second attempt has a nonce of its own, and
  what the first may have left behind is a lease that nobody holds, for 10 s.
- A key belongs to one node, whether that is up or not. Were the keys of a failing node
  given to others, it would come back with what it held before. All processes must
  therefore list the same nodes in the same order.
"""

from __future__ import annotations

import random
import re
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from duostore_server.domain.entities import Lease, Peeked
from duostore_server.domain.errors import Store, StoreTimeoutError, StoreUnavailableError
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.cache.entries import decode, encode
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.cache.leases import LEASE_SECONDS, new_nonce
from duostore_server.storage.cache.nodes import Node
from duostore_server.storage.cache.wire import Connector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from duostore_server.domain.entities import Cached
    from duostore_server.domain.errors import StoreError
    from duostore_server.domain.keys import CacheKey
    from duostore_server.domain.ports import K
    from duostore_server.storage.cache.wire import Connect, Connection

# memcached takes a longer time for a date, in 1970.
_LONGEST_SECONDS: Final = 30 * 24 * 3600

# What memcached adds to a value of its largest size; 309 bytes were measured on 1.6.18,
# 250 of them for the key.
_ITEM_OVERHEAD: Final = 512

_ADDRESS: Final = re.compile(r"[^\s/]+:\d{1,5}")

_Answer = TypeVar("_Answer")


def _unnoticed(_operation: str, _error: StoreError) -> None:
    pass


class MemcachedCache:
    """A ``Cache`` on one or more memcached nodes.

    ``nodes`` are ``host:port``. Times are in seconds. A call waits up to
    ``connect_timeout`` to connect to a node and up to ``timeout`` for each answer, all of
    it: there is one, two to ``fill``. A call that has spent both twice asks no further
    node; those that failed last time are asked last. A node that failed is left alone for
    a time drawn from the range ``backoff``. ``item_max`` is the nodes' own limit in bytes
    (memcached ``-I``). Payloads above ``compress_above`` bytes are compressed.

    ``read`` and ``lease`` raise if none of the nodes concerned answered. Failures that
    they pass over because another node did are told to ``on_bypass`` with the name of
    the operation, and so are failed removals of damaged entries; all others are raised.
    ``on_unreadable`` is told of each damaged entry.
    Errors name their node in a note, which logs show and callers do not see.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        namespace: str = "duostore",
        connect_timeout: float = 0.1,
        timeout: float = 0.1,
        backoff: tuple[float, float] = (0.25, 1.0),
        item_max: int = 1024 * 1024,
        compress_above: int = 4096,
        most_idle: int = 32,
        connect: Connect | None = None,
        nonces: Callable[[], bytes] = new_nonce,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
        on_bypass: Callable[[str, StoreError], None] = _unnoticed,
        on_unreadable: Callable[[], None] = lambda: None,
    ) -> None:
        if not nodes or len(set(nodes)) < len(nodes) or not all(map(_ADDRESS.fullmatch, nodes)):
            raise ValueError(f"expected different nodes, each as host:port, got {list(nodes)}")
        opened = connect or Connector(item_max=item_max)
        self._nodes = [
            Node(
                address,
                partial(opened, address, connect_timeout=connect_timeout, timeout=timeout),
                Backoff(partial(uniform, *backoff), clock),
                most_idle=most_idle,
            )
            for address in nodes
        ]
        self._clock = clock
        self._patience = 2 * (connect_timeout + timeout)
        self._namespace = Namespace(namespace)
        self._largest = item_max - _ITEM_OVERHEAD
        self._compress_above = compress_above
        self._nonces = nonces
        self._on_bypass = on_bypass
        self._on_unreadable = on_unreadable

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, those in use as soon as their call ends."""
        for node in self._nodes:
            node.close()

    def read(self, keys: Collection[K]) -> Mapping[K, Cached | Lease]:
        entries: dict[K, Cached | Lease] = {}
        damaged = []
        for key, raw in self._gather("read", keys, _get).items():
            entry = decode(raw)
            if entry is None:
                damaged.append(key)
                self._on_unreadable()
            else:
                entries[key] = entry
        if damaged:
            self._drop(damaged)
        return entries

    def lease(self, keys: Collection[K]) -> Mapping[K, Lease]:
        return self._gather("lease", keys, self._place)

    def fill(self, key: CacheKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        name = self._namespace.key(key)
        value = self._encoded(entry)
        expire = min(max(int(ttl), 1), _LONGEST_SECONDS)
        # Not repeated: if the connection was closed, so was the lease forgotten.
        return self._node(name).call(
            lambda connection: self._swap(connection, name, lease, value, expire), retry=False
        )

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        # Asks a node that is shut off too. To fail at once would be as correct, since an
        # outbox row is kept, but the old entry would stay until the projector came; the
        # node may have been shut off for one slow answer, or may be up again.
        failures = []
        ends = self._clock() + self._patience
        for node, shared in self._shares(keys):
            try:
                self._check_time(ends, node)
                node.call(partial(_delete, shared), insist=True)
            except StoreUnavailableError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def peek(self, keys: Collection[K]) -> Mapping[K, Peeked]:
        found: dict[K, Peeked] = {}
        ends = self._clock() + self._patience
        for node, shared in self._shares(keys):
            self._check_time(ends, node)
            for name, raw in node.call(partial(_get, shared)).items():
                found[shared[name]] = Peeked(decode(raw), len(name) + len(raw))
        return found

    def _swap(
        self, connection: Connection, name: bytes, lease: Lease, value: bytes, expire: int
    ) -> bool:
        found = connection.gets(name)
        if found is None:
            return False
        held, number = found
        if held != self._encoded(lease):
            return False
        if len(value) > self._largest:
            connection.delete_many([name])
            return False
        return connection.cas(name, value, number, expire)

    def _place(self, names: Collection[bytes], connection: Connection) -> Mapping[bytes, Lease]:
        # Called again for a second attempt: the nonces are new each time.
        leases = {name: Lease(self._nonces()) for name in names}
        values = {name: self._encoded(lease) for name, lease in leases.items()}
        return {name: leases[name] for name in connection.add_many(values, LEASE_SECONDS)}

    def _drop(self, damaged: Collection[CacheKey]) -> None:
        try:
            self.invalidate(damaged)
        except StoreUnavailableError as error:
            self._on_bypass("read", error)

    def _encoded(self, entry: Cached | Lease) -> bytes:
        return encode(entry, compress_above=self._compress_above)

    def _gather(
        self,
        operation: str,
        keys: Collection[K],
        ask: Callable[[Collection[bytes], Connection], Mapping[bytes, _Answer]],
    ) -> dict[K, _Answer]:
        """Return the answers of all nodes that the keys concern; raise if none answered."""
        answers: dict[K, _Answer] = {}
        failures = []
        shares = self._shares(keys)
        ends = self._clock() + self._patience
        for node, shared in shares:
            try:
                self._check_time(ends, node)
                answer = node.call(partial(ask, shared))
            except StoreUnavailableError as error:
                failures.append(error)
            else:
                answers |= {shared[name]: value for name, value in answer.items()}
        if failures and len(failures) == len(shares):
            raise failures[0]
        for failure in failures:
            self._on_bypass(operation, failure)
        return answers

    def _shares(self, keys: Collection[K]) -> list[tuple[Node, dict[bytes, K]]]:
        """Return each node that the keys concern, with its keys by their memcached names."""
        shares: dict[Node, dict[bytes, K]] = {}
        for key in keys:
            name = self._namespace.key(key)
            shares.setdefault(self._node(name), {})[name] = key
        if len(shares) == 1:
            return list(shares.items())
        # So that nodes which hang do not use up the time of those that do not.
        return sorted(shares.items(), key=lambda share: share[0].failing)

    def _check_time(self, ends: float, node: Node) -> None:
        if self._clock() > ends:
            raise node.named(StoreTimeoutError(Store.CACHE))

    def _node(self, name: bytes) -> Node:
        return self._nodes[zlib.crc32(name) % len(self._nodes)]


def _get(names: Collection[bytes], connection: Connection) -> Mapping[bytes, bytes]:
    return connection.get_many(names)


def _delete(names: Collection[bytes], connection: Connection) -> None:
    connection.delete_many(names)
