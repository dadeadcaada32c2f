"""Debits counters in the store: plans a step, tries it, and plans anew by what it met."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from duostore_server.domain.algorithms import hopeful
from duostore_server.domain.counters import Lease, Lower, Step
from duostore_server.domain.errors import Store, StoreOverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.access.accounts import Account
    from duostore_server.domain.counters import Change, Counter, HoldName
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import Counters

# One step does as a rule, and two where a window begins; more where many meet.
_TRIES: Final = 16
# Of what is left, a slice takes this part at most, so that slices shrink as it runs out.
_SLICE_SHARE: Final = 2
# So many times as long as it is admitted from, a slice may be given back.
_RETURNED_WITHIN: Final = 2


@dataclass(frozen=True, slots=True)
class Ahead:
    """What may be debited ahead: up to ``most`` units, admitted for up to ``span`` ns."""

    most: int
    span: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The next try: a change that debits the units asked for, and ``extra`` ones to lease."""

    change: Change
    extra: int
    now: int


@dataclass(frozen=True, slots=True)
class Looked:
    """What a debit came to: the counter after it or, if there was no ``plan``, with no room.

    ``fresh``: the counter was told by the store during the call. ``lease`` is what was left
    in it, if anything was debited ahead.
    """

    counter: Counter | None
    fresh: bool
    plan: Plan | None = None
    lease: Lease | None = None


class Counting:
    """Looks at counters and debits them, for one process: a worker.

    An account remembers the counter as it was last seen. What that rules out, whatever may
    be given back, is denied with no call; what it merely does not allow is looked up before.
    """

    def __init__(
        self,
        counters: Counters,
        *,
        worker: str,
        clock: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        """``worker`` is unique among all processes; ``clock`` returns ns since 1970."""
        self.counters = counters
        self.worker = worker
        self.clock = clock
        self.new_id = new_id

    def rules_out(self, account: Account, units: int, now: int) -> bool:
        """Return whether units cannot fit, whatever became of the counter since it was seen."""
        if account.seen is None:
            return False
        best = hopeful(account.seen, now, worker=self.worker, keep_expired=account.quota.releases)
        return account.algorithm.change(best, units, now) is None

    def look(self, account: Account, deadline: Deadline) -> Counter | None:
        """Return the counter as it is now."""
        counter = self.counters.read((account.key,), deadline).get(account.key)
        account.seen = counter
        return counter

    def debit(
        self, account: Account, units: int, deadline: Deadline, ahead: Ahead | None = None
    ) -> Looked:
        """Debit units, and some ahead if that is allowed, by one step."""
        planning = Planning(self, account, deadline)
        while (plan := planning.next(units, ahead)) is not None:
            step = planning.step(plan.change)
            lease = None
            if plan.extra and ahead is not None:
                lease = self._lease(account, planning.counter, plan, units, ahead)
                step = replace(step, lease=(self.worker, lease))
            stepped = self.counters.apply(account.key, step, deadline)
            planning.met(stepped.counter)
            if stepped.done:
                return Looked(stepped.counter, fresh=True, plan=plan, lease=lease)
        return Looked(planning.counter, fresh=planning.fresh)

    def _lease(
        self, account: Account, counter: Counter | None, plan: Plan, units: int, ahead: Ahead
    ) -> Lease:
        amount = account.algorithm.certain(plan.change, counter)[1].amount
        share = -(-amount * plan.extra // (units + plan.extra))
        return Lease(share, plan.now + _RETURNED_WITHIN * ahead.span, self.new_id())


class Planning:
    """The tries of one debit: what it knows of the counter, which each try may have changed."""

    def __init__(self, counting: Counting, account: Account, deadline: Deadline) -> None:
        self._counting = counting
        self._account = account
        self._deadline = deadline
        self._tries = 0
        self.fresh = False
        self.now = counting.clock()
        self.counter = account.seen

    def met(self, counter: Counter | None) -> None:
        """Take note of the counter as the store has just told it."""
        self.counter = self._account.seen = counter
        self.fresh = True

    def look(self) -> None:
        """Ask the store how the counter is."""
        self.met(self._counting.look(self._account, self._deadline))

    def next(self, units: int, ahead: Ahead | None = None) -> Plan | None:
        """Return what to try next; None if there is no room for the units.

        That is so if the counter has none as it stands now or, whatever may have been given
        back since it was seen, can have none. Raises ``StoreOverloadedError`` if others
        were quicker again and again.
        """
        self._tries += 1
        if self._tries > _TRIES:
            raise StoreOverloadedError(Store.DYNAMODB)
        while (plan := self._plan(units, ahead)) is None:
            if self.fresh:
                if not self._release():
                    return None
            elif self._counting.rules_out(self._account, units, self.now):
                return None
            else:
                self.look()
        return plan

    def without_expired(self) -> Counter | None:
        """Return the counter as if what expired reservations held had been given back."""
        counter = self.counter
        if counter is None:
            return None
        levels = dict(counter.levels)
        for hold, amount in self._expired(counter):
            levels[hold.slot] -= amount
        return replace(counter, levels=levels)

    def step(
        self,
        change: Change | Lower | None,
        *,
        hold: tuple[HoldName, int] | None = None,
        unhold: tuple[HoldName, int] | None = None,
    ) -> Step:
        """Return the step of a change, which clears away what no longer counts."""
        counter = self.counter
        if counter is None:
            return Step(change, hold=hold)
        drop: tuple[int, ...] = ()
        begins = False
        if change is not None and not isinstance(change, Lower):
            drop = self._account.algorithm.dropped(counter, change)
            begins = change.slot != counter.epoch
        leases = [
            name
            for name, lease in counter.leases.items()
            if name != self._counting.worker and (begins or lease.until <= self.now)
        ]
        holds = [
            each
            for each in counter.holds
            if each.slot in drop
            or each.slot not in counter.levels
            or (each.until <= self.now and not self._account.quota.releases)
        ]
        if unhold is not None and unhold[0] in holds:
            # Its window is over: what it holds can no longer be given back.
            unhold = None
        return Step(change, hold=hold, unhold=unhold, forget=(*leases, *holds), drop=drop)

    def _plan(self, units: int, ahead: Ahead | None) -> Plan | None:
        algorithm = self._account.algorithm
        now = self.now = self._counting.clock()
        if ahead is not None and self.counter is not None:
            left = algorithm.room(self.counter, now) - units
            extra = min(ahead.most, left // _SLICE_SHARE)
            if extra > 0:
                change = algorithm.change(self.counter, units + extra, now, ahead=ahead.span)
                if change is not None:
                    return Plan(change, extra, now)
        change = algorithm.change(self.counter, units, now)
        return None if change is None else Plan(change, 0, now)

    def _release(self) -> bool:
        """Give back what one of the expired reservations held; return whether there was one."""
        if self.counter is None:
            return False
        for hold, amount in self._expired(self.counter):
            step = Step(Lower(hold.slot, amount), release=(hold, amount))
            apply = self._counting.counters.apply
            self.met(apply(self._account.key, step, self._deadline).counter)
            return True
        return False

    def _expired(self, counter: Counter) -> list[tuple[HoldName, int]]:
        """Return what is held by reservations that have expired, if it is to be given back."""
        if not self._account.quota.releases:
            return []
        return [
            (hold, amount)
            for hold, amount in sorted(counter.holds.items())
            if hold.until <= self.now and hold.slot in counter.levels
        ]
