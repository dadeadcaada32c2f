"""Admits from slices: units that a process has debited ahead, and hands out from memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.access.accounts import Slice
from duostore_server.access.counting import Ahead
from duostore_server.domain.algorithms import nanoseconds
from duostore_server.domain.counters import Step
from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreError,
    StoreOverloadedError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from duostore_server.access.accounts import Account
    from duostore_server.access.counting import Counting, Looked
    from duostore_server.domain.counters import Counter
    from duostore_server.domain.deadline import Deadline

# A slice that was used up within this part of its time is followed by one twice as large;
# one that lasted for longer than its time, by one a quarter of its size.
_USED_UP_SOON: Final = 0.25
_SMALLER: Final = 4
# What is left of a slice after this part of its time goes back.
_RETURNED_AFTER: Final = 0.5
_RETURN_TRIES: Final = 4
_LONGEST_WAIT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a call.

    ``left`` are units that this process holds besides. ``reset_time`` is set if it was
    admitted from a slice. Otherwise ``counter`` is what decided, and ``fresh`` if the store
    told it during the call.
    """

    allowed: bool
    left: int
    reset_time: int | None = None
    counter: Counter | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class _Filling:
    """What the busy one is about: units for its own call, of which the slice had ``spare``."""

    units: int
    held: Slice | None
    spare: int
    ahead: Ahead


