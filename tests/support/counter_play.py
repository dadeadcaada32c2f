"""A counter in memory, and workers that use it by the algorithms alone, in any order.

Time is in nanoseconds and windows are a few of them long, so that each edge is met often.
"""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from duostore_server.domain.algorithms import TokenBucket, Windows
from duostore_server.domain.counters import Grant, HoldName, Lease, Lower, Step
from duostore_server.domain.quotas import CounterKey
from tests.support.counter_model import applied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.domain.algorithms import Algorithm, Debit
    from duostore_server.domain.counters import Counter, Debiting

WINDOW: Final = 12
# A round moment: every slot of every rule begins here, too.
NOON: Final = 12_000
LEASED_FOR: Final = 6
EXPIRES_AFTER: Final = 20
_EXPIRY_STEP: Final = 8
_KEY: Final = CounterKey("acme", "calls", "alice")
_ANY_AMOUNT: Final = 10**9


@dataclass(frozen=True, slots=True)
class Rule:
    """An algorithm, and what it promises: slots and those before, or what a token takes."""

    name: str
    limit: int
    length: int = WINDOW
    past: int = 0
    token: int = 0

    def algorithm(self) -> Algorithm:
        if self.token:
            return TokenBucket(self.limit, window=WINDOW, ahead=LEASED_FOR)
        return Windows(self.limit, length=self.length, past=self.past)

    def is_broken_by(self, uses: Sequence[Use]) -> bool:
        """Return whether more was admitted than is allowed, in whatever moments it was."""
        if self.token:
            return any(
                (_inside(uses, first.start, last.end) - self.limit) * self.token
                > last.end - first.start
                for first in uses
                for last in uses
                if first.start <= last.end
            )
        if self.past:
            starts = [use.start for use in uses]
            return any(_inside(uses, start, start + WINDOW) > self.limit for start in starts)
        windows = {use.start // WINDOW for use in uses}
        return any(
            _inside(uses, window * WINDOW, window * WINDOW + WINDOW - 1) > self.limit
            for window in windows
        )


FIXED: Final = Rule("fixed", 5)
SLIDING: Final = Rule("sliding", 5, length=4, past=3)
BUCKET: Final = Rule("bucket", 12, token=1)


@dataclass(eq=False, slots=True)
class Use:
    """Units that were admitted between two moments, less those that were given back."""

    start: int
    end: int
    units: int


@dataclass(eq=False, slots=True)
class _Slice:
    debit: Debit
    lease: Lease
    left: int
    ends: int


@dataclass(eq=False, slots=True)
class _Reservation:
    use: Use
    grant: Grant
    hold: HoldName
    expire_time: int


class Play:
    """Workers that see a counter now and then, and one clock, which ``skew`` may put wrong.

    Reservations that expire are released if it ``releases``, or else used.
    ``uses`` is what was admitted; ``debited`` is what windows were left with by all that
    was done to them, by slot; ``denied`` are those whom a counter was shown that had no room.
    """

    def __init__(
        self, rule: Rule, *, skew: dict[str, int] | None = None, releases: bool = True
    ) -> None:
        self.rule = rule
        self.releases = releases
        self.algorithm = rule.algorithm()
        self.now = NOON
        self.counter: Counter | None = None
        self.seen: dict[str, Counter | None] = {}
        self.seen_time: dict[str, int] = {}
        self.uses: list[Use] = []
        self.debited: Tally[int] = Tally()
        self.denied: list[tuple[Counter | None, int]] = []
        self._skew = skew or {}
        self._slices: dict[str, _Slice] = {}
        self._reservations: list[_Reservation] = []
        self._under_way: list[Callable[[], object]] = []
        self._nonces = 0

    def clock(self, worker: str) -> int:
        return self.now + self._skew.get(worker, 0)

    def wait(self, span: int) -> None:
        self.now += span

    def look(self, worker: str) -> None:
        self.seen[worker], self.seen_time[worker] = self.counter, self.clock(worker)

    def kept_by(self, worker: str) -> list[Lease]:
        """Return the leases that a worker knows not to have given back."""
        held = self._slices.get(worker)
        return [] if held is None else [held.lease]

    def consume(self, worker: str, units: int) -> None:
        """Debit units and admit them."""
        if self._debit(worker, units) is not None:
            self.uses.append(Use(self.now, self.now, units))

    def exhaust(self, worker: str, _units: int) -> None:
        """Debit and admit all that there is room for."""
        self.look(worker)
        room = self.algorithm.room(self.counter, self.clock(worker))
        if room:
            self.consume(worker, room)

    def consume_late(self, worker: str, units: int) -> None:
        """Send a debit that takes its time; if it is refused, the caller gives up."""
        start, change = self.now, self._change(worker, units)
        if change is None:
            return
        step = self._step(worker, change)

        def arrive() -> None:
            if self._apply(worker, step):
                self.uses.append(Use(start, self.now, units))

        self._under_way.append(arrive)

    def lease(self, worker: str, units: int) -> None:
        """Take a slice, and one unit besides."""
        if worker in self._slices:
            return
        self._nonces += 1
        now = self.clock(worker)
        lease = Lease(self.algorithm.amount(units), now + 2 * LEASED_FOR, str(self._nonces))
        change = self._debit(worker, units + 1, lease=(worker, lease))
        if change is None or self.counter is None:
            return
        self.uses.append(Use(self.now, self.now, 1))
        debit = self.algorithm.done(units, change, self.counter)
        self._slices[worker] = _Slice(debit, lease, units, self.now + LEASED_FOR)

    def admit(self, worker: str, units: int) -> None:
        """Use some of a slice, if it is not over."""
        held = self._slices.get(worker)
        if held is None or self.now >= held.ends:
            return
        units = min(units, held.left)
        if units and not self.algorithm.is_over(held.debit.slot, self.clock(worker)):
            held.left -= units
            self.uses.append(Use(self.now, self.now, units))

    def give_back(self, worker: str, units: int) -> None:
        """Return what is left of a slice; one whose time is long over is lost."""
        held = self._slices.pop(worker, None)
        if held is None or self.clock(worker) >= held.lease.until:
            return
        if units == 1:
            self.look(worker)
        for _ in range(2):
            counter = self.seen[worker]
            if counter is None:
                return
            lower = self.algorithm.refund(counter, held.debit, held.left, self.clock(worker))
            if lower is None or self._apply(worker, Step(lower, ended=(worker, held.lease))):
                return

    def give_back_late(self, worker: str, _units: int) -> None:
        """Send what is left of a slice on a way that takes its time."""
        held = self._slices.pop(worker, None)
        if held is None or self.counter is None or self.clock(worker) >= held.lease.until:
            return
        lower = self.algorithm.refund(self.counter, held.debit, held.left, self.clock(worker))
        step = Step(lower, ended=(worker, held.lease))
        self._under_way.append(lambda: self._apply(worker, step))

    def reserve(self, worker: str, units: int) -> None:
        """Debit units, or hold them, to be settled later."""
        expire_time = self.clock(worker) + EXPIRES_AFTER
        until = -(-expire_time // _EXPIRY_STEP) * _EXPIRY_STEP
        change = self._debit(worker, units, until=until)
        if change is None:
            return
        use = Use(self.now, self.now, units)
        self.uses.append(use)
        hold, amount = HoldName(change.slot, until), self.algorithm.amount(units)
        grant = Grant(
            counter=_KEY,
            id="",
            nonce="",
            request_hash=b"",
            cost=units,
            slot=change.slot,
            amount=amount,
            forget_time=0,
            hold=hold,
            expire_time=expire_time,
        )
        self._reservations.append(_Reservation(use, grant, hold, expire_time))

    def settle(self, worker: str, units: int) -> None:
        """Give units of the oldest reservation back."""
        self._settle(worker, units, 0)

    def settle_newest(self, worker: str, units: int) -> None:
        """Give units of the newest reservation back."""
        self._settle(worker, units, -1)

    def settle_late(self, worker: str, units: int) -> None:
        """Send a settlement that takes its time."""
        self._settle(worker, units, 0, late=True)

    def expire(self, worker: str) -> None:
        """See to one of the holds that have expired."""
        if self.counter is None:
            return
        for hold, amount in sorted(self.counter.holds.items()):
            if hold.until > self.clock(worker) or hold.slot not in self.counter.levels:
                continue
            self.look(worker)
            change = self.algorithm.expire(self.counter, hold, release=self.releases)
            step = replace(self._step(worker, change, fits=True), release=(hold, amount))
            assert self._apply(worker, step)
            for held in [each for each in self._reservations if each.hold == hold]:
                self._reservations.remove(held)
                if self.releases:
                    held.use.units = 0
            return

    def arrive(self) -> None:
        """Let the oldest of what is under way take effect."""
        if self._under_way:
            self._under_way.pop(0)()

    def _settle(self, worker: str, units: int, which: int, *, late: bool = False) -> None:
        if not self._reservations or self.counter is None:
            return
        held = self._reservations.pop(which)
        if held.expire_time <= self.clock(worker) or held.hold not in self.counter.holds:
            return
        units = min(units, held.use.units)

        def settled() -> Callable[[], bool]:
            used, now = held.grant.cost - units, self.clock(worker)
            change = self.algorithm.settle(self.seen.get(worker), held.grant, used, now)
            unhold = (held.hold, held.grant.amount)
            step = replace(self._step(worker, change, fits=True), unhold=unhold)
            return lambda: self._apply(worker, step)

        def settle(by_now: Callable[[], bool]) -> None:
            if by_now() or settled()():
                held.use.units -= units

        if self.seen.get(worker) is None:
            self.look(worker)
        first = settled()
        if late:
            self._under_way.append(lambda: settle(first))
        else:
            settle(first)

    def _debit(
        self,
        worker: str,
        units: int,
        *,
        lease: tuple[str, Lease] | None = None,
        until: int | None = None,
    ) -> Debiting | None:
        """Return what debited the units, None if there is no room for them.

        It sets a lease, if there is to be one, or holds the units ``until`` then.
        """
        for _ in range(3):
            change = self._change(worker, units, leased=lease is not None, held=until is not None)
            if change is not None:
                step = replace(self._step(worker, change), lease=lease)
                if until is not None:
                    amount = self.algorithm.amount(units)
                    step = replace(step, hold=(HoldName(change.slot, until), amount))
                if self._apply(worker, step):
                    return change
            elif self.seen.get(worker) is self.counter:
                if lease is None:
                    self.denied.append((self.counter, units))
                return None
            else:
                self.look(worker)
        raise AssertionError("with nobody else about, the second try is the last")

    def _change(
        self, worker: str, units: int, *, leased: bool = False, held: bool = False
    ) -> Debiting | None:
        seen, now = self.seen.get(worker), self.clock(worker)
        if held:
            return self.algorithm.reserve(seen, units, now)
        return self.algorithm.change(seen, units, now, ahead=LEASED_FOR if leased else 0)

    def _step(self, worker: str, change: Debiting | Lower | None, *, fits: bool = False) -> Step:
        """Return the step of a change, with what no longer counts after it."""
        seen = self.seen.get(worker)
        held = self.algorithm.held(seen)
        step = Step(change, held=_ANY_AMOUNT if fits and held is not None else held)
        if seen is None or change is None or isinstance(change, Lower):
            return step
        return replace(step, drop=self.algorithm.dropped(seen, change))

    def _apply(self, worker: str, step: Step) -> bool:
        before, after = self.counter, applied(self.counter, step)
        self.look(worker)
        if after is None:
            return False
        self.counter = after
        self.look(worker)
        if step.change is not None:
            slot = step.change.slot
            self.debited[slot] += after.level(slot) - (before.level(slot) if before else 0)
        return True


def _inside(uses: Sequence[Use], first: int, last: int) -> int:
    return sum(use.units for use in uses if first <= use.start and use.end <= last)
