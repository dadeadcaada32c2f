"""The counters, left alone for a moment when DynamoDB keeps failing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duostore_server.domain.counters import (
        Counter,
        Grant,
        GrantStepped,
        Settlement,
        Step,
        Stepped,
    )
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import Counters
    from duostore_server.domain.quotas import CounterKey
    from duostore_server.storage.dynamodb.guarded import Guard


class GuardedCounters:
    """Counters that are left alone while DynamoDB is out of reach: no step is done then."""

    def __init__(self, delegate: Counters, guard: Guard) -> None:
        self._delegate = delegate
        self._guard = guard

    def read(
        self, keys: Collection[CounterKey], deadline: Deadline
    ) -> Mapping[CounterKey, Counter]:
        with self._guard.watched():
            return self._delegate.read(keys, deadline)

    def apply(self, key: CounterKey, step: Step, deadline: Deadline) -> Stepped:
        with self._guard.watched():
            return self._delegate.apply(key, step, deadline)

    def record(
        self, grant: Grant, step: Step, now: int, deadline: Deadline, instead: Grant | None = None
    ) -> GrantStepped:
        with self._guard.watched():
            return self._delegate.record(grant, step, now, deadline, instead)

    def find(self, tenant: str, id_: str, deadline: Deadline) -> Grant | None:
        with self._guard.watched():
            return self._delegate.find(tenant, id_, deadline)

    def settle(
        self, grant: Grant, settlement: Settlement, step: Step | None, deadline: Deadline
    ) -> GrantStepped:
        with self._guard.watched():
            return self._delegate.settle(grant, settlement, step, deadline)
