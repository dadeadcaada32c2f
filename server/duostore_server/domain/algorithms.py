"""How quotas are counted: from a counter, as it was last seen, to the step that debits it.

Nothing here asks a store. What was seen may be old: levels may have been raised since, and
then the step's condition fails; they are lowered only by what ``hopeful`` takes off.
Times are nanoseconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.counters import BUCKET_SLOT, Begin, Counter, Lower, Raise
from duostore_server.domain.quotas import AlgorithmName

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from duostore_server.domain.counters import Change, Debiting, Grant, HoldName, Lease
    from duostore_server.domain.quotas import Quota

_MICROSECOND: Final = timedelta(microseconds=1)
# No level is as high.
_ANY_LEVEL: Final = 10**30
# What was sent in time may be done so much later, in ns: settlements, and returns of leases.
# What is held against a subject by mistake is so until its window is over.
_LATE: Final = 5_000_000_000
_RETURNED_LATE: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Debit:
    """What was added to a level, of which some may be given back.

    ``end`` is that level afterwards, ``refunded`` what it had been lowered by until then.
    """

    slot: int
    amount: int
    end: int
    refunded: int


class Algorithm(Protocol):
    """One way to count up to a limit."""

    @property
    def limit(self) -> int:
        """The limit in force."""
        ...

    def amount(self, units: int) -> int:
        """Return the amount that units are."""
        ...

    def change(
        self, counter: Counter | None, units: int, now: int, *, ahead: int = 0
    ) -> Debiting | None:
        """Return how to debit units; None if the counter has no room for them.

        ``ahead`` is how long after ``now`` they may still be admitted, if they are to be
        leased.
        """
        ...

    def done(self, units: int, change: Debiting, after: Counter) -> Debit:
        """Return what a change has debited, for so many units, that left the counter so."""
        ...

    def refund(self, counter: Counter, debit: Debit, units: int, now: int) -> Lower | None:
        """Return how to give back the last units of a debit; None if time has done so."""
        ...

    def reserve(self, counter: Counter | None, units: int, now: int) -> Debiting | None:
        """Return how to make sure that units can be held; None if there is no room for them."""
        ...

    def settle(self, counter: Counter | None, grant: Grant, used: int, now: int) -> Change | None:
        """Return how to debit what was used of a hold; None if no level changes.

        ``used`` are at most the units that are held, and those ``covers`` found room for.
        """
        ...

    def covers(self, counter: Counter | None, grant: Grant, used: int, now: int) -> bool:
        """Return whether there is room for what was used, in place of what is held."""
        ...

    def expire(self, counter: Counter, hold: HoldName, *, release: bool) -> Change | None:
        """Return how to debit what a hold that expired counts for; None if no level changes.

        With ``release`` that is nothing.
        """
        ...

    def after_expiry(
        self, counter: Counter, holds: Iterable[HoldName], *, release: bool
    ) -> Counter:
        """Return the counter as if these holds had expired, and were gone."""
        ...

    def held(self, counter: Counter | None) -> int | None:
        """Return what is held beside the levels; None if levels hold it."""
        ...

    def is_over(self, slot: int, now: int) -> bool:
        """Return whether nothing may be admitted any more that was debited in a slot."""
        ...

    def dropped(self, counter: Counter, change: Change) -> tuple[int, ...]:
        """Return the slots of the counter that no longer count after a change."""
        ...

    def lead(self, counter: Counter, now: int) -> int:
        """Return by how much whoever changed the counter is ahead of this clock, at least."""
        ...

    def room(self, counter: Counter | None, now: int) -> int:
        """Return how many units could be debited, at least 0."""
        ...

    def reset_time(self, counter: Counter | None, now: int) -> int:
        """Return when all that is used is available again."""
        ...

    def retry_time(self, counter: Counter | None, units: int, now: int) -> int | None:
        """Return when units fit if nothing is debited, and nothing expires, until then.

        None if they never do.
        """
        ...


class Windows:
    """Counts in slots of a length, each of them together with a number of those before it.

    A slot is named by the moment at which it begins, so that the epoch of a counter still
    tells when it was, should the quota be configured to another length.

    With none before, a fixed window: the limit holds for each slot. With ``past`` of them, a
    sliding window of so many slots: a window of that length, wherever it begins, touches at
    most one slot more, and all of these together stay within the limit.
    """

    def __init__(self, limit: int, *, length: int, past: int) -> None:
        self._limit = limit
        self._length = length
        self._past = past

    @property
    def limit(self) -> int:
        return self._limit

    def change(
        self,
        counter: Counter | None,
        units: int,
        now: int,
        *,
        ahead: int = 0,  # noqa: ARG002 - is_over bounds how long they may be admitted
    ) -> Debiting | None:
        slot = self._slot(counter, now)
        most = self._limit - self._before(counter, slot) - units
        if counter is None:
            return Begin(slot, units) if most >= 0 else None
        epoch = counter.epoch
        if slot == epoch:
            return Raise(slot, units, most) if counter.level(slot) <= most else None
        if most < 0:
            return None
        # As far as there is room, the epoch's level may have been raised since.
        counted = epoch >= self._first(slot)
        return Begin(slot, units, epoch, counter.level(epoch) + most if counted else _ANY_LEVEL)

    def amount(self, units: int) -> int:
        return units

    def done(self, units: int, change: Debiting, after: Counter) -> Debit:
        return Debit(change.slot, units, after.level(change.slot), after.refunded)

    def refund(self, counter: Counter, debit: Debit, units: int, now: int) -> Lower | None:
        return self._back(counter, debit.slot, units, now)

    def reserve(self, counter: Counter | None, units: int, now: int) -> Debiting | None:
        return self.change(counter, units, now)

    def settle(self, counter: Counter | None, grant: Grant, used: int, now: int) -> Change | None:
        if used > grant.cost:
            return self.change(counter, used - grant.cost, now)
        if counter is None:
            return None
        return self._back(counter, grant.slot, grant.cost - used, now)

    def covers(self, counter: Counter | None, grant: Grant, used: int, now: int) -> bool:
        return self.change(counter, used - grant.cost, now) is not None

    def expire(self, counter: Counter, hold: HoldName, *, release: bool) -> Change | None:
        return Lower(hold.slot, counter.holds[hold]) if release else None

    def after_expiry(
        self, counter: Counter, holds: Iterable[HoldName], *, release: bool
    ) -> Counter:
        levels, left = dict(counter.levels), dict(counter.holds)
        for hold in holds:
            amount = left.pop(hold)
            if release and hold.slot in levels:
                levels[hold.slot] -= amount
        return replace(counter, levels=levels, holds=left)

    def held(self, counter: Counter | None) -> int | None:  # noqa: ARG002 - whatever it is
        return None

    def is_over(self, slot: int, now: int) -> bool:
        return now >= slot + self._length

    def dropped(self, counter: Counter, change: Change) -> tuple[int, ...]:
        if not isinstance(change, Begin):
            return ()
        return tuple(slot for slot in counter.levels if slot < self._first(change.slot))

    def lead(self, counter: Counter, now: int) -> int:
        return max(0, counter.epoch - now)

    def room(self, counter: Counter | None, now: int) -> int:
        slot = self._slot(counter, now)
        level = 0 if counter is None else counter.level(slot)
        return max(0, self._limit - self._before(counter, slot) - level)

    def reset_time(self, counter: Counter | None, now: int) -> int:
        first = self._first(self._slot(counter, now))
        levels = {} if counter is None else counter.levels
        last = max((each for each in levels if each >= first and levels[each]), default=first)
        return last + (self._past + 1) * self._length

    def retry_time(self, counter: Counter | None, units: int, now: int) -> int | None:
        if units > self._limit:
            return None
        if self.room(counter, now) >= units:
            return now
        slot = self._slot(counter, now)
        first = self._first(slot)
        levels = {} if counter is None else counter.levels
        used = sum(level for each, level in levels.items() if first <= each <= slot)
        after = slot + self._length
        for each in sorted(levels):
            if used + units <= self._limit:
                break
            if first <= each <= slot:
                used, after = used - levels[each], each + (self._past + 1) * self._length
        return after

    def _slot(self, counter: Counter | None, now: int) -> int:
        slot = now - now % self._length
        return slot if counter is None else max(slot, counter.epoch)

    def _back(self, counter: Counter, slot: int, units: int, now: int) -> Lower | None:
        """Return how to give units of a slot back, unless it no longer counts."""
        counted = slot in counter.levels and slot >= self._first(self._slot(counter, now))
        return Lower(slot, units) if units and counted else None

    def _first(self, slot: int) -> int:
        """Return the first of the slots that count together with this one."""
        return slot - self._past * self._length

    def _before(self, counter: Counter | None, slot: int) -> int:
        """Return what was used in the slots before this one that count together with it."""
        if counter is None:
            return 0
        first = self._first(slot)
        return sum(level for each, level in counter.levels.items() if first <= each < slot)


class TokenBucket:
    """A bucket of ``limit`` tokens that fills within a window, by the GCRA.

    The level is when the bucket will be full. Each token is worth a span of time, which
    goes to the end of the level; a debit is allowed while that is not more than a whole
    bucket ahead of now. No span begins before its token is admitted and no two overlap, so
    that in any interval at most ``limit`` tokens are admitted, and those that it fills.

    What reservations hold is kept beside the level, and does not fill again: level and holds
    together are not more than a whole bucket. It gets its span when it is settled.
    """

    def __init__(self, limit: int, *, window: int, ahead: int = 0) -> None:
        """``ahead`` is the longest time that a lease may be admitted from."""
        self._limit = limit
        self._ahead = ahead
        # Rounded up: a bucket that fills the slower by less than a nanosecond a token. With a
        # limit of 0 a token is larger than the bucket.
        self._token = -(-window // limit) if limit else window + 1
        self._burst = max(limit * self._token, window)

    @property
    def limit(self) -> int:
        return self._limit

    def amount(self, units: int) -> int:
        return units * self._token

    def change(
        self, counter: Counter | None, units: int, now: int, *, ahead: int = 0
    ) -> Debiting | None:
        amount = self.amount(units)
        most = now + self._burst - self.held(counter) - amount
        return self._raise(counter, amount, most, now + ahead)

    def done(self, units: int, change: Debiting, after: Counter) -> Debit:  # noqa: ARG002 - there is one level
        return Debit(BUCKET_SLOT, self.amount(units), self._level(after), after.refunded)

    def refund(self, counter: Counter, debit: Debit, units: int, now: int) -> Lower | None:
        # What was given back since moved the debit's span to an earlier time, at most by that.
        end = debit.end - (counter.refunded - debit.refunded)
        # The spans of all later debits move as well. What was admitted of them was so by now;
        # what is leased may be later, and has its span from then on. Of what is debited while
        # this is under way neither is sure: there must not be any.
        amount = min(units * self._token, debit.amount, end - now - self._ahead)
        if amount <= 0:
            return None
        return Lower(BUCKET_SLOT, amount, counter.refunded, most=self._level(counter))

    def reserve(self, counter: Counter | None, units: int, now: int) -> Debiting | None:
        most = now + self._burst - self.held(counter) - self.amount(units)
        return self._raise(counter, 0, most, now)

    def settle(self, counter: Counter | None, grant: Grant, used: int, now: int) -> Change | None:
        if not used:
            return None
        if used > grant.cost:
            return self._raise(counter, *self._beyond(counter, grant, used, now), now)
        # What is held was found to fit.
        return self._raise(counter, -(-grant.amount * used // grant.cost), _ANY_LEVEL, now)

    def covers(self, counter: Counter | None, grant: Grant, used: int, now: int) -> bool:
        amount, most = self._beyond(counter, grant, used, now)
        return self._raise(counter, amount, most, now) is not None

    def expire(self, counter: Counter, hold: HoldName, *, release: bool) -> Change | None:
        if release:
            return None
        return self._raise(counter, counter.holds[hold], _ANY_LEVEL, hold.until)

    def after_expiry(
        self, counter: Counter, holds: Iterable[HoldName], *, release: bool
    ) -> Counter:
        level, left = self._level(counter), dict(counter.holds)
        for hold in sorted(holds, key=lambda each: each.until):
            amount = left.pop(hold)
            if hold.slot == BUCKET_SLOT and not release:
                level = max(level, hold.until) + amount
        return replace(counter, epoch=BUCKET_SLOT, levels={BUCKET_SLOT: level}, holds=left)

    def held(self, counter: Counter | None) -> int:
        if counter is None:
            return 0
        return sum(amount for hold, amount in counter.holds.items() if hold.slot == BUCKET_SLOT)

    def is_over(self, slot: int, now: int) -> bool:  # noqa: ARG002 - ahead bounds it
        return False

    def dropped(self, counter: Counter, change: Change) -> tuple[int, ...]:  # noqa: ARG002 - whatever it is
        return tuple(slot for slot in counter.levels if slot != BUCKET_SLOT)

    def lead(self, counter: Counter, now: int) -> int:
        return max(0, self._level(counter) - self._burst - now)

    def room(self, counter: Counter | None, now: int) -> int:
        used = self.reset_time(counter, now) - now
        return max(0, (self._burst - used) // self._token)

    def reset_time(self, counter: Counter | None, now: int) -> int:
        return max(now, self._level(counter)) + self.held(counter)

    def retry_time(self, counter: Counter | None, units: int, now: int) -> int | None:
        used = self.held(counter) + self.amount(units)
        if used > self._burst:
            return None
        return max(now, self._level(counter) + used - self._burst)

    def _beyond(
        self, counter: Counter | None, grant: Grant, used: int, now: int
    ) -> tuple[int, int]:
        """Return the amount of more than was held, and the most that the level may be for it."""
        amount = grant.amount + self.amount(used - grant.cost)
        held = self.held(counter) - grant.amount
        return amount, now + self._burst - held - amount

    def _raise(
        self, counter: Counter | None, amount: int, most: int, floor: int
    ) -> Debiting | None:
        """Return how to add a span to the level, or to the floor if that is higher."""
        epoch = BUCKET_SLOT if counter is None else counter.epoch
        level = max(floor, self._level(counter))
        if level > most:
            return None
        if level == floor or epoch != BUCKET_SLOT:
            return Begin(BUCKET_SLOT, floor + amount, epoch, floor)
        return Raise(BUCKET_SLOT, amount, most, floor)

    def _level(self, counter: Counter | None) -> int:
        """Return the level; 0 also if it was not a bucket before."""
        return 0 if counter is None or counter.epoch != BUCKET_SLOT else counter.level(BUCKET_SLOT)


def algorithm_of(quota: Quota, limit: int) -> Algorithm:
    """Return how a quota is counted for a subject with this limit."""
    window = nanoseconds(quota.window)
    match quota.algorithm:
        case AlgorithmName.FIXED_WINDOW:
            return Windows(limit, length=window, past=0)
        case AlgorithmName.SLIDING_WINDOW:
            # Rounded up: a window that is longer by less than a nanosecond for each part.
            return Windows(limit, length=-(-window // quota.sub_windows), past=quota.sub_windows)
        case AlgorithmName.TOKEN_BUCKET:
            ahead = 0 if quota.lease == 0 else nanoseconds(quota.lease_time)
            return TokenBucket(limit, window=window, ahead=ahead)


def hopeful(counter: Counter, seen: int, *, kept: Collection[Lease], keep_expired: bool) -> Counter:
    """Return the counter as if all were given back that may be: it never has less room.

    That is what reservations hold, expired ones of windows too if ``keep_expired``, and what
    was leased, but for the leases of which the asking process knows that they were not given
    back (``kept``). ``seen`` is when the counter was seen: what was not over by then may have
    been given back since.
    """
    levels = dict(counter.levels)
    for lease in counter.leases.values():
        if lease.until + _RETURNED_LATE > seen and lease not in kept:
            levels[counter.epoch] = levels.get(counter.epoch, 0) - lease.amount
    for hold, amount in counter.holds.items():
        may_come = keep_expired or hold.until + _LATE > seen
        if hold.slot != BUCKET_SLOT and hold.slot in levels and may_come:
            levels[hold.slot] -= amount
    return Counter(counter.epoch, levels)


def nanoseconds(span: timedelta) -> int:
    """Return a span in nanoseconds."""
    return span // _MICROSECOND * 1000
