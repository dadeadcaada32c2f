"""Debits under a name: for calls that are safe to repeat, and for reservations."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.access.counting import Looked, Planning
from duostore_server.domain.algorithms import nanoseconds
from duostore_server.domain.counters import Grant, HoldName
from duostore_server.domain.errors import (
    DuplicateInProgressError,
    IdempotencyKeyReusedError,
    ReservationSettledError,
)
from duostore_server.domain.quotas import Mode

if TYPE_CHECKING:
    from datetime import timedelta

    from duostore_server.access.accounts import Account
    from duostore_server.access.counting import Counting, Plan
    from duostore_server.domain.deadline import Deadline

# What reservations hold is counted together with that of others which expire about then.
_EXPIRY_STEPS: Final = 8
_LEAST_EXPIRY_STEP: Final = 1_000_000_000
# Other writes of the same counter may hold a transaction up so many times.
_TRIES: Final = 8
ID_DIGITS: Final = 32
NONCE_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Granted:
    """What was debited under a name; ``replayed``: by an earlier call."""

    grant: Grant
    replayed: bool = False

    @property
    def reservation(self) -> str:
        """How callers name the reservation; empty if it is none."""
        return "" if self.grant.hold is None else self.grant.id + self.grant.nonce


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked for, the id of its grant, and its hash: empty if nobody repeats it."""

    account: Account
    units: int
    mode: Mode
    id: str
    request_hash: bytes


class Granting:
    """Debits a counter and records a grant of it, both or neither."""

    def __init__(self, counting: Counting, *, keep: timedelta) -> None:
        """``keep`` is how long an idempotency key, or a settlement, is remembered at least."""
        self._counting = counting
        self._keep = nanoseconds(keep)

    def debit(
        self, account: Account, units: int, mode: Mode, idempotency_key: str, deadline: Deadline
    ) -> Granted | Looked:
        """Debit units, and hold them if they are to be reserved; ``Looked`` if there is no room.

        What was granted under the same idempotency key is granted still, unless it was a
        reservation that was released, or has expired. Raises ``IdempotencyKeyReusedError``;
        ``ReservationSettledError`` for one that was committed; ``DuplicateInProgressError``
        if other writes of the counter were quicker again and again.
        """
        request = self._request(account, units, mode, idempotency_key)
        planning = Planning(self._counting, account, deadline)
        instead: Grant | None = None
        for _ in range(_TRIES):
            plan = planning.reserve(units) if mode is Mode.RESERVE else planning.next(units)
            if plan is None:
                earlier = self._earlier(request, planning.now, deadline)
                return earlier or Looked(planning.counter, fresh=planning.fresh)
            grant = self._grant(request, plan)
            hold = None if grant.hold is None else (grant.hold, grant.amount)
            step = planning.step(plan.change, hold=hold)
            record = self._counting.counters.record
            stepped = record(grant, step, plan.now, deadline, instead)
            if stepped.done:
                return Granted(grant)
            if stepped.grant_refused and stepped.grant is not None:
                if not _is_void(stepped.grant, plan.now):
                    return _replayed(stepped.grant, request)
                instead = _of_request(stepped.grant, request)
            if stepped.counter_refused:
                planning.met(stepped.counter)
        raise DuplicateInProgressError

    def _request(self, account: Account, units: int, mode: Mode, idempotency_key: str) -> _Request:
        key = account.key
        if not idempotency_key:
            return _Request(account, units, mode, self._counting.new_id(), b"")
        id_ = _digest([key.tenant, idempotency_key]).hex()[:ID_DIGITS]
        return _Request(account, units, mode, id_, _digest([*astuple(key), units, mode.value]))

    def _earlier(self, request: _Request, now: int, deadline: Deadline) -> Granted | None:
        """Return what an earlier call was granted, which need not fit once more."""
        if not request.request_hash:
            return None
        grant = self._counting.counters.find(request.account.key.tenant, request.id, deadline)
        if grant is None or grant.forget_time <= now or _is_void(grant, now):
            return None
        return _replayed(grant, request)

    def _grant(self, request: _Request, plan: Plan) -> Grant:
        hold, expire_time = None, None
        if request.mode is Mode.RESERVE:
            ttl = nanoseconds(request.account.quota.reservation_ttl)
            expire_time = plan.now + ttl
            step = max(_LEAST_EXPIRY_STEP, ttl // _EXPIRY_STEPS)
            hold = HoldName(plan.change.slot, -(-expire_time // step) * step)
        return Grant(
            counter=request.account.key,
            id=request.id,
            nonce=self._counting.new_id()[-NONCE_DIGITS:],
            request_hash=request.request_hash,
            cost=request.units,
            slot=plan.change.slot,
            amount=plan.algorithm.amount(request.units),
            forget_time=self._keep + (expire_time or plan.now),
            hold=hold,
            expire_time=expire_time,
        )


def _is_void(grant: Grant, now: int) -> bool:
    """Return whether a grant permits nothing any more, so that its name is free."""
    if grant.hold is None or grant.expire_time is None:
        return False
    if grant.settlement is None:
        return now >= grant.expire_time
    return grant.settlement.cost is None


def _of_request(grant: Grant, request: _Request) -> Grant:
    if grant.request_hash != request.request_hash:
        raise IdempotencyKeyReusedError
    return grant


def _replayed(grant: Grant, request: _Request) -> Granted:
    _of_request(grant, request)
    if grant.settlement is not None:
        # It was done, and paid for: to do it again is another intention.
        raise ReservationSettledError(grant.settlement.committed, grant.settlement.refunded)
    return Granted(grant, replayed=True)


def _digest(parts: list[str | int]) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()
