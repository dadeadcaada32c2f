"""Callers that use quotas in every way, and remember what they were admitted."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from duostore.v1 import data_access_pb2, data_access_pb2_grpc
from tests.support.admissions import Admission, Refund
from tests.support.crowd import Persistence, failure_of
from tests.support.service import CALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

# How often each of these is done, and how reservations end.
_WAYS = {"consume": 65, "keyed": 15, "reserve": 15, "peek": 5}
_ONCE = {"keyed": 50, "reserve": 50}
_ENDS = {"less": 40, "release": 25, "all": 10, "more": 10, "never": 15}
# Calls that could be repeated are, this often, though they were answered.
_AGAIN = 0.3
_MOST_UNITS = 3
# So often one and the same is asked in a row: quickly enough for slices to grow.
_ROWS = (1, 2, 10)


@dataclass(frozen=True)
class Subject:
    """Who is limited, by which quota."""

    quota: str
    name: str


class QuotaCallers:
    """Asks for units of subjects, in a way that the number of each piece of work decides.

    ``admissions`` are those that were answered: what nobody was told of, nobody used.
    ``counts`` tells how often a quota gave each sort of answer. Of the quota ``once``, which
    is large enough for all, nothing is asked but what is debited once, however often it is
    repeated, and that until it is answered: ``used_once`` are the units that it comes to.
    """

    def __init__(self, subjects: Sequence[Subject], *, once: str = "") -> None:
        self.persistence = Persistence()
        self.once = once
        self.used_once = 0
        self.admissions: dict[Subject, list[Admission]] = defaultdict(list)
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._subjects = subjects
        self._run = secrets.token_hex(4)
        self._lock = threading.Lock()

    def use(self, channel: grpc.Channel, number: int) -> None:
        """Do one piece of work."""
        chance = random.Random(number)
        _One(self, channel, chance, chance.choice(self._subjects), f"{self._run}-{number}").use()

    def remember(self, subject: Subject, admission: Admission) -> None:
        """Take note of units that somebody was told to have."""
        with self._lock:
            self.admissions[subject].append(admission)
            if subject.quota == self.once:
                self.used_once += admission.used

    def count(self, subject: Subject, answer: str) -> None:
        """Take note of an answer."""
        with self._lock:
            self.counts[subject.quota][answer] += 1


class _One:
    """One piece of work: units asked for once, and what becomes of them."""

    def __init__(
        self,
        callers: QuotaCallers,
        channel: grpc.Channel,
        chance: random.Random,
        subject: Subject,
        name: str,
    ) -> None:
        self._callers = callers
        self._stub = data_access_pb2_grpc.DataAccessStub(channel)
        self._chance = chance
        self._subject = subject
        self._name = name
        # Half of them a unit, as most callers.
        self._cost = chance.choice((1, 1, *range(1, _MOST_UNITS + 1)))
        self._began = self._ended = time.time_ns()

    def use(self) -> None:
        is_once = self._subject.quota == self._callers.once
        match self._choice(_ONCE if is_once else _WAYS):
            case "consume":
                self._consume()
            case "keyed":
                self._consume_once()
            case "reserve":
                self._reserve()
            case _:
                self._peek()

    def _consume(self) -> None:
        """Ask some times; units whose answer did not come are nobody's."""
        for _ in range(self._chance.choice(_ROWS)):
            self._began = time.time_ns()
            try:
                answer = self._quota()
            except grpc.RpcError as error:
                failure = failure_of(error)
                assert failure.is_passing, failure
                self._callers.count(self._subject, failure.reason)
                return
            if self._allowed(answer, "consumed"):
                self._remember(answer)

    def _consume_once(self) -> None:
        """Ask until there is an answer, and at times again: units are debited once."""
        answer = self._once(data_access_pb2.MODE_CONSUME)
        if not self._allowed(answer, "consumed once"):
            return
        self._remember(answer)
        if self._chance.random() < _AGAIN:
            again = self._once(data_access_pb2.MODE_CONSUME)
            assert again.allowed
            assert again.replayed
            self._callers.count(self._subject, "repeated")

    def _peek(self) -> None:
        answer = self._callers.persistence.answer(
            lambda: self._quota(mode=data_access_pb2.MODE_PEEK), what="a peek is answered"
        )
        self._callers.count(self._subject, "peeked")
        assert 0 <= answer.remaining <= answer.limit

    def _reserve(self) -> None:
        answer = self._once(data_access_pb2.MODE_RESERVE)
        if not self._allowed(answer, "reserved"):
            return
        assert answer.reservation
        how = self._choice(_ENDS)
        is_once = self._subject.quota == self._callers.once
        if how == "never":
            # When it expires it may be released; that of the quota for all is not so soon.
            expiry = Refund(answer.expire_time.ToNanoseconds(), 0 if is_once else self._cost)
            self._remember(answer, expiry)
            return
        began = time.time_ns()
        request = self._settlement(answer.reservation, how)
        settled = self._settle(request)
        if settled is None:
            # It came too late, or one did not whose answer was lost.
            assert not is_once
            self._remember(answer, Refund(began, self._cost))
            return
        self._callers.count(self._subject, f"settled: {how}")
        self._remember(answer, Refund(began, settled.refunded))
        further = settled.committed - self._cost
        if further > 0:
            self._callers.remember(self._subject, Admission(began, time.time_ns(), further))
        if self._chance.random() < _AGAIN:
            self._settle_again(request, settled)

    def _settlement(self, reservation: str, how: str) -> data_access_pb2.SettleQuotaRequest:
        settlement: dict[str, Any] = {
            "less": {"cost": self._chance.randrange(self._cost)},
            "all": {"cost": self._cost},
            "more": {"cost": self._cost + 1},
            "release": {"release": True},
        }[how]
        return data_access_pb2.SettleQuotaRequest(reservation=reservation, **settlement)

    def _settle(
        self, request: data_access_pb2.SettleQuotaRequest
    ) -> data_access_pb2.SettleQuotaResponse | None:
        """Settle a reservation, and make sure of it; return None if it has expired."""
        try:
            settled = self._callers.persistence.answer(
                lambda: self._stub.SettleQuota(request, timeout=CALL_SECONDS),
                what="a settlement is answered",
            )
        except grpc.RpcError as error:
            failure = failure_of(error)
            assert failure.reason == "RESERVATION_NOT_FOUND", failure
            self._callers.count(self._subject, "expired")
            return None
        asked = 0 if request.release else request.cost
        assert settled.refunded == max(0, self._cost - asked)
        assert settled.committed == (asked if settled.covered else self._cost)
        assert settled.covered or asked > self._cost
        return settled

    def _settle_again(
        self,
        request: data_access_pb2.SettleQuotaRequest,
        settled: data_access_pb2.SettleQuotaResponse,
    ) -> None:
        """Settle it a second time, in the same way and in another one."""
        again = self._settle(request)
        assert again is not None
        assert again.replayed
        assert (again.committed, again.refunded, again.covered) == (
            settled.committed,
            settled.refunded,
            settled.covered,
        )
        other = data_access_pb2.SettleQuotaRequest(
            reservation=request.reservation, cost=self._cost + _MOST_UNITS
        )
        try:
            self._callers.persistence.answer(
                lambda: self._stub.SettleQuota(other, timeout=CALL_SECONDS),
                what="another settlement is answered",
            )
        except grpc.RpcError as error:
            failure = failure_of(error)
            assert failure.reason == "RESERVATION_SETTLED", failure
            self._callers.count(self._subject, "settled twice")
        else:
            raise AssertionError("a reservation was settled in two ways")

    def _once(self, mode: data_access_pb2.Mode.ValueType) -> data_access_pb2.QuotaResponse:
        """Ask with an idempotency key until there is an answer."""
        return self._callers.persistence.answer(
            lambda: self._quota(mode=mode, idempotency_key=self._name),
            what=f"Quota {self._name} is answered",
        )

    def _quota(self, **options: Any) -> data_access_pb2.QuotaResponse:
        request = data_access_pb2.QuotaRequest(
            quota=self._subject.quota, subject=self._subject.name, cost=self._cost, **options
        )
        return self._stub.Quota(request, timeout=CALL_SECONDS)

    def _allowed(self, answer: data_access_pb2.QuotaResponse, how: str) -> bool:
        self._ended = time.time_ns()
        assert not answer.unchecked
        self._callers.count(self._subject, how if answer.allowed else "denied")
        return answer.allowed

    def _remember(self, answer: data_access_pb2.QuotaResponse, *refunds: Refund) -> None:
        # That of a repetition is as of the repetition, and unset if DynamoDB was gone by then.
        is_told = answer.HasField("reset_time") and not answer.replayed
        admission = Admission(
            self._began,
            self._ended,
            self._cost,
            reset_time=answer.reset_time.ToNanoseconds() if is_told else None,
            refunds=tuple(refund for refund in refunds if refund.units),
        )
        self._callers.remember(self._subject, admission)

    def _choice(self, weights: dict[str, int]) -> str:
        [chosen] = self._chance.choices(list(weights), list(weights.values()))
        return chosen
