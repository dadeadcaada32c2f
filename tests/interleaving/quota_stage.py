"""Workers that count quotas on a simulated DynamoDB, and what callers were admitted (C7).

Every worker is a process of its own, with the production use cases and the production
adapter, as in ``deployment``. Time is one clock, which stands still but for what a scene does.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError, ReadTimeoutError

from duostore_server.access.accounts import Accounts
from duostore_server.access.counting import Counting
from duostore_server.access.granting import Granting
from duostore_server.access.leasing import Leasing
from duostore_server.access.limits import LimitsInForce
from duostore_server.access.quotas import Quotas
from duostore_server.access.settling import Settling
from duostore_server.domain.algorithms import algorithm_of
from duostore_server.domain.errors import (
    DuplicateInProgressError,
    ReservationNotFoundError,
    ReservationSettledError,
    StoreError,
)
from duostore_server.domain.quotas import CounterKey, Mode, Quota
from duostore_server.storage.dynamodb.counter_items import counter_pk, decode_counter
from duostore_server.storage.dynamodb.counters import direct_counters
from duostore_server.storage.dynamodb.tables import counter_table, create_tables
from tests.interleaving.claims import ViolationError
from tests.interleaving.deployment import soon
from tests.support.admissions import Admission, Refund, violations
from tests.support.quota_stack import MIDNIGHT, SECOND, SetLimits
from tests.support.simulated_dynamodb import Delivery, Fault, SimulatedDynamoDB

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable, Iterator

    from duostore_server.domain.ports import Counters
    from duostore_server.domain.quotas import QuotaAnswer, Settled
    from tests.interleaving.scheduler import World

KEY: Final = CounterKey("acme", "calls", "alice")
_LOST_SHARE: Final = 0.1


class _Events:
    """Tells those who watch the attempts of a call."""

    def __init__(self) -> None:
        self._handlers: list[Callable[..., object]] = []

    @property
    def events(self) -> _Events:
        return self

    def register(self, _event: str, handler: Callable[..., object]) -> None:
        self._handlers.append(handler)

    def unregister(self, _event: str, handler: Callable[..., object]) -> None:
        self._handlers.remove(handler)

    def lost(self, error: Exception) -> None:
        for handler in self._handlers:
            handler(caught_exception=error)


class Resent(SimulatedDynamoDB):
    """A DynamoDB below botocore's retries: an update with no answer is sent once again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attempts = _Events()
        # What a client tells of itself, with handlers that are told something.
        self.meta = self.attempts  # type: ignore[assignment]

    def update_item(self, **request: Any) -> dict[str, Any]:
        try:
            return super().update_item(**request)
        except ReadTimeoutError as error:
            self.attempts.lost(error)
            return super().update_item(**request)


def _same(counters: Counters) -> Counters:
    return counters


@dataclass(frozen=True, slots=True)
class QuotaDesign:
    """What workers are built of. A mutant replaces one of them."""

    dynamodb: type[Resent] = Resent
    counters: Callable[[Counters], Counters] = _same
    counting: type[Counting] = Counting
    leasing: type[Leasing] = Leasing


@dataclass(slots=True, eq=False)
class Call:
    """What a caller was told, once or again: ``refunds`` are units it may have given back."""

    start: int
    end: int
    cost: int
    reset_time: int | None
    expire_time: int | None = None
    refunds: list[Refund] = field(default_factory=list)
    settled: bool = False

    def state(self) -> Hashable:
        """Return all that there is to say of it."""
        refunds = tuple((refund.time, refund.units) for refund in self.refunds)
        return self.start, self.end, self.cost, self.reset_time, refunds, self.settled


