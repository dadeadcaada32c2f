"""What operating the service asks of Aurora, measured call by call."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from duostore_server.domain.admin_ports import (
    Backfills,
    Controls,
    Entities,
    EntityPage,
    Verifications,
)
from duostore_server.domain.backfills import BackfillPart, BackfillState, Batch
from duostore_server.domain.controls import Controlled, ReadOnly
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.drift import Verified
from duostore_server.domain.entities import Backlog, Entity, OutboxRow, PendingChange
from duostore_server.domain.errors import Store, StoreTimeoutError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.ports import Outbox
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.observed_backfills import ObservedBackfills
from duostore_server.telemetry.observed_controls import ObservedControls
from duostore_server.telemetry.observed_entities import ObservedEntities
from duostore_server.telemetry.observed_outbox import ObservedOutbox
from duostore_server.telemetry.observed_verifications import ObservedVerifications

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SOON = Deadline.after(3600)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
KEY = EntityKey("acme", "proposal", "1")
OTHER = EntityKey("acme", "proposal", "2")
PAGE = EntityPage([Entity(KEY, 1, {}, NOON, NOON)], KEY)
LOOK = Verified(KEY, SECOND, 1, NOON)
PART = BackfillPart(1, "proposal", 2, 3, None, KEY, 4.0)
BATCH = Batch(KEY, 5, 6, 7)
WHY = ReadOnly("proposal", "why", "ops", NOON)


class Recording:
    """Stands in for any port: remembers what it was asked for, and answers what it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: tuple[str, tuple[object, ...], dict[str, object]] | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: object, **named: object) -> Any:
            self.asked = (name, args, named)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return call


NEVER = object()


@dataclass(frozen=True)
class Case:
    """A call, its name as a metric, what it answers, and which answer is a miss."""

    observed: Any
    method: str
    args: tuple[object, ...]
    op: str
    found: object = None
    miss: object = NEVER
    named: Mapping[str, object] = field(default_factory=dict)


_START = {"rate": 1, "parts": 2, "caller": "ops", "deadline": SOON}
_PENDING = {KEY: PendingChange(1, NOON, NOON, timedelta())}
_ROWS = [OutboxRow(1, KEY, NOON)]
_SET = Controlled({}, {"proposal": WHY})
CASES = [
    Case(ObservedOutbox, "claim", (9, SOON), "outbox_claim", _ROWS, []),
    Case(ObservedOutbox, "complete", (_ROWS, SOON), "outbox_complete"),
    Case(ObservedOutbox, "backlog", (SOON,), "outbox_backlog", Backlog(1, 2.0)),
    Case(ObservedOutbox, "find", ([KEY], SOON), "outbox_find", _PENDING, {}),
    Case(ObservedOutbox, "oblige", ([KEY], SECOND, SOON), "outbox_oblige", _ROWS),
    Case(ObservedControls, "read", (SOON,), "controls_read", _SET, Controlled()),
    Case(ObservedControls, "set_flag", ("flag", 1, "ops", SOON), "flag_set"),
    Case(ObservedControls, "unset_flag", ("flag", SOON), "flag_unset", found=True, miss=False),
    Case(ObservedControls, "set_read_only", ("", "why", "ops", SOON), "read_only_set"),
    Case(
        ObservedEntities,
        "page",
        ("proposal", KEY, OTHER, 9, SOON),
        "entities_page",
        PAGE,
        EntityPage([], KEY),
    ),
    Case(ObservedEntities, "sample", ("proposal", 9, SOON), "entities_sample", [KEY], []),
    Case(ObservedEntities, "estimate", ("proposal", SOON), "entities_estimate", 0),
    Case(ObservedEntities, "time", (SOON,), "entities_time", NOON),
    Case(ObservedEntities, "saved", (NOON, NOON, 9, SOON), "entities_saved", [LOOK], []),
    Case(ObservedVerifications, "record", ([LOOK], SOON), "verifications_record"),
    Case(ObservedVerifications, "last", (KEY, SOON), "verifications_last", LOOK, None),
    Case(ObservedVerifications, "purge", (NOON, 9, SOON), "verifications_purge", 3, 0),
    Case(ObservedBackfills, "start", ("proposal",), "backfill_start", "begun", named=_START),
    Case(
        ObservedBackfills,
        "move",
        ("proposal", BackfillState.PAUSED, "ops", SOON),
        "backfill_move",
        "paused",
        None,
    ),
    Case(ObservedBackfills, "find", ("proposal", SOON), "backfill_find", "found", None),
    Case(ObservedBackfills, "unfinished", (SOON,), "backfill_unfinished", ["found"], []),
    Case(ObservedBackfills, "claim", (["proposal"], 9, SOON), "backfill_claim", [PART], []),
    Case(ObservedBackfills, "hold", (PART, SOON), "backfill_hold", PART, None),
    Case(ObservedBackfills, "advance", (PART, BATCH, SOON), "backfill_advance", "advanced"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_a_call_is_passed_on_and_measured(case: Case) -> None:
    registry = CollectorRegistry()
    delegate = Recording(case.found)
    wrapped = case.observed(delegate, Metrics(registry))

    def call() -> object:
        return getattr(wrapped, case.method)(*case.args, **case.named)

    assert call() is case.found
    assert delegate.asked == (case.method, case.args, case.named)
    expected = {(case.op, "ok"): 1.0, (case.op, "timeout"): 1.0}
    if case.miss is not NEVER:
        delegate.answer = case.miss
        assert call() is case.miss
        expected[case.op, "miss"] = 1.0
    delegate.answer = StoreTimeoutError(Store.AURORA)
    with pytest.raises(StoreTimeoutError):
        call()
    assert counted(registry) == expected


def counted(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["op"], sample.labels["outcome"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "duostore_store_calls_total" and sample.value
    }


@pytest.mark.parametrize(
    ("observed", "port"),
    [
        (ObservedOutbox, Outbox),
        (ObservedControls, Controls),
        (ObservedEntities, Entities),
        (ObservedVerifications, Verifications),
        (ObservedBackfills, Backfills),
    ],
)
def test_no_call_of_a_port_is_forgotten(observed: type, port: type) -> None:
    def methods(of: type) -> set[str]:
        return {name for name in vars(of) if not name.startswith("_")}

    tried = {case.method for case in CASES if case.observed is observed}
    assert methods(observed) == methods(port) == tried
