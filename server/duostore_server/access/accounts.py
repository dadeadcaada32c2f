"""What a process knows of counters, and what it has leased of them."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duostore_server.domain.algorithms import Algorithm, Debit
    from duostore_server.domain.counters import Counter, Lease
    from duostore_server.domain.errors import StoreError
    from duostore_server.domain.quotas import CounterKey, Quota


@dataclass(slots=True)
class Slice:
    """Units that were debited ahead; so many of them are ``left`` to be admitted.

    They are the last ones of ``debit``, which ``algorithm`` made, and admitted until ``ends``,
    a moment of the monotonic clock in seconds: never, once it is to be given back. ``lease``
    is its entry in the counter.
    """

    units: int
    left: int
    algorithm: Algorithm
    debit: Debit
    lease: Lease
    ends: float
    reset_time: int

    @property
    def is_shut(self) -> bool:
        """Whether it is to be given back, or may have been."""
        return self.ends == -math.inf

    def shut(self) -> None:
        """Admit nothing more from it."""
        self.ends = -math.inf


@dataclass(slots=True, eq=False)
class Account:
    """What a process knows of one counter, and has leased of it.

    ``seen`` is the counter as the store told it last, at ``seen_time``, in whatever order its
    answers came: anything that it ever told holds of now, but for what may have been given
    back since, and then as a bound. The rest is guarded by ``changed``: who is ``busy`` asks
    the store for a slice, or gives one back, while the others wait; ``waiting`` are the units
    that they want, ``wanted`` those of the next slice, ``filled`` when the last was asked
    for, ``quick`` how many times that was soon after the one before, and ``spent`` the last
    lease of which nothing was left. ``round`` counts what the busy ones did, and ``failure``
    is what the last of them met, if the store failed it.
    """

    key: CounterKey
    quota: Quota
    algorithm: Algorithm
    seen: Counter | None = None
    seen_time: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    slice: Slice | None = None
    spent: Lease | None = None
    busy: bool = False
    waiting: int = 0
    wanted: int = 0
    filled: float = 0.0
    quick: int = 0
    round: int = 0
    failure: StoreError | None = None

    def kept(self) -> tuple[Lease, ...]:
        """Return the leases of this process that were not given back, as far as it knows."""
        held = self.slice
        leases = (None if held is None or held.is_shut else held.lease, self.spent)
        return tuple(lease for lease in leases if lease is not None)

    def saw(self, counter: Counter | None, now: int) -> None:
        """Remember the counter as the store has just told it; ``now`` in ns since 1970."""
        self.seen, self.seen_time = counter, now

    def idle(self) -> bool:
        """Return whether it can be forgotten with nothing lost."""
        return self.slice is None and not self.busy and not self.waiting


class Accounts:
    """The accounts of the counters that were asked for last; safe to use from many threads.

    There may be more than ``most`` of them as long as the oldest hold slices.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._accounts: OrderedDict[CounterKey, Account] = OrderedDict()

    def of(self, key: CounterKey) -> Account | None:
        """Return the account of a counter, if there is one."""
        with self._lock:
            account = self._accounts.get(key)
            if account is not None:
                self._accounts.move_to_end(key)
            return account

    def open(self, account: Account) -> Account:
        """Return the account of its counter: this one, unless another was opened meanwhile."""
        with self._lock:
            account = self._accounts.setdefault(account.key, account)
            if len(self._accounts) > self._most:
                oldest = next(iter(self._accounts.values()))
                if oldest.idle():
                    del self._accounts[oldest.key]
                else:
                    self._accounts.move_to_end(oldest.key)
            return account

    def holding(self) -> list[Account]:
        """Return those that hold a slice."""
        with self._lock:
            return [account for account in self._accounts.values() if account.slice is not None]