class Worker:
    """One process; what its callers were admitted is noted with the stage."""

    def __init__(self, stage: QuotaStage, name: str) -> None:
        def clock() -> int:
            stage.world.observe(stage.now)
            return stage.now

        numbers = itertools.count()
        counters = direct_counters(
            stage.dynamodb.client,
            prefix="",
            pause=lambda _: stage.world.step("pause"),
            clock=lambda: 0.0,
        )
        counting = stage.design.counting(
            stage.design.counters(counters),
            worker=name,
            clock=clock,
            # Other than that of any other process, in its first digits as in its last.
            new_id=lambda: f"{next(numbers):08x}{name.encode().hex():0>16}{next(numbers):08x}",
        )
        quotas = {stage.quota.name: stage.quota}
        limits = LimitsInForce(quotas, SetLimits())
        self._stage = stage
        self._accounts = Accounts(10)
        self._leasing = stage.design.leasing(
            counting,
            monotonic=lambda: clock() / SECOND,
            leased=lambda _quota, _fate, _units: None,
        )
        self._quotas = Quotas(
            quotas,
            limits=limits,
            accounts=self._accounts,
            counting=counting,
            leasing=self._leasing,
            granting=Granting(counting, keep=timedelta(days=1)),
            decided=lambda _quota, _outcome: None,
        )
        self._settling = Settling(quotas, limits=limits, counting=counting)

    def ask(
        self, cost: int, mode: Mode = Mode.CONSUME, *, key: str = ""
    ) -> tuple[QuotaAnswer, Call | None] | None:
        """Ask for units; return the answer, and the call if it was allowed.

        None if there is no answer.
        """
        stage = self._stage
        began = stage.first_sent(key) if key else stage.now
        with stage.rooms() as was_full:
            try:
                answer = self._quotas.ask(KEY, cost, mode, soon(), idempotency_key=key)
            except (StoreError, DuplicateInProgressError) as error:
                stage.failed(error)
                return None
            if not answer.allowed:
                if stage.is_exact and not was_full(cost):
                    raise ViolationError("exact", f"{cost} denied, and there was room all the time")
                return answer, None
        reset_time = None if answer.replayed else answer.reset_time
        call = Call(began, stage.now, cost, reset_time, answer.expire_time)
        return answer, call

    def settle(self, call: Call, reservation: str, cost: int | None) -> Settled | None:
        """Settle what a call reserved; return None if it could not be, or nobody answered."""
        stage = self._stage
        lower = Refund(stage.now, call.cost - min(cost or 0, call.cost))
        try:
            settled = self._settling.settle(
                KEY.tenant,
                reservation,
                soon(),
                cost=cost,
                release=True if cost is None else None,
            )
        except (ReservationNotFoundError, ReservationSettledError):
            return None
        except (StoreError, DuplicateInProgressError) as error:
            stage.failed(error)
            call.refunds.append(lower)
            return None
        if not call.settled:
            call.settled = True
            call.refunds = [lower]
        if settled.committed > call.cost and not settled.replayed:
            stage.calls.append(Call(lower.time, stage.now, settled.committed - call.cost, None))
        return settled

    def in_demand(self) -> Worker:
        """Let it be as if it had been asked often: it takes a slice with its next debit."""
        self._quotas.ask(KEY, 1, Mode.PEEK, soon())
        account = self._accounts.of(KEY)
        assert account is not None
        account.quick, account.filled = 1000, self._stage.now / SECOND
        return self

    def drain(self) -> None:
        """Give back all slices, as at the end of the process."""
        self._leasing.return_all(self._accounts.holding(), soon())

    def look_after(self) -> None:
        """Give back slices that are not used."""
        try:
            self._leasing.return_unused(self._accounts.holding(), soon)
        except StoreError as error:
            self._stage.failed(error)


