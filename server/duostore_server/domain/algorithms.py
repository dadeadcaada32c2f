"""How quotas are counted: from a counter, as it was last seen, to the step that debits it.

Nothing here asks a store. What was seen may be old: levels may have been raised since, and
then the step's condition fails; they are lowered only by what ``hopeful`` takes off.
Times are nanoseconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.counters import Begin, Counter, Grant, Lower, Raise
from duostore_server.domain.quotas import AlgorithmName

if TYPE_CHECKING:
    from duostore_server.domain.counters import Change
    from duostore_server.domain.quotas import Quota

_MICROSECOND: Final = timedelta(microseconds=1)
# No level is as high.
_ANY_LEVEL: Final = 10**30
# The slot of a token bucket. Windows are in none so early.
_BUCKET: Final = 0


@dataclass(frozen=True, slots=True)
class Debit:
    """What was added to a level: ``end`` is that level afterwards, or less.

    ``refunded`` is what had been given back of the counter by then.
    """

    slot: int
    amount: int
    end: int
    refunded: int

    @classmethod
    def of(cls, grant: Grant) -> Debit:
        """Return what a grant debited."""
        return cls(grant.slot, grant.amount, grant.end, grant.refunded)


class Algorithm(Protocol):
    """One way to count up to a limit."""

    @property
    def limit(self) -> int:
        """The limit in force."""
        ...

    def change(
        self, counter: Counter | None, units: int, now: int, *, ahead: int = 0
    ) -> Change | None:
        """Return how to debit units; None if the counter has no room for them.

        ``ahead`` is how long after ``now`` they may still be admitted, if they are to be
        leased.
        """
        ...

    def certain(self, change: Change, counter: Counter | None) -> tuple[Change, Debit]:
        """Return the change with a condition that makes sure of what it debits, and that."""
        ...

    def done(self, change: Change, after: Counter) -> Debit:
        """Return what a change has debited that left the counter so."""
        ...

    def refund(self, counter: Counter, debit: Debit, units: int, now: int) -> Lower | None:
        """Return how to give back the last units of a debit; None if time has done so."""
        ...

    def is_over(self, slot: int, now: int) -> bool:
        """Return whether nothing may be admitted any more that was debited in a slot."""
        ...

    def dropped(self, counter: Counter, change: Change) -> tuple[int, ...]:
        """Return the slots of the counter that no longer count after a change."""
        ...

    def room(self, counter: Counter | None, now: int) -> int:
        """Return how many units could be debited, at least 0."""
        ...

    def reset_time(self, counter: Counter | None, now: int) -> int:
        """Return when all that is used is available again."""
        ...

    def retry_time(self, counter: Counter | None, units: int, now: int) -> int | None:
        """Return when units fit if nothing is debited until then; None if they never do."""
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
    ) -> Change | None:
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

    def certain(self, change: Change, counter: Counter | None) -> tuple[Change, Debit]:  # noqa: ARG002 - what a slot was given, it can give back
        amount = change.level if isinstance(change, Begin) else change.amount
        return change, Debit(change.slot, amount, 0, 0)

    def done(self, change: Change, after: Counter) -> Debit:  # noqa: ARG002 - as certain
        return self.certain(change, None)[1]

    def refund(self, counter: Counter, debit: Debit, units: int, now: int) -> Lower | None:
        if not units or debit.slot not in counter.levels:
            return None
        counted = debit.slot >= self._first(self._slot(counter, now))
        return Lower(debit.slot, units) if counted else None

    def is_over(self, slot: int, now: int) -> bool:
        return now >= slot + self._length

    def dropped(self, counter: Counter, change: Change) -> tuple[int, ...]:
        if not isinstance(change, Begin):
            return ()
        return tuple(slot for slot in counter.levels if slot < self._first(change.slot))

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
        slot = self._slot(counter, now) + self._length
        while self._limit - self._before(counter, slot) < units:
            slot += self._length
        return slot

    def _slot(self, counter: Counter | None, now: int) -> int:
        slot = now - now % self._length
        return slot if counter is None else max(slot, counter.epoch)

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
    """

    def __init__(self, limit: int, *, window: int, ahead: int = 0) -> None:
        """``ahead`` is the longest time that a lease may be admitted from."""
        self._limit = limit
        self._ahead = ahead
        # Rounded up: a bucket that fills the slower by less than a nanosecond a token.
        self._token = -(-window // limit)
        self._burst = limit * self._token

    @property
    def limit(self) -> int:
        return self._limit

    def change(
        self, counter: Counter | None, units: int, now: int, *, ahead: int = 0
    ) -> Change | None:
        amount = units * self._token
        most = now + self._burst - amount
        floor = now + ahead
        epoch = _BUCKET if counter is None else counter.epoch
        level = max(floor, self._level(counter))
        if level > most:
            return None
        if level == floor or epoch != _BUCKET:
            return Begin(_BUCKET, floor + amount, epoch, floor)
        return Raise(_BUCKET, amount, most, floor)

    def certain(self, change: Change, counter: Counter | None) -> tuple[Change, Debit]:
        if isinstance(change, Begin):
            amount = change.level - change.most
            return change, Debit(_BUCKET, amount, change.level, self._back(counter))
        level = self._level(counter)
        back = self._back(counter)
        above = level - 1 if change.above is None else max(change.above, level - 1)
        sure = replace(change, above=above, refunded=back)
        return sure, Debit(_BUCKET, change.amount, level + change.amount, back)

    def done(self, change: Change, after: Counter) -> Debit:
        amount = change.level - change.most if isinstance(change, Begin) else change.amount
        return Debit(_BUCKET, amount, self._level(after), after.refunded)

    def refund(self, counter: Counter, debit: Debit, units: int, now: int) -> Lower | None:
        # What was given back since moved the debit's span to an earlier time, at most by that.
        end = debit.end - (counter.refunded - debit.refunded)
        # The spans of all later debits move as well. What was admitted of them was so by now;
        # what is leased may be later, and has its span from then on.
        amount = min(units * self._token, debit.amount, end - now - self._ahead)
        return Lower(_BUCKET, amount, counter.refunded) if amount > 0 else None

    def is_over(self, slot: int, now: int) -> bool:  # noqa: ARG002 - ahead bounds it
        return False

    def dropped(self, counter: Counter, change: Change) -> tuple[int, ...]:  # noqa: ARG002 - whatever it is
        return tuple(slot for slot in counter.levels if slot != _BUCKET)

    def room(self, counter: Counter | None, now: int) -> int:
        return max(0, (now + self._burst - self.reset_time(counter, now)) // self._token)

    def reset_time(self, counter: Counter | None, now: int) -> int:
        return max(now, self._level(counter))

    def retry_time(self, counter: Counter | None, units: int, now: int) -> int | None:
        if units > self._limit:
            return None
        return max(now, self.reset_time(counter, now) + units * self._token - self._burst)

    def _level(self, counter: Counter | None) -> int:
        """Return the level; 0 also if it was not a bucket before."""
        return 0 if counter is None or counter.epoch != _BUCKET else counter.level(_BUCKET)

    def _back(self, counter: Counter | None) -> int:
        return 0 if counter is None else counter.refunded


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


def hopeful(counter: Counter, now: int, *, worker: str, keep_expired: bool) -> Counter:
    """Return the counter as if all were given back that may be: its levels are never lower.

    That is what reservations hold, expired ones too if ``keep_expired``, and what was leased
    to other workers than this one.
    """
    levels = dict(counter.levels)
    for name, lease in counter.leases.items():
        if name != worker and lease.until > now:
            levels[counter.epoch] = levels.get(counter.epoch, 0) - lease.amount
    for hold, amount in counter.holds.items():
        if hold.slot in levels and (keep_expired or hold.until > now):
            levels[hold.slot] -= amount
    return replace(counter, levels=levels)


def nanoseconds(span: timedelta) -> int:
    """Return a span in nanoseconds."""
    return span // _MICROSECOND * 1000
