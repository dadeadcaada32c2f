"""The use cases of quotas on a simulated DynamoDB, with clocks that a test moves."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from duostore_server.access.accounts import Accounts
from duostore_server.access.counting import Counting
from duostore_server.access.granting import Granting
from duostore_server.access.leasing import Leasing
from duostore_server.access.limits import LimitsInForce
from duostore_server.access.quotas import Quotas
from duostore_server.access.settling import Settling
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.quotas import AlgorithmName, CounterKey, Mode, Quota
from duostore_server.storage.dynamodb.counters import direct_counters
from duostore_server.storage.dynamodb.tables import create_tables
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.access.accounts import Account
    from duostore_server.domain.quotas import QuotaAnswer, Settled

SECOND = 1_000_000_000
# A round moment: every window of a minute begins here, too.
MIDNIGHT = 1_795_392_000 * SECOND


def quota(
    limit: int = 10,
    *,
    name: str = "calls",
    algorithm: AlgorithmName = AlgorithmName.FIXED_WINDOW,
    window: float = 60.0,
    sub_windows: int = 6,
    lease: int | None = 0,
    lease_time: float = 1.0,
    reservation_ttl: float = 120.0,
    release_expired: bool = False,
    allow_on_outage: bool = False,
    overrides: Mapping[str, int] | None = None,
) -> Quota:
    """Return a quota; times are seconds."""
    return Quota(
        name,
        limit,
        timedelta(seconds=window),
        algorithm,
        sub_windows,
        lease,
        lease_time=timedelta(seconds=lease_time),
        reservation_ttl=timedelta(seconds=reservation_ttl),
        release_expired=release_expired,
        allow_on_outage=allow_on_outage,
        overrides=overrides or {},
    )


@dataclass
class SetLimits:
    """The limits set at run time, as a test sets them."""

    rows: dict[tuple[str, str], int] = field(default_factory=dict)

    def read(self, deadline: Deadline) -> Mapping[tuple[str, str], int]:  # noqa: ARG002 - as the port
        return dict(self.rows)


class World:
    """One DynamoDB, one time, and what was asked of DynamoDB: ``calls`` by operation."""

    def __init__(self, *quotas: Quota) -> None:
        self.quotas = {each.name: each for each in quotas or (quota(),)}
        self.now = MIDNIGHT
        self.calls: list[str] = []
        self.grants: set[str] = set()
        self.database = SimulatedDynamoDB(step=self._step)
        self.limits = SetLimits()
        self._ids = itertools.count(1)
        create_tables(self.database.client, prefix="", pause=lambda _: None)
        self.calls.clear()

    def _step(self, label: str) -> None:
        operation, *keys = label.split(" ")
        self.calls.append(operation)
        self.grants |= {key.removeprefix("grant#acme#") for key in keys if "grant#" in key}

    def pass_(self, seconds: float) -> None:
        """Let time go by, for all clocks."""
        self.now += round(seconds * SECOND)

    def monotonic(self) -> float:
        return self.now / SECOND

    def new_id(self) -> str:
        return f"{next(self._ids):032x}"

    def spent(self) -> list[str]:
        """Return what was asked of DynamoDB since the last look."""
        calls, self.calls = self.calls, []
        return calls

    def worker(self, name: str, *, behind: float = 0.0) -> Worker:
        """Return a process; its clock is ``behind`` by so many seconds."""
        return Worker(self, name, behind)


def gated(world: World) -> tuple[threading.Event, threading.Event]:
    """Hold updates up; return what lets them go on, and what tells that one was asked for."""
    gate, asked = threading.Event(), threading.Event()

    def step(label: str) -> None:
        if label.startswith("UpdateItem"):
            asked.set()
            assert gate.wait(10)

    world.database.step = step
    return gate, asked


class Worker:
    """One process that answers for the quotas of a world."""

    def __init__(self, world: World, name: str, behind: float = 0.0) -> None:
        counters = direct_counters(
            world.database.client,
            prefix="",
            pause=lambda _: None,
            clock=world.monotonic,
        )
        counting = Counting(
            counters,
            worker=name,
            clock=lambda: world.now - round(behind * SECOND),
            new_id=world.new_id,
            behind=lambda _quota, lead: self.behind.append(lead),
        )
        self.behind: list[int] = []
        self.fates: dict[str, int] = {}
        self.outcomes: list[str] = []
        self.accounts = Accounts(100)
        self.limits = LimitsInForce(world.quotas, world.limits)
        self.leasing = Leasing(counting, monotonic=world.monotonic, leased=self._leased)
        self.quotas = Quotas(
            world.quotas,
            limits=self.limits,
            accounts=self.accounts,
            counting=counting,
            leasing=self.leasing,
            granting=Granting(counting, keep=timedelta(days=1)),
            decided=lambda _quota, outcome: self.outcomes.append(outcome),
        )
        self.settling = Settling(world.quotas, limits=self.limits, counting=counting)

    def _leased(self, quota: str, fate: str, units: int) -> None:  # noqa: ARG002 - one is enough
        self.fates[fate] = self.fates.get(fate, 0) + units

    def ask(
        self,
        cost: int = 1,
        mode: Mode = Mode.CONSUME,
        *,
        key: str = "",
        subject: str = "alice",
        name: str = "calls",
        deadline: Deadline | None = None,
    ) -> QuotaAnswer:
        """Ask for units."""
        return self.quotas.ask(
            CounterKey("acme", name, subject),
            cost,
            mode,
            deadline or Deadline.after(5),
            idempotency_key=key,
        )

    def admitted(self, times: int, cost: int = 1) -> int:
        """Ask so many times; return how often it was allowed."""
        return sum(self.ask(cost).allowed for _ in range(times))

    def account(self, *, subject: str = "alice", name: str = "calls") -> Account:
        """Return what the process knows of a counter that it was asked for."""
        account = self.accounts.of(CounterKey("acme", name, subject))
        assert account is not None
        return account

    def settle(
        self, reservation: str, *, cost: int | None = None, release: Literal[True] | None = None
    ) -> Settled:
        """Settle a reservation."""
        return self.settling.settle(
            "acme", reservation, Deadline.after(5), cost=cost, release=release
        )

    def drain(self) -> None:
        """Return all leases, as at the end of the process."""
        self.leasing.return_all(self.accounts.holding(), Deadline.after(5))

    def look_after(self) -> None:
        """Do a round of the loop that returns what is not used."""
        self.leasing.return_unused(self.accounts.holding(), lambda: Deadline.after(5))
