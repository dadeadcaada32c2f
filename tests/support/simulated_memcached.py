"""A memcached node in this process, of which a test decides when and what happens.

It stands in for the network and the server below the production ``MemcachedCache``::

    node = SimulatedMemcached(step=world.step)
    cache = MemcachedCache(["cache:1"], connect=connect_to({"cache:1": node}))

Values, CAS numbers and expiry are those of memcached 1.6. No time passes but by the
injected clock. Errors are the ones that sockets raise.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pymemcache.exceptions import MemcacheServerError  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping

    from duostore_server.storage.cache.wire import Connect

T = TypeVar("T")

_LONGEST_SECONDS = 30 * 24 * 3600


class Delivery(Enum):
    """What becomes of a command whose answer the client does not get."""

    APPLIED = "applied"
    LOST = "lost"
    LATE = "late"  # applied by SimulatedMemcached.deliver()


@dataclass(frozen=True, slots=True)
class Fault:
    """The client is raised ``error`` in place of an answer."""

    error: Exception
    delivery: Delivery = Delivery.APPLIED


@dataclass(frozen=True, slots=True)
class Item:
    """A value as the node holds it."""

    value: bytes
    number: int
    expires: float


def _no_step(_label: str) -> None:
    pass


def _unobserved(_: object) -> None:
    pass


def _no_fault(_label: str) -> Fault | None:
    return None


class SimulatedMemcached:
    """One node. Safe to use from threads, though made for one thread of many greenlets.

    ``step`` is called with ``"command key"`` just before each single command takes effect;
    those for many keys are single commands in a row, as they are to a real server. It
    holds no lock then, and looks at the state of the node only afterwards. ``observe`` is
    told what a client gets to see without a step: to connect is none.
    """

    def __init__(
        self,
        *,
        step: Callable[[str], None] = _no_step,
        observe: Callable[[Hashable], None] = _unobserved,
        clock: Callable[[], float] = lambda: 0.0,
        item_max: int = 1024 * 1024,
    ) -> None:
        self.step = step
        self._observe = observe
        self.fault: Callable[[str], Fault | None] = _no_fault
        self.reachable = True
        self.opened = 0
        self.closed = 0
        self._clock = clock
        self._item_max = item_max
        self._lock = threading.RLock()
        self._items: dict[bytes, Item] = {}
        self._last_number = 0
        self._starts = 1
        self._late: list[Callable[[], object]] = []

    def connect(self) -> SimulatedConnection:
        """Open a connection, if the node is reachable."""
        self._observe(("connect", self._starts, self.reachable))
        if not self.reachable:
            raise ConnectionRefusedError
        with self._lock:
            self.opened += 1
            return SimulatedConnection(self, self._starts)

    def restart(self) -> None:
        """Forget everything; open connections fail at their next use, CAS numbers start anew."""
        with self._lock:
            self._items.clear()
            self._late.clear()
            self._last_number = 0
            self._starts += 1

    def evict(self, key: bytes) -> None:
        """Forget one key, as ``delete`` does, and a node that is short of memory."""
        with self._lock:
            self._items.pop(key, None)

    def deliver(self) -> None:
        """Apply the commands that are late; a restart loses them."""
        with self._lock:
            late, self._late = self._late, []
            for apply in late:
                apply()

    def item(self, key: bytes) -> Item | None:
        """Return what is held under a key."""
        with self._lock:
            item = self._items.get(key)
            return item if item is not None and item.expires > self._clock() else None

    def state(self) -> Hashable:
        """Return all that the answers to come depend on, but for time, faults and what is late."""
        with self._lock:
            items = tuple(sorted((k, i.value, i.number, i.expires) for k, i in self._items.items()))
            return items, self._last_number, self._starts, self.reachable

    def put(self, key: bytes, value: bytes, expire: int) -> None:
        """Store a value as ``set`` does."""
        if len(key) + len(value) > self._item_max:
            raise MemcacheServerError(b"object too large for cache")
        # A longer time is a date in 1970, 0 is for ever.
        seconds = -1.0 if expire > _LONGEST_SECONDS else float(expire or "inf")
        with self._lock:
            self._last_number += 1
            self._items[key] = Item(value, self._last_number, self._clock() + seconds)

    def add(self, key: bytes, value: bytes, expire: int) -> bool:
        """Store a value as ``add`` does."""
        with self._lock:
            if self.item(key) is not None:
                return False
            self.put(key, value, expire)
            return True

    def swap(self, key: bytes, value: bytes, number: int, expire: int) -> bool:
        """Store a value as ``cas`` does."""
        with self._lock:
            item = self.item(key)
            if item is None or item.number != number:
                return False
            self.put(key, value, expire)
            return True

    def execute(self, opened_at: int, label: str, apply: Callable[[], T]) -> T:
        """Let ``apply`` take effect for a connection that was opened at the given start."""
        self.step(label)
        if not self.reachable:
            raise TimeoutError
        if opened_at != self._starts:
            raise ConnectionResetError
        fault = self.fault(label)
        if fault is None:
            return apply()
        if fault.delivery is Delivery.APPLIED:
            apply()
        elif fault.delivery is Delivery.LATE:
            with self._lock:
                self._late.append(apply)
        raise fault.error


class SimulatedConnection:
    """A ``wire.Connection`` to a simulated node, with the commands that mutants need."""

    def __init__(self, node: SimulatedMemcached, opened_at: int) -> None:
        self._node = node
        self._opened_at = opened_at
        self._usable = True
        self._closed = False

    def get_many(self, keys: Collection[bytes]) -> Mapping[bytes, bytes]:
        items = {key: self._do("get", key, partial(self._node.item, key)) for key in keys}
        return {key: item.value for key, item in items.items() if item is not None}

    def gets(self, key: bytes) -> tuple[bytes, bytes] | None:
        item = self._do("gets", key, partial(self._node.item, key))
        return None if item is None else (item.value, str(item.number).encode())

    def add_many(self, values: Mapping[bytes, bytes], expire: int) -> Collection[bytes]:
        return [
            key
            for key, value in values.items()
            if self._do("add", key, partial(self._node.add, key, value, expire))
        ]

    def cas(self, key: bytes, value: bytes, number: bytes, expire: int) -> bool:
        return self._do("cas", key, partial(self._node.swap, key, value, int(number), expire))

    def set(self, key: bytes, value: bytes, expire: int) -> None:
        """Store the value, whatever was there."""
        self._do("set", key, partial(self._node.put, key, value, expire))

    def delete_many(self, keys: Collection[bytes]) -> None:
        for key in keys:
            self._do("delete", key, partial(self._node.evict, key))

    def version(self) -> None:
        self._do("version", b"", lambda: None)

    def close(self) -> None:
        assert not self._closed, "closed twice"
        self._closed = True
        self._node.closed += 1

    def _do(self, command: str, key: bytes, apply: Callable[[], T]) -> T:
        assert self._usable, f"{command} on a connection that has failed"
        assert not self._closed, f"{command} on a connection that was closed"
        label = f"{command} {key.decode()}".rstrip()
        self._usable = False
        answer = self._node.execute(self._opened_at, label, apply)
        self._usable = True
        return answer


def connect_to(nodes: Mapping[str, SimulatedMemcached]) -> Connect:
    """Return a ``wire.Connect`` to simulated nodes by their addresses."""

    def connect(address: str, *, connect_timeout: float, timeout: float) -> SimulatedConnection:
        assert connect_timeout > 0
        assert timeout > 0
        return nodes[address].connect()

    return connect
