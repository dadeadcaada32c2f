"""What is counted of a quota, and the conditional steps by which it changes.

A counter has *levels*, one for each slot. Of a window, slots are its sub-windows (a fixed
window has but one, the window itself) and levels are units used in them; of a token
bucket, there is slot 0, whose level is the moment at which the bucket will be full.
Levels are raised by steps that commute, each on a condition under which it may not admit
too much, so that many workers count on one counter with no lock. The newest slot is the
counter's *epoch*, which never goes back: a clock that is behind counts with those ahead.

All times are nanoseconds since 1970, by the clock of whoever counts. *Amounts* are in
what levels are in: units, or nanoseconds of a token bucket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.domain.quotas import CounterKey

# The slot of a token bucket. Windows are in none so early.
BUCKET_SLOT: Final = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker has debited ahead, to admit from it by itself.

    ``until``: from then on it admits nothing from it. ``nonce`` is new with each lease.
    """

    amount: int
    until: int
    nonce: str


@dataclass(frozen=True, slots=True, order=True)
class HoldName:
    """Names what reservations hold together: their slot, and when the last of them expires."""

    slot: int
    until: int


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter as the store has it.

    ``leases`` are the last ones of each worker, ``holds`` the amounts that reservations
    hold: of both, some may be given back. What windows hold is a part of their levels; what
    a token bucket holds is not, and ``held`` is what it was counted to come to. ``refunded``
    is the amount that levels were lowered by since the counter exists.
    """

    epoch: int
    levels: Mapping[int, int]
    leases: Mapping[str, Lease] = field(default_factory=dict)
    holds: Mapping[HoldName, int] = field(default_factory=dict)
    refunded: int = 0
    held: int = field(default=0, compare=False)

    def level(self, slot: int) -> int:
        """Return the level of a slot, 0 if nothing is known of it."""
        return self.levels.get(slot, 0)


@dataclass(frozen=True, slots=True)
class Raise:
    """Raises the level of the newest slot by an amount.

    Requires that ``slot`` is the epoch still, and its level at most ``most`` and, if it is
    set, above ``above``.
    """

    slot: int
    amount: int
    most: int
    above: int | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Begins a slot, with this level, and makes it the epoch.

    Requires that there is no counter, or that ``after`` is its epoch and the level of that
    at most ``most``; only that there is none if ``after`` is None.
    """

    slot: int
    level: int
    after: int | None = None
    most: int = 0


@dataclass(frozen=True, slots=True)
class Lower:
    """Gives an amount of a slot back, if the counter still has that slot.

    ``refunded``, if set, must be what was given back before, and the level at most ``most``.
    """

    slot: int
    amount: int
    refunded: int | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One conditional change of a counter, done as a whole or not at all.

    ``change`` may be None for one that changes no level. Besides it, ``lease`` becomes that
    of the worker; ``ended`` must be the lease of the worker, and goes. ``hold`` is raised by
    its amount; ``unhold`` must be at least its amount, and is lowered by it. ``release`` must
    be exactly its amount, and goes. If ``held`` is set, all that is held in the slot of a
    token bucket must be at most that together. ``forget`` are leases (names of workers) and
    holds that no longer count, and ``drop`` slots: what is there of them goes. ``until``, if
    set, is when the counter no longer matters.
    """

    change: Change | None
    lease: tuple[str, Lease] | None = None
    ended: tuple[str, Lease] | None = None
    hold: tuple[HoldName, int] | None = None
    unhold: tuple[HoldName, int] | None = None
    release: tuple[HoldName, int] | None = None
    held: int | None = None
    forget: tuple[str | HoldName, ...] = ()
    drop: tuple[int, ...] = ()
    until: int = 0


@dataclass(frozen=True, slots=True)
class Stepped:
    """What came of a step: the counter after it or, if it was not ``done``, as it stood.

    ``counter`` is None if there is none. It is not ``exact`` if others may have changed it
    between the step and this answer: the first one to the step was lost.
    """

    done: bool
    counter: Counter | None
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reservation is settled: ``cost`` units were used, or it is released (None).

    ``committed``, ``refunded`` and ``covered`` are what it comes to: see ``Settled``.
    """

    cost: int | None
    committed: int
    refunded: int
    covered: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """What was debited under a name: of a reservation, or of a call with an idempotency key.

    ``id`` is unique in the tenant, and ``nonce`` new with each grant. ``amount`` was debited
    in ``slot``, or is held: ``hold`` is set of a reservation, which can be settled before
    ``expire_time``. It is remembered until ``forget_time``, or longer. ``request_hash`` is
    the SHA-256 of what was asked for, or empty.
    """

    counter: CounterKey
    id: str
    nonce: str
    request_hash: bytes
    cost: int
    slot: int
    amount: int
    forget_time: int
    hold: HoldName | None = None
    expire_time: int | None = None
    settlement: Settlement | None = None


@dataclass(frozen=True, slots=True)
class GrantStepped:
    """What came of a step together with a grant.

    If not ``done``: ``counter_refused`` and ``grant_refused`` tell which of the two was in
    the way, and ``counter`` and ``grant`` as what, None if it is not there. Neither was if
    only other writes stood in the way, which were under way.
    """

    done: bool
    counter: Counter | None = None
    grant: Grant | None = None
    counter_refused: bool = False
    grant_refused: bool = False


Debiting: TypeAlias = Raise | Begin
Change: TypeAlias = Raise | Begin | Lower