class Leasing:
    """Takes units from an account's slice, and asks the store only for the next one.

    One caller at a time asks for a slice of an account, large enough for those who wait;
    how soon the last one was used up tells how large it is to be. A slice is admitted from
    while its slot is not over, and never for longer than the quota's ``lease_time``: what is
    not used by then goes back. What a crash leaves stays debited.
    """

    def __init__(
        self,
        counting: Counting,
        *,
        monotonic: Callable[[], float],
        leased: Callable[[str, str, int], None],
    ) -> None:
        """``leased`` is told of units: the quota, what became of them, and how many."""
        self._counting = counting
        self._monotonic = monotonic
        self._leased = leased

    def take(self, account: Account, units: int, most: int, deadline: Deadline) -> Taken:
        """Admit units if there is room for them; slices are of up to ``most``."""
        with account.changed:
            while (taken := self._taken(account, units)) is None and account.busy:
                self._wait(account, units, deadline)
            if taken is not None:
                return taken
            account.busy = True
            held = account.slice
            spare = self._left(account)
            if held is not None:
                # The caller has what is left, until it is told that it is too little.
                held.left -= spare
            ahead = Ahead(self._wanted(account, most), nanoseconds(account.quota.lease_time))
        return self._fill(account, _Filling(units, held, spare, ahead), deadline)

    def return_all(self, accounts: Iterable[Account], deadline: Deadline) -> None:
        """Give back every slice, for as long as the deadline allows; the rest is lost."""
        for account in accounts:
            with suppress(StoreError, DeadlineExceededError):
                self._return(account, deadline, min_age=0.0)

    def return_unused(self, account: Account, deadline: Deadline) -> None:
        """Give back what is left of a slice after half of its time."""
        self._return(account, deadline, min_age=_RETURNED_AFTER)

    def _return(self, account: Account, deadline: Deadline, *, min_age: float) -> None:
        with account.changed:
            held = account.slice
            if held is None or account.busy:
                return
            span = account.quota.lease_time.total_seconds()
            if min_age and self._monotonic() < held.ends - span * (1 - min_age):
                return
            account.busy = True
            # It was too large for what came.
            account.wanted = min(account.wanted, held.units - held.left)
            account.slice = None
        try:
            self._give_back(account, held, deadline)
        finally:
            with account.changed:
                self._finish(account, None)

    def _taken(self, account: Account, units: int) -> Taken | None:
        """Return what memory has to say to a call; None if the store has to be asked."""
        left = self._left(account)
        if account.slice is not None and left >= units:
            return self._admitted(account, account.slice, units)
        if account.busy:
            return None
        if self._counting.rules_out(account, units - left, self._counting.clock()):
            return Taken(allowed=False, left=left, counter=account.seen)
        return None

    def _fill(self, account: Account, filling: _Filling, deadline: Deadline) -> Taken:
        """Debit what the slice lacks, and the next one; the caller is the busy one."""
        held, spare = filling.held, filling.spare
        looked: Looked | None = None
        failure: StoreError | None = None
        try:
            if held is not None and held.left:
                self._give_back(account, held, deadline)
            lacking = filling.units - spare
            looked = self._counting.debit(account, lacking, deadline, filling.ahead)
        except StoreError as error:
            failure = error
            raise
        finally:
            with account.changed:
                if looked is not None and looked.plan is not None:
                    self._close(account)
                    self._open(account, looked)
                elif held is not None:
                    held.left += spare
                self._finish(account, failure)
        if looked.plan is None:
            return Taken(allowed=False, left=spare, counter=looked.counter, fresh=looked.fresh)
        return Taken(allowed=True, left=looked.plan.extra, counter=looked.counter, fresh=True)

    def _left(self, account: Account) -> int:
        """Return how many units of the slice may be admitted now."""
        held = account.slice
        if held is None or self._monotonic() >= held.ends:
            return 0
        over = account.algorithm.is_over(held.debit.slot, self._counting.clock())
        return 0 if over else held.left

    def _admitted(self, account: Account, held: Slice, units: int) -> Taken:
        held.left -= units
        if not held.left:
            self._close(account)
        return Taken(allowed=True, left=held.left, reset_time=held.reset_time)

    def _wait(self, account: Account, units: int, deadline: Deadline) -> None:
        """Wait for the busy one; raise if the store failed it."""
        round_ = account.round
        account.waiting += units
        try:
            while account.round == round_:
                account.changed.wait(deadline.bound(_LONGEST_WAIT_SECONDS))
        finally:
            account.waiting -= units
        if account.failure is not None:
            raise _shared(account.failure) from account.failure

    def _wanted(self, account: Account, most: int) -> int:
        """Return how many units to debit ahead."""
        now = self._monotonic()
        span = account.quota.lease_time.total_seconds()
        lasted, account.filled = now - account.filled, now
        if lasted < span * _USED_UP_SOON:
            account.wanted = max(1, 2 * account.wanted)
        elif lasted > span:
            account.wanted //= _SMALLER
        account.wanted = min(account.wanted, most)
        return min(account.wanted + account.waiting, most)

    def _open(self, account: Account, looked: Looked) -> None:
        """Hold what was debited ahead."""
        if looked.plan is None or looked.lease is None or looked.counter is None:
            return
        account.slice = Slice(
            units=looked.plan.extra,
            left=looked.plan.extra,
            debit=account.algorithm.done(looked.plan.extra, looked.plan.change, looked.counter),
            lease=looked.lease,
            ends=account.filled + account.quota.lease_time.total_seconds(),
            reset_time=account.algorithm.reset_time(looked.counter, looked.plan.now),
        )
        self._tell(account.quota.name, "granted", looked.plan.extra)

    def _close(self, account: Account) -> None:
        """Be done with a slice that has nothing left."""
        if account.slice is not None:
            self._tell(account.quota.name, "admitted", account.slice.units)
            account.slice = None

    def _give_back(self, account: Account, held: Slice, deadline: Deadline) -> None:
        """Give back what is left of a slice; what cannot be is lost until its time is over.

        The caller is the busy one.
        """
        returned = 0
        try:
            if held.left and self._returned(account, held, deadline):
                returned = held.left
        finally:
            name = account.quota.name
            self._tell(name, "admitted", held.units - held.left)
            self._tell(name, "returned", returned)
            self._tell(name, "lost", held.left - returned)
            with account.changed:
                held.units = held.left = 0

    def _returned(self, account: Account, held: Slice, deadline: Deadline) -> bool:
        worker = self._counting.worker
        counter = account.seen
        for _ in range(_RETURN_TRIES):
            # Later, nobody reckons with it any more.
            if counter is None or self._counting.clock() >= held.lease.until:
                return False
            lower = account.algorithm.refund(counter, held.debit, held.left, self._counting.clock())
            if lower is None:
                return False
            step = Step(lower, ended=(worker, held.lease))
            stepped = self._counting.counters.apply(account.key, step, deadline)
            counter = stepped.counter
            self._counting.saw(account, counter)
            if stepped.done:
                return True
            if counter is None or counter.leases.get(worker) != held.lease:
                return False
        return False

    def _tell(self, quota: str, fate: str, units: int) -> None:
        if units:
            self._leased(quota, fate, units)

    def _finish(self, account: Account, failure: StoreError | None) -> None:
        account.busy = False
        account.failure = failure
        account.round += 1
        account.changed.notify_all()


def _shared(failure: StoreError) -> StoreError:
    """Return what those are told who waited for a caller that the store failed."""
    if isinstance(failure, StoreOverloadedError):
        return StoreOverloadedError(failure.store)
    return StoreUnavailableError(failure.store)
