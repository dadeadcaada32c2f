"""Quota: debits before use, so that nothing is ever admitted beyond the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.access.accounts import Account
from duostore_server.access.counting import Looked, Planning
from duostore_server.access.quota_checks import check_ask
from duostore_server.domain.algorithms import algorithm_of
from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreError,
    StoreOverloadedError,
    StoreTimeoutError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.quotas import Mode, QuotaAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duostore_server.access.accounts import Accounts
    from duostore_server.access.counting import Counting
    from duostore_server.access.granting import Granting
    from duostore_server.access.leasing import Leasing
    from duostore_server.access.limits import LimitsInForce
    from duostore_server.domain.counters import Counter
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.quotas import CounterKey, Quota


class Quotas:
    """Answers Quota: from memory where that is certain, by a conditional step where not."""

    def __init__(
        self,
        quotas: Mapping[str, Quota],
        *,
        limits: LimitsInForce,
        accounts: Accounts,
        counting: Counting,
        leasing: Leasing,
        granting: Granting,
        decided: Callable[[str, str], None],
    ) -> None:
        """``decided`` is told each outcome, by quota."""
        self._quotas = quotas
        self._limits = limits
        self._accounts = accounts
        self._counting = counting
        self._leasing = leasing
        self._granting = granting
        self._decided = decided

    def ask(
        self,
        key: CounterKey,
        cost: int,
        mode: Mode,
        deadline: Deadline,
        *,
        idempotency_key: str = "",
    ) -> QuotaAnswer:
        """Debit, look at or reserve ``cost`` units; 0 stands for 1.

        Raises a ``StoreError`` if DynamoDB cannot be asked, unless the quota allows then.
        """
        account = self._accounts.of(key)
        # A counter that has an account was asked for by a key that was found acceptable.
        if account is None or cost < 0 or idempotency_key:
            check_ask(self._quotas, key, cost, mode, idempotency_key)
        account = self._with_limit(account, key)
        quota = account.quota
        try:
            answer = self._answer(account, cost or 1, mode, idempotency_key, deadline)
        except StoreError as error:
            if deadline.is_over():
                # That says nothing of the store.
                raise DeadlineExceededError from error
            # One that has too much to do, or others who were quicker, are no outage.
            is_outage = not isinstance(error, StoreOverloadedError)
            if quota.allow_on_outage and is_outage and (cost or 1) <= account.algorithm.limit:
                self._decided(quota.name, "unchecked")
                limit = account.algorithm.limit
                return QuotaAnswer(
                    allowed=True, limit=limit, remaining=0, reset_time=None, unchecked=True
                )
            self._decided(quota.name, "unavailable")
            if isinstance(error, WriteOutcomeUnknownError):
                # Nothing was admitted, and that is all a caller may count on.
                raise StoreTimeoutError(error.store) from error
            raise
        if mode is not Mode.PEEK:
            self._decided(quota.name, "allowed" if answer.allowed else "denied")
        return answer

    def _with_limit(self, account: Account | None, key: CounterKey) -> Account:
        """Return the account of a counter with the limit that is in force now."""
        quota = self._quotas[key.quota] if account is None else account.quota
        limit = self._limits.of(quota, key)
        if account is None:
            return self._accounts.open(Account(key, quota, algorithm_of(quota, limit)))
        if account.algorithm.limit != limit:
            account.algorithm = algorithm_of(quota, limit)
        return account

    def _answer(
        self, account: Account, units: int, mode: Mode, idempotency_key: str, deadline: Deadline
    ) -> QuotaAnswer:
        if mode is Mode.PEEK:
            return self._peek(account, units, deadline)
        if mode is Mode.RESERVE or idempotency_key:
            return self._recorded(account, units, mode, idempotency_key, deadline)
        if most := account.quota.lease_of(account.algorithm.limit):
            return self._leased(account, units, most, deadline)
        looked = self._counting.debit(account, units, deadline)
        if looked.plan is None:
            return self._denied(account, units, looked.counter, 0, fresh=looked.fresh)
        return self._allowed(account, looked.counter, 0)

    def _leased(self, account: Account, units: int, most: int, deadline: Deadline) -> QuotaAnswer:
        taken = self._leasing.take(account, units, most, deadline)
        if taken.reset_time is not None:
            return QuotaAnswer(
                allowed=True,
                limit=account.algorithm.limit,
                remaining=taken.left,
                reset_time=taken.reset_time,
            )
        if taken.allowed:
            return self._allowed(account, taken.counter, taken.left)
        return self._denied(account, units, taken.counter, taken.left, fresh=taken.fresh)

    def _peek(self, account: Account, units: int, deadline: Deadline) -> QuotaAnswer:
        planning = Planning(self._counting, account, deadline)
        planning.look()
        counter = planning.after_expiry()
        algorithm, now = planning.algorithm, planning.now
        allowed = algorithm.change(counter, units, now) is not None
        retry_time = None if allowed else self._retry_time(account, counter, units, now)
        return QuotaAnswer(
            allowed=allowed,
            limit=algorithm.limit,
            remaining=algorithm.room(counter, now),
            reset_time=algorithm.reset_time(counter, now),
            retry_after=None if retry_time is None else retry_time - now,
        )

    def _recorded(
        self, account: Account, units: int, mode: Mode, idempotency_key: str, deadline: Deadline
    ) -> QuotaAnswer:
        """Debit by a step that is recorded: done once, and known by an id."""
        granted = self._granting.debit(account, units, mode, idempotency_key, deadline)
        held = account.slice
        if isinstance(granted, Looked) and held is not None and units <= account.algorithm.limit:
            # What is lacking may be in this process's own slice.
            self._leasing.return_now(account, deadline)
            granted = self._granting.debit(account, units, mode, idempotency_key, deadline)
        if isinstance(granted, Looked):
            return self._denied(account, units, granted.counter, 0, fresh=granted.fresh)
        try:
            counter = self._counting.look(account, deadline)
        except (StoreError, DeadlineExceededError):
            # It was debited, and that is what was asked for.
            counter = None
        now, known = self._counting.clock(), counter is not None
        return QuotaAnswer(
            allowed=True,
            limit=account.algorithm.limit,
            remaining=account.algorithm.room(counter, now) if known else 0,
            reset_time=account.algorithm.reset_time(counter, now) if known else None,
            reservation=granted.reservation,
            expire_time=granted.grant.expire_time,
            replayed=granted.replayed,
        )

    def _allowed(self, account: Account, counter: Counter | None, left: int) -> QuotaAnswer:
        algorithm, now = account.algorithm, self._counting.clock()
        return QuotaAnswer(
            allowed=True,
            limit=algorithm.limit,
            # Who holds units knows of these alone, from one call to the next.
            remaining=left or algorithm.room(counter, now),
            reset_time=algorithm.reset_time(counter, now),
        )

    def _denied(
        self, account: Account, units: int, counter: Counter | None, left: int, *, fresh: bool
    ) -> QuotaAnswer:
        algorithm, now = account.algorithm, self._counting.clock()
        retry_time = self._retry_time(account, counter, units, now)
        return QuotaAnswer(
            allowed=False,
            limit=algorithm.limit,
            # What was seen a while ago may have been used since.
            remaining=left + (algorithm.room(counter, now) if fresh else 0),
            reset_time=algorithm.reset_time(counter, now),
            retry_after=None if retry_time is None else retry_time - now,
        )

    def _retry_time(
        self, account: Account, counter: Counter | None, units: int, now: int
    ) -> int | None:
        """Return when to ask again for units that were denied, later than now."""
        retry_time = self._counting.retry_time(account, counter, units, now)
        return None if retry_time is None else max(now + 1, retry_time)
