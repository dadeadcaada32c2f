"""SettleQuota: a reservation is committed or released, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.access.accounts import Account
from duostore_server.access.counting import Planning
from duostore_server.access.granting import ID_DIGITS
from duostore_server.access.quota_checks import check_settle
from duostore_server.domain.algorithms import algorithm_of
from duostore_server.domain.counters import Settlement
from duostore_server.domain.errors import (
    DuplicateInProgressError,
    ReservationNotFoundError,
    ReservationSettledError,
    StoreTimeoutError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.quotas import Settled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.access.counting import Counting
    from duostore_server.access.limits import LimitsInForce
    from duostore_server.domain.counters import Counter, Grant, GrantStepped, Step
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.quotas import Quota

# Other writes of the same counter may hold a transaction up so many times.
_TRIES: Final = 8


class Settling:
    """Settles reservations: the grant and its counter change together or not at all.

    What is given back is so in the slot that it was debited in, and what was used besides is
    debited now. Nobody else need be asked: any process can settle any reservation.
    """

    def __init__(
        self, quotas: Mapping[str, Quota], *, limits: LimitsInForce, counting: Counting
    ) -> None:
        self._quotas = quotas
        self._limits = limits
        self._counting = counting

    def settle(
        self,
        tenant: str,
        reservation: str,
        deadline: Deadline,
        *,
        cost: int | None = None,
        release: bool | None = None,
    ) -> Settled:
        """Commit ``cost`` units, or release the reservation; safe to repeat.

        Raises ``ReservationNotFoundError``, and ``ReservationSettledError`` if it was settled
        in another way; ``StoreError`` if DynamoDB cannot be asked.
        """
        check_settle(tenant, reservation, cost=cost, release=release)
        try:
            return self._settle(tenant, reservation, cost, deadline)
        except WriteOutcomeUnknownError as error:
            # Safe to repeat, which finds out.
            raise StoreTimeoutError(error.store) from error

    def _settle(
        self, tenant: str, reservation: str, cost: int | None, deadline: Deadline
    ) -> Settled:
        id_, nonce = reservation[:ID_DIGITS], reservation[ID_DIGITS:]
        grant = self._counting.counters.find(tenant, id_, deadline)
        account = None if grant is None else self._account(grant)
        planning = None if account is None else Planning(self._counting, account, deadline)
        for tried in range(_TRIES):
            if grant is None or grant.nonce != nonce or grant.expire_time is None:
                raise ReservationNotFoundError
            if grant.settlement is not None:
                return _earlier(grant.settlement, cost)
            if self._counting.clock() >= grant.expire_time:
                raise ReservationNotFoundError
            step: Step | None = None
            if planning is None:
                settlement = _within(grant, cost)
            else:
                if not tried:
                    planning.look()
                settlement, step = self._planned(grant, cost, planning)
                if _is_gone(grant, planning.counter):
                    # Settled by another call since it was found, or expired by now.
                    grant = self._counting.counters.find(tenant, id_, deadline)
                    if grant is None or grant.nonce != nonce or grant.settlement is None:
                        raise ReservationNotFoundError
                    return _earlier(grant.settlement, cost)
            stepped = self._counting.counters.settle(grant, settlement, step, deadline)
            if stepped.done:
                return Settled(settlement.committed, settlement.refunded, settlement.covered)
            grant = self._met(grant, stepped, planning)
        raise DuplicateInProgressError

    def _met(self, grant: Grant, stepped: GrantStepped, planning: Planning | None) -> Grant | None:
        """Return the grant as it is now, the counter being noted, if they stood in the way."""
        if stepped.counter_refused and planning is not None:
            planning.met(stepped.counter)
        return stepped.grant if stepped.grant_refused else grant

    def _account(self, grant: Grant) -> Account | None:
        """Return a fresh account of the grant's counter; None if its quota is no more."""
        quota = self._quotas.get(grant.counter.quota)
        if quota is None:
            return None
        limit = self._limits.of(quota, grant.counter)
        return Account(grant.counter, quota, algorithm_of(quota, limit))

    def _planned(
        self, grant: Grant, cost: int | None, planning: Planning
    ) -> tuple[Settlement, Step | None]:
        """Return what the settlement comes to, and the step that goes with it."""
        settlement, beyond = _within(grant, cost), False
        if cost is not None and cost > grant.cost:
            beyond = self._covers(grant, cost, planning)
            if beyond:
                settlement = Settlement(cost, cost, 0, covered=True)
        algorithm, counter, now = planning.algorithm, planning.counter, planning.now
        unhold = None
        if counter is not None and grant.hold is not None and grant.hold in counter.holds:
            unhold = (grant.hold, grant.amount)
        if unhold is None and not beyond:
            return settlement, None
        change = algorithm.settle(counter, grant, settlement.committed, now)
        return settlement, planning.step(change, unhold=unhold, fits=not beyond)

    def _covers(self, grant: Grant, cost: int, planning: Planning) -> bool:
        """Return whether there is room for more than was reserved."""
        while not planning.algorithm.covers(planning.counter, grant, cost, planning.now):
            if not planning.see_to_expired() or _is_gone(grant, planning.counter):
                return False
        return True


def _within(grant: Grant, cost: int | None) -> Settlement:
    """Return the settlement of a cost that is not above what was reserved, or as far as it."""
    committed = min(cost or 0, grant.cost)
    covered = (cost or 0) <= grant.cost
    return Settlement(cost, committed, grant.cost - committed, covered=covered)


def _is_gone(grant: Grant, counter: Counter | None) -> bool:
    """Return whether a counter no longer has what a reservation holds, though its slot counts."""
    if counter is None or grant.hold is None or grant.slot not in counter.levels:
        return False
    return counter.holds.get(grant.hold, 0) < grant.amount


def _earlier(settlement: Settlement, cost: int | None) -> Settled:
    if settlement.cost != cost:
        raise ReservationSettledError(settlement.committed, settlement.refunded)
    return Settled(settlement.committed, settlement.refunded, settlement.covered, replayed=True)
