"""The counters of quotas, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

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
    from duostore_server.telemetry.metrics import Metrics


class ObservedCounters:
    """Measures ``Counters`` and changes nothing about them. What is not done is a conflict."""

    def __init__(self, delegate: Counters, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.DYNAMODB, "read_counters")
        self._apply = StoreCalls(metrics, Store.DYNAMODB, "step_counter")
        self._record = StoreCalls(metrics, Store.DYNAMODB, "record_grant")
        self._find = StoreCalls(metrics, Store.DYNAMODB, "find_grant")
        self._settle = StoreCalls(metrics, Store.DYNAMODB, "settle_grant")

    def read(
        self, keys: Collection[CounterKey], deadline: Deadline
    ) -> Mapping[CounterKey, Counter]:
        with self._read() as call:
            found = self._delegate.read(keys, deadline)
            if not found:
                call.outcome = "miss"
            return found

    def apply(self, key: CounterKey, step: Step, deadline: Deadline) -> Stepped:
        with self._apply() as call:
            stepped = self._delegate.apply(key, step, deadline)
            if not stepped.done:
                call.outcome = "conflict"
            return stepped

    def record(
        self, grant: Grant, step: Step, now: int, deadline: Deadline, instead: Grant | None = None
    ) -> GrantStepped:
        with self._record() as call:
            stepped = self._delegate.record(grant, step, now, deadline, instead)
            if not stepped.done:
                call.outcome = "conflict"
            return stepped

    def find(self, tenant: str, id_: str, deadline: Deadline) -> Grant | None:
        with self._find() as call:
            found = self._delegate.find(tenant, id_, deadline)
            if found is None:
                call.outcome = "miss"
            return found

    def settle(
        self, grant: Grant, settlement: Settlement, step: Step | None, deadline: Deadline
    ) -> GrantStepped:
        with self._settle() as call:
            stepped = self._delegate.settle(grant, settlement, step, deadline)
            if not stepped.done:
                call.outcome = "conflict"
            return stepped
