from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store, StoreTimeoutError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.read_models import (
    Expansion,
    FanOutBacklog,
    Outcome,
    Recomputed,
    SourceChange,
    StaleDocument,
)
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.observed_source_changes import ObservedSourceChanges
from duostore_server.telemetry.observed_stale import ObservedStaleDocuments

if TYPE_CHECKING:
    from collections.abc import Sequence

SOON = Deadline.after(3600)
CHANGE = SourceChange(1, "card", "kind:note", begun=False)
STALE = StaleDocument(1, EntityKey("", "card", "1"))
BACKLOG = FanOutBacklog(1, 2, 3, 4.0)


class SourceChanges:
    def __init__(self) -> None:
        self.held = [CHANGE]
        self.expansion = Expansion(1, done=False)

    def claim(self, limit: int, _: Deadline, *, fresh: bool = False) -> Sequence[SourceChange]:
        return [each for each in self.held[:limit] if not fresh]

    def expand(self, change: SourceChange, limit: int, _: Deadline) -> Expansion:
        assert (change, limit) == (CHANGE, 7)
        return self.expansion

    def expand_together(
        self, changes: Sequence[SourceChange], limit: int, _: Deadline
    ) -> Expansion | None:
        assert (changes, limit) == ([CHANGE], 7)
        return self.expansion if self.held else None

    def waiting(self, limit: int, _: Deadline) -> int:
        return limit

    def backlog(self, _: Deadline) -> FanOutBacklog:
        return BACKLOG


class StaleDocuments:
    def __init__(self) -> None:
        self.held = [STALE]
        self.error: Exception | None = None

    def claim(self, limit: int, _: Deadline) -> Sequence[StaleDocument]:
        return self.held[:limit]

    def recompute(self, stale: Sequence[StaleDocument], _: Deadline) -> Sequence[Recomputed]:
        if self.error is not None:
            raise self.error
        return [Recomputed(each.key, Outcome.UNCHANGED) for each in stale]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def counted(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["op"], sample.labels["outcome"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "duostore_store_calls_total" and sample.value
    }


def test_changes_of_sources_are_measured(registry: CollectorRegistry) -> None:
    delegate = SourceChanges()
    observed = ObservedSourceChanges(delegate, Metrics(registry))
    assert observed.claim(5, SOON) == [CHANGE]
    assert observed.claim(5, SOON, fresh=True) == []
    for expansion in (Expansion(1, done=False), Expansion(0, done=True), Expansion(0, done=False)):
        delegate.expansion = expansion
        assert observed.expand(CHANGE, 7, SOON) is expansion
    for expansion in (Expansion(1, done=True), Expansion(0, done=True)):
        delegate.expansion = expansion
        assert observed.expand_together([CHANGE], 7, SOON) is expansion
    delegate.held = []
    assert observed.expand_together([CHANGE], 7, SOON) is None
    assert observed.waiting(3, SOON) == 3
    assert observed.backlog(SOON) is BACKLOG
    assert counted(registry) == {
        ("source_change_claim", "ok"): 1,
        ("source_change_claim", "miss"): 1,
        ("source_change_expand", "ok"): 1,
        ("source_change_expand", "miss"): 1,
        ("source_change_expand", "error"): 1,
        ("source_change_expand_together", "ok"): 1,
        ("source_change_expand_together", "miss"): 2,
        ("fan_out_waiting", "ok"): 1,
        ("fan_out_backlog", "ok"): 1,
    }


def test_stale_documents_are_measured(registry: CollectorRegistry) -> None:
    delegate = StaleDocuments()
    observed = ObservedStaleDocuments(delegate, Metrics(registry))
    assert observed.claim(5, SOON) == [STALE]
    assert observed.recompute([STALE], SOON) == [Recomputed(STALE.key, Outcome.UNCHANGED)]
    delegate.held = []
    assert observed.claim(5, SOON) == []
    delegate.error = StoreTimeoutError(Store.AURORA)
    with pytest.raises(StoreTimeoutError):
        observed.recompute([STALE], SOON)
    assert counted(registry) == {
        ("stale_claim", "ok"): 1,
        ("stale_claim", "miss"): 1,
        ("stale_recompute", "ok"): 1,
        ("stale_recompute", "timeout"): 1,
    }
