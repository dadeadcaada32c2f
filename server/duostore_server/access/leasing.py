"""Admits from slices: units that a process has debited ahead, and hands out from memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from duostore_server.access.accounts import Slice
from duostore_server.access.counting import Ahead
from duostore_server.domain.algorithms import nanoseconds
from duostore_server.domain.counters import Step
from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuostoreError,
    StoreError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
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
# So many times a subject is asked for soon after the last time, before it gets a slice.
_QUICK_ONES: Final = 4
# What is left of a slice after this part of its time goes back.
_RETURNED_AFTER: Final = 0.5
_RETURN_TRIES: Final = 4
_LONGEST_WAIT_SECONDS: Final = 60.0
# In ns.
_LOOKED_UP_EVERY: Final = 100_000_000


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
            if account.slice is not None:
                account.slice.shut()
            ahead = Ahead(self._wanted(account, most), nanoseconds(account.quota.lease_time))
        return self._fill(account, units, ahead, deadline)

    def return_all(self, accounts: Iterable[Account], deadline: Deadline) -> None:
        """Give back every slice, for as long as the deadline allows; the rest is lost."""
        for account in accounts:
            self.return_now(account, deadline)

    def return_now(self, account: Account, deadline: Deadline) -> None:
        """Give back a slice, if that is possible."""
        with suppress(StoreError, DeadlineExceededError):
            self._return(account, deadline, min_age=0.0)

    def return_unused(self, accounts: Iterable[Account], soon: Callable[[], Deadline]) -> None:
        """Give back what is left of each slice after half of its time, ``soon``.

        Raises what the last of those met that could not be given back: to be tried again.
        """
        failure: DuostoreError | None = None
        for account in accounts:
            try:
                self._return(account, soon(), min_age=_RETURNED_AFTER)
            except DuostoreError as error:
                failure = error
        if failure is not None:
            raise failure

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
            held.shut()
        try:
            self._give_back(account, deadline)
        finally:
            with account.changed:
                self._finish(account, None)

    def _taken(self, account: Account, units: int) -> Taken | None:
        """Return what memory has to say to a call; None if the store has to be asked."""
        left, now = self._left(account), self._counting.clock()
        if account.slice is not None and left >= units:
            return self._admitted(account, account.slice, units)
        if account.busy:
            return None
        if account.slice is not None and not left:
            # It may be given back by now, or any time.
            account.slice.shut()
        if not self._counting.rules_out(account, units - left, now):
            return None
        # What is left, but too little, is looked up for those who are denied: now and then.
        seen_long_ago = now - account.seen_time > _LOOKED_UP_EVERY
        if seen_long_ago and account.algorithm.room(account.seen, now):
            return None
        return Taken(allowed=False, left=left, counter=account.seen)

    def _fill(self, account: Account, units: int, ahead: Ahead, deadline: Deadline) -> Taken:
        """Debit units, and the next slice; the caller is the busy one.

        What the last slice has left, which is too little or too old, goes back before.
        """
        looked: Looked | None = None
        failure: StoreError | None = None
        try:
            self._give_back_or_not(account, deadline)
            looked = self._counting.debit(account, units, deadline, ahead)
        except StoreError as error:
            # A caller in a hurry says nothing of the store.
            failure = None if deadline.is_over() else error
            raise
        finally:
            with account.changed:
                if looked is not None:
                    self._open(account, looked)
                else:
                    # A slice of the next one's would be lost as this one may be.
                    account.wanted = account.quick = 0
                self._finish(account, failure)
        if looked.plan is None:
            return Taken(allowed=False, left=0, counter=looked.counter, fresh=looked.fresh)
        return Taken(allowed=True, left=looked.plan.extra, counter=looked.counter, fresh=True)

    def _left(self, account: Account) -> int:
        """Return how many units of the slice may be admitted now."""
        held = account.slice
        if held is None or self._monotonic() >= held.ends:
            return 0
        over = held.algorithm.is_over(held.debit.slot, self._counting.clock())
        return 0 if over else held.left

    def _admitted(self, account: Account, held: Slice, units: int) -> Taken:
        held.left -= units
        if not held.left:
            self._tell(account, "admitted", held.units)
            account.slice, account.spent = None, held.lease
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
        """Return how many units to debit ahead: none for the first few calls of a subject."""
        now = self._monotonic()
        span = account.quota.lease_time.total_seconds()
        lasted, account.filled = now - account.filled, now
        if lasted < span * _USED_UP_SOON:
            account.quick += 1
            if account.quick > _QUICK_ONES:
                account.wanted = max(1, 2 * account.wanted)
        elif lasted > span:
            account.quick = 0
            account.wanted //= _SMALLER
        account.wanted = min(account.wanted, most)
        return min(account.wanted + account.waiting, most)

    def _open(self, account: Account, looked: Looked) -> None:
        """Hold what was debited ahead."""
        plan, counter = looked.plan, looked.counter
        if plan is None or looked.lease is None or counter is None:
            return
        if account.slice is not None:
            # It could not be given back, and its lease has been replaced.
            self._tell(account, "admitted", account.slice.units - account.slice.left)
            self._tell(account, "lost", account.slice.left)
        debit = plan.algorithm.done(plan.extra, plan.change, counter)
        account.slice = Slice(
            units=plan.extra,
            left=plan.extra,
            algorithm=plan.algorithm,
            # Where its span is cannot be told from a counter that others have changed since.
            debit=debit if looked.exact else replace(debit, end=0),
            lease=looked.lease,
            ends=account.filled + account.quota.lease_time.total_seconds(),
            reset_time=plan.algorithm.reset_time(counter, plan.now),
        )
        self._tell(account, "granted", plan.extra)

    def _give_back_or_not(self, account: Account, deadline: Deadline) -> None:
        """Give back what is left of the slice, unless the store refuses that at once.

        Raises what took time, which is not to be spent twice.
        """
        try:
            self._give_back(account, deadline)
        except (StoreTimeoutError, WriteOutcomeUnknownError):
            raise
        except StoreError:
            return

    def _give_back(self, account: Account, deadline: Deadline) -> None:
        """Give back what is left of the slice, which is shut; the caller is the busy one.

        Raises a ``StoreError`` if it may be tried again.
        """
        held = account.slice
        if held is None:
            return
        returned = self._returned(account, held, deadline)
        account.slice = None
        self._tell(account, "admitted", held.units - held.left)
        self._tell(account, "returned" if returned else "lost", held.left)

    def _returned(self, account: Account, held: Slice, deadline: Deadline) -> bool:
        worker = self._counting.worker
        counter = account.seen
        for _ in range(_RETURN_TRIES):
            now = self._counting.clock()
            # Later, nobody reckons with it any more.
            if counter is None or now >= held.lease.until:
                return False
            lower = held.algorithm.refund(counter, held.debit, held.left, now)
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

    def _tell(self, account: Account, fate: str, units: int) -> None:
        if units:
            self._leased(account.quota.name, fate, units)

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
