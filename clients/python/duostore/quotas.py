"""Quotas: the calls of the client that ask them, and what a reservation can be used for."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from grpc import StatusCode

from duostore import messages
from duostore.calling import Calling
from duostore.errors import (
    Error,
    QuotaDeniedError,
    ReservationNotFoundError,
    ReservationSettledError,
)
from duostore.paging import reading
from duostore.status import Call, Repeat, broken_contract
from duostore.v1 import data_access_pb2
from duostore.values import Settled

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from duostore.values import QuotaDecision


class QuotaCalls(Calling):
    """Asks quotas of the server's configuration; each subject has a count of its own.

    ``subject`` is who is limited: a user, an API key, an address. ``cost`` is in units, at
    least 1. That a quota is used up is an answer and no error: look at what is returned.

    Raises ``UnavailableError`` if the server, or DynamoDB, cannot be reached, and
    ``DeadlineExceededError`` after the timeout. Nothing was allowed by a call that failed,
    though units may have been debited in vain: it is for the caller to let the work be done
    or not. A limiter gives a short ``timeout``, so that it does not keep the work waiting.
    """

    def quota(
        self,
        quota: str,
        subject: str,
        cost: int = 1,
        *,
        tenant: str = "",
        idempotency_key: str = "",
        timeout: float | None = None,
    ) -> QuotaDecision:
        """Debit a quota, and return whether it allows this: true in a condition if it does.

        What it allows was debited before, so that no more than its limit is ever allowed.

        Tried again only with an ``idempotency_key``, by which the units are debited once. The
        client makes none: it doubles the price of a debit, and keeps the server from debiting
        many calls at once.
        """
        text = _said("quota", quota, subject, cost, tenant)
        request = messages.quota_request(
            quota,
            subject,
            cost,
            data_access_pb2.MODE_CONSUME,
            tenant=tenant,
            idempotency_key=idempotency_key,
        )
        return messages.decision_of(self._ask(request, _debiting(text, idempotency_key), timeout))

    def peek_quota(
        self,
        quota: str,
        subject: str,
        cost: int = 1,
        *,
        tenant: str = "",
        timeout: float | None = None,
    ) -> QuotaDecision:
        """Return whether a quota would allow this, as the store knows it; debit nothing.

        Tried again within its timeout, as every read is.
        """
        text = _said("peek_quota", quota, subject, cost, tenant)
        request = messages.quota_request(
            quota, subject, cost, data_access_pb2.MODE_PEEK, tenant=tenant, idempotency_key=""
        )
        return messages.decision_of(self._ask(request, reading(text), timeout))

    def reserve_quota(
        self,
        quota: str,
        subject: str,
        cost: int = 1,
        *,
        tenant: str = "",
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Reservation:
        """Debit a quota and hold the units, to commit what was really used of them later.

        What is returned is true in a condition if they are held; used as a context it
        releases them at the end of its block, unless they were committed.

        Tried again within its timeout. ``idempotency_key`` is as with ``save``: the client
        makes one, by which no units are left held whose answer was lost. With one of yours,
        such as the id of the job, whoever repeats the job gets the same reservation, or a new
        one if that was released or has expired; it raises ``ReservationSettledError`` if that
        was committed.
        """
        key = self._key(idempotency_key)
        call = _debiting(_said("reserve_quota", quota, subject, cost, tenant), key)
        request = messages.quota_request(
            quota,
            subject,
            cost,
            data_access_pb2.MODE_RESERVE,
            tenant=tenant,
            idempotency_key=key,
        )
        response = self._ask(request, call, timeout)
        if response.allowed and not (response.reservation or response.unchecked):
            raise broken_contract(call, "it holds units, and does not say under which name")
        return Reservation(
            self,
            messages.decision_of(response),
            cost,
            id=response.reservation,
            tenant=tenant,
            expire_time=messages.expire_time_of(response),
            text=call.text,
        )

    def settle_quota(
        self,
        reservation: str,
        *,
        cost: int | None = None,
        release: bool = False,
        tenant: str = "",
        timeout: float | None = None,
    ) -> Settled:
        """Settle a reservation by its ``id``: commit what was used, ``cost``, or ``release`` it.

        What is below the reserved units is given back; what is above them is debited besides,
        if the quota has room now: see ``Settled.covered``. A repetition is answered as the
        first was. Raises ``ReservationNotFoundError`` if the tenant has no such reservation
        or it has expired, ``ReservationSettledError`` if it was settled in another way.
        """
        said = "release=True" if release else f"cost={cost}"
        call = Call(
            f"settle_quota({reservation!r}, {said}{_of(tenant)})", uuid.uuid4().hex, Repeat.ONCE
        )
        request = messages.settle_quota_request(
            reservation, cost=cost, release=release, tenant=tenant
        )
        response = self._connection.call(
            lambda stub: stub.SettleQuota, request, call, self._seconds(timeout)
        )
        return messages.settled_of(response)

    def _ask(
        self, request: data_access_pb2.QuotaRequest, call: Call, timeout: float | None
    ) -> data_access_pb2.QuotaResponse:
        return self._connection.call(lambda stub: stub.Quota, request, call, self._seconds(timeout))


class Reservation:
    """Units of a quota that are held until they are settled: true in a condition if they are.

    ``decision`` is what the quota answered; ``cost`` units are held. ``id`` settles them from
    elsewhere, by ``Client.settle_quota``, until ``expire_time``, aware and in UTC. Both are
    empty or None if nothing is held: the quota denied it, or allowed it unchecked.

    As a context it releases the units at the end of its block, unless ``commit`` was called
    by then, even in vain: they were used. That they were settled elsewhere by then, or have
    expired, is no error. To enter it, or to commit, raises ``QuotaDeniedError`` if the quota
    denied it.
    """

    __slots__ = (
        "_calls",
        "_committing",
        "_tenant",
        "_text",
        "cost",
        "decision",
        "expire_time",
        "id",
    )

    def __init__(
        self,
        calls: QuotaCalls,
        decision: QuotaDecision,
        cost: int,
        *,
        id: str,  # noqa: A002 - the word of the API
        tenant: str,
        expire_time: datetime | None,
        text: str,
    ) -> None:
        self.decision = decision
        self.cost = cost
        self.id = id
        self.expire_time = expire_time
        self._calls = calls
        self._tenant = tenant
        self._text = text
        self._committing = False

    def __bool__(self) -> bool:
        return self.decision.allowed

    def __repr__(self) -> str:
        return f"<Reservation {self.id!r} of {self._text}: {self.decision}>"

    def __enter__(self) -> Self:
        self._require()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._committing:
            return
        try:
            self.release()
        except (ReservationNotFoundError, ReservationSettledError):
            # Nothing is held any more; who wants to know calls release.
            return
        except Error as failure:
            if error is None:
                raise
            # What went wrong in the block is what matters.
            error.add_note(f"its reservation was not released: {failure}")

    def commit(self, cost: int | None = None, *, timeout: float | None = None) -> Settled:
        """Commit the units that were really used; all that are held if it is not said.

        As ``Client.settle_quota``, and as safe to repeat. Commits nothing if the quota
        allowed them unchecked.
        """
        self._require()
        self._committing = True
        if not self.id:
            return Settled(committed=0, refunded=0, covered=True)
        used = self.cost if cost is None else cost
        return self._calls.settle_quota(self.id, cost=used, tenant=self._tenant, timeout=timeout)

    def release(self, *, timeout: float | None = None) -> Settled:
        """Give all units back; as ``Client.settle_quota``. Does nothing if none are held."""
        if not self.id:
            return Settled(committed=0, refunded=0, covered=True)
        return self._calls.settle_quota(self.id, release=True, tenant=self._tenant, timeout=timeout)

    def _require(self) -> None:
        if self.decision.allowed:
            return
        retry_after = self.decision.retry_after
        seconds = None if retry_after is None else retry_after.total_seconds()
        when = "the cost is above its limit" if seconds is None else f"retry after {seconds:g} s"
        raise QuotaDeniedError(
            f"{self._text}: the quota denied it, so that nothing is reserved; {when}",
            code=StatusCode.RESOURCE_EXHAUSTED,
            retry_after=seconds,
        )


def _debiting(text: str, idempotency_key: str) -> Call:
    repeat = Repeat.DEBITED_ONCE if idempotency_key else Repeat.COSTLY
    return Call(text, uuid.uuid4().hex, repeat, idempotency_key)


def _said(method: str, quota: str, subject: str, cost: int, tenant: str) -> str:
    """Return a call as people read it, control characters escaped."""
    return f"{method}({quota!r}, {subject!r}, {cost}{_of(tenant)})"


def _of(tenant: str) -> str:
    return f", tenant={tenant!r}" if tenant else ""
