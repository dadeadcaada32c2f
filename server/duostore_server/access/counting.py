"""Debits counters in the store: plans a step, tries it, and plans anew by what it met."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from duostore_server.domain.algorithms import hopeful, nanoseconds
from duostore_server.domain.counters import Lease, Lower, Step
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreError,
    StoreOverloadedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.access.accounts import Account
    from duostore_server.domain.algorithms import Algorithm
    from duostore_server.domain.counters import Change, Counter, Debiting, HoldName
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import Counters

# One step does as a rule, and two where a window begins; more where many meet.
_TRIES: Final = 16
# Of what is left, a slice takes this part at most, so that slices shrink as it runs out.
_SLICE_SHARE: Final = 2
# So many times as long as it is admitted from, a slice may be given back.
_RETURNED_WITHIN: Final = 2
# After so many windows a counter is as if it had never been, but for what is reserved.
_WINDOWS_THAT_MATTER: Final = 3
# Denials are looked up so often, all the same.
_REMEMBERED_FOR: Final = 60_000_000_000
# What clocks of servers may differ by, with nothing said of it.
_CLOCKS_AGREE_WITHIN: Final = 1_000_000_000
# So long after its end, in ns, nobody adds to a hold any more: no clock is so far behind.
_NOBODY_RESERVES_FOR: Final = 5_000_000_000
# So much is never held.
_ANY_AMOUNT: Final = 10**30


def _untold(_quota: str, _lead: int) -> None:
    """Keep to oneself that a clock is behind."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What may be debited ahead: up to ``most`` units, admitted for up to ``span`` ns."""

    most: int
    span: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The next try: a change that debits the units asked for, and ``extra`` ones to lease."""

    algorithm: Algorithm
    change: Debiting
    extra: int
    now: int


@dataclass(frozen=True, slots=True)
class Looked:
    """What a debit came to: the counter after it or, if there was no ``plan``, with no room.

    ``fresh``: the counter was told by the store during the call. ``exact``: as it was just
    after the debit. ``lease`` is what was left in it, if anything was debited ahead.
    """

    counter: Counter | None
    fresh: bool
    plan: Plan | None = None
    lease: Lease | None = None
    exact: bool = True


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
        behind: Callable[[str, int], None] = _untold,
    ) -> None:
        """``worker`` is unique among all processes; ``clock`` returns ns since 1970.

        ``behind`` is told of a quota whose counter has come from a clock so many ns ahead.
        """
        self.counters = counters
        self.worker = worker
        self.clock = clock
        self.new_id = new_id
        self._behind = behind

    def rules_out(self, account: Account, units: int, now: int) -> bool:
        """Return whether units cannot fit, whatever became of the counter since it was seen.

        Never of what was seen a minute ago: an operator may have removed the counter.
        """
        if units > account.algorithm.limit:
            return True
        seen = account.seen
        if seen is None or not 0 <= now - account.seen_time < _REMEMBERED_FOR:
            return False
        release = account.quota.release_expired
        best = hopeful(seen, account.seen_time, kept=account.kept(), keep_expired=release)
        return account.algorithm.change(best, units, now) is None

    def retry_time(
        self, account: Account, counter: Counter | None, units: int, now: int
    ) -> int | None:
        """Return when it is worth to ask again for units that did not fit; None if it never is.

        That is when they fit by themselves, or when reservations expire or leases of others
        run out that would make room for them.
        """
        algorithm = account.algorithm
        moments = [algorithm.retry_time(counter, units, now)]
        if counter is not None and units <= algorithm.limit:
            for until in sorted({max(each.until, now) for each in counter.holds}):
                over = [each for each in counter.holds if each.until <= until]
                release = account.quota.release_expired
                after = algorithm.after_expiry(counter, over, release=release)
                moments.append(algorithm.retry_time(after, units, until))
            moments.append(self._lease_end(account, counter, units, now))
        return min((moment for moment in moments if moment is not None), default=None)

    def _lease_end(self, account: Account, counter: Counter, units: int, now: int) -> int | None:
        """Return when the first of others' leases runs out, if they have room for the units."""
        kept = account.kept()
        others = [each for each in counter.leases.values() if each.until > now and each not in kept]
        leased = hopeful(replace(counter, holds={}), now, kept=kept, keep_expired=False)
        without = replace(leased, holds=counter.holds)
        if not others or account.algorithm.change(without, units, now) is None:
            return None
        return min(lease.until for lease in others)

    def look(self, account: Account, deadline: Deadline) -> Counter | None:
        """Return the counter as it is now."""
        counter = self.counters.read((account.key,), deadline).get(account.key)
        self.saw(account, counter)
        return counter

    def saw(self, account: Account, counter: Counter | None) -> int:
        """Remember a counter as the store has just told it; return when that was."""
        now = self.clock()
        account.saw(counter, now)
        if counter is not None:
            lead = account.algorithm.lead(counter, now)
            if lead > _CLOCKS_AGREE_WITHIN:
                self._behind(account.quota.name, lead)
        return now

    def debit(
        self, account: Account, units: int, deadline: Deadline, ahead: Ahead | None = None
    ) -> Looked:
        """Debit units, and some ahead if that is allowed, by one step."""
        planning = Planning(self, account, deadline)
        while (plan := planning.next(units, ahead)) is not None:
            step = planning.step(plan.change)
            lease = None
            if plan.extra and ahead is not None:
                lease = Lease(
                    plan.algorithm.amount(plan.extra),
                    plan.now + _RETURNED_WITHIN * ahead.span,
                    self.new_id(),
                )
                step = replace(step, lease=(self.worker, lease))
            stepped = self.counters.apply(account.key, step, deadline)
            planning.met(stepped.counter)
            if stepped.done:
                return Looked(
                    stepped.counter, fresh=True, plan=plan, lease=lease, exact=stepped.exact
                )
        return Looked(planning.counter, fresh=planning.fresh)