class QuotaStage:
    """One quota of one subject, workers, and callers. ``calls`` is what was admitted."""

    def __init__(self, world: World, quota: Quota, design: QuotaDesign) -> None:
        self.world = world
        self.quota = quota
        self.design = design
        self.now = MIDNIGHT
        self.calls: list[Call] = []
        self.may_fail = False
        self.is_exact = True
        # Whether what is counted has to be what was admitted, no more and no less.
        self.counts_exactly = False
        self.reservations: list[tuple[str, Call]] = []
        self._lost_answers = 0
        self._first_sent: dict[str, int] = {}
        self._allowed_once: set[str] = set()
        self.dynamodb = design.dynamodb(step=lambda label: world.step(f"dynamodb {label}"))
        self.dynamodb.fault = self._lost_answer
        create_tables(self.dynamodb.client, prefix="", pause=lambda _: None)
        world.seen_at = lambda label: self.dynamodb.state() if label.startswith("dyn") else None
        world.held = self.held

    def worker(self, name: str) -> Worker:
        """Return a process that has just begun."""
        return Worker(self, name)

    def first_sent(self, key: str) -> int:
        """Return when a call with this key was first sent, by whomever."""
        return self._first_sent.setdefault(key, self.now)

    def allow_once(self, key: str, call: Call) -> None:
        """Take note of what was allowed under a key, to whoever was told so first."""
        if key not in self._allowed_once:
            self._allowed_once.add(key)
            self.calls.append(call)

    def pass_(self, seconds: float) -> None:
        """Let time go by."""
        self.now += round(seconds * SECOND)

    def kill(self, name: str) -> None:
        """Let a process die where it stands."""
        for actor in self.world.actors:
            if actor.name == name:
                actor.killed = True

    def event(self, name: str, *happenings: Callable[[], None]) -> None:
        """Add things that happen by themselves, in this order, at any time."""

        def work() -> None:
            for number, happen in enumerate(happenings):
                if number:
                    self.world.step(name)
                happen()

        self.world.actor(name, work)

    def lose_next_answer(self) -> None:
        """Let the next write be done with its answer lost."""
        self.may_fail = True
        self._lost_answers += 1

    def lose_answers(self, rng: random.Random) -> None:
        """Let some operations fail for their caller: done all the same, or not, or later."""
        self.may_fail = True

        def fault(label: str) -> Fault | None:
            if rng.random() >= _LOST_SHARE:
                return None
            if rng.random() < _LOST_SHARE:
                return Fault(_throttled(label), Delivery.LOST)
            return Fault(ReadTimeoutError(endpoint_url="simulated:"), rng.choice(list(Delivery)))

        self.dynamodb.fault = fault

    def failed(self, error: Exception) -> None:
        """Take note of a call without an answer: there is none while DynamoDB is up (C10)."""
        if not self.may_fail and not isinstance(error, DuplicateInProgressError):
            raise ViolationError("C10", f"a call was not answered: {error!r}")

    @contextmanager
    def rooms(self) -> Iterator[Callable[[int], bool]]:
        """Tell whether the counter had no room for units at any moment since the block began."""
        before, began = len(self._states()), self.now
        algorithm = algorithm_of(self.quota, self.quota.limit)

        def was_full(units: int) -> bool:
            items = self._states()[before - 1 :]
            counters = [decode_counter(item) if item else None for item in items]
            return any(algorithm.room(counter, began) < units for counter in counters)

        yield was_full

    def check_at_rest(self) -> None:
        """Let what is late arrive; then no more may have been admitted than is allowed (C7)."""
        self.dynamodb.deliver()
        admissions = [self._admission(call) for call in self.calls]
        found = violations(self.quota, self.quota.limit, admissions)
        if found:
            raise ViolationError("C7", "; ".join(map(str, found)))
        if self.counts_exactly:
            item = self._states()[-1]
            counted = sum(decode_counter(item).levels.values()) if item else 0
            used = sum(admission.used for admission in admissions)
            if counted != used:
                raise ViolationError("C2", f"{counted} are counted, and {used} were used")

    def held(self) -> Hashable:
        """Return all that the rest of an execution depends on, but for its actors."""
        return (
            self.dynamodb.state(),
            self.now,
            self._lost_answers,
            frozenset(self._allowed_once),
            frozenset(self._first_sent.items()),
            tuple(call.state() for call in self.calls),
            tuple((name, call.state()) for name, call in self.reservations),
        )

    def _admission(self, call: Call) -> Admission:
        refunds = list(call.refunds)
        if call.expire_time is not None and not call.settled and self.quota.release_expired:
            refunds.append(Refund(call.expire_time, call.cost))
        return Admission(call.start, call.end, call.cost, call.reset_time, tuple(refunds))

    def _states(self) -> list[Any]:
        return self.dynamodb.states(counter_table(""), counter_pk(KEY))

    def _lost_answer(self, label: str) -> Fault | None:
        if not self._lost_answers or not label.startswith("UpdateItem"):
            return None
        self._lost_answers -= 1
        return Fault(ReadTimeoutError(endpoint_url="simulated:"), Delivery.APPLIED)


def _throttled(label: str) -> ClientError:
    operation, _, _ = label.partition(" ")
    return ClientError(
        {"Error": {"Code": "ProvisionedThroughputExceededException", "Message": ""}}, operation
    )