class Planning:
    """The tries of one debit: what it knows of the counter, which each try may have changed.

    It counts by the limit that was in force when it began.
    """

    def __init__(self, counting: Counting, account: Account, deadline: Deadline) -> None:
        self._counting = counting
        self._account = account
        self._deadline = deadline
        self._tries = 0
        self.fresh = False
        self.algorithm = account.algorithm
        self.now = counting.clock()
        self.counter = account.seen

    def met(self, counter: Counter | None) -> None:
        """Take note of the counter as the store has just told it."""
        self.now = self._counting.saw(self._account, counter)
        self.counter = counter
        self.fresh = True

    def look(self) -> None:
        """Ask the store how the counter is."""
        self.met(self._counting.look(self._account, self._deadline))

    def next(self, units: int, ahead: Ahead | None = None) -> Plan | None:
        """Return what to try next to debit units; None if there is no room for them.

        That is so if the counter has none as it stands now or, whatever may have been given
        back since it was seen, can have none. Raises ``StoreOverloadedError`` if others
        were quicker again and again.
        """
        return self._next(partial(self._plan, ahead=ahead), units)

    def after_expiry(self) -> Counter | None:
        """Return the counter as if what expired had been seen to."""
        if self.counter is None:
            return None
        return self.algorithm.after_expiry(
            self.counter,
            self._expired(self.counter),
            release=self._account.quota.release_expired,
        )

    def see_to_expired(self) -> bool:
        """See to one of the reservations that have expired; return whether there was one.

        Not to more than a few of them in one call.
        """
        counter, release = self.counter, self._account.quota.release_expired
        self._tries += 1
        if counter is None or self._tries > _TRIES:
            return False
        hold = next(iter(self._expired(counter)), None)
        if hold is None:
            return False
        change = self.algorithm.expire(counter, hold, release=release)
        step = self.step(change, release=(hold, counter.holds[hold]), fits=True)
        stepped = self._counting.counters.apply(self._account.key, step, self._deadline)
        self.met(stepped.counter)
        return True

    def reserve(self, units: int) -> Plan | None:
        """Return what to try next, as ``next`` does, to hold units."""
        return self._next(self._reserve, units)

    def step(
        self,
        change: Change | None,
        *,
        hold: tuple[HoldName, int] | None = None,
        unhold: tuple[HoldName, int] | None = None,
        release: tuple[HoldName, int] | None = None,
        fits: bool = False,
    ) -> Step:
        """Return the step of a change, which clears away what no longer counts.

        It requires that no more is held than was seen, unless it ``fits`` anyway.
        """
        algorithm, counter = self.algorithm, self.counter
        held = algorithm.held(counter)
        if held is not None and counter is not None:
            held = max(held, counter.held)
        step = Step(
            change,
            hold=hold,
            unhold=unhold,
            release=release,
            held=_ANY_AMOUNT if fits and held is not None else held,
            until=self._until(),
        )
        if counter is None:
            return step
        drop: tuple[int, ...] = ()
        if change is not None and not isinstance(change, Lower):
            drop = algorithm.dropped(counter, change)
        # What was seen a while ago may have been followed by another of the same worker.
        leases = [
            name
            for name, lease in counter.leases.items()
            if name != self._counting.worker
            and self.fresh
            and (counter.epoch in drop or lease.until <= self.now)
        ]
        named = {each[0] for each in (hold, release) if each is not None}
        holds = [
            each
            for each, amount in counter.holds.items()
            if each not in named and self._is_done_with(each, amount, drop)
        ]
        if unhold is not None and unhold[0] in holds:
            # Its window is over: nothing of it can be given back.
            step = replace(step, unhold=None)
        return replace(step, forget=(*leases, *holds), drop=drop)

    def _until(self) -> int:
        """Return until when the counter still says something, if nothing more happens."""
        holds = () if self.counter is None else self.counter.holds
        last = max((hold.until for hold in holds), default=self.now)
        quota = self._account.quota
        span = _WINDOWS_THAT_MATTER * nanoseconds(quota.window)
        return max(last, self.now + nanoseconds(quota.reservation_ttl)) + span

    def _is_done_with(self, hold: HoldName, amount: int, drop: tuple[int, ...]) -> bool:
        """Return whether a hold no longer counts, and may be forgotten."""
        if self.counter is None or hold.slot in drop or hold.slot not in self.counter.levels:
            return True
        # What was seen empty a while ago may have been filled by another reservation.
        over = self.fresh and hold.until + _NOBODY_RESERVES_FOR <= self.now
        return over and (not amount or not self._is_seen_to(hold))

    def _is_seen_to(self, hold: HoldName) -> bool:
        """Return whether something has to be done for a hold when it expires."""
        counter = self.counter
        if counter is None or hold.slot not in counter.levels:
            return False
        return self._account.quota.release_expired or self.algorithm.held(counter) is not None

    def _next(self, plan_of: Callable[[int], Plan | None], units: int) -> Plan | None:
        self._tries += 1
        if self._tries > _TRIES:
            raise StoreOverloadedError(Store.DYNAMODB)
        if not self._account.quota.release_expired:
            # Of a bucket: to be debited as of when they expired, before anything else is.
            while self.counter is not None and self._expired(self.counter):
                if not self.see_to_expired():
                    break
        while (plan := plan_of(units)) is None:
            if self.fresh:
                if not self.see_to_expired():
                    return None
            elif not self._counting.rules_out(self._account, units, self.now):
                self.look()
            elif not self.algorithm.room(self.counter, self.now) or not self._looked():
                return None
        return plan

    def _looked(self) -> bool:
        """Look up what is left, to tell it to who is denied; return whether that was possible."""
        try:
            self.look()
        except (StoreError, DeadlineExceededError):
            return False
        return True

    def _plan(self, units: int, ahead: Ahead | None = None) -> Plan | None:
        algorithm = self.algorithm
        now = self.now = self._counting.clock()
        if ahead is not None and self.counter is not None:
            left = algorithm.room(self.counter, now) - units
            extra = min(ahead.most, left // _SLICE_SHARE)
            if extra > 0:
                change = algorithm.change(self.counter, units + extra, now, ahead=ahead.span)
                if change is not None:
                    return Plan(algorithm, change, extra, now)
        change = algorithm.change(self.counter, units, now)
        return None if change is None else Plan(algorithm, change, 0, now)

    def _reserve(self, units: int) -> Plan | None:
        now = self.now = self._counting.clock()
        change = self.algorithm.reserve(self.counter, units, now)
        return None if change is None else Plan(self.algorithm, change, 0, now)

    def _expired(self, counter: Counter) -> list[HoldName]:
        """Return the holds that have expired, and for which something has to be done."""
        return [
            hold
            for hold in sorted(counter.holds)
            if hold.until <= self.now and counter.holds[hold] and self._is_seen_to(hold)
        ]
